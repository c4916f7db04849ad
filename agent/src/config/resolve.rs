//! Many sources into one struct.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use longshore_protocol::{DeviceName, Digest};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use tracing_subscriber::filter::Targets;
use url::Url;

use super::{
    Given, IdentitySecret, KubeSettings, LastGood, Layout, Origin, Refused, RuntimeKind,
    RuntimeSettings, Settings, Standing, TokenSource,
    last_good::{digest_of, essence, read_file},
    values::{Line, Period},
};
use crate::{
    facts,
    logs::Format,
    network::proxy::{InvalidProxy, NONE, Proxies},
    runtime::command::CommandSettings,
    tls::{self, TlsError, Trust},
    update::{Policy, hooks::Hooks, window::InvalidWindow},
};

const DEFAULT_FILE: &str = "/etc/longshore/agent.toml";
const DEFAULT_FACTS_DIR: &str = "/etc/longshore/facts.d";
const DEFAULT_HOOK_TIMEOUT: Period = Period(Duration::from_mins(5));
const DEFAULT_COMMAND_TIMEOUT: Period = Period(Duration::from_mins(5));
const DEFAULT_STATE_DIR: &str = "/var/lib/longshore-agent";

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// The TOML is wrong.
    #[error("{path}{}: {message}", .line.map(|line| format!(":{line}")).unwrap_or_default())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: Option<usize>,
        /// What is wrong, without what stands there: that may be a password, and others than its owner read this.
        message: String,
    },
    /// The server's address is not one.
    #[error(
        "--server must be https://host[:port], not `{0}`: a device tells its token to nobody whom it cannot verify"
    )]
    Server(Url),
    /// A proxy that is none.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// A file of root certificates that is of no use.
    #[error("--ca {0} cannot be used: {1}")]
    Roots(PathBuf, TlsError),
    /// Two settings say the same thing.
    #[error("give either {0} or {1}, not both")]
    Both(&'static str, &'static str),
    /// The filter does not parse.
    #[error("--log `{0}` is no filter: give a level, or `level,module=level,…`")]
    Log(String),
    /// The command runtime without a command.
    #[error("--runtime command needs --command, the program that gets the manifests")]
    NoCommand,
    /// An update window that is none.
    #[error("--update-window: {0}")]
    Window(#[from] InvalidWindow),
    /// A deadline that is none.
    #[error("{0}: {1}, nor `never`")]
    Deadline(&'static str, String),
    /// A token file without a token.
    #[error("{0} holds no token")]
    EmptyToken(PathBuf),
    /// What the first start needs is missing.
    #[error(
        "this device is not enrolled yet: {0} is needed. `longshore tokens create` prints the whole command"
    )]
    Missing(&'static str),
}

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
        RuntimeKind::Podman => RuntimeSettings::Podman(podman),
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

impl TokenSource {
    /// The token.
    pub fn read(&self) -> Result<SecretString, ConfigError> {
        match self {
            Self::Inline(token) => Ok(token.expose_secret().trim().into()),
            Self::File(path) => {
                let token = SecretString::from(read(path)?);
                let trimmed = token.expose_secret().trim();
                if trimmed.is_empty() {
                    return Err(ConfigError::EmptyToken(path.clone()));
                }
                Ok(trimmed.into())
            }
        }
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

fn path_of(given: &Given) -> PathBuf {
    let default = || DEFAULT_FILE.into();
    given.config.clone().unwrap_or_else(default)
}

/// The text of the file. One that nobody named need not be there.
fn file(named: Option<&Path>) -> Result<String, ConfigError> {
    let path = named.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    if named.is_none() && !path.exists() {
        return Ok(String::new());
    }
    read(path)
}

fn parse(path: &Path, text: &str) -> Result<Given, ConfigError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        ConfigError::Toml {
            path: path.to_owned(),
            line: before.map(|before| before.split('\n').count()),
            message: without_values(error.message()),
        }
    })
}

