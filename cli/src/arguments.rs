//! The command line, as clap reads it. Each command's own arguments stand beside the command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use longshore_protocol::{FleetName, TenantName};
use secrecy::SecretString;
use url::Url;

use crate::{commands, output::Format};

const AFTER_HELP: &str = "\
Connection:
  The first of these that names a server wins:
    1. --server, LONGSHORE_SERVER
    2. the data directory, where --data-dir or LONGSHORE_DATA_DIR names one
    3. the config file: $XDG_CONFIG_HOME/longshore/config.toml with server, token, ca, tenant, fleet
    4. the data directory ./longshore-data, as a controller started beside it writes it
  A token or CA from a file is only used with the server that the same file names.

Exit codes:
  0  done; no differences
  1  differences; a question was answered with no
  2  the command, the settings or the fleet repo is wrong
  3  the controller refused
  4  the controller cannot be reached or trusted; a device's log broke off
  5  the controller or this program failed

Examples:
  longshore init my-fleet                    start a fleet repo
  longshore render example-0001              what this working tree gives a device
  longshore tokens create --label rollout    get the command that joins a device
  longshore devices list --state pending     who waits for approval
  longshore devices approve store-0001       let a device in
  longshore logs store-0001 till -f          follow what a workload says
  longshore diff store-0001                  what a commit would change on it
  longshore preview new-page                 what merging a branch would change on every device";

/// The operator's command line for Longshore, the GitOps control plane for fleets of edge devices.
///
/// `init` and `render` work on a fleet repo alone; everything else asks a controller.
#[derive(Debug, Parser)]
#[command(
    name = "longshore",
    version,
    after_help = AFTER_HELP,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// The controller's base URL, such as `https://longshore.example:8443`
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_SERVER",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub server: Option<Url>,

    /// The API token; `--token-file` keeps it out of the process list
    #[arg(long, global = true, env = "LONGSHORE_TOKEN", hide_env_values = true, value_name = "TOKEN", value_parser = secret)]
    pub token: Option<SecretString>,

    /// A file that holds the API token; comes before `--token`
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// A PEM file with the only certificates to trust [default: the system's]
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_CA",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub ca: Option<PathBuf>,

    /// The tenant [default: `default`]
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_TENANT",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub tenant: Option<TenantName>,

    /// The fleet [default: the tenant's only one]
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_FLEET",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub fleet: Option<FleetName>,

    /// A local controller's data directory [default: ./longshore-data]
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub data_dir: Option<PathBuf>,

    /// The config file [default: `$XDG_CONFIG_HOME/longshore/config.toml`]
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: Option<PathBuf>,

    /// How to write the answer
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true,
        help = "How to write the answer: table, json or yaml"
    )]
    pub output: Format,

    /// Say on stderr where the settings come from and what is asked
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a fleet repo from the template
    Init(commands::init::Init),
    /// Look after fleets: the Git repos that the controller follows
    #[command(subcommand)]
    Fleets(commands::fleets::Fleets),
    /// Look after provisioning tokens: the secrets that let new devices ask to enroll
    #[command(subcommand)]
    Tokens(commands::tokens::Tokens),
    /// Look after devices: list, approve, reject, decommission
    #[command(subcommand)]
    Devices(commands::devices::Devices),
    /// Read what a workload on a device says, or the device's agent
    Logs(commands::logs::Logs),
    /// List the commits of a fleet that the controller observed, newest first
    Revisions(commands::revisions::Revisions),
    /// Show how the controller and all fleets of the tenant do
    Status,
    /// Look after tenants
    #[command(subcommand)]
    Tenants(commands::tenants::Tenants),
    /// Print the manifests that a working tree gives a device; asks no controller
    Render(commands::render::Render),
    /// Compare what a working tree gives a device with what it should run now
    Diff(commands::diff::Diff),
    /// Tell what merging a branch would do to each device of the fleet
    Preview(commands::preview::Preview),
    /// Print a shell's completion script
    #[command(
        after_help = "Examples:\n  longshore completions bash > /etc/bash_completion.d/longshore\n  source <(longshore completions zsh)"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the shape of clap's value parsers"
)]
fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn debug_shows_no_token() {
        let cli = Cli::parse_from(["longshore", "status", "--token", "hunter2"]);
        assert!(!format!("{cli:?}").contains("hunter2"));
    }
}
