//! `longshore devices`: who is in the fleet, and who may be.

use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;
use longshore_protocol::{
    DeviceName,
    api::{Device, DeviceState, List},
    message::Phase,
};

use super::{Context, fleet, fleets::conditions};
use crate::{
    Error, Exit,
    api::Api,
    confirm::confirm,
    output::{Table, pairs, say},
    text::{age, or_dash, printable, short},
};

/// Look after devices.
#[derive(Debug, Subcommand)]
pub enum Devices {
    /// List the devices of the fleet
    #[command(after_help = "\
Examples:
  longshore devices list --state pending
  longshore devices list -o json | jq -r '.items[] | select(.connected | not) | .name'")]
    List {
        /// Only those that stand there in their life
        #[arg(long, value_enum)]
        state: Option<State>,
    },
    /// Show one device: identity, desired and observed state, conditions
    Show {
        /// The device
        name: DeviceName,
    },
    /// Let devices in: merges their enrollment branches
    #[command(after_help = "\
Compare the key's digest that `longshore devices show NAME` prints with the one on the
device's own console: it is what an approval vouches for.")]
    Approve {
        /// The devices
        #[arg(required = true, value_name = "NAME")]
        names: Vec<DeviceName>,
    },
    /// Refuse devices that ask to enroll
    Reject {
        /// The devices
        #[arg(required = true, value_name = "NAME")]
        names: Vec<DeviceName>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Cut devices off for good: their certificates and tokens stop working at once
    Decommission {
        /// The devices
        #[arg(required = true, value_name = "NAME")]
        names: Vec<DeviceName>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Where a device stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Waits for approval
    Pending,
    /// Approved
    Active,
    /// Refused
    Rejected,
    /// Cut off
    Decommissioned,
}

impl From<DeviceState> for State {
    fn from(state: DeviceState) -> Self {
        match state {
            DeviceState::Pending => Self::Pending,
            DeviceState::Active => Self::Active,
            DeviceState::Rejected => Self::Rejected,
            DeviceState::Decommissioned => Self::Decommissioned,
        }
    }
}

fn word(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Pending => "pending",
        DeviceState::Active => "active",
        DeviceState::Rejected => "rejected",
        DeviceState::Decommissioned => "decommissioned",
    }
}

pub(crate) async fn run(context: &Context, command: Devices) -> Result<Exit, Error> {
    let api = context.api()?;
    match command {
        Devices::List { state } => {
            let mut devices = api.devices(&fleet(&api).await?).await?;
            devices
                .items
                .retain(|device| state.is_none_or(|state| state == device.state.into()));
            context
                .output
                .show(&devices, |devices| table(&devices.items, context.now))
        }
        Devices::Show { name } => {
            let device = api.device(&fleet(&api).await?, &name).await?;
            context
                .output
                .show(&device, |device| detail(device, context.now))
        }
        Devices::Approve { names } => decide(context, &api, &names, "approve").await,
        Devices::Reject { names, yes } => {
            let question = format!("Reject {}?", listed(&names));
            if !confirm(&question, yes)? {
                return Ok(Exit::Negative);
            }
            decide(context, &api, &names, "reject").await
        }
        Devices::Decommission { names, yes } => {
            let question = format!(
                "Decommission {}? A device that is cut off must enroll anew.",
                listed(&names)
            );
            if !confirm(&question, yes)? {
                return Ok(Exit::Negative);
            }
            decide(context, &api, &names, "decommission").await
        }
    }
}

/// Names for a question: all of a few, the count of many.
fn listed(names: &[DeviceName]) -> String {
    match names {
        [one] => format!("the device `{one}`"),
        few if few.len() <= 5 => {
            let names: Vec<_> = few.iter().map(|name| format!("`{name}`")).collect();
            format!("the devices {}", names.join(", "))
        }
        many => format!("{} devices", many.len()),
    }
}

/// One device after the other; the first refusal ends it, and says how far it went.
async fn decide(
    context: &Context,
    api: &Api,
    names: &[DeviceName],
    verb: &str,
) -> Result<Exit, Error> {
    let fleet = fleet(api).await?;
    let mut decided = List { items: Vec::new() };
    for name in names {
        match api.decide(&fleet, name, verb).await {
            Ok(device) => decided.items.push(device),
            Err(error) => {
                for device in &decided.items {
                    say(&format!("{} is {}", device.name, word(device.state)));
                }
                return Err(error.hint(format!(
                    "`{name}` and the devices after it are as they were"
                )));
            }
        }
    }
    context
        .output
        .show(&decided, |devices| table(&devices.items, context.now))
}

fn table(devices: &[Device], now: Timestamp) -> String {
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "CONNECTED",
        "SYNC",
        "GENERATION",
        "REVISION",
        "LAST SEEN",
        "AGE",
    ]);
    for device in devices {
        table.row([
            device.name.to_string(),
            word(device.state).to_owned(),
            if device.connected { "yes" } else { "no" }.to_owned(),
            sync(device).to_owned(),
            generation(device),
            or_dash(
                device
                    .desired
                    .as_ref()
                    .map(|desired| short(&desired.revision)),
            ),
            or_dash(device.last_seen.map(|at| age(now, at))),
            age(now, device.created_at),
        ]);
    }
    table.render()
}

