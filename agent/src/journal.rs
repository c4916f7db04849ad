//! What happened while nobody could be told.
//!
//! A report is a state, and its latest word is all that a connected controller needs. What came and went while the
//! device was offline would be lost that way, so changes of conditions are written down then, and told as one
//! condition once the device is back. The journal is bounded: the oldest changes give way, and are counted.
//!
//! It is kept in the state directory, at most once a minute, until a connection has held for a while. A device that
//! is offline over several restarts has one journal of them all.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use longshore_protocol::{Condition, ConditionStatus, Generation};
use serde::{Deserialize, Serialize};

use crate::{
    causes, clock,
    files::{FileError, Folder, Found},
};

/// Its file in the state directory.
pub(crate) const FILE: &str = "journal";
const MOST_BYTES: u64 = 256 * 1024;
/// How many changes are kept.
const MOST_CHANGES: usize = 256;
/// How long what is told of them may be, in bytes; the controller takes little more.
const MOST_TOLD: usize = 1800;
/// A device that was offline for less has nothing to tell but its present state. Nor is more written down on disk
/// in this time than once.
const SHORT: u64 = 60_000;

/// The journal of one device. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    folder: Option<Folder>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_connected: bool,
    pages: Pages,
    is_dirty: bool,
    /// When it was written last.
    written: Option<u64>,
}

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pages {
    /// Since when nobody could be told, in milliseconds since the Unix epoch.
    since: Option<u64>,
    /// How many changes were dropped.
    dropped: u64,
    changes: VecDeque<Change>,
}

/// A condition changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    at: u64,
    generation: Generation,
    kind: String,
    status: ConditionStatus,
    reason: String,
}

impl Journal {
    /// The journal of this state directory. One that cannot be read is begun anew.
    pub fn kept_in(folder: Folder) -> Self {
        let pages = read(&folder).unwrap_or_else(|why| {
            tracing::warn!(why, "the journal of the time offline cannot be read");
            Pages::default()
        });
        let state = State {
            pages,
            ..State::default()
        };
        Self(Arc::new(Inner {
            folder: Some(folder),
            state: Mutex::new(state),
        }))
    }

    /// Notes what changed between two states, while nobody can be told.
    pub(crate) fn note(
        &self,
        generation: Generation,
        before: &[Condition],
        after: &[Condition],
        now: u64,
    ) {
        let mut state = self.state();
        if state.is_connected {
            return;
        }
        for condition in after {
            let same = |it: &&Condition| it.kind == condition.kind;
            let known = before.iter().find(same);
            let is_news = known.is_none_or(|known| {
                (known.status, &known.reason) != (condition.status, &condition.reason)
            });
            if is_news {
                state.is_dirty = true;
                state.pages.add(Change {
                    at: now,
                    generation,
                    kind: condition.kind.clone(),
                    status: condition.status,
                    reason: condition.reason.clone(),
                });
            }
        }
    }

    /// The controller listens from now on. What there is to tell it, where that is more than the present state.
    pub(crate) fn connected(&self, now: u64) -> Option<String> {
        let mut state = self.state();
        state.is_connected = true;
        let since = state.pages.since?;
        let is_long = now.saturating_sub(since) >= SHORT;
        (is_long && !state.pages.changes.is_empty()).then(|| state.pages.told(since, now))
    }

    /// Nobody listens any more.
    pub(crate) fn disconnected(&self, now: u64) {
        let mut state = self.state();
        state.is_connected = false;
        state.pages.since.get_or_insert(now);
    }

    /// The connection has held for long enough for all that was told to have arrived.
    pub(crate) fn delivered(&self) {
        let mut state = self.state();
        if state.pages == Pages::default() {
            return;
        }
        state.pages = Pages::default();
        state.is_dirty = false;
        state.written = None;
        drop(state);
        if let Some(folder) = &self.0.folder
            && let Err(error) = folder.remove(FILE).and_then(|_| folder.sync())
        {
            tracing::warn!(error = causes(&error), "the journal stays behind");
        }
    }

