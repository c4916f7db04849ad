//! Who gets at a hosted repo, and by which URLs.

use std::{fs, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::StatusCode;
use longshore_e2e::{Api, World, api::Answer};
use reqwest::Method;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{git, hosted, push};

const REFS: &str = "/git/default/example.git/info/refs?service=git-upload-pack";

/// A connection to write whatever to.
pub(super) async fn raw(world: &World) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&world.controller.ca()?) {
        roots.add(root?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = world.controller.public()?;
    let tcp = TcpStream::connect(address).await?;
    let server = ServerName::IpAddress(address.ip().into());
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(server, tcp).await.context("TLS")
}

/// The header that presents the administrator's token.
pub(super) fn authorization(world: &World) -> Result<String> {
    let token = fs::read_to_string(world.controller.data_dir().join("admin-token"))?;
    let basic = BASE64_STANDARD.encode(format!("olivia:{}", token.trim()));
    Ok(format!("Authorization: Basic {basic}\r\n"))
}

async fn get(world: &World, path: &str, token: Option<&str>) -> Result<Answer> {
    let request = world.api.request(Method::GET, path);
    Api::send(match token {
        Some(token) => request.basic_auth("anybody", Some(token)),
        None => request,
    })
    .await
}

#[tokio::test]
async fn only_the_owners_token_opens_a_repo() -> Result<()> {
    let world = hosted().await?;
    let admin = fs::read_to_string(world.controller.data_dir().join("admin-token"))?;
    let acme = world.api.create_tenant("acme").await?;
    let (admin, acme) = (admin.trim(), acme.api_token.as_str());

    let answer = Api::send(world.api.request(Method::GET, REFS)).await?;
    ensure!(answer.status == StatusCode::UNAUTHORIZED, "{answer:?}");
    let response = world.api.request(Method::GET, REFS).send().await?;
    let challenge = response.headers().get("www-authenticate");
    ensure!(challenge.is_some_and(|it| it.as_bytes().starts_with(b"Basic ")));
    for wrong in ["", "lsa_nobody", "x"] {
        let answer = get(&world, REFS, Some(wrong)).await?;
        ensure!(answer.status == StatusCode::UNAUTHORIZED, "{answer:?}");
    }
    // Without a token one does not learn what there is.
    let nowhere = REFS.replace("example", "nowhere");
    ensure!(get(&world, &nowhere, None).await?.status == StatusCode::UNAUTHORIZED);

    // A fleet of the same tenant that is hosted elsewhere.
    world
        .api
        .create_fleet("elsewhere", "https://git.example/x.git")
        .await?;
    let mine = get(&world, REFS, Some(admin)).await?;
    ensure!(mine.status == StatusCode::OK, "{mine:?}");
    ensure!(
        mine.text.starts_with("001e# service=git-upload-pack\n"),
        "{mine:?}"
    );
    let alike = [
        (REFS.to_owned(), acme),
        (nowhere.clone(), acme),
        (REFS.replace("default", "nobody"), acme),
        (nowhere, admin),
        (REFS.replace("default", "nobody"), admin),
        (REFS.replace("example", "elsewhere"), admin),
    ];
    for (path, token) in &alike {
        let answer = get(&world, path, Some(token)).await?;
        ensure!(answer.status == StatusCode::NOT_FOUND, "{path}: {answer:?}");
        let name = path.trim_start_matches("/git/");
        let name = name.split("/info").next().unwrap_or_default();
        let expected = format!(
            "there is no hosted repo {name}; `longshore fleets list` shows what there is\n"
        );
        ensure!(answer.text == expected, "{path}: {answer:?}");
    }

    // A tenant hosts its own repos, and the administrator gets at them.
    let tenant = world.api.as_tenant("acme", acme);
    let created = tenant.create_fleet("shops", "").await?;
    let url = tenant.with_credentials(&created.fleet.repo);
    let copy = world.repo.copy();
    push_to(&world, &url).await?;
    let theirs = "/git/acme/shops.git/info/refs?service=git-receive-pack";
    ensure!(get(&world, theirs, Some(admin)).await?.status == StatusCode::OK);
    let foreign = copy.git(["remote", "get-url", "origin"])?;
    let foreign = foreign.replace(admin, acme);
    let said = git(copy.path(), &["push", &foreign, "main:stolen"]).await?;
    said.refused()?.says("there is no hosted repo")?;

    // What the controller hosts is on no other host.
    let connection = json!({"force": true});
    let answer = tenant
        .call(Method::PUT, "fleets/shops/connection", Some(&connection))
        .await?;
    ensure!(
        answer.status == StatusCode::UNPROCESSABLE_ENTITY,
        "{answer:?}"
    );
    ensure!(
        answer.text.contains("hosts this fleet's repo itself"),
        "{answer:?}"
    );

    // Neither may say where on the disk.
    for repo in ["/etc", "https://git.example/x.git"] {
        let body = json!({"name": "both", "hosted": true, "repo": repo});
        let answer = tenant.call(Method::POST, "fleets", Some(&body)).await?;
        ensure!(
            answer.status == StatusCode::UNPROCESSABLE_ENTITY,
            "{answer:?}"
        );
    }
    Ok(())
}

async fn push_to(world: &World, url: &str) -> Result<()> {
    let copy = world.repo.copy();
    git(copy.path(), &["push", url, "main"]).await?.worked()?;
    Ok(())
}

#[tokio::test]
async fn a_revoked_token_opens_nothing() -> Result<()> {
    let mut world = hosted().await?;
    push(world.repo.copy(), &["main:before"]).await?.worked()?;
    world.controller.stop().await?;
    fs::remove_file(world.controller.data_dir().join("admin-token"))?;
    world.controller.start_again().await?;
    let said = push(world.repo.copy(), &["main:after"]).await?.refused()?;
    said.says("Authentication failed")
}

#[tokio::test]
async fn only_gits_own_urls_lead_anywhere() -> Result<()> {
    let world = hosted().await?;
    let authorization = authorization(&world)?;
    let bare = world.repo.bare();
    let name = bare.file_name().context("a name")?.to_string_lossy();
    let paths = [
        // No service, another one, the dumb protocol, the files themselves.
        "/git/default/example.git/info/refs".to_owned(),
        "/git/default/example.git/info/refs?service=git-upload-archive".to_owned(),
        "/git/default/example.git/info/refs?service=git-upload-pack&x=y".to_owned(),
        "/git/default/example.git/HEAD".to_owned(),
        "/git/default/example.git/config".to_owned(),
        "/git/default/example.git/objects/info/packs".to_owned(),
        "/git/default/example.git/git-upload-archive".to_owned(),
        "/git/default/example.git".to_owned(),
        "/git/default/example/info/refs?service=git-upload-pack".to_owned(),
        // Out of the place.
        "/git/default/../default/example.git/info/refs?service=git-upload-pack".to_owned(),
        "/git/../git/default/example.git/info/refs?service=git-upload-pack".to_owned(),
        "/git/default/..%2fdefault%2fexample.git/info/refs?service=git-upload-pack".to_owned(),
        "/git/default%2fexample.git/x/info/refs?service=git-upload-pack".to_owned(),
        "/git/%2e%2e/example.git/info/refs?service=git-upload-pack".to_owned(),
        "/git/default/%2e%2e.git/info/refs?service=git-upload-pack".to_owned(),
        "/git//example.git/info/refs?service=git-upload-pack".to_owned(),
        "/git/default/example.git%00/info/refs?service=git-upload-pack".to_owned(),
        "/git/default/example.git%0a/info/refs?service=git-upload-pack".to_owned(),
        "/git/default/EXAMPLE.git/info/refs?service=git-upload-pack".to_owned(),
        format!("/git/default/{name}/info/refs?service=git-upload-pack"),
        format!(
            "/git/default/{}/info/refs?service=git-upload-pack",
            bare.display()
        ),
    ];
    for path in paths {
        let mut connection = raw(&world).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}\r\n"
        );
        connection.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // A server that hangs up without a goodbye of TLS has answered all the same.
        drop(connection.read_to_end(&mut answer).await);
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(
            ["400", "403", "404", "405"].contains(&status),
            "{path}: {answer}"
        );
    }
    for (path, media_type, expected) in [
        ("git-upload-pack", "text/plain", 415),
        (
            "git-receive-pack",
            "application/x-git-upload-pack-request",
            415,
        ),
        (
            "git-upload-archive",
            "application/x-git-upload-archive-request",
            404,
        ),
    ] {
        let request = world
            .api
            .request(Method::POST, &format!("/git/default/example.git/{path}"))
            .basic_auth("x", Some(token(&world)?))
            .header("content-type", media_type)
            .body("0000");
        let answer = Api::send(request).await?;
        ensure!(answer.status.as_u16() == expected, "{path}: {answer:?}");
    }
    Ok(())
}

fn token(world: &World) -> Result<String> {
    let token = fs::read_to_string(world.controller.data_dir().join("admin-token"))?;
    Ok(token.trim().to_owned())
}
