//! Networks as devices find them: proxies, portals, IPv6, routers that forget; and clocks that nobody has set.

use std::{
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::Response;
use longshore_agent::{
    clock::{self, Clock},
    network::{Network, proxy::Proxies},
    tls::Trust,
};
use longshore_protocol::message::{ControlMessage, Phase};
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    process::Command,
    time,
};
use url::Url;

use crate::{
    DEADLINE,
    edge::{Behavior, Edge},
    enrolling::{approved, enroll_through},
    linking::{Agent, SHORT, device, identity},
    object,
    pki::{Life, Pki},
    process::{Device, controller, ended, signal},
    proxy::{self, Manner, Proxy},
    public::{self, Asked, answer},
    relay, until,
};

const YEAR: u64 = 365 * 86_400_000;
/// Base64 of `till:secret`.
const AUTHORIZATION: &str = "Basic dGlsbDpzZWNyZXQ=";

fn behind(url: &str, no_proxy: &str) -> Network {
    let proxies = Proxies::new(url.into(), "--proxy", no_proxy).unwrap();
    Network {
        proxies: Arc::new(proxies),
        ..Network::default()
    }
}

/// Enrolls and connects, and applies a set; gives what is in the state directory.
async fn joins(network: &Network, pki: &Arc<Pki>, address: &str) -> (Edge, Agent) {
    let issuer = pki.clone();
    let script = vec![Box::new(move |asked: &Asked| {
        Response::new(approved(&issuer, asked, "wss://127.0.0.1:1/v1/edge"))
    }) as _];
    let server = public::serve_at(address, pki.public(address, Life::USUAL), script).await;
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::Fingerprint(pki.fingerprint());
    enroll_through(network.clone(), dir.path(), &server.url, trust)
        .await
        .unwrap();
    let edge = Edge::start_at(address, pki.clone(), device(), 10_000, Behavior::default()).await;
    let agent = connects(network, pki, &edge);
    (edge, agent)
}

fn connects(network: &Network, pki: &Pki, edge: &Edge) -> Agent {
    let identity = identity(pki, edge, Life::USUAL);
    Agent::start_in(
        network.clone(),
        tempfile::tempdir().unwrap(),
        identity,
        SHORT,
    )
}

async fn applies(edge: &Edge, generation: u64) {
    let text = generation.to_string();
    let wanted = edge.desire(generation, &[object("a", &text)]);
    until(&mut edge.seen.clone(), "a set is applied", |seen| {
        seen.reports
            .iter()
            .any(|report| report.held == wanted && report.phase == Phase::Applied)
    })
    .await;
}

fn asked_for(proxy: &Proxy) -> usize {
    proxy.asked.borrow().len()
}

#[tokio::test]
async fn everything_goes_through_the_proxy_with_its_password() {
    let pki = Arc::new(Pki::new());
    let proxy = proxy::start(Manner::Connects(Some(AUTHORIZATION))).await;
    let network = behind(&format!("http://till:secret@{}", proxy.address), "");
    let (edge, agent) = joins(&network, &pki, "127.0.0.1").await;
    applies(&edge, 1).await;
    assert_eq!(asked_for(&proxy), 2, "one for each endpoint");
    agent.stop().await;
}

#[tokio::test]
async fn a_proxy_may_be_reached_over_tls() {
    let (pki, company) = (Arc::new(Pki::new()), Pki::new());
    let config = company.public("127.0.0.1", Life::USUAL);
    let proxy = proxy::start_tls(config, Manner::Connects(None)).await;
    let network = Network {
        roots: Some(company.bundle().into()),
        ..behind(&format!("https://{}", proxy.address), "")
    };
    let (edge, agent) = joins(&network, &pki, "127.0.0.1").await;
    applies(&edge, 1).await;
    assert_eq!(asked_for(&proxy), 2);
    agent.stop().await;
}

#[tokio::test]
async fn what_no_proxy_lists_is_reached_without() {
    let pki = Arc::new(Pki::new());
    let proxy = proxy::start(Manner::Refuses("403 Forbidden")).await;
    let network = behind(
        &format!("http://{}", proxy.address),
        "10.0.0.0/8, 127.0.0.0/8",
    );
    let (edge, agent) = joins(&network, &pki, "127.0.0.1").await;
    applies(&edge, 1).await;
    assert_eq!(asked_for(&proxy), 0);
    agent.stop().await;
}