    /// Keeps what is new for the next start, where that was not done within the last minute, or in any case.
    pub(crate) fn keep(&self, now: u64, in_any_case: bool) {
        let Some(folder) = &self.0.folder else {
            return;
        };
        let mut state = self.state();
        let is_early = |written: u64| now.abs_diff(written) < SHORT;
        if !state.is_dirty || (!in_any_case && state.written.is_some_and(is_early)) {
            return;
        }
        state.is_dirty = false;
        state.written = Some(now);
        let pages = state.pages.clone();
        drop(state);
        if let Err(error) = write(folder, &pages) {
            tracing::warn!(error = causes(&error), "the journal is not kept");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn add(&mut self, change: Change) {
        self.since.get_or_insert(change.at);
        if self.changes.len() >= MOST_CHANGES {
            self.changes.pop_front();
            self.dropped += 1;
        }
        self.changes.push_back(change);
    }

    /// The last changes, as many as there is room for, and how many came before them.
    fn told(&self, since: u64, now: u64) -> String {
        let mut lines = Vec::new();
        let mut room = MOST_TOLD;
        for change in self.changes.iter().rev() {
            let line = change.told();
            let Some(rest) = room.checked_sub(line.len() + 2) else {
                break;
            };
            room = rest;
            lines.push(line);
        }
        lines.reverse();
        let left_out = self.dropped + (self.changes.len() - lines.len()) as u64;
        let gap = match left_out {
            0 => String::new(),
            count => format!("({count} earlier changes left out); "),
        };
        format!(
            "nobody could be told from {} to {}; what changed: {gap}{}",
            clock::shown(since),
            clock::shown(now),
            lines.join("; ")
        )
    }
}

impl Change {
    fn told(&self) -> String {
        format!(
            "{} {} {:?} ({}) at generation {}",
            clock::shown(self.at),
            self.kind,
            self.status,
            self.reason,
            self.generation
        )
    }
}

fn read(folder: &Folder) -> Result<Pages, String> {
    match folder.read(FILE, MOST_BYTES) {
        Ok(Found::Nothing) => Ok(Pages::default()),
        Ok(Found::File { content, .. }) => {
            serde_json::from_slice(&content).map_err(|error| error.to_string())
        }
        Ok(Found::Other) => Err("it is no readable file".to_owned()),
        Err(error) => Err(causes(&error)),
    }
}

fn write(folder: &Folder, pages: &Pages) -> Result<(), FileError> {
    // Structs of strings and numbers always serialize.
    let content = serde_json::to_vec(pages).unwrap_or_default();
    folder.write(FILE, &content)?;
    folder.sync()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn state(reason: &str, at: u64) -> Vec<Condition> {
        vec![Condition::holds("Applied", reason, "", at)]
    }

    fn flips(journal: &Journal, times: u64) {
        for n in 0..times {
            let (before, after) = (state(&format!("R{n}"), 0), state(&format!("R{}", n + 1), 0));
            journal.note(Generation::from(n), &before, &after, NOW + n * 1000);
        }
    }

    #[test]
    fn what_changed_while_nobody_listened_is_told_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Journal::kept_in(Folder::open(dir.path()).unwrap());
        let journal = open();
        flips(&journal, 1);
        journal.keep(NOW, false);
        // Within a minute it is not written again, and what is told is not lost but by a power cut.
        journal.note(Generation::from(1), &[], &state("Again", 0), NOW + 1000);
        journal.keep(NOW + 1000, false);
        let lost = open().connected(NOW + HOUR).unwrap();
        assert!(
            lost.contains("(R1) at generation 0") && !lost.contains("Again"),
            "{lost}"
        );
        journal.keep(NOW + 1000, true);
        drop(journal);
        let journal = open();
        journal.note(
            Generation::from(2),
            &state("a", 0),
            &state("a", 9),
            NOW + 2000,
        );
        let told = journal.connected(NOW + HOUR).unwrap();
        assert!(
            told.contains("(R1) at generation 0; ") && told.contains("(Again)"),
            "{told}"
        );
        assert!(
            !told.contains("generation 2"),
            "nothing changed then: {told}"
        );
        assert!(
            told.contains(&clock::shown(NOW)) && !told.contains("left out"),
            "{told}"
        );
        // While somebody listens there is nothing to write down.
        journal.note(Generation::from(3), &[], &state("x", 0), NOW + HOUR);
        // What was told may not have arrived.
        journal.disconnected(NOW + HOUR);
        assert_eq!(
            open().connected(NOW + 2 * HOUR),
            journal.connected(NOW + 2 * HOUR)
        );
        journal.delivered();
        assert!(!dir.path().join(FILE).exists());
        journal.disconnected(NOW + 3 * HOUR);
        assert_eq!(journal.connected(NOW + 4 * HOUR), None);
    }

    #[test]
    fn the_oldest_changes_give_way_and_are_counted() {
        let journal = Journal::default();
        flips(&journal, 1000);
        assert_eq!(journal.state().pages.changes.len(), MOST_CHANGES);
        assert_eq!(journal.state().pages.dropped, 1000 - 256);
        let told = journal.connected(NOW + HOUR).unwrap();
        assert!(told.len() < 2000, "{}", told.len());
        assert!(told.ends_with("(R1000) at generation 999"), "{told}");
        let shown = told.matches("at generation").count();
        let left_out = format!("({} earlier changes left out)", 1000 - shown);
        assert!(told.contains(&left_out), "{told}");
    }

    #[test]
    fn a_short_time_offline_and_a_damaged_journal_are_no_news() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let journal = Journal::kept_in(Folder::open(dir.path()).unwrap());
        flips(&journal, 3);
        assert_eq!(journal.connected(NOW + 30_000), None);
    }
}
