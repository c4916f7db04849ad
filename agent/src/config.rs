//! The settings: flags over environment variables over one TOML file over defaults, resolved once.
//!
//! The keys of the file are the flags without their dashes in front; the variables are the flags in capitals
//! behind `LONGSHORE_AGENT_`. Once the device is enrolled, what says where it belongs does not count any more: that
//! is then in the state directory. How to get there (`--proxy`, `--no-proxy`, `--ca`) does.

mod error;
mod file;
mod last_good;
mod resolve;
mod values;

use std::{path::PathBuf, sync::Arc};

use clap::{Args, Parser, Subcommand};
use longshore_protocol::{DeviceName, Digest};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::Targets;
use url::Url;

use self::values::{Line, Period, SecretName};
use crate::{
    clock::Clock,
    logs::Format,
    network::{Network, proxy::Proxies},
    runtime::command::CommandSettings,
    tls::Trust,
    update::Policy,
};

pub use error::ConfigError;
pub use last_good::{LastGood, Origin, Refused, Standing};

const EXIT_CODES: &str = "\
Exit codes:
  0  stopped on request, or the device was decommissioned
  1  something failed that the other codes do not name
  2  the settings are wrong or incomplete
  3  the controller does not know the provisioning token
  4  the device was rejected or decommissioned while it waited for approval
  5  the controller refuses to enroll the device as it asks: its name is taken, say
  6  the server is not the one whose --ca-fingerprint was given
  7  the state directory cannot be used, or another agent runs on it";

