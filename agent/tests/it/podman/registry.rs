//! A registry on the loopback, as far as pulling needs one: the calls of the distribution specification that read.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

pub(super) struct Registry {
    pub(super) address: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// By digest.
    blobs: Mutex<BTreeMap<String, Bytes>>,
    /// The digests of manifests, by `app:1`.
    tags: Mutex<BTreeMap<String, String>>,
    /// Whether blobs are handed out now.
    open: watch::Sender<bool>,
    /// The paths that were asked for.
    asked: watch::Sender<Vec<String>>,
}

impl Registry {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            blobs: Mutex::default(),
            tags: Mutex::default(),
            open: watch::Sender::new(true),
            asked: watch::Sender::default(),
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                let service = service_fn(move |request| {
                    let shared = shared.clone();
                    async move { Ok::<_, std::convert::Infallible>(shared.answer(&request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, shared }
    }

    /// What pods say to get `app:1`.
    pub(super) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Offers the image in this layout as `app:1`, in the place of any of that name.
    pub(super) fn offer(&self, name: &str, layout: &Path) {
        let mut blobs = self.shared.blobs.lock().unwrap();
        for blob in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            let blob = blob.unwrap();
            let digest = format!("sha256:{}", blob.file_name().to_str().unwrap());
            blobs.insert(digest, std::fs::read(blob.path()).unwrap().into());
        }
        let index = std::fs::read(layout.join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let mut tags = self.shared.tags.lock().unwrap();
        tags.insert(name.to_owned(), digest.to_owned());
    }

    /// Holds blobs back, or hands out all that are asked for.
    pub(super) fn hold(&self, holds: bool) {
        self.shared.open.send_replace(!holds);
    }

    /// The paths that are asked for, from now on.
    pub(super) fn asked(&self) -> watch::Receiver<Vec<String>> {
        self.shared.asked.send_replace(Vec::new());
        self.shared.asked.subscribe()
    }
}

impl Shared {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        self.asked.send_modify(|asked| asked.push(path.clone()));
        let found = match path
            .trim_start_matches("/v2/")
            .split('/')
            .collect::<Vec<_>>()[..]
        {
            [""] => Some(("application/json", String::new(), Bytes::from("{}"))),
            [name, "manifests", reference] => self.manifest(name, reference),
            [_, "blobs", digest] => {
                // The sender lives as long as what is borrowed here.
                self.open.subscribe().wait_for(|open| *open).await.unwrap();
                self.blob("application/octet-stream", digest)
            }
            _ => None,
        };
        let Some((kind, digest, content)) = found else {
            let unknown =
                json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
            return Response::builder()
                .status(StatusCode::NOT_FOUND)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::from(unknown.to_string()))
                .unwrap();
        };
        let content = if request.method() == Method::HEAD {
            Bytes::new()
        } else {
            content
        };
        Response::builder()
            .header(header::CONTENT_TYPE, kind)
            .header("docker-content-digest", digest)
            .body(Full::new(content))
            .unwrap()
    }

    fn manifest(&self, name: &str, reference: &str) -> Option<(&'static str, String, Bytes)> {
        let tags = self.tags.lock().unwrap();
        let tag = tags.get(&format!("{name}:{reference}"));
        let digest = tag.map_or(reference, String::as_str);
        self.blob("application/vnd.oci.image.manifest.v1+json", digest)
    }

    fn blob(&self, kind: &'static str, digest: &str) -> Option<(&'static str, String, Bytes)> {
        let content = self.blobs.lock().unwrap().get(digest)?.clone();
        Some((kind, digest.to_owned(), content))
    }
}
