//! Which host a delivery is from, by its headers.
//!
//! A delivery is verified by its own host's rule and by no other. So headers of several hosts in one delivery are
//! refused, except where a host is known to speak for another: Forgejo sends the headers of Gitea, Gogs and GitHub
//! beside its own, Gitea those of Gogs and GitHub.

use std::fmt;

use http::HeaderMap;
use secrecy::SecretString;

use crate::{
    Delivery, Error, bitbucket_cloud, bitbucket_data_center, generic, gitea, github, gitlab,
};

/// A Git host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// github.com and GitHub Enterprise Server.
    GitHub,
    /// gitlab.com and GitLab.
    GitLab,
    /// Gitea.
    Gitea,
    /// Forgejo, such as Codeberg.
    Forgejo,
    /// bitbucket.org.
    BitbucketCloud,
    /// Bitbucket Data Center, once Bitbucket Server.
    BitbucketDataCenter,
    /// Whoever signs with `X-Longshore-Signature`.
    Generic,
}

/// Families of headers, as a set.
const GITHUB: u8 = 1;
const GOGS: u8 = 1 << 1;
const GITEA: u8 = 1 << 2;
const FORGEJO: u8 = 1 << 3;
const GITLAB: u8 = 1 << 4;
const BITBUCKET: u8 = 1 << 5;
const LONGSHORE: u8 = 1 << 6;

impl Host {
    /// Who sent these headers, and claims to have signed.
    ///
    /// It is cheap, and needs no body: a delivery that fails here need not be read.
    ///
    /// # Errors
    /// Where it is nobody, or several, or where the signature is missing.
    pub fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let families = headers
            .keys()
            .fold(0, |families, name| families | family(name.as_str()));
        let host = if families & FORGEJO != 0 && families & !(FORGEJO | GITEA | GOGS | GITHUB) == 0
        {
            Self::Forgejo
        } else if families & GITEA != 0 && families & !(GITEA | GOGS | GITHUB) == 0 {
            Self::Gitea
        } else {
            match families {
                GITHUB => Self::GitHub,
                GITLAB => Self::GitLab,
                BITBUCKET if bitbucket_cloud::is_its(headers) => Self::BitbucketCloud,
                BITBUCKET => Self::BitbucketDataCenter,
                LONGSHORE => Self::Generic,
                0 | GOGS => return Err(Error::UnknownHost),
                _ => return Err(Error::SeveralHosts),
            }
        };
        host.check_signed(headers)?;
        Ok(host)
    }

    /// Verifies and parses a delivery of this host.
    ///
    /// # Errors
    /// Where the delivery is not signed with one of the secrets, or is not what it says it is.
    pub fn receive(
        self,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[SecretString],
    ) -> Result<Delivery, Error> {
        match self {
            Self::GitHub => github::receive(headers, body, secrets),
            Self::GitLab => gitlab::receive(headers, body, secrets),
            Self::Gitea => gitea::receive(headers, body, secrets),
            Self::Forgejo => gitea::receive_forgejo(headers, body, secrets),
            Self::BitbucketCloud => bitbucket_cloud::receive(headers, body, secrets),
            Self::BitbucketDataCenter => bitbucket_data_center::receive(headers, body, secrets),
            Self::Generic => generic::receive(headers, body, secrets),
        }
    }

    /// Its name, for metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::GitLab => "gitlab",
            Self::Gitea => "gitea",
            Self::Forgejo => "forgejo",
            Self::BitbucketCloud => "bitbucket_cloud",
            Self::BitbucketDataCenter => "bitbucket_data_center",
            Self::Generic => "generic",
        }
    }

    fn check_signed(self, headers: &HeaderMap) -> Result<(), Error> {
        let signatures: &[&'static str] = match self {
            Self::GitHub => &[github::SIGNATURE],
            Self::GitLab => &[gitlab::SIGNATURE, gitlab::TOKEN],
            Self::Gitea => gitea::SIGNATURES,
            Self::Forgejo => gitea::FORGEJO_SIGNATURES,
            Self::BitbucketCloud | Self::BitbucketDataCenter => &[bitbucket_cloud::SIGNATURE],
            Self::Generic => &[generic::SIGNATURE],
        };
        if signatures.iter().any(|name| headers.contains_key(*name)) {
            return Ok(());
        }
        let expected = signatures.last().copied().unwrap_or_default();
        Err(Error::MissingSignature(expected))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose header it is. `X-Hub-Signature` and `X-Hub-Signature-256` are several hosts', and so say nothing.
fn family(name: &str) -> u8 {
    const PREFIXES: [(&str, u8); 7] = [
        ("x-github-", GITHUB),
        ("x-gogs-", GOGS),
        ("x-gitea-", GITEA),
        ("x-forgejo-", FORGEJO),
        ("x-gitlab-", GITLAB),
        ("webhook-", GITLAB),
        ("x-longshore-", LONGSHORE),
    ];
    if matches!(name, "x-event-key" | "x-hook-uuid") {
        return BITBUCKET;
    }
    PREFIXES
        .into_iter()
        .find_map(|(prefix, family)| name.starts_with(prefix).then_some(family))
        .unwrap_or(0)
}
