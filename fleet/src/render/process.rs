//! Running builds.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use longshore_protocol::Object;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::unix::pipe,
    task, time,
};

use super::{
    Render, RenderError, RenderFuture, RenderSettings,
    detect::{self, DetectError, Program},
    export::{self, Export, Exports},
    output,
    sandbox::{self, Group, Launch, Limits, Sandbox},
};
use crate::{closure::Closure, tree::Tree};

/// How much of stderr is kept.
const MAX_ERRORS: usize = 64 * 1024;
/// How much of it is shown.
const MAX_MESSAGE: usize = 4 * 1024;
/// `SIGXCPU`: the limit on processor time was reached.
const CPU_TIME_EXCEEDED: i32 = 24;

/// Renders with a kustomize process per build.
#[derive(Debug)]
pub struct Kustomize {
    settings: RenderSettings,
    program: Program,
    version: String,
    identity: String,
    scratch: std::path::PathBuf,
    exports: Arc<Exports>,
    sandbox: Arc<Sandbox>,
}

struct Finished {
    status: ExitStatus,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Kustomize {
    /// Finds the program, prepares the sandbox, and asks the program, in the sandbox, for its version.
    ///
    /// # Errors
    /// Where builds cannot be run here; see [`DetectError`].
    pub async fn detect(settings: RenderSettings) -> Result<Self, DetectError> {
        let program = detect::program(&settings)?;
        let scratch = detect::scratch(&settings)?;
        export::sweep(
            &scratch,
            settings.timeout.saturating_add(Duration::from_mins(1)),
        );
        let landlock = sandbox::landlock_works();
        if !landlock && !settings.allow_unsandboxed {
            return Err(DetectError::NoSandbox);
        }
        let readable = settings
            .readable
            .iter()
            .cloned()
            .chain([program.path.clone()])
            .collect();
        // Without Landlock nobody can tell whether a build left anything behind.
        let kept = if landlock { settings.parallelism } else { 0 };
        let mut kustomize = Self {
            exports: Arc::new(Exports::new(scratch.clone(), kept)),
            sandbox: Arc::new(Sandbox::new(landlock, readable)),
            version: String::new(),
            identity: String::new(),
            settings,
            program,
            scratch,
        };
        let path = kustomize.program.path.clone();
        kustomize.version =
            kustomize
                .ask_version()
                .await
                .map_err(|source| DetectError::Version {
                    program: path,
                    source,
                })?;
        kustomize.identity =
            detect::identity(&kustomize.program, &kustomize.version).map_err(|source| {
                DetectError::Unusable {
                    program: kustomize.program.path.clone(),
                    source,
                }
            })?;
        Ok(kustomize)
    }

    /// Which program, which version, and how it is confined, for people.
    pub fn describe(&self) -> String {
        let flavor = self.program.flavor.name();
        let path = self.program.path.display();
        format!(
            "{flavor} {} ({path}), confined by {}",
            self.version,
            self.sandbox.describe()
        )
    }

    async fn ask_version(&self) -> Result<String, RenderError> {
        let export =
            Export::new(&self.scratch, "").map_err(environment("make a private directory"))?;
        let arguments = self
            .program
            .flavor
            .version_arguments()
            .iter()
            .map(OsString::from)
            .collect();
        let finished = self.run(&export, arguments).await?;
        let text = String::from_utf8_lossy(&finished.output);
        if !finished.status.success() {
            return Err(self.failure(&finished, &export.tree()));
        }
        let words = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(words
            .collect::<Vec<_>>()
            .join(", ")
            .chars()
            .filter(|char| !char.is_control())
            .take(200)
            .collect())
    }

    async fn build(
        &self,
        owner: &str,
        tree: Arc<dyn Tree>,
        closure: &Closure,
    ) -> Result<Vec<Object>, RenderError> {
        self.program.check().map_err(environment("use kustomize"))?;
        let files = closure.files.clone();
        let exports = self.exports.clone();
        let owner = owner.to_owned();
        let export = blocking(move || exports.take(&owner, tree.as_ref(), &files)).await?;
        let root = export.tree();
        let overlay = if closure.overlay.is_root() {
            root.clone()
        } else {
            root.join(closure.overlay.as_str())
        };
        let build = self
            .program
            .flavor
            .build_arguments()
            .iter()
            .map(OsString::from);
        let finished = self
            .run(&export, build.chain([overlay.into()]).collect())
            .await;
        let exports = finished.is_ok().then(|| self.exports.clone());
        let result = match finished {
            Ok(finished) if finished.status.success() => Ok(finished.output),
            Ok(finished) => Err(self.failure(&finished, &root)),
            Err(error) => Err(error),
        };
        blocking(move || {
            // Removing the files, where they are not kept, is blocking work too.
            match exports {
                Some(exports) => exports.give_back(export),
                None => drop(export),
            }
            Ok(output::objects(&result?)?)
        })
        .await
    }

    /// Runs the program over `export` until it ends by itself or reaches a limit; either way the group is gone.
    async fn run(
        &self,
        export: &Export,
        arguments: Vec<OsString>,
    ) -> Result<Finished, RenderError> {
        let memory = self.settings.memory_limit;
        let launch = Launch {
            program: self.program.path.clone(),
            arguments,
            environment: vec![
                ("HOME", export.home().into()),
                ("PATH", "/usr/bin:/bin".into()),
                // A build is short: one processor each, and no garbage collection before three quarters of its
                // memory are used.
                ("GOMAXPROCS", "1".into()),
                ("GOGC", "off".into()),
                ("GOMEMLIMIT", (memory / 4 * 3).to_string().into()),
            ],
            directory: export.tree(),
            limits: Limits {
                memory,
                cpu_seconds: self.settings.timeout.as_secs().saturating_add(1),
            },
        };
        let run = async {
            let group = sandbox::spawn(self.sandbox.clone(), launch);
            self.watch(group.await.map_err(environment("start kustomize"))?)
                .await
        };
        let limit = self.settings.timeout;
        // When time is up, the group is dropped with the future, which kills it.
        time::timeout(limit, run)
            .await
            .map_err(|_elapsed| RenderError::TimedOut { limit })?
    }

    /// Reads what the group prints until it is gone.
    async fn watch(&self, mut group: Group) -> Result<Finished, RenderError> {
        let limit = self.settings.max_output;
        let output = group.output.take();
        let errors = group.errors.take();
        let output = async {
            let read = read(output, limit, true).await;
            let (bytes, complete) = read.map_err(environment("read kustomize's output"))?;
            if complete {
                Ok(bytes)
            } else {
                Err(RenderError::OutputTooLarge { limit })
            }
        };
        let errors = async {
            let read = read(errors, MAX_ERRORS, false).await;
            Ok(read.map_err(environment("read kustomize's errors"))?.0)
        };
        let status = async {
            let ended = (&mut group.ended).await.map_err(io::Error::other);
            ended
                .and_then(|status| status)
                .map_err(environment("wait for kustomize"))
        };
        let (status, output, errors) = tokio::try_join!(status, output, errors)?;
        Ok(Finished {
            status,
            output,
            errors,
        })
    }

    fn failure(&self, finished: &Finished, root: &Path) -> RenderError {
        match finished.status.signal() {
            Some(CPU_TIME_EXCEEDED) => {
                return RenderError::TimedOut {
                    limit: self.settings.timeout,
                };
            }
            Some(signal) => return RenderError::Killed { signal },
            None => {}
        }
        let errors = String::from_utf8_lossy(&finished.errors);
        let lower = errors.to_lowercase();
        if OUT_OF_MEMORY.iter().any(|sign| lower.contains(sign)) {
            return RenderError::OutOfMemory {
                limit: self.settings.memory_limit,
            };
        }
        let message = clean(&errors, root);
        if message.is_empty() {
            return RenderError::Build {
                message: format!("{}, without a word", finished.status),
            };
        }
        RenderError::Build { message }
    }
}

/// How a program written in Go, and what it is linked with, say that there is no memory: for the heap, for an
/// allocation outside of it, and for the stack of a further thread.
const OUT_OF_MEMORY: &[&str] = &[
    "out of memory",
    "cannot allocate",
    "memory exhausted",
    "pthread_create failed",
    "failed to create new os thread",
    "resource temporarily unavailable",
];

impl Render for Kustomize {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn parallelism(&self) -> usize {
        self.settings.parallelism
    }

