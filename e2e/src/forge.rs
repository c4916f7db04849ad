//! A Git host in the test's own process: GitHub (as Enterprise Server), GitLab or Gitea, over real repos.
//!
//! ```text
//!  people of the test ──▶ Forge ──▶ State ◀── serve ◀── https: REST, Git ── the controller
//!   merge, close, edit      │         │                                         ▲
//!                           │         └─ outbox ─▶ webhooks, signed ────────────┘
//!                           └─ faults, complaints
//! ```
//!
//! It is written from the hosts' documentation, not from our adapters, and is strict: a path, a member or a
//! parameter that is not documented, a text that is too long, a status of an unknown commit are refused and
//! remembered ([`Forge::complaints`]). What a careful client must be prepared for (a second pull request of a
//! branch, a label that is there already) is refused as the host does it, and no complaint.
//!
//! Lists come in pages of [`call::PAGE`], whatever is asked for. Heads of pull requests are real refs
//! (`refs/pull/1/head`), merges are real merges, protected branches refuse real pushes.

pub mod call;
pub mod fault;
mod git_http;
mod gitea;
mod github;
mod gitlab;
mod people;
pub mod repo;
mod serve;
pub mod state;
pub mod webhook;
pub mod world;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use http::HeaderMap;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::PrivateKeyDer;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use self::{
    call::{Answer, Call},
    repo::Bare,
    state::{REPO, State, Token},
    webhook::{Delivery, Hooks},
};
use crate::FleetRepo;

pub use self::{
    fault::{Fault, Kind},
    people::{How, Status},
    state::{BOT, PERSON, Pull, PullState, REVIEWER, STRANGER, TEAM},
    webhook::Post,
};

/// Whom the forge plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// GitHub Enterprise Server.
    GitHub,
    /// GitLab.
    GitLab,
    /// Gitea and Forgejo.
    Gitea,
}

impl Host {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::GitHub, Self::GitLab, Self::Gitea];

    fn api_root(self) -> &'static str {
        match self {
            Self::GitHub => "/api/v3",
            Self::GitLab => "/api/v4",
            Self::Gitea => "/api/v1",
        }
    }

    /// Where the heads of pull requests are, as `<namespace>/<number>/head`.
    fn pulls_namespace(self) -> &'static str {
        match self {
            Self::GitHub | Self::Gitea => "refs/pull",
            Self::GitLab => "refs/merge-requests",
        }
    }

    /// Whether a branch that was merged by a push makes its pull request a merged one.
    fn notices_merges(self) -> bool {
        self != Self::Gitea
    }

    /// Whether a pull request is closed when its branch is deleted.
    fn closes_without_branch(self) -> bool {
        self != Self::GitLab
    }

    fn bad_credential(self) -> &'static str {
        match self {
            Self::GitHub => "Bad credentials",
            Self::GitLab => "401 Unauthorized",
            Self::Gitea => "user does not exist [uid: 0, name: ]",
        }
    }

    fn credential(self, headers: &HeaderMap) -> Option<String> {
        let value = |name| headers.get(name)?.to_str().ok();
        if self == Self::GitLab
            && let Some(token) = value("private-token")
        {
            return Some(token.to_owned());
        }
        let header = value("authorization")?;
        let token = header.strip_prefix("Bearer ").or_else(|| {
            let header = header.strip_prefix("token ");
            header.filter(|_| self != Self::GitLab)
        });
        token.map(str::to_owned)
    }

    fn answer(self, state: &mut State, call: &Call) -> Result<Answer, Answer> {
        match self {
            Self::GitHub => github::answer(state, call),
            Self::GitLab => gitlab::answer(state, call),
            Self::Gitea => gitea::answer(state, call),
        }
    }
}

/// What the forge's threads share.
#[derive(Debug)]
struct Shared {
    root: PathBuf,
    app: App,
    state: Mutex<State>,
    hooks: Mutex<Hooks>,
    runtime: tokio::runtime::Handle,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hooks(&self) -> MutexGuard<'_, Hooks> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes deliveries of what happened, and sends them on their way.
    fn send_webhooks(self: &Arc<Self>) {
        let mut state = self.state();
        let mut hooks = self.hooks();
        let events = std::mem::take(&mut state.outbox);
        let Some(target) = hooks.target.clone() else {
            return;
        };
        for event in events {
            let (name, payload) = match state.host {
                Host::GitHub => github::payload(&state, &event),
                Host::GitLab => gitlab::payload(&state, &event),
                Host::Gitea => gitea::payload(&state, &event),
            };
            let delivery = Delivery::new(state.host, name, &payload, &target.secret);
            hooks.made.push(delivery.clone());
            match hooks.post {
                Post::Works => self.deliver(delivery),
                Post::Loses => {}
                Post::Doubles => {
                    self.deliver(delivery.clone());
                    self.deliver(delivery);
                }
                Post::Holds => hooks.held.push(delivery),
            }
        }
    }

