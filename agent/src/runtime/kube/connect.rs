//! How to reach the API server: by a kubeconfig, or as a pod.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use longshore_protocol::Digest;

use super::api::Api;
use crate::{causes, config::KubeSettings};

/// Where MicroShift and k3s keep the kubeconfig of the machine's own administrator.
const LOCAL: [&str; 2] = [
    "/var/lib/microshift/resources/kubeadmin/kubeconfig",
    "/etc/rancher/k3s/k3s.yaml",
];
const CONNECTING: Duration = Duration::from_secs(10);

/// A way to the API server.
#[derive(Debug)]
pub(super) struct Connection {
    pub api: Api,
    /// Where objects go that name no namespace.
    pub namespace: String,
    /// What the kubeconfig was like; none for a pod.
    pub kubeconfig: Option<Digest>,
}

/// Reads the settings' kubeconfig, or what there is without one, and makes a client. Nothing is sent.
pub(super) async fn connect(settings: &KubeSettings) -> Result<Connection, String> {
    let kubeconfig = fingerprint(settings);
    let mut config = match file(settings) {
        Some(path) => {
            let read = Kubeconfig::read_from(&path)
                .map_err(|error| format!("{}: {}", path.display(), causes(&error)))?;
            by_kubeconfig(settings, read).await?
        }
        None => match Config::incluster() {
            Ok(mut config) => {
                // Its own namespace is where a pod stands, and no hint to where a fleet's objects go.
                "default".clone_into(&mut config.default_namespace);
                config
            }
            Err(error) => match Kubeconfig::read() {
                Ok(read) => by_kubeconfig(settings, read).await?,
                Err(_) => {
                    return Err(format!(
                        "there is no kubeconfig, and this is no pod ({}): name a kubeconfig with --kubeconfig",
                        causes(&error)
                    ));
                }
            },
        },
    };
    // Tries again are the business of whoever knows what they are for.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECTING);
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config).map_err(|error| causes(&error))?;
    Ok(Connection {
        api: Api::new(client),
        namespace,
        kubeconfig,
    })
}

/// What the kubeconfig is like now: API servers that renew their certificates write new ones.
pub(super) fn fingerprint(settings: &KubeSettings) -> Option<Digest> {
    let content = std::fs::read(file(settings)?).ok()?;
    Some(Digest::of(&content))
}

fn file(settings: &KubeSettings) -> Option<PathBuf> {
    if settings.kubeconfig.is_some() {
        return settings.kubeconfig.clone();
    }
    // A pod and a person's own kubeconfig go first; this is for the machine's service.
    if Config::incluster().is_ok() || Kubeconfig::read().is_ok() {
        return None;
    }
    LOCAL
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
        .map(Path::to_owned)
}

async fn by_kubeconfig(settings: &KubeSettings, read: Kubeconfig) -> Result<Config, String> {
    let options = KubeConfigOptions {
        context: settings.context.clone(),
        ..KubeConfigOptions::default()
    };
    Config::from_custom_kubeconfig(read, &options)
        .await
        .map_err(|error| format!("the kubeconfig is of no use: {}", causes(&error)))
}
