//! What the agent is: its key, its certificate and where it belongs, in a state directory of its own.
//!
//! ```text
//! <state-dir>/                 0700, owned by the agent's user
//!   lock                       held while an agent runs: one state directory, one agent
//!   enrollment.json     0600   while enrolling: the key, and the device id and token once given
//!   identity.json       0600   once enrolled: key, certificate chain, CA bundle, edge URL, device id and token
//!   decommissioned.json 0600   after a decommission: when and why
//!   token               0600   the provisioning token, where whoever installed the agent left it
//!   clock               0600   see [`crate::clock`]
//!   journal             0600   see [`crate::journal`]
//!   ledger.<generation> 0600   see [`crate::ledger`]
//! ```
//!
//! In a pod, a Secret may keep the first three, too ([`StateDir::keep_in`]): the pod is then the same device on every node.
//! It is written before the files and read before them, at the start.
//!
//! The key and its certificate stand in one file, so that a renewal switches both or neither. The provisioning
//! token is never written, and removed once it has served; a decommission keeps its digest, so that the same
//! token does not bring a device back unasked.

pub mod certificate;
pub mod key;
pub(crate) mod record;

use std::{os::fd::OwnedFd, path::Path};

use longshore_protocol::{DeviceId, DeviceName, Digest};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use url::Url;

use crate::{
    files::{FileError, Folder, Found},
    journal,
    runtime::kube::secret::{Documents, Secret, SecretError},
    tls::Trust,
};

pub use certificate::{CertificateError, Chain};
pub use key::DeviceKey;

const LOCK: &str = "lock";
const ENROLLMENT: &str = "enrollment.json";
const IDENTITY: &str = "identity.json";
const DECOMMISSIONED: &str = "decommissioned.json";
const TOKEN: &str = "token";
/// What the device is, and what a Secret keeps of it.
const DOCUMENTS: [&str; 3] = [IDENTITY, ENROLLMENT, DECOMMISSIONED];
const MOST_BYTES: u64 = 1024 * 1024;

/// An enrolled device.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The id that the controller gave.
    pub device_id: DeviceId,
    /// The name in the fleet.
    pub name: DeviceName,
    /// The second secret of the edge endpoint, beside the certificate.
    pub device_token: SecretString,
    /// The private key in PEM.
    pub key: SecretString,
    /// The certificate and its intermediates in PEM, leaf first.
    pub chain: String,
    /// The roots of the edge endpoint's certificate, in PEM.
    pub ca_bundle: String,
    /// Where to connect.
    pub edge_url: Url,
    /// Where it enrolled, and renews a certificate that has ended.
    pub server: Url,
    /// How it knew that server; unknown of a device that enrolled with an older agent.
    pub trust: Option<Trust>,
    /// The digest of the provisioning token that it enrolled with.
    pub token: Digest,
}

/// A device that asked to enroll, or is about to.
#[derive(Clone, Debug)]
pub struct Enrollment {
    /// The name that it asks for.
    pub name: DeviceName,
    /// The private key in PEM.
    pub key: SecretString,
    /// What the controller gave with its first answer.
    pub registered: Option<(DeviceId, SecretString)>,
}

/// What is kept of a device that is no longer part of its fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decommissioned {
    /// The id that it had.
    pub device_id: Option<DeviceId>,
    /// Why, in the controller's words.
    pub reason: String,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
    /// The digest of the provisioning token that it had enrolled with.
    pub token: Digest,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory belongs to somebody else.
    #[error(
        "{path} belongs to user {owner}, not to user {ours} who runs the agent: change its owner, or name another --state-dir"
    )]
    Owner {
        /// The directory.
        path: String,
        /// Its owner.
        owner: u32,
        /// The agent's user.
        ours: u32,
    },
    /// The Secret beside it fails.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Another agent runs on it.
    #[error(
        "another longshore-agent runs on {0}: stop it, or give this one a --state-dir of its own"
    )]
    Locked(String),
    /// There is a token, and it cannot be read.
    #[error("{0} cannot be read: it must be a file that belongs to the user who runs the agent")]
    Token(String),
    /// A file is there and makes no sense.
    #[error("{path} is damaged ({why}): restore it, or remove it to enroll anew")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StateError {
    /// Whether it may be otherwise the next time.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Secret(SecretError::Unreachable(..)))
    }
}

/// Keeps who the device is. [`StateDir`] keeps it for good; a simulated device's is in memory.
pub trait Keep: Send + Sync + 'static {
    /// The enrollment that is under way.
    fn enrollment(&self) -> Result<Option<Enrollment>, StateError>;

    /// Keeps the enrollment, so that a restart goes on with the same key.
    fn keep_enrollment(
        &self,
        enrollment: &Enrollment,
    ) -> impl Future<Output = Result<(), StateError>> + Send;

    /// Keeps the identity, in place of the one before, and ends an enrollment.
    fn keep_identity(
        &self,
        identity: &Identity,
    ) -> impl Future<Output = Result<(), StateError>> + Send;
}

