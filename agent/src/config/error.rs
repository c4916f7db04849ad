//! What can be wrong with the settings.

use std::path::PathBuf;

use url::Url;

use crate::{network::proxy::InvalidProxy, tls::TlsError, update::window::InvalidWindow};

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// The TOML is wrong.
    #[error("{path}{}: {message}", .line.map(|line| format!(":{line}")).unwrap_or_default())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: Option<usize>,
        /// What is wrong, without what stands there: that may be a password, and others than its owner read this.
        message: String,
    },
    /// The server's address is not one.
    #[error(
        "--server must be https://host[:port], not `{0}`: a device tells its token to nobody whom it cannot verify"
    )]
    Server(Url),
    /// A proxy that is none.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// A file of root certificates that is of no use.
    #[error("--ca {0} cannot be used: {1}")]
    Roots(PathBuf, TlsError),
    /// Two settings say the same thing.
    #[error("give either {0} or {1}, not both")]
    Both(&'static str, &'static str),
    /// The filter does not parse.
    #[error("--log `{0}` is no filter: give a level, or `level,module=level,…`")]
    Log(String),
    /// The command runtime without a command.
    #[error("--runtime command needs --command, the program that gets the manifests")]
    NoCommand,
    /// An update window that is none.
    #[error("--update-window: {0}")]
    Window(#[from] InvalidWindow),
    /// A deadline that is none.
    #[error("{0}: {1}, nor `never`")]
    Deadline(&'static str, String),
    /// A token file without a token.
    #[error("{0} holds no token")]
    EmptyToken(PathBuf),
    /// What the first start needs is missing.
    #[error(
        "this device is not enrolled yet: {0} is needed. `longshore tokens create` prints the whole command"
    )]
    Missing(&'static str),
}
