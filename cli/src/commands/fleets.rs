//! `longshore fleets`: the Git repos that the controller follows.

mod connect;
mod webhook;

use std::path::{Path, absolute};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use longshore_protocol::{
    Condition, ConditionStatus, FleetName,
    api::{ConfirmRemovals, CreateFleet, CreatedFleet, Fleet},
};

use super::Context;
use crate::{
    Error, Exit,
    api::Api,
    confirm::confirm,
    output::{Table, pairs, say},
    settings::is_loopback,
    text::{age, or_dash, short},
};

/// Look after fleets.
#[derive(Debug, Subcommand)]
pub enum Fleets {
    /// List the fleets of the tenant
    List,
    /// Let the controller follow a Git repo; prints the webhook's secret once
    #[command(after_help = "\
Examples:
  longshore fleets add shops --repo https://git.example/acme/shops.git
  longshore fleets add shops --repo ./shops.git            # on the controller's own machine
  longshore fleets add shops --hosted                      # on the controller itself
  longshore fleets add shops --repo ssh://git@git.example/acme/infra.git --branch live --path edge")]
    Add(Add),
    /// Show one fleet: its revision, devices, conditions, problems and held removals
    Show {
        /// The fleet
        fleet: FleetName,
    },
    /// Stop following a repo and forget its devices; they are cut off at once
    Remove {
        /// The fleet
        fleet: FleetName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Give the controller what it needs at the fleet's Git host: credentials, pull requests
    Connect {
        /// The fleet
        fleet: FleetName,
        /// How
        #[command(subcommand)]
        host: connect::Host,
    },
    /// Show how the controller reaches the fleet's Git host, without secrets
    Connection {
        /// The fleet
        fleet: FleetName,
    },
    /// Take away what `connect` gave
    Disconnect {
        /// The fleet
        fleet: FleetName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Look at the repo now instead of waiting for a webhook or the next poll
    Sync {
        /// The fleet
        fleet: FleetName,
    },
    /// Make a new secret for the webhook; the one in force until now holds for a while too
    #[command(after_help = "\
Give the new secret to the Git host before the old one ends. Rotating again ends the old one
at once, and what was new holds for the overlap.

Examples:
  longshore fleets rotate-webhook-secret shops
  longshore fleets rotate-webhook-secret shops --overlap 1s   # the old one is known to others")]
    RotateWebhookSecret(webhook::Rotate),
    /// Let the removals happen that the mass-removal guard holds
    #[command(after_help = "\
A commit that would decommission or empty many devices at once is held until somebody
looked at it. `longshore fleets show FLEET` lists what is held, and the revision to confirm.")]
    ConfirmRemovals {
        /// The fleet
        fleet: FleetName,
        /// The commit that you looked at; refused when it is no longer the one in force
        #[arg(long, value_name = "COMMIT")]
        revision: String,
    },
}

/// Let the controller follow a Git repo.
#[derive(Args, Debug)]
pub struct Add {
    /// The fleet's name: lower-case letters, digits and `-`
    name: FleetName,
    /// The Git repo: an https, ssh or file URL, or a path on the controller's machine
    #[arg(long, value_name = "REPO", required_unless_present = "hosted")]
    repo: Option<String>,
    /// Let the controller host the repo itself, over HTTPS
    #[arg(long, conflicts_with = "repo")]
    hosted: bool,
    /// The branch to follow
    #[arg(long, default_value = "main")]
    branch: String,
    /// The fleet's folder in the repo [default: the repo's root]
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "FOLDER"
    )]
    path: String,
}

