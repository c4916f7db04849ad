//! Running other programs, so that none of them can hang, flood or outlive the agent's patience.
//!
//! A program gets an environment that was chosen for it, its input on stdin (so that no secret stands on a
//! command line), a deadline, and a process group of its own, which is killed when the deadline passes, when the
//! output grows beyond its bound, or when the call is dropped. A program counts as ended when it has exited and
//! nobody holds its stdout and stderr any more.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time,
};

use crate::watchdog;

/// How much of the end of what a program says is kept.
const TAIL: usize = 4 * 1024;

/// Why a program did not come to an end of its own.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It cannot be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its pipes broke.
    #[error("cannot talk to {}", program.display())]
    Talk {
        /// Which program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was killed, for it took too long.
    #[error("{} was killed after {limit:?} without an end", program.display())]
    TimedOut {
        /// Which program.
        program: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// It was killed, for it printed too much.
    #[error("{} was killed after it had printed more than {limit} bytes", program.display())]
    TooMuch {
        /// Which program.
        program: PathBuf,
        /// How much it may print.
        limit: usize,
    },
}

/// What is to be run.
#[derive(Debug)]
pub struct Call {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Vec<u8>,
    limit: Duration,
    most_output: usize,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed to stdout.
    pub output: Vec<u8>,
    /// The end of what it printed to stderr, made printable.
    pub errors: String,
}

impl Call {
    /// A call of the program, found in `PATH` unless it is a path, with an empty environment and no input.
    pub fn new(program: impl Into<PathBuf>, limit: Duration) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            input: Vec::new(),
            limit,
            most_output: 16 * 1024 * 1024,
        }
    }

    /// With these arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let arguments = arguments.into_iter();
        self.arguments
            .extend(arguments.map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// With these variables, over those that were given before.
    #[must_use]
    pub fn environment(
        mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        self.environment.extend(variables);
        self
    }

    /// With this on stdin.
    #[must_use]
    pub fn input(mut self, input: Vec<u8>) -> Self {
        self.input = input;
        self
    }

    /// Runs it to its end.
    pub async fn run(self) -> Result<Ended, ProcessError> {
        let limit = self.limit;
        let program = self.program.clone();
        watchdog::allow(limit);
        let mut group = Group::start(&self)?;
        let ended = time::timeout(limit, group.watch(self.input, self.most_output)).await;
        match ended {
            Ok(Ok(ended)) => {
                group.disarm();
                Ok(ended)
            }
            Ok(Err(Broken::TooMuch(limit))) => Err(ProcessError::TooMuch { program, limit }),
            Ok(Err(Broken::Pipe(source))) => Err(ProcessError::Talk { program, source }),
            Err(_elapsed) => Err(ProcessError::TimedOut { program, limit }),
        }
    }

    /// Starts it with its stdout as a pipe, to be read while it runs. Dropping the group ends it.
    pub fn start(self) -> Result<Group, ProcessError> {
        Group::start(&self)
    }
}

/// A running program with all that it started.
#[derive(Debug)]
pub struct Group {
    child: Child,
    group: Option<Pid>,
}

enum Broken {
    TooMuch(usize),
    Pipe(io::Error),
}

impl Group {
    fn start(call: &Call) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::Start {
            program: call.program.clone(),
            source,
        };
        let child = Command::new(&call.program)
            .args(&call.arguments)
            .env_clear()
            .envs(call.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(Path::new("/"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, group })
    }

    /// What it prints from now on.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// What it says on stderr from now on.
    pub fn errors(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Waits until it has ended; whoever it started in its group has to have ended, too.
    pub async fn end(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.disarm();
        Ok(status)
    }

    /// What it says on stderr: reads it to its end and keeps the last of it, made printable.
    pub fn last_words(&mut self) -> impl Future<Output = String> + use<> {
        let stderr = self.child.stderr.take();
        async {
            match stderr {
                Some(stderr) => printable(&tail(stderr).await.unwrap_or_default()),
                None => String::new(),
            }
        }
    }

    async fn watch(&mut self, input: Vec<u8>, most: usize) -> Result<Ended, Broken> {
        let stdin = self.child.stdin.take();
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let feeding = async {
            feed(stdin, &input).await;
            Ok(())
        };
        let reading = async {
            let Some(stdout) = stdout else {
                return Ok(Vec::new());
            };
            let mut output = Vec::new();
            let read = stdout.take(most as u64 + 1).read_to_end(&mut output).await;
            read.map_err(Broken::Pipe)?;
            if output.len() > most {
                return Err(Broken::TooMuch(most));
            }
            Ok(output)
        };
        let listening = async {
            match stderr {
                Some(stderr) => tail(stderr).await.map_err(Broken::Pipe),
                None => Ok(Vec::new()),
            }
        };
        let waiting = async { self.child.wait().await.map_err(Broken::Pipe) };
        let ((), output, errors, status) = tokio::try_join!(feeding, reading, listening, waiting)?;
        Ok(Ended {
            status,
            output,
            errors: printable(&errors),
        })
    }

    /// The program and whoever it started in its group have ended, or are to live on.
    fn disarm(&mut self) {
        self.group = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.group
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "a process group was gone before it was killed");
        }
    }
}

