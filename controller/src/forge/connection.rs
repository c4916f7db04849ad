//! How a fleet's Git host is reached: made from what an operator says, stored encrypted, opened to a [`Forge`].
//!
//! ```text
//! Connect (API) ─▶ Connection::new ─▶ seal ─▶ fleets.connection ─▶ unseal ─┬▶ open ─▶ dyn Forge
//!                  checks, defaults                                        └▶ git ─▶ source::access
//! ```
//!
//! Credentials are bound to the fleet: what is sealed for one does not open for another. They are only ever sent
//! over TLS or SSH, or within this machine.

use std::sync::Arc;

use longshore_protocol::api::connection::{
    self as api, Connect, ConnectForge, ConnectedCredential, ConnectedForge, ConnectedGit,
    ForgeCredential, ForgeKind, GitCredential,
};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{
    Forge, GitLogin,
    client::{Client, Http},
    gitea::Gitea,
    github::GitHub,
    gitlab::GitLab,
    repository::{Remote, Repository, Transport, is_loopback},
};
use crate::{
    secret::{Keyring, SecretError},
    source::access::Credential,
    store::fleets::{Fleet, FleetId},
};

/// How a fleet's Git host is reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connection {
    /// The host with pull requests.
    pub forge: Option<ForgeSettings>,
    /// What Git presents to the repo; the forge's credential where absent.
    pub git: Option<GitCredential>,
}

/// A repo at a forge.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForgeSettings {
    /// Which API it has.
    pub kind: ForgeKind,
    /// The base URL of the API, without a slash at its end.
    pub url: Url,
    /// The repo there.
    pub repository: Repository,
    /// What is presented.
    pub credential: ForgeCredential,
}

/// Why a connection cannot be as it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConnection(pub String);

impl Connection {
    /// What an operator asked for, with what the repo's URL says where they said nothing.
    ///
    /// Plain http is for administrators, and for this machine only.
    pub fn new(
        asked: Connect,
        repo: &str,
        is_administrator: bool,
    ) -> Result<Self, InvalidConnection> {
        let remote = Remote::of(repo);
        let forge = asked
            .forge
            .map(|forge| ForgeSettings::new(forge, remote.as_ref(), is_administrator))
            .transpose()?;
        let transport = remote.as_ref().map(|remote| remote.transport);
        match &asked.git {
            None if forge.is_none() => {
                return invalid("a connection needs a forge, or a credential for Git");
            }
            None => {
                if let (Some(forge), Some(remote)) = (&forge, &remote)
                    && remote.transport != Transport::Ssh
                    && !forge.is_at(&remote.host)
                {
                    return invalid(format!(
                        "the repo is on {}, but the forge on {}: its credential is not sent elsewhere; give the \
                         forge's URL, or a credential for Git",
                        remote.host,
                        forge.url.host_str().unwrap_or_default()
                    ));
                }
            }
            Some(GitCredential::Password { username, password }) => {
                if !matches!(transport, Some(Transport::Https | Transport::Http)) {
                    return invalid(format!(
                        "a password is for an https URL, and `{repo}` is none"
                    ));
                }
                if username.contains([':', '\n']) || password.expose().contains('\n') {
                    return invalid("the user's name or the password holds a `:` or a line break");
                }
            }
            Some(GitCredential::Ssh {
                private_key,
                known_hosts,
            }) => {
                if transport != Some(Transport::Ssh) {
                    return invalid(format!(
                        "an SSH key is for an ssh URL, and `{repo}` is none"
                    ));
                }
                if !private_key.expose().contains("PRIVATE KEY-----") {
                    return invalid("the SSH key is no private key as `ssh-keygen` writes it");
                }
                if !known_hosts.lines().any(is_known_host) {
                    return invalid(
                        "the host's keys are missing; `ssh-keyscan HOST` prints them, and the host's owner can \
                         tell whether they are right",
                    );
                }
            }
        }
        Ok(Self {
            forge,
            git: asked.git,
        })
    }

