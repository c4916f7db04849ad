//! The commands, one module each: its arguments, what it does, how it shows the answer.

pub(crate) mod devices;
pub(crate) mod diff;
pub(crate) mod fleets;
pub(crate) mod init;
pub(crate) mod logs;
pub(crate) mod preview;
pub(crate) mod render;
pub(crate) mod revisions;
pub(crate) mod status;
pub(crate) mod tenants;
pub(crate) mod tokens;

use jiff::Timestamp;
use longshore_protocol::FleetName;

use crate::{
    Error, Globals,
    api::Api,
    output::Output,
    settings::{self, Settings},
};

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Context {
    globals: Globals,
    /// Where data goes.
    pub(crate) output: Output,
    /// The time that ages are counted from.
    pub(crate) now: Timestamp,
}

impl Context {
    pub(crate) fn new(globals: Globals, now: Timestamp) -> Self {
        Self {
            output: Output::new(globals.output),
            globals,
            now,
        }
    }

    /// The controller that the settings name.
    pub(crate) fn api(&self) -> Result<Api, Error> {
        let settings = Settings::resolve(&self.globals, settings::config_home().as_deref())?;
        Api::new(settings, self.globals.verbose)
    }
}

/// The fleet that the settings name, or the only one that there is.
pub(crate) async fn fleet(api: &Api) -> Result<FleetName, Error> {
    if let Some(fleet) = api.named_fleet() {
        return Ok(fleet.clone());
    }
    let fleets = api.fleets().await?.items;
    match fleets.as_slice() {
        [only] => Ok(only.name.clone()),
        [] => Err(
            Error::usage(format!("the tenant `{}` has no fleet", api.tenant()))
                .hint("add one with `longshore fleets add NAME --repo URL`"),
        ),
        several => {
            let names: Vec<_> = several.iter().map(|fleet| fleet.name.as_str()).collect();
            Err(Error::usage(format!(
                "the tenant `{}` has {} fleets",
                api.tenant(),
                names.len()
            ))
            .hint(format!("say which with `--fleet`: {}", names.join(", "))))
        }
    }
}
