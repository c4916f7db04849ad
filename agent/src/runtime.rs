//! What the agent applies to.
//!
//! A runtime is asked for one thing: make the target match this holding, whatever it is like now. It is asked
//! again and again, so a pass that finds everything in place must be cheap and change nothing, and a pass
//! that was killed halfway must be finished by the next one.
//!
//! ```text
//! prepare (fetch what is slow to fetch) ─▶ apply ─▶ health, until it is good or the deadline is over
//! ```

pub mod command;
pub mod directory;
pub mod health;
pub mod kube;
pub mod logs;
pub mod podman;

use std::sync::Arc;

use async_trait::async_trait;
use longshore_protocol::{DeviceId, Generation, session::Holding};

use self::{
    command::Command,
    directory::Directory,
    health::ObjectHealth,
    kube::Kube,
    logs::{Logs, NoLogs},
    podman::Podman,
};
use crate::{
    config::{PodmanSettings, RuntimeSettings},
    files::FileError,
    identity::Identity,
};

/// Something that runs manifest sets.
#[async_trait]
pub trait Runtime: Send + 'static {
    /// `kube`, `podman`, `directory` or `command`: what `Hello` says.
    fn name(&self) -> &'static str;

    /// Fetches what the holding will need, such as images, while what runs goes on untouched. Whatever is not
    /// fetched here is fetched by `apply`, so a runtime that cannot do this ahead does nothing, and what cannot be
    /// fetched for one object is no error: it must not hold up the others. An error is that of a target that cannot
    /// be worked with at all.
    async fn prepare(&mut self, _holding: &Holding) -> Result<(), ApplyError> {
        Ok(())
    }

    /// Makes the target match the holding, and says what that took.
    async fn apply(&mut self, holding: Arc<Holding>) -> Result<Changes, ApplyError>;

    /// Whether there is health to be known, as there is none of files in a directory.
    fn knows_health(&self) -> bool {
        false
    }

    /// How the objects of the set that was applied last fare; those that are not named are current. `None`
    /// where that cannot be known now.
    async fn health(&mut self) -> Option<Vec<ObjectHealth>> {
        None
    }

    /// Where the logs of what runs are to be had, while the runtime is busy with something else.
    fn logs(&self) -> Arc<dyn Logs> {
        Arc::new(NoLogs("the device's runtime keeps no logs of workloads"))
    }

    /// Whether there is something to apply to, and what it is, with its version, for people. Changes nothing.
    async fn probe(&mut self) -> Result<String, ApplyError> {
        Ok(String::new())
    }

    /// Which rights the agent lacks in the target, each in words. Changes nothing. Empty where that cannot be asked.
    async fn lacks(&mut self) -> Result<Vec<String>, ApplyError> {
        Ok(Vec::new())
    }

    /// Removes everything that was applied.
    async fn clear(&mut self) -> Result<Changes, ApplyError>;

    /// Returns when the target may have changed by other hands, or an object's health may have. A hint to
    /// look, never a truth. Dropped at any point, it loses no hint.
    async fn disturbed(&mut self);
}

/// Whose sets a runtime applies.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The device's id.
    pub id: DeviceId,
    /// Its name, for people.
    pub name: String,
}

impl Owner {
    /// The device's own, or nobody's, for a runtime that is only looked at.
    pub fn of(identity: Option<&Identity>) -> Self {
        identity.map_or_else(
            || Self {
                id: DeviceId::from_random([0; 16]),
                name: String::new(),
            },
            Self::from,
        )
    }
}

impl From<&Identity> for Owner {
    fn from(identity: &Identity) -> Self {
        Self {
            id: identity.device_id.clone(),
            name: identity.name.to_string(),
        }
    }
}

/// The runtime that the settings ask for, for the sets of this device.
pub fn of(settings: RuntimeSettings, owner: Owner) -> Box<dyn Runtime> {
    match settings {
        RuntimeSettings::Directory(path) => Box::new(Directory::new(path, owner.id)),
        RuntimeSettings::MicroShift(path) => {
            Box::new(Directory::new(path, owner.id).for_microshift())
        }
        RuntimeSettings::Podman(PodmanSettings { program, state }) => {
            Box::new(Podman::new(program, owner.id).tidying(state))
        }
        RuntimeSettings::Command(settings) => Box::new(Command::new(settings, owner)),
        RuntimeSettings::Kube(settings) => Box::new(Kube::new(settings, owner.id)),
    }
}

/// What a pass changed in the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What was added or put right.
    pub written: Vec<String>,
    /// What was removed.
    pub removed: Vec<String>,
    /// What has to wait for others, and why: a deletion for its finalizers, say.
    pub waiting: Vec<String>,
}

