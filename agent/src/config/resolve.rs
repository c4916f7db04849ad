//! Many sources into one struct.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use longshore_protocol::{DeviceName, Digest};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use tracing_subscriber::filter::Targets;
use url::Url;

use super::{
    ConfigError, Given, IdentitySecret, KubeSettings, LastGood, Layout, Origin, PodmanSettings,
    Refused, RuntimeKind, RuntimeSettings, Settings, Standing, TokenSource,
    file::{bundle, file, parse, path_of},
    last_good::{digest_of, essence},
    values::{Line, Period},
};
use crate::{
    facts,
    logs::Format,
    network::proxy::{NONE, Proxies},
    runtime::command::CommandSettings,
    tls::Trust,
    update::{Policy, hooks::Hooks},
};

const DEFAULT_FACTS_DIR: &str = "/etc/longshore/facts.d";
const DEFAULT_HOOK_TIMEOUT: Period = Period(Duration::from_mins(5));
const DEFAULT_COMMAND_TIMEOUT: Period = Period(Duration::from_mins(5));
const DEFAULT_STATE_DIR: &str = "/var/lib/longshore-agent";

pub(super) struct Resolved {
    pub(super) settings: Settings,
    pub(super) shown: String,
}

/// What `config` prints: the keys of the file.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a Url>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_fingerprint: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_proxy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a DeviceName>,
    state_dir: &'a Path,
    runtime: RuntimeKind,
    directory: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubeconfig: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    podman: &'a Path,
    layout: Layout,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a Line>,
    command_timeout: Period,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_interval: Option<Period>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    update_window: &'a [String],
    progress_deadline: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    before_update: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_update: Option<&'a Path>,
    hook_timeout: Period,
    facts_dir: &'a Path,
    connect_deadline: &'a str,
    log: &'a str,
    log_format: Format,
}

/// What the settings' file and everything above it says.
pub(super) fn resolve(given: Given) -> Result<Resolved, ConfigError> {
    let text = file(given.config.as_deref())?;
    let below = parse(&path_of(&given), &text)?;
    settle(given.over(below))
}

/// The same, or what the file that connected last says, where the present one is of no use.
pub(super) fn with_last_good(given: &Given) -> Result<Settings, ConfigError> {
    let path = path_of(given);
    let digest = digest_of(&path);
    let read = file(given.config.as_deref()).and_then(|text| {
        let resolved = settle(given.clone().over(parse(&path, &text)?))?;
        Ok((resolved.settings, essence(&text).unwrap_or_default()))
    });
    let state_dir = match &read {
        Ok((settings, _)) => settings.state_dir.clone(),
        Err(_) => given.state_dir(),
    };
    // Before the first start there is no state directory, and nothing to come back to.
    let last_good = LastGood::open(&state_dir).ok();
    let copy = last_good.as_ref().and_then(LastGood::copy);
    let come_back = |refused| {
        let below = parse(&path, copy.as_deref()?).ok()?;
        let given = given.clone().over(below);
        // A file of roots that is gone since must not keep a device down that knows the controller's own.
        let bare = Given {
            ca: None,
            ..given.clone()
        };
        let settled = settle(given).or_else(|_unusable| settle(bare));
        let mut settings = settled.ok()?.settings;
        settings.origin.standing = Standing::Refused(refused);
        Some(settings)
    };
    let mut settings = match read {
        Ok((mut settings, essence)) => {
            let is_new = copy.as_ref().is_some_and(|copy| *copy != essence);
            let refused = last_good
                .as_ref()
                .zip(digest.filter(|_| is_new))
                .and_then(|(last_good, digest)| last_good.refusal(digest));
            if let Some(settings) = refused.and_then(come_back) {
                settings
            } else {
                settings.origin.standing = match settings.origin.standing {
                    Standing::OnTrial(_, deadline) if is_new => {
                        Standing::OnTrial(essence, deadline)
                    }
                    _ => Standing::Holds(essence),
                };
                settings
            }
        }
        Err(error) => come_back(Refused::Invalid(crate::causes(&error))).ok_or(error)?,
    };
    settings.origin.path = path;
    settings.origin.digest = digest;
    Ok(settings)
}

