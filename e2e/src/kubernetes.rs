//! A small API server of Kubernetes, for tests: no schemas, no controllers, and pods that only tests speak for.
//!
//! It keeps to what Kubernetes documents: server-side apply with managed fields, conflicts and force; discovery;
//! lists in pages and watches with bookmarks, versions and `410 Gone`; finalizers and deletion timestamps;
//! preconditions; fields that cannot be changed; definitions of kinds; namespaces that end with what is in them;
//! refusals by role. It counts requests, and breaks where it is told to.
#![allow(
    clippy::expect_used,
    clippy::format_push_string,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a double that is asked for what it does not know has to fail the test"
)]

mod fields;
mod kinds;
mod logs;
mod serve;
mod store;
mod tls;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use self::{
    kinds::Kind,
    logs::Voices,
    store::{At, By, Refused, Store, status},
    tls::Tls,
};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// As roles name it, and `discover`.
    pub verb: String,
    /// The plural, or the discovered path.
    pub resource: String,
    /// Empty for all namespaces, and for what has none.
    pub namespace: String,
    /// Empty for lists.
    pub name: String,
    /// Whether fields are taken from other managers.
    pub force: bool,
}

impl Call {
    fn discovery(path: &[String]) -> Self {
        Self {
            verb: "discover".to_owned(),
            resource: path.join("/"),
            namespace: String::new(),
            name: String::new(),
            force: false,
        }
    }

    /// Whether it changes something, or tries to.
    pub fn writes(&self) -> bool {
        self.verb == "patch" || self.verb == "delete"
    }
}

#[derive(Debug)]
struct World {
    store: Mutex<Store>,
    /// The store's version, for watches.
    version: watch::Sender<u64>,
    /// Raised to end all watches.
    era: watch::Sender<u64>,
    calls: Mutex<Vec<Call>>,
    /// How many requests were answered or broken.
    progress: watch::Sender<u64>,
    denied: Mutex<Vec<(String, String)>>,
    /// After how many requests a connection breaks, and whether after the deed or before.
    cut: Mutex<Option<(usize, bool)>>,
    token: Mutex<String>,
    /// Whoever has its client certificate needs no token.
    tls: Option<Tls>,
    voices: Voices,
}

impl World {
    fn count(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn progressed(&self) {
        let version = self.store.lock().unwrap().version;
        self.version.send_replace(version);
        self.progress.send_modify(|progress| *progress += 1);
    }

    fn is_cut(&self, after: bool) -> bool {
        let mut cut = self.cut.lock().unwrap();
        match &mut *cut {
            Some((0, when)) if *when == after => {
                *cut = None;
                true
            }
            Some((left, when)) if *when == after => {
                *left -= 1;
                false
            }
            _ => false,
        }
    }

    fn allow(
        &self,
        verb: &str,
        kind: &Kind,
        namespace: &str,
        name: Option<&str>,
    ) -> Result<(), Refused> {
        let denied = self.denied.lock().unwrap();
        let is_it =
            |(denied, resource): &(String, String)| denied == verb && *resource == kind.plural;
        if !denied.iter().any(is_it) {
            return Ok(());
        }
        let object = name.map(|name| format!(" {name:?}")).unwrap_or_default();
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {namespace:?}")
        };
        let message = format!(
            "{}{object} is forbidden: User \"longshore\" cannot {verb} resource {:?} in API group {:?} {scope}",
            kind.called(),
            kind.plural,
            kind.group
        );
        Err(status(403, "Forbidden", &message, &json!([])))
    }
}

/// The API server. Its objects outlive its restarts.
#[derive(Debug)]
pub struct ApiServer {
    world: Arc<World>,
    address: SocketAddr,
    serving: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts one with the namespaces `default` and `kube-system`.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts one with TLS, which wants a client certificate.
    pub async fn start_with_tls() -> Self {
        Self::start_with(Some(Tls::new())).await
    }

    async fn start_with(tls: Option<Tls>) -> Self {
        let store = Store::new();
        let world = Arc::new(World {
            version: watch::Sender::new(store.version),
            store: Mutex::new(store),
            era: watch::Sender::new(0),
            calls: Mutex::default(),
            progress: watch::Sender::new(0),
            denied: Mutex::default(),
            cut: Mutex::default(),
            token: Mutex::new("first".to_owned()),
            tls,
            voices: Voices::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Some(tokio::spawn(serve(listener, world.clone())));
        Self {
            world,
            address,
            serving,
        }
    }

    /// Ends it, and all connections.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _cancelled = serving.await;
        }
    }

