//! The tasks of the process: all tracked, all ended by one token, and none lost without a word.

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

/// Where tasks are spawned; clones are the same place.
#[derive(Clone, Debug)]
pub struct Tasks {
    /// Counts them, for the way out.
    pub tracker: TaskTracker,
    /// Ends them.
    pub shutdown: CancellationToken,
    ended: mpsc::Sender<&'static str>,
}

impl Tasks {
    /// No tasks yet. The receiver gets the name of a part that ended and must not have.
    pub fn new(shutdown: CancellationToken) -> (Self, mpsc::Receiver<&'static str>) {
        let (ended, end) = mpsc::channel(1);
        (
            Self {
                tracker: TaskTracker::new(),
                shutdown,
                ended,
            },
            end,
        )
    }

    /// Runs a part that must not end before the shutdown.
    pub fn vital<T: Send + 'static>(
        &self,
        name: &'static str,
        part: impl Future<Output = T> + Send + 'static,
    ) {
        self.watch(name, true, part);
    }

    /// Runs a part that may end, but must not panic.
    pub fn sound(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.watch(name, false, part);
    }

    fn watch<T: Send + 'static>(
        &self,
        name: &'static str,
        is_vital: bool,
        part: impl Future<Output = T> + Send + 'static,
    ) {
        let part = self.tracker.spawn(part);
        let (ended, shutdown) = (self.ended.clone(), self.shutdown.clone());
        self.tracker.spawn(async move {
            let panicked = match part.await {
                Ok(_) => false,
                Err(error) => {
                    error!(%error, part = name, "a part of the controller failed");
                    true
                }
            };
            let early = is_vital && !shutdown.is_cancelled();
            // One end is enough to stop the process.
            if (early || panicked) && ended.try_send(name).is_err() {
                error!(part = name, "ended too");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ends_and_panics_are_told() {
        let (tasks, mut end) = Tasks::new(CancellationToken::new());
        tasks.sound("a short part", async {});
        tasks.sound("a broken part", async { panic!("as the test wants it") });
        assert_eq!(end.recv().await, Some("a broken part"));
        tasks.vital("a vital part", async {});
        assert_eq!(end.recv().await, Some("a vital part"));
    }
}
