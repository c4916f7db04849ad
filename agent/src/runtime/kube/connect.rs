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
/// Where a pod finds who vouches for its API server.
const SERVICE_AUTHORITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const CONNECTING: Duration = Duration::from_secs(10);

/// A way to the API server.
#[derive(Debug)]
pub(super) struct Connection {
    pub api: Api,
    /// Where objects go that name no namespace.
    pub namespace: String,
    /// What the way there was like.
    pub kubeconfig: Option<Digest>,
}

/// Reads the settings' kubeconfig, or what there is without one, and makes a client. Nothing is sent.
pub(super) async fn connect(settings: &KubeSettings) -> Result<Connection, String> {
    let kubeconfig = fingerprint(settings);
    let (config, is_pod) = config(settings).await?;
    // A pod's own namespace is where it stands, and no hint to where a fleet's objects go.
    let namespace = if is_pod {
        "default".to_owned()
    } else {
        config.default_namespace.clone()
    };
    Ok(Connection {
        api: client(config)?,
        namespace,
        kubeconfig,
    })
}

/// A client, and the namespace that the agent itself is at home in.
pub(super) async fn home(settings: &KubeSettings) -> Result<(Api, String), String> {
    let (config, _is_pod) = config(settings).await?;
    let namespace = config.default_namespace.clone();
    Ok((client(config)?, namespace))
}

fn client(mut config: Config) -> Result<Api, String> {
    // Tries again are the business of whoever knows what they are for.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECTING);
    let client = Client::try_from(config).map_err(|error| causes(&error))?;
    Ok(Api::new(client))
}

/// How to connect, and whether that is as a pod.
async fn config(settings: &KubeSettings) -> Result<(Config, bool), String> {
    if let Some(path) = file(settings) {
        let read = Kubeconfig::read_from(&path)
            .map_err(|error| format!("{}: {}", path.display(), causes(&error)))?;
        return Ok((by_kubeconfig(settings, read).await?, false));
    }
    match (Config::incluster(), Kubeconfig::read()) {
        (Ok(config), _) => Ok((config, true)),
        (Err(_), Ok(read)) => Ok((by_kubeconfig(settings, read).await?, false)),
        (Err(error), Err(_)) => Err(format!(
            "there is no kubeconfig, and this is no pod ({}): name a kubeconfig with --kubeconfig",
            causes(&error)
        )),
    }
}

/// What the way to the API server is like now: API servers that renew their certificates write new kubeconfigs, and
/// others renew the files that a kubeconfig names.
pub(super) fn fingerprint(settings: &KubeSettings) -> Option<Digest> {
    let (paths, read) = match file(settings) {
        Some(path) => (vec![path.clone()], Kubeconfig::read_from(path)),
        None if Config::incluster().is_ok() => {
            let authority = std::fs::read(SERVICE_AUTHORITY).ok()?;
            return Some(Digest::of(&authority));
        }
        None => (usual_files(), Kubeconfig::read()),
    };
    let kubeconfig = read.ok()?;
    let named = named_files(&kubeconfig).map(PathBuf::from);
    // As they are on disk: what was parsed may have no order.
    let content = |path| std::fs::read(path).unwrap_or_default();
    let parts: Vec<_> = paths.into_iter().chain(named).map(content).collect();
    Some(Digest::of_parts(parts.iter().map(Vec::as_slice)))
}

/// Where a kubeconfig is that nobody named.
fn usual_files() -> Vec<PathBuf> {
    match std::env::var_os("KUBECONFIG") {
        Some(paths) => std::env::split_paths(&paths).collect(),
        None => std::env::home_dir()
            .map(|home| home.join(".kube/config"))
            .into_iter()
            .collect(),
    }
}

/// The files that a kubeconfig names and that are read once. Token files are read again and again.
fn named_files(kubeconfig: &Kubeconfig) -> impl Iterator<Item = &str> {
    let clusters = kubeconfig
        .clusters
        .iter()
        .filter_map(|it| it.cluster.as_ref());
    let users = kubeconfig
        .auth_infos
        .iter()
        .filter_map(|it| it.auth_info.as_ref());
    let authorities = clusters.filter_map(|it| it.certificate_authority.as_deref());
    let identities =
        users.flat_map(|it| [it.client_certificate.as_deref(), it.client_key.as_deref()]);
    authorities.chain(identities.flatten())
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