/// The command line.
#[derive(Clone, Debug, Parser)]
#[command(name = "longshore-agent", version, after_help = EXIT_CODES)]
#[command(
    about = "Runs what the fleet repo says this device should run, with or without a network."
)]
#[command(
    long_about = "Runs what the fleet repo says this device should run, with or without a network.\n\n\
    The first start needs --server, --ca-fingerprint and a token, all of which `longshore tokens create` \
    prints as one command. Every later start needs none of them."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    given: Given,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Print the resolved settings as TOML, without secrets, and exit.
    Config,
    /// Look for what keeps this device from its work, say what to do about it, and exit, with 1 where something is
    /// in the way.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What one source says. The file has the same shape as the command line.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Given {
    /// The TOML file with settings [default: /etc/longshore/agent.toml, where it exists].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_CONFIG",
        value_name = "FILE"
    )]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Where to enroll: the controller's public address, `https://host:port`.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_SERVER",
        value_name = "URL"
    )]
    server: Option<Url>,
    /// The SHA-256 digest of the controller's root certificate in DER form, `sha256:<hex>`.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_CA_FINGERPRINT",
        value_name = "DIGEST"
    )]
    ca_fingerprint: Option<Digest>,
    /// Root certificates in PEM that are trusted instead of a fingerprint: the controller's, or those of a proxy that
    /// looks into TLS. Once the device is enrolled they count beside those that the controller gave.
    #[arg(long, global = true, env = "LONGSHORE_AGENT_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The HTTP proxy to go through, `http://[USER:PASSWORD@]HOST:PORT` or `https://…`, or `none` [default: what
    /// `HTTPS_PROXY` or `ALL_PROXY` says]. Other users of the machine can see arguments: prefer the file.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_PROXY",
        hide_env_values = true,
        value_name = "URL"
    )]
    proxy: Option<SecretString>,
    /// What to reach without the proxy: names, which stand for their subdomains too, addresses, networks, each with
    /// `:PORT` where it is for one port only; `*` for everything [default: what `NO_PROXY` says].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_NO_PROXY",
        value_name = "LIST"
    )]
    no_proxy: Option<String>,
    /// The provisioning token. Other users of the machine can see arguments: prefer --token-file.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<SecretString>,
    /// A file with the provisioning token [default: `token` in the state directory, which the agent removes once
    /// the device is enrolled].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_TOKEN_FILE",
        value_name = "FILE"
    )]
    token_file: Option<PathBuf>,
    /// The name to ask for [default: the host's name].
    #[arg(long, global = true, env = "LONGSHORE_AGENT_NAME", value_name = "NAME")]
    name: Option<DeviceName>,
    /// Where the agent keeps its identity and its ledger [default: /var/lib/longshore-agent].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_STATE_DIR",
        value_name = "DIR"
    )]
    state_dir: Option<PathBuf>,
    /// What to apply manifests to [default: directory].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_RUNTIME",
        value_name = "RUNTIME"
    )]
    runtime: Option<RuntimeKind>,
    /// The directory of the directory runtime, such as /etc/microshift/manifests.d/longshore
    /// [default: `manifests` in the state directory].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_DIRECTORY",
        value_name = "DIR"
    )]
    directory: Option<PathBuf>,
    /// Keep who the device is in this Secret, too, so that a pod is the same device on every node. In the pod's own
    /// namespace, or the kubeconfig's.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_IDENTITY_SECRET",
        value_name = "NAME"
    )]
    identity_secret: Option<SecretName>,
    /// The kube runtime's kubeconfig [default: the pod's service account, $KUBECONFIG, ~/.kube/config, or the one
    /// that MicroShift or k3s wrote on this machine].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_KUBECONFIG",
        value_name = "FILE"
    )]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_CONTEXT",
        value_name = "NAME"
    )]
    context: Option<String>,
    /// Confines the kube runtime to this namespace: what belongs to the cluster or to another namespace is refused
    /// [default: the whole cluster].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_NAMESPACE",
        value_name = "NAMESPACE"
    )]
    namespace: Option<String>,
    /// The `podman` program of the podman runtime [default: `podman`, as found in PATH].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_PODMAN",
        value_name = "PROGRAM"
    )]
    podman: Option<PathBuf>,
    /// How the directory runtime tells what left the set [default: plain].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_LAYOUT",
        value_name = "LAYOUT"
    )]
    layout: Option<Layout>,
    /// The program of the command runtime with its arguments, such as `kubectl apply -f -`, split into words as a
    /// shell would; no shell is involved.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_COMMAND",
        value_name = "PROGRAM [ARGUMENT…]"
    )]
    command: Option<Line>,
    /// How long that program may take, such as `90s` [default: 5m].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_COMMAND_TIMEOUT",
        value_name = "DURATION"
    )]
    command_timeout: Option<Period>,
    /// After how long that program is run again although nothing changed, such as `1h` [default: never].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_COMMAND_INTERVAL",
        value_name = "DURATION"
    )]
    command_interval: Option<Period>,
    /// When updates may begin, `CRON TIMEZONE for DURATION`: "0 2 * * 6 Europe/Madrid for 3h". May be given
    /// several times [default: at any time].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_UPDATE_WINDOW",
        value_name = "WINDOW",
        value_delimiter = ';'
    )]
    update_window: Vec<String>,
    /// How long a new set may take to become healthy before the last good one comes back, such as 10m, or
    /// `never` [default: 10m].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_PROGRESS_DEADLINE",
        value_name = "DURATION"
    )]
    progress_deadline: Option<String>,
    /// A program to run before an update begins. Where it fails, the update waits, and is tried again.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_BEFORE_UPDATE",
        value_name = "PROGRAM"
    )]
    before_update: Option<PathBuf>,
    /// A program to run after an update, once it is healthy. Where it fails, the update counts as not healthy.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_AFTER_UPDATE",
        value_name = "PROGRAM"
    )]
    after_update: Option<PathBuf>,
    /// How long each of these two may run [default: 5m].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_HOOK_TIMEOUT",
        value_name = "DURATION"
    )]
    hook_timeout: Option<Period>,
    /// A directory of files with facts about this device: `*.yaml`, `*.toml`, or lines `name=value`
    /// [default: /etc/longshore/facts.d].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_FACTS_DIR",
        value_name = "DIR"
    )]
    facts_dir: Option<PathBuf>,
    /// How long a settings' file that was changed may take to connect before the one that connected last comes back,
    /// or `never` [default: 10m].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_CONNECT_DEADLINE",
        value_name = "DURATION"
    )]
    connect_deadline: Option<String>,
    /// How log lines look [default: auto, text on a terminal and JSON otherwise].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_LOG_FORMAT",
        value_name = "FORMAT"
    )]
    log_format: Option<Format>,
    /// What to log: a level, or levels by module such as `info,longshore_agent::link=debug` [default: info].
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_AGENT_LOG",
        value_name = "FILTER"
    )]
    log: Option<String>,
}