#[expect(clippy::too_many_lines, reason = "one line or two for each setting")]
fn settle(given: Given) -> Result<Resolved, ConfigError> {
    let trust = match (given.ca_fingerprint, &given.ca) {
        (Some(_), Some(_)) => return Err(ConfigError::Both("--ca-fingerprint", "--ca")),
        (Some(pin), None) => Some(Trust::Fingerprint(pin)),
        (None, Some(path)) => Some(Trust::Bundle(bundle(path)?)),
        (None, None) => None,
    };
    let token = match (&given.token, &given.token_file) {
        (Some(_), Some(_)) => return Err(ConfigError::Both("--token", "--token-file")),
        (Some(token), None) => Some(TokenSource::Inline(token.clone())),
        (None, Some(path)) => Some(TokenSource::File(path.clone())),
        (None, None) => None,
    };
    if let Some(server) = given.server.as_ref().filter(|url| url.scheme() != "https") {
        return Err(ConfigError::Server(server.clone()));
    }
    let log = given.log.as_deref().unwrap_or("info");
    let targets: Targets = log
        .parse()
        .map_err(|_invalid| ConfigError::Log(log.to_owned()))?;
    let state_dir = given.state_dir();
    let directory = given
        .directory
        .clone()
        .unwrap_or_else(|| state_dir.join("manifests"));
    let layout = given.layout.unwrap_or_default();
    let timeout = given.command_timeout.unwrap_or(DEFAULT_COMMAND_TIMEOUT);
    let folder = state_dir.join("command");
    let podman = given.podman.clone().unwrap_or_else(|| "podman".into());
    let log_format = given.log_format.unwrap_or_default();
    let name = given.name.clone().or_else(facts::host_name);
    let runtime = given.runtime.unwrap_or_default();
    let updates = given.updates()?;
    let proxies = given.proxies(|name| std::env::var(name).ok())?;
    let connect_deadline = given.connect_deadline().to_owned();
    let facts_dir = given.facts_dir.clone();
    let facts_dir = facts_dir.unwrap_or_else(|| DEFAULT_FACTS_DIR.into());
    let on_trial = deadline("--connect-deadline", &connect_deadline)?;
    let shown = Shown {
        server: given.server.as_ref(),
        ca_fingerprint: given.ca_fingerprint,
        ca: given.ca.as_deref(),
        proxy: proxies.shown(),
        no_proxy: given.no_proxy.as_deref(),
        token: given.token.as_ref().map(|_| "(redacted)"),
        token_file: given.token_file.as_deref(),
        name: name.as_ref(),
        state_dir: &state_dir,
        runtime,
        directory: &directory,
        identity_secret: given.identity_secret.as_ref().map(|name| name.0.as_str()),
        kubeconfig: given.kubeconfig.as_deref(),
        context: given.context.as_deref(),
        namespace: given.namespace.as_deref(),
        podman: &podman,
        layout,
        command: given.command.as_ref(),
        command_timeout: timeout,
        command_interval: given.command_interval,
        update_window: &given.update_window,
        progress_deadline: given.progress_deadline(),
        before_update: given.before_update.as_deref(),
        after_update: given.after_update.as_deref(),
        hook_timeout: given.hook_timeout(),
        facts_dir: &facts_dir,
        connect_deadline: &connect_deadline,
        log,
        log_format,
    };
    // Paths that are not UTF-8 are the one thing that TOML cannot say.
    let shown = toml::to_string(&shown).unwrap_or_else(|error| format!("# {error}\n"));
    let cluster = KubeSettings {
        kubeconfig: given.kubeconfig,
        context: given.context,
        namespace: given.namespace,
        state: state_dir.clone(),
    };
    let identity_secret = given.identity_secret.map(|name| IdentitySecret {
        name: name.0,
        cluster: cluster.clone(),
    });
    let runtime = match runtime {
        RuntimeKind::Directory if layout == Layout::Microshift => {
            RuntimeSettings::MicroShift(directory)
        }
        RuntimeKind::Directory => RuntimeSettings::Directory(directory),
        RuntimeKind::Podman => RuntimeSettings::Podman(PodmanSettings {
            program: podman,
            state: state_dir.clone(),
        }),
        RuntimeKind::Command => RuntimeSettings::Command(CommandSettings {
            line: given.command.ok_or(ConfigError::NoCommand)?.words,
            timeout: timeout.0,
            interval: given.command_interval.map(|period| period.0),
            folder,
        }),
        RuntimeKind::Kube => RuntimeSettings::Kube(cluster),
    };
    let settings = Settings {
        state_dir,
        identity_secret,
        runtime,
        updates,
        server: given.server,
        trust,
        proxies,
        token,
        name,
        facts_dir,
        origin: Origin {
            standing: Standing::OnTrial(String::new(), on_trial),
            ..Origin::default()
        },
        log: targets,
        log_format,
    };
    Ok(Resolved { settings, shown })
}

