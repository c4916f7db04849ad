//! Fleets and their revisions.

use axum::{Json, extract::State as Extract, http::StatusCode};
use longshore_fleet::RepoPath;
use longshore_protocol::{
    TenantName,
    api::{self, ConfirmRemovals, CreateFleet, CreatedFleet, DeviceCounts, List},
};
use secrecy::ExposeSecret as _;
use sqlx::AnyConnection;

use super::{
    Api, ApiError, State,
    access::{InFleet, InTenant},
    git, webhooks,
};
use crate::{
    clock,
    forge::repository::is_loopback,
    hosting::repo,
    secret,
    store::{
        StoreError, devices,
        fleets::{self, Fleet, FleetId, FleetStatus},
        tenants::Operator,
    },
};

const MAX_REVISIONS: u32 = 100;

pub(super) async fn list(
    Extract(api): State,
    InTenant { tenant, .. }: InTenant,
) -> Result<Json<List<api::Fleet>>, ApiError> {
    let mut db = api.store.read().await?;
    let items = views(&api, &mut db, &tenant).await?;
    Ok(Json(List { items }))
}

pub(super) async fn create(
    Extract(api): State,
    InTenant { tenant, operator }: InTenant,
    Json(request): Json<CreateFleet>,
) -> Result<(StatusCode, Json<CreatedFleet>), ApiError> {
    let trusted = operator == Operator::Administrator;
    check(&request, trusted)?;
    let id = FleetId {
        tenant,
        name: request.name,
    };
    let webhook_secret = secret::generate_for_webhooks();
    let fleet = Fleet {
        id: id.clone(),
        repo: request.repo,
        branch: request.branch,
        path: request.path.trim_matches('/').to_owned(),
        trusted,
        webhook_secret: api
            .keyring
            .encrypt(&webhooks::purpose(&id), &webhook_secret)?,
        webhook_secret_before: None,
        connection: None,
        hosted: request.hosted,
        status: FleetStatus::default(),
        confirmed_revision: None,
        changes: 0,
        created_at: clock::now_ms(),
    };
    let mut db = api.store.write().await?;
    fleets::insert(&mut db, &fleet).await?;
    if fleet.hosted {
        let directory = api.fleets.hosted_directory(&fleet);
        repo::create(&directory, &fleet.branch).await?;
    }
    db.commit().await?;
    api.fleets.follow(&fleet).await?;
    api.fleets.announce();
    let created = CreatedFleet {
        fleet: view(&api, fleet, DeviceCounts::default()),
        webhook_path: webhooks::path(&id),
        webhook_secret: webhook_secret.expose_secret().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Checks what Git would be told, before Git is told.
fn check(request: &CreateFleet, trusted: bool) -> Result<(), ApiError> {
    let refuse = |detail: String| Err(ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, detail));
    match (request.hosted, request.repo.as_str()) {
        (true, "") => {}
        (true, _) => {
            return refuse("a hosted fleet's repo is made here; leave out `repo`".to_owned());
        }
        (false, repo) => check_repo(repo, trusted)?,
    }
    if !git2::Reference::is_valid_name(&format!("refs/heads/{}", request.branch)) {
        return refuse(format!("`{}` is no valid name of a branch", request.branch));
    }
    if let Err(error) = RepoPath::new(request.path.trim_matches('/')) {
        return refuse(format!(
            "`{}` is no valid path in a repo: {error}",
            request.path
        ));
    }
    Ok(())
}

/// Checks where a repo is.
fn check_repo(repo: &str, trusted: bool) -> Result<(), ApiError> {
    let refuse = |detail: String| Err(ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, detail));
    // Over ssh, a tenant's fleet is fetched once it has a key of its own.
    let allowed: &[&str] = if trusted {
        &["https://", "ssh://", "file://", "/"]
    } else {
        &["https://", "ssh://"]
    };
    let is_local_http = trusted
        && url::Url::parse(repo).is_ok_and(|url| url.scheme() == "http" && is_loopback(&url));
    let scp_like = trusted
        && repo.split_once(':').is_some_and(|(host, path)| {
            host.contains('@') && !host.contains('/') && !host.starts_with('-') && !path.is_empty()
        });
    if !scp_like && !is_local_http && !allowed.iter().any(|prefix| repo.starts_with(prefix)) {
        return refuse(if trusted {
            format!("`{repo}` must be an absolute path or an https, ssh or file URL")
        } else {
            format!(
                "`{repo}` must be an https or ssh URL; only an administrator may add other repos"
            )
        });
    }
    let has_secret = |url: url::Url| {
        url.password().is_some() || url.scheme() != "ssh" && !url.username().is_empty()
    };
    if url::Url::parse(repo).is_ok_and(has_secret) {
        return refuse(
            "the repo's URL holds a credential, and would be shown; give it with `longshore fleets connect`"
                .to_owned(),
        );
    }
    Ok(())
}

