//! `longshore-agent doctor`, with each thing that it looks for really wrong.

use std::{ffi::CString, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822::DateTimePrinter};
use longshore_agent::identity::DeviceKey;
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    DEADLINE,
    enrolling::id,
    object,
    pki::{Life, Pki},
    process::{Device, controller, ended, signal},
    proxy::{self, Manner},
    public::{self, Public, answer},
    until,
};

/// What it found, by name: verdict, what was found, what to do.
struct Findings(Value);

impl Findings {
    /// Runs it with these arguments. What it prints for people must say the same as what it prints for programs.
    async fn of(mut command: Command) -> Self {
        command.args(["doctor", "--json"]);
        let output = tokio::time::timeout(DEADLINE * 2, command.output());
        let output = output.await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let found: Value = serde_json::from_slice(&output.stdout).expect(&said);
        let expected = i32::from(found["ok"] != json!(true));
        assert_eq!(output.status.code(), Some(expected), "{found:#} {said}");
        for check in found["checks"].as_array().unwrap() {
            let needs_advice = check["verdict"] != "ok";
            assert_eq!(check["advice"].is_string(), needs_advice, "{check}");
        }
        assert!(
            !output.stdout.windows(4).any(|it| it == b"lst_"),
            "a token is shown"
        );
        Self(found)
    }

    fn check(&self, name: &str) -> String {
        let checks = self.0["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == name);
        let Some(check) = found else {
            return "none".to_owned();
        };
        let text = |member: &str| check[member].as_str().unwrap_or_default().to_owned();
        format!(
            "{}: {} | {}",
            text("verdict"),
            text("found"),
            text("advice")
        )
    }

    fn says(&self, name: &str, start: &str, words: &str) {
        let said = self.check(name);
        assert!(
            said.starts_with(start) && said.contains(words),
            "{name}: {said}\n{:#}",
            self.0
        );
    }
}

fn joining(device: &Device, server: &str, pin: &str, token: &str) -> Command {
    let mut command = device.command(&[]);
    command.args([
        "--server",
        server,
        "--name",
        "till",
        "--ca-fingerprint",
        pin,
        "--token",
        token,
    ]);
    command
}

/// An enrollment endpoint that knows the token, and grants nothing.
async fn knowing(pki: &Pki, life: Life) -> Public {
    let refused = json!({"title": "Unprocessable", "detail": "a name is needed"}).to_string();
    public::serve(pki.public("127.0.0.1", life), vec![answer(422, refused)]).await
}

#[tokio::test]
async fn before_a_device_is_enrolled() {
    let pki = Pki::new();
    let pin = pki.fingerprint().to_string();
    let device = Device::new();

    let server = knowing(&pki, Life::USUAL).await;
    let found = Findings::of(joining(&device, server.url.as_str(), &pin, "lst_one")).await;
    assert_eq!(found.0["ok"], json!(true), "{:#}", found.0);
    for name in ["state", "disk", "dns", "tls", "token", "runtime"] {
        found.says(name, "ok", "");
    }
    assert!(!device.state().exists(), "looking must change nothing");
    // It asked for nothing that could be granted.
    let asked = server.asked.borrow().clone();
    assert!(asked[0].request.name.is_empty() && asked[0].request.csr.is_empty());

    let unknown = vec![answer(404, json!({"error": "Token not found"}).to_string())];
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), unknown).await;
    let found = Findings::of(joining(&device, server.url.as_str(), &pin, "lst_one")).await;
    found.says("token", "fail", "longshore tokens create");

    let server = knowing(&pki, Life::USUAL).await;
    let other = Pki::new().fingerprint().to_string();
    let found = Findings::of(joining(&device, server.url.as_str(), &other, "lst_one")).await;
    found.says("tls", "fail", "compare --ca-fingerprint");
    assert_eq!(
        found.check("token"),
        "none",
        "the token is told to nobody unknown"
    );
    assert!(server.asked.borrow().is_empty());

    let server = knowing(&pki, Life::PAST).await;
    let found = Findings::of(joining(&device, server.url.as_str(), &pin, "lst_one")).await;
    found.says("tls", "fail", "compare the clock");

    let nowhere = "https://no-such-host.invalid:1";
    let found = Findings::of(joining(&device, nowhere, &pin, "lst_one")).await;
    found.says("dns", "fail", "/etc/resolv.conf");

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", closed.local_addr().unwrap());
    drop(closed);
    let found = Findings::of(joining(&device, &url, &pin, "lst_one")).await;
    found.says("connection", "fail", "firewall");

    let found = Findings::of(device.command(&[])).await;
    found.says("token", "fail", "--server is not set");
    let mut command = joining(&device, &url, &pin, "lst_one");
    command.args(["--log", "a=b=c"]);
    Findings::of(command)
        .await
        .says("settings", "fail", "is no filter");
}

