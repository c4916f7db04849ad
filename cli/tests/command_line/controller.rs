//! A controller of the tests: HTTPS with a CA of its own, fixed answers in the contract's types.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{Request, Response, StatusCode, header},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_rustls::TlsAcceptor;

use crate::harness::{Outcome, Place};

/// The one API token that this controller takes.
pub const TOKEN: &str = "lsa-0123456789-of-the-tests";

type Answers = HashMap<String, (StatusCode, Value)>;

/// A running controller, and a place whose `data` is its data directory.
pub struct Controller {
    pub place: Place,
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// One request that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// Method and path.
    pub asked: String,
    pub body: Value,
}

#[derive(Clone)]
struct Shared {
    answers: Arc<Answers>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// One answer: `GET` and a path under the default tenant, or a whole one that begins with `/`.
pub fn answer(asked: &str, status: u16, body: &impl Serialize) -> (String, (StatusCode, Value)) {
    let (method, path) = asked.split_once(' ').unwrap();
    let path = match path.strip_prefix('/') {
        Some(_) => path.to_owned(),
        None => format!("/api/v1/tenants/default/{path}"),
    };
    let body = serde_json::to_value(body).unwrap();
    (
        format!("{method} {path}"),
        (StatusCode::from_u16(status).unwrap(), body),
    )
}

impl Controller {
    pub fn start(answers: impl IntoIterator<Item = (String, (StatusCode, Value))>) -> Self {
        let place = Place::new();
        let (ca, tls) = certificates();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let shared = Shared {
            answers: Arc::new(answers.into_iter().collect()),
            heard: heard.clone(),
        };
        let (stop, stopped) = oneshot::channel();
        let (ready, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = serve(listener, tls, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = address.recv().unwrap();
        place.write("data/address", format!("https://{address}\n"));
        place.write("data/admin-token", format!("{TOKEN}\n"));
        place.write("data/ca.pem", ca);
        Self {
            place,
            address,
            heard,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Runs the program with this controller's data directory.
    pub fn run(&self, line: &str) -> Outcome {
        self.run_words(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub fn run_words(&self, words: &[&str]) -> Outcome {
        Outcome::of(
            self.place
                .command(words)
                .env("LONGSHORE_DATA_DIR", self.data()),
        )
    }

    pub fn data(&self) -> PathBuf {
        self.place.path().join("data")
    }

    pub fn ca(&self) -> String {
        fs::read_to_string(self.data().join("ca.pem")).unwrap()
    }

    /// The requests so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// The last request that is not a `GET`.
    pub fn last_change(&self) -> Heard {
        self.heard()
            .into_iter()
            .rev()
            .find(|heard| !heard.asked.starts_with("GET"))
            .unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _outcome = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, shared: Shared) {
    let router = Router::new().fallback(handle).with_state(shared);
    loop {
        let (stream, _peer) = listener.accept().await.unwrap();
        let (tls, service) = (tls.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let connection = hyper::server::conn::http1::Builder::new();
            let _outcome = connection
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn handle(State(shared): State<Shared>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let asked = format!("{} {}", head.method, head.uri.path());
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    shared.heard.lock().unwrap().push(Heard {
        asked: asked.clone(),
        body,
    });
    let authorized = head
        .headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| value == &format!("Bearer {TOKEN}"));
    let (status, body) = if authorized {
        shared.answers.get(&asked).cloned().unwrap_or_else(|| {
            let detail = format!("there is nothing for {asked}");
            (
                StatusCode::NOT_FOUND,
                json!({"title": "Not Found", "status": 404, "detail": detail}),
            )
        })
    } else {
        (
            StatusCode::UNAUTHORIZED,
            json!({"title": "Unauthorized", "status": 401}),
        )
    };
    let body = if status == StatusCode::NO_CONTENT {
        Body::empty()
    } else {
        body.to_string().into()
    };
    Response::builder().status(status).body(body).unwrap()
}

/// A root certificate in PEM, and a server with a certificate of it for 127.0.0.1.
fn certificates() -> (String, TlsAcceptor) {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (root.pem(), TlsAcceptor::from(Arc::new(config)))
}
