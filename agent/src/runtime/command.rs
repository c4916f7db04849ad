//! Any program as the runtime: `kubectl`, `oc`, or a script.
//!
//! ```text
//!  what may be there (inventory) ∪ the set ─▶ inventory ─▶ removals file ─▶ program ─▶ inventory: the set, applied
//!                                                             stdin: the set ─▲   exit code 0 ─▲
//! ```
//!
//! The program gets the whole set as YAML documents on stdin, in the order in which Kubernetes takes them, and a file
//! with the objects that left the set. Exit code 0 says that the target matches; anything else, that the pass is to
//! be tried again, and 75, that the set is not at fault. Equal sets are equal bytes.
//!
//! Guarantees:
//! - The program runs when the set changed, and after that only at the interval that was asked for, if any.
//! - An object that was ever handed over is in the removals, once it left the set, until the program has succeeded.
//!   So one that was killed halfway, or an agent that was, leaves nothing behind.
//! - The program sees the agent's environment without the agent's own settings, has a deadline, and is killed with all
//!   that it started when that passes.

mod documents;
mod inventory;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use longshore_protocol::{Object, ObjectKey, session::Holding};
use tokio::time::Instant;

use self::inventory::{Inventory, Present};
use super::{
    ApplyError, Changes, Owner, Runtime,
    logs::{Logs, NoLogs},
};
use crate::{
    causes,
    files::Folder,
    process::{self, Call, Ended, ProcessError, inherited},
    watchdog,
};

/// The exit code with which a program says that the set is not at fault: `EX_TEMPFAIL` of `sysexits.h`.
const NOT_NOW: i32 = 75;

/// How the program is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandSettings {
    /// The program and its arguments.
    pub line: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// After how long it is run again although nothing changed; never, where there is none.
    pub interval: Option<Duration>,
    /// Where the inventory and the removals are kept.
    pub folder: PathBuf,
}

/// The `command` runtime.
#[derive(Debug)]
pub struct Command {
    settings: CommandSettings,
    owner: Owner,
    /// When the program succeeded last, in this life of the agent.
    succeeded: Option<Instant>,
}

impl Command {
    /// Hands the sets of this device to the program.
    pub fn new(settings: CommandSettings, owner: Owner) -> Self {
        Self {
            settings,
            owner,
            succeeded: None,
        }
    }

    fn is_due(&self) -> bool {
        let due = |every| self.succeeded.is_none_or(|at| at.elapsed() >= every);
        self.settings.interval.is_some_and(due)
    }

    /// Hands over this set and the objects to remove.
    async fn hand_over(
        &mut self,
        holding: Option<&Holding>,
        folder: Folder,
        inventory: Inventory,
    ) -> Result<Changes, ApplyError> {
        let objects: Vec<_> = holding
            .into_iter()
            .flat_map(Holding::objects)
            .cloned()
            .collect();
        let wanted: BTreeSet<_> = objects.iter().map(Present::of).collect();
        let keys: BTreeSet<_> = wanted.iter().map(|it| &it.key).collect();
        let leaving: Vec<_> = inventory
            .present
            .iter()
            .filter(|it| !it.keep && !keys.contains(&it.key))
            .map(|it| it.key.clone())
            .collect();
        let mut claimed = inventory.clone();
        claimed.device = Some(self.owner.id.clone());
        claimed.applied = None;
        claimed.claim(&wanted);
        let removals = documents::removals(&leaving);
        let input = documents::of(&objects);
        let folder = blocking(move || {
            if claimed != inventory {
                claimed.write(&folder)?;
            }
            folder.write(inventory::REMOVALS, removals.as_bytes())?;
            folder.sync()?;
            Ok(folder)
        })
        .await?;

        self.run(holding, input).await?;

        let done = Inventory {
            device: Some(self.owner.id.clone()),
            applied: holding.map(Holding::held),
            present: wanted,
        };
        let is_cleared = holding.is_none();
        blocking(move || {
            if is_cleared {
                folder.remove(inventory::FILE)?;
                folder.remove(inventory::REMOVALS)?;
            } else {
                done.write(&folder)?;
            }
            folder.sync()?;
            Ok(())
        })
        .await?;
        self.succeeded = Some(Instant::now());
        Ok(Changes {
            written: objects
                .iter()
                .map(|object| object.key().to_string())
                .collect(),
            removed: leaving.iter().map(ObjectKey::to_string).collect(),
            ..Changes::default()
        })
    }

    async fn run(&self, holding: Option<&Holding>, input: String) -> Result<(), ApplyError> {
        let Some((program, arguments)) = self.settings.line.split_first() else {
            return Err(ApplyError::Program(
                "there is no program: set --command".to_owned(),
            ));
        };
        let call = Call::new(program, self.settings.timeout)
            .environment(inherited(|name| !is_the_agents_own(name)))
            .environment(self.variables(holding))
            .arguments(arguments)
            .input(input.into_bytes());
        let ended = call.run().await.map_err(|error| match error {
            ProcessError::Start { .. } => ApplyError::Unavailable(causes(&error)),
            _ => ApplyError::Program(causes(&error)),
        })?;
        tracing::debug!(program, output = %String::from_utf8_lossy(&ended.output), "the program ended");
        if ended.status.success() {
            return Ok(());
        }
        let explanation = explanation(program, &ended);
        Err(match ended.status.code() {
            Some(NOT_NOW) => ApplyError::Unavailable(explanation),
            _ => ApplyError::Program(explanation),
        })
    }

