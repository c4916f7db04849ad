//! `longshore init`: a fleet repo from the template.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use clap::Args;
use include_dir::{Dir, include_dir};
use serde::Serialize;

use super::Context;
use crate::{Error, Exit, output::say};

static TEMPLATE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../fleet-repo-template");

/// The variables by which a surrounding `git` would lead ours to another repo.
const GIT_VARIABLES: [&str; 5] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
];

/// Start a fleet repo from the template.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  cd $(longshore init my-fleet) && longshore render example-0001")]
pub struct Init {
    /// Where: a directory that does not exist or is empty
    #[arg(default_value = ".", value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Initialized {
    directory: PathBuf,
    branch: &'static str,
    commit: String,
}

pub(crate) fn run(context: &Context, arguments: &Init) -> Result<Exit, Error> {
    let directory = &arguments.directory;
    let cannot = |error| {
        Error::usage(format!(
            "{} cannot be made a fleet repo",
            directory.display()
        ))
        .because(error)
    };
    refuse_non_empty(directory)?;
    fs::create_dir_all(directory).map_err(cannot)?;
    let directory = directory.canonicalize().map_err(cannot)?;
    TEMPLATE.extract(&directory).map_err(|error| {
        Error::usage(format!(
            "the template cannot be written to {}",
            directory.display()
        ))
        .because(error)
    })?;
    let commit = commit(&directory)?;
    let done = Initialized {
        directory,
        branch: "main",
        commit,
    };
    context
        .output
        .show(&done, |done| done.directory.display().to_string())?;
    say("made a fleet repo with two example devices; next:");
    say("  longshore render example-0001       what a device would get");
    say("  git remote add origin URL && git push -u origin main");
    say("  longshore fleets add NAME --repo URL     let a controller follow it");
    say("  longshore tokens create             get the command that joins a device");
    Ok(Exit::Success)
}

fn refuse_non_empty(directory: &Path) -> Result<(), Error> {
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(
                Error::usage(format!("{} is not empty", directory.display()))
                    .hint("name a new directory: `longshore init my-fleet`"),
            ),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(Error::usage(format!("{} cannot be read", directory.display())).because(error))
        }
    }
}

/// Puts everything into a first commit on `main`, and names it.
fn commit(directory: &Path) -> Result<String, Error> {
    git(directory, ["init", "--quiet", "-b", "main"])?;
    git(directory, ["add", "--all"])?;
    let message = [
        "commit",
        "--quiet",
        "-m",
        "Start the fleet from Longshore's template",
    ];
    if knows_author(directory)? {
        git(directory, message)?;
    } else {
        let author = [
            "-c",
            "user.name=Longshore",
            "-c",
            "user.email=longshore@localhost",
        ];
        git(directory, author.into_iter().chain(message))?;
    }
    let head = git(directory, ["rev-parse", "HEAD"])?;
    Ok(String::from_utf8_lossy(&head.stdout).trim().to_owned())
}

/// Whether git was told who commits here; on a machine where it was not, it would refuse to commit.
fn knows_author(directory: &Path) -> Result<bool, Error> {
    let known = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let email = start(directory, ["config", "--get", "user.email"])?
        .status
        .success()
        || (known("GIT_AUTHOR_EMAIL") && known("GIT_COMMITTER_EMAIL"));
    let name = start(directory, ["config", "--get", "user.name"])?
        .status
        .success()
        || (known("GIT_AUTHOR_NAME") && known("GIT_COMMITTER_NAME"));
    Ok(email && name)
}

fn git<S: AsRef<OsStr>>(
    directory: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Result<Output, Error> {
    let output = start(directory, arguments)?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(
        Error::usage(format!("git failed in {}: {said}", directory.display())).hint(
            "the files are written; commit them yourself, or empty the directory and try again",
        ),
    )
}

fn start<S: AsRef<OsStr>>(
    directory: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Result<Output, Error> {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(arguments);
    for variable in GIT_VARIABLES {
        command.env_remove(variable);
    }
    command.output().map_err(|error| {
        Error::usage("the program `git` cannot be started")
            .because(error)
            .hint("install git, for example with `apt-get install git`")
    })
}