impl Changes {
    /// Whether the target was as it should be.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.removed.is_empty()
    }

    /// What has to wait, in words, shortened where it is much.
    pub fn waits(&self) -> String {
        const SHOWN: usize = 5;
        let more = self.waiting.len().saturating_sub(SHOWN);
        let more = (more > 0).then(|| format!("and {more} more"));
        let shown = self.waiting.iter().take(SHOWN).cloned();
        shown.chain(more).collect::<Vec<_>>().join("; ")
    }

    /// In words, shortened where there are many.
    pub fn summary(&self) -> String {
        let part = |verb: &str, names: &[String]| match names {
            [] => None,
            few if few.len() <= 5 => Some(format!("{verb} {}", few.join(", "))),
            [one, two, three, rest @ ..] => Some(format!(
                "{verb} {one}, {two}, {three} and {} more",
                rest.len()
            )),
            _ => None,
        };
        let parts = [part("wrote", &self.written), part("removed", &self.removed)];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// An object that is not applied, or not removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unapplied {
    /// Which object, as its key prints.
    pub object: String,
    /// One `CamelCase` word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

/// The reason where a runtime cannot run an object.
pub(crate) const UNSUPPORTED: &str = "Unsupported";
/// The reason where an object lies outside of what the agent may touch by its settings.
pub(crate) const OUT_OF_SCOPE: &str = "OutOfScope";

/// Why a holding is not applied. The reconciler tries again in all cases.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something of somebody else's is in the way.
    #[error("{path} is in the way and was not written by this agent: {advice}")]
    Foreign {
        /// What is in the way.
        path: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The target has this generation with other content. One generation has one content, always.
    #[error(
        "generation {0} was applied with other content before; the next change of the device's desired state heals this"
    )]
    Conflict(Generation),
    /// The set cannot be represented in the target.
    #[error("the set cannot be written: {0}")]
    Unrepresentable(String),
    /// These objects are not applied; all others are.
    #[error("{}", unapplied(.0))]
    Objects(Vec<Unapplied>),
    /// The target cannot be worked with at all.
    #[error("{0}")]
    Unavailable(String),
    /// The program that applies it failed.
    #[error("{0}")]
    Program(String),
    /// A worker died.
    #[error("applying was cut short")]
    Interrupted,
}

impl ApplyError {
    /// One `CamelCase` word for the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(error) => match error.source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "DiskFull",
                std::io::ErrorKind::ReadOnlyFilesystem => "ReadOnly",
                std::io::ErrorKind::PermissionDenied => "PermissionDenied",
                _ => "FileSystem",
            },
            Self::Foreign { .. } => "ForeignFile",
            Self::Conflict(_) => "GenerationConflict",
            Self::Unrepresentable(_) => "Unrepresentable",
            Self::Objects(objects) => match objects.as_slice() {
                [first, rest @ ..] if rest.iter().all(|it| it.reason == first.reason) => {
                    first.reason
                }
                _ => "ObjectsFailed",
            },
            Self::Unavailable(_) => "RuntimeUnavailable",
            Self::Program(_) => "CommandFailed",
            Self::Interrupted => "Interrupted",
        }
    }

    /// Whether what could be applied is, so that its health is worth a look.
    pub fn is_partial(&self) -> bool {
        matches!(self, Self::Objects(_))
    }

    /// Whether what could be applied is, and no further try will do better: the rest is nothing for this runtime.
    pub fn is_lasting(&self) -> bool {
        let lasts = |it: &Unapplied| matches!(it.reason, UNSUPPORTED | OUT_OF_SCOPE);
        matches!(self, Self::Objects(objects) if objects.iter().all(lasts))
    }

    /// Whether the set may be at fault, and not what it is applied with.
    pub fn is_the_sets(&self) -> bool {
        matches!(self, Self::Objects(_) | Self::Program(_))
    }

    /// The error and its cause, in one line.
    pub fn explanation(&self) -> String {
        match self {
            Self::File(error) => format!("{error}: {}", error.source),
            other => other.to_string(),
        }
    }
}

/// Which objects are not applied, and why, in one line, shortened where there are many.
fn unapplied(objects: &[Unapplied]) -> String {
    const SHOWN: usize = 5;
    let shown = objects.iter().take(SHOWN);
    let mut parts: Vec<_> = shown
        .map(|it| format!("{}: {}", it.object, it.message))
        .collect();
    if let Some(more @ 1..) = objects.len().checked_sub(SHOWN) {
        parts.push(format!("and {more} more"));
    }
    let count = match objects.len() {
        1 => "one object is not applied".to_owned(),
        many => format!("{many} objects are not applied"),
    };
    format!("{count}; the rest is: {}", parts.join("; "))
}
