//! A controller that follows a fleet repo, with everything in one temporary directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use longshore_protocol::api::{Approval, CreatedToken};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Agent, Api, Controller, ControllerOptions, FleetRepo,
    api::{FLEET, OPERATOR},
    cli, programs,
    wait::eventually,
};

/// How a world begins.
#[derive(Clone, Debug, Default)]
pub struct WorldOptions {
    /// How to start the controller.
    pub controller: ControllerOptions,
    /// Whether the controller gets the repo as a `file://` URL, which it polls instead of watching it.
    pub by_url: bool,
    /// Whether the repo begins empty.
    pub empty: bool,
    /// Whether the controller hosts the repo.
    pub hosted: bool,
}

/// A small world.
#[derive(Debug)]
pub struct World {
    /// The controller.
    pub controller: Controller,
    /// The fleet repo.
    pub repo: FleetRepo,
    /// The administrator's API.
    pub api: Api,
    /// The secret of the fleet's webhook.
    pub webhook_secret: String,
    /// The path of the fleet's webhook.
    pub webhook_path: String,
    directory: TempDir,
}

impl World {
    /// A world with the embedded store and the template.
    ///
    /// # Errors
    /// Where something does not start.
    pub async fn start() -> Result<Self> {
        Self::with(WorldOptions::default()).await
    }

    /// A world of this kind.
    ///
    /// # Errors
    /// Where something does not start.
    pub async fn with(options: WorldOptions) -> Result<Self> {
        let directory = new_directory()?;
        if options.hosted {
            return Self::hosted(directory, options.controller).await;
        }
        let repo = if options.empty {
            FleetRepo::empty(directory.path())?
        } else {
            FleetRepo::from_template(directory.path())?
        };
        let address = if options.by_url {
            repo.url()
        } else {
            repo.bare().display().to_string()
        };
        Self::around(directory, repo, &address, options.controller).await
    }

    /// A world in `directory` with this repo, which the controller gets as `address`.
    ///
    /// # Errors
    /// Where something does not start.
    pub async fn around(
        directory: TempDir,
        repo: FleetRepo,
        address: &str,
        options: ControllerOptions,
    ) -> Result<Self> {
        let data = directory.path().join("controller");
        let controller = Controller::start(&data, options).await?;
        let api = controller.api()?;
        let created = api.create_fleet(FLEET, address).await?;
        Ok(Self {
            controller,
            repo,
            api,
            webhook_secret: created.webhook_secret,
            webhook_path: created.webhook_path,
            directory,
        })
    }

    async fn hosted(directory: TempDir, options: ControllerOptions) -> Result<Self> {
        let data = directory.path().join("controller");
        let controller = Controller::start(&data, options).await?;
        let api = controller.api()?;
        let created = api.create_fleet(FLEET, "").await?;
        let mut repos = fs::read_dir(data.join("hosted").join(OPERATOR)).context("hosted repos")?;
        let bare = repos.next().context("no hosted repo")??.path();
        let url = api.with_credentials(&created.fleet.repo);
        let repo = FleetRepo::hosted(directory.path(), bare, &url, &data.join("ca.pem"))?;
        Ok(Self {
            controller,
            repo,
            api,
            webhook_secret: created.webhook_secret,
            webhook_path: created.webhook_path,
            directory,
        })
    }

    /// Everything is below it.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Starts the agent of a new device.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn agent(&self, name: &str, token: &CreatedToken) -> Result<Agent> {
        Agent::start(&self.path().join("agents").join(name), name, token)
    }

    /// An enrolled device that runs the template's kiosk overlay.
    ///
    /// # Errors
    /// Where it does not get there.
    pub async fn enrolled(&self, name: &str) -> Result<Agent> {
        let token = self.api.create_token(Approval::Automatic).await?;
        self.enrolled_with(name, &token).await
    }

    /// The same with this token.
    ///
    /// # Errors
    /// Where it does not get there.
    pub async fn enrolled_with(&self, name: &str, token: &CreatedToken) -> Result<Agent> {
        let mut agent = self.agent(name, token)?;
        eventually(&format!("{name} enrolled and in sync"), async || {
            agent.process()?.check()?;
            let device = self.api.device(name).await?;
            anyhow::ensure!(crate::api::is_in_sync(&device), "{device:#?}");
            Ok(())
        })
        .await?;
        Ok(agent)
    }

    /// Gives a device's folder in the working copy an overlay of its own, which holds one object `own` with the
    /// text `content`.
    ///
    /// # Errors
    /// Where there is no such device.
    pub fn give_own_overlay(&self, device: &str, content: &str) -> Result<()> {
        let copy = self.repo.copy();
        let file = format!("devices/{device}/device.yaml");
        let text: String = copy
            .read(&file)?
            .lines()
            .filter(|line| !line.trim_start().starts_with("overlay:"))
            .flat_map(|line| [line, "\n"])
            .collect();
        copy.write(&file, text)?;
        copy.write(
            &format!("devices/{device}/kustomization.yaml"),
            "resources:\n  - own.yaml\n",
        )?;
        copy.write(&format!("devices/{device}/own.yaml"), own_object(content))
    }

    /// Runs `longshore` against this world's controller.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub async fn cli(&self, arguments: &[&str]) -> Result<cli::Output> {
        cli::run(self.controller.data_dir(), arguments).await
    }

    /// The same with `--output json`, where it succeeds.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn cli_json(&self, arguments: &[&str]) -> Result<Value> {
        cli::json(self.controller.data_dir(), arguments).await
    }
}

/// A place for a world.
///
/// # Errors
/// Where the file system fails.
pub fn new_directory() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("longshore-e2e.")
        .tempdir()
        .context("make a temporary directory")
}

impl Drop for World {
    /// Removes the directory even where a `git` that a killed controller left behind still writes to it.
    fn drop(&mut self) {
        self.controller.end();
        for _ in 0..100 {
            match fs::remove_dir_all(self.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    thread::sleep(Duration::from_millis(20));
                }
                _ => return,
            }
        }
    }
}

/// The file of [`own_object`] on a device.
pub const OWN: &str = "v1.configmap.own.own.yaml";

/// A `ConfigMap` named `own` in the namespace `own` with this content.
pub fn own_object(content: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: own\n  namespace: own\ndata:\n  content: \"{content}\"\n"
    )
}

/// The program that stands in for kustomize and misbehaves on demand.
///
/// # Errors
/// Where it is not built.
pub fn kustomize_stub() -> Result<PathBuf> {
    programs::find("kustomize-stub")
}
