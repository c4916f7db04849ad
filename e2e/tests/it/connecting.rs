//! A fleet is given what the controller needs at its Git host.
//!
//! The host here is another controller, which hosts the repo and has a certificate by an authority of its own.

use std::fs;

use anyhow::{Result, ensure};
use http::StatusCode;
use longshore_e2e::{
    Api, Controller, ControllerOptions, World, WorldOptions,
    api::{Answer, FLEET, condition},
    eventually,
};
use longshore_protocol::{ConditionStatus, api::Fleet};
use reqwest::Method;
use serde_json::{Value, json};

/// A controller that follows a repo of another one.
struct Connecting {
    host: World,
    controller: Controller,
    /// A tenant's, not the administrator's.
    api: Api,
    /// What opens the repo.
    password: String,
    directory: tempfile::TempDir,
}

impl Connecting {
    async fn start(trusts_host: bool) -> Result<Self> {
        let host = World::with(WorldOptions {
            hosted: true,
            ..WorldOptions::default()
        })
        .await?;
        let directory = tempfile::tempdir()?;
        let mut options = ControllerOptions {
            // So that nothing is seen by polling.
            arguments: ["--poll-interval", "1h"].map(Into::into).into(),
            ..ControllerOptions::default()
        };
        if trusts_host {
            let authority = host.controller.data_dir().join("ca.pem");
            options
                .environment
                .push(("SSL_CERT_FILE".into(), authority.into()));
        }
        let controller = Controller::start(&directory.path().join("controller"), options).await?;
        let admin = controller.api()?;
        let acme = admin.create_tenant("acme").await?;
        let api = admin.as_tenant("acme", &acme.api_token);
        api.create_fleet(FLEET, &host.api.fleet().await?.repo)
            .await?;
        let url = host.api.with_credentials("://");
        let password = url
            .trim_start_matches("://olivia:")
            .trim_end_matches('@')
            .to_owned();
        Ok(Self {
            host,
            controller,
            api,
            password,
            directory,
        })
    }

    async fn connection(&self, method: Method, body: &Value) -> Result<Answer> {
        let body = (!body.is_null()).then_some(body);
        let path = format!("fleets/{FLEET}/connection");
        self.api.call(method, &path, body).await
    }

    /// Waits until the fleet's source is ready.
    async fn is_followed(&self) -> Result<Fleet> {
        eventually("a source that is ready", async || {
            let fleet = self.api.fleet().await?;
            let now = condition(&fleet.conditions, "SourceReady")?;
            ensure!(now.status == ConditionStatus::True, "{now:?}");
            Ok(fleet)
        })
        .await
    }

    /// Waits until the fleet's source is not ready, for this reason.
    async fn is_not_followed(&self, because: &str) -> Result<()> {
        eventually("a source that is not ready", async || {
            let fleet = self.api.fleet().await?;
            let now = condition(&fleet.conditions, "SourceReady")?;
            let is_so = now.status == ConditionStatus::False && now.message.contains(because);
            ensure!(is_so, "{now:?}");
            Ok(())
        })
        .await
    }
}

#[tokio::test]
async fn a_tenant_connects_its_fleet_and_it_is_followed_at_once() -> Result<()> {
    let it = Connecting::start(true).await?;
    it.is_not_followed("could not read Username").await?;
    let missing = it.connection(Method::GET, &Value::Null).await?;
    ensure!(missing.status == StatusCode::NOT_FOUND, "{missing:?}");

    let git = json!({"git": {"password": {"username": "olivia", "password": it.password}}});
    let connected = it.connection(Method::PUT, &git).await?;
    ensure!(connected.status == StatusCode::OK, "{connected:?}");
    let fleet = it.is_followed().await?;
    let theirs = it.host.api.fleet().await?;
    ensure!(
        fleet.revision.is_some() && fleet.revision == theirs.revision,
        "{fleet:?}"
    );

    let shown = it.connection(Method::GET, &Value::Null).await?;
    let expected = json!({"forge": null, "git": {"password": {"username": "olivia"}}});
    ensure!(shown.json() == expected, "{shown:?}");
    let log = fs::read_to_string(it.directory.path().join("controller.log"))?;
    ensure!(!log.contains(&it.password), "the log holds the password");
    let database = fs::read(it.directory.path().join("controller/longshore.db"))?;
    let password = it.password.as_bytes();
    ensure!(
        !database
            .windows(password.len())
            .any(|window| window == password),
        "the database holds the password"
    );

    let gone = it.connection(Method::DELETE, &Value::Null).await?;
    ensure!(gone.status == StatusCode::NO_CONTENT, "{gone:?}");
    it.is_not_followed("could not read Username").await?;
    Ok(())
}

#[tokio::test]
async fn what_would_not_work_is_refused_unless_forced() -> Result<()> {
    let it = Connecting::start(true).await?;
    let forge = |force: bool| {
        json!({
            "forge": {
                "kind": "gitea",
                "url": format!("{}/api/v1", it.host.api.server()),
                "repository": "acme/kiosks",
                "credential": {"token": it.password},
            },
            "force": force,
        })
    };
    // The other controller is no Gitea, but it was asked: its certificate is trusted.
    let refused = it.connection(Method::PUT, &forge(false)).await?;
    ensure!(
        refused.status == StatusCode::UNPROCESSABLE_ENTITY,
        "{refused:?}"
    );
    ensure!(refused.text.contains("nothing was changed"), "{refused:?}");
    ensure!(!refused.text.contains(&it.password), "{refused:?}");
    let missing = it.connection(Method::GET, &Value::Null).await?;
    ensure!(missing.status == StatusCode::NOT_FOUND, "{missing:?}");
    let forced = it.connection(Method::PUT, &forge(true)).await?;
    ensure!(forced.status == StatusCode::OK, "{forced:?}");
    ensure!(
        forced.json()["forge"]["credential"] == "token",
        "{forced:?}"
    );

    let plain = json!({
        "forge": {
            "kind": "gitea",
            "url": "http://127.0.0.1:1/api/v1",
            "repository": "acme/kiosks",
            "credential": {"token": "x"},
        },
        "force": true,
    });
    let refused = it.connection(Method::PUT, &plain).await?;
    ensure!(
        refused.status == StatusCode::UNPROCESSABLE_ENTITY,
        "{refused:?}"
    );
    ensure!(refused.text.contains("must be an https URL"), "{refused:?}");
    // What a controller hosts itself has no other host.
    let path = format!("fleets/{FLEET}/connection");
    let refused = it
        .host
        .api
        .call(Method::PUT, &path, Some(&forge(true)))
        .await?;
    ensure!(
        refused.status == StatusCode::UNPROCESSABLE_ENTITY,
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_host_with_an_unknown_certificate_is_told_nothing() -> Result<()> {
    let it = Connecting::start(false).await?;
    let connection = json!({
        "forge": {
            "kind": "gitea",
            "repository": "acme/kiosks",
            "credential": {"token": it.password},
        },
    });
    let refused = it.connection(Method::PUT, &connection).await?;
    ensure!(refused.status == StatusCode::BAD_GATEWAY, "{refused:?}");
    ensure!(refused.text.contains("certificate"), "{refused:?}");
    let git = json!({"git": {"password": {"username": "olivia", "password": it.password}}});
    it.connection(Method::PUT, &git).await?.success::<Value>()?;
    it.is_not_followed("certificate").await?;
    drop(it.controller);
    Ok(())
}
