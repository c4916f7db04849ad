//! What Git presents to a fleet's repo, and how it is told without anybody else hearing it.
//!
//! - A password or a forge's token goes to https URLs, as a header that Git's configuration sets for the repo's URL
//!   alone. The configuration is in the environment, not in arguments, and redirects are off.
//! - A key goes to ssh URLs, from files that only we can read and that exist while Git runs. Hosts are known by the
//!   keys that were given and by nothing else.
//! - Where a fleet has a credential of its own, nothing of the controller's speaks for it: no helpers, no agent, no
//!   configuration. Plain http is for this machine only.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use secrecy::{ExposeSecret as _, SecretString};
use tempfile::TempDir;
use url::Url;

use super::git::GitError;
use crate::{
    forge::{
        Forge, GitLogin,
        repository::{Remote, Transport, is_loopback},
    },
    store::fleets::Fleet,
};

/// How the folders begin that hold a key while Git runs.
const KEY_FOLDER: &str = "ssh-";

/// How Git reaches a fleet's repo.
#[derive(Clone, Debug)]
pub struct Access {
    /// Who added the repo.
    pub trust: Trust,
    remote: String,
    credential: Option<Credential>,
}

/// Who added a repo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// An administrator: local paths, and the controller's own credentials where the fleet has none.
    Administrator,
    /// A tenant: no local paths, and no credentials of ours.
    Tenant,
}

/// What Git presents.
#[derive(Clone, Debug)]
pub enum Credential {
    /// What the forge makes for Git.
    Forge(Arc<dyn Forge>),
    /// A name and a password.
    Password(GitLogin),
    /// A key.
    Ssh {
        /// As OpenSSH writes it.
        private_key: SecretString,
        /// The host's keys, as sshd(8) describes known-hosts files.
        known_hosts: String,
    },
}

/// What one run of Git is given.
#[derive(Debug, Default)]
pub(super) struct Presented {
    /// Beside the usual environment.
    pub(super) environment: Vec<(&'static str, OsString)>,
    /// What must not be repeated.
    secrets: Vec<SecretString>,
    /// Deleted when Git is done.
    _files: Option<TempDir>,
}

impl Access {
    /// The access to a fleet's repo.
    pub fn new(fleet: &Fleet, credential: Option<Credential>) -> Self {
        Self {
            trust: if fleet.trusted {
                Trust::Administrator
            } else {
                Trust::Tenant
            },
            remote: fleet.repo.clone(),
            credential,
        }
    }

    /// Whether nothing of the controller's own may be used.
    pub(super) fn is_isolated(&self) -> bool {
        self.trust == Trust::Tenant || self.credential.is_some()
    }

    /// Git's `GIT_ALLOW_PROTOCOL`.
    pub(super) fn protocols(&self) -> &'static str {
        let is_local_http =
            Url::parse(&self.remote).is_ok_and(|url| url.scheme() == "http" && is_loopback(&url));
        match (&self.credential, self.trust, is_local_http) {
            (Some(Credential::Ssh { .. }), _, _) => "ssh",
            (_, Trust::Administrator, true) => "http",
            (Some(_), _, _) | (None, Trust::Tenant, _) => "https",
            (None, Trust::Administrator, false) => "file:https:ssh",
        }
    }

    /// The host refused what was presented: the next run of Git presents something new, where there is any.
    pub(super) async fn forget_login(&self) {
        if let Some(Credential::Forge(forge)) = &self.credential {
            forge.forget_login().await;
        }
    }

