//! How a fleet's Git host is reached: its forge (a host with pull requests) and what Git presents to the repo.
//!
//! Secrets go in and never come out: [`Connect`] carries them, [`Connection`] does not.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `PUT …/fleets/{fleet}/connection`: replaces whatever connection there was.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connect {
    /// The forge, where the host has pull requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forge: Option<ConnectForge>,
    /// What Git presents to the repo; the forge's credential where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitCredential>,
    /// Whether to store it even if the forge does not answer, or does not allow all that is needed.
    #[serde(default)]
    pub force: bool,
}

/// The forge of [`Connect`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectForge {
    /// Which API it has.
    pub kind: ForgeKind,
    /// The base URL of its API, such as `https://ghe.example.com/api/v3`; absent, it follows from the repo's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The repo's full name there, such as `acme/kiosks`; absent, it follows from the repo's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// What the controller presents.
    pub credential: ForgeCredential,
}

/// Which API a forge has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForgeKind {
    /// GitHub, and GitHub Enterprise.
    GitHub,
    /// GitLab.
    GitLab,
    /// Gitea and Forgejo.
    Gitea,
}

impl fmt::Display for ForgeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GitHub => "GitHub",
            Self::GitLab => "GitLab",
            Self::Gitea => "Gitea",
        })
    }
}

/// What the controller presents to a forge.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ForgeCredential {
    /// A token of a user, a project or a repo.
    Token(Secret),
    /// A GitHub App.
    App {
        /// The App's id.
        id: u64,
        /// Its installation; absent, it is the one that has the repo.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        installation: Option<u64>,
        /// Its RSA key in PEM.
        private_key: Secret,
    },
}

/// What Git presents to the repo.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum GitCredential {
    /// To an https URL.
    Password {
        /// The user's name; hosts prescribe one for tokens.
        username: String,
        /// The password or token.
        password: Secret,
    },
    /// To an ssh URL.
    Ssh {
        /// The key, as OpenSSH writes it, without a passphrase.
        private_key: Secret,
        /// The host's keys, in lines as `ssh-keyscan` prints them; no other host is talked to.
        known_hosts: String,
    },
}

/// A secret on its way to where it is kept: as plain as any text on the wire, and never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A fleet's connection, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// The forge.
    pub forge: Option<ConnectedForge>,
    /// What Git presents to the repo; the forge's credential where absent.
    pub git: Option<ConnectedGit>,
}

/// The forge of [`Connection`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectedForge {
    /// Which API it has.
    pub kind: ForgeKind,
    /// The base URL of its API.
    pub url: String,
    /// The repo's full name there.
    pub repository: String,
    /// What the controller presents.
    pub credential: ConnectedCredential,
}

/// What the controller presents to a forge, without the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ConnectedCredential {
    /// A token.
    Token,
    /// A GitHub App.
    App {
        /// The App's id.
        id: u64,
        /// Its installation, where it was given.
        installation: Option<u64>,
    },
}

/// What Git presents to the repo, without the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ConnectedGit {
    /// A password.
    Password {
        /// Whose.
        username: String,
    },
    /// A key.
    Ssh {
        /// The host's keys.
        known_hosts: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_sent_and_not_printed() {
        let connect = Connect {
            forge: Some(ConnectForge {
                kind: ForgeKind::GitHub,
                url: None,
                repository: Some("acme/kiosks".to_owned()),
                credential: ForgeCredential::App {
                    id: 17,
                    installation: None,
                    private_key: "hush".to_owned().into(),
                },
            }),
            git: Some(GitCredential::Password {
                username: "deploy".to_owned(),
                password: "hush".to_owned().into(),
            }),
            force: false,
        };
        let json = serde_json::to_value(&connect).unwrap();
        let expected = serde_json::json!({
            "forge": {
                "kind": "github",
                "repository": "acme/kiosks",
                "credential": {"app": {"id": 17, "privateKey": "hush"}},
            },
            "git": {"password": {"username": "deploy", "password": "hush"}},
            "force": false,
        });
        assert_eq!(json, expected);
        let again: Connect = serde_json::from_value(json).unwrap();
        assert!(!format!("{again:?}").contains("hush"));
    }
}
