//! The binary itself: a device's life from its token to its end, and what it says when it cannot live.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
};

use http::Response;
use longshore_protocol::message::ControlMessage;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::{
    process::{Child, Command},
    time::{self, Duration},
};

use crate::{
    DEADLINE,
    edge::{Behavior, Edge},
    enrolling::{approved, id, pending},
    object,
    pki::{Life, Pki},
    public::{self, Asked, Public, answer},
    until, until_true,
};

const BINARY: &str = env!("CARGO_BIN_EXE_longshore-agent");

/// One device: where it keeps its things.
pub struct Device(tempfile::TempDir);

impl Device {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.state().join("manifests").join(name)
    }

    /// A command with only the state directory set.
    pub fn command(&self, before: &[&str]) -> Command {
        self.configured(before, Path::new("/dev/null"))
    }

    /// The same with a settings' file.
    pub fn configured(&self, before: &[&str], file: &Path) -> Command {
        let mut words = before.to_vec();
        words.push(BINARY);
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        command
            .arg("--config")
            .arg(file)
            .arg("--state-dir")
            .arg(self.state());
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// The command that `longshore tokens create` prints.
    pub fn join(&self, server: &Public, pki: &Pki, token: &str) -> Command {
        let mut command = self.command(&[]);
        command.args(["--server", server.url.as_str(), "--name", "till"]);
        command.args([
            "--ca-fingerprint",
            &pki.fingerprint().to_string(),
            "--token",
            token,
        ]);
        command
    }
}

pub async fn ended(child: Child) -> (i32, String) {
    let output: Output = time::timeout(DEADLINE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap_or(-1), said)
}

pub async fn run(mut command: Command) -> (i32, String) {
    ended(command.spawn().unwrap()).await
}

pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// An enrollment endpoint that approves at the second call, and an edge behind it.
pub async fn controller(pki: &Arc<Pki>) -> (Public, Edge) {
    let edge = Edge::start(pki.clone(), id(), 10_000, Behavior::default()).await;
    let (issuer, url) = (pki.clone(), edge.url.to_string());
    let script = vec![
        answer(202, pending()),
        Box::new(move |asked: &Asked| Response::new(approved(&issuer, asked, &url))) as _,
    ];
    (
        public::serve(pki.public("127.0.0.1", Life::USUAL), script).await,
        edge,
    )
}

#[tokio::test]
async fn a_devices_life() {
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();

    // It enrolls and applies what it is told.
    let mut command = device.join(&server, &pki, "lst_one");
    command.args(["--log-format", "text"]);
    let child = command.spawn().unwrap();
    let mut seen = edge.seen.clone();
    let wanted = edge.desire(1, &[object("a", "1")]);
    until(&mut seen, "the set accepted", |seen| {
        seen.accepted.contains(&wanted)
    })
    .await;
    let manifest = device.file("v1.configmap.a.yaml");
    until_true("the manifest is there", || manifest.exists()).await;
    signal(&child, Signal::TERM);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("Device till asks to join"), "{said}");
    assert!(
        said.contains("sha256:") && !said.contains("lst_one"),
        "{said}"
    );

    // Without a network, and with nothing but its state directory, it repairs what it runs.
    std::fs::remove_file(&manifest).unwrap();
    let child = device.command(&["unshare", "--net"]).spawn().unwrap();
    until_true("the manifest is back", || manifest.exists()).await;
    let (code, said) = run(device.command(&[])).await;
    assert_eq!(code, 7, "one state directory, one agent: {said}");
    assert!(said.contains("another longshore-agent runs on"), "{said}");
    signal(&child, Signal::INT);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    for line in said.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }

    // It is decommissioned while it is connected.
    let child = device.command(&[]).spawn().unwrap();
    until(&mut seen, "it is back", |seen| seen.hellos.len() == 2).await;
    edge.push(ControlMessage::Decommission {
        reason: "folder deleted".into(),
    });
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("folder deleted"), "{said}");
    assert!(!manifest.exists() && !device.state().join("identity.json").exists());
    let left = std::fs::read_dir(device.state()).unwrap().count();
    assert_eq!(
        left, 4,
        "the lock, the note, the time and the empty manifests directory"
    );

    // Neither without a token nor with the old one does it come back; with a new one it does.
    let (code, said) = run(device.command(&[])).await;
    assert_eq!(
        (code, said.contains("was decommissioned")),
        (0, true),
        "{said}"
    );
    let (code, said) = run(device.join(&server, &pki, "lst_one")).await;
    assert_eq!(
        (code, said.contains("was decommissioned")),
        (0, true),
        "{said}"
    );
    let (server, edge) = controller(&pki).await;
    let child = device.join(&server, &pki, "lst_two").spawn().unwrap();
    let mut seen = edge.seen.clone();
    until(&mut seen, "it is back, as a new one", |seen| {
        seen.hellos.len() == 1
    })
    .await;
    assert_eq!(seen.borrow().hellos[0].ledger, None);
    assert!(!device.state().join("decommissioned.json").exists());
    signal(&child, Signal::TERM);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
}

#[tokio::test]
async fn a_token_in_the_state_directory_serves_once() {
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let token = device.state().join("token");
    std::fs::create_dir(device.state()).unwrap();
    std::fs::write(&token, "lst_one\n").unwrap();
    let mut command = device.command(&[]);
    command.args(["--server", server.url.as_str(), "--name", "till"]);
    command.args(["--ca-fingerprint", &pki.fingerprint().to_string()]);
    let child = command.spawn().unwrap();
    let mut seen = edge.seen.clone();
    until(&mut seen, "it connects", |seen| seen.hellos.len() == 1).await;
    assert!(!token.exists(), "a token that has served is left behind");
    signal(&child, Signal::TERM);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("lst_one"), "{said}");
}