pub(crate) async fn run(context: &Context, command: Fleets) -> Result<Exit, Error> {
    let api = context.api()?;
    match command {
        Fleets::List => {
            let fleets = api.fleets().await?;
            context
                .output
                .show(&fleets, |fleets| table(&fleets.items, context.now))
        }
        Fleets::Add(arguments) => add(context, &api, arguments).await,
        Fleets::Show { fleet } => {
            let fleet = api.fleet(&fleet).await?;
            context
                .output
                .show(&fleet, |fleet| detail(fleet, context.now))
        }
        Fleets::Remove { fleet, yes } => {
            let removed = api.fleet(&fleet).await?;
            let devices = removed.devices.total;
            let repo = if removed.hosted {
                " Its repo, which the controller hosts, is deleted with all its history."
            } else {
                ""
            };
            let question = format!(
                "Remove the fleet `{fleet}`? Its {devices} devices are cut off at once.{repo}"
            );
            if !confirm(&question, yes)? {
                return Ok(Exit::Negative);
            }
            api.remove_fleet(&fleet).await?;
            say(&format!("removed the fleet `{fleet}`"));
            Ok(Exit::Success)
        }
        Fleets::Connect { fleet, host } => connect::run(context, &api, &fleet, host).await,
        Fleets::Connection { fleet } => {
            let connection = api.connection(&fleet).await?;
            context.output.show(&connection, connect::show)
        }
        Fleets::Disconnect { fleet, yes } => {
            let question = format!(
                "Disconnect the fleet `{fleet}` from its Git host? Its pull requests are no longer followed."
            );
            if !confirm(&question, yes)? {
                return Ok(Exit::Negative);
            }
            api.disconnect(&fleet).await?;
            say(&format!("disconnected the fleet `{fleet}`"));
            Ok(Exit::Success)
        }
        Fleets::Sync { fleet } => {
            api.sync(&fleet).await?;
            say(&format!(
                "the controller looks at the repo of `{fleet}` now"
            ));
            Ok(Exit::Success)
        }
        Fleets::RotateWebhookSecret(arguments) => webhook::rotate(context, &api, arguments).await,
        Fleets::ConfirmRemovals { fleet, revision } => {
            let body = ConfirmRemovals {
                revision: revision.clone(),
            };
            api.confirm_removals(&fleet, &body).await?;
            say(&format!("the removals of {revision} go on"));
            Ok(Exit::Success)
        }
    }
}

async fn add(context: &Context, api: &Api, arguments: Add) -> Result<Exit, Error> {
    let Add {
        name,
        repo,
        hosted,
        branch,
        path,
    } = arguments;
    let repo = match repo {
        Some(repo) => repo_of(&repo, is_loopback(api.server()))?,
        None => String::new(),
    };
    let created = api
        .create_fleet(&CreateFleet {
            name,
            repo,
            hosted,
            branch,
            path,
        })
        .await?;
    context.output.show(
        &created,
        |CreatedFleet {
             fleet,
             webhook_path,
             webhook_secret,
         }| {
            pairs([
                ("Fleet", Some(fleet.name.to_string())),
                ("Repo", Some(fleet.repo.clone())),
                ("Branch", Some(fleet.branch.clone())),
                ("Path", Some(fleet.path.clone())),
                (
                    "Webhook URL",
                    (!hosted).then(|| webhook::url(api, webhook_path)),
                ),
                ("Webhook secret", (!hosted).then(|| webhook_secret.clone())),
            ])
        },
    )?;
    if hosted {
        say(&next_steps(&created.fleet));
    } else {
        say("the webhook's secret is shown this once; without a webhook, the controller polls");
    }
    Ok(Exit::Success)
}

/// How the first commit gets into a hosted repo.
fn next_steps(fleet: &Fleet) -> String {
    let Fleet {
        name, repo, branch, ..
    } = fleet;
    format!(
        "the controller hosts the repo; its first commit makes it a fleet:\n\n  \
         longshore init {name}\n  \
         cd {name}\n  \
         git remote add origin {repo}\n  \
         git push -u origin HEAD:{branch}\n\n\
         git asks for a password: the API token, with any user name. Where the controller has a certificate\n\
         of its own authority, let git trust it first, for this server alone:\n\n  \
         git config --global http.{server}.sslCAInfo FILE   # ca.pem of the controller's data directory",
        server = repo.split("/git/").next().unwrap_or_default()
    )
}

/// The repo as the controller takes it: a URL, or an absolute path.
fn repo_of(repo: &str, same_machine: bool) -> Result<String, Error> {
    if repo.contains("://") || Path::new(repo).is_absolute() {
        return Ok(repo.to_owned());
    }
    if let Some((host, path)) = repo.split_once(':').filter(|(host, _)| !host.contains('/')) {
        return Err(Error::usage(format!("`{repo}` is not a URL"))
            .hint(format!("write it as `ssh://{host}/{path}`")));
    }
    if !same_machine {
        return Err(Error::usage(format!("`{repo}` is a relative path"))
            .hint("give a URL, or an absolute path on the controller's machine"));
    }
    let path = absolute(repo)
        .map_err(|error| Error::usage(format!("`{repo}` is not a path")).because(error))?;
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::usage(format!("the path {} is not UTF-8", path.display())))
}