    fn deliver(self: &Arc<Self>, delivery: Delivery) {
        let shared = self.clone();
        self.runtime.spawn(async move {
            let target = shared.hooks().target.clone();
            let Some(target) = target else { return };
            // Whoever is not there misses it: hosts do not try again.
            if let Ok(status) = target.send(&delivery).await {
                shared.hooks().answers.push(status);
            }
        });
    }
}

/// A GitHub App that is installed in the repo.
#[derive(Clone, Debug)]
pub struct App {
    /// Its id.
    pub id: u64,
    /// The id of its installation.
    pub installation: u64,
    /// Its private key, in PEM.
    pub key: String,
    public_key: String,
}

/// A Git host with one repo. It ends with its owner.
#[derive(Debug)]
pub struct Forge {
    host: Host,
    address: SocketAddr,
    shared: Arc<Shared>,
    ca: PathBuf,
    directory: PathBuf,
    runtime: Option<Runtime>,
}

impl Forge {
    /// Hosts `repo`, which moves into `directory`, with the certificate of a new CA. Its working copy pushes
    /// over https from then on.
    ///
    /// # Errors
    /// Where something does not start.
    pub fn start(host: Host, directory: &Path, repo: &mut FleetRepo) -> Result<Self> {
        let root = directory.join("repos");
        let bare = root.join(format!("{REPO}.git"));
        repo.move_to(&bare)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("start the forge's threads")?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("listen")?;
        listener.set_nonblocking(true).context("listen")?;
        let address = listener.local_addr().context("the forge's address")?;
        let (tls, ca_pem) = certificate()?;
        let ca = directory.join("ca.pem");
        fs::write(&ca, ca_pem).context("write the forge's CA")?;
        let mut state = State::new(
            host,
            format!("https://{address}"),
            Bare::adopt(&bare, host)?,
        )?;
        for (login, token) in [(BOT, token_of(host, 1)), (PERSON, token_of(host, 2))] {
            let login = login.to_owned();
            let expires = None;
            state.tokens.insert(token, Token { login, expires });
        }
        let shared = Arc::new(Shared {
            root,
            app: app()?,
            state: Mutex::new(state),
            hooks: Mutex::default(),
            runtime: runtime.handle().clone(),
        });
        runtime.spawn(serve::serve(shared.clone(), listener, tls));
        let forge = Self {
            host,
            address,
            shared,
            ca,
            directory: directory.to_owned(),
            runtime: Some(runtime),
        };
        let person = token_of(host, 2);
        let url = format!("https://{PERSON}:{person}@{address}/{REPO}.git");
        repo.push_to(&url, &forge.ca)?;
        Ok(forge)
    }

    /// Whom it plays.
    pub fn host(&self) -> Host {
        self.host
    }

    /// `https://host:port`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The root of its API.
    pub fn api_url(&self) -> String {
        format!("{}{}", self.url(), self.host.api_root())
    }

    /// The repo's URL for Git.
    pub fn clone_url(&self) -> String {
        format!("{}/{REPO}.git", self.url())
    }

    /// The file with the certificate of its CA.
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// The token of the controller's own user.
    pub fn token(&self) -> String {
        token_of(self.host, 1)
    }

    /// The GitHub App that is installed in the repo.
    pub fn app(&self) -> &App {
        &self.shared.app
    }

    /// What a careful client would not have asked for, and why. Empty at the end of every test.
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state().complaints.clone()
    }

    /// Fails where the controller made a call that a host would not have liked.
    ///
    /// # Errors
    /// With what it asked for.
    pub fn is_content(&self) -> Result<()> {
        let complaints = self.complaints();
        ensure!(
            complaints.is_empty(),
            "the forge complains: {complaints:#?}"
        );
        Ok(())
    }

    /// All calls so far, as `GET /path?query`.
    pub fn calls(&self) -> Vec<String> {
        self.shared.state().calls.clone()
    }

    /// Lets calls go wrong.
    pub fn set_fault(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    /// Lets nothing go wrong any more.
    pub fn heal(&self) {
        self.shared.state().faults.clear();
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A token in the form that the host's have.
fn token_of(host: Host, user: u64) -> String {
    match host {
        Host::GitHub => format!("ghp_{user:036}"),
        Host::GitLab => format!("glpat-{user:020}"),
        Host::Gitea => format!("{user:040x}"),
    }
}

/// A CA, and TLS with a certificate by it.
fn certificate() -> Result<(TlsAcceptor, String)> {
    let ca_key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "The forge's test CA");
    let ca_certificate = params.self_signed(&ca_key)?;
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate()?;
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let leaf = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), ca_certificate.pem()))
}

fn app() -> Result<App> {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
    Ok(App {
        id: 4711,
        installation: 7,
        public_key: key.public_key_pem(),
        key: key.serialize_pem(),
    })
}