#[tokio::test]
async fn a_decommission_that_was_cut_short_is_finished() {
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let child = device.join(&server, &pki, "lst_one").spawn().unwrap();
    edge.desire(1, &[object("a", "1")]);
    let manifest = device.file("v1.configmap.a.yaml");
    until_true("the manifest is there", || manifest.exists()).await;
    signal(&child, Signal::KILL);
    ended(child).await;
    let note = json!({"device_id": id(), "reason": "cut short", "at": 1,
        "token": longshore_protocol::Digest::of(b"lst_one")});
    std::fs::write(device.state().join("decommissioned.json"), note.to_string()).unwrap();
    let (code, said) = run(device.command(&["unshare", "--net"])).await;
    assert_eq!(code, 0, "{said}");
    assert!(!manifest.exists() && !device.state().join("identity.json").exists());
}

#[tokio::test]
async fn exit_codes_and_their_words() {
    let pki = Pki::new();
    let cases = [
        (
            404,
            json!({"error": "Token not found"}),
            3,
            "Token not found",
        ),
        (
            403,
            json!({"status": "rejected", "reason": "unknown box"}),
            4,
            "unknown box",
        ),
        (
            409,
            json!({"title": "Conflict", "detail": "name taken"}),
            5,
            "name taken",
        ),
    ];
    for (status, body, code, words) in cases {
        let script = vec![answer(status, body.to_string())];
        let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
        let (exit, said) = run(Device::new().join(&server, &pki, "lst_one")).await;
        assert_eq!(exit, code, "{said}");
        assert!(said.contains(words), "{said}");
    }
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), vec![]).await;
    let (exit, said) = run(Device::new().join(&server, &Pki::new(), "lst_one")).await;
    assert_eq!(exit, 6, "{said}");
    assert!(said.contains("Compare --ca-fingerprint"), "{said}");

    let (exit, said) = run(Device::new().command(&[])).await;
    assert_eq!(exit, 2, "{said}");
    assert!(
        said.contains("not enrolled yet: --token or --token-file is needed"),
        "{said}"
    );
    let mut wrong = Device::new().command(&[]);
    wrong.args(["--server", "http://x"]);
    assert_eq!(run(wrong).await.0, 2);
    let mut nowhere = Command::new(BINARY);
    nowhere
        .args(["--state-dir", "/proc/nowhere"])
        .stderr(Stdio::piped());
    assert_eq!(run(nowhere).await.0, 7);
}

#[tokio::test]
async fn the_config_command_prints_what_holds() {
    let device = Device::new();
    let token = device.0.path().join("token");
    std::fs::write(&token, "lst_from_a_file\n").unwrap();
    let mut command = device.command(&[]);
    command
        .args(["config", "--name", "till"])
        .env("LONGSHORE_AGENT_TOKEN", "lst_secret");
    let output = command.output().await.unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(
        printed.contains("name = \"till\"") && printed.contains("token = \"(redacted)\""),
        "{printed}"
    );
    assert!(!printed.contains("lst_secret"), "{printed}");
    assert!(!device.state().exists(), "looking changes nothing");
}

/// Reads what a reader of the directory would apply: whether every listed file is there and whole.
fn consistent(directory: &Path) -> bool {
    let Ok(list) = std::fs::read_to_string(directory.join("kustomization.yaml")) else {
        return true;
    };
    list.lines()
        .filter_map(|line| line.strip_prefix("- "))
        .all(|name| {
            std::fs::read_to_string(directory.join(name)).is_ok_and(|text| text.ends_with('\n'))
        })
}

#[tokio::test]
async fn killed_at_random_moments_it_converges() {
    let chosen = rand::random();
    println!("seed {chosen}");
    let mut random = StdRng::seed_from_u64(chosen);
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let child = device.join(&server, &pki, "lst_one").spawn().unwrap();
    let identity = device.state().join("identity.json");
    until_true("it is enrolled", || identity.exists()).await;
    signal(&child, Signal::KILL);
    ended(child).await;
    let mut generation = 0;
    for _ in 0..25 {
        let child = device.command(&[]).spawn().unwrap();
        generation += 1;
        let objects: Vec<_> = (0..random.random_range(0..8))
            .map(|n| {
                object(
                    &format!("o{n}"),
                    &format!("{generation} {}", "x".repeat(n * 5000)),
                )
            })
            .collect();
        edge.desire(generation, &objects);
        time::sleep(Duration::from_millis(random.random_range(0..80))).await;
        signal(&child, Signal::KILL);
        ended(child).await;
        assert!(consistent(&device.state().join("manifests")));
    }
    let wanted = edge.desire(generation + 1, &[object("last", "1")]);
    let child = device.command(&[]).spawn().unwrap();
    let mut seen = edge.seen.clone();
    until(&mut seen, "the last set", |seen| {
        seen.accepted.contains(&wanted)
    })
    .await;
    let directory = device.state().join("manifests");
    until_true("exactly the last set", || {
        let mut names: Vec<_> = std::fs::read_dir(&directory)
            .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
            .unwrap_or_default();
        names.sort();
        names
            == [
                ".longshore-inventory.json",
                "kustomization.yaml",
                "v1.configmap.last.yaml",
            ]
    })
    .await;
    let accepted: Vec<_> = seen
        .borrow()
        .accepted
        .iter()
        .map(|held| held.generation)
        .collect();
    assert!(accepted.is_sorted(), "a generation fell: {accepted:?}");
    signal(&child, Signal::TERM);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
}