#[tokio::test]
async fn literal_ipv6_addresses_work_through_a_proxy_too() {
    let pki = Arc::new(Pki::new());
    let (edge, agent) = joins(&Network::default(), &pki, "::1").await;
    assert!(
        edge.url.as_str().starts_with("wss://[::1]:"),
        "{}",
        edge.url
    );
    applies(&edge, 1).await;
    agent.stop().await;
    let proxy = proxy::start(Manner::Connects(None)).await;
    let agent = connects(
        &behind(&format!("http://{}", proxy.address), ""),
        &pki,
        &edge,
    );
    applies(&edge, 2).await;
    assert!(proxy.asked.borrow()[0].starts_with("CONNECT [::1]:"));
    agent.stop().await;
}

#[tokio::test]
async fn a_further_root_serves_an_edge_with_a_certificate_of_its_own() {
    let (pki, company) = (Arc::new(Pki::new()), Pki::new());
    let edge = Edge::start(pki.clone(), device(), 10_000, Behavior::default()).await;
    let mut enrolled = identity(&pki, &edge, Life::USUAL);
    // The bundle of its enrollment does not know the authority that the edge has by now.
    enrolled.chain = {
        let key = longshore_agent::identity::DeviceKey::from_pem(&enrolled.key).unwrap();
        let csr = key.request(&enrolled.name).unwrap().der;
        company.device_pem(&csr, &device(), Life::USUAL)
    };
    enrolled.ca_bundle = company.bundle();
    let network = Network {
        roots: Some(format!("{}{}", Pki::new().bundle(), pki.bundle()).into()),
        ..Network::default()
    };
    let with = longshore_agent::tls::edge(&enrolled, &network).unwrap();
    let without = longshore_agent::tls::edge(&enrolled, &Network::default()).unwrap();
    for (config, is_trusted) in [(with, true), (without, false)] {
        let address = edge.url.socket_addrs(|| None).unwrap()[0];
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::from(address.ip());
        let connected = tokio_rustls::TlsConnector::from(config).connect(name, stream);
        assert_eq!(connected.await.is_ok(), is_trusted);
    }
}

