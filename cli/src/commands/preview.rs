//! `longshore preview`: what merging a branch would do to the fleet's devices.

use clap::Args;
use longshore_protocol::api::preview::CreatePreview;

use super::{Context, fleet};
use crate::{Error, Exit, output::say, text};

/// Tell what merging a branch would do to each device of the fleet.
#[derive(Args, Debug)]
#[command(after_help = "\
The controller fetches the branch, merges it into the tracked one without keeping the merge, and
renders what differs. Lines with `-` are what devices run before, lines with `+` what they would
run. The values of Secrets are never shown, only that they differ.

Exits with 0 where the change works and with 1 where it brings a problem that was not there before.

Examples:
  longshore preview new-page
  longshore preview new-page --fleet shops -o json | jq -r '.groups[].devices[]'")]
pub struct Preview {
    /// The branch, as the fleet's repo has it
    branch: String,
}

pub(crate) async fn run(context: &Context, arguments: &Preview) -> Result<Exit, Error> {
    let branch = &arguments.branch;
    let api = context.api()?;
    let fleet = fleet(&api).await?;
    say(&format!("previewing `{branch}` of the fleet `{fleet}`"));
    let request = CreatePreview {
        branch: branch.clone(),
    };
    let preview = api.preview(&fleet, &request).await?;
    context
        .output
        .show(&preview, longshore_protocol::api::preview::Preview::report)?;
    let commit = preview.head.as_deref().map(text::short).unwrap_or_default();
    if preview.problems.count > 0 {
        say(&format!(
            "{commit} brings problems that were not there before: {}",
            preview.problems.count
        ));
        Ok(Exit::Negative)
    } else {
        say(&format!("{commit}: {}", preview.headline()));
        Ok(Exit::Success)
    }
}
