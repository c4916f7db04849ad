//! The link against a real edge endpoint: sets arrive, broken things heal, certificates renew.

mod logs;
mod renewing;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use longshore_agent::{
    backoff::Backoff,
    identity::{DeviceKey, Identity, Keep as _, StateDir},
    ledger::Ledger,
    link::{Ended, Link, LinkError, Timing},
    network::Network,
    reconcile::{self, Reconciler},
    report::Reporter,
    runtime::{
        directory::Directory,
        logs::{Logs, NoLogs},
    },
};
use longshore_protocol::{
    ConditionStatus, DeviceId, Digest,
    api::Facts,
    message::{ControlMessage, Phase, RejectReason},
};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    DEADLINE,
    edge::{Behavior, Edge, Seen, TOKEN},
    holding, object,
    pki::{Life, Pki},
    until, until_true,
};

pub fn device() -> DeviceId {
    DeviceId::from_random([9; 16])
}

/// An identity that the authority issued for this edge.
pub fn identity(pki: &Pki, edge: &Edge, life: Life) -> Identity {
    let key = DeviceKey::generate().unwrap();
    let name = "till".parse().unwrap();
    let csr = key.request(&name).unwrap().der;
    Identity {
        device_id: device(),
        name,
        device_token: TOKEN.into(),
        key: key.pem(),
        chain: pki.device_pem(&csr, &device(), life),
        ca_bundle: pki.bundle(),
        edge_url: edge.url.clone(),
        server: "https://127.0.0.1:1".parse().unwrap(),
        trust: None,
        token: Digest::of(b"lst_secret"),
    }
}

/// Link and reconciler of one device, wired as `run` wires them, with short waits.
pub struct Agent {
    pub dir: tempfile::TempDir,
    ledger: Arc<Ledger>,
    facts: watch::Sender<Facts>,
    stop: CancellationToken,
    linking: JoinHandle<Result<Ended, LinkError>>,
}

impl Agent {
    fn start(dir: tempfile::TempDir, identity: Identity, last_retry: Duration) -> Self {
        Self::start_in(Network::default(), dir, identity, last_retry)
    }

    pub fn start_in(
        network: Network,
        dir: tempfile::TempDir,
        identity: Identity,
        last_retry: Duration,
    ) -> Self {
        let logs = Arc::new(NoLogs("no logs"));
        Self::start_with(network, dir, identity, last_retry, logs)
    }

