//! The operator's command line.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{api::FLEET, programs, repo};

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Output {
    /// Itself, where the exit code is 0.
    ///
    /// # Errors
    /// Where it is not.
    pub fn success(self) -> Result<Self> {
        if self.code == 0 {
            Ok(self)
        } else {
            bail!("exit code {}: {}{}", self.code, self.stdout, self.stderr)
        }
    }
}

/// Runs `longshore` against the controller of this data directory.
///
/// # Errors
/// Where it cannot be started.
pub async fn run(data_dir: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = command(data_dir, arguments)?;
    let output = tokio::task::spawn_blocking(move || command.output())
        .await?
        .context("start longshore")?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The command that [`run`] runs.
///
/// # Errors
/// Where the program is not built.
pub fn command(data_dir: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(programs::find("longshore")?);
    repo::isolate(&mut command);
    command
        .args(arguments)
        .env("LONGSHORE_DATA_DIR", data_dir)
        .env("LONGSHORE_FLEET", FLEET)
        .env("XDG_CONFIG_HOME", data_dir);
    Ok(command)
}

/// The same with `--output json`, where it succeeds.
///
/// # Errors
/// Where it does not.
pub async fn json(data_dir: &Path, arguments: &[&str]) -> Result<Value> {
    let output = run(data_dir, &[arguments, &["--output", "json"]].concat())
        .await?
        .success()?;
    serde_json::from_str(&output.stdout).context(output.stdout)
}