impl Given {
    /// What this source says, and `below` where it says nothing.
    fn over(self, below: Self) -> Self {
        // Two ways to say one thing: who says it in one way is not asked about the other.
        let trusts = self.ca.is_some() || self.ca_fingerprint.is_some();
        let has_token = self.token.is_some() || self.token_file.is_some();
        Self {
            config: self.config,
            server: self.server.or(below.server),
            ca_fingerprint: self
                .ca_fingerprint
                .or(below.ca_fingerprint.filter(|_| !trusts)),
            ca: self.ca.or(below.ca.filter(|_| !trusts)),
            proxy: self.proxy.or(below.proxy),
            no_proxy: self.no_proxy.or(below.no_proxy),
            token: self.token.or(below.token.filter(|_| !has_token)),
            token_file: self.token_file.or(below.token_file.filter(|_| !has_token)),
            name: self.name.or(below.name),
            state_dir: self.state_dir.or(below.state_dir),
            runtime: self.runtime.or(below.runtime),
            directory: self.directory.or(below.directory),
            identity_secret: self.identity_secret.or(below.identity_secret),
            kubeconfig: self.kubeconfig.or(below.kubeconfig),
            context: self.context.or(below.context),
            namespace: self.namespace.or(below.namespace),
            podman: self.podman.or(below.podman),
            layout: self.layout.or(below.layout),
            command: self.command.or(below.command),
            command_timeout: self.command_timeout.or(below.command_timeout),
            command_interval: self.command_interval.or(below.command_interval),
            update_window: if self.update_window.is_empty() {
                below.update_window
            } else {
                self.update_window
            },
            progress_deadline: self.progress_deadline.or(below.progress_deadline),
            before_update: self.before_update.or(below.before_update),
            after_update: self.after_update.or(below.after_update),
            hook_timeout: self.hook_timeout.or(below.hook_timeout),
            facts_dir: self.facts_dir.or(below.facts_dir),
            connect_deadline: self.connect_deadline.or(below.connect_deadline),
            log_format: self.log_format.or(below.log_format),
            log: self.log.or(below.log),
        }
    }

    fn updates(&self) -> Result<Policy, ConfigError> {
        let windows = self.update_window.iter().map(|text| text.parse());
        let deadline = deadline("--progress-deadline", self.progress_deadline())?;
        Ok(Policy {
            windows: windows.collect::<Result<_, _>>()?,
            hooks: Hooks {
                before: self.before_update.clone(),
                after: self.after_update.clone(),
                timeout: self.hook_timeout().0,
            },
            deadline,
        })
    }

    /// The proxy of the settings, or of the environment. A variable of the environment may be meant for others: where
    /// it is of no use here, there is no proxy.
    fn proxies(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Proxies, ConfigError> {
        let environment = |names: &[&'static str]| {
            let mut set = names
                .iter()
                .filter_map(|name| Some((*name, environment(name)?)));
            set.find(|(_, value)| !value.trim().is_empty())
        };
        let no_proxy = match &self.no_proxy {
            Some(list) => Some(list.clone()),
            None => environment(&["no_proxy", "NO_PROXY"]).map(|(_, list)| list),
        };
        let no_proxy = no_proxy.unwrap_or_default();
        if let Some(url) = &self.proxy {
            return match url.expose_secret().trim() {
                NONE => Ok(Proxies::default()),
                url => Ok(Proxies::new(url.into(), "--proxy", &no_proxy)?),
            };
        }
        let found = environment(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]);
        Ok(found.map_or_else(Proxies::default, |(name, url)| {
            Proxies::new(url.trim().into(), name, &no_proxy)
                .unwrap_or_else(|why| Proxies::passed_over(&why))
        }))
    }

    fn progress_deadline(&self) -> &str {
        self.progress_deadline.as_deref().unwrap_or("10m")
    }

    fn connect_deadline(&self) -> &str {
        self.connect_deadline.as_deref().unwrap_or("10m")
    }

    fn state_dir(&self) -> PathBuf {
        let default = || DEFAULT_STATE_DIR.into();
        self.state_dir.clone().unwrap_or_else(default)
    }

    fn hook_timeout(&self) -> Period {
        self.hook_timeout.unwrap_or(DEFAULT_HOOK_TIMEOUT)
    }
}

/// A time, or `None` for `never`.
fn deadline(flag: &'static str, text: &str) -> Result<Option<Duration>, ConfigError> {
    if text == "never" {
        return Ok(None);
    }
    let period = text.parse::<Period>();
    let period = period.map_err(|wrong| ConfigError::Deadline(flag, wrong))?;
    Ok(Some(period.0))
}

#[cfg(test)]
mod tests;
