//! Provisioning tokens.

use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
};
use longshore_fleet::RepoPath;
use longshore_protocol::{
    TokenId,
    api::{self, CreateToken, CreatedToken, List},
};
use secrecy::ExposeSecret as _;

use super::{ApiError, State, access::InFleet};
use crate::{
    clock, secret,
    store::tokens::{self, Token},
};

pub(super) async fn list(
    Extract(api): State,
    InFleet(fleet): InFleet,
) -> Result<Json<List<api::Token>>, ApiError> {
    let mut db = api.store.read().await?;
    let items = tokens::list(&mut db, &fleet.id)
        .await?
        .into_iter()
        .map(view)
        .collect();
    Ok(Json(List { items }))
}

pub(super) async fn create(
    Extract(api): State,
    InFleet(fleet): InFleet,
    Json(request): Json<CreateToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    check(&request)?;
    let secret = secret::generate("lst_");
    let now = clock::now_ms();
    let token = Token {
        id: TokenId::from_random(rand::random()),
        fleet: fleet.id,
        label: request.label,
        approval: request.approval,
        uses: 0,
        max_uses: request.max_uses,
        expires_at: request
            .expires_in
            .map(|seconds| now.saturating_add(seconds.saturating_mul(1000))),
        revoked: false,
        overlay: request
            .overlay
            .map(|overlay| overlay.trim_matches('/').to_owned()),
        labels: request.labels,
        created_at: now,
    };
    let mut db = api.store.write().await?;
    tokens::insert(&mut db, &token, secret::hash(secret.expose_secret())).await?;
    db.commit().await?;
    let created = CreatedToken {
        token: view(token),
        secret: secret.expose_secret().to_owned(),
        server: api.public_url.clone(),
        ca_fingerprint: api.certificates.pin(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// What goes into a device's file must be readable there again.
fn check(request: &CreateToken) -> Result<(), ApiError> {
    let refuse = |detail: String| Err(ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, detail));
    if request.label.chars().count() > 200 || request.label.chars().any(char::is_control) {
        return refuse(
            "the label must have at most 200 characters and no control characters".into(),
        );
    }
    if let Some(overlay) = &request.overlay {
        match RepoPath::new(overlay.trim_matches('/')) {
            Ok(path) if !path.is_root() => {}
            Ok(_) => return refuse("the overlay must be a folder, such as `groups/kiosk`".into()),
            Err(error) => return refuse(format!("overlay `{overlay}`: {error}")),
        }
    }
    if let Err(error) = longshore_fleet::fleet::check_labels(&request.labels) {
        return refuse(error);
    }
    Ok(())
}

pub(super) async fn revoke(
    Extract(api): State,
    InFleet(fleet): InFleet,
    Path((_, _, id)): Path<(String, String, String)>,
) -> Result<StatusCode, ApiError> {
    let missing = || ApiError::not_found("token", &id);
    let token: TokenId = id.parse().map_err(|_invalid| missing())?;
    let mut db = api.store.write().await?;
    let revoked = tokens::revoke(&mut db, &fleet.id, &token).await?;
    db.commit().await?;
    if revoked {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing())
    }
}

fn view(token: Token) -> api::Token {
    api::Token {
        id: token.id,
        fleet: token.fleet.name,
        label: token.label,
        approval: token.approval,
        uses: token.uses,
        max_uses: token.max_uses,
        expires_at: token.expires_at,
        revoked: token.revoked,
        created_at: token.created_at,
    }
}
