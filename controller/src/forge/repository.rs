//! A repo's name at its host, and what a repo's URL says of both.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// A repo's full name: `acme/kiosks`; on GitLab, groups may be nested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(String);

impl Repository {
    /// The name's parts, at least two.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The parts before the last: a user, an organization, groups.
    pub fn owner(&self) -> &str {
        self.0.rsplit_once('/').unwrap_or_default().0
    }

    /// The last part.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').unwrap_or_default().1
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repository {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.~".contains(c))
        };
        if text.len() > 500 || !text.contains('/') || !text.split('/').all(is_name) {
            return Err(format!(
                "`{text}` is no full name of a repo, such as `acme/kiosks`"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Repository {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Repository> for String {
    fn from(repository: Repository) -> Self {
        repository.0
    }
}

/// What a repo's URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// How Git talks to it.
    pub transport: Transport,
    /// The host.
    pub host: String,
    /// Its port, where it is not the transport's own.
    pub port: Option<u16>,
    /// The repo's name, if the path looks like one.
    pub repository: Option<Repository>,
}

/// How Git talks to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In plain text: good on loopback only.
    Http,
    /// With TLS.
    Https,
    /// Over SSH.
    Ssh,
}

impl Remote {
    /// Reads `https://host/acme/kiosks.git`, `ssh://git@host/acme/kiosks` and `git@host:acme/kiosks`; `None` where
    /// the repo is not on a host.
    pub fn of(repo: &str) -> Option<Self> {
        let (transport, host, port, path) = match Url::parse(repo) {
            Ok(url) if !repo.starts_with('/') && repo.contains("://") => {
                let transport = match url.scheme() {
                    "http" => Transport::Http,
                    "https" => Transport::Https,
                    "ssh" => Transport::Ssh,
                    _ => return None,
                };
                let host = url.host_str()?.to_owned();
                (transport, host, url.port(), url.path().to_owned())
            }
            _ => {
                let (host, path) = repo.split_once(':')?;
                let (_, host) = host.split_once('@')?;
                (Transport::Ssh, host.to_owned(), None, path.to_owned())
            }
        };
        let path = path.trim_matches('/');
        Some(Self {
            transport,
            host: host.to_ascii_lowercase(),
            port,
            repository: path.strip_suffix(".git").unwrap_or(path).parse().ok(),
        })
    }
}

/// Whether a URL stays on this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repos_url_says_host_and_name() {
        let remote = |transport, host: &str, port, repository: &str| Remote {
            transport,
            host: host.to_owned(),
            port,
            repository: repository.parse().ok(),
        };
        let cases = [
            (
                "https://github.com/acme/kiosks.git",
                remote(Transport::Https, "github.com", None, "acme/kiosks"),
            ),
            (
                "https://Git.Example:8443/a/b/c",
                remote(Transport::Https, "git.example", Some(8443), "a/b/c"),
            ),
            (
                "ssh://git@github.com/acme/kiosks",
                remote(Transport::Ssh, "github.com", None, "acme/kiosks"),
            ),
            (
                "git@github.com:acme/kiosks.git",
                remote(Transport::Ssh, "github.com", None, "acme/kiosks"),
            ),
            (
                "http://127.0.0.1:3000/acme/kiosks.git/",
                remote(Transport::Http, "127.0.0.1", Some(3000), "acme/kiosks"),
            ),
            (
                "https://git.example/only",
                remote(Transport::Https, "git.example", None, ""),
            ),
        ];
        for (repo, expected) in cases {
            assert_eq!(Remote::of(repo), Some(expected), "{repo}");
        }
        for repo in ["/srv/git/kiosks.git", "file:///srv/kiosks.git", "kiosks"] {
            assert_eq!(Remote::of(repo), None, "{repo}");
        }
    }

    #[test]
    fn names_that_would_leave_their_place_in_a_url_are_refused() {
        for name in [
            "acme", "acme/", "../x", "acme/..", "a?b/c", "a/b%2e", "a b/c", "",
        ] {
            assert!(name.parse::<Repository>().is_err(), "{name}");
        }
        let nested: Repository = "group/sub/kiosks".parse().unwrap();
        assert_eq!((nested.owner(), nested.name()), ("group/sub", "kiosks"));
    }
}