    fn render<'a>(
        &'a self,
        owner: &'a str,
        tree: &'a Arc<dyn Tree>,
        closure: &'a Closure,
    ) -> RenderFuture<'a> {
        Box::pin(self.build(owner, tree.clone(), closure))
    }
}

fn environment(operation: &'static str) -> impl Fn(io::Error) -> RenderError {
    move |source| RenderError::Environment { operation, source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RenderError> + Send + 'static,
) -> Result<T, RenderError> {
    task::spawn_blocking(work)
        .await
        .map_err(|ended| environment("finish work on a blocking thread")(io::Error::other(ended)))?
}

/// Reads all of a pipe, but keeps at most `limit` bytes; tells whether that was all. Stops at the limit if `stop`.
async fn read(from: Option<OwnedFd>, limit: usize, stop: bool) -> io::Result<(Vec<u8>, bool)> {
    let Some(from) = from else {
        return Ok((Vec::new(), true));
    };
    let mut from = pipe::Receiver::from_owned_fd(from)?;
    let mut kept = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    (&mut from).take(most).read_to_end(&mut kept).await?;
    let more = if stop {
        from.read_u8().await.is_ok()
    } else {
        drain(&mut from).await? > 0
    };
    Ok((kept, !more))
}

async fn drain(from: &mut (impl AsyncRead + Unpin)) -> io::Result<u64> {
    tokio::io::copy(from, &mut tokio::io::sink()).await
}

/// What kustomize said, without warnings, our temporary paths and control characters, and not too much of it.
fn clean(errors: &str, root: &Path) -> String {
    let root = root.to_string_lossy();
    let said: Vec<&str> = errors
        .lines()
        .filter(|line| !line.starts_with("# Warning:"))
        .collect();
    let text = said
        .join("\n")
        .replace(&format!("{root}/"), "")
        .replace(root.as_ref(), ".");
    let text = text
        .trim()
        .trim_start_matches("Error: ")
        .trim_start_matches("error: ");
    let mut shown: String = text
        .chars()
        .filter(|char| !char.is_control() || *char == '\n')
        .take(MAX_MESSAGE)
        .collect();
    if shown.len() < text.len() && shown.chars().count() == MAX_MESSAGE {
        shown.push('…');
    }
    shown
}
