//! An agent as a process, applying to a directory unless it is told otherwise.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, ensure};
use longshore_protocol::api::CreatedToken;

use crate::{Process, process, programs, wait::eventually};

const LOG: &str = "LONGSHORE_AGENT_LOG";
const RUNTIME: &str = "--runtime";

/// The file in which the template's page arrives.
pub const PAGE: &str = "v1.configmap.hello.page.yaml";

/// A device: its state, and the agent's process while it runs.
#[derive(Debug)]
pub struct Agent {
    name: String,
    home: PathBuf,
    join: [String; 3],
    /// Beside what every device has. They may name a runtime; without, it is a directory.
    arguments: Vec<OsString>,
    process: Option<Process>,
}

impl Agent {
    /// Starts the agent of a new device with everything below `home`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(home: &Path, name: &str, token: &CreatedToken) -> Result<Self> {
        Self::start_with(home, name, token, Vec::new())
    }

    /// The same with this runtime and its settings: what follows `--runtime`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start_on(
        home: &Path,
        name: &str,
        token: &CreatedToken,
        runtime: &[&str],
    ) -> Result<Self> {
        let arguments = [RUNTIME].iter().chain(runtime);
        Self::start_with(home, name, token, arguments.map(Into::into).collect())
    }

    /// The same with further arguments.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start_with(
        home: &Path,
        name: &str,
        token: &CreatedToken,
        arguments: Vec<OsString>,
    ) -> Result<Self> {
        fs::create_dir_all(home).context("make the device's directory")?;
        let mut agent = Self {
            name: name.to_owned(),
            home: home.to_owned(),
            join: [
                token.server.clone(),
                token.ca_fingerprint.to_string(),
                token.secret.clone(),
            ],
            arguments,
            process: None,
        };
        agent.start_again()?;
        Ok(agent)
    }

    /// Starts the agent with the state of before.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.kill();
        let [server, fingerprint, secret] = &self.join;
        let mut command = Command::new(programs::find("longshore-agent")?);
        command
            .args(["--server", server, "--ca-fingerprint", fingerprint])
            .args(["--token", secret, "--name", &self.name])
            .arg("--state-dir")
            .arg(self.state())
            .args(["--log-format", "text"])
            .args(&self.arguments)
            .env(LOG, process::log_filter(LOG, "debug"));
        if !self.arguments.iter().any(|it| it == RUNTIME) {
            command
                .args([RUNTIME, "directory", "--directory"])
                .arg(self.directory());
        }
        let log = self.home.join("agent.log");
        let name = format!("longshore-agent {}", self.name);
        self.process = Some(Process::start(&name, &mut command, &log)?);
        Ok(())
    }

    /// Kills the agent.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.be_quiet(true);
        }
        self.process = None;
    }

    /// The process.
    ///
    /// # Errors
    /// Where it was killed.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the agent was stopped")
    }

    /// Waits until the agent ends by itself.
    ///
    /// # Errors
    /// Where it does not in time.
    pub async fn exit(&mut self) -> Result<ExitStatus> {
        self.process()?.exit().await
    }

    /// Asks the agent to stop, and waits for that.
    ///
    /// # Errors
    /// Where it does not stop in time or not with success.
    pub async fn stop(&mut self) -> Result<()> {
        let status = self.process()?.stop().await?;
        ensure!(status.success(), "the agent ended with {status}");
        self.kill();
        Ok(())
    }

    /// What the agent printed in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("agent.log")).unwrap_or_default()
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    /// The directory that it applies to.
    pub fn directory(&self) -> PathBuf {
        self.home.join("manifests")
    }

    /// The manifests in the directory, by file name; none where it is not there.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn manifests(&self) -> Result<BTreeMap<String, String>> {
        let mut manifests = BTreeMap::new();
        let Ok(entries) = fs::read_dir(self.directory()) else {
            return Ok(manifests);
        };
        for entry in entries {
            let entry = entry.context("read the directory")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let text = fs::read_to_string(entry.path()).with_context(|| name.clone())?;
            manifests.insert(name, text);
        }
        Ok(manifests)
    }

    /// One manifest.
    ///
    /// # Errors
    /// Where there is no such file.
    pub fn manifest(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.directory().join(file)).with_context(|| file.to_owned())
    }

    /// Waits until a file of the directory contains a text.
    ///
    /// # Errors
    /// Where it does not in time.
    pub async fn shows(&self, file: &str, text: &str) -> Result<()> {
        eventually(
            &format!("`{text}` in {file} of {}", self.name),
            async || {
                let manifest = self.manifest(file)?;
                ensure!(manifest.contains(text), "{manifest}");
                Ok(())
            },
        )
        .await
    }

    /// Waits until the template's page contains a text.
    ///
    /// # Errors
    /// Where it does not in time.
    pub async fn page_shows(&self, text: &str) -> Result<()> {
        self.shows(PAGE, text).await
    }
}
