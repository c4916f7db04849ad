//! `longshore-agent doctor`: what keeps this device from doing its work, and what to do about it.
//!
//! It looks at the same things in the same ways as the agent itself, takes no lock and changes nothing, so it may
//! run beside it, before a device is enrolled and after. Neither does it use up the provisioning token, nor
//! does it take the place of the agent's connection.

mod device;
mod network;

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;
use tokio::time;

use crate::{
    causes,
    config::{ConfigError, RuntimeSettings, Settings, Standing},
    identity::{Identity, StateDir},
    runtime,
};

/// No check takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not as it should be, and not in the way now.
    Warn,
    /// In the way.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            advice: Some(advice.into()),
            ..Self::ok(name, found)
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            advice: Some(advice.into()),
            ..Self::ok(name, found)
        }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Whether nothing is in the way.
    pub ok: bool,
    /// In the order in which the agent depends on them.
    pub checks: Vec<Check>,
}

impl Findings {
    fn of(checks: Vec<Check>) -> Self {
        let ok = checks.iter().all(|check| check.verdict != Verdict::Fail);
        Self { ok, checks }
    }

    /// A line for each check, and another one with what to do where something is to be done.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            let found = check.found.replace('\n', " ");
            // Writing to a string does not fail.
            writeln!(text, "{verdict:<5} {:<12} {found}", check.name).unwrap_or_default();
            if let Some(advice) = &check.advice {
                writeln!(text, "{:19}what to do: {advice}", "").unwrap_or_default();
            }
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Looks at everything, with these settings or without.
pub async fn examine(settings: Result<&Settings, &ConfigError>) -> Findings {
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            let advice = "correct them: nothing else can be looked at without settings";
            return Findings::of(vec![Check::fail("settings", causes(error), advice)]);
        }
    };
    let mut checks = vec![settings_of(settings)];
    checks.extend(device::state_directory(&settings.state_dir));
    checks.push(device::disk(&settings.state_dir));
    let identity = identity(settings);
    let owner = runtime::Owner::of(identity.as_ref().ok().and_then(Option::as_ref));
    let mut runtime = runtime::of(settings.runtime.clone(), owner);
    match &identity {
        Ok(identity) => checks.extend(network::examine(settings, identity.as_ref()).await),
        // Without it there is nobody to ask as.
        Err(check) => checks.push(check.clone()),
    }
    let target = within("runtime", device::runtime(runtime.as_mut())).await;
    let is_there = target.verdict == Verdict::Ok;
    checks.push(target);
    if is_there && matches!(settings.runtime, RuntimeSettings::Kube(_)) {
        checks.push(within("rights", device::rights(runtime.as_mut())).await);
    }
    if let Some(secret) = &settings.identity_secret {
        checks.push(within("identity-secret", device::identity_secret(secret)).await);
    }
    Findings::of(checks)
}

async fn within(name: &'static str, check: impl Future<Output = Check>) -> Check {
    time::timeout(PATIENCE, check)
        .await
        .unwrap_or_else(|_over| {
            let found = format!("no answer within {} seconds", PATIENCE.as_secs());
            Check::fail(name, found, "look at what does not answer")
        })
}

fn settings_of(settings: &Settings) -> Check {
    let origin = &settings.origin;
    let path = origin.path.display();
    match &origin.standing {
        Standing::Holds(_) if origin.digest.is_none() => {
            Check::ok("settings", format!("there is no {path}"))
        }
        Standing::Holds(_) => Check::ok("settings", path.to_string()),
        Standing::OnTrial(..) => {
            Check::ok("settings", format!("{path}, which has not connected yet"))
        }
        Standing::Refused(refused) => Check::fail(
            "settings",
            refused.explanation(&origin.path),
            format!("correct {path}, then restart the agent or wait for a minute"),
        ),
    }
}

fn identity(settings: &Settings) -> Result<Option<Identity>, Check> {
    // Where it cannot be opened, that check has failed above.
    let Ok(Some(state)) = StateDir::peek(&settings.state_dir) else {
        return Ok(None);
    };
    state.identity().map_err(|error| {
        let advice = "restore it from a backup, or remove it and enroll the device anew";
        Check::fail("identity", causes(&error), advice)
    })
}
