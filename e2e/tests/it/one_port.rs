//! One address for everything: who asks for the edge by its name gets mutual TLS, and everybody else the API.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use longshore_e2e::{Api, Controller, ControllerOptions, World, WorldOptions, edge::certificates};
use longshore_protocol::api::EDGE_PATH;
use reqwest::Method;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A controller with one address, and a name for the edge that every machine knows.
fn options() -> Result<(SocketAddr, ControllerOptions)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let port = address.port();
    let arguments = [
        "--public-url".to_owned(),
        format!("https://{address}"),
        "--edge-url".to_owned(),
        format!("wss://localhost:{port}"),
    ];
    let options = ControllerOptions {
        listens: Some((address, address)),
        arguments: arguments.map(Into::into).into(),
        ..ControllerOptions::default()
    };
    Ok((address, options))
}

/// A connection without a client's certificate, asking for this server.
async fn ask(world: &World, name: &str) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for root in certificates(std::str::from_utf8(&world.controller.ca()?)?)? {
        roots.add(root)?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(world.controller.edge()?).await?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name.to_owned().try_into()?, stream);
    stream.await.with_context(|| name.to_owned())
}

/// What is answered to a request for `path`.
async fn get(mut stream: TlsStream<TcpStream>, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_fleet_needs_one_port_only() -> Result<()> {
    let (address, controller) = options()?;
    let mut world = World::with(WorldOptions {
        controller,
        ..WorldOptions::default()
    })
    .await?;
    ensure!(world.controller.edge()? == address && world.controller.public()? == address);
    let agent = world.enrolled("store-0001").await?;
    let kept = std::fs::read_to_string(agent.state().join("identity.json"))?;
    let edge = format!("wss://localhost:{}{EDGE_PATH}", address.port());
    ensure!(kept.contains(&edge), "{kept}");
    ensure!(world.api.device("store-0001").await?.connected);
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace(
        "groups/kiosk/page.yaml",
        "Welcome to",
        "Through one door to",
    )?;
    copy.publish("Change the page")?;
    agent.page_shows("Through one door to Our shop").await?;

    // By the edge's name, nobody gets in without a certificate; and there is no API.
    let refused = match ask(&world, "localhost").await {
        // With TLS 1.3, a client learns that where the answer would be.
        Ok(stream) => get(stream, "/readyz").await,
        Err(error) => Err(error),
    };
    let refused = format!("{:#}", refused.unwrap_err());
    ensure!(refused.contains("CertificateRequired"), "{refused}");
    // By another one there is the API, and no edge, with or without a name of the device's edge in the request.
    let answer = get(ask(&world, "127.0.0.1").await?, "/readyz").await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = get(ask(&world, "127.0.0.1").await?, EDGE_PATH).await?;
    ensure!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let request = world.api.request(Method::GET, EDGE_PATH);
    ensure!(Api::send(request).await?.status == StatusCode::NOT_FOUND);

    // It is a way of listening, and nothing that a restart would lose.
    world.controller.restart().await?;
    copy.replace("groups/kiosk/page.yaml", "Through one door", "Again")?;
    copy.publish("Change the page again")?;
    agent.page_shows("Again to Our shop").await
}

#[tokio::test]
async fn one_port_with_one_name_is_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (address, options) = options()?;
    let arguments = ["--edge-url".to_owned(), format!("wss://{address}")];
    let options = ControllerOptions {
        arguments: arguments.map(Into::into).into(),
        ..options
    };
    let data = directory.path().join("controller");
    let listens = (address, address);
    let mut controller = Controller::at(&data, options, listens);
    controller.spawn()?;
    let status = controller.process()?.exit().await?;
    ensure!(status.code() == Some(2), "{status}");
    let log = controller.log();
    ensure!(
        log.contains("name it in edge-url, such as wss://edge.example.com"),
        "{log}"
    );
    controller.be_quiet();
    Ok(())
}
