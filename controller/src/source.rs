//! Follows one fleet's repo: from "something may have happened" to what its branches point to.
//!
//! ```text
//! webhook ─┐
//! notify ──┼─▶ poke ─▶ fetch ─▶ Observation (watch)
//! timer ───┘     ▲        │ fails: the last good refs stay, and the next try backs off
//! ```
//!
//! A poke says "look", never "what changed". Bursts of pokes become one fetch. The timer guarantees that a lost
//! webhook costs only the polling interval.
//!
//! No host is hammered: a fetch that finds nothing new costs it two small calls ([`git`]), a flood of pokes becomes a
//! few fetches a second, the interval is jittered, failures back off, and a host that wants fewer calls (`429`, `503`) is left alone for as long as it
//! says. A poke does not shorten that pause, and is not lost: it makes the next fetch come right after it.

pub mod access;
pub mod carried;
pub mod git;
mod local;
pub(crate) mod merge;
pub mod mirror;
mod throttle;
pub mod tree;

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use notify::{RecursiveMode, Watcher as _};
use rand::RngExt as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    git::GitError,
    mirror::{Mirror, Refs},
};
use crate::{
    error::chain,
    rate::{Pace, Rate},
};

/// How often a remote repo is fetched, however often somebody pokes: pokes in between become one.
const REMOTE: Rate = Rate {
    burst: 10.0,
    per_second: 4.0,
};
/// The longest pause between two tries of a repo that does not answer.
const MAX_BACKOFF: Duration = Duration::from_mins(5);

/// What is known of a repo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// What its branches point to, by the last fetch that worked; `None` before the first.
    pub refs: Option<Refs>,
    /// Why the last fetch did not work.
    pub problem: Option<String>,
}

/// How far fetches are, by their numbers: they are counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetches {
    /// The last that began.
    pub begun: u64,
    /// The last that ended.
    pub ended: u64,
    /// The last that worked; what it found was published before.
    pub worked: u64,
}

/// Follows one repo until `shutdown`.
#[derive(Debug)]
pub struct Source {
    /// The mirror to keep up to date.
    pub mirror: Mirror,
    /// The repo, where it is a directory on this machine.
    pub local: Option<PathBuf>,
    /// How often to look without being poked.
    pub interval: Duration,
    /// Says "look".
    pub poke: Arc<Notify>,
    /// Tells how far fetches are, for those whom what was seen earlier does not do.
    pub fetches: watch::Sender<Fetches>,
}

impl Source {
    /// Fetches whenever there may be something new, and publishes what it finds.
    pub async fn run(self, found: watch::Sender<Observation>, shutdown: CancellationToken) {
        let _watcher = self
            .local
            .clone()
            .and_then(|directory| watch(directory, self.poke.clone()));
        let pace = self.local.is_none().then(|| Pace::new(REMOTE));
        let mut failures: u32 = 0;
        // What an earlier run fetched is in force until the first fetch of this run.
        if let Ok(refs) = self.mirror.refs().await
            && refs.tracked.is_some()
        {
            found.send_modify(|observation| observation.refs = Some(refs));
        }
        loop {
            // A poke that comes during the fetch makes another one.
            let fetch = async {
                if let Some(pace) = &pace {
                    pace.keep().await;
                }
                self.mirror.fetch().await
            };
            self.fetches.send_modify(|fetches| fetches.begun += 1);
            let fetched = tokio::select! {
                () = shutdown.cancelled() => return,
                fetched = fetch => fetched,
            };
            let worked = fetched.is_ok();
            let mut forced = Duration::ZERO;
            match fetched {
                Ok(refs) => {
                    if failures > 0 {
                        info!("the repo answers again");
                    }
                    failures = 0;
                    let now = Observation {
                        refs: Some(refs),
                        problem: None,
                    };
                    found.send_if_modified(|before| {
                        let changed = *before != now;
                        *before = now;
                        changed
                    });
                }
                Err(error) => {
                    if failures == 0 {
                        warn!(
                            error = %chain(&error),
                            "the repo does not answer"
                        );
                    }
                    failures += 1;
                    if let GitError::Throttled { retry_after, .. } = error {
                        forced = match retry_after {
                            // Not all the controllers of the world at the same moment.
                            Some(pause) => jittered(pause, 1.0..1.2),
                            None => self.pause(failures),
                        };
                    }
                    let problem = chain(&error);
                    found.send_if_modified(|before| {
                        let changed = before.problem.as_ref() != Some(&problem);
                        before.problem = Some(problem);
                        changed
                    });
                }
            }
            self.fetches.send_modify(|fetches| {
                fetches.ended = fetches.begun;
                if worked {
                    fetches.worked = fetches.begun;
                }
            });
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(forced) => {}
            }
            let pause = self.pause(failures);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.poke.notified() => {}
            }
        }
    }

    /// The polling interval give or take a fifth; after failures, up to twice as long each time.
    fn pause(&self, failures: u32) -> Duration {
        let base = match failures {
            0 => self.interval,
            _ => Duration::from_secs(1)
                .saturating_mul(1 << failures.min(9))
                .min(MAX_BACKOFF),
        };
        jittered(base, 0.8..1.2)
    }
}

fn jittered(pause: Duration, range: Range<f64>) -> Duration {
    pause.mul_f64(rand::rng().random_range(range))
}

/// Watches the refs of a repo on this machine.
fn watch(directory: PathBuf, poke: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let git_directory = if directory.join(".git").is_dir() {
        directory.join(".git")
    } else {
        directory
    };
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is no change; everything else may be one, and so may an overflow of events.
        if !matches!(
            event,
            Ok(notify::Event {
                kind: notify::EventKind::Access(_),
                ..
            })
        ) {
            poke.notify_one();
        }
    });
    let watching = watcher.and_then(|mut watcher| {
        watcher.watch(&git_directory, RecursiveMode::NonRecursive)?;
        watcher.watch(&git_directory.join("refs"), RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watching {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            warn!(%error, path = %git_directory.display(), "cannot watch the repo; polling it");
            None
        }
    }
}
