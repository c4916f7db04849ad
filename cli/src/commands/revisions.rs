//! `longshore revisions`: what the controller saw in the fleet's repo.

use clap::Args;
use longshore_protocol::api::Revision;

use super::{Context, fleet};
use crate::{
    Error, Exit,
    output::Table,
    text::{age, short},
};

/// List the commits of a fleet.
#[derive(Args, Debug)]
pub struct Revisions {
    /// How many at most
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
}

pub(crate) async fn run(context: &Context, arguments: &Revisions) -> Result<Exit, Error> {
    let api = context.api()?;
    let mut revisions = api.revisions(&fleet(&api).await?).await?;
    revisions.items.truncate(arguments.limit);
    context.output.show(&revisions, |revisions| {
        let mut table = Table::new(&[
            "COMMIT",
            "AGE",
            "DEVICES CHANGED",
            "PROBLEMS",
            "AUTHOR",
            "SUMMARY",
        ]);
        for Revision {
            commit,
            summary,
            author,
            observed_at,
            devices_changed,
            problems,
        } in &revisions.items
        {
            table.row([
                short(commit),
                age(context.now, *observed_at),
                devices_changed.to_string(),
                problems.to_string(),
                author.clone(),
                summary.clone(),
            ]);
        }
        table.render()
    })
}
