//! A world whose fleet repo is at a forge, to which the controller is connected.

use std::ops::{Deref, DerefMut};

use anyhow::{Result, ensure};
use longshore_protocol::api::connection::{Connect, ConnectForge, ForgeCredential, ForgeKind};
use reqwest::Method;

use super::{Forge, Host};
use crate::{ControllerOptions, FleetRepo, World, api::FLEET, world::new_directory};

/// How a world with a forge begins.
#[derive(Clone, Debug)]
pub struct ForgeOptions {
    /// Whose forge it is.
    pub host: Host,
    /// How often the controller looks by itself: webhooks alone bring news unless this is short.
    pub poll_interval: &'static str,
    /// Whether the controller is a GitHub App; else it has a user's token.
    pub app: bool,
    /// What is added to `spec` of `fleet.yaml` before the controller starts.
    pub settings: &'static str,
}

impl ForgeOptions {
    /// With the forge of `host`, a user's token, and webhooks only.
    pub fn at(host: Host) -> Self {
        Self {
            host,
            poll_interval: "1h",
            app: false,
            settings: "",
        }
    }
}

/// A world with a forge.
#[derive(Debug)]
pub struct ForgeWorld {
    world: World,
    /// The forge.
    pub forge: Forge,
}

impl Deref for ForgeWorld {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for ForgeWorld {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

impl ForgeWorld {
    /// A forge, a controller that is connected to it, and webhooks between them.
    ///
    /// # Errors
    /// Where something does not start.
    pub async fn start(options: ForgeOptions) -> Result<Self> {
        let directory = new_directory()?;
        let mut repo = FleetRepo::from_template(directory.path())?;
        let place = directory.path().join("forge");
        let forge = Forge::start(options.host, &place, &mut repo)?;
        if !options.settings.is_empty() {
            let copy = repo.copy();
            let file = "fleet.yaml";
            let text = copy.read(file)?;
            ensure!(text.contains("\nspec:\n"), "{text}");
            let with_settings = format!("\nspec:\n{}", options.settings);
            copy.write(file, text.replace("\nspec:\n", &with_settings))?;
            copy.publish("Say how to enroll")?;
        }
        let controller = ControllerOptions {
            arguments: vec!["--poll-interval".into(), options.poll_interval.into()],
            environment: vec![("SSL_CERT_FILE".into(), forge.ca().into())],
            ..ControllerOptions::default()
        };
        let address = forge.clone_url();
        let world = World::around(directory, repo, &address, controller).await?;
        let url = format!("{}{}", world.api.server(), world.webhook_path);
        forge.send_webhooks_to(&url, &world.controller.ca()?, &world.webhook_secret)?;
        let this = Self { world, forge };
        this.connect(options.app).await?;
        Ok(this)
    }

    /// Gives the controller its credential at the forge.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn connect(&self, app: bool) -> Result<()> {
        let credential = if app {
            let app = self.forge.app();
            ForgeCredential::App {
                id: app.id,
                installation: None,
                private_key: app.key.clone().into(),
            }
        } else {
            ForgeCredential::Token(self.forge.token().into())
        };
        let kind = match self.forge.host() {
            Host::GitHub => ForgeKind::GitHub,
            Host::GitLab => ForgeKind::GitLab,
            Host::Gitea => ForgeKind::Gitea,
        };
        let connect = Connect {
            forge: Some(ConnectForge {
                kind,
                url: None,
                repository: None,
                credential,
            }),
            git: None,
            force: false,
        };
        let path = format!("fleets/{FLEET}/connection");
        let answer = self.api.call(Method::PUT, &path, Some(&connect)).await?;
        ensure!(answer.status.is_success(), "{answer:?}");
        Ok(())
    }
}
