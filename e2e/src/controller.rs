//! The controller as a process.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{Api, Process, api::OPERATOR, process, programs, repo, wait::eventually};

/// How to start a controller.
#[derive(Clone, Debug, Default)]
pub struct ControllerOptions {
    /// `postgres://…`; the embedded store where absent.
    pub database_url: Option<String>,
    /// `--kustomize`: the program that renders.
    pub kustomize: Option<PathBuf>,
    /// Where it listens, public and edge; anywhere where absent.
    pub listens: Option<(SocketAddr, SocketAddr)>,
    /// Further arguments, such as `--poll-interval 1h`.
    pub arguments: Vec<OsString>,
    /// Further variables of the environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// A controller: its data directory, and the process while it runs.
#[derive(Debug)]
pub struct Controller {
    data_dir: PathBuf,
    options: ControllerOptions,
    /// Where it listened first; it does again after a restart, for agents know the address.
    listens: Option<(SocketAddr, SocketAddr)>,
    process: Option<Process>,
    quiet: bool,
}

impl Controller {
    /// Starts a controller with a fresh data directory, and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not become ready.
    pub async fn start(data_dir: &Path, options: ControllerOptions) -> Result<Self> {
        let mut controller = Self {
            data_dir: data_dir.to_owned(),
            listens: options.listens,
            options,
            process: None,
            quiet: false,
        };
        controller.start_again().await?;
        Ok(controller)
    }

    /// Prepares one that listens at these addresses, public and edge, whatever its URLs say.
    pub fn at(
        data_dir: &Path,
        options: ControllerOptions,
        listens: (SocketAddr, SocketAddr),
    ) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            options,
            listens: Some(listens),
            process: None,
            quiet: false,
        }
    }

    /// Starts it with the data directory and the addresses of before, and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not become ready.
    pub async fn start_again(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Starts it, and waits for nothing.
    ///
    /// # Errors
    /// Where the process cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        self.forget_process();
        // They are written when it is ready, so those of an earlier life must not be taken for its own.
        for name in ["address", "edge-address"] {
            drop(fs::remove_file(self.data_dir.join(name)));
        }
        let any = || SocketAddr::from(([127, 0, 0, 1], 0));
        let (public, edge) = self.listens.unwrap_or_else(|| (any(), any()));
        let mut command = Command::new(programs::find("longshore-controller")?);
        repo::isolate(&mut command);
        command
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--public-listen", &public.to_string()])
            .args(["--edge-listen", &edge.to_string()])
            .args(["--log-format", "text"])
            .env(
                "LONGSHORE_LOG",
                process::log_filter("LONGSHORE_LOG", "info,longshore_controller=debug"),
            )
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().cloned());
        if let Some(url) = &self.options.database_url {
            command.arg("--database-url").arg(url);
        }
        if let Some(kustomize) = &self.options.kustomize {
            command.arg("--kustomize").arg(kustomize);
        }
        let log = self.data_dir.with_extension("log");
        self.process = Some(Process::start("longshore-controller", &mut command, &log)?);
        Ok(())
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// Where it ends, or does not become ready in time.
    pub async fn ready(&mut self) -> Result<()> {
        let (data_dir, known) = (self.data_dir.clone(), self.listens);
        let process = self.process()?;
        let listens = eventually("a ready controller", async || {
            process.check()?;
            let address = |name| -> Result<SocketAddr> {
                let text = fs::read_to_string(data_dir.join(name)).context(name)?;
                if let Some((public, _)) = known {
                    return Ok(public);
                }
                // It may be a URL.
                let address = text.trim().rsplit('/').find(|part| !part.is_empty());
                address
                    .unwrap_or_default()
                    .parse()
                    .with_context(|| text.clone())
            };
            let found = (address("address")?, address("edge-address")?);
            Ok(known.unwrap_or(found))
        })
        .await?;
        self.listens.get_or_insert(listens);
        let api = self.api()?;
        let process = self.process()?;
        eventually("an answering controller", async || {
            process.check()?;
            api.is_ready().await
        })
        .await
    }

    /// Asks it to stop, and waits for that.
    ///
    /// # Errors
    /// Where it does not stop in time or not with success.
    pub async fn stop(&mut self) -> Result<()> {
        let status = self.process()?.stop().await?;
        anyhow::ensure!(status.success(), "the controller ended with {status}");
        self.forget_process();
        Ok(())
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.forget_process();
    }

    /// Kills it for good, and shows its log unless that is to be kept quiet.
    pub fn end(&mut self) {
        self.forget_process();
        if !self.quiet {
            eprintln!(
                "---- longshore-controller\n{}",
                process::tail(&self.log(), process::SHOWN)
            );
        }
        self.quiet = true;
    }

    /// Stops it, and starts it again.
    ///
    /// # Errors
    /// Where either fails.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    fn forget_process(&mut self) {
        if let Some(process) = &mut self.process {
            process.be_quiet(true);
        }
        self.process = None;
    }

    /// The process.
    ///
    /// # Errors
    /// Where it was stopped.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the controller was stopped")
    }

    /// Keeps its log to itself at the end.
    pub fn be_quiet(&mut self) {
        self.quiet = true;
    }

    /// What it printed in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.data_dir.with_extension("log")).unwrap_or_default()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its public address, `host:port`.
    ///
    /// # Errors
    /// Where it was never ready.
    pub fn public(&self) -> Result<SocketAddr> {
        Ok(self.listens.context("the controller was never ready")?.0)
    }

    /// The address that devices connect to.
    ///
    /// # Errors
    /// Where it was never ready.
    pub fn edge(&self) -> Result<SocketAddr> {
        Ok(self.listens.context("the controller was never ready")?.1)
    }

    /// Its root certificates, in PEM.
    ///
    /// # Errors
    /// Where it was never ready.
    pub fn ca(&self) -> Result<Vec<u8>> {
        fs::read(self.data_dir.join("ca.pem")).context("read the root certificate")
    }

    /// Its API, as the administrator.
    ///
    /// # Errors
    /// Where it was never ready.
    pub fn api(&self) -> Result<Api> {
        let token = fs::read_to_string(self.data_dir.join("admin-token")).context("admin-token")?;
        Api::new(self.public()?, &self.ca()?, OPERATOR, token.trim())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.end();
    }
}