    /// Starts it again, at the same address.
    pub async fn start_again(&mut self) {
        let listener = loop {
            // The port may be in use for a moment after the end.
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.serving = Some(tokio::spawn(serve(listener, self.world.clone())));
    }

    /// Writes a kubeconfig for it.
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let path = folder.join("kubeconfig");
        let (mut cluster, user) = match &self.world.tls {
            Some(tls) => (tls.cluster.clone(), tls.user.clone()),
            None => (
                json!({}),
                json!({"token": *self.world.token.lock().unwrap()}),
            ),
        };
        let scheme = self.world.tls.as_ref().map_or("http", |_| "https");
        cluster["server"] = format!("{scheme}://{}", self.address).into();
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{"name": "double", "cluster": cluster}],
            "users": [{"name": "agent", "user": user}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "agent"}}]});
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Lets only those in who know this token.
    pub fn expect_token(&self, token: &str) {
        token.clone_into(&mut self.world.token.lock().unwrap());
    }

    /// The requests since this was asked last.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.world.calls.lock().unwrap())
    }

    /// Counts requests.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.world.progress.subscribe()
    }

    /// The object, as anybody sees it.
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let store = self.world.store.lock().unwrap();
        let at = at(&store, plural, namespace, name);
        store.objects.get(&at).map(Store::shown)
    }

    /// The names of a kind's objects, with their namespaces.
    pub fn names(&self, plural: &str) -> Vec<String> {
        let store = self.world.store.lock().unwrap();
        let objects = store.objects.keys().filter(|at| at.1 == plural);
        objects.map(|at| format!("{}/{}", at.2, at.3)).collect()
    }

    /// Applies as another manager would.
    pub fn apply_as(&self, manager: &str, manifest: &Value, force: bool) {
        self.store(|store| store.apply(manager, manifest, force))
            .unwrap();
    }

    /// Changes an object as `kubectl edit` would; what is not there is made by an empty apply of `manager` first.
    pub fn edit_as(
        &self,
        manager: &str,
        (plural, namespace, name): (&str, &str, &str),
        change: impl FnOnce(&mut Value),
    ) {
        let by = By {
            manager,
            subresource: "",
        };
        self.store(|store| {
            let at = at(store, plural, namespace, name);
            store.update(by, &at, change)
        })
        .unwrap();
    }

    /// Sets a status as its controller would.
    pub fn set_status(&self, (plural, namespace, name): (&str, &str, &str), status: Value) {
        let by = By {
            manager: "controller",
            subresource: "status",
        };
        self.store(|store| {
            let at = at(store, plural, namespace, name);
            store.update(by, &at, |object| object["status"] = status)
        })
        .unwrap();
    }

    /// Deletes as anybody would.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.store(|store| {
            let at = at(store, plural, namespace, name);
            store.delete(&at, &Value::Null)
        })
        .unwrap();
    }

    /// Lets a container of a pod say something.
    pub fn say(&self, (namespace, pod, container): (&str, &str, &str), text: &str) {
        let voice = [namespace, pod, container].map(str::to_owned);
        self.world.voices.say(voice.into(), text);
    }

    /// How many logs are being read.
    pub fn readers(&self) -> usize {
        self.world.voices.readers()
    }

    /// Refuses a verb on a resource to the agent.
    pub fn deny(&self, verb: &str, plural: &str) {
        let mut denied = self.world.denied.lock().unwrap();
        denied.push((verb.to_owned(), plural.to_owned()));
    }

    /// Refuses nothing any more.
    pub fn allow_all(&self) {
        self.world.denied.lock().unwrap().clear();
    }

    /// Leaves new definitions without being established.
    pub fn hold_definitions(&self) {
        self.world.store.lock().unwrap().holds_definitions = true;
    }

    /// Establishes them.
    pub fn establish(&self) {
        self.store(Store::establish);
    }

    /// Ends all watches as their time does.
    pub fn end_watches(&self) {
        self.world.era.send_modify(|era| *era += 1);
    }

    /// Forgets what happened: watches that begin at an earlier version get `410 Gone`.
    pub fn compact(&self) {
        self.store(Store::compact);
    }

    /// Breaks the connection of the request after this many: after the deed, or before.
    pub fn cut_after(&self, requests: usize, after_the_deed: bool) {
        *self.world.cut.lock().unwrap() = Some((requests, after_the_deed));
    }

    fn store<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.world.store.lock().unwrap();
        let done = work(&mut store);
        let version = store.version;
        drop(store);
        self.world.version.send_replace(version);
        done
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

fn at(store: &Store, plural: &str, namespace: &str, name: &str) -> At {
    let kind = store.kinds.iter().find(|kind| kind.plural == plural);
    let group = kind.map(|kind| kind.group.clone()).unwrap_or_default();
    (
        group,
        plural.to_owned(),
        namespace.to_owned(),
        name.to_owned(),
    )
}

async fn serve(listener: TcpListener, world: Arc<World>) {
    // Ends with this task, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let world = world.clone();
        connections.spawn(async move {
            let answering = world.clone();
            let service = service_fn(move |request| serve::answer(answering.clone(), request));
            let server = http1::Builder::new();
            // Connections break in many tests.
            match &world.tls {
                None => {
                    let _broken = server.serve_connection(TokioIo::new(stream), service).await;
                }
                Some(tls) => {
                    if let Ok(stream) = tls.acceptor.accept(stream).await {
                        let _broken = server.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
