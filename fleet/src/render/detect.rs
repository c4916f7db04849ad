//! Finding a kustomize, and knowing which one it is.

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use longshore_protocol::digest::Hasher;
use rustix::fs::{Access, access};

use super::{RenderError, RenderSettings};

/// The version of our own part in a build: export, arguments, reading of the output.
const FORMAT: &str = "1";

/// Why builds cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// No program was found.
    #[error(
        "found neither `kustomize` nor `kubectl` in PATH; install one, or name one in the settings"
    )]
    NotFound,
    /// The program that the settings name cannot be run.
    #[error("cannot use `{}` as kustomize", .program.display())]
    Unusable {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The program does not tell its version.
    #[error("`{}` does not tell its version", .program.display())]
    Version {
        /// The program.
        program: PathBuf,
        /// What came instead.
        #[source]
        source: RenderError,
    },
    /// There is nowhere to export to.
    #[error("cannot export to `{}`", .scratch.display())]
    Scratch {
        /// The directory.
        scratch: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel has no Landlock, and the settings insist on it.
    #[error(
        "this kernel has no Landlock (Linux 5.13 with `landlock` among its security modules), so a build could \
         read any file of this machine; allow unsandboxed builds only where every fleet repo is trusted"
    )]
    NoSandbox,
}

/// Which of the two programs it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavor {
    Kustomize,
    Kubectl,
}

impl Flavor {
    fn of(program: &Path) -> Self {
        let name = program
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with("kubectl") {
            Self::Kubectl
        } else {
            Self::Kustomize
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kustomize => "kustomize",
            Self::Kubectl => "kubectl kustomize",
        }
    }

    pub(super) fn version_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Kustomize => &["version"],
            Self::Kubectl => &["version", "--client"],
        }
    }

    pub(super) fn build_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Kustomize => &["build"],
            Self::Kubectl => &["kustomize"],
        }
    }
}

/// A program to run, by its real path.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) flavor: Flavor,
    stamp: Stamp,
}

/// Tells a file from one that has taken its place.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &Path) -> io::Result<Stamp> {
    let file = fs::metadata(path)?;
    Ok((
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
    ))
}

impl Program {
    /// Refuses to go on with another program than the one that [`identity`] speaks of.
    pub(super) fn check(&self) -> io::Result<()> {
        if stamp(&self.path)? == self.stamp {
            return Ok(());
        }
        Err(io::Error::other(
            "the program was replaced since it was detected; restart to use the new one",
        ))
    }
}

pub(super) fn program(settings: &RenderSettings) -> Result<Program, DetectError> {
    let given = match &settings.program {
        Some(program) => program.clone(),
        None => ["kustomize", "kubectl"]
            .into_iter()
            .find_map(in_path)
            .ok_or(DetectError::NotFound)?,
    };
    let flavor = Flavor::of(&given);
    let usable = || {
        let path = given.canonicalize()?;
        access(&path, Access::EXEC_OK)?;
        let stamp = stamp(&path)?;
        Ok(Program {
            path,
            flavor,
            stamp,
        })
    };
    usable().map_err(|source| DetectError::Unusable {
        program: given.clone(),
        source,
    })
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let candidate = |directory: PathBuf| {
        let program = directory.join(name);
        (program.is_file() && access(&program, Access::EXEC_OK).is_ok()).then_some(program)
    };
    env::split_paths(&path).find_map(candidate)
}

/// The directory to export to, by its real path.
pub(super) fn scratch(settings: &RenderSettings) -> Result<PathBuf, DetectError> {
    let shared_memory = Path::new("/dev/shm");
    let scratch = match &settings.scratch {
        Some(scratch) => scratch.clone(),
        None if access(shared_memory, Access::WRITE_OK | Access::EXEC_OK).is_ok() => {
            shared_memory.to_owned()
        }
        None => env::temp_dir(),
    };
    scratch
        .canonicalize()
        .map_err(|source| DetectError::Scratch { scratch, source })
}

/// Names everything that the output depends on besides the input. The program's own bytes belong to it:
/// packages of one version differ, and some builds know no version at all.
pub(super) fn identity(program: &Program, version: &str) -> io::Result<String> {
    let mut hasher = Hasher::new();
    hasher.part(&fs::read(&program.path)?);
    let bytes = hasher.finish();
    Ok(format!(
        "{} {version} {} format {FORMAT}",
        program.flavor.name(),
        bytes.short()
    ))
}
