//! A child process and everything that it started: one process group, ended together.

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};
use tokio::process::Child;

/// The process group of a child that leads one. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Group(Option<Pid>);

impl Group {
    /// The group of `child`, which must have been started as the leader of its own.
    pub(crate) fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
        )
    }

    /// The leader, while it was not waited for.
    pub(crate) fn leader(&self) -> Option<Pid> {
        self.0
    }

    /// The leader was waited for: its number may be another's now.
    pub(crate) fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0
            && let Err(error) = kill_process_group(group, Signal::KILL)
            && error != Errno::SRCH
        {
            tracing::debug!(%error, "a process group could not be ended");
        }
    }
}
