//! How containers fare. Pure.

use super::{
    observed::{Inspected, Observed},
    pod::{Expected, Restart},
};
use crate::runtime::health::{Health, ObjectHealth};

/// A container that has run for this long, in milliseconds, is not in a loop of crashes.
const STEADY: u64 = 60_000;
/// So many restarts make a loop.
const LOOP: u64 = 3;

/// How the pods of a set fare, those that are well left out. `now` is in milliseconds of the Unix epoch.
pub(super) fn of(expected: &[Expected], observed: &Observed, now: u64) -> Vec<ObjectHealth> {
    expected
        .iter()
        .filter_map(|pod| of_pod(pod, observed, now))
        .collect()
}

fn of_pod(expected: &Expected, observed: &Observed, now: u64) -> Option<ObjectHealth> {
    let (mut worst, mut messages) = (Health::Current, Vec::new());
    let found = observed.pod(&expected.name);
    let prefix = format!("{}-", expected.name);
    for name in &expected.containers {
        let details = found
            .and_then(|pod| pod.container(name))
            .and_then(|it| it.details.as_ref());
        let (health, message) = match details {
            Some(details) => of_container(details, expected.restart, now),
            None => (Health::InProgress, "is not made yet".to_owned()),
        };
        if health != Health::Current {
            let short = name.strip_prefix(&prefix).unwrap_or(name);
            messages.push(format!("container {short} {message}"));
        }
        worst = worst.max(health);
    }
    (worst != Health::Current).then(|| ObjectHealth {
        object: expected.object.clone(),
        health: worst,
        message: messages.join(", "),
    })
}

fn of_container(details: &Inspected, restart: Restart, now: u64) -> (Health, String) {
    let state = &details.state;
    let code = state.exit_code;
    let ended = if state.out_of_memory {
        "was killed, for it used more memory than it may".to_owned()
    } else {
        format!("ended with exit code {code}")
    };
    match (state.status.as_str(), restart) {
        ("running", _) => match state.check() {
            "unhealthy" => (Health::Failed, "fails its health check".to_owned()),
            "starting" => (
                Health::InProgress,
                "has not passed its health check yet".to_owned(),
            ),
            _ => of_restarts(details.restarts, state.runs_for(now)),
        },
        ("exited" | "stopped", Restart::Never | Restart::OnFailure) if code == 0 => {
            (Health::Current, String::new())
        }
        ("exited" | "stopped", Restart::Never) => (Health::Failed, ended),
        ("exited" | "stopped", _) => {
            let health = if details.restarts >= LOOP {
                Health::Failed
            } else {
                Health::InProgress
            };
            (health, format!("{ended} and is started again"))
        }
        (_, _) if !state.error.is_empty() => (Health::Failed, state.error.clone()),
        (other, _) => (Health::InProgress, format!("is {other}")),
    }
}

fn of_restarts(restarts: u64, runs_for: u64) -> (Health, String) {
    if restarts == 0 || runs_for >= STEADY {
        return (Health::Current, String::new());
    }
    let health = if restarts >= LOOP {
        Health::Failed
    } else {
        Health::InProgress
    };
    let seconds = runs_for / 1000;
    let times = if restarts == 1 {
        "once".to_owned()
    } else {
        format!("{restarts} times")
    };
    (
        health,
        format!("was started again {times}, the last time {seconds} s ago"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn fares(state: &Value, restarts: u64, restart: Restart) -> (Health, String) {
        let mut whole = json!({"Status": "running", "ExitCode": 0, "OOMKilled": false, "Error": "",
            "StartedAt": "2023-11-14T22:13:10+00:00", "FinishedAt": "0001-01-01T00:00:00Z"});
        whole
            .as_object_mut()
            .unwrap()
            .extend(state.as_object().unwrap().clone());
        let details = json!({"id": "x", "restarts": restarts, "state": whole});
        of_container(&serde_json::from_value(details).unwrap(), restart, NOW)
    }

    #[test]
    fn containers_that_run() {
        let is = |state: Value, restarts| fares(&state, restarts, Restart::Always);
        assert_eq!(is(json!({}), 0).0, Health::Current);
        assert_eq!(
            is(json!({}), 1),
            (
                Health::InProgress,
                "was started again once, the last time 10 s ago".to_owned()
            )
        );
        assert_eq!(is(json!({}), 3).0, Health::Failed);
        let steady = json!({"StartedAt": "2023-11-14T22:12:10Z"});
        assert_eq!(is(steady, 9).0, Health::Current, "it has run for a while");
        let check = |status: &str, log: Value| json!({"Health": {"Status": status, "Log": log}});
        assert_eq!(is(check("unhealthy", json!([{}])), 0).0, Health::Failed);
        assert_eq!(is(check("starting", json!([{}])), 0).0, Health::InProgress);
        assert_eq!(is(check("healthy", json!([{}])), 0).0, Health::Current);
        assert_eq!(is(check("", Value::Null), 0).0, Health::Current);
    }

    #[test]
    fn containers_that_ended() {
        let ended = |code: i64| json!({"Status": "exited", "ExitCode": code});
        for restart in [Restart::Never, Restart::OnFailure] {
            assert_eq!(fares(&ended(0), 0, restart).0, Health::Current);
        }
        let (health, why) = fares(&ended(7), 0, Restart::Never);
        assert_eq!(
            (health, why.as_str()),
            (Health::Failed, "ended with exit code 7")
        );
        assert_eq!(
            fares(&ended(7), 0, Restart::OnFailure).0,
            Health::InProgress
        );
        assert_eq!(fares(&ended(7), 5, Restart::Always).0, Health::Failed);
        let killed = json!({"Status": "exited", "ExitCode": 137, "OOMKilled": true});
        assert!(fares(&killed, 0, Restart::Never).1.contains("more memory"));
        let broken = json!({"Status": "created", "Error": "no such program"});
        assert_eq!(
            fares(&broken, 0, Restart::Always),
            (Health::Failed, "no such program".to_owned())
        );
        assert_eq!(
            fares(&json!({"Status": "created"}), 0, Restart::Always).0,
            Health::InProgress
        );
    }
}