#[tokio::test]
async fn runtimes_that_are_not_there() {
    let device = Device::new();
    let broken = device.path().join("kubeconfig");
    std::fs::write(&broken, "clusters: 7").unwrap();
    let broken = broken.to_str().unwrap();
    let cases: [(&[&str], &str); 4] = [
        (
            &["--runtime", "podman", "--podman", "/no/podman"],
            "install Podman",
        ),
        (
            &["--runtime", "command", "--command", "no-such-program -"],
            "`no-such-program`",
        ),
        (
            &["--runtime", "kube", "--kubeconfig", broken],
            "--kubeconfig",
        ),
        (&["--directory", "/dev/null/manifests"], "--directory"),
    ];
    for (args, words) in cases {
        let mut command = device.command(&[]);
        command.args(args);
        Findings::of(command).await.says("runtime", "fail", words);
    }
    for args in [
        &["--runtime", "command", "--command", "cat"][..],
        &["--runtime", "podman"],
        &["--directory", "/tmp/a/b"],
    ] {
        let mut command = device.command(&[]);
        command.args(args);
        Findings::of(command).await.says("runtime", "ok", "");
    }
    // A Podman that is there, and too old.
    let old = device.path().join("podman");
    std::fs::write(&old, "#!/bin/sh\necho podman version 4.2.9\n").unwrap();
    std::fs::set_permissions(&old, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = device.command(&[]);
    command.args(["--runtime", "podman", "--podman"]).arg(&old);
    let found = Findings::of(command).await;
    found.says("runtime", "fail", "4.2.9 is too old");
    found.says("runtime", "fail", "install Podman 4.3 or newer");
}

#[tokio::test]
async fn proxies_that_are_in_the_way() {
    let pki = Pki::new();
    let pin = pki.fingerprint().to_string();
    let device = Device::new();
    let server = knowing(&pki, Life::USUAL).await;
    let through = |proxy: &str| {
        let mut command = joining(&device, server.url.as_str(), &pin, "lst_one");
        command.args(["--proxy", proxy]);
        command
    };
    let refusing = proxy::start(Manner::Refuses("403 Forbidden")).await;
    let proxy = format!("http://{}", refusing.address);
    let found = Findings::of(through(&proxy)).await;
    found.says("proxy", "fail", "403");
    found.says("proxy", "fail", "what the proxy allows");
    assert!(server.asked.borrow().is_empty());

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let found = Findings::of(through(&proxy)).await;
    found.says("proxy", "fail", "correct --proxy");

    let fine = proxy::start(Manner::Connects(None)).await;
    let found = Findings::of(through(&format!("http://{}", fine.address))).await;
    found.says("proxy", "ok", "through http://127.0.0.1");
    assert_eq!(found.check("dns"), "none", "the proxy looks names up");
    assert_eq!(fine.asked.borrow().len(), 1);

    // One of the environment's that is of no use is passed over.
    let server = knowing(&pki, Life::USUAL).await;
    let mut command = joining(&device, server.url.as_str(), &pin, "lst_one");
    command.env("ALL_PROXY", "socks5://proxy.example:1080");
    let found = Findings::of(command).await;
    found.says("proxy", "warn", "socks5");
    found.says("proxy", "warn", "name one with --proxy");
    found.says("token", "ok", "");
}

#[tokio::test]
async fn clocks_that_are_wrong() {
    let pki = Pki::new();
    let pin = pki.fingerprint().to_string();
    let device = Device::new();
    // A controller whose clock is right, while this one's is not.
    let later = Timestamp::now() + SignedDuration::from_mins(5);
    let date = DateTimePrinter::new();
    let date = date.timestamp_to_rfc9110_string(&later).unwrap();
    let told = move |_: &public::Asked| {
        let answer = http::Response::builder()
            .status(422)
            .header("date", &date)
            .body("{}".to_owned());
        answer.unwrap()
    };
    let server = public::serve(
        pki.public("127.0.0.1", Life::USUAL),
        vec![Box::new(told) as _],
    )
    .await;
    let found = Findings::of(joining(&device, server.url.as_str(), &pin, "lst_one")).await;
    found.says("clock", "warn", "the controller says");
    found.says("clock", "warn", "timedatectl");
    found.says("token", "ok", "");
    let server = knowing(&pki, Life::USUAL).await;
    let found = Findings::of(joining(&device, server.url.as_str(), &pin, "lst_one")).await;
    found.says("clock", "ok", "the controller says");

    // Without a controller, by what the last run knew.
    let nowhere = "https://no-such-host.invalid:1";
    let mut asked = joining(&device, nowhere, &pin, "lst_one");
    asked.args(["--proxy", "http://127.0.0.1:1"]);
    let found = Findings::of(asked).await;
    found.says("clock", "ok", "no controller to compare");
    std::fs::create_dir(device.state()).unwrap();
    std::fs::write(device.state().join("clock"), "2099-01-01T00:00:00Z\n").unwrap();
    let mut asked = joining(&device, nowhere, &pin, "lst_one");
    asked.args(["--proxy", "http://127.0.0.1:1"]);
    let found = Findings::of(asked).await;
    found.says("clock", "warn", "it is at least 2099-01-01");
    found.says("clock", "warn", "timedatectl");
}

#[tokio::test]
async fn beside_an_agent_that_runs() {
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let child = device.join(&server, &pki, "lst_one").spawn().unwrap();
    let mut seen = edge.seen.clone();
    let wanted = edge.desire(1, &[object("a", "1")]);
    until(&mut seen, "accepted", |seen| {
        seen.accepted.contains(&wanted)
    })
    .await;

    let refusal = (
        400,
        "",
        r#"{"status":"unknown","reason":"the subprotocol"}"#.to_owned(),
    );
    edge.behave(|behavior| behavior.refusals.push_back(refusal));
    let found = Findings::of(device.command(&[])).await;
    assert_eq!(found.0["ok"], json!(true), "{:#}", found.0);
    for name in [
        "permissions",
        "enrollment",
        "disk",
        "certificate",
        "tls",
        "credentials",
    ] {
        found.says(name, "ok", "");
    }
    let refusal = (
        403,
        "",
        r#"{"status":"decommissioned","reason":"sold"}"#.to_owned(),
    );
    edge.behave(|behavior| behavior.refusals.push_back(refusal));
    Findings::of(device.command(&[]))
        .await
        .says("credentials", "fail", "sold");
    assert_eq!(seen.borrow().hellos.len(), 1, "the agent's session goes on");
    let found = Findings::of(device.command(&["unshare", "--net"])).await;
    found.says("connection", "fail", "");
    signal(&child, Signal::TERM);
    ended(child).await;

    // A file of the identity that is damaged.
    let identity = device.state().join("identity.json");
    let kept = std::fs::read_to_string(&identity).unwrap();
    std::fs::write(&identity, "{").unwrap();
    Findings::of(device.command(&[]))
        .await
        .says("identity", "fail", "enroll the device anew");
    // A certificate whose time is over.
    let mut record: Value = serde_json::from_str(&kept).unwrap();
    let csr = request(&record);
    record["certificate_chain"] = json!(pki.device_pem(&csr, &id(), Life(-3500, -10)));
    std::fs::write(&identity, record.to_string()).unwrap();
    Findings::of(device.command(&[]))
        .await
        .says("certificate", "fail", "expired");
}

/// A signing request with the device's own key.
fn request(record: &Value) -> Vec<u8> {
    let pem = record["private_key"].as_str().unwrap().to_owned();
    let key = DeviceKey::from_pem(&pem.into()).unwrap();
    key.request(&"till".parse().unwrap()).unwrap().der
}

/// A small file system at the state directory.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(path: &'a Path, flags: MountFlags, options: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let options = CString::new(options).unwrap();
        mount("tmpfs", path, "tmpfs", flags, options.as_c_str())
            .expect("these tests mount file systems: run them as root");
        Self(path)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        unmount(self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn disks_that_are_full_read_only_or_somebody_elses() {
    let device = Device::new();
    let state = device.state();
    {
        let _disk = Disk::mount(&state, MountFlags::empty(), "size=1m,mode=0700");
        let found = Findings::of(device.command(&[])).await;
        found.says("disk", "warn", "make room");
        std::fs::write(state.join("filler"), vec![0; 2 << 20]).unwrap_err();
        let found = Findings::of(device.command(&[])).await;
        found.says("disk", "fail", "make room");
    }
    {
        let _disk = Disk::mount(
            &state,
            MountFlags::empty(),
            "size=128m,nr_inodes=2,mode=0700",
        );
        std::fs::write(state.join("filler"), "").unwrap();
        let found = Findings::of(device.command(&[])).await;
        found.says("disk", "fail", "inodes");
    }
    {
        let _disk = Disk::mount(&state, MountFlags::RDONLY, "mode=0700");
        let found = Findings::of(device.command(&[])).await;
        found.says("permissions", "fail", "read-only");
    }
    {
        let _disk = Disk::mount(&state, MountFlags::empty(), "uid=12345,mode=0755");
        let found = Findings::of(device.command(&[])).await;
        found.says("permissions", "warn", "sudo -u '#12345'");
        let as_nobody = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        let found = Findings::of(device.command(&as_nobody)).await;
        found.says("permissions", "fail", "sudo -u '#12345'");
    }
}