/// Hands over the input. A program that does not want to read it is within its rights.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(input).await
    {
        tracing::debug!(%error, "a program did not read its input to the end");
    }
}

/// Reads to the end and keeps the last bytes.
async fn tail(mut from: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut chunk = vec![0; TAIL];
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(chunk.get(..read).unwrap_or_default());
        kept.drain(..kept.len().saturating_sub(TAIL));
    }
}

/// The file that a call of this program would run: itself where it is a path, else the first of that name in `search`.
pub fn find(program: &str, search: &OsStr) -> Option<PathBuf> {
    let can_run = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(can_run);
    }
    std::env::split_paths(search)
        .map(|folder| folder.join(program))
        .find(can_run)
}

/// Lines of printable text.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let kept = text
        .chars()
        .map(|character| if character == '\t' { ' ' } else { character })
        .filter(|character| *character == '\n' || !character.is_control());
    kept.collect::<String>().trim().to_owned()
}

/// Those of the agent's own variables that `is_wanted` names.
pub fn inherited(is_wanted: fn(&str) -> bool) -> Vec<(OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(is_wanted))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str, limit: Duration) -> Call {
        let path = ("PATH".into(), "/usr/bin:/bin".into());
        Call::new("sh", limit)
            .arguments(["-c", script])
            .environment([path])
    }

    #[tokio::test]
    async fn says_how_it_ended() {
        let ended = shell("cat; echo why >&2; exit 3", LONG)
            .input(b"text".to_vec())
            .run()
            .await
            .unwrap();
        assert_eq!(ended.output, b"text");
        assert_eq!(ended.errors, "why");
        assert_eq!(ended.status.code(), Some(3));
    }

    #[tokio::test]
    async fn a_program_sees_only_what_it_is_given_and_need_not_read_its_input() {
        let ended = shell("env", LONG)
            .environment([("A".into(), "b".into())])
            .input(vec![b'x'; 1024 * 1024])
            .run()
            .await
            .unwrap();
        let seen = String::from_utf8(ended.output).unwrap();
        let mut names: Vec<_> = seen.lines().filter_map(|it| it.split('=').next()).collect();
        names.retain(|name| !["PWD", "SHLVL", "_", "OLDPWD"].contains(name));
        names.sort_unstable();
        assert_eq!(names, ["A", "PATH"]);
    }

    #[tokio::test]
    async fn what_hangs_or_floods_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!(
            "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
            pid.display()
        );
        let begun = Instant::now();
        let error = shell(&script, Duration::from_secs(1))
            .run()
            .await
            .unwrap_err();
        assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
        assert!(begun.elapsed() < LONG);
        let started: i32 = std::fs::read_to_string(&pid)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{started}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        while !gone() {
            assert!(
                begun.elapsed() < LONG,
                "the child of a killed program lives on"
            );
            time::sleep(Duration::from_millis(10)).await;
        }
        let error = shell("yes", LONG).run().await.unwrap_err();
        assert!(matches!(error, ProcessError::TooMuch { .. }), "{error}");
    }

    #[tokio::test]
    async fn the_end_of_its_words_is_kept() {
        let script = "i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; printf 'a\\033[1mb' >&2";
        let ended = shell(script, LONG).run().await.unwrap();
        assert!(ended.errors.len() <= TAIL);
        assert!(
            ended.errors.ends_with("line 2999\na[1mb"),
            "{}",
            ended.errors
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = Call::new("/no/such", LONG).run().await.unwrap_err();
        assert_eq!(error.to_string(), "cannot start /no/such");
    }
}
