//! A Secret of the agent's own: a few documents by name, replaced as a whole.
//!
//! Whoever writes says which version it knows, so that of two agents with one Secret only one goes on. A write whose
//! answer was lost is recognized by what is there.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{
    api::{Api, CallError, Detail},
    connect,
};
use crate::config::KubeSettings;

/// Documents by name.
pub(crate) type Documents = BTreeMap<String, Vec<u8>>;

/// Why a Secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no answer, or none that means anything. It may be otherwise the next time.
    #[error("the Secret {0} cannot be reached: {1}")]
    Unreachable(String, String),
    /// The API server refuses.
    #[error(
        "the API server refuses the Secret {0}: {1}. The agent's role must allow get and patch of it, and create where it is not there"
    )]
    Refused(String, String),
    /// Somebody else wrote it.
    #[error(
        "the Secret {0} was changed by somebody else: does another agent use it? A start of this one goes on with what is there"
    )]
    Changed(String),
    /// What is in it makes no sense.
    #[error("the Secret {0} is damaged ({1}): restore it, or delete it to enroll anew")]
    Damaged(String, String),
}

/// One Secret.
pub(crate) struct Secret {
    api: Api,
    namespace: String,
    name: String,
    known: Mutex<Known>,
}

/// What is there, as far as we know.
#[derive(Clone, Default)]
struct Known {
    version: Option<String>,
    documents: Documents,
}

impl fmt::Debug for Secret {
    /// Without what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.called())
    }
}

impl Secret {
    /// The Secret `name` in the agent's own namespace. Nothing is sent.
    pub(crate) async fn new(settings: &KubeSettings, name: &str) -> Result<Self, String> {
        let (api, namespace) = connect::home(settings).await?;
        Ok(Self {
            api,
            namespace,
            name: name.to_owned(),
            known: Mutex::default(),
        })
    }

    /// What is in it; nothing where it is not there.
    pub(crate) async fn read(&self) -> Result<Documents, SecretError> {
        let mut known = self.known.lock().await;
        *known = self.look().await?;
        Ok(known.documents.clone())
    }

    /// Puts these documents in place of what was read or put before.
    pub(crate) async fn put(&self, documents: Documents) -> Result<(), SecretError> {
        let mut known = self.known.lock().await;
        // A second try is for what was written before, by us and unanswered, or beside the documents.
        for _ in 0..2 {
            match self.apply(&documents, known.version.as_deref()).await {
                Ok(version) => {
                    *known = Known { version, documents };
                    return Ok(());
                }
                Err(CallError::Refused(refusal)) if refusal.code == 409 => {}
                Err(error) => return Err(self.failed(error)),
            }
            let there = self.look().await?;
            if there.documents != known.documents && there.documents != documents {
                break;
            }
            *known = there;
        }
        Err(SecretError::Changed(self.called()))
    }

    async fn apply(
        &self,
        documents: &Documents,
        version: Option<&str>,
    ) -> Result<Option<String>, CallError> {
        let encoded = |(name, content): (&String, &Vec<u8>)| (name.clone(), BASE64.encode(content));
        let data: BTreeMap<_, _> = documents.iter().map(encoded).collect();
        let mut metadata = json!({"name": self.name, "namespace": self.namespace});
        if let (Some(version), Some(metadata)) = (version, metadata.as_object_mut()) {
            metadata.insert("resourceVersion".to_owned(), version.into());
        }
        let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata,
            "type": "Opaque", "data": data});
        let body = body.to_string().into_bytes();
        // The documents are ours, whoever touched them.
        let path = self.path();
        let applied = self.api.apply(&path, body, true, Detail::Whole).await?;
        Ok(version_of(&applied.object))
    }

    async fn look(&self) -> Result<Known, SecretError> {
        let object = match self.api.get(&self.path(), Detail::Whole).await {
            Ok(object) => object,
            Err(CallError::Refused(refusal)) if refusal.code == 404 => return Ok(Known::default()),
            Err(error) => return Err(self.failed(error)),
        };
        let mut documents = Documents::new();
        for (name, content) in object
            .get("data")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let content = content.as_str().and_then(|it| BASE64.decode(it).ok());
            let damaged = || SecretError::Damaged(self.called(), format!("`{name}` is no Base64"));
            documents.insert(name.clone(), content.ok_or_else(damaged)?);
        }
        Ok(Known {
            version: version_of(&object),
            documents,
        })
    }

    fn failed(&self, error: CallError) -> SecretError {
        match error {
            CallError::Refused(refusal) if matches!(refusal.code, 401 | 403 | 422) => {
                SecretError::Refused(self.called(), refusal.message)
            }
            CallError::Refused(refusal) => SecretError::Unreachable(self.called(), refusal.message),
            CallError::Unreachable(why) => SecretError::Unreachable(self.called(), why),
        }
    }

    fn path(&self) -> String {
        format!(
            "/api/v1/namespaces/{}/secrets/{}",
            self.namespace, self.name
        )
    }

    fn called(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn version_of(object: &Value) -> Option<String> {
    let version = object.get("metadata")?.get("resourceVersion")?;
    Some(version.as_str()?.to_owned())
}
