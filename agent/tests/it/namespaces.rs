//! A device in a network namespace of its own, at the end of a cable that the test plugs, cuts and spoils.
//!
//! ```text
//! namespace: agent ── veth ── the test: proxy, controller
//! ```
//!
//! The controller listens on the test's loopback interface, where the device cannot get but through a proxy at the
//! other end of the cable; or at that end itself. This needs root, `ip`, `tc` and `iptables`.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use futures_util::FutureExt as _;
use longshore_agent::identity::{Keep as _, StateDir};
use longshore_protocol::{
    Digest,
    message::{Held, Phase},
};
use rustix::process::Signal;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time,
};

use crate::{
    DEADLINE,
    edge::{Behavior, Edge},
    linking::{device, identity},
    object,
    pki::{Life, Pki},
    process::{Device, controller, ended, signal},
    proxy::{self, Manner},
    until, until_true,
};

/// One device's cable.
struct Cable {
    namespace: String,
    near: String,
    subnet: String,
}

impl Cable {
    async fn plug() -> Self {
        let pid = std::process::id();
        let cable = Self {
            namespace: format!("longshore-{pid}"),
            near: format!("ls{pid}"),
            // Test processes that run at the same time have pids that differ.
            subnet: format!("10.{}.{}", 64 + (pid >> 8) % 128, pid % 256),
        };
        let (near, namespace, subnet) = (&cable.near, &cable.namespace, &cable.subnet);
        std::fs::create_dir_all(cable.etc()).unwrap();
        run(&["ip", "netns", "add", namespace]).await;
        run(&[
            "ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", namespace,
        ])
        .await;
        run(&[
            "ip",
            "address",
            "add",
            &format!("{subnet}.1/24"),
            "dev",
            near,
        ])
        .await;
        run(&["ip", "link", "set", near, "up"]).await;
        cable.inside(&["ip", "link", "set", "lo", "up"]).await;
        cable
            .inside(&[
                "ip",
                "address",
                "add",
                &format!("{subnet}.2/24"),
                "dev",
                "eth0",
            ])
            .await;
        cable.inside(&["ip", "link", "set", "eth0", "up"]).await;
        cable
    }

    /// The test's end.
    fn address(&self) -> String {
        format!("{}.1", self.subnet)
    }

    async fn inside(&self, words: &[&str]) {
        run(&[&["ip", "netns", "exec", &self.namespace], words].concat()).await;
    }

    /// Nothing passes any more, and nobody is told; or everything does again.
    async fn cut(&self, is_cut: bool) {
        let state = if is_cut { "down" } else { "up" };
        run(&["ip", "link", "set", &self.near, state]).await;
    }

    /// Files that stand over those of `/etc` in there.
    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.namespace)
    }

    /// The agent at the far end, and what it says.
    fn start(&self, device: &Device, arguments: &[&str]) -> (Child, PathBuf) {
        let said = device.state().with_extension("said");
        let mut command = device.command(&["ip", "netns", "exec", &self.namespace]);
        command.args(arguments).stdout(Stdio::null());
        command.stderr(File::create(&said).unwrap());
        (command.spawn().unwrap(), said)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // The cable goes with the namespace.
        let deleted = std::process::Command::new("ip")
            .args(["netns", "delete", &self.namespace])
            .status();
        std::fs::remove_dir_all(self.etc()).unwrap();
        assert!(deleted.unwrap().success());
    }
}

async fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().await;
    let output =
        output.unwrap_or_else(|error| panic!("{words:?}, from scripts/bootstrap: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?} needs root: {said}");
}

/// Waits until the device says that a set is applied. Bad cables take their time.
async fn applies(edge: &Edge, generation: u64, text: &str) {
    applied(edge, edge.desire(generation, &[object("a", text)])).await;
}

async fn applied(edge: &Edge, wanted: Held) {
    let mut seen = edge.seen.clone();
    let applied = seen.wait_for(|seen| {
        seen.reports
            .iter()
            .any(|report| report.held == wanted && report.phase == Phase::Applied)
    });
    let applied = time::timeout(4 * DEADLINE, applied).await;
    assert!(applied.is_ok(), "never applied: {wanted:?}");
}

/// A device that is enrolled, for the edge at this host.
fn enrolled(pki: &Pki, edge: &Edge, host: &str) -> Device {
    let device = Device::new();
    let state = StateDir::open(&device.state()).unwrap();
    let mut identity = identity(pki, edge, Life::USUAL);
    identity.edge_url.set_host(Some(host)).unwrap();
    // A directory waits for nothing.
    let kept = state.keep_identity(&identity).now_or_never();
    kept.unwrap().unwrap();
    device
}

async fn stopped(child: Child) {
    signal(&child, Signal::TERM);
    let (code, _) = ended(child).await;
    assert_eq!(code, 0);
}