#[tokio::test]
async fn pages_of_a_portal_on_the_way_to_the_edge_decide_nothing() {
    let pki = Arc::new(Pki::new());
    let page = || "<html>Please accept our terms</html>".to_owned();
    let refusals = [
        (403, "content-type:text/html", page()),
        (401, "content-type:text/html", page()),
        (302, "location:http://portal.example/", page()),
        (200, "content-type:text/html", page()),
        (404, "", page()),
        (511, "", page()),
        (403, "", r#"{"status": "decommissioned"}"#.to_owned()),
    ];
    let behavior = Behavior {
        refusals: refusals.into(),
        ..Behavior::default()
    };
    let edge = Edge::start(pki.clone(), device(), 10_000, behavior).await;
    let agent = connects(&Network::default(), &pki, &edge);
    applies(&edge, 1).await;
    assert_eq!(edge.seen.borrow().connections.len(), 8);
    agent.stop().await;
}

#[tokio::test]
async fn a_connection_that_a_router_forgot_is_given_up_and_made_anew() {
    let pki = Arc::new(Pki::new());
    let edge = Edge::start(pki.clone(), device(), 100, Behavior::default()).await;
    let (relay, mut connections) = relay::start(edge.url.socket_addrs(|| None).unwrap()[0]).await;
    let mut identity = identity(&pki, &edge, Life::USUAL);
    identity.edge_url = format!("wss://{}/v1/edge", relay.address).parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start_in(Network::default(), dir, identity, SHORT);
    applies(&edge, 1).await;
    let before = *connections.borrow();
    relay.forget();
    until(&mut connections, "another connection", |now| *now > before).await;
    applies(&edge, 2).await;
    agent.stop().await;
}

/// A device whose clock the test sets.
fn clocked(time: u64) -> (Arc<AtomicU64>, Network) {
    let wall = Arc::new(AtomicU64::new(time));
    let read = wall.clone();
    let network = Network {
        clock: Clock::from(move || read.load(Ordering::Relaxed)),
        ..Network::default()
    };
    (wall, network)
}

#[tokio::test]
async fn a_device_whose_clock_stands_at_1970_joins_and_knows_the_time() {
    let pki = Arc::new(Pki::new());
    let (_wall, network) = clocked(0);
    let (edge, agent) = joins(&network, &pki, "127.0.0.1").await;
    applies(&edge, 1).await;
    // By the controller's word, its conditions have the right time.
    let report = edge.seen.borrow().reports.last().cloned().unwrap();
    let stated = report.conditions.iter().map(|it| it.since);
    let hour = 3_600_000;
    assert!(
        stated.clone().all(|at| at > clock::system() - hour),
        "{stated:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_clock_that_jumps_by_years_breaks_no_connection_and_renews_no_certificate() {
    let pki = Arc::new(Pki::new());
    let now = clock::system();
    let (wall, network) = clocked(now);
    let (edge, agent) = joins(&network, &pki, "127.0.0.1").await;
    let mut generation = 0;
    for wrong in [now - 30 * YEAR, now + 30 * YEAR, 0, now + YEAR, now] {
        wall.store(wrong, Ordering::Relaxed);
        generation += 1;
        applies(&edge, generation).await;
        let hellos = edge.seen.borrow().hellos.len();
        edge.push(ControlMessage::Reconnect { after_ms: 0 });
        until(&mut edge.seen.clone(), "it is back", |seen| {
            seen.hellos.len() > hellos
        })
        .await;
    }
    let seen = edge.seen.borrow().clone();
    assert_eq!((seen.renewals, seen.connections.len()), (0, 6));
    agent.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_ahead_from_the_start_keeps_it_out_until_it_is_set() {
    let pki = Arc::new(Pki::new());
    let now = clock::system();
    let (wall, network) = clocked(now + 10 * YEAR);
    let edge = Edge::start(pki.clone(), device(), 10_000, Behavior::default()).await;
    let (relay, mut tries) = relay::start(edge.url.socket_addrs(|| None).unwrap()[0]).await;
    let mut identity = identity(&pki, &edge, Life::USUAL);
    identity.edge_url = format!("wss://{}/v1/edge", relay.address).parse().unwrap();
    let agent = Agent::start_in(network, tempfile::tempdir().unwrap(), identity, SHORT);
    until(&mut tries, "some tries", |tries| *tries >= 3).await;
    assert!(
        edge.seen.borrow().hellos.is_empty(),
        "it trusts what has expired"
    );
    wall.store(now, Ordering::Relaxed);
    applies(&edge, 1).await;
    agent.stop().await;
}

/// Runs the binary until it has said all these words.
async fn says(mut command: Command, words: &[&str]) -> String {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    let listening = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            said.push_str(&line);
            said.push('\n');
            if words.iter().all(|word| said.contains(word)) {
                return;
            }
        }
    };
    let heard = time::timeout(DEADLINE, listening).await;
    assert!(heard.is_ok(), "never {words:?}: {said}");
    assert!(
        words.iter().all(|word| said.contains(word)),
        "{words:?}: {said}"
    );
    signal(&child, Signal::TERM);
    child.stderr = None;
    let (code, _) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    said
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_with_what_to_do() {
    let pki = Pki::new();
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), vec![]).await;
    let refuses = Manner::Refuses;
    let cases = [
        (
            Manner::Connects(Some(AUTHORIZATION)),
            "",
            "put user and password into its address",
        ),
        (
            refuses("407 Proxy Authentication Required"),
            "till:hush@",
            "does not take the user and password",
        ),
        (
            refuses("403 Forbidden"),
            "",
            "have it allow CONNECT to that host and port",
        ),
        (refuses("502 Bad Gateway"), "", "cannot reach 127.0.0.1:"),
        (refuses("302 Found"), "", "is it an HTTP proxy?"),
        (Manner::HangsUp, "", "hung up instead of answering"),
        (Manner::Interferes, "", "answers in the place of the server"),
    ];
    for (manner, user, words) in cases {
        let proxy = proxy::start(manner).await;
        let mut command = Device::new().join(&server, &pki, "lst_one");
        let named = format!("http://{}", proxy.address);
        command.env("HTTPS_PROXY", format!("http://{user}{}", proxy.address));
        let said = says(command, &[words, &named, "HTTPS_PROXY"]).await;
        assert!(!said.contains("hush"), "{said}");
    }
    assert!(server.asked.borrow().is_empty());
    // The setting stands over the environment, and over it stands nobody.
    let nowhere = proxy::start(Manner::HangsUp).await;
    let mut command = Device::new().join(&server, &pki, "lst_one");
    command.env("ALL_PROXY", format!("http://{}", nowhere.address));
    command.args(["--proxy", "http://127.0.0.1:1"]);
    says(
        command,
        &["cannot connect to the proxy http://127.0.0.1:1 (from --proxy)"],
    )
    .await;
    let mut command = Device::new().join(&server, &pki, "lst_one");
    command.env("ALL_PROXY", format!("http://{}", nowhere.address));
    command.args(["--proxy", "none"]);
    let child = command.spawn().unwrap();
    until(&mut server.asked.clone(), "it came directly", |asked| {
        !asked.is_empty()
    })
    .await;
    assert_eq!(asked_for(&nowhere), 0);
    drop(child);
}

