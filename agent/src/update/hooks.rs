//! Programs of the device's owner that run around an update. They come from the device's own settings, never
//! from the repo.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use longshore_protocol::session::Holding;

use crate::process::{Call, ProcessError};

/// What runs around an update.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// Before anything of a new set is applied. Where it fails, the update does not begin, and is tried again.
    pub before: Option<PathBuf>,
    /// Once a new set is applied and healthy. Where it fails, the set counts as not healthy.
    pub after: Option<PathBuf>,
    /// How long each may take.
    pub timeout: Duration,
}

/// Why a hook did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be run to its end.
    #[error("{}", crate::causes(.0))]
    Process(#[from] ProcessError),
    /// It said no.
    #[error("{} ended with {status}{}", program.display(), said(errors))]
    Failed {
        /// Which.
        program: PathBuf,
        /// Its exit code or signal.
        status: std::process::ExitStatus,
        /// The end of what it printed as errors.
        errors: String,
    },
}

fn said(errors: &str) -> String {
    match errors.trim() {
        "" => String::new(),
        errors => format!(": {errors}"),
    }
}

impl Hooks {
    /// Runs the first one.
    pub async fn before(&self, holding: &Holding) -> Result<(), HookError> {
        self.run(self.before.as_deref(), "before-update", holding)
            .await
    }

    /// Runs the second one.
    pub async fn after(&self, holding: &Holding) -> Result<(), HookError> {
        self.run(self.after.as_deref(), "after-update", holding)
            .await
    }

    async fn run(
        &self,
        program: Option<&Path>,
        hook: &str,
        holding: &Holding,
    ) -> Result<(), HookError> {
        let Some(program) = program else {
            return Ok(());
        };
        tracing::info!(hook, program = %program.display(), "runs");
        let held = holding.held();
        let variables = [
            ("LONGSHORE_HOOK", hook.to_owned()),
            ("LONGSHORE_GENERATION", held.generation.to_string()),
            ("LONGSHORE_DIGEST", held.digest.to_string()),
            ("LONGSHORE_REVISION", holding.revision().to_owned()),
        ];
        let path = std::env::var_os("PATH").map(|path| (OsString::from("PATH"), path));
        let variables = variables
            .into_iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .chain(path);
        let ended = Call::new(program, self.timeout)
            .environment(variables)
            .run()
            .await?;
        if ended.status.success() {
            return Ok(());
        }
        Err(HookError::Failed {
            program: program.to_owned(),
            status: ended.status,
            errors: ended.errors,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use longshore_protocol::Generation;
    use tokio::time;

    use super::*;

    /// The state of a process, `Z` where nobody has asked how it ended.
    fn state(pid: &str) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let (program, pids) = (dir.path().join("hook"), dir.path().join("pids"));
        // One child in the background, which holds nothing of the hook's, and one that the hook waits for.
        let script = format!(
            "#!/bin/sh\nsleep 1000 >/dev/null 2>&1 &\necho $$ $! > {0}.new\nmv {0}.new {0}\nsleep 1000\n",
            pids.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let holding = Holding::new(Generation::from(1), "c0ffee".into(), []).unwrap();
        let mut timeout = Duration::from_millis(300);
        // A slow machine needs longer until the hook hangs.
        let error = loop {
            let hooks = Hooks {
                before: Some(program.clone()),
                after: None,
                timeout,
            };
            let error = hooks.before(&holding).await.unwrap_err();
            if pids.exists() || timeout > Duration::from_mins(1) {
                break error.to_string();
            }
            timeout *= 2;
        };
        let expected = format!(
            "{} was killed after {timeout:?} without an end",
            program.display()
        );
        assert_eq!(error, expected);
        let pids = fs::read_to_string(&pids).unwrap();
        let ended = async {
            for pid in pids.split_whitespace() {
                while !matches!(state(pid), None | Some('Z' | 'X')) {
                    time::sleep(Duration::from_millis(10)).await;
                }
            }
        };
        time::timeout(Duration::from_secs(20), ended)
            .await
            .unwrap_or_else(|_| panic!("{pids} run on"));
    }
}
