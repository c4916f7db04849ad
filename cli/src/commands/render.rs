//! `longshore render`: what a working tree gives a device.

use clap::Args;
use longshore_protocol::{DeviceName, Object};
use serde_json::{Value, json};

use super::Context;
use crate::{
    Error, Exit,
    output::{Format, json, say, write, yaml},
    worktree::{self, Source},
};

/// Print the manifests that a working tree gives a device.
#[derive(Args, Debug)]
#[command(after_help = "\
stdout is YAML of several documents; with `-o json`, one Kubernetes List.

Examples:
  longshore render example-0001
  longshore render store-0001 --repo ~/fleets/shops | less
  longshore render store-0001 --show-secrets | kubectl apply --dry-run=client -f -")]
pub struct Render {
    /// The device: the name of its folder under `devices/`
    device: DeviceName,
    #[command(flatten)]
    source: Source,
    /// Print the values of Secrets as they are
    #[arg(long)]
    show_secrets: bool,
}

pub(crate) async fn run(context: &Context, arguments: &Render) -> Result<Exit, Error> {
    let objects = worktree::render(&arguments.source, &arguments.device).await?;
    let value = |object: &Object| {
        if arguments.show_secrets {
            object.value()
        } else {
            object.redacted()
        }
    };
    let values: Vec<Value> = objects.iter().map(value).collect();
    if values.is_empty() {
        say("the overlay renders nothing");
    }
    let text = match context.output.format() {
        Format::Json => json(&json!({"apiVersion": "v1", "kind": "List", "items": values}))?,
        Format::Table | Format::Yaml => {
            let documents: Vec<_> = values.iter().map(yaml).collect::<Result<_, _>>()?;
            documents.join("---\n")
        }
    };
    write(&text)
}