#[tokio::test]
async fn where_nothing_leads_out_but_a_proxy() {
    let pki = Pki::new().into();
    let (server, edge) = controller(&pki).await;
    let cable = Cable::plug().await;
    let listener = TcpListener::bind((cable.address(), 0)).await.unwrap();
    let proxy = proxy::serve(listener, None, Manner::Connects(None));
    let device = Device::new();
    let through = format!("http://{}", proxy.address);
    let fingerprint = pki.fingerprint().to_string();
    let join = [
        "--server",
        server.url.as_str(),
        "--ca-fingerprint",
        &fingerprint,
    ];
    let join = [&join[..], &["--name", "till", "--token", "lst_one"]].concat();
    let (child, said) = cable.start(&device, &[&join[..], &["--proxy", "none"]].concat());
    let says = || std::fs::read_to_string(&said).unwrap();
    until_true("it does not get there", || {
        says().contains("cannot connect to")
    })
    .await;
    stopped(child).await;
    let (child, _) = cable.start(&device, &[&join[..], &["--proxy", &through]].concat());
    applies(&edge, 1, "1").await;
    // It says where it is, and as what others would know it.
    let own = format!("{}.2", cable.subnet);
    let mut seen = edge.seen.clone();
    until(&mut seen, "its address", |seen| {
        let of_hellos = seen.hellos.iter().map(|hello| &hello.facts);
        let mut facts = of_hellos.chain(&seen.facts);
        facts.any(|facts| facts.get("addresses") == Some(&own))
    })
    .await;
    let asked = proxy.asked.borrow().clone();
    let to = |url: &url::Url| format!("CONNECT 127.0.0.1:{} ", url.port().unwrap());
    assert!(asked[0].starts_with(&to(&server.url)), "{asked:?}");
    assert!(
        asked.last().unwrap().starts_with(&to(&edge.url)),
        "{asked:?}"
    );
    stopped(child).await;
}

#[tokio::test]
async fn a_cable_that_is_cut_stops_no_workload_and_what_was_missed_comes_after() {
    let pki = std::sync::Arc::new(Pki::new());
    let cable = Cable::plug().await;
    let address = cable.address();
    let edge = Edge::start_at(&address, pki.clone(), device(), 500, Behavior::default()).await;
    let device = enrolled(&pki, &edge, &address);
    let (child, said) = cable.start(&device, &[]);
    applies(&edge, 1, "1").await;
    for generation in 2..4 {
        let noticed = || {
            std::fs::read_to_string(&said)
                .unwrap()
                .matches("the link broke")
                .count()
        };
        let before = noticed();
        cable.cut(true).await;
        until_true("it notices", || noticed() > before).await;
        // What runs is repaired meanwhile.
        let manifest = device.file("v1.configmap.a.yaml");
        std::fs::remove_file(&manifest).unwrap();
        until_true("the manifest is back", || manifest.exists()).await;
        let missed = edge.desire(generation, &[object("a", &generation.to_string())]);
        cable.cut(false).await;
        // What was missed comes, and the device says how it does.
        applied(&edge, missed).await;
    }
    stopped(child).await;
}

#[tokio::test]
async fn a_cable_that_is_slow_and_loses_much_is_enough() {
    let pki = std::sync::Arc::new(Pki::new());
    let cable = Cable::plug().await;
    let address = cable.address();
    let edge = Edge::start_at(&address, pki.clone(), device(), 3000, Behavior::default()).await;
    // This kernel may have no netem; what is full is late, and what is filtered is lost.
    let slow = ["rate", "512kbit", "burst", "16kb", "latency", "800ms"];
    cable
        .inside(
            &[
                &["tc", "qdisc", "add", "dev", "eth0", "root", "tbf"],
                &slow[..],
            ]
            .concat(),
        )
        .await;
    run(&[
        &["tc", "qdisc", "add", "dev", &cable.near, "root", "tbf"],
        &slow[..],
    ]
    .concat())
    .await;
    let lossy = [
        "-m",
        "statistic",
        "--mode",
        "random",
        "--probability",
        "0.05",
        "-j",
        "DROP",
    ];
    for chain in ["INPUT", "OUTPUT"] {
        cable
            .inside(&[&["iptables", "-A", chain], &lossy[..]].concat())
            .await;
    }
    let device = enrolled(&pki, &edge, &address);
    let (child, _) = cable.start(&device, &[]);
    // Text that does not compress.
    let noise = |seed: u64| -> String {
        (0..1000)
            .map(|n| Digest::of(format!("{seed} {n}").as_bytes()).to_hex())
            .collect()
    };
    for generation in 1..4 {
        applies(&edge, generation, &noise(generation)).await;
    }
    stopped(child).await;
}

#[tokio::test]
async fn a_name_with_dead_addresses_is_reached_at_the_one_that_lives() {
    let pki = std::sync::Arc::new(Pki::new());
    let cable = Cable::plug().await;
    let address = cable.address();
    let behavior = Behavior {
        name: Some("controller.example"),
        ..Behavior::default()
    };
    let edge = Edge::start_at(&address, pki.clone(), device(), 3000, behavior).await;
    let device = enrolled(&pki, &edge, "controller.example");
    // Two addresses that swallow everything: of the family that comes first, and of the same one.
    let dead = [format!("{}.77", cable.subnet), "2001:db8::77".to_owned()];
    let hosts: String = [&dead[1], &dead[0], &address]
        .map(|address| format!("{address} controller.example\n"))
        .concat();
    std::fs::write(cable.etc().join("hosts"), hosts).unwrap();
    cable
        .inside(&[
            "ip",
            "address",
            "add",
            "2001:db8::2/64",
            "dev",
            "eth0",
            "nodad",
        ])
        .await;
    for address in &dead {
        let neighbor = [
            "ip",
            "neighbor",
            "add",
            address,
            "lladdr",
            "02:00:00:00:00:77",
        ];
        cable
            .inside(&[&neighbor[..], &["dev", "eth0", "nud", "permanent"]].concat())
            .await;
    }
    let (child, _) = cable.start(&device, &[]);
    until(&mut edge.seen.clone(), "it connects", |seen| {
        !seen.hellos.is_empty()
    })
    .await;
    stopped(child).await;
}
