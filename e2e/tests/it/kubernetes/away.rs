//! An API server that is away for long, asked by the reconciler as it runs in the agent.
//!
//! Time is moved on in steps while nothing is under way; the exchanges themselves take place in real time.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use longshore_agent::{
    backoff::Backoff,
    clock, link,
    reconcile::{Reconciler, Timing},
    report::Reporter,
    runtime::kube::Kube,
};
use longshore_e2e::wait::PATIENCE;
use longshore_protocol::message::Phase;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{net::TcpListener, sync::watch, time};
use tokio_util::sync::CancellationToken;

use super::{Site, config_map, holding, namespace};

const HOUR: Duration = Duration::from_hours(1);
const STEP: Duration = Duration::from_secs(5);

/// Lets so much time pass, and what comes of that happen.
async fn pass(span: Duration) {
    let mut left = span;
    while !left.is_zero() {
        let step = left.min(STEP);
        time::pause();
        time::advance(step).await;
        time::resume();
        // The other side of a loopback connection is a task of this thread.
        time::sleep(Duration::from_millis(5)).await;
        left -= step;
    }
}

/// Hangs up on everybody, and counts them.
async fn door(address: SocketAddr, knocks: Arc<AtomicUsize>) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    loop {
        drop(listener.accept().await.unwrap());
        knocks.fetch_add(1, SeqCst);
    }
}

fn address(site: &Site) -> SocketAddr {
    let kubeconfig = std::fs::read_to_string(site.settings.kubeconfig.as_ref().unwrap()).unwrap();
    let address = kubeconfig.split("http://").nth(1).unwrap();
    address.split('"').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_hour_without_an_api_server_is_got_over_and_what_changed_meanwhile_is_applied() {
    let mut site = Site::start().await;
    let objects = |text: &str| [namespace("shop"), config_map("page", text)];
    let target = watch::Sender::new(Some(holding(1, &objects("1"))));
    let reporter = Reporter::new(None, clock::system);
    let timing = link::Timing::default();
    let reconciler = Reconciler::new(
        Box::new(Kube::new(site.settings.clone(), site.device.clone())),
        target.subscribe(),
        reporter.clone(),
        Timing::default(),
        Backoff::new(
            timing.first_retry,
            timing.last_retry,
            StdRng::seed_from_u64(5),
        ),
    );
    let stop = CancellationToken::new();
    let running = tokio::spawn(reconciler.run(stop.clone()));
    let mut report = reporter.follow();
    let applied = report.wait_for(|report| report.phase == Phase::Applied);
    time::timeout(PATIENCE, applied).await.unwrap().unwrap();

    site.server.stop().await;
    let knocks = Arc::new(AtomicUsize::new(0));
    let closed = tokio::spawn(door(address(&site), knocks.clone()));
    pass(HOUR / 4).await;
    target.send_replace(Some(holding(2, &objects("2"))));
    pass(HOUR * 3 / 4).await;
    let said = report.borrow().clone();
    let condition = said.conditions.iter().find(|it| it.kind == "Applied");
    let condition = condition.unwrap();
    assert_eq!(condition.reason, "RuntimeUnavailable", "{condition:?}");
    // Two kinds are followed, and a pass is tried, each about every half a minute at last.
    let count = knocks.load(SeqCst);
    assert!(
        (60..3 * 240).contains(&count),
        "{count} tries within an hour"
    );
    assert_eq!(site.text("page").unwrap(), "1");

    closed.abort();
    assert!(closed.await.unwrap_err().is_cancelled());
    site.server.start_again().await;
    // It is found again within the longest wait of a pass that fails.
    let mut waited = Duration::ZERO;
    while site.text("page").as_deref() != Some("2") {
        assert!(waited <= timing.last_retry, "not within {waited:?}");
        pass(STEP).await;
        waited += STEP;
    }
    let applied = report.wait_for(|report| report.phase == Phase::Applied);
    time::timeout(PATIENCE, applied).await.unwrap().unwrap();
    stop.cancel();
    running.await.unwrap();
}