#[tokio::test]
async fn who_answers_in_the_controllers_place_is_called_that() {
    let pki = Pki::new();
    // A portal that knows plain HTTP only.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("https://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            drop(stream.read(&mut [0; 512]).await);
            let page = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
            drop(stream.write_all(page).await);
        }
    });
    let plain = public::Public {
        url,
        asked: tokio::sync::watch::channel(Vec::new()).1,
    };
    let command = Device::new().join(&plain, &pki, "lst_one");
    says(command, &["does not speak TLS", "captive portal"]).await;
    // One that looks into TLS, and is trusted to.
    let script = vec![answer(403, "<html>"), answer(302, "<html>")];
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
    let command = Device::new().join(&server, &pki, "lst_one");
    says(command, &["403 Forbidden", "302 Found", "captive portal"]).await;
}

#[tokio::test]
async fn what_is_wrong_with_the_time_is_said() {
    let pki = Pki::new();
    let past = public::serve(pki.public("127.0.0.1", Life::PAST), vec![]).await;
    let command = Device::new().join(&past, &pki, "lst_one");
    let words = ["has expired, if it is 20", "set the clock or start NTP"];
    says(command, &words).await;
}

fn write(device: &Device, time: &str) {
    std::fs::write(device.state().join("clock"), time).unwrap();
}

fn kept(state: &Path) -> String {
    std::fs::read_to_string(state.join("clock")).unwrap()
}

#[tokio::test]
async fn a_last_known_time_is_kept_and_a_wrong_one_heals() {
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let mut seen = edge.seen.clone();
    let child = device.join(&server, &pki, "lst_one").spawn().unwrap();
    until(&mut seen, "it connects", |seen| seen.hellos.len() == 1).await;
    crate::until_true("the time is kept", || device.state().join("clock").exists()).await;
    signal(&child, Signal::KILL);
    ended(child).await;
    let right = kept(&device.state());
    // Whatever stands there keeps nobody out, and is put right by the controller.
    for (wrong, complains) in [
        ("2063-04-05T00:00:00Z\n", true),
        ("soon", false),
        ("1970-01-01T00:00:00Z", false),
    ] {
        write(&device, wrong);
        let hellos = seen.borrow().hellos.len();
        let mut command = device.command(&[]);
        command.stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        until(&mut seen, "it connects", |seen| seen.hellos.len() > hellos).await;
        crate::until_true("the time is right", || {
            kept(&device.state())[..4] == right[..4]
        })
        .await;
        signal(&child, Signal::TERM);
        let (code, said) = ended(child).await;
        assert_eq!(code, 0, "{said}");
        assert_eq!(
            said.contains("it is at least 2063-04-05T00:00:00Z"),
            complains,
            "{said}"
        );
    }
}

#[tokio::test]
async fn what_happened_offline_is_told_once_it_is_back() {
    let pki = Arc::new(Pki::new());
    let now = clock::system();
    let (wall, network) = clocked(now);
    let edge = Edge::start(pki.clone(), device(), 100, Behavior::default()).await;
    let at = edge.url.socket_addrs(|| None).unwrap()[0];
    let (relay, mut tries) = relay::start(at).await;
    let mut identity = identity(&pki, &edge, Life::USUAL);
    identity.edge_url = format!("wss://{}/v1/edge", relay.address).parse().unwrap();
    let agent = Agent::start_in(network, tempfile::tempdir().unwrap(), identity, SHORT);
    applies(&edge, 1).await;
    // Somebody else is at the address now, for two hours.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    relay.redirect(nobody.local_addr().unwrap());
    drop(nobody);
    relay.forget();
    let before = *tries.borrow();
    until(&mut tries, "it is offline", |tries| *tries > before + 1).await;
    let manifest = agent.file("v1.configmap.a.yaml");
    std::fs::remove_file(&manifest).unwrap();
    crate::until_true("drift is repaired", || manifest.exists()).await;
    wall.store(now + 7_200_000, Ordering::Relaxed);
    relay.redirect(at);
    until(&mut edge.seen.clone(), "it tells", |seen| {
        let last = seen.reports.last();
        let offline = last.and_then(|it| it.conditions.iter().find(|it| it.kind == "Offline"));
        offline.is_some_and(|it| {
            it.reason == "Back"
                && it
                    .message
                    .contains("Drifted True (Repaired) at generation 1")
        })
    })
    .await;
    agent.stop().await;
}
