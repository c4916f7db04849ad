//! The operator's command line.
//!
//! ```text
//! arguments ──► Cli ──► Settings (flags, environment, files) ──► Api (HTTP) ──► Output (table, JSON, YAML)
//!                └────► a fleet repo's working tree ──► objects ──► Output          init, render, diff
//! ```
//!
//! - **stdout is data, stderr is talk.** Only [`output`] writes to either.
//! - **Exit codes are typed** ([`Exit`]) and part of the interface; `longshore --help` lists them.
//! - **An error ends with what to do next** ([`Error`]).
//! - **Secrets redact by type**, and a token only travels to the server that it belongs to ([`settings`]).

#![warn(missing_docs)]

mod api;
mod arguments;
mod commands;
mod confirm;
mod duration;
mod error;
pub mod output;
pub mod settings;
mod terminal;
mod text;
mod worktree;

use clap::CommandFactory;

pub use arguments::{Cli, Command, Globals};
pub use error::{Error, Exit};

use commands::Context;

/// Does what the arguments say.
///
/// # Errors
/// Where it cannot be done; the error knows its exit code and what to do next.
pub async fn run(cli: Cli) -> Result<Exit, Error> {
    let context = Context::new(cli.globals, jiff::Timestamp::now());
    match cli.command {
        Command::Init(arguments) => commands::init::run(&context, &arguments),
        Command::Fleets(command) => commands::fleets::run(&context, command).await,
        Command::Tokens(command) => commands::tokens::run(&context, command).await,
        Command::Devices(command) => commands::devices::run(&context, command).await,
        Command::Logs(arguments) => commands::logs::run(&context, &arguments).await,
        Command::Revisions(arguments) => commands::revisions::run(&context, &arguments).await,
        Command::Status => commands::status::run(&context).await,
        Command::Tenants(command) => commands::tenants::run(&context, command).await,
        Command::Render(arguments) => commands::render::run(&context, &arguments).await,
        Command::Diff(arguments) => commands::diff::run(&context, &arguments).await,
        Command::Preview(arguments) => commands::preview::run(&context, &arguments).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "longshore", &mut script);
            output::write(&String::from_utf8_lossy(&script))
        }
    }
}
