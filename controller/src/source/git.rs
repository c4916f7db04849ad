//! The `git` program, for everything that crosses a network: it brings credential helpers, SSH, proxies.
//!
//! It speaks version 2 of Git's protocol, in which a fetch is conditional by itself: the client asks for the few
//! refs that it wants, and where they are what it has, that was all.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, prlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};

use tracing::debug;

use super::{access::Access, throttle};
use crate::{clock, forge::ForgeError, process_group::Group};

/// A fetch or push that takes longer is ended.
pub(super) const DEADLINE: Duration = Duration::from_mins(2);
/// The largest file that it writes, in bytes: the pack of what a host sends.
const MAX_PACK: u64 = 4 * 1024 * 1024 * 1024;
/// How much of what the program prints is kept.
const MAX_OUTPUT: u64 = 64 * 1024;

/// The `git` program, by its whole path where it is found.
///
/// A program that is started by its name with another environment has to be forked, and copying the page tables of a
/// controller with ten thousand devices takes as long as a build; a path can be started without.
pub fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).map(|directory| directory.join("git"));
        let mut found = found.filter(|program| program.is_file());
        found.next().unwrap_or_else(|| "git".into())
    });
    &PROGRAM
}

/// Why a Git operation failed.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The program is not there.
    #[error("the `git` program cannot be started; is it installed?")]
    Start(#[source] std::io::Error),
    /// It takes too long.
    #[error("git {operation} did not end within {} seconds", DEADLINE.as_secs())]
    TimedOut {
        /// `fetch`, `push`, …
        operation: String,
    },
    /// It refuses.
    #[error("git {operation}: {message}")]
    Refused {
        /// `fetch`, `push`, …
        operation: String,
        /// The last lines that it printed.
        message: String,
    },
    /// The host wants fewer calls: `429` or `503`.
    #[error("git {operation}: the host wants fewer calls{}: {message}", until(*retry_after))]
    Throttled {
        /// `fetch`, `push`, …
        operation: String,
        /// When to come back, where the host said so.
        retry_after: Option<Duration>,
        /// The last lines that it printed.
        message: String,
    },
    /// The repo is reached over ssh, and nothing of the controller's own may be used.
    #[error(
        "the repo's URL is for ssh, and the fleet has no key; give it one with `longshore fleets connect FLEET git \
         --ssh-key-file FILE --known-hosts-file FILE`"
    )]
    NoKey,
    /// The key cannot be laid where Git finds it.
    #[error("the SSH key cannot be written for git")]
    Key(#[source] std::io::Error),
    /// The forge gives no login.
    #[error("the forge gives no login for git")]
    Login(#[source] ForgeError),
    /// The mirror cannot be read or written.
    #[error("the mirror of the repo failed")]
    Mirror(#[from] git2::Error),
    /// A task was cut off by the shutdown.
    #[error("the operation was cut off")]
    Cut,
}

impl GitError {
    /// Whether the remote says that a branch does not exist.
    pub fn is_missing_branch(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains("couldn't find remote ref"))
    }

    /// Whether a lock in the mirror was in the way.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains(".lock': File exists"))
    }

    /// Whether the remote does not take what Git presented.
    fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { message, .. }
            if ["could not read Username", "Authentication failed", "HTTP Basic: Access denied"]
                .iter().any(|sign| message.contains(sign)))
    }

    /// Whether the remote refuses a push because the branch moved in between.
    pub fn is_race(&self) -> bool {
        matches!(self, Self::Refused { message, .. }
            if ["non-fast-forward", "fetch first", "stale info", "cannot lock ref", "failed to update ref"]
                .iter().any(|sign| message.contains(sign)))
    }
}

/// When to come back, as part of a sentence.
fn until(retry_after: Option<Duration>) -> String {
    retry_after
        .map(|pause| format!(" for {} s", pause.as_secs()))
        .unwrap_or_default()
}

impl GitError {
    /// Whether the remote's rules, rather than its state or the network, are against a push.
    pub fn is_declined(&self) -> bool {
        let Self::Refused { message, .. } = self else {
            return false;
        };
        let signs = [
            "hook declined",
            "protected branch",
            "GH006",
            "GH013",
            "push declined",
            "not allowed to push",
            "error: 403",
            "Permission to",
            "Permission denied to",
            "read only",
            "(prohibited",
            "deny updating",
        ];
        !self.is_race() && signs.iter().any(|sign| message.contains(sign))
    }
}

