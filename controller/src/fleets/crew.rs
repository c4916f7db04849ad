//! What works for one fleet under its lease: at one replica at a time.

use std::convert::Infallible;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::{
    commit_status::CommitStatuses,
    enrollment::branches::Branches,
    forge::watch::{PullRequests, Watch},
    preview::pull_requests::Previews,
    reconcile::{Parts, Reconciler},
    replica::{Lease, Wish},
    source::{Fetches, Observation},
    tasks::Tasks,
};

/// What works for one fleet.
#[derive(Debug)]
pub(super) struct Crew {
    pub(super) reconciler: Parts,
    pub(super) branches: Branches,
    pub(super) forge: Option<WithForge>,
    pub(super) listed: watch::Sender<PullRequests>,
    pub(super) fetches: watch::Receiver<Fetches>,
    pub(super) tasks: Tasks,
}

/// What there is for a fleet with a forge.
#[derive(Debug)]
pub(super) struct WithForge {
    pub(super) statuses: CommitStatuses,
    pub(super) previews: Previews,
    pub(super) watch: Watch,
}

/// What a crew sees of the repo.
#[derive(Debug)]
struct Sight {
    observation: watch::Receiver<Observation>,
    /// Where not all is shown yet.
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    whole: watch::Receiver<Observation>,
    fetches: watch::Receiver<Fetches>,
    /// The last fetch that is not recent enough.
    after: u64,
    to: watch::Sender<Observation>,
}

impl Sight {
    /// Keeps it up to date until `end`.
    async fn keep(self, end: CancellationToken) {
        let Some(mut shown) = self.shown else {
            return end.cancelled().await;
        };
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                told = shown.whole.changed() => if told.is_err() { return },
                told = shown.fetches.changed() => if told.is_err() { return },
            }
            shown.show();
        }
    }
}

impl Shown {
    fn show(&self) {
        // In this order: what the fetch found was published before it counts.
        let is_recent = self.fetches.borrow().worked > self.after;
        let whole = self.whole.borrow().clone();
        let now = Observation {
            refs: whole.refs.filter(|_| is_recent),
            problem: whole.problem,
        };
        self.to.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

impl Crew {
    /// Works whenever there is a lease, until `stop`.
    pub(super) async fn serve(self, wish: Wish, stop: CancellationToken) {
        loop {
            let lease = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                lease = wish.granted() => lease,
            };
            lease.under(self.work(&lease, &stop)).await;
        }
    }

    /// Works until the lease is given up, or `stop`, and all has come to its end.
    async fn work(&self, lease: &Lease, stop: &CancellationToken) {
        // What was seen under an earlier lease may be long over.
        self.listed.send_replace(PullRequests::default());
        self.reconciler.readings.send_replace(None);
        let end = stop.child_token();
        let Some(sight) = self.sight(lease, &end).await else {
            return;
        };
        let observation = sight.observation.clone();
        let (working, mut idle) = mpsc::channel(1);
        let reconciler = Reconciler::new(Parts {
            lease: lease.clone(),
            observation: observation.clone(),
            ..self.reconciler.clone()
        });
        let branches = Branches {
            lease: lease.clone(),
            observation: observation.clone(),
            ..self.branches.clone()
        };
        let start = |name, part| self.start(name, lease, &working, part);
        start("a fleet's sight", Box::pin(sight.keep(end.clone())));
        start("a fleet's enrollment", Box::pin(branches.run(end.clone())));
        start(
            "a fleet's reconciler",
            Box::pin(reconciler.run(end.clone())),
        );
        if let Some(forge) = &self.forge {
            let statuses = CommitStatuses {
                lease: lease.clone(),
                observation: observation.clone(),
                ..forge.statuses.clone()
            };
            let previews = Previews {
                lease: lease.clone(),
                observation,
                ..forge.previews.clone()
            };
            let watch = forge.watch.clone().run(self.listed.clone(), end.clone());
            start(
                "a fleet's commit statuses",
                Box::pin(statuses.run(end.clone())),
            );
            start("a fleet's previews", Box::pin(previews.run(end.clone())));
            start("a fleet's pull requests", Box::pin(watch));
        }
        drop(working);
        tokio::select! {
            () = lease.finish.cancelled() => end.cancel(),
            _ = idle.recv() => return,
        }
        idle.recv().await;
    }

    /// What this crew sees of the repo.
    ///
    /// Another replica may have acted on commits that this one has not seen: a device that is in those only would be
    /// out of the fleet for good. So nothing is seen before a fetch that began under this lease has worked. Where
    /// it fails, only that is seen.
    async fn sight(&self, lease: &Lease, end: &CancellationToken) -> Option<Sight> {
        let whole = self.reconciler.observation.clone();
        if !lease.is_taken_over() {
            return Some(Sight {
                observation: whole,
                shown: None,
            });
        }
        let mut fetches = self.fetches.clone();
        let after = fetches.borrow_and_update().begun;
        self.branches.source.notify_one();
        tokio::select! {
            () = end.cancelled() => return None,
            () = lease.finish.cancelled() => return None,
            ended = fetches.wait_for(|fetches| fetches.ended > after) => drop(ended.ok()?),
        }
        let (to, observation) = watch::channel(Observation::default());
        let shown = Shown {
            whole,
            fetches,
            after,
            to,
        };
        shown.show();
        Some(Sight {
            observation,
            shown: Some(shown),
        })
    }

    fn start(
        &self,
        name: &'static str,
        lease: &Lease,
        working: &mpsc::Sender<Infallible>,
        part: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    ) {
        let (lost, working) = (lease.lost.clone(), working.clone());
        let part = async move {
            let _working = working;
            tokio::select! {
                () = lost.cancelled() => {}
                () = part => {}
            }
        };
        self.tasks.sound(name, part.instrument(Span::current()));
    }
}
