//! `longshore fleets connect`: how the controller reaches a fleet's Git host.
//!
//! Secrets come from files or stdin, never from arguments: those are in the process list and the shell's history.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use longshore_protocol::{
    FleetName,
    api::connection::{
        Connect, ConnectForge, ConnectedCredential, ConnectedGit, Connection, ForgeCredential,
        ForgeKind, GitCredential, Secret,
    },
};

use super::Context;
use crate::{
    Error, Exit,
    api::Api,
    output::{pairs, say},
};

/// The largest file of a secret, in bytes.
const MAX_SECRET: u64 = 32 * 1024;

/// How the host is reached.
#[derive(Debug, Subcommand)]
pub enum Host {
    /// GitHub or GitHub Enterprise, as an App or with a token
    #[command(after_help = "\
Examples:
  longshore fleets connect shops github --app-id 17 --app-key-file longshore.pem
  longshore fleets connect shops github --access-token-file token
  longshore fleets connect shops github --repository acme/shops --access-token-file token")]
    Github(Github),
    /// GitLab, with a token
    Gitlab(Token),
    /// Gitea or Forgejo, with a token
    Gitea(Token),
    /// Any other Git host: only what Git presents to it
    #[command(after_help = "\
Examples:
  ssh-keyscan git.example > known_hosts      # then compare them with what the host's owner says
  longshore fleets connect shops git --ssh-key-file deploy_key --known-hosts-file known_hosts
  longshore fleets connect shops git --username deploy --password-file password")]
    Git(GitOnly),
}

/// GitHub.
#[derive(Args, Debug)]
pub struct Github {
    #[command(flatten)]
    at: At,
    /// A file with the token; `-` for stdin
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "app_id",
        required_unless_present = "app_id"
    )]
    access_token_file: Option<PathBuf>,
    /// The App's id
    #[arg(long, value_name = "N", requires = "app_key_file")]
    app_id: Option<u64>,
    /// A file with the App's private key in PEM; `-` for stdin
    #[arg(long, value_name = "FILE", requires = "app_id")]
    app_key_file: Option<PathBuf>,
    /// The App's installation [default: the one that has the repo]
    #[arg(long, value_name = "N", requires = "app_id")]
    installation: Option<u64>,
    #[command(flatten)]
    ssh: Ssh,
}

/// A forge with a token.
#[derive(Args, Debug)]
pub struct Token {
    #[command(flatten)]
    at: At,
    /// A file with the token; `-` for stdin
    #[arg(long, value_name = "FILE")]
    access_token_file: PathBuf,
    #[command(flatten)]
    ssh: Ssh,
}

/// Where the repo is.
#[derive(Args, Debug)]
struct At {
    /// The repo's full name there, such as `acme/shops` [default: what the fleet's repo says]
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// The base URL of the host's API [default: what the fleet's repo says]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Connect even if the host does not answer, or the credential may not do all that is needed
    #[arg(long)]
    force: bool,
}

/// A key for an ssh URL.
#[derive(Args, Debug)]
struct Ssh {
    /// A file with the private key that Git presents to an ssh URL
    #[arg(long, value_name = "FILE", requires = "known_hosts_file")]
    ssh_key_file: Option<PathBuf>,
    /// A file with the host's keys, as `ssh-keyscan` prints them; Git talks to no other host
    #[arg(long, value_name = "FILE", requires = "ssh_key_file")]
    known_hosts_file: Option<PathBuf>,
}

/// Git alone.
#[derive(Args, Debug)]
pub struct GitOnly {
    /// The user's name for an https URL
    #[arg(
        long,
        value_name = "NAME",
        requires = "password_file",
        conflicts_with = "ssh_key_file",
        required_unless_present = "ssh_key_file"
    )]
    username: Option<String>,
    /// A file with the password or token; `-` for stdin
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    ssh: Ssh,
}

pub(super) async fn run(
    context: &Context,
    api: &Api,
    fleet: &FleetName,
    host: Host,
) -> Result<Exit, Error> {
    let connected = api.connect(fleet, &host.connect()?).await?;
    context.output.show(&connected, show)?;
    say(&format!(
        "the controller reaches the repo of `{fleet}` this way from now on"
    ));
    Ok(Exit::Success)
}

