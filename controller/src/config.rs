//! Settings: a flag, an environment variable and a key of one TOML file each, resolved once.
//!
//! A flag wins over the environment, which wins over the file, which wins over the default. With no settings at
//! all the controller works in `./longshore-data`.

use std::{
    fs,
    net::SocketAddr,
    num::NonZero,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use longshore_fleet::RenderSettings;
use longshore_protocol::text::without_values;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::{ca::Supplied, certificates::Files, hosting::Limits};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "longshore-controller",
    version,
    about = "Longshore's control plane: follows fleet repos, renders overlays, pushes changes to devices",
    long_about = "Longshore's control plane: follows fleet repos, renders overlays, pushes changes to devices.\n\n\
        With no settings at all it works in ./longshore-data, with an embedded SQLite store and its own \
        certificate authority. Every setting is a flag, an environment variable and a key of one TOML file; \
        a flag wins over the environment, which wins over the file.",
    after_help = "Examples:\n  longshore-controller\n  longshore-controller --data-dir /var/lib/longshore --public-url https://longshore.example.com\n  longshore-controller --database-url postgres://longshore@db/longshore\n  longshore-controller config\n\n\
        Exit codes: 0 stopped as asked, 1 a failure that the log explains, 2 wrong settings."
)]
pub struct CommandLine {
    /// What to do; without it, run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// A TOML file with settings.
    #[arg(long, env = "LONGSHORE_CONFIG", global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What to do besides running.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Run the controller (the default).
    Run,
    /// Print the settings in force as TOML, secrets redacted.
    Config,
}

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

