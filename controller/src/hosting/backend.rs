//! One request of a git client: how `git http-backend` is started for it, and within which bounds.
//!
//! Git's environment is made here and nowhere else: nothing of the controller's own, nothing of the request that
//! was not checked, and a configuration that wins over whatever a repo's own may say (git-config(1), the scope
//! `command`).

use std::{
    ffi::OsString,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use axum::{body::Body, response::Response};
use futures_util::stream;
use rustix::process::{Resource, Rlimit, prlimit};
use secrecy::ExposeSecret as _;
use tokio::{
    process::Command,
    sync::{mpsc, oneshot},
};
use tracing::{Instrument as _, debug, info_span};

use super::{
    Limits, cgi,
    exchange::{DEADLINE, Exchange},
    hook,
    maintenance::Maintenance,
    places::{Busy, Places},
    pushes::{Expected, Pushes},
    repo,
};
use crate::{process_group::Group, source::git, store::fleets::Fleet, tasks::Tasks};

/// How much memory each of Git's processes may use, in bytes.
const MEMORY: u64 = 1024 * 1024 * 1024;

/// Which of Git's two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Clone and fetch.
    UploadPack,
    /// Push.
    ReceivePack,
}

impl Service {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }
}

/// Which of the two steps of the smart protocol (gitprotocol-http(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `GET info/refs`: what is there.
    Advertise(Service),
    /// `POST`: the exchange itself.
    Exchange(Service),
}

/// A request of a git client, checked.
#[derive(Debug)]
pub struct Call {
    /// Whose repo.
    pub fleet: Fleet,
    /// What is asked.
    pub operation: Operation,
    /// Whether the body is compressed.
    pub gzip: bool,
    /// Whether the client speaks version 2 of the protocol.
    pub version_2: bool,
    /// Who asks, for Git's log of what refs pointed to.
    pub user: String,
    /// From where.
    pub address: IpAddr,
}

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// There is no room.
    #[error("too many clones and pushes at once")]
    Busy(Busy),
    /// The repo is in another replica's data directory.
    #[error(
        "this controller does not have the repo: let all replicas share one `hosted` directory, or ask the one that \
         has it"
    )]
    Elsewhere,
    /// Git cannot be started.
    #[error("the `git` program cannot be started; is it installed, with `git http-backend`?")]
    Start(#[source] io::Error),
    /// Git answered nothing that could be passed on.
    #[error("git http-backend gave no answer")]
    NoAnswer,
}

/// Runs Git for the clients.
#[derive(Debug)]
pub(super) struct Backend {
    /// A directory of ours that holds no configuration of Git's.
    pub(super) home: PathBuf,
    pub(super) hooks: PathBuf,
    pub(super) limits: Limits,
    pub(super) places: Places,
    pub(super) pushes: Arc<Pushes>,
    pub(super) maintenance: Arc<Maintenance>,
    pub(super) tasks: Tasks,
}