/// How the observed state stands to the desired one.
fn sync(device: &Device) -> &'static str {
    match (&device.desired, &device.observed) {
        (None, _) => "-",
        (Some(_), None) => "Waiting",
        (Some(desired), Some(observed)) if observed.generation < desired.generation => "Behind",
        (Some(_), Some(observed)) => phase(observed.phase),
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Applying => "Applying",
        Phase::Applied => "Applied",
        Phase::Failed => "Failed",
    }
}

/// `observed/desired`.
fn generation(device: &Device) -> String {
    let Some(desired) = &device.desired else {
        return "-".to_owned();
    };
    let observed = or_dash(
        device
            .observed
            .as_ref()
            .map(|observed| observed.generation.to_string()),
    );
    format!("{observed}/{}", desired.generation)
}

fn detail(device: &Device, now: Timestamp) -> String {
    let desired = device.desired.as_ref().map(|desired| {
        format!(
            "generation {}, {} objects, {} of {}, {} ago",
            desired.generation,
            desired.objects,
            desired.digest.short(),
            short(&desired.revision),
            age(now, desired.since)
        )
    });
    let observed = device.observed.as_ref().map(|observed| {
        format!(
            "generation {}, {}, {}, {} ago",
            observed.generation,
            phase(observed.phase),
            observed.digest.short(),
            age(now, observed.reported_at)
        )
    });
    let joined = |pairs: &mut dyn Iterator<Item = (&String, &String)>| {
        pairs
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut blocks = vec![pairs([
        ("Name", Some(device.name.to_string())),
        ("Id", Some(device.id.to_string())),
        ("Fleet", Some(device.fleet.to_string())),
        ("State", Some(word(device.state).to_owned())),
        ("Public key", Some(device.public_key.to_string())),
        ("Enrollment branch", device.enrollment_branch.clone()),
        ("Labels", Some(joined(&mut device.labels.iter()))),
        ("Token", Some(device.token_label.clone())),
        ("Enrolled from", Some(device.source_address.clone())),
        (
            "Connected",
            Some(if device.connected { "yes" } else { "no" }.to_owned()),
        ),
        (
            "Last seen",
            device.last_seen.map(|at| format!("{} ago", age(now, at))),
        ),
        ("Desired", desired),
        ("Observed", observed),
        ("Age", Some(age(now, device.created_at))),
    ])];
    if !device.facts.is_empty() {
        let facts = device.facts.iter();
        let lines = facts.map(|(name, fact)| format!("  {}: {}", printable(name), printable(fact)));
        blocks.push(format!(
            "Facts (as the device claims):\n{}",
            lines.collect::<Vec<_>>().join("\n")
        ));
    }
    if !device.conditions.is_empty() {
        blocks.push(conditions(&device.conditions, now));
    }
    blocks.join("\n\n")
}
