//! Calls to the API server, and what it says where it refuses.
//!
//! `kube` connects, authenticates and reads kubeconfigs; the few verbs that the runtime needs are plain requests,
//! so that each of them is seen here as it goes over the wire. Nothing is retried here.

use std::{sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Bytes;
use kube::client::Body;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time;

use crate::{causes, watchdog};

/// The field manager under which everything is applied.
pub(super) const MANAGER: &str = "longshore";
/// No answer is waited for longer than this. A watch has its own measure.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of an answer.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// The most bytes of a watch's line: one object, which etcd bounds at 1.5 MiB by default.
const MOST_LINE: usize = 16 * 1024 * 1024;

/// How much of objects to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// All of them.
    Whole,
    /// Their metadata, which is enough for what has no health.
    Metadata,
}

impl Detail {
    fn accept(self, list: bool) -> &'static str {
        match (self, list) {
            (Self::Whole, _) => "application/json",
            (Self::Metadata, false) => {
                "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
            }
            (Self::Metadata, true) => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
            }
        }
    }
}

/// Why a call brought nothing.
#[derive(Debug)]
pub(super) enum CallError {
    /// There was no answer that can be read.
    Unreachable(String),
    /// The API server refused.
    Refused(Box<Refusal>),
}

/// A refusal in the API server's own words: what it calls a `Status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub code: u16,
    pub reason: String,
    pub message: String,
    details: Option<Details>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Option<Vec<Cause>>,
}

/// One of the causes of a refusal.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl Refusal {
    /// The causes, where the API server names them.
    pub(super) fn causes(&self) -> &[Cause] {
        self.details
            .as_ref()
            .and_then(|details| details.causes.as_deref())
            .unwrap_or_default()
    }

    fn of(status: StatusCode, body: &[u8]) -> Self {
        let mut refusal = serde_json::from_slice::<Self>(body).unwrap_or_default();
        // What stands between may answer with anything.
        if refusal.code == 0 {
            refusal.code = status.as_u16();
        }
        if refusal.message.is_empty() {
            let said = String::from_utf8_lossy(body.get(..200).unwrap_or(body)).into_owned();
            refusal.message = format!("the API server answered {status}: {}", said.trim());
        }
        refusal
    }
}

/// An object as it is after an apply.
#[derive(Debug)]
pub(super) struct Applied {
    /// Whether there was none before.
    pub created: bool,
    pub object: Value,
}

