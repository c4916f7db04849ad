//! Several controllers on one PostgreSQL, behind one address, with everything in one temporary directory.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use longshore_protocol::api::{Approval, CreatedToken};
use tempfile::TempDir;

use crate::{
    Agent, Api, Balancer, Controller, ControllerOptions, FleetRepo,
    api::{FLEET, is_in_sync},
    postgres,
    wait::eventually,
    world::new_directory,
};

/// Controllers that share a database, and follow one fleet repo.
#[derive(Debug)]
pub struct Replicas {
    /// The controllers.
    pub controllers: Vec<Controller>,
    /// What stands before their public listeners.
    pub public: Balancer,
    /// What stands before their edge listeners.
    pub edge: Balancer,
    /// The fleet repo.
    pub repo: FleetRepo,
    /// Their database.
    pub database_url: String,
    directory: TempDir,
}

impl Replicas {
    /// Starts so many of them, one after the other, and makes a fleet at the first.
    ///
    /// # Errors
    /// Where something does not start.
    pub async fn start(count: usize) -> Result<Self> {
        let directory = new_directory()?;
        let repo = FleetRepo::from_template(directory.path())?;
        let database_url = postgres::new_database()?;
        let listens = (0..count)
            .map(|_| Ok((free_address()?, free_address()?)))
            .collect::<Result<Vec<_>>>()?;
        let public = Balancer::start(listens.iter().map(|it| it.0).collect()).await?;
        let edge = Balancer::start(listens.iter().map(|it| it.1).collect()).await?;
        let options = ControllerOptions {
            database_url: Some(database_url.clone()),
            arguments: [
                "--public-url",
                &format!("https://{}", public.address()),
                "--edge-url",
                &format!("wss://{}", edge.address()),
            ]
            .map(Into::into)
            .to_vec(),
            environment: vec![("LONGSHORE_SECRET_KEY".into(), "07".repeat(32).into())],
            ..ControllerOptions::default()
        };
        let controllers = listens
            .into_iter()
            .enumerate()
            .map(|(n, listens)| {
                let data = directory.path().join(format!("controller-{n}"));
                Controller::at(&data, options.clone(), listens)
            })
            .collect();
        let mut replicas = Self {
            controllers,
            public,
            edge,
            repo,
            database_url,
            directory,
        };
        for controller in &mut replicas.controllers {
            controller.start_again().await?;
        }
        let repo = replicas.repo.bare().display().to_string();
        replicas.api(0)?.create_fleet(FLEET, &repo).await?;
        Ok(replicas)
    }

    /// One of them.
    ///
    /// # Errors
    /// Where there are not so many.
    pub fn controller(&mut self, n: usize) -> Result<&mut Controller> {
        self.controllers.get_mut(n).context("a controller")
    }

    /// The API of one of them.
    ///
    /// # Errors
    /// Where it was never ready.
    pub fn api(&self, n: usize) -> Result<Api> {
        self.controllers.get(n).context("a controller")?.api()
    }

    /// Makes new connections of devices go to one of them first.
    ///
    /// # Errors
    /// Where there are not so many.
    pub fn prefer(&self, n: usize) -> Result<()> {
        let order = |address: fn(&Controller) -> Result<SocketAddr>| {
            let mut all = self
                .controllers
                .iter()
                .map(address)
                .collect::<Result<Vec<_>>>()?;
            anyhow::ensure!(n < all.len(), "there is no controller {n}");
            all.rotate_left(n);
            Ok::<_, anyhow::Error>(all)
        };
        self.public.prefer(order(Controller::public)?);
        self.edge.prefer(order(Controller::edge)?);
        Ok(())
    }

    /// Which of them works for the fleet.
    ///
    /// # Errors
    /// Where none does, or several say so.
    pub async fn holder(&self) -> Result<usize> {
        let mut holders = Vec::new();
        for n in 0..self.controllers.len() {
            // One that is down holds nothing.
            if let Ok(metrics) = self.api(n)?.metrics().await
                && metrics.count("leases") > 0
            {
                holders.push(n);
            }
        }
        match holders.as_slice() {
            [one] => Ok(*one),
            other => anyhow::bail!("{other:?} work for the fleet"),
        }
    }

    /// An enrolled device that runs the template's kiosk overlay, as the controller `n` sees it.
    ///
    /// # Errors
    /// Where it does not get there.
    pub async fn enrolled(&self, name: &str, n: usize) -> Result<Agent> {
        let api = self.api(n)?;
        let token = api.create_token(Approval::Automatic).await?;
        let mut agent = self.agent(name, &token)?;
        eventually(&format!("{name} enrolled and in sync"), async || {
            agent.process()?.check()?;
            let device = api.device(name).await?;
            anyhow::ensure!(device.connected && is_in_sync(&device), "{device:#?}");
            Ok(())
        })
        .await?;
        Ok(agent)
    }

    /// Starts the agent of a new device.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn agent(&self, name: &str, token: &CreatedToken) -> Result<Agent> {
        Agent::start(&self.path().join("agents").join(name), name, token)
    }

    /// Everything is below it.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        for controller in &mut self.controllers {
            controller.end();
        }
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

/// An address on which nobody listens.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind")?;
    listener.local_addr().context("bind")
}