    /// Encrypts it for the store.
    pub fn seal(&self, keyring: &Keyring, fleet: &FleetId) -> Result<Vec<u8>, SecretError> {
        let text = serde_json::to_string(self).map_err(|_unlikely| SecretError::Undecryptable)?;
        keyring.encrypt(&purpose(fleet), &text.into())
    }

    /// The connection of a fleet, if it has one.
    pub fn unseal(keyring: &Keyring, fleet: &Fleet) -> Result<Option<Self>, SecretError> {
        use secrecy::ExposeSecret as _;
        let Some(sealed) = &fleet.connection else {
            return Ok(None);
        };
        let text = keyring.decrypt(&purpose(&fleet.id), sealed)?;
        serde_json::from_str(text.expose_secret())
            .map(Some)
            .map_err(|_unlikely| SecretError::Undecryptable)
    }

    /// The forge, ready to be asked.
    pub fn open(&self, http: &Http) -> Result<Option<Arc<dyn Forge>>, InvalidConnection> {
        self.forge
            .as_ref()
            .map(|forge| forge.open(http))
            .transpose()
    }

    /// What Git presents to the fleet's repo: the credential that is for it, or the forge's where the repo is there.
    pub fn credential(&self, repo: &str, forge: Option<&Arc<dyn Forge>>) -> Option<Credential> {
        match &self.git {
            Some(GitCredential::Password { username, password }) => {
                Some(Credential::Password(GitLogin {
                    username: username.clone(),
                    password: password.expose().into(),
                }))
            }
            Some(GitCredential::Ssh {
                private_key,
                known_hosts,
            }) => Some(Credential::Ssh {
                private_key: private_key.expose().into(),
                known_hosts: known_hosts.clone(),
            }),
            None => {
                let remote = Remote::of(repo)?;
                let is_there = self.forge.as_ref()?.is_at(&remote.host);
                let may_present = is_there && remote.transport != Transport::Ssh;
                may_present.then(|| forge.cloned().map(Credential::Forge))?
            }
        }
    }

    /// It without its secrets.
    pub fn view(&self) -> api::Connection {
        api::Connection {
            forge: self.forge.as_ref().map(|forge| ConnectedForge {
                kind: forge.kind,
                url: forge.url.to_string(),
                repository: forge.repository.to_string(),
                credential: match &forge.credential {
                    ForgeCredential::Token(_) => ConnectedCredential::Token,
                    ForgeCredential::App {
                        id, installation, ..
                    } => ConnectedCredential::App {
                        id: *id,
                        installation: *installation,
                    },
                },
            }),
            git: self.git.as_ref().map(|git| match git {
                GitCredential::Password { username, .. } => ConnectedGit::Password {
                    username: username.clone(),
                },
                GitCredential::Ssh { known_hosts, .. } => ConnectedGit::Ssh {
                    known_hosts: known_hosts.clone(),
                },
            }),
        }
    }
}