    /// Makes ready what one run of Git in `directory` needs.
    pub(super) async fn present(&self, directory: &Path) -> Result<Presented, GitError> {
        let is_ssh = Remote::of(&self.remote).is_some_and(|it| it.transport == Transport::Ssh);
        match &self.credential {
            None if is_ssh && self.trust == Trust::Tenant => Err(GitError::NoKey),
            None => Ok(Presented::default()),
            Some(Credential::Forge(forge)) => {
                let login = forge.git_login().await.map_err(GitError::Login)?;
                Ok(Presented::login(&self.remote, &login))
            }
            Some(Credential::Password(login)) => Ok(Presented::login(&self.remote, login)),
            Some(Credential::Ssh {
                private_key,
                known_hosts,
            }) => {
                let (key, hosts) = (private_key.clone(), known_hosts.clone());
                let directory = directory.to_owned();
                tokio::task::spawn_blocking(move || Presented::key(&directory, &key, &hosts))
                    .await
                    .map_err(|_cut| GitError::Cut)?
                    .map_err(GitError::Key)
            }
        }
    }
}

/// Deletes keys that a controller left behind which was killed.
pub(super) fn clean(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(KEY_FOLDER) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

impl Presented {
    /// HTTP's basic authentication (RFC 7617), unasked: hosts answer 404 to who does not show anything.
    fn login(remote: &str, login: &GitLogin) -> Self {
        let pair = format!("{}:{}", login.username, login.password.expose_secret());
        let pair = BASE64_STANDARD.encode(pair);
        let environment = vec![
            ("GIT_CONFIG_COUNT", "1".into()),
            (
                "GIT_CONFIG_KEY_0",
                format!("http.{remote}.extraHeader").into(),
            ),
            (
                "GIT_CONFIG_VALUE_0",
                format!("Authorization: Basic {pair}").into(),
            ),
        ];
        Self {
            environment,
            secrets: vec![login.password.clone(), pair.into()],
            _files: None,
        }
    }

    fn key(directory: &Path, key: &SecretString, known_hosts: &str) -> io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(KEY_FOLDER)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(directory)?;
        let write = |name: &str, content: &str| {
            let path = folder.path().join(name);
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(content.as_bytes())?;
            io::Result::Ok(quoted(&path))
        };
        let key = write("key", key.expose_secret())?;
        let known_hosts = write("known_hosts", known_hosts)?;
        let command = [
            "ssh -F /dev/null -oBatchMode=yes -oStrictHostKeyChecking=yes -oUpdateHostKeys=no",
            "-oGlobalKnownHostsFile=/dev/null -oIdentitiesOnly=yes -oIdentityAgent=none",
            "-oPreferredAuthentications=publickey -oConnectTimeout=10",
            &format!("-oUserKnownHostsFile={known_hosts} -oIdentityFile={key}"),
        ];
        Ok(Self {
            environment: vec![
                ("GIT_SSH_COMMAND", command.join(" ").into()),
                ("GIT_SSH_VARIANT", "ssh".into()),
            ],
            secrets: Vec::new(),
            _files: Some(folder),
        })
    }

    /// What Git or its host said, without the secrets that they were told.
    pub(super) fn without_secrets(&self, text: String) -> String {
        self.secrets.iter().fold(text, |text, secret| {
            text.replace(secret.expose_secret(), "[secret]")
        })
    }
}

/// A path as ssh's option, within a shell's word: ssh takes quotes away and expands percent signs.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let for_ssh = path
        .replace('%', "%%")
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    format!("'\"{}\"'", for_ssh.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_the_shell_and_ssh() {
        let quoted = quoted(Path::new("/srv/a b/100%/it's/\"x\""));
        assert_eq!(quoted, r#"'"/srv/a b/100%%/it'\''s/\"x\""'"#);
    }

    #[test]
    fn secrets_are_not_repeated() {
        let login = GitLogin {
            username: "deploy".to_owned(),
            password: "hush".into(),
        };
        let presented = Presented::login("https://git.example/a/b.git", &login);
        let said = "fatal: hush; Basic ZGVwbG95Omh1c2g=".to_owned();
        assert_eq!(
            presented.without_secrets(said),
            "fatal: [secret]; Basic [secret]"
        );
        assert!(!format!("{login:?}").contains("hush"));
    }
}