/// Fleets as a table; `status` shows the same.
pub(crate) fn table(fleets: &[Fleet], now: Timestamp) -> String {
    let mut table = Table::new(&[
        "NAME",
        "REVISION",
        "DEVICES",
        "PENDING",
        "CONNECTED",
        "IN-SYNC",
        "FAILING",
        "READY",
        "AGE",
    ]);
    for fleet in fleets {
        let devices = &fleet.devices;
        table.row([
            fleet.name.to_string(),
            or_dash(fleet.revision.as_deref().map(short)),
            devices.total.to_string(),
            devices.pending.to_string(),
            devices.connected.to_string(),
            devices.in_sync.to_string(),
            devices.failing.to_string(),
            readiness(fleet),
            age(now, fleet.created_at),
        ]);
    }
    table.render()
}

/// `yes`, or the reason of the first condition that does not hold.
///
/// `RemovalsHeld` is the one condition that is bad news when it holds.
fn readiness(fleet: &Fleet) -> String {
    let bad = |condition: &&Condition| match condition.kind.as_str() {
        "RemovalsHeld" => condition.status == ConditionStatus::True,
        _ => condition.status != ConditionStatus::True,
    };
    fleet.conditions.iter().find(bad).map_or_else(
        || "yes".to_owned(),
        |condition| {
            if condition.reason.is_empty() {
                condition.kind.clone()
            } else {
                condition.reason.clone()
            }
        },
    )
}

fn detail(fleet: &Fleet, now: Timestamp) -> String {
    let devices = &fleet.devices;
    let mut blocks = vec![pairs([
        ("Name", Some(fleet.name.to_string())),
        ("Repo", Some(fleet.repo.clone())),
        ("Branch", Some(fleet.branch.clone())),
        ("Path", Some(fleet.path.clone())),
        ("Revision", fleet.revision.clone()),
        (
            "Devices",
            Some(format!(
                "{} ({} pending, {} active, {} connected, {} in sync, {} failing)",
                devices.total,
                devices.pending,
                devices.active,
                devices.connected,
                devices.in_sync,
                devices.failing
            )),
        ),
        ("Age", Some(age(now, fleet.created_at))),
    ])];
    if !fleet.conditions.is_empty() {
        blocks.push(conditions(&fleet.conditions, now));
    }
    if !fleet.problems.is_empty() {
        let lines = fleet
            .problems
            .iter()
            .map(|line| format!("  {}", crate::text::printable(line)));
        blocks.push(format!(
            "Problems:\n{}",
            lines.collect::<Vec<_>>().join("\n")
        ));
    }
    if !fleet.held.is_empty() {
        let mut table = Table::new(&["HELD DEVICE", "REMOVAL"]);
        for held in &fleet.held {
            table.row([held.device.to_string(), held.removal.clone()]);
        }
        blocks.push(table.render());
        blocks.push(format!(
            "To let these removals happen: longshore fleets confirm-removals {} --revision {}",
            fleet.name,
            fleet
                .revision
                .as_deref()
                .map_or_else(|| "COMMIT".to_owned(), crate::text::printable)
        ));
    }
    blocks.join("\n\n")
}

/// Conditions as a table.
pub(crate) fn conditions(conditions: &[Condition], now: Timestamp) -> String {
    let mut table = Table::new(&["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"]);
    for Condition {
        kind,
        status,
        reason,
        message,
        since,
    } in conditions
    {
        let row = [
            kind.clone(),
            format!("{status:?}"),
            reason.clone(),
            age(now, *since),
            message.clone(),
        ];
        table.row(row);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repos_are_urls_or_absolute_paths() {
        for repo in [
            "https://git.example/a.git",
            "ssh://git@git.example/a",
            "file:///srv/a.git",
            "/srv/a.git",
        ] {
            assert_eq!(repo_of(repo, false).unwrap(), repo);
        }
        let error = repo_of("git@git.example:acme/shops.git", true)
            .unwrap_err()
            .report();
        assert!(
            error.ends_with("hint: write it as `ssh://git@git.example/acme/shops.git`"),
            "{error}"
        );
        assert!(Path::new(&repo_of("shops.git", true).unwrap()).is_absolute());
        assert!(repo_of("shops.git", false).is_err());
    }
}