/// The runtimes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RuntimeKind {
    /// A directory of manifests with a kustomization.yaml.
    #[default]
    Directory,
    /// A Kubernetes API server: Kubernetes, MicroShift, OpenShift, k3s.
    Kube,
    /// Containers, through `podman kube play`.
    Podman,
    /// A program of your own.
    Command,
}

/// What a directory is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Layout {
    /// For whoever reads its kustomization.yaml.
    #[default]
    Plain,
    /// For MicroShift: what left the set is named in the `delete` folder beside it.
    Microshift,
}

/// What the process is to do.
#[derive(Debug)]
pub enum Task {
    /// Print these settings, which are TOML.
    Print(String),
    /// Run with these settings.
    Run(Box<Settings>),
    /// Look at everything that these settings, or what is wrong with them, lead to.
    Examine {
        /// The settings.
        settings: Box<Result<Settings, ConfigError>>,
        /// Whether programs read what is found.
        json: bool,
    },
}

/// The resolved settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where identity and ledger are.
    pub state_dir: PathBuf,
    /// The Secret that keeps the identity, too.
    pub identity_secret: Option<IdentitySecret>,
    /// What to apply to.
    pub runtime: RuntimeSettings,
    /// How careful updates are.
    pub updates: Policy,
    /// Where to enroll.
    pub server: Option<Url>,
    /// How to know that server.
    pub trust: Option<Trust>,
    /// Which proxy to go through.
    pub proxies: Proxies,
    /// What to enroll with.
    pub token: Option<TokenSource>,
    /// Under which name.
    pub name: Option<DeviceName>,
    /// Where the device's owner puts facts.
    pub facts_dir: PathBuf,
    /// Where these settings come from.
    pub origin: Origin,
    /// What to log.
    pub log: Targets,
    /// And how.
    pub log_format: Format,
}

impl Settings {
    /// How to get to the controller, by this clock.
    pub(crate) fn network(&self, clock: Clock) -> Network {
        Network {
            clock,
            proxies: Arc::new(self.proxies.clone()),
            roots: match &self.trust {
                Some(Trust::Bundle(pem)) => Some(pem.as_str().into()),
                _ => None,
            },
        }
    }
}

/// A runtime with its settings.
#[derive(Clone, Debug)]
pub enum RuntimeSettings {
    /// Write manifests to this directory.
    Directory(PathBuf),
    /// Apply manifests to an API server.
    Kube(KubeSettings),
    /// The same, and name what left the set where `MicroShift` looks for it.
    MicroShift(PathBuf),
    /// Hand them to a program.
    Command(CommandSettings),
    /// Run them with `podman`.
    Podman(PodmanSettings),
}

/// The settings of the podman runtime.
#[derive(Clone, Debug)]
pub struct PodmanSettings {
    /// The program.
    pub program: PathBuf,
    /// The agent's state directory, for what must outlive a restart.
    pub state: PathBuf,
}

/// The settings of the kube runtime.
#[derive(Clone, Debug, Default)]
pub struct KubeSettings {
    /// The kubeconfig, where one is named.
    pub kubeconfig: Option<PathBuf>,
    /// Its context, where it is not the current one.
    pub context: Option<String>,
    /// The one namespace that may be used, where not all may.
    pub namespace: Option<String>,
    /// The state directory.
    pub state: PathBuf,
}

/// A Secret that keeps who the device is.
#[derive(Clone, Debug)]
pub struct IdentitySecret {
    /// Its name.
    pub name: String,
    /// How to reach its API server.
    pub cluster: KubeSettings,
}

/// Where the provisioning token comes from. The file is read only when the token is needed, so that it may
/// be gone once the device is enrolled.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// From a flag, a variable or the settings' file.
    Inline(SecretString),
    /// From a file of its own.
    File(PathBuf),
}

impl Cli {
    /// Reads the file and resolves. Where the agent is to run and the file is of no use, those settings count that
    /// connected last.
    pub fn resolve(self) -> Result<Task, ConfigError> {
        Ok(match self.command {
            Some(Command::Config) => Task::Print(resolve::resolve(self.given)?.shown),
            Some(Command::Doctor { json }) => Task::Examine {
                settings: Box::new(resolve::with_last_good(&self.given)),
                json,
            },
            None => Task::Run(Box::new(resolve::with_last_good(&self.given)?)),
        })
    }
}