macro_rules! settings {
    ($($(#[$doc:meta])* [$($arg:tt)*] $name:ident: $type:ty,)*) => {
        /// Settings as they are given; every one may be absent.
        #[derive(Debug, Default, Args, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Settings {
            $($(#[$doc])* #[arg(global = true, long, $($arg)*)] pub $name: Option<$type>,)*
        }

        impl Settings {
            /// These settings, with `other`'s where one is absent.
            #[must_use]
            pub fn or(self, other: Self) -> Self {
                Self { $($name: self.$name.or(other.$name),)* }
            }
        }
    };
}

settings! {
    /// Where everything is kept [default: ./longshore-data]
    [env = "LONGSHORE_DATA_DIR", value_name = "DIR"] data_dir: PathBuf,
    /// The address of the public listener: API, enrollment, webhooks [default: 0.0.0.0:8443]
    [env = "LONGSHORE_PUBLIC_LISTEN", value_name = "ADDRESS"] public_listen: SocketAddr,
    /// The address of the edge listener, where devices connect; the public one's, to share it by host name [default: 0.0.0.0:8444]
    [env = "LONGSHORE_EDGE_LISTEN", value_name = "ADDRESS"] edge_listen: SocketAddr,
    /// The public listener's URL, as devices and operators reach it [default: from the listener]
    [env = "LONGSHORE_PUBLIC_URL", value_name = "URL"] public_url: String,
    /// The edge listener's URL, as devices reach it, such as `wss://edge.example.com:8444` [default: from the listener]
    [env = "LONGSHORE_EDGE_URL", value_name = "URL"] edge_url: String,
    /// Further host names and addresses in the listeners' certificates, separated by commas
    [env = "LONGSHORE_HOSTNAMES", value_name = "NAMES", value_delimiter = ','] hostnames: Vec<String>,
    /// Serve the public listener without TLS: only on a loopback address, or behind a proxy with --behind-proxy
    [env = "LONGSHORE_PLAIN_HTTP", num_args = 0..=1, default_missing_value = "true"] plain_http: bool,
    /// A proxy that ends TLS stands before the public listener
    [env = "LONGSHORE_BEHIND_PROXY", num_args = 0..=1, default_missing_value = "true"] behind_proxy: bool,
    /// The database: postgres://… or sqlite://… [default: SQLite in the data directory]
    [env = "LONGSHORE_DATABASE_URL", value_name = "URL", hide_env_values = true] database_url: String,
    /// 64 hex digits that tokens are derived from and secrets encrypted with [default: secret.key in the data directory]
    [env = "LONGSHORE_SECRET_KEY", value_name = "HEX", hide_env_values = true] secret_key: SecretText,
    /// How often repos are looked at without being asked to [default: 30s]
    [env = "LONGSHORE_POLL_INTERVAL", value_name = "DURATION"] poll_interval: Period,
    /// How often devices ping [default: 30s]
    [env = "LONGSHORE_HEARTBEAT", value_name = "DURATION"] heartbeat: Period,
    /// For how many days after its end a device's certificate is renewed, by its key; 0 for never [default: 90]
    [env = "LONGSHORE_RENEWAL_GRACE", value_name = "DAYS"] renewal_grace: u32,
    /// The trust domain of devices' SPIFFE ids [default: longshore]
    [env = "LONGSHORE_TRUST_DOMAIN", value_name = "NAME"] trust_domain: String,
    /// A certificate authority of your own: the issuing certificate and those above it, PEM
    [env = "LONGSHORE_CA_CHAIN", value_name = "FILE"] ca_chain: PathBuf,
    /// The issuing certificate's key, PEM (PKCS#8)
    [env = "LONGSHORE_CA_KEY", value_name = "FILE"] ca_key: PathBuf,
    /// The root certificates, PEM
    [env = "LONGSHORE_CA_ROOT", value_name = "FILE"] ca_root: PathBuf,
    /// A certificate of your own for the public listener: the chain, PEM [default: of the controller's authority]
    [env = "LONGSHORE_PUBLIC_CERT", value_name = "FILE"] public_cert: PathBuf,
    /// Its key, PEM
    [env = "LONGSHORE_PUBLIC_KEY", value_name = "FILE"] public_key: PathBuf,
    /// A certificate of your own for the edge listener: the chain, PEM [default: of the controller's authority]
    [env = "LONGSHORE_EDGE_CERT", value_name = "FILE"] edge_cert: PathBuf,
    /// Its key, PEM
    [env = "LONGSHORE_EDGE_KEY", value_name = "FILE"] edge_key: PathBuf,
    /// The program that renders: kustomize or kubectl [default: the first one in PATH]
    [env = "LONGSHORE_KUSTOMIZE", value_name = "FILE"] kustomize: PathBuf,
    /// How many builds run at once [default: one per processor]
    [env = "LONGSHORE_RENDER_PARALLELISM", value_name = "N"] render_parallelism: NonZero<usize>,
    /// How long one build may take [default: 30s]
    [env = "LONGSHORE_RENDER_TIMEOUT", value_name = "DURATION"] render_timeout: Period,
    /// How many MiB of memory one build may use [default: 1024]
    [env = "LONGSHORE_RENDER_MEMORY", value_name = "MIB"] render_memory: u64,
    /// Render without Landlock where the kernel has none, rather than not at all
    [env = "LONGSHORE_ALLOW_UNSANDBOXED", num_args = 0..=1, default_missing_value = "true"] allow_unsandboxed: bool,
    /// How many MiB one push to a hosted repo may have [default: 1024]
    [env = "LONGSHORE_HOSTED_PUSH_LIMIT", value_name = "MIB"] hosted_push_limit: u64,
    /// How many MiB one hosted repo may take [default: 4096]
    [env = "LONGSHORE_HOSTED_REPO_LIMIT", value_name = "MIB"] hosted_repo_limit: u64,
    /// What to log, such as `info` or `longshore_controller=debug,warn` [default: info,sqlx=warn]
    [env = "LONGSHORE_LOG", value_name = "FILTER"] log: String,
    /// How logs look [default: auto]
    [env = "LONGSHORE_LOG_FORMAT", value_name = "FORMAT"] log_format: LogFormat,
}

/// A secret that comes from a flag, the environment or a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "String")]
pub struct SecretText(pub SecretString);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// A duration such as `30s` or `5m`, more than nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

impl std::str::FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no duration such as 500ms, 30s, 5m or 1h");
        let span: jiff::SignedDuration = text.parse().map_err(|_detail| wrong())?;
        let period = Duration::try_from(span).map_err(|_negative| wrong())?;
        if period.is_zero() {
            Err(wrong())
        } else {
            Ok(Self(period))
        }
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Settings that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is wrong.
    #[error("{}{}: {message}", path.display(), .line.map(|line| format!(":{line}")).unwrap_or_default())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: Option<usize>,
        /// What is wrong, without what stands there: that may be a password, and logs are read by others.
        message: String,
    },
    /// Settings contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// Settings in force.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The address of the public listener.
    pub public_listen: SocketAddr,
    /// The address of the edge listener.
    pub edge_listen: SocketAddr,
    /// The public listener's URL, where it was given.
    pub public_url: Option<String>,
    /// The edge listener's URL, where it was given.
    pub edge_url: Option<String>,
    /// The server name by which devices ask for the edge, where both listeners share one address.
    pub edge_name: Option<String>,
    /// Further names in the listeners' certificates.
    pub hostnames: Vec<String>,
    /// Whether the public listener is without TLS.
    pub plain_http: bool,
    /// Whether a proxy stands before it.
    pub behind_proxy: bool,
    /// The database, where it was given. May hold a password.
    pub database_url: Option<SecretString>,
    /// The master key, where it was given.
    pub secret_key: Option<SecretString>,
    /// How often repos are looked at.
    pub poll_interval: Duration,
    /// How often devices ping.
    pub heartbeat: Duration,
    /// For how long after its end a device's certificate is renewed.
    pub renewal_grace: Duration,
    /// The trust domain of devices' SPIFFE ids.
    pub trust_domain: String,
    /// The operator's certificate authority, where one was given.
    pub ca: Option<Supplied>,
    /// The operator's certificate for the public listener, where one was given.
    pub public_files: Option<Files>,
    /// The operator's certificate for the edge listener, where one was given.
    pub edge_files: Option<Files>,
    /// How overlays are built.
    pub render: RenderSettings,
    /// How large hosted repos may get.
    pub hosting: Limits,
    /// What to log.
    pub log: String,
    /// How logs look.
    pub log_format: LogFormat,
}

impl Config {
    /// The settings in force: `given` by flags and the environment, else by `file`, else the defaults.
    pub fn resolve(given: Settings, file: Option<&Path>) -> Result<Self, ConfigError> {
        let settings = match file {
            Some(path) => given.or(read(path)?),
            None => given,
        };
        let ca = match (settings.ca_chain, settings.ca_key, settings.ca_root) {
            (Some(chain), Some(key), Some(root)) => Some(Supplied { chain, key, root }),
            (None, None, None) => None,
            _ => {
                return Err(ConfigError::Contradiction(
                    "ca-chain, ca-key and ca-root go together; give all three or none",
                ));
            }
        };
        let public_files = pair(
            settings.public_cert,
            settings.public_key,
            "public-cert and public-key go together; give both or none",
        )?;
        let edge_files = pair(
            settings.edge_cert,
            settings.edge_key,
            "edge-cert and edge-key go together; give both or none",
        )?;
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        let defaults = RenderSettings::default();
        let mut config = Self {
            edge_name: None,
            data_dir: settings.data_dir.unwrap_or_else(|| "longshore-data".into()),
            public_listen: settings.public_listen.unwrap_or_else(|| any(8443)),
            edge_listen: settings.edge_listen.unwrap_or_else(|| any(8444)),
            public_url: settings
                .public_url
                .map(|url| url.trim_end_matches('/').to_owned()),
            edge_url: settings
                .edge_url
                .map(|url| url.trim_end_matches('/').to_owned()),
            hostnames: settings.hostnames.unwrap_or_default(),
            plain_http: settings.plain_http.unwrap_or_default(),
            behind_proxy: settings.behind_proxy.unwrap_or_default(),
            database_url: settings.database_url.map(Into::into),
            secret_key: settings.secret_key.map(|secret| secret.0),
            poll_interval: settings
                .poll_interval
                .map_or(Duration::from_secs(30), |it| it.0),
            heartbeat: settings
                .heartbeat
                .map_or(Duration::from_secs(30), |it| it.0),
            renewal_grace: DAY * settings.renewal_grace.unwrap_or(90),
            trust_domain: settings
                .trust_domain
                .unwrap_or_else(|| "longshore".to_owned()),
            ca,
            public_files,
            edge_files,
            render: RenderSettings {
                program: settings.kustomize,
                parallelism: settings
                    .render_parallelism
                    .map_or(defaults.parallelism, NonZero::get),
                timeout: settings.render_timeout.map_or(defaults.timeout, |it| it.0),
                memory_limit: settings.render_memory.map_or(defaults.memory_limit, bytes),
                allow_unsandboxed: settings.allow_unsandboxed.unwrap_or_default(),
                ..defaults
            },
            hosting: Limits {
                push: bytes(settings.hosted_push_limit.unwrap_or(1024)),
                repo: bytes(settings.hosted_repo_limit.unwrap_or(4096)),
            },
            log: settings.log.unwrap_or_else(|| "info,sqlx=warn".to_owned()),
            log_format: settings.log_format.unwrap_or_default(),
        };
        if config.plain_http && !config.public_listen.ip().is_loopback() && !config.behind_proxy {
            return Err(ConfigError::Contradiction(
                "plain-http sends tokens in clear: listen on a loopback address, or say behind-proxy",
            ));
        }
        config.edge_name = config.shared()?;
        Ok(config)
    }

    /// The edge's own server name, where both listeners share one address.
    fn shared(&self) -> Result<Option<String>, ConfigError> {
        // Two listeners on port 0 get a port each.
        if self.public_listen != self.edge_listen || self.edge_listen.port() == 0 {
            return Ok(None);
        }
        if self.plain_http {
            return Err(ConfigError::Contradiction(
                "public-listen and edge-listen are the same address, and TLS tells them apart there: plain-http \
                 needs an address of its own",
            ));
        }
        let host = |url: &Option<String>| match url::Url::parse(url.as_deref()?).ok()?.host()? {
            url::Host::Domain(name) => Some(name.trim_end_matches('.').to_owned()),
            url::Host::Ipv4(_) | url::Host::Ipv6(_) => None,
        };
        let Some(edge) = host(&self.edge_url) else {
            return Err(ConfigError::Contradiction(
                "public-listen and edge-listen are the same address, and the host name that devices ask for tells \
                 them apart there: name it in edge-url, such as wss://edge.example.com",
            ));
        };
        if host(&self.public_url).is_some_and(|public| public == edge) {
            return Err(ConfigError::Contradiction(
                "public-listen and edge-listen are the same address, and public-url and edge-url have the same \
                 host, so nobody can tell them apart: give the edge a host name of its own",
            ));
        }
        Ok(Some(edge))
    }

    /// The settings in force as TOML, secrets redacted.
    pub fn describe(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "kebab-case")]
        struct Shown<'a> {
            data_dir: &'a Path,
            public_listen: String,
            edge_listen: String,
            public_url: Option<&'a str>,
            edge_url: Option<&'a str>,
            hostnames: &'a [String],
            plain_http: bool,
            behind_proxy: bool,
            database_url: Option<String>,
            secret_key: Option<&'static str>,
            poll_interval: String,
            heartbeat: String,
            renewal_grace: u64,
            trust_domain: &'a str,
            ca_chain: Option<&'a Path>,
            ca_key: Option<&'a Path>,
            ca_root: Option<&'a Path>,
            public_cert: Option<&'a Path>,
            public_key: Option<&'a Path>,
            edge_cert: Option<&'a Path>,
            edge_key: Option<&'a Path>,
            kustomize: Option<&'a Path>,
            render_parallelism: usize,
            render_timeout: String,
            render_memory: u64,
            allow_unsandboxed: bool,
            hosted_push_limit: u64,
            hosted_repo_limit: u64,
            log: &'a str,
            log_format: LogFormat,
        }
        let ca = self.ca.as_ref();
        let shown = Shown {
            data_dir: &self.data_dir,
            public_listen: self.public_listen.to_string(),
            edge_listen: self.edge_listen.to_string(),
            public_url: self.public_url.as_deref(),
            edge_url: self.edge_url.as_deref(),
            hostnames: &self.hostnames,
            plain_http: self.plain_http,
            behind_proxy: self.behind_proxy,
            database_url: self.database_url.as_ref().map(redacted),
            secret_key: self.secret_key.as_ref().map(|_| "(redacted)"),
            poll_interval: format!("{:?}", self.poll_interval),
            heartbeat: format!("{:?}", self.heartbeat),
            renewal_grace: self.renewal_grace.as_secs() / DAY.as_secs(),
            trust_domain: &self.trust_domain,
            ca_chain: ca.map(|ca| &*ca.chain),
            ca_key: ca.map(|ca| &*ca.key),
            ca_root: ca.map(|ca| &*ca.root),
            public_cert: self.public_files.as_ref().map(|files| &*files.chain),
            public_key: self.public_files.as_ref().map(|files| &*files.key),
            edge_cert: self.edge_files.as_ref().map(|files| &*files.chain),
            edge_key: self.edge_files.as_ref().map(|files| &*files.key),
            kustomize: self.render.program.as_deref(),
            render_parallelism: self.render.parallelism,
            render_timeout: format!("{:?}", self.render.timeout),
            render_memory: self.render.memory_limit / MIB,
            allow_unsandboxed: self.render.allow_unsandboxed,
            hosted_push_limit: self.hosting.push / MIB,
            hosted_repo_limit: self.hosting.repo / MIB,
            log: &self.log,
            log_format: self.log_format,
        };
        toml::to_string(&shown).unwrap_or_else(|error| error.to_string())
    }
}

const MIB: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_hours(24);

fn bytes(mib: u64) -> u64 {
    mib.saturating_mul(MIB)
}

fn pair(
    chain: Option<PathBuf>,
    key: Option<PathBuf>,
    contradiction: &'static str,
) -> Result<Option<Files>, ConfigError> {
    match (chain, key) {
        (Some(chain), Some(key)) => Ok(Some(Files { chain, key })),
        (None, None) => Ok(None),
        _ => Err(ConfigError::Contradiction(contradiction)),
    }
}

fn read(path: &Path) -> Result<Settings, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        ConfigError::Invalid {
            path: path.to_owned(),
            line: before.map(|before| before.split('\n').count()),
            message: without_values(error.message()),
        }
    })
}

fn redacted(url: &SecretString) -> String {
    use secrecy::ExposeSecret as _;
    match url::Url::parse(url.expose_secret()) {
        Ok(mut url) if url.password().is_some() => match url.set_password(Some("redacted")) {
            Ok(()) => url.to_string(),
            Err(()) => "(redacted)".to_owned(),
        },
        Ok(url) => url.to_string(),
        Err(_) => "(redacted)".to_owned(),
    }
}

#[cfg(test)]
mod tests;
