//! A Git host over HTTP: the real `git http-backend`, in a bad mood on demand.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, Response, Uri},
};
use tokio::{net::TcpListener, task::JoinSet};

use super::Mirrored;
use crate::repo::Repo;

/// A host of one repo. It ends with this.
pub struct Host {
    url: String,
    shared: Shared,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Shared {
    repo: PathBuf,
    mood: Arc<Mutex<Mood>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// How calls are answered.
#[derive(Clone, Copy)]
pub enum Mood {
    /// By Git.
    Good,
    /// With this status, and with this `Retry-After`.
    Refusing(u16, Option<&'static str>),
}

/// A call that came.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    /// The header `Git-Protocol`.
    pub protocol: String,
}

impl Host {
    pub async fn of(repo: &Repo) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/fleet.git", listener.local_addr().unwrap());
        let shared = Shared {
            repo: repo.path(),
            mood: Arc::new(Mutex::new(Mood::Good)),
            calls: Arc::default(),
        };
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            shared,
            _tasks: tasks,
        }
    }

    /// A mirror of the repo by its URL.
    pub async fn mirrored(&self) -> Mirrored {
        Mirrored::at(&self.url, "main", true).await
    }

    pub fn be(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }

    /// The calls since this was asked last.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.shared.calls.lock().unwrap())
    }
}

async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let call = Call {
        method,
        path: uri.path().to_owned(),
        protocol: text("git-protocol"),
    };
    shared.calls.lock().unwrap().push(call.clone());
    let mood = *shared.mood.lock().unwrap();
    if let Mood::Refusing(status, retry_after) = mood {
        let mut response = Response::builder().status(status);
        if let Some(retry_after) = retry_after {
            response = response.header("retry-after", retry_after);
        }
        return response.body(Body::from("slow down")).unwrap();
    }
    let mut backend = Command::new("git");
    backend
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", shared.repo.parent().unwrap())
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", call.method.as_str())
        .env("PATH_INFO", call.path)
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", text("content-type"))
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("GIT_PROTOCOL", call.protocol)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let run = move || {
        let mut child = backend.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // What it does not want to read it leaves.
        let _read = input.write_all(&body);
        drop(input);
        child.wait_with_output().unwrap().stdout
    };
    let answer = tokio::task::spawn_blocking(run).await.unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let mut response = Response::builder();
    for line in std::str::from_utf8(&answer[..end]).unwrap().lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(&value[..3]),
            _ => response.header(name, value),
        };
    }
    response
        .body(Body::from(answer[end + 4..].to_vec()))
        .unwrap()
}