    fn variables(&self, holding: Option<&Holding>) -> Vec<(OsString, OsString)> {
        let empty = longshore_protocol::ManifestSet::empty();
        let (generation, revision, digest) = match holding {
            Some(holding) => (
                holding.generation().to_string(),
                holding.revision().to_owned(),
                holding.set().digest(),
            ),
            None => (String::new(), String::new(), empty.digest()),
        };
        let removals = self.settings.folder.join(inventory::REMOVALS);
        vec![
            ("LONGSHORE_GENERATION".into(), generation.into()),
            ("LONGSHORE_REVISION".into(), revision.into()),
            ("LONGSHORE_DIGEST".into(), digest.to_string().into()),
            (
                "LONGSHORE_DEVICE_ID".into(),
                self.owner.id.to_string().into(),
            ),
            (
                "LONGSHORE_DEVICE_NAME".into(),
                self.owner.name.clone().into(),
            ),
            ("LONGSHORE_REMOVALS".into(), removals.into()),
        ]
    }

    /// The folder and what it says is there.
    async fn inventory(&self) -> Result<(Folder, Inventory), ApplyError> {
        let path = self.settings.folder.clone();
        blocking(move || {
            let folder = Folder::create(&path)?;
            let inventory = Inventory::read(&folder)?;
            Ok((folder, inventory))
        })
        .await
    }
}

#[async_trait]
impl Runtime for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    async fn apply(&mut self, holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        let (folder, inventory) = self.inventory().await?;
        let held = holding.held();
        let is_applied =
            inventory.applied == Some(held) && inventory.device.as_ref() == Some(&self.owner.id);
        if is_applied && !self.is_due() {
            return Ok(Changes::default());
        }
        let changes = self.hand_over(Some(&holding), folder, inventory).await?;
        // What the program did where nothing changed is nothing that anybody can know.
        Ok(if is_applied {
            Changes::default()
        } else {
            changes
        })
    }

    fn logs(&self) -> Arc<dyn Logs> {
        Arc::new(NoLogs(
            "the device's runtime is a program that is handed the manifests: ask the platform that it applies them to for \
             logs; what the program itself said when it failed is in the agent's own log",
        ))
    }

    async fn probe(&mut self) -> Result<String, ApplyError> {
        let program = self.settings.line.first().map_or("", String::as_str);
        let search = std::env::var_os("PATH").unwrap_or_default();
        let found = process::find(program, &search);
        found.map(|path| path.display().to_string()).ok_or_else(|| {
            ApplyError::Program(format!("`{program}` is no program that can be run here"))
        })
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        let (folder, inventory) = self.inventory().await?;
        if inventory.present.is_empty() {
            return Ok(Changes::default());
        }
        self.hand_over(None, folder, inventory).await
    }

    /// Nobody tells; the timer looks.
    async fn disturbed(&mut self) {
        std::future::pending::<()>().await;
    }
}

fn explanation(program: &str, ended: &Ended) -> String {
    let how = match ended.status.code() {
        Some(code) => format!("{program} ended with exit code {code}"),
        None => format!("{program} was ended by a signal ({})", ended.status),
    };
    let said = last_lines(&ended.errors);
    if said.is_empty() {
        format!("{how}, without a word on stderr")
    } else {
        format!("{how}: {said}")
    }
}

/// The end of what it said, in one line.
fn last_lines(errors: &str) -> String {
    const LINES: usize = 5;
    const MOST: usize = 1000;
    let lines: Vec<_> = errors
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines
        .get(lines.len().saturating_sub(LINES)..)
        .unwrap_or_default()
        .join("; ");
    let surplus = last.chars().count().saturating_sub(MOST);
    last.chars().skip(surplus).collect()
}

/// The agent's settings, its token among them, and what systemd says to the agent alone.
fn is_the_agents_own(name: &str) -> bool {
    const SYSTEMD: [&str; 9] = [
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "CREDENTIALS_DIRECTORY",
    ];
    name.starts_with("LONGSHORE_") || SYSTEMD.contains(&name)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApplyError> + Send + 'static,
) -> Result<T, ApplyError> {
    watchdog::allow(watchdog::FILES);
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(ApplyError::Interrupted))
}

/// What the inventory notes of an object.
impl Present {
    fn of(object: &Object) -> Self {
        let value = object.value();
        let prune = value.pointer("/metadata/annotations/longshore.dev~1prune");
        Self {
            key: object.key().clone(),
            keep: prune.and_then(serde_json::Value::as_str) == Some("disabled"),
        }
    }
}