pub(super) async fn show(
    Extract(api): State,
    InFleet(fleet): InFleet,
) -> Result<Json<api::Fleet>, ApiError> {
    let mut db = api.store.read().await?;
    let devices = devices::counts(&mut db, &fleet.id).await?;
    Ok(Json(view(&api, fleet, devices)))
}

pub(super) async fn remove(
    Extract(api): State,
    InFleet(fleet): InFleet,
) -> Result<StatusCode, ApiError> {
    let mut db = api.store.write().await?;
    let gone = devices::ids(&mut db, &fleet.id).await?;
    fleets::delete(&mut db, &fleet.id).await?;
    db.commit().await?;
    api.fleets.leave(&fleet);
    api.hub.poke(&gone);
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn sync(Extract(api): State, InFleet(fleet): InFleet) -> StatusCode {
    api.fleets.look(&fleet.id);
    api.fleets.poke(&fleet.id);
    StatusCode::ACCEPTED
}

pub(super) async fn confirm_removals(
    Extract(api): State,
    InFleet(fleet): InFleet,
    Json(request): Json<ConfirmRemovals>,
) -> Result<StatusCode, ApiError> {
    let mut db = api.store.write().await?;
    let confirmed = fleets::confirm_removals(&mut db, &fleet.id, &request.revision).await?;
    db.commit().await?;
    if !confirmed {
        let revision = fleet.status.revision.unwrap_or_default();
        return Err(ApiError::refused(
            StatusCode::CONFLICT,
            format!(
                "revision `{}` is not the one in force, which is {revision}; look at its removals first",
                request.revision
            ),
        ));
    }
    api.fleets.poke(&fleet.id);
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn revisions(
    Extract(api): State,
    InFleet(fleet): InFleet,
) -> Result<Json<List<api::Revision>>, ApiError> {
    let mut db = api.store.read().await?;
    let items = fleets::revisions(&mut db, &fleet.id, MAX_REVISIONS)
        .await?
        .into_iter()
        .map(|revision| api::Revision {
            commit: revision.commit,
            summary: revision.summary,
            author: revision.author,
            observed_at: revision.observed_at,
            devices_changed: revision.devices_changed,
            problems: revision.problems,
        })
        .collect();
    Ok(Json(List { items }))
}

/// The tenant's fleets as the API shows them. Two statements, however many there are.
pub(super) async fn views(
    api: &Api,
    db: &mut AnyConnection,
    tenant: &TenantName,
) -> Result<Vec<api::Fleet>, StoreError> {
    let fleets = fleets::list(&mut *db, tenant).await?;
    let mut counts = devices::counts_by_fleet(db, tenant).await?;
    let views = fleets.into_iter().map(|fleet| {
        let devices = counts.remove(&fleet.id.name).unwrap_or_default();
        view(api, fleet, devices)
    });
    Ok(views.collect())
}

/// A fleet as the API shows it.
fn view(api: &Api, fleet: Fleet, devices: DeviceCounts) -> api::Fleet {
    let repo = if fleet.hosted {
        git::clone_url(&api.public_url, &fleet.id)
    } else {
        fleet.repo
    };
    api::Fleet {
        name: fleet.id.name,
        repo,
        hosted: fleet.hosted,
        branch: fleet.branch,
        path: fleet.path,
        revision: fleet.status.revision,
        devices,
        conditions: fleet.status.conditions,
        problems: fleet.status.problems,
        held: fleet.status.held,
        created_at: fleet.created_at,
    }
}
