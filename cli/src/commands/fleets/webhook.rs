//! A fleet's webhook: where it is, and how its secret is replaced.

use std::time::Duration;

use clap::Args;
use longshore_protocol::{
    FleetName,
    api::{RotateWebhookSecret, RotatedWebhookSecret},
};

use super::Context;
use crate::{
    Error, Exit,
    api::Api,
    duration::duration,
    output::{pairs, say},
    text::until,
};

/// Make a new secret for the webhook.
#[derive(Args, Debug)]
pub struct Rotate {
    /// The fleet
    fleet: FleetName,
    /// For how long the old secret holds too, at most 30 days
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    overlap: Duration,
}

pub(super) async fn rotate(
    context: &Context,
    api: &Api,
    Rotate { fleet, overlap }: Rotate,
) -> Result<Exit, Error> {
    let body = RotateWebhookSecret {
        overlap_seconds: Some(overlap.as_secs()),
    };
    let rotated = api.rotate_webhook_secret(&fleet, &body).await?;
    context.output.show(
        &rotated,
        |RotatedWebhookSecret {
             webhook_path,
             webhook_secret,
             webhook_secret_before_until,
         }| {
            pairs([
                ("Webhook URL", Some(url(api, webhook_path))),
                ("Webhook secret", Some(webhook_secret.clone())),
                (
                    "Old secret ends",
                    Some(until(context.now, *webhook_secret_before_until)),
                ),
            ])
        },
    )?;
    say("the secret is shown this once; give it to the Git host before the old one ends");
    Ok(Exit::Success)
}

/// The whole URL of a webhook.
pub(super) fn url(api: &Api, path: &str) -> String {
    format!("{}{path}", api.server().as_str().trim_end_matches('/'))
}
