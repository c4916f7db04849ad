//! Building an overlay, in a confined kustomize process that sees its closure and nothing else.
//!
//! ```text
//! Closure ─▶ export to a private directory ─▶ sandboxed `kustomize build` ─▶ YAML ─▶ objects
//! ```
//!
//! Guarantees of [`Kustomize`]:
//! * The process can read the closure's files, its own binary and the system's shared libraries; it can write
//!   nothing and, over TCP, reach nothing. Its time, memory and output are bounded.
//! * When [`Render::render`] returns, or its future is dropped, every process of the build has been killed.
//! * Equal closures give equal objects. Whether an error is as lasting says [`RenderError::is_deterministic`].

mod detect;
mod export;
mod output;
mod process;
mod sandbox;

use std::{fmt, io, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use longshore_protocol::Object;

pub use detect::DetectError;
pub(crate) use output::resolve_scalar;
pub use output::{OutputError, objects};

use crate::{
    closure::Closure,
    tree::{Tree, TreeError},
};

/// What [`Render::render`] returns.
pub type RenderFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<Object>, RenderError>> + Send + 'a>>;

/// Turns an overlay into objects.
pub trait Render: fmt::Debug + Send + Sync {
    /// What, besides the input, the output depends on: program, version, our own reading of its output. Part of
    /// every [`InputKey`](crate::InputKey).
    fn identity(&self) -> &str;

    /// How many builds should run at once. Who calls keeps to it.
    fn parallelism(&self) -> usize {
        1
    }

    /// The objects of `closure`'s overlay, whose files are taken from `tree`. Each key appears once; an overlay
    /// without objects gives none, which is no error. Builds of different owners have nothing in common.
    fn render<'a>(
        &'a self,
        owner: &'a str,
        tree: &'a Arc<dyn Tree>,
        closure: &'a Closure,
    ) -> RenderFuture<'a>;
}

/// How builds are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderSettings {
    /// The program, `kustomize` or `kubectl`; where it is not given, `PATH` is searched for either.
    pub program: Option<PathBuf>,
    /// How many builds should run at once. Who calls keeps to it.
    pub parallelism: usize,
    /// How long one build may take.
    pub timeout: Duration,
    /// How many bytes one build may print.
    pub max_output: usize,
    /// How many bytes of memory one build may use.
    pub memory_limit: u64,
    /// Where inputs are exported; by default `/dev/shm` where that is writable, else the temporary directory.
    pub scratch: Option<PathBuf>,
    /// Run without Landlock where the kernel has none, rather than not at all.
    pub allow_unsandboxed: bool,
    /// Further files and directories that the program needs to read and execute, for unusual installations.
    pub readable: Vec<PathBuf>,
}

impl Default for RenderSettings {
    fn default() -> Self {
        Self {
            program: None,
            parallelism: std::thread::available_parallelism().map_or(1, usize::from),
            timeout: Duration::from_secs(30),
            max_output: 16 * 1024 * 1024,
            memory_limit: 1024 * 1024 * 1024,
            scratch: None,
            allow_unsandboxed: false,
            readable: Vec::new(),
        }
    }
}

/// Why an overlay was not rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// Kustomize refused the input.
    #[error("kustomize: {message}")]
    Build {
        /// What it printed to stderr, without our temporary paths.
        message: String,
    },
    /// The build took longer than it may.
    #[error("the build took longer than {} s", .limit.as_secs_f64())]
    TimedOut {
        /// How long it may take.
        limit: Duration,
    },
    /// The build printed more than it may.
    #[error("the build printed more than {limit} bytes")]
    OutputTooLarge {
        /// How much it may print.
        limit: usize,
    },
    /// The build needed more memory than it may use.
    #[error("the build needed more than {limit} bytes of memory")]
    OutOfMemory {
        /// How much it may use.
        limit: u64,
    },
    /// The build was killed by a signal, not by us.
    #[error("the build was killed by signal {signal}")]
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// What the build printed is not a list of objects.
    #[error("the build's output is unusable: {0}")]
    Output(#[from] OutputError),
    /// Something around the build failed: ours to mend.
    #[error("cannot {operation}")]
    Environment {
        /// What was being done.
        operation: &'static str,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl RenderError {
    /// Whether the same closure will always fail in this way, so that the failure may be remembered.
    pub fn is_deterministic(&self) -> bool {
        match self {
            Self::Build { .. } | Self::OutputTooLarge { .. } | Self::Output(_) => true,
            Self::TimedOut { .. }
            | Self::OutOfMemory { .. }
            | Self::Killed { .. }
            | Self::Environment { .. }
            | Self::Tree(_) => false,
        }
    }
}

pub use process::Kustomize;
