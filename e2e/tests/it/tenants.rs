//! Tenants are hostile to each other: what belongs to another one does not exist.

use anyhow::{Result, ensure};
use http::StatusCode;
use longshore_e2e::{Api, World, api::FLEET};
use longshore_protocol::api::Approval;
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn another_tenants_ids_do_not_exist() -> Result<()> {
    let world = World::start().await?;
    let admin = &world.api;
    let agent = world.enrolled("store-0001").await?;
    let token = admin.create_token(Approval::Manual).await?;
    let pending = longshore_e2e::Candidate::new("store-0002")?;
    pending.ask(admin, &token.secret).await?;
    let revision = admin.fleet().await?.revision.unwrap_or_default();

    let acme = admin.create_tenant("acme").await?;
    let id = token.token.id.to_string();
    let fleet = format!("fleets/{FLEET}");
    let calls: Vec<(Method, String, Value)> = vec![
        (Method::GET, "status".to_owned(), Value::Null),
        (Method::GET, "fleets".to_owned(), Value::Null),
        (
            Method::POST,
            "fleets".to_owned(),
            json!({"name": "mine", "repo": "https://git.example/x.git"}),
        ),
        (Method::GET, fleet.clone(), Value::Null),
        (Method::DELETE, fleet.clone(), Value::Null),
        (Method::POST, format!("{fleet}/sync"), Value::Null),
        (
            Method::POST,
            format!("{fleet}/removals/confirm"),
            json!({"revision": revision}),
        ),
        (
            Method::PUT,
            format!("{fleet}/connection"),
            json!({"git": {"password": {"username": "x", "password": "y"}}}),
        ),
        (Method::DELETE, format!("{fleet}/connection"), Value::Null),
        (Method::GET, format!("{fleet}/revisions"), Value::Null),
        (Method::GET, format!("{fleet}/tokens"), Value::Null),
        (
            Method::POST,
            format!("{fleet}/tokens"),
            json!({"approval": "automatic"}),
        ),
        (Method::DELETE, format!("{fleet}/tokens/{id}"), Value::Null),
        (Method::GET, format!("{fleet}/devices"), Value::Null),
        (
            Method::GET,
            format!("{fleet}/devices/store-0001"),
            Value::Null,
        ),
        (
            Method::GET,
            format!("{fleet}/devices/store-0001/manifests"),
            Value::Null,
        ),
        (
            Method::GET,
            format!("{fleet}/devices/store-0001/logs"),
            Value::Null,
        ),
        (
            Method::POST,
            format!("{fleet}/devices/store-0002/approve"),
            Value::Null,
        ),
        (
            Method::POST,
            format!("{fleet}/devices/store-0002/reject"),
            Value::Null,
        ),
        (
            Method::POST,
            format!("{fleet}/devices/store-0001/decommission"),
            Value::Null,
        ),
    ];
    let call = async |api: &Api, method: &Method, path: &str, body: &Value| {
        let body = (!body.is_null()).then_some(body);
        api.call(method.clone(), path, body).await
    };
    let before = serde_json::to_value(admin.fleet().await?)?;

    // Acme's token, the first tenant's paths.
    let intruder = admin.with_token(&acme.api_token);
    // Acme's token, acme's own paths, the first tenant's ids.
    let guesser = admin.as_tenant("acme", &acme.api_token);
    // Nobody's token.
    let nobody = admin.with_token("lsa_nobody");
    for (method, path, body) in &calls {
        let answer = call(&intruder, method, path, body).await?;
        ensure!(
            answer.status == StatusCode::NOT_FOUND,
            "{method} {path}: {answer:?}"
        );
        ensure!(
            !answer.text.contains("store-0001,"),
            "{method} {path} tells: {answer:?}"
        );
        let unknown = call(
            &admin.as_tenant("nowhere", &acme.api_token),
            method,
            path,
            body,
        )
        .await?;
        ensure!(
            unknown.status == answer.status,
            "a tenant that is there looks like one that is not"
        );
        if path.starts_with(&fleet) {
            let answer = call(&guesser, method, path, body).await?;
            ensure!(
                answer.status == StatusCode::NOT_FOUND,
                "{method} acme's {path}: {answer:?}"
            );
        }
        let answer = call(&nobody, method, path, body).await?;
        ensure!(
            answer.status == StatusCode::UNAUTHORIZED,
            "{method} {path}: {answer:?}"
        );
    }
    for path in ["/api/v1/tenants", "/metrics"] {
        let request = intruder
            .request(Method::GET, path)
            .bearer_auth(&acme.api_token);
        let answer = Api::send(request).await?;
        ensure!(answer.status == StatusCode::FORBIDDEN, "{path}: {answer:?}");
    }
    let after = serde_json::to_value(admin.fleet().await?)?;
    ensure!(
        before["devices"] == after["devices"],
        "nothing happened: {before} {after}"
    );
    ensure!(agent.manifests()?.len() > 1);

    // Each of these calls does exist for whom it belongs to.
    for (method, path, body) in calls.iter().filter(|(method, ..)| *method == Method::GET) {
        let answer = call(admin, method, path, body).await?;
        ensure!(answer.status.is_success(), "{method} {path}: {answer:?}");
    }
    // And acme has what is its own: nothing yet, and the same names as anybody.
    let answer = call(&guesser, &Method::GET, "fleets", &Value::Null).await?;
    ensure!(answer.json() == json!({"items": []}), "{answer:?}");
    Ok(())
}

/// A tenant's fleet must be a repo that the tenant could read itself, not the controller's own files.
#[tokio::test]
async fn a_tenant_cannot_read_the_controllers_disk() -> Result<()> {
    let world = World::start().await?;
    let acme = world.api.create_tenant("acme").await?;
    let api = world.api.as_tenant("acme", &acme.api_token);
    let bare = world.repo.bare().display().to_string();
    for repo in [
        &bare,
        &format!("file://{bare}"),
        "ext::sh -c id",
        "--upload-pack=id",
        "../x",
    ] {
        let answer = api
            .call(
                Method::POST,
                "fleets",
                Some(&json!({"name": "theft", "repo": repo})),
            )
            .await?;
        ensure!(answer.status.is_client_error(), "{repo}: {answer:?}");
    }
    Ok(())
}