/// One API server.
#[derive(Clone)]
pub(super) struct Api {
    client: kube::Client,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client }
    }

    /// What stands at `path`.
    pub(super) async fn get(&self, path: &str, detail: Detail) -> Result<Value, CallError> {
        let request = request(Method::GET, path, detail.accept(false));
        Ok(self.json(request, Vec::new()).await?.1)
    }

    /// What it is: `Kubernetes v1.36.0`.
    pub(super) async fn version(&self) -> Result<String, CallError> {
        let request = request(Method::GET, "/version", "application/json");
        let answer = self.json(request, Vec::new()).await?.1;
        let version = answer.get("gitVersion").and_then(Value::as_str);
        Ok(format!(
            "Kubernetes {}",
            version.unwrap_or("of an unknown version")
        ))
    }

    /// The answer to a question that is asked as an object, and kept nowhere.
    pub(super) async fn ask(&self, path: &str, question: &Value) -> Result<Value, CallError> {
        let request = request(Method::POST, path, "application/json")
            .header(header::CONTENT_TYPE, "application/json");
        let question = question.to_string().into_bytes();
        Ok(self.json(request, question).await?.1)
    }

    /// One page of a list.
    pub(super) async fn list(&self, path: &str, detail: Detail) -> Result<Value, CallError> {
        let request = request(Method::GET, path, detail.accept(true));
        Ok(self.json(request, Vec::new()).await?.1)
    }

    /// Applies on the server's side. With `force`, fields are taken from other managers.
    pub(super) async fn apply(
        &self,
        path: &str,
        body: Vec<u8>,
        force: bool,
        detail: Detail,
    ) -> Result<Applied, CallError> {
        let path = format!("{path}?fieldManager={MANAGER}&force={force}");
        let request = request(Method::PATCH, &path, detail.accept(false))
            .header(header::CONTENT_TYPE, "application/apply-patch+yaml");
        let (status, object) = self.json(request, body).await?;
        Ok(Applied {
            created: status == StatusCode::CREATED,
            object,
        })
    }

    /// Deletes exactly this object as it is in this version. The answer is the object where it waits for
    /// finalizers or for its pods to end, and a `Status` where it is gone.
    pub(super) async fn delete(
        &self,
        path: &str,
        uid: &str,
        version: Option<&str>,
    ) -> Result<Value, CallError> {
        let preconditions = json!({"uid": uid, "resourceVersion": version});
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions",
            "propagationPolicy": "Background", "preconditions": preconditions});
        let request = request(Method::DELETE, path, "application/json")
            .header(header::CONTENT_TYPE, "application/json");
        Ok(self
            .json(request, options.to_string().into_bytes())
            .await?
            .1)
    }

    /// Opens a watch.
    pub(super) async fn watch(&self, path: &str, detail: Detail) -> Result<Lines, CallError> {
        let body = self.open(path, detail.accept(false)).await?;
        Ok(Lines {
            body,
            buffer: Vec::new(),
            ended: false,
        })
    }

    /// An answer that is read as it comes, such as a log.
    pub(super) async fn stream(&self, path: &str) -> Result<Body, CallError> {
        self.open(path, "*/*").await
    }

    async fn open(&self, path: &str, accept: &'static str) -> Result<Body, CallError> {
        let request = request(Method::GET, path, accept);
        let response = patiently(self.send(request, Vec::new())).await?;
        let status = response.status();
        if !status.is_success() {
            let body = patiently(read(response)).await?;
            return Err(CallError::Refused(Box::new(Refusal::of(status, &body))));
        }
        Ok(response.into_body())
    }

    async fn json(
        &self,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Value), CallError> {
        let (status, body) = patiently(async {
            let response = self.send(request, body).await?;
            let status = response.status();
            Ok((status, read(response).await?))
        })
        .await?;
        if !status.is_success() {
            return Err(CallError::Refused(Box::new(Refusal::of(status, &body))));
        }
        let value = serde_json::from_slice(&body).map_err(|error| {
            CallError::Unreachable(format!("the API server's answer is no JSON: {error}"))
        })?;
        Ok((status, value))
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<Response<Body>, CallError> {
        let request = request
            .body(Body::from(body))
            .map_err(|error| CallError::Unreachable(causes(&error)))?;
        self.client.send(request).await.map_err(|error| {
            CallError::Unreachable(format!("cannot reach the API server: {}", causes(&error)))
        })
    }
}

fn request(method: Method, path: &str, accept: &'static str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, accept)
}

async fn read(response: Response<Body>) -> Result<Bytes, CallError> {
    let body = Limited::new(response.into_body(), MOST_BYTES);
    let collected = body.collect().await.map_err(|error| {
        CallError::Unreachable(format!("the API server's answer broke off: {error}"))
    })?;
    Ok(collected.to_bytes())
}

async fn patiently<T>(call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    watchdog::allow(PATIENCE);
    time::timeout(PATIENCE, call).await.unwrap_or_else(|_over| {
        Err(CallError::Unreachable(format!(
            "the API server did not answer within {} seconds",
            PATIENCE.as_secs()
        )))
    })
}

/// The lines of a watch.
#[derive(Debug)]
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// The next line; `None` at the end. Silence of more than `patience` is an end as well, for the API server
    /// ends watches itself, and a connection that died silently must not look like peace.
    pub(super) async fn next(
        &mut self,
        patience: Duration,
    ) -> Result<Option<Arc<[u8]>>, CallError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return Ok(Some(line.into()));
            }
            if self.ended {
                return Ok(None);
            }
            if self.buffer.len() > MOST_LINE {
                return Err(CallError::Unreachable(
                    "an event of the API server is too large".to_owned(),
                ));
            }
            match time::timeout(patience, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                // A line that is cut off has not been said.
                Ok(None | Some(Err(_))) | Err(_) => self.ended = true,
            }
        }
    }
}