impl ForgeSettings {
    fn new(
        asked: ConnectForge,
        remote: Option<&Remote>,
        is_administrator: bool,
    ) -> Result<Self, InvalidConnection> {
        let ConnectForge {
            kind,
            url,
            repository,
            credential,
        } = asked;
        let repository = match (repository, remote) {
            (Some(given), _) => given.parse().map_err(InvalidConnection)?,
            (
                None,
                Some(Remote {
                    repository: Some(repository),
                    ..
                }),
            ) => repository.clone(),
            (None, _) => {
                return invalid(
                    "the fleet's repo does not say its name at the forge; give it, such as `acme/kiosks`",
                );
            }
        };
        if kind != ForgeKind::GitLab && repository.segments().count() != 2 {
            return invalid(format!(
                "on {kind}, a repo's full name has two parts; `{repository}` has not"
            ));
        }
        let url = match (url, remote) {
            (Some(given), _) => given,
            (None, Some(remote)) => default_url(kind, remote),
            (None, None) => {
                return invalid(
                    "the fleet's repo does not say where the forge is; give the base URL of its API",
                );
            }
        };
        let url = Url::parse(url.trim_end_matches('/'))
            .map_err(|error| InvalidConnection(format!("`{url}` is no URL: {error}")))?;
        let is_plain = url.scheme() == "http" && is_administrator && is_loopback(&url);
        if url.scheme() != "https" && !is_plain || url.host().is_none() {
            return invalid(format!(
                "`{url}` must be an https URL: it is told the credential"
            ));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return invalid("the forge's URL must hold no credential and no query");
        }
        match &credential {
            ForgeCredential::Token(token) => {
                let is_printable = |c: char| c.is_ascii_graphic();
                if token.expose().is_empty() || !token.expose().chars().all(is_printable) {
                    return invalid("the token is empty, or holds characters that no token has");
                }
            }
            ForgeCredential::App { .. } if kind != ForgeKind::GitHub => {
                return invalid(format!("Apps are GitHub's; give a token for {kind}"));
            }
            ForgeCredential::App { .. } => {}
        }
        Ok(Self {
            kind,
            url,
            repository,
            credential,
        })
    }

    /// The forge, ready to be asked. It lives in a runtime.
    pub fn open(&self, http: &Http) -> Result<Arc<dyn Forge>, InvalidConnection> {
        let client = Client::new(http, self.url.clone()).map_err(|error| {
            InvalidConnection(format!(
                "this machine's certificates cannot be used: {error}"
            ))
        })?;
        Ok(match self.kind {
            ForgeKind::GitHub => Arc::new(GitHub::new(client, self)?),
            ForgeKind::GitLab => Arc::new(GitLab::new(client, self)?),
            ForgeKind::Gitea => Arc::new(Gitea::new(client, self)?),
        })
    }

    /// Whether a repo on `host` is one of this forge, so that Git may present the forge's credential there.
    pub fn is_at(&self, host: &str) -> bool {
        let own = self.url.host_str().unwrap_or_default();
        own == host
            || self.kind == ForgeKind::GitHub
                && (host == "github.com" || host.ends_with(".ghe.com"))
                && own.strip_prefix("api.") == Some(host)
    }
}

/// Where the API is, by the documentation of each forge.
///
/// - GitHub: <https://docs.github.com/en/rest/using-the-rest-api/getting-started-with-the-rest-api>; Enterprise
///   Server has it below `/api/v3`, Enterprise Cloud with data residency on `api.` of its own domain.
/// - GitLab: <https://docs.gitlab.com/api/rest/>.
/// - Gitea: <https://docs.gitea.com/development/api-usage>.
fn default_url(kind: ForgeKind, remote: &Remote) -> String {
    let scheme = match remote.transport {
        Transport::Http => "http",
        Transport::Https | Transport::Ssh => "https",
    };
    let mut host = remote.host.clone();
    // SSH's port is not that of the API.
    if let Some(port) = remote.port.filter(|_| remote.transport != Transport::Ssh) {
        host = format!("{host}:{port}");
    }
    match kind {
        ForgeKind::GitHub => match host.as_str() {
            "github.com" | "ssh.github.com" => "https://api.github.com".to_owned(),
            resident if resident.ends_with(".ghe.com") => format!("https://api.{resident}"),
            own => format!("{scheme}://{own}/api/v3"),
        },
        ForgeKind::GitLab => format!("{scheme}://{host}/api/v4"),
        ForgeKind::Gitea => format!("{scheme}://{host}/api/v1"),
    }
}

/// A line of a known-hosts file that names a host: name, kind of key, key (sshd(8)).
fn is_known_host(line: &str) -> bool {
    !line.starts_with('#') && line.split_whitespace().count() >= 3
}

/// What a connection is encrypted for.
fn purpose(fleet: &FleetId) -> String {
    format!("connection {fleet}")
}

fn invalid<T>(message: impl Into<String>) -> Result<T, InvalidConnection> {
    Err(InvalidConnection(message.into()))
}

#[cfg(test)]
mod tests;