/// The state directory, locked.
#[derive(Debug)]
pub struct StateDir {
    folder: Folder,
    secret: Option<Secret>,
    _lock: Option<OwnedFd>,
}

impl StateDir {
    /// Opens, makes, protects and locks it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let folder = Folder::create(path)?;
        let (owner, mode) = folder.owner_and_mode()?;
        let ours = rustix::process::geteuid().as_raw();
        if owner != ours {
            return Err(StateError::Owner {
                path: path.display().to_string(),
                owner,
                ours,
            });
        }
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "the state directory was open to others; now it is not");
            folder.close_to_others()?;
        }
        let lock = folder
            .lock(LOCK)?
            .ok_or_else(|| StateError::Locked(path.display().to_string()))?;
        Ok(Self {
            folder,
            secret: None,
            _lock: Some(lock),
        })
    }

    /// Opens it for a look, beside the agent that may be running on it; `None` where it is not there. Whoever looks
    /// must not write.
    pub fn peek(path: &Path) -> Result<Option<Self>, StateError> {
        match Folder::open(path) {
            Ok(folder) => Ok(Some(Self {
                folder,
                secret: None,
                _lock: None,
            })),
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Owner and permission bits of the directory.
    pub fn owner_and_mode(&self) -> Result<(u32, u32), StateError> {
        Ok(self.folder.owner_and_mode()?)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The same directory once more, for the ledger.
    pub fn folder(&self) -> Result<Folder, FileError> {
        Folder::open(self.folder.path())
    }

    /// The identity, where the device is enrolled.
    pub fn identity(&self) -> Result<Option<Identity>, StateError> {
        let Some(record) = self.read::<record::Identity>(IDENTITY)? else {
            return Ok(None);
        };
        let identity = Identity::from(record);
        Chain::verify(&identity.chain, &identity.ca_bundle, None)
            .and_then(|chain| chain.belongs_to(&DeviceKey::from_pem(&identity.key)?))
            .map_err(|why| self.damaged(IDENTITY, &why))?;
        Ok(Some(identity))
    }

    /// The note of a decommission.
    pub fn decommissioned(&self) -> Result<Option<Decommissioned>, StateError> {
        self.read(DECOMMISSIONED)
    }

    /// Notes a decommission, before anything is removed: whoever starts next goes on with it.
    pub async fn note_decommission(&self, note: &Decommissioned) -> Result<(), StateError> {
        self.switch([(DECOMMISSIONED, Some(encoded(note)))]).await
    }

    /// The provisioning token that was left here for the agent.
    pub fn token(&self) -> Result<Option<SecretString>, StateError> {
        match self.folder.read(TOKEN, MOST_BYTES)? {
            Found::Nothing => Ok(None),
            Found::File { content, .. } => {
                let token = SecretString::from(String::from_utf8_lossy(&content).into_owned());
                let trimmed = token.expose_secret().trim();
                Ok((!trimmed.is_empty()).then(|| trimmed.into()))
            }
            Found::Other => {
                let path = self.folder.path().join(TOKEN);
                Err(StateError::Token(path.display().to_string()))
            }
        }
    }

    /// Removes that token: it has served, and is nobody's to find. A disk that refuses this stops nobody.
    pub fn remove_token(&self) {
        match self.folder.remove(TOKEN) {
            Ok(true) => tracing::info!("removed the provisioning token, which has served"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(
                    error = crate::causes(&error),
                    "the provisioning token cannot be removed"
                );
            }
        }
    }

    /// Forgets key, certificate and tokens, and what happened. The note of the decommission stays.
    pub async fn forget(&self) -> Result<(), StateError> {
        self.folder.remove(journal::FILE)?;
        self.switch([(ENROLLMENT, None), (IDENTITY, None)]).await
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        match self.folder.read(name, MOST_BYTES)? {
            Found::Nothing => Ok(None),
            Found::Other => Err(self.damaged(name, &"it is no readable file")),
            Found::File { content, .. } => serde_json::from_slice(&content)
                .map(Some)
                .map_err(|error| self.damaged(name, &error)),
        }
    }

    /// Makes documents be like this, or gone. The Secret comes first, so it is never behind the files; of the files,
    /// what is written comes before what goes.
    async fn switch<const N: usize>(
        &self,
        documents: [(&str, Option<Vec<u8>>); N],
    ) -> Result<(), StateError> {
        if let Some(secret) = &self.secret {
            let mut all = self.documents()?;
            for (name, content) in &documents {
                match content {
                    Some(content) => all.insert((*name).to_owned(), content.clone()),
                    None => all.remove(*name),
                };
            }
            secret.put(all).await?;
        }
        self.replace(&documents)?;
        Ok(())
    }

    fn replace(&self, documents: &[(&str, Option<Vec<u8>>)]) -> Result<(), FileError> {
        for (name, content) in documents {
            if let Some(content) = content {
                self.folder.write(name, content)?;
                self.folder.sync()?;
            }
        }
        for (name, content) in documents {
            if content.is_none() {
                self.folder.remove(name)?;
            }
        }
        self.folder.sync()
    }

    /// What the files hold.
    fn documents(&self) -> Result<Documents, StateError> {
        let mut documents = Documents::new();
        for name in DOCUMENTS {
            if let Found::File { content, .. } = self.folder.read(name, MOST_BYTES)? {
                documents.insert(name.to_owned(), content);
            }
        }
        Ok(documents)
    }

    /// Keeps all this in a Secret, too, from here on. What is in the Secret replaces the files; where nothing is in
    /// it, it gets what they hold.
    pub(crate) async fn keep_in(&mut self, secret: Secret) -> Result<(), StateError> {
        let there = secret.read().await?;
        if DOCUMENTS.iter().any(|name| there.contains_key(*name)) {
            self.replace(&DOCUMENTS.map(|name| (name, there.get(name).cloned())))?;
        } else {
            secret.put(self.documents()?).await?;
        }
        self.secret = Some(secret);
        Ok(())
    }

    fn damaged(&self, name: &str, why: &dyn std::fmt::Display) -> StateError {
        let path = self.folder.path().join(name).display().to_string();
        StateError::Damaged {
            path,
            why: why.to_string(),
        }
    }
}

fn encoded<T: Serialize>(record: &T) -> Vec<u8> {
    // Structs of strings and numbers always serialize.
    let mut content = serde_json::to_vec_pretty(record).unwrap_or_default();
    content.push(b'\n');
    content
}

impl Keep for StateDir {
    fn enrollment(&self) -> Result<Option<Enrollment>, StateError> {
        let Some(record) = self.read::<record::Enrollment>(ENROLLMENT)? else {
            return Ok(None);
        };
        let enrollment = Enrollment::from(record);
        DeviceKey::from_pem(&enrollment.key).map_err(|why| self.damaged(ENROLLMENT, &why))?;
        Ok(Some(enrollment))
    }

    async fn keep_enrollment(&self, enrollment: &Enrollment) -> Result<(), StateError> {
        let content = encoded(&record::Enrollment::from(enrollment));
        self.switch([(ENROLLMENT, Some(content))]).await
    }

    async fn keep_identity(&self, identity: &Identity) -> Result<(), StateError> {
        let content = encoded(&record::Identity::from(identity));
        let gone = None;
        self.switch([
            (IDENTITY, Some(content)),
            (ENROLLMENT, gone.clone()),
            (DECOMMISSIONED, gone),
        ])
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_state_directory_is_for_one_agent_and_one_user() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        assert!(matches!(
            StateDir::open(dir.path()),
            Err(StateError::Locked(_))
        ));
        drop(state);
        StateDir::open(dir.path()).unwrap();
        // Tests run as root where they can, and only root can give a directory away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(12345), None).unwrap();
            let error = StateDir::open(dir.path()).unwrap_err();
            assert!(
                error.to_string().contains("belongs to user 12345"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_token_that_was_left_here_is_read_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(state.token().unwrap().is_none());
        std::fs::write(dir.path().join(TOKEN), "lst_a\n").unwrap();
        assert_eq!(state.token().unwrap().unwrap().expose_secret(), "lst_a");
        std::fs::write(dir.path().join(TOKEN), "\n").unwrap();
        assert!(state.token().unwrap().is_none());
        state.remove_token();
        state.remove_token();
        assert!(!dir.path().join(TOKEN).exists());
        std::fs::create_dir(dir.path().join(TOKEN)).unwrap();
        assert!(matches!(state.token(), Err(StateError::Token(_))));
    }

    #[tokio::test]
    async fn an_enrollment_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(state.enrollment().unwrap().is_none());
        let key = DeviceKey::generate().unwrap();
        let enrollment = Enrollment {
            name: "till".parse().unwrap(),
            key: key.pem(),
            registered: Some((DeviceId::from_random([1; 16]), "secret".into())),
        };
        state.keep_enrollment(&enrollment).await.unwrap();
        drop(state);
        let state = StateDir::open(dir.path()).unwrap();
        let again = state.enrollment().unwrap().unwrap();
        assert_eq!(
            DeviceKey::from_pem(&again.key).unwrap().fingerprint(),
            key.fingerprint()
        );
        assert!(!format!("{again:?}").contains("secret"));
        let mode = std::fs::metadata(dir.path().join(ENROLLMENT))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join(ENROLLMENT), "{").unwrap();
        assert!(matches!(
            state.enrollment(),
            Err(StateError::Damaged { .. })
        ));
    }
}