/// Runs `git` in the bare repo `directory`.
///
/// The program gets an environment without our secrets, may not ask questions, and is killed with the future.
///
/// # Errors
/// [`GitError::Refused`] carries what it printed.
pub async fn run<S: AsRef<OsStr>>(
    directory: &Path,
    access: &Access,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String, GitError> {
    let arguments: Vec<_> = arguments
        .into_iter()
        .map(|argument| argument.as_ref().to_owned())
        .collect();
    let operation = arguments
        .first()
        .map(|it| it.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut command = Command::new(program());
    command.args([
        "-c",
        // What a crash loses here is fetched again.
        "core.fsync=none",
        "-c",
        "gc.auto=0",
        "-c",
        "maintenance.auto=false",
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "protocol.version=2",
    ]);
    let presented = access.present(directory).await?;
    let is_isolated = access.is_isolated();
    if is_isolated {
        // Nothing of the controller's own may speak for the fleet: no helpers, no netrc, no configuration.
        command.args([
            "-c",
            "credential.helper=",
            "-c",
            "http.followRedirects=false",
        ]);
    }
    command
        .args(&arguments)
        .current_dir(directory)
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            ["PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"].contains(&&*name)
                || name == "SSH_AUTH_SOCK" && !is_isolated
                || name.to_ascii_lowercase().ends_with("_proxy")
        }))
        .env("GIT_DIR", directory)
        .envs(
            is_isolated
                .then(|| {
                    [
                        ("HOME", directory.as_os_str()),
                        ("GIT_CONFIG_NOSYSTEM", OsStr::new("1")),
                        ("GIT_CONFIG_GLOBAL", OsStr::new("/dev/null")),
                    ]
                })
                .into_iter()
                .flatten(),
        )
        .envs(authorities())
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
        .env("GIT_ALLOW_PROTOCOL", access.protocols())
        .envs(
            presented
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .envs(throttle::TRACE)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(GitError::Start)?;
    // Git's helpers are its children: with the future, the whole group goes.
    let mut group = Group::of(&child);
    bound(&group);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::join!(read(stdout), read(stderr), child.wait()) };
    let (stdout, stderr, status) =
        tokio::time::timeout(DEADLINE, all)
            .await
            .map_err(|_elapsed| GitError::TimedOut {
                operation: operation.clone(),
            })?;
    // It ended by itself; its number may be another's now.
    group.release();
    if status.map_err(GitError::Start)?.success() {
        return Ok(stdout);
    }
    let [stdout, stderr] = [stdout, stderr].map(|text| presented.without_secrets(text));
    let error = failure(operation, &stdout, &stderr);
    if error.is_unauthorized() {
        access.forget_login().await;
    }
    Err(error)
}

/// The certificates that all of the controller's connections trust, in Git's words for them.
fn authorities() -> impl Iterator<Item = (&'static str, OsString)> {
    [
        ("GIT_SSL_CAINFO", "SSL_CERT_FILE"),
        ("GIT_SSL_CAPATH", "SSL_CERT_DIR"),
    ]
    .into_iter()
    .filter_map(|(git, ours)| Some((git, env::var_os(ours)?)))
}

/// Why the program failed, by what it printed.
fn failure(operation: String, stdout: &str, stderr: &str) -> GitError {
    let (stderr, throttled) = throttle::split(stderr, clock::now_ms());
    // A push tells on stdout why a ref was refused: that is the last word.
    let refused = stdout.lines().filter(|line| line.starts_with('!'));
    let lines: Vec<_> = stderr
        .into_iter()
        .chain(refused)
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines.len().saturating_sub(6);
    let message = lines.get(last..).unwrap_or_default().join("; ");
    match throttled {
        Some(throttled) => GitError::Throttled {
            operation,
            retry_after: throttled.retry_after,
            message,
        },
        None => GitError::Refused { operation, message },
    }
}

/// A host that sends without end must not fill the disk.
fn bound(git: &Group) {
    let limit = Rlimit {
        current: Some(MAX_PACK),
        maximum: Some(MAX_PACK),
    };
    if let Some(leader) = git.leader()
        && let Err(error) = prlimit(Some(leader), Resource::Fsize, limit)
    {
        // It ended already, most likely.
        debug!(%error, "git could not be limited");
    }
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut text = Vec::new();
    if let Some(pipe) = pipe {
        let mut bounded = pipe.take(MAX_OUTPUT);
        let read = bounded.read_to_end(&mut text).await;
        // What is past the bound must still be read, or the program would wait for us.
        let rest = tokio::io::copy(&mut bounded.into_inner(), &mut tokio::io::sink()).await;
        if let Err(error) = read.and(rest) {
            tracing::debug!(%error, "git's output could not be read");
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}