    fn start_with(
        network: Network,
        dir: tempfile::TempDir,
        identity: Identity,
        last_retry: Duration,
        logs: Arc<dyn Logs>,
    ) -> Self {
        let state = Arc::new(StateDir::open(&dir.path().join("state")).unwrap());
        // A directory waits for nothing.
        let kept = state.keep_identity(&identity).now_or_never();
        kept.unwrap().unwrap();
        let ledger = Arc::new(Ledger::new(state.folder().unwrap()));
        let held = ledger.load().unwrap().current;
        let reporter = Reporter::new(held.as_ref().map(|held| held.held()), network.clock.clone());
        let target = watch::Sender::new(held.clone());
        let random = || StdRng::seed_from_u64(7);
        let stop = CancellationToken::new();
        let reconciler = Reconciler::new(
            Box::new(Directory::new(
                dir.path().join("out"),
                identity.device_id.clone(),
            )),
            target.subscribe(),
            reporter.clone(),
            reconcile::Timing::default(),
            Backoff::new(
                Duration::from_millis(50),
                Duration::from_millis(50),
                random(),
            ),
        );
        let arch = ("arch".to_owned(), "arm64".to_owned());
        let facts = watch::Sender::new(Facts::from([arch]));
        let timing = Timing {
            first_retry: Duration::from_millis(50),
            last_retry,
            tick: Duration::from_millis(50),
        };
        let link = Link {
            state,
            identity,
            ledger: ledger.clone(),
            holding: held,
            target,
            reporter,
            connected: watch::Sender::new(false),
            runtime: "directory",
            logs,
            facts: facts.subscribe(),
            timing,
            network,
            random: random(),
        };
        tokio::spawn(reconciler.run(stop.clone()));
        let linking = tokio::spawn(link.run(stop.clone()));
        Self {
            dir,
            ledger,
            facts,
            stop,
            linking,
        }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    async fn ended(self) -> (tempfile::TempDir, Ended) {
        let ended = time::timeout(DEADLINE, self.linking)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        (self.dir, ended)
    }

    pub async fn stop(self) -> tempfile::TempDir {
        self.stop.cancel();
        let (dir, ended) = self.ended().await;
        assert_eq!(ended, Ended::Stopped);
        dir
    }
}

pub const SHORT: Duration = Duration::from_millis(50);

async fn started(heartbeat_ms: u64, behavior: Behavior, life: Life) -> (Arc<Pki>, Edge, Agent) {
    let pki = Arc::new(Pki::new());
    let edge = Edge::start(pki.clone(), device(), heartbeat_ms, behavior).await;
    let agent = Agent::start(
        tempfile::tempdir().unwrap(),
        identity(&pki, &edge, life),
        SHORT,
    );
    (pki, edge, agent)
}

#[tokio::test]
async fn a_set_is_offered_once_and_then_changed_by_deltas() {
    let (_pki, edge, agent) = started(10_000, Behavior::default(), Life::USUAL).await;
    let mut seen = edge.seen.clone();
    let first = edge.desire(1, &[object("a", "1"), object("b", "1")]);
    until(&mut seen, "the first set applied", |seen| {
        seen.reports
            .iter()
            .any(|it| it.held == first && it.phase == Phase::Applied)
    })
    .await;
    assert!(agent.file("v1.configmap.a.yaml").exists());
    let second = edge.desire(2, &[object("b", "2"), object("c", "1")]);
    until(&mut seen, "the second set applied", |seen| {
        seen.reports
            .iter()
            .any(|it| it.held == second && it.phase == Phase::Applied)
    })
    .await;
    assert!(!agent.file("v1.configmap.a.yaml").exists());
    let seen = seen.borrow().clone();
    assert_eq!(
        (seen.needs.len(), seen.deltas, seen.accepted.len()),
        (1, 1, 2)
    );
    let hello = &seen.hellos[0];
    assert_eq!((hello.ledger, hello.runtime.as_str()), (None, "directory"));
    assert_eq!(hello.facts["arch"], "arm64");
    assert!(seen.facts.is_empty(), "facts are told twice");
    let last = seen.reports.last().unwrap();
    let applied = last
        .conditions
        .iter()
        .find(|it| it.kind == "Applied")
        .unwrap();
    assert_eq!(applied.status, ConditionStatus::True);
    // The next connection says what the ledger holds, and nothing is sent again.
    let edge_seen = edge.seen.clone();
    edge.push(ControlMessage::Reconnect { after_ms: 0 });
    let mut edge_seen_again = edge_seen;
    until(&mut edge_seen_again, "a second hello", |seen| {
        seen.hellos.len() == 2
    })
    .await;
    assert_eq!(edge.seen.borrow().hellos[1].ledger, Some(second));
    agent.stop().await;
}

#[tokio::test]
async fn a_broken_transfer_resumes_where_it_stopped() {
    let behavior = Behavior {
        cut_after: Some(2),
        ..Behavior::default()
    };
    let (_pki, edge, agent) = started(10_000, behavior, Life::USUAL).await;
    // Text that does not compress: each object makes more than one message.
    let noise = |seed: usize| -> String {
        (0..6000)
            .map(|n| Digest::of(format!("{seed} {n}").as_bytes()).to_hex())
            .collect()
    };
    let objects: Vec<_> = (0..5)
        .map(|n| object(&format!("o{n}"), &noise(n)))
        .collect();
    let wanted = edge.desire(1, &objects);
    let mut seen = edge.seen.clone();
    until(&mut seen, "the set accepted", |seen| {
        seen.accepted.contains(&wanted)
    })
    .await;
    let needs = seen.borrow().needs.clone();
    assert_eq!(needs.len(), 2);
    assert_eq!(needs[0].len(), 5);
    assert!(
        !needs[1].is_empty() && needs[1].len() < 5,
        "only the rest: {}",
        needs[1].len()
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_controller_that_falls_silent_is_left() {
    let (_pki, edge, agent) = started(100, Behavior::default(), Life::USUAL).await;
    let mut seen = edge.seen.clone();
    until(&mut seen, "pings", |seen| {
        seen.pings >= 5 && seen.connections.len() == 1
    })
    .await;
    edge.behave(|behavior| behavior.silent = true);
    until(&mut seen, "another connection", |seen| {
        seen.connections.len() >= 2
    })
    .await;
    edge.behave(|behavior| behavior.silent = false);
    until(&mut seen, "another hello", |seen| seen.hellos.len() >= 2).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_the_controller_asks_for_is_honored() {
    let refusals = [(503, "retry-after:1", String::new())].into();
    let behavior = Behavior {
        refusals,
        ..Behavior::default()
    };
    let (_pki, edge, agent) = started(10_000, behavior, Life::USUAL).await;
    let mut seen = edge.seen.clone();
    until(&mut seen, "a hello", |seen| seen.hellos.len() == 1).await;
    let asked = Instant::now();
    edge.push(ControlMessage::Reconnect { after_ms: 600 });
    until(&mut seen, "the next hello", |seen| seen.hellos.len() == 2).await;
    let connections = seen.borrow().connections.clone();
    assert!(connections[1].0 - connections[0].0 >= Duration::from_secs(1));
    assert!(connections[2].0 - asked >= Duration::from_millis(600));
    agent.stop().await;
}

#[tokio::test]
async fn refused_credentials_are_tried_again_slowly() {
    let refusal = || {
        (
            401,
            "",
            json!({"title": "x", "detail": "unknown token"}).to_string(),
        )
    };
    let other = (
        403,
        "",
        json!({"status": "pending", "reason": "not yet"}).to_string(),
    );
    let refusals = [refusal(), other].into();
    let pki = Arc::new(Pki::new());
    let behavior = Behavior {
        refusals,
        ..Behavior::default()
    };
    let edge = Edge::start(pki.clone(), device(), 10_000, behavior).await;
    let identity = identity(&pki, &edge, Life::USUAL);
    let slow = Duration::from_millis(400);
    let agent = Agent::start(tempfile::tempdir().unwrap(), identity, slow);
    let mut seen = edge.seen.clone();
    until(&mut seen, "a hello", |seen| seen.hellos.len() == 1).await;
    let times: Vec<_> = seen
        .borrow()
        .connections
        .iter()
        .map(|(at, _)| *at)
        .collect();
    assert!(
        times.windows(2).all(|pair| pair[1] - pair[0] >= slow / 2),
        "{times:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_certificate_is_renewed_and_used() {
    // Two thirds of this life are over.
    let (_pki, edge, agent) = started(10_000, Behavior::default(), Life(-3600, 600)).await;
    let before = std::fs::read(agent.dir.path().join("state/identity.json")).unwrap();
    let mut seen = edge.seen.clone();
    until(&mut seen, "a hello with another certificate", |seen| {
        seen.hellos.len() == 2
    })
    .await;
    let seen = seen.borrow().clone();
    assert_eq!(seen.renewals, 1);
    assert_ne!(seen.connections[0].1, seen.connections[1].1);
    assert!(seen.connections[1].0 - seen.connections[0].0 < Duration::from_secs(10));
    let dir = agent.stop().await;
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    assert_eq!(state.identity().unwrap().unwrap().device_id, device());
    assert_ne!(
        std::fs::read(dir.path().join("state/identity.json")).unwrap(),
        before
    );
}

#[tokio::test]
async fn a_renewal_with_a_useless_certificate_changes_nothing() {
    let behavior = Behavior {
        life: Some(Life::PAST),
        ..Behavior::default()
    };
    let (_pki, edge, agent) = started(10_000, behavior, Life(-3600, 600)).await;
    let before = std::fs::read(agent.dir.path().join("state/identity.json")).unwrap();
    let mut seen = edge.seen.clone();
    until(&mut seen, "a renewal", |seen| seen.renewals == 1).await;
    // The session goes on, over the same connection.
    let wanted = edge.desire(1, &[object("a", "1")]);
    until(&mut seen, "a set", |seen| seen.accepted.contains(&wanted)).await;
    assert_eq!(seen.borrow().connections.len(), 1);
    let dir = agent.stop().await;
    assert_eq!(
        std::fs::read(dir.path().join("state/identity.json")).unwrap(),
        before
    );
}

#[tokio::test]
async fn a_decommission_ends_the_link() {
    let (_pki, edge, agent) = started(10_000, Behavior::default(), Life::USUAL).await;
    let mut seen = edge.seen.clone();
    until(&mut seen, "a hello", |seen| seen.hellos.len() == 1).await;
    edge.push(ControlMessage::Decommission {
        reason: "folder deleted".into(),
    });
    let (_dir, ended) = agent.ended().await;
    assert_eq!(
        ended,
        Ended::Decommissioned {
            reason: "folder deleted".into()
        }
    );

    let refused = json!({"status": "decommissioned", "reason": "while it was away"}).to_string();
    let refusals = [(403, "content-type:application/json", refused)].into();
    let behavior = Behavior {
        refusals,
        ..Behavior::default()
    };
    let (_pki, _edge, agent) = started(10_000, behavior, Life::USUAL).await;
    let (_dir, ended) = agent.ended().await;
    assert_eq!(
        ended,
        Ended::Decommissioned {
            reason: "while it was away".into()
        }
    );
}

#[tokio::test]
async fn another_authoritys_edge_is_told_nothing() {
    let pki = Arc::new(Pki::new());
    let edge = Edge::start(pki, device(), 10_000, Behavior::default()).await;
    let refused = json!({"status": "decommissioned", "reason": "by a stranger"}).to_string();
    edge.behave(|behavior| behavior.refusals.push_back((403, "", refused)));
    let ours = Pki::new();
    let mut agent = Agent::start(
        tempfile::tempdir().unwrap(),
        identity(&ours, &edge, Life::USUAL),
        SHORT,
    );
    // Other tests show that a connection to a trusted edge takes far less than this.
    let ended = time::timeout(Duration::from_millis(500), &mut agent.linking).await;
    assert!(ended.is_err(), "a stranger must not decommission a device");
    assert!(edge.seen.borrow().connections.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_keeps_the_last_good_state_in_force() {
    let (_pki, edge, agent) = started(10_000, Behavior::default(), Life::USUAL).await;
    let mut seen = edge.seen.clone();
    let first = edge.desire(1, &[object("a", "1")]);
    until(&mut seen, "the first set", |seen| {
        seen.accepted.contains(&first)
    })
    .await;
    // Root may write anywhere, but nobody writes a file over a directory that is not empty.
    let blocked = agent
        .dir
        .path()
        .join("state")
        .join(format!("ledger.{:020}", 2));
    std::fs::create_dir_all(blocked.join("x")).unwrap();
    let second = edge.desire(2, &[object("a", "2")]);
    until(&mut seen, "a refusal and its report", |seen| {
        seen.rejected.contains(&RejectReason::Storage)
            && seen.reports.last().is_some_and(|report| {
                report.held == first
                    && report.conditions.iter().any(|it| {
                        it.kind == "LedgerWritable" && it.status == ConditionStatus::False
                    })
            })
    })
    .await;
    assert!(blocked.with_file_name(format!("ledger.{:020}", 1)).exists());
    // Once there is room again, the same set is accepted.
    std::fs::remove_dir_all(blocked).unwrap();
    until(&mut seen, "the second set", |seen| {
        seen.accepted.contains(&second)
    })
    .await;
    until(&mut seen, "a report of it", |seen| {
        seen.reports.last().is_some_and(|report| {
            let writable = report
                .conditions
                .iter()
                .find(|it| it.kind == "LedgerWritable");
            report.held == second && writable.is_some_and(|it| it.status == ConditionStatus::True)
        })
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_damaged_ledger_is_resynced() {
    let (pki, edge, agent) = started(10_000, Behavior::default(), Life::USUAL).await;
    let mut seen = edge.seen.clone();
    let wanted = edge.desire(1, &[object("a", "1")]);
    until(&mut seen, "the set applied", |seen| {
        seen.reports
            .iter()
            .any(|report| report.phase == Phase::Applied)
    })
    .await;
    let dir = agent.stop().await;
    let ledger = dir.path().join("state").join(format!("ledger.{:020}", 1));
    std::fs::write(&ledger, "longshore-ledger 1 sha256:nonsense").unwrap();
    let agent = Agent::start(dir, identity(&pki, &edge, Life::USUAL), SHORT);
    until(&mut seen, "the set again", |seen| seen.accepted.len() == 2).await;
    let seen = seen.borrow().clone();
    assert_eq!(seen.hellos[1].ledger, None);
    assert_eq!(seen.accepted, [wanted, wanted]);
    assert_eq!(agent.ledger.load().unwrap().current.unwrap().held(), wanted);
    assert_eq!(
        *agent.ledger.load().unwrap().current.unwrap(),
        holding(1, [object("a", "1")])
    );
    assert!(agent.dir.path().join("state/ledger.corrupt-1").exists());
    agent.stop().await;
}

#[tokio::test]
async fn facts_that_change_are_told_once() {
    let (_pki, edge, agent) = started(10_000, Behavior::default(), Life::USUAL).await;
    let mut seen = edge.seen.clone();
    until(&mut seen, "it connects", |seen| seen.hellos.len() == 1).await;
    let tell = |site: &str| {
        agent
            .facts
            .send_replace(Facts::from([("site".to_owned(), site.to_owned())]))
    };
    tell("madrid");
    until(&mut seen, "the change", |seen| seen.facts.len() == 1).await;
    tell("bonn");
    until(&mut seen, "the next change", |seen| seen.facts.len() == 2).await;
    assert_eq!(seen.borrow().facts[1]["site"], "bonn");
    agent.stop().await;
}
