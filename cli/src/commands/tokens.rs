//! `longshore tokens`: the secrets that let new devices ask to enroll.

mod join;

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use longshore_protocol::{
    DeviceName, TokenId,
    api::{Approval, CreateToken, CreatedToken, Token},
};
use serde::Serialize;

use self::join::Platform;
use super::{Context, fleet};
use crate::{
    Error, Exit,
    api::Api,
    duration::duration,
    output::{Format, Table, say, write},
    text,
};

/// Look after provisioning tokens.
#[derive(Debug, Subcommand)]
pub enum Tokens {
    /// Make a token, and print the command that installs the agent on a device; the secret is shown once
    #[command(after_help = "\
Examples:
  longshore tokens create --label 'store rollout' --max-uses 50 --expires 7d
  longshore tokens create --auto --max-uses 1 --expires 1h --device store-0001
  longshore tokens create --overlay groups/kiosk --set-label site=madrid --platform podman

stdout is the command alone; with `-o json`, the token, its secret, the command, and the one for joining by hand.")]
    Create(Create),
    /// List the tokens of the fleet, without their secrets
    List,
    /// Let a token enroll no more devices; those that enrolled with it stay
    Revoke {
        /// The token's id, `tok_…`
        id: TokenId,
    },
}

/// Make a token.
#[derive(Args, Debug)]
pub struct Create {
    /// What the token is for; stands in the enrollment pull requests
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,
    /// The controller approves the devices itself
    #[arg(long, conflicts_with = "manual")]
    auto: bool,
    /// A person approves each device, by merging its branch [default]
    #[arg(long)]
    manual: bool,
    /// How many devices may enroll with it [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_uses: Option<u32>,
    /// For how long it works, such as `24h` or `7d` [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires: Option<Duration>,
    /// The shared overlay of its devices, relative to the fleet's root, such as `groups/kiosk`
    #[arg(long, value_name = "FOLDER")]
    overlay: Option<String>,
    /// A label of its devices; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    set_label: Vec<(String, String)>,
    /// The name of the device, to stand in the printed command
    #[arg(long, value_name = "NAME")]
    device: Option<DeviceName>,
    /// What the device runs its workloads with, to stand in the printed command
    #[arg(long, value_enum, default_value_t)]
    platform: Platform,
}

/// What `tokens create` answers to programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    #[serde(flatten)]
    created: &'a CreatedToken,
    command: String,
    by_hand: String,
}

pub(crate) async fn run(context: &Context, command: Tokens) -> Result<Exit, Error> {
    let api = context.api()?;
    match command {
        Tokens::Create(arguments) => create(context, &api, arguments).await,
        Tokens::List => {
            let tokens = api.tokens(&fleet(&api).await?).await?;
            context
                .output
                .show(&tokens, |tokens| table(&tokens.items, context.now))
        }
        Tokens::Revoke { id } => {
            api.revoke_token(&fleet(&api).await?, &id).await?;
            say(&format!("revoked {id}; it enrolls no more devices"));
            Ok(Exit::Success)
        }
    }
}

async fn create(context: &Context, api: &Api, arguments: Create) -> Result<Exit, Error> {
    let Create {
        label,
        auto,
        manual: _,
        max_uses,
        expires,
        overlay,
        set_label,
        device,
        platform,
    } = arguments;
    let approval = if auto {
        Approval::Automatic
    } else {
        Approval::Manual
    };
    let body = CreateToken {
        label,
        approval,
        max_uses,
        expires_in: expires.map(|expires| expires.as_secs()),
        overlay,
        labels: set_label.into_iter().collect(),
    };
    let created = api.create_token(&fleet(api).await?, &body).await?;
    let command = join::install(&created, device.as_ref(), platform);
    let by_hand = join::by_hand(&created, device.as_ref(), platform);
    if context.output.format() == Format::Table {
        write(&command)?;
        say(&describe(&created.token, context.now));
        say(
            "the secret is shown this once; run the command on the device, beside install.sh and the package",
        );
        say(&format!(
            "where there is only the program, let this read the secret instead: {by_hand}"
        ));
        return Ok(Exit::Success);
    }
    context.output.show(
        &Answer {
            created: &created,
            command,
            by_hand,
        },
        |_answer| String::new(),
    )
}

fn describe(token: &Token, now: Timestamp) -> String {
    let uses = token
        .max_uses
        .map_or_else(|| "any number of".to_owned(), |uses| uses.to_string());
    let expires = token.expires_at.map_or_else(
        || "does not expire".to_owned(),
        |at| format!("expires {}", text::until(now, at)),
    );
    format!(
        "made {} for the fleet `{}`: {} approval, {uses} devices, {expires}",
        token.id,
        token.fleet,
        text::approval(token.approval),
    )
}

fn table(tokens: &[Token], now: Timestamp) -> String {
    let mut table = Table::new(&["ID", "LABEL", "APPROVAL", "USES", "EXPIRES", "STATE", "AGE"]);
    for token in tokens {
        let limit = token
            .max_uses
            .map_or_else(|| "any".to_owned(), |uses| uses.to_string());
        table.row([
            token.id.to_string(),
            text::or_dash(Some(token.label.clone())),
            text::approval(token.approval).to_owned(),
            format!("{}/{limit}", token.uses),
            token
                .expires_at
                .map_or_else(|| "never".to_owned(), |at| text::until(now, at)),
            state(token, now).to_owned(),
            text::age(now, token.created_at),
        ]);
    }
    table.render()
}

fn state(token: &Token, now: Timestamp) -> &'static str {
    let now = u64::try_from(now.as_millisecond()).unwrap_or_default();
    if token.revoked {
        "revoked"
    } else if token.expires_at.is_some_and(|at| at <= now) {
        "expired"
    } else if token.max_uses.is_some_and(|limit| token.uses >= limit) {
        "used up"
    } else {
        "valid"
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("give it as KEY=VALUE".to_owned()),
    }
}