/// A connection for people.
pub(super) fn show(connection: &Connection) -> String {
    let forge = connection.forge.as_ref();
    pairs([
        ("Forge", forge.map(|it| it.kind.to_string())),
        ("API", forge.map(|it| it.url.clone())),
        ("Repository", forge.map(|it| it.repository.clone())),
        (
            "Credential",
            forge.map(|it| match it.credential {
                ConnectedCredential::Token => "token".to_owned(),
                ConnectedCredential::App {
                    id,
                    installation: None,
                } => format!("App {id}"),
                ConnectedCredential::App {
                    id,
                    installation: Some(installation),
                } => format!("App {id}, installation {installation}"),
            }),
        ),
        (
            "Git",
            Some(match &connection.git {
                None => "with the forge's credential".to_owned(),
                Some(ConnectedGit::Password { username }) => format!("password of {username}"),
                Some(ConnectedGit::Ssh { known_hosts }) => {
                    let keys = known_hosts
                        .lines()
                        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
                    match keys.count() {
                        1 => "SSH key, 1 pinned host key".to_owned(),
                        many => format!("SSH key, {many} pinned host keys"),
                    }
                }
            }),
        ),
    ])
}

impl Host {
    fn connect(self) -> Result<Connect, Error> {
        match self {
            Self::Github(Github {
                at,
                access_token_file,
                app_id,
                app_key_file,
                installation,
                ssh,
            }) => {
                let credential = match (app_id, app_key_file, access_token_file) {
                    (Some(id), Some(key), _) => ForgeCredential::App {
                        id,
                        installation,
                        private_key: secret(&key)?,
                    },
                    (_, _, Some(token)) => ForgeCredential::Token(secret(&token)?),
                    _ => return Err(Error::usage("a token or an App is needed")),
                };
                forge(ForgeKind::GitHub, at, credential, ssh)
            }
            Self::Gitlab(token) => token.connect(ForgeKind::GitLab),
            Self::Gitea(token) => token.connect(ForgeKind::Gitea),
            Self::Git(GitOnly {
                username,
                password_file,
                ssh,
            }) => Ok(Connect {
                git: match (username, password_file) {
                    (Some(username), Some(password)) => Some(GitCredential::Password {
                        username,
                        password: secret(&password)?,
                    }),
                    _ => ssh.credential()?,
                },
                ..Connect::default()
            }),
        }
    }
}

impl Token {
    fn connect(self, kind: ForgeKind) -> Result<Connect, Error> {
        let credential = ForgeCredential::Token(secret(&self.access_token_file)?);
        forge(kind, self.at, credential, self.ssh)
    }
}

fn forge(kind: ForgeKind, at: At, credential: ForgeCredential, ssh: Ssh) -> Result<Connect, Error> {
    Ok(Connect {
        forge: Some(ConnectForge {
            kind,
            url: at.url,
            repository: at.repository,
            credential,
        }),
        git: ssh.credential()?,
        force: at.force,
    })
}

impl Ssh {
    fn credential(self) -> Result<Option<GitCredential>, Error> {
        let (Some(key), Some(known_hosts)) = (self.ssh_key_file, self.known_hosts_file) else {
            return Ok(None);
        };
        Ok(Some(GitCredential::Ssh {
            // OpenSSH wants the line break at the end of a key.
            private_key: format!("{}\n", secret(&key)?.expose()).into(),
            known_hosts: read(&known_hosts)?,
        }))
    }
}

/// A secret from a file, without the line break that editors put at its end.
fn secret(path: &Path) -> Result<Secret, Error> {
    let text = read(path)?.trim_end().to_owned();
    if text.is_empty() {
        return Err(Error::usage(format!("{} is empty", path.display())));
    }
    Ok(text.into())
}

fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let done = if path == Path::new("-") {
        io::stdin().take(MAX_SECRET).read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text))
    };
    done.map_err(|error| {
        Error::usage(format!("{} cannot be read", path.display())).because(error)
    })?;
    Ok(text)
}
