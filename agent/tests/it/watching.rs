//! The watchdog over real loops, and what systemd hears of them.

use std::{
    io,
    os::unix::net::UnixDatagram,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use longshore_agent::{
    backoff::Backoff,
    clock,
    process::Call,
    reconcile::{Reconciler, Timing},
    report::Reporter,
    runtime::{ApplyError, Changes, Runtime},
    watchdog::Watchdog,
};
use longshore_protocol::{message::Phase, session::Holding};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use crate::{
    DEADLINE, holding, object,
    pki::Pki,
    process::{self, Device},
    until, until_true,
};

/// Less than what takes long here, and more than a loop needs to be heard of on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

/// A runtime that takes its time, or all time.
struct Slow {
    hangs: bool,
}

#[async_trait]
impl Runtime for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    async fn apply(&mut self, _holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let path = ("PATH".into(), "/usr/bin:/bin".into());
        let took = Call::new("sleep", DEADLINE * 2).environment([path]);
        took.arguments(["6"]).run().await.unwrap();
        Ok(Changes::default())
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        Ok(Changes::default())
    }

    async fn disturbed(&mut self) {
        std::future::pending::<()>().await;
    }
}

/// Runs the reconciler with that runtime, until it has applied a set or is found to be stuck.
async fn stuck(hangs: bool) -> Option<&'static str> {
    let watchdog = Watchdog::new(PATIENCE, |_| Ok(()));
    let target = watch::Sender::new(Some(Arc::new(holding(1, [object("a", "1")]))));
    let reporter = Reporter::new(None, clock::system);
    let mut report = reporter.follow();
    let reconciler = Reconciler::new(
        Box::new(Slow { hangs }),
        target.subscribe(),
        reporter,
        Timing::default(),
        Backoff::new(PATIENCE, PATIENCE, StdRng::seed_from_u64(1)),
    );
    let stop = CancellationToken::new();
    let task = tokio::spawn(watchdog.watch("reconcile", reconciler.run(stop.clone())));
    let found = tokio::select! {
        name = watchdog.run() => Some(name),
        () = until(&mut report, "applied", |report| report.phase == Phase::Applied) => None,
    };
    task.abort();
    found
}

#[tokio::test]
async fn a_reconciler_that_hangs_is_found_and_one_that_works_long_is_not() {
    let (hangs, works) = tokio::join!(stuck(true), stuck(false));
    assert_eq!(hangs, Some("reconcile"));
    assert_eq!(works, None);
}

/// What systemd would hear.
struct Systemd {
    socket: UnixDatagram,
    heard: Mutex<Vec<String>>,
}

impl Systemd {
    fn has_heard(&self, line: impl Fn(&str) -> bool) -> usize {
        let mut heard = self.heard.lock().unwrap();
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let said = String::from_utf8_lossy(&buffer[..length]);
                    heard.extend(said.lines().map(str::to_owned));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        heard.iter().filter(|heard| line(heard)).count()
    }

    async fn hears(&self, what: &str, line: impl Fn(&str) -> bool) {
        until_true(what, || self.has_heard(&line) > 0).await;
    }
}

#[tokio::test]
async fn systemd_hears_that_the_agent_goes_on_while_its_program_takes_long() {
    let pki = Arc::new(Pki::new());
    let (server, edge) = process::controller(&pki).await;
    let device = Device::new();
    let path = device.path().join("notify");
    let systemd = Systemd {
        socket: UnixDatagram::bind(&path).unwrap(),
        heard: Mutex::default(),
    };
    systemd.socket.set_nonblocking(true).unwrap();
    let mut command = device.join(&server, &pki, "lst_one");
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", PATIENCE.as_micros().to_string())
        .args(["--runtime", "command", "--command", "sleep 6"]);
    let mut child = command.spawn().unwrap();
    systemd.hears("it is up", |it| it == "READY=1").await;
    let wanted = edge.desire(1, &[object("a", "1")]);
    systemd
        .hears("what it does", |it| {
            it == "STATUS=connected; generation 1: Applying"
        })
        .await;
    let before = systemd.has_heard(|it| it == "WATCHDOG=1");
    let mut seen = edge.seen.clone();
    until(&mut seen, "applied", |seen| {
        let applied = seen.reports.last();
        applied.is_some_and(|it| it.held == wanted && it.phase == Phase::Applied)
    })
    .await;
    let meanwhile = systemd.has_heard(|it| it == "WATCHDOG=1") - before;
    // Nobody has read meanwhile, and the queue is short: what did not fit was lost, and held up nobody.
    assert!(meanwhile > 3, "{meanwhile} signs of life in 6 s");
    let before = systemd.has_heard(|it| it == "WATCHDOG=1");
    until_true("it goes on", || {
        systemd.has_heard(|it| it == "WATCHDOG=1") > before + 2
    })
    .await;
    process::signal(&child, rustix::process::Signal::TERM);
    let status = time::timeout(DEADLINE, child.wait()).await.unwrap();
    assert!(status.unwrap().success());
}
