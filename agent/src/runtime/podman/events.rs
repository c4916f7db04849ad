//! What Podman tells of its containers while nobody asks.
//!
//! `podman events` runs as a child for as long as the runtime does, and is started again, with growing pauses,
//! when it ends. What it says is a hint to look, and while it runs and says nothing, a look that was taken stays
//! good: so a device where nothing happens starts no process at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::{sync::Notify, time};
use tokio_util::{
    codec::{FramedRead, LinesCodec},
    task::AbortOnDropHandle,
};

use super::program::Program;
use crate::{backoff::Backoff, causes, clock::Wall};

/// An event with all its labels is a few hundred bytes; a longer line counts as a hint without being read.
const LONGEST_LINE: usize = 64 * 1024;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_mins(5);

/// Follows `podman events`, until it is dropped.
#[derive(Debug)]
pub(super) struct Events {
    state: Arc<State>,
    task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    woken: Notify,
    count: AtomicU64,
    follows: AtomicBool,
}

/// A moment in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark(u64);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default)]
    status: String,
    #[serde(default, alias = "health_status")]
    health_status: Option<String>,
}

impl Events {
    pub(super) fn follow(podman: Program, wall: Wall) -> Self {
        let state = Arc::new(State::default());
        let task = tokio::spawn(keep_following(podman, state.clone(), wall));
        Self {
            state,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// This moment in the stream.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.state.count.load(SeqCst))
    }

    /// Whether anybody listens, so that nothing happens unheard.
    pub(super) fn follows(&self) -> bool {
        self.state.follows.load(SeqCst) && !self.is_dead()
    }

    /// Whether whoever listens died, and should be started anew.
    pub(super) fn is_dead(&self) -> bool {
        self.task.is_finished()
    }

    /// Returns when something happened since that moment.
    pub(super) async fn after(&self, mark: Mark) {
        while self.mark() == mark {
            self.state.woken.notified().await;
        }
    }
}

impl State {
    fn hint(&self) {
        self.count.fetch_add(1, SeqCst);
        self.woken.notify_one();
    }
}

async fn keep_following(podman: Program, state: Arc<State>, wall: Wall) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE, rand::make_rng());
    loop {
        let begun = time::Instant::now();
        let why = follow(&podman, &state, wall).await;
        state.follows.store(false, SeqCst);
        state.hint();
        tracing::warn!(
            why,
            "podman events ended; until it runs again, the timer finds what changes"
        );
        if begun.elapsed() > LAST_PAUSE {
            backoff.reset();
        }
        time::sleep(backoff.after_failure().max(FIRST_PAUSE)).await;
    }
}

/// Follows one stream to its end; returns why it ended.
async fn follow(podman: &Program, state: &State, wall: Wall) -> String {
    // What happens between now and the moment at which Podman listens is told, too.
    let since = (wall() / 1000).saturating_sub(1);
    let mut group = match podman.events(since) {
        Ok(group) => group,
        Err(error) => return causes(&error),
    };
    let words = group.last_words();
    let reading = async {
        let Some(output) = group.output() else { return };
        let mut lines = FramedRead::new(output, LinesCodec::new_with_max_length(LONGEST_LINE));
        while let Some(line) = lines.next().await {
            if line.map_or(true, |line| is_hint(&line)) {
                state.hint();
            }
        }
    };
    state.follows.store(true, SeqCst);
    state.hint();
    let (words, ()) = tokio::join!(words, reading);
    words
}

/// Whether something may be different now. What a health check that still passes does is of no interest.
fn is_hint(line: &str) -> bool {
    let Ok(event) = serde_json::from_str::<Event>(line) else {
        return true;
    };
    match event.status.as_str() {
        "exec" | "exec_died" | "attach" | "init" | "create" | "pull" | "sync" | "resize" => false,
        "health_status" => event.health_status.as_deref() != Some("healthy"),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_change_something_is_a_hint() {
        let event =
            |status: &str| format!(r#"{{"Name":"a","Status":"{status}","Type":"container"}}"#);
        for status in [
            "died",
            "remove",
            "stop",
            "pause",
            "start",
            "health_status",
            "news",
        ] {
            assert!(is_hint(&event(status)), "{status}");
        }
        for status in ["exec", "exec_died", "attach"] {
            assert!(!is_hint(&event(status)), "{status}");
        }
        assert!(!is_hint(
            r#"{"Status":"health_status","health_status":"healthy"}"#
        ));
        assert!(is_hint(
            r#"{"Status":"health_status","health_status":"unhealthy"}"#
        ));
        assert!(is_hint("what is this"));
    }
}
