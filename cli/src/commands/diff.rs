//! `longshore diff`: what a commit of the working tree would change on a device.

use clap::Args;
use longshore_fleet::difference::{Side, between};
use longshore_protocol::{DeviceName, Digest, Generation, api::preview::Change};
use serde::Serialize;

use super::{Context, fleet};
use crate::{
    Error, Exit,
    output::say,
    text,
    worktree::{self, Source},
};

/// Compare what a working tree gives a device with what it should run now.
#[derive(Args, Debug)]
#[command(after_help = "\
Lines with `-` are what the device should run now, as the controller has it; lines with `+`
are what the working tree gives it. The values of Secrets are never shown, only that they differ.

Exits with 0 where nothing differs and with 1 where something does, like diff(1).

Examples:
  longshore diff store-0001
  longshore diff store-0001 --repo ~/fleets/shops -o json | jq -r '.changes[].object.name'")]
pub struct Diff {
    /// The device
    device: DeviceName,
    #[command(flatten)]
    source: Source,
}

#[derive(Serialize)]
struct Answer<'a> {
    device: &'a DeviceName,
    generation: Generation,
    digest: Digest,
    revision: &'a str,
    changes: Vec<Change>,
}

pub(crate) async fn run(context: &Context, arguments: &Diff) -> Result<Exit, Error> {
    let Diff { device, source } = arguments;
    let api = context.api()?;
    let running = api.manifests(&fleet(&api).await?, device).await?;
    let ours = worktree::render(source, device).await?;
    let answer = Answer {
        device,
        generation: running.generation,
        digest: running.digest,
        revision: &running.revision,
        changes: between(
            &Side::redacted("running", &running.objects),
            &Side::of("working-tree", &ours),
        ),
    };
    let differs = !answer.changes.is_empty();
    context.output.show(&answer, |answer| {
        let diffs = answer
            .changes
            .iter()
            .map(|change| text::printable_lines(&change.diff));
        diffs.collect::<Vec<_>>().concat()
    })?;
    let now = format!(
        "generation {} of {device}, {}",
        running.generation,
        text::short(&running.revision)
    );
    if differs {
        say(&format!(
            "{} objects differ from {now}",
            answer.changes.len()
        ));
        Ok(Exit::Negative)
    } else {
        say(&format!("nothing differs from {now}"));
        Ok(Exit::Success)
    }
}
