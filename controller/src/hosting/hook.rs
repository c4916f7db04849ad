//! The `pre-receive` hook: this program again, called by Git under the hook's name.
//!
//! It hands what Git tells it to the controller, over a Unix socket in the data directory, prints what the
//! controller says (the person who pushes sees it as `remote:` lines), and ends with the controller's verdict.
//! Whatever goes wrong, the push is refused: only the controller accepts.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::AsRawFd as _,
        unix::{fs::symlink, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

/// The hook's name, by which Git calls it.
const NAME: &str = "pre-receive";
/// Where the controller listens.
pub(super) const SOCKET: &str = "LONGSHORE_PUSH_SOCKET";
/// What the controller knows the push by.
pub(super) const SECRET: &str = "LONGSHORE_PUSH_SECRET";
/// The largest question, in bytes: some thousands of branches.
pub(super) const MAX_QUESTION: u64 = 1024 * 1024;

/// What the hook asks: one JSON text, and the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) secret: String,
    /// Where Git keeps the new objects until the push is accepted; absent where there are none.
    pub(super) quarantine: Option<PathBuf>,
    pub(super) updates: Vec<Update>,
}

/// One ref that the push changes; ids of zeros stand for no commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Update {
    pub(super) old: String,
    pub(super) new: String,
    pub(super) name: String,
}

/// What the controller answers: a JSON text a line, the last one a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// A line for the person who pushes.
    Say(String),
    /// Whether the push is accepted.
    Verdict(bool),
}

/// Makes the directory of hooks, with ours as the only one. Returns it.
pub(super) fn install(directory: &Path) -> Result<PathBuf, FileError> {
    let hooks = directory.join("hooks");
    files::create_private_directory(&hooks)?;
    let hook = hooks.join(NAME);
    let at = |source| FileError::new(&hook, source);
    let program = env::current_exe().map_err(at)?;
    match fs::remove_file(&hook) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    symlink(program, &hook).map_err(at)?;
    Ok(hooks)
}

/// Where the controller listens, in its directory for pushes.
pub(super) fn socket(directory: &Path) -> PathBuf {
    directory.join("socket")
}

/// A socket's path that is short enough for the kernel (108 bytes), however deep its directory is.
#[derive(Debug)]
pub(super) struct Reachable {
    path: PathBuf,
    _directory: File,
}

impl Reachable {
    pub(super) fn new(socket: &Path) -> io::Result<Self> {
        let parts = socket.parent().zip(socket.file_name());
        let (directory, name) = parts.ok_or(io::ErrorKind::InvalidInput)?;
        let directory = File::open(directory)?;
        let path = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        Ok(Self {
            path,
            _directory: directory,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether Git called this program as its hook.
pub fn is_called(arguments: &mut dyn Iterator<Item = OsString>) -> bool {
    arguments
        .next()
        .is_some_and(|name| Path::new(&name).file_name() == Some(OsStr::new(NAME)))
}

/// Asks the controller about the push that Git tells of on stdin.
pub fn run() -> ExitCode {
    let accepted = ask().unwrap_or_else(|error| {
        // Where stderr is closed, the exit code is all that can be said.
        drop(writeln!(
            io::stderr(),
            "The push could not be checked ({error}), so it is refused. Try again."
        ));
        false
    });
    if accepted {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn ask() -> io::Result<bool> {
    let variable = |name| env::var_os(name).ok_or_else(|| io::Error::other(format!("no {name}")));
    let secret = variable(SECRET)?.to_string_lossy().into_owned();
    let socket = PathBuf::from(variable(SOCKET)?);
    let mut told = String::new();
    io::stdin().take(MAX_QUESTION).read_to_string(&mut told)?;
    let question = Question {
        secret,
        quarantine: env::var_os("GIT_QUARANTINE_PATH").map(PathBuf::from),
        updates: updates(&told)?,
    };
    let mut stream = UnixStream::connect(Reachable::new(&socket)?.path())?;
    stream.write_all(&serde_json::to_vec(&question)?)?;
    stream.shutdown(Shutdown::Write)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            Answer::Say(text) => writeln!(io::stdout(), "{text}")?,
            Answer::Verdict(accepted) => return Ok(accepted),
        }
    }
    Err(io::Error::other("the controller stopped"))
}

/// What githooks(5) says of stdin: the old id, the new one and the ref's name, a line each.
fn updates(told: &str) -> io::Result<Vec<Update>> {
    told.lines()
        .map(|line| {
            let mut parts = line.splitn(3, ' ').map(str::to_owned);
            match (parts.next(), parts.next(), parts.next()) {
                (Some(old), Some(new), Some(name)) => Ok(Update { old, new, name }),
                _ => Err(io::Error::other("Git tells of no ref")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_called_by_its_name() {
        let called = |name: &str| is_called(&mut [OsString::from(name)].into_iter());
        assert!(called("/data/push/hooks/pre-receive"));
        assert!(!called("/usr/bin/longshore-controller"));
        assert!(!is_called(&mut std::iter::empty()));
    }

    #[test]
    fn what_git_tells_is_read() {
        let zeros = "0".repeat(40);
        let one = "1".repeat(40);
        let told = format!("{zeros} {one} refs/heads/main\n{one} {zeros} refs/heads/a\u{a0}b c\n");
        let updates = updates(&told).unwrap();
        assert_eq!(updates.len(), 2);
        assert_eq!(updates[0].new, one);
        assert_eq!(updates[1].name, "refs/heads/a\u{a0}b c");
        assert!(super::updates("what\n").is_err());
    }

    #[test]
    fn a_socket_is_reachable_however_deep_it_lies() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(200));
        fs::create_dir(&deep).unwrap();
        let socket = socket(&deep);
        let listener =
            std::os::unix::net::UnixListener::bind(Reachable::new(&socket).unwrap().path())
                .unwrap();
        let mut stream = UnixStream::connect(Reachable::new(&socket).unwrap().path()).unwrap();
        stream.write_all(b"here").unwrap();
        drop(stream);
        let mut heard = String::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_string(&mut heard)
            .unwrap();
        assert_eq!(heard, "here");
    }
}