impl Backend {
    /// Serves one request from the repo at `repo`; `changed` is called after a push.
    pub(super) async fn serve(
        &self,
        call: Call,
        repo: PathBuf,
        body: Body,
        changed: impl FnOnce() + Send + 'static,
    ) -> Result<Response, BackendError> {
        let place = self
            .places
            .take(&call.fleet.id.tenant)
            .await
            .map_err(BackendError::Busy)?;
        let push = match call.operation {
            Operation::Exchange(Service::ReceivePack) => {
                Some(self.pushes.expect(&call.fleet, repo.clone()))
            }
            _ => None,
        };
        let room = self.room(push.is_some(), &repo).await;
        let child = self
            .command(&call, &repo, push.as_ref(), room)
            .spawn()
            .map_err(BackendError::Start)?;
        let group = Group::of(&child);
        limit(&group);
        let (head, answered) = oneshot::channel();
        let (chunks, mut rest) = mpsc::channel(4);
        let (id, operation) = (&call.fleet.id, call.operation);
        let span = info_span!("git", tenant = %id.tenant, fleet = %id.name, ?operation);
        let exchange = Exchange {
            child,
            group,
            chunks,
            broken: push.as_ref().map(|push| push.gone.clone()),
        };
        let shutdown = self.tasks.shutdown.clone();
        let (maintenance, home) = (self.maintenance.clone(), self.home.clone());
        let serving = async move {
            exchange.run(body, head, shutdown.clone()).await;
            let pushed = push.is_some();
            drop((push, place));
            if pushed {
                changed();
                tokio::select! {
                    () = maintenance.run(repo, home) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        };
        self.tasks.tracker.spawn(serving.instrument(span));
        let cgi::Head {
            status, headers, ..
        } = answered.await.map_err(|_ended| BackendError::NoAnswer)?;
        let body = stream::poll_fn(move |context| rest.poll_recv(context));
        let mut response = Response::new(Body::from_stream(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// How many bytes a push may bring.
    async fn room(&self, pushes: bool, repo: &Path) -> u64 {
        if !pushes {
            return 0;
        }
        let repo = repo.to_owned();
        let measured = tokio::task::spawn_blocking(move || {
            repo::sweep(&repo, DEADLINE.saturating_mul(2));
            repo::size(&repo)
        });
        let left = self
            .limits
            .repo
            .saturating_sub(measured.await.unwrap_or_default());
        // Git takes 0 for no limit.
        left.min(self.limits.push).max(1)
    }

    fn command(&self, call: &Call, repo: &Path, push: Option<&Expected>, room: u64) -> Command {
        let (Operation::Advertise(service) | Operation::Exchange(service)) = call.operation;
        let (method, path, query) = match call.operation {
            Operation::Advertise(_) => ("GET", "info/refs", format!("service={}", service.name())),
            Operation::Exchange(_) => ("POST", service.name(), String::new()),
        };
        let configuration: [(&str, OsString); 13] = [
            ("core.hooksPath", self.hooks.clone().into()),
            ("safe.directory", repo.into()),
            ("http.uploadpack", "true".into()),
            ("http.receivepack", "true".into()),
            ("http.getanyfile", "false".into()),
            ("uploadpack.allowFilter", "true".into()),
            ("receive.fsckObjects", "true".into()),
            ("receive.maxInputSize", room.to_string().into()),
            ("receive.denyDeleteCurrent", "refuse".into()),
            ("receive.autogc", "false".into()),
            // What a hostile repo may make Git use.
            ("pack.threads", "1".into()),
            ("pack.windowMemory", "64m".into()),
            ("core.bigFileThreshold", "16m".into()),
        ];
        let mut command = Command::new(git::program());
        isolate(&mut command, &self.home);
        command
            .arg("http-backend")
            .envs([
                ("GIT_HTTP_EXPORT_ALL", "1"),
                ("GATEWAY_INTERFACE", "CGI/1.1"),
                ("REQUEST_METHOD", method),
                ("QUERY_STRING", &*query),
                ("REMOTE_USER", &*call.user),
            ])
            .env("REMOTE_ADDR", call.address.to_string())
            // Not from the URL, but made of the checked names.
            .env("GIT_PROJECT_ROOT", repo)
            .env("PATH_INFO", format!("/{path}"))
            .env("GIT_CONFIG_COUNT", configuration.len().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for (number, (name, value)) in configuration.into_iter().enumerate() {
            command
                .env(format!("GIT_CONFIG_KEY_{number}"), name)
                .env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        if let Operation::Exchange(service) = call.operation {
            let media_type = format!("application/x-{}-request", service.name());
            command.env("CONTENT_TYPE", media_type);
        }
        if call.gzip {
            command.env("HTTP_CONTENT_ENCODING", "gzip");
        }
        if call.version_2 {
            command.env("GIT_PROTOCOL", "version=2");
        }
        if let Some(push) = push {
            command
                .env(hook::SOCKET, hook::socket(&self.home))
                .env(hook::SECRET, push.secret.expose_secret());
        }
        command
    }
}

/// Takes away everything that a Git below `command` could find around us; `home` has no configuration in it.
pub(super) fn isolate(command: &mut Command, home: &Path) {
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", home)
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
}

/// Bounds a process, and what it starts.
pub(super) fn limit(group: &Group) {
    for (resource, most) in [(Resource::Data, MEMORY), (Resource::Core, 0)] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        if let Some(leader) = group.leader()
            && let Err(error) = prlimit(Some(leader), resource, limit)
        {
            // It ended already, most likely.
            debug!(%error, "git could not be limited");
        }
    }
}
