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
    tasks::Tasks,
};

/// What works for one fleet.
#[derive(Debug)]
pub(super) struct Crew {
    pub(super) reconciler: Parts,
    pub(super) branches: Branches,
    pub(super) forge: Option<WithForge>,
    pub(super) listed: watch::Sender<PullRequests>,
    pub(super) tasks: Tasks,
}

/// What there is for a fleet with a forge.
#[derive(Debug)]
pub(super) struct WithForge {
    pub(super) statuses: CommitStatuses,
    pub(super) previews: Previews,
    pub(super) watch: Watch,
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
        let (working, mut idle) = mpsc::channel(1);
        let reconciler = Reconciler::new(Parts {
            lease: lease.clone(),
            ..self.reconciler.clone()
        });
        let branches = Branches {
            lease: lease.clone(),
            ..self.branches.clone()
        };
        let start = |name, part| self.start(name, lease, &working, part);
        start("a fleet's enrollment", Box::pin(branches.run(end.clone())));
        start(
            "a fleet's reconciler",
            Box::pin(reconciler.run(end.clone())),
        );
        if let Some(forge) = &self.forge {
            let statuses = CommitStatuses {
                lease: lease.clone(),
                ..forge.statuses.clone()
            };
            let previews = Previews {
                lease: lease.clone(),
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