/// The message of an error without the values that it may quote: it has those in double quotes, and names in others.
fn without_values(message: &str) -> String {
    let message = message.trim_end();
    match (message.split_once('"'), message.rsplit_once('"')) {
        (Some((before, _)), Some((_, after))) => format!("{before}\"…\"{after}"),
        _ => message.to_owned(),
    }
}

/// Root certificates, one or several.
fn bundle(path: &Path) -> Result<String, ConfigError> {
    let pem = read(path)?;
    tls::count_roots(&pem).map_err(|error| ConfigError::Roots(path.to_owned(), error))?;
    Ok(pem)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    read_file(path).map_err(|error| ConfigError::Read(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::config::{Cli, Task};

    const PIN: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn task(args: &[&str]) -> Result<Task, ConfigError> {
        Cli::parse_from(["longshore-agent"].iter().chain(args)).resolve()
    }

    fn settings(args: &[&str]) -> Settings {
        match task(args).unwrap() {
            Task::Run(settings) => *settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_in_a_file_is_told_without_what_stands_there() {
        for (text, line, told) in [
            (
                "log = 'info'\nproxi = 'http://till:hush@proxy'\n",
                2,
                "unknown field `proxi`",
            ),
            ("proxy = 'http://till:hush@proxy\n", 1, ""),
            ("token = \"hush\"hush\"\n", 1, ""),
            ("\n\nupdate-window = \"hush\"\n", 3, "invalid type: string"),
            ("server = \"hush\"\n", 1, ""),
        ] {
            let error = parse(Path::new("agent.toml"), text).unwrap_err();
            let said = crate::causes(&error);
            assert!(said.starts_with(&format!("agent.toml:{line}: ")), "{said}");
            assert!(said.contains(told) && !said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("Exit codes:"), "{help}");
    }

    #[test]
    fn flags_stand_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(
            &file,
            format!("server = 'https://a:1'\nca-fingerprint = '{PIN}'\ntoken = 'secret'\nname = 'file'\n"),
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let all = settings(&["--config", file, "--name", "flag", "--state-dir", "/s"]);
        assert_eq!(all.name.unwrap().as_str(), "flag");
        assert_eq!(all.server.unwrap().as_str(), "https://a:1/");
        let RuntimeSettings::Directory(directory) = all.runtime else {
            panic!("{:?}", all.runtime)
        };
        assert_eq!(directory, Path::new("/s/manifests"));
        let both = settings(&["--config", file, "--token-file", "/t"]);
        assert!(matches!(both.token, Some(TokenSource::File(_))));
        let Task::Print(shown) = task(&["config", "--config", file]).unwrap() else {
            panic!()
        };
        assert!(
            !shown.contains("secret") && shown.contains("(redacted)"),
            "{shown}"
        );
        toml::from_str::<Given>(&shown).unwrap();
    }

    fn given(args: &[&str]) -> Given {
        Cli::parse_from(["longshore-agent"].iter().chain(args)).given
    }

    #[test]
    fn a_proxy_is_the_settings_before_the_environments() {
        let environment = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://e:secret@environment:1".to_owned()),
            "all_proxy" => Some("http://all:1".to_owned()),
            _ => None,
        };
        let shown = |args: &[&str]| given(args).proxies(environment).unwrap().shown();
        assert_eq!(shown(&[]).unwrap(), "http://(redacted)@environment:1");
        assert_eq!(shown(&["--proxy", "https://own"]).unwrap(), "https://own");
        assert_eq!(shown(&["--proxy", "none"]), None);
        assert_eq!(given(&[]).proxies(|_| None).unwrap().shown(), None);
        let useless = |name: &str| (name == "ALL_PROXY").then(|| "socks5://x:1".to_owned());
        let proxies = given(&[]).proxies(useless).unwrap();
        assert_eq!(proxies.shown(), None);
        let complaint = proxies.complaint().unwrap();
        assert!(
            complaint.contains("ALL_PROXY") && complaint.contains("socks5"),
            "{complaint}"
        );
        let Task::Print(shown) = task(&["config", "--proxy", "http://u:secret@p:1"]).unwrap()
        else {
            panic!()
        };
        assert!(!shown.contains("secret"), "{shown}");
        toml::from_str::<Given>(&shown).unwrap();
    }

    #[test]
    fn a_bundle_may_hold_several_roots_and_must_hold_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.self_signed(&key).unwrap().pem()
        };
        let file = dir.path().join("roots.pem");
        let resolve = |text: &str| {
            std::fs::write(&file, text).unwrap();
            task(&["--ca", file.to_str().unwrap()])
        };
        let Task::Run(settings) =
            resolve(&format!("# ours\n{}\n{}", root("a"), root("b"))).unwrap()
        else {
            panic!()
        };
        let Some(Trust::Bundle(pem)) = settings.trust else {
            panic!()
        };
        assert_eq!(tls::count_roots(&pem).unwrap(), 2);
        let cut = root("a").replace("-----END", "-----");
        let noise = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cases = [
            ("", "holds no certificate"),
            ("not PEM", "holds no certificate"),
            (&cut, "roots.pem cannot be used"),
            (noise, "roots.pem cannot be used"),
        ];
        for (text, expected) in cases {
            let error = resolve(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_may_keep_the_identity_whatever_the_runtime() {
        let args = ["--kubeconfig", "/k", "--identity-secret", "till-7.identity"];
        let kept = settings(&args).identity_secret.unwrap();
        assert_eq!(kept.name, "till-7.identity");
        assert_eq!(kept.cluster.kubeconfig.as_deref(), Some(Path::new("/k")));
        assert!(settings(&[]).identity_secret.is_none());
        for wrong in ["", "a/b", "../secrets", "A", "-a", "a?b", "a..b"] {
            let given = format!("--identity-secret={wrong}");
            let error = Cli::try_parse_from(["longshore-agent", &given]).unwrap_err();
            assert!(error.to_string().contains("no name of a Secret"), "{error}");
        }
    }

    #[test]
    fn the_kube_runtime_has_settings_of_its_own() {
        let args = [
            "--runtime",
            "kube",
            "--state-dir",
            "/s",
            "--namespace",
            "shop",
        ];
        let RuntimeSettings::Kube(kube) = settings(&args).runtime else {
            panic!()
        };
        assert_eq!(kube.state, Path::new("/s"));
        assert_eq!(kube.namespace.as_deref(), Some("shop"));
        assert!(kube.kubeconfig.is_none() && kube.context.is_none());
        let Task::Print(shown) = task(&[&["config"], &args[..]].concat()).unwrap() else {
            panic!()
        };
        assert!(
            shown.contains("runtime = \"kube\"") && shown.contains("namespace = \"shop\""),
            "{shown}"
        );
    }

    #[test]
    fn a_runtimes_settings_are_its_own() {
        let args = [
            "--runtime",
            "command",
            "--command",
            "oc apply -f -",
            "--state-dir",
            "/s",
        ];
        let all = [&args[..], &["--command-interval", "1h"]].concat();
        let RuntimeSettings::Command(command) = settings(&all).runtime else {
            panic!()
        };
        assert_eq!(command.line, ["oc", "apply", "-f", "-"]);
        assert_eq!(
            (
                command.timeout.as_secs(),
                command.interval.unwrap().as_secs()
            ),
            (300, 3600)
        );
        assert_eq!(command.folder, Path::new("/s/command"));
        let Task::Print(shown) = task(&[&["config"], &all[..]].concat()).unwrap() else {
            panic!()
        };
        let read: Given = toml::from_str(&shown).unwrap();
        assert_eq!(read.command.unwrap().words, command.line);
        let RuntimeSettings::MicroShift(path) =
            settings(&["--layout", "microshift", "--directory", "/m/longshore"]).runtime
        else {
            panic!()
        };
        assert_eq!(path, Path::new("/m/longshore"));
        let RuntimeSettings::Podman(program) = settings(&["--runtime", "podman"]).runtime else {
            panic!()
        };
        assert_eq!(program, Path::new("podman"));
        let error = task(&["--runtime", "command"]).unwrap_err().to_string();
        assert!(error.contains("needs --command"), "{error}");
    }

    #[test]
    fn wrong_settings_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, "sever = 'x'").unwrap();
        let cases: [(&[&str], &str); 7] = [
            (&["--proxy", "socks4://p"], "only http:// and https://"),
            (&["--update-window", "at night"], "is no update window"),
            (&["--progress-deadline", "soon"], "`soon` is no time"),
            (&["--server", "http://a"], "--server must be https"),
            (&["--token", "a", "--token-file", "b"], "not both"),
            (&["--log", "a=b=c"], "is no filter"),
            (
                &["--config", file.to_str().unwrap()],
                "unknown field `sever`",
            ),
        ];
        for (args, expected) in cases {
            let error = task(args).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_of_no_use_gives_way_to_the_one_that_connected_last() {
        let dir = tempfile::tempdir().unwrap();
        let (file, state) = (dir.path().join("agent.toml"), dir.path().join("state"));
        std::fs::create_dir(&state).unwrap();
        let args = [
            "--config",
            file.to_str().unwrap(),
            "--state-dir",
            state.to_str().unwrap(),
        ];
        let last_good = LastGood::open(&state).unwrap();
        let standing = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let settings = settings(&args);
            (settings.name.unwrap().to_string(), settings.origin)
        };
        // Nothing to come back to: what is wrong is wrong, and what is new holds.
        std::fs::write(&file, "name =").unwrap();
        assert!(matches!(task(&args), Err(ConfigError::Toml { .. })));
        let (name, origin) = standing("name = 'one'\ntoken = 'lst_a'");
        let Standing::Holds(essence) = origin.standing else {
            panic!("{:?}", origin.standing)
        };
        assert_eq!((name.as_str(), essence.contains("lst_a")), ("one", false));
        last_good.keep(&essence).unwrap();

        for wrong in [
            "name =",
            "nane = 'two'",
            "name = 'two'\nruntime = 'command'",
            "progress-deadline = 'x'",
        ] {
            let (name, origin) = standing(wrong);
            assert_eq!(name, "one", "{wrong}");
            assert!(
                matches!(origin.standing, Standing::Refused(Refused::Invalid(_))),
                "{origin:?}"
            );
            assert!(!origin.has_changed());
            // Whoever asks for the settings hears what is wrong with them.
            task(&[&["config"], &args[..]].concat()).unwrap_err();
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(settings(&args).name.unwrap().as_str(), "one");

        let (name, origin) = standing("name = 'two'\nconnect-deadline = '3m'");
        assert_eq!(name, "two");
        let Standing::OnTrial(_, Some(deadline)) = origin.standing else {
            panic!("{origin:?}")
        };
        assert_eq!(deadline, Duration::from_mins(3));
        last_good.refuse(origin.digest.unwrap()).unwrap();
        let (name, origin) = standing("name = 'two'\nconnect-deadline = '3m'");
        assert_eq!(name, "one");
        assert!(matches!(
            origin.standing,
            Standing::Refused(Refused::NoConnection { .. })
        ));
        std::fs::write(&file, "name = 'three'").unwrap();
        assert!(origin.has_changed());
        assert_eq!(settings(&args).name.unwrap().as_str(), "three");
        // A flag stands over both.
        std::fs::write(&file, "name =").unwrap();
        assert_eq!(
            settings(&[&args[..], &["--name", "flag"]].concat())
                .name
                .unwrap()
                .as_str(),
            "flag"
        );
    }
}
