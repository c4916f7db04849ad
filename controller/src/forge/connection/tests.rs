//! What operators may ask for, and what is made of it.

use std::path::Path;

use longshore_protocol::api::connection::Secret;

use super::*;
use crate::store::fleets::FleetStatus;

fn secret(text: &str) -> Secret {
    text.to_owned().into()
}

fn forge(kind: ForgeKind, url: Option<&str>, repository: Option<&str>) -> Connect {
    Connect {
        forge: Some(ConnectForge {
            kind,
            url: url.map(str::to_owned),
            repository: repository.map(str::to_owned),
            credential: ForgeCredential::Token(secret("hush-hush")),
        }),
        ..Connect::default()
    }
}

fn ssh(key: &str, known_hosts: &str) -> Connect {
    Connect {
        git: Some(GitCredential::Ssh {
            private_key: secret(key),
            known_hosts: known_hosts.to_owned(),
        }),
        ..Connect::default()
    }
}

#[test]
fn the_repos_url_says_where_the_forge_is() {
    let cases = [
        (
            ForgeKind::GitHub,
            "https://github.com/acme/kiosks.git",
            "https://api.github.com/",
        ),
        (
            ForgeKind::GitHub,
            "ssh://git@ssh.github.com:443/acme/kiosks",
            "https://api.github.com/",
        ),
        (
            ForgeKind::GitHub,
            "https://acme.ghe.com/acme/kiosks",
            "https://api.acme.ghe.com/",
        ),
        (
            ForgeKind::GitHub,
            "https://ghe.example:8443/acme/kiosks",
            "https://ghe.example:8443/api/v3",
        ),
        (
            ForgeKind::GitLab,
            "ssh://git@git.example:2222/acme/kiosks",
            "https://git.example/api/v4",
        ),
        (
            ForgeKind::Gitea,
            "https://git.example/acme/kiosks.git",
            "https://git.example/api/v1",
        ),
    ];
    for (kind, repo, url) in cases {
        let connection = Connection::new(forge(kind, None, None), repo, false).unwrap();
        let settings = connection.forge.unwrap();
        assert_eq!(settings.url.as_str(), url, "{repo}");
        assert_eq!(settings.repository.as_str(), "acme/kiosks", "{repo}");
    }
}

#[test]
fn what_cannot_work_or_would_give_a_secret_away_is_refused() {
    let https = "https://git.example/acme/kiosks.git";
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----";
    let cases = [
        (Connect::default(), https, "needs a forge"),
        (
            forge(ForgeKind::GitHub, None, None),
            "/srv/kiosks.git",
            "does not say its name",
        ),
        (
            forge(ForgeKind::GitHub, None, Some("a/b")),
            "/srv/kiosks.git",
            "where the forge is",
        ),
        (
            forge(ForgeKind::GitHub, None, Some("a/b/c")),
            https,
            "two parts",
        ),
        (
            forge(ForgeKind::Gitea, Some("http://git.example"), None),
            https,
            "must be an https URL",
        ),
        (
            forge(ForgeKind::Gitea, Some("http://127.0.0.1:1"), None),
            https,
            "must be an https URL",
        ),
        (
            forge(ForgeKind::Gitea, Some("https://u:p@git.example"), None),
            https,
            "no credential",
        ),
        (
            forge(ForgeKind::GitHub, Some("https://api.github.com"), None),
            https,
            "not sent elsewhere",
        ),
        (
            ssh(key, "git.example ssh-ed25519 AAAA"),
            https,
            "for an ssh URL",
        ),
        (
            ssh("AAAA", "git.example ssh-ed25519 AAAA"),
            "ssh://git@git.example/a/b",
            "no private key",
        ),
        (
            ssh(key, "# nothing"),
            "ssh://git@git.example/a/b",
            "host's keys are missing",
        ),
    ];
    for (asked, repo, expected) in cases {
        let error = Connection::new(asked, repo, false).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let loopback = forge(ForgeKind::Gitea, Some("http://127.0.0.1:1"), Some("a/b"));
    Connection::new(loopback, "/srv/kiosks.git", true).unwrap();
}

#[test]
fn the_credential_of_a_forge_is_for_its_own_host() {
    let settings = |repo: &str| {
        Connection::new(forge(ForgeKind::GitHub, None, None), repo, false)
            .unwrap()
            .forge
            .unwrap()
    };
    let cloud = settings("https://github.com/acme/kiosks");
    assert!(cloud.is_at("github.com") && !cloud.is_at("hub.com") && !cloud.is_at("example.com"));
    let own = settings("https://ghe.example/acme/kiosks");
    assert!(own.is_at("ghe.example") && !own.is_at("github.com"));
}

#[test]
fn a_sealed_connection_opens_for_its_fleet_only() {
    let keyring = Keyring::open(Path::new("/nonexistent"), Some(&"07".repeat(32).into())).unwrap();
    let id = |name: &str| FleetId {
        tenant: "acme".parse().unwrap(),
        name: name.parse().unwrap(),
    };
    let repo = "https://github.com/acme/kiosks";
    let connection = Connection::new(forge(ForgeKind::GitHub, None, None), repo, false).unwrap();
    let sealed = connection.seal(&keyring, &id("kiosks")).unwrap();
    assert!(!String::from_utf8_lossy(&sealed).contains("hush"));
    let mut fleet = Fleet {
        id: id("kiosks"),
        repo: repo.to_owned(),
        branch: "main".to_owned(),
        path: String::new(),
        trusted: false,
        webhook_secret: Vec::new(),
        webhook_secret_before: None,
        connection: Some(sealed),
        hosted: false,
        status: FleetStatus::default(),
        confirmed_revision: None,
        changes: 0,
        created_at: 0,
    };
    let again = Connection::unseal(&keyring, &fleet).unwrap().unwrap();
    assert_eq!(again.view(), connection.view());
    assert!(!format!("{again:?} {:?}", again.view()).contains("hush"));
    fleet.id = id("others");
    assert!(Connection::unseal(&keyring, &fleet).is_err());
}
