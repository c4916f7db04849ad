//! What the documents say of the agent, held against the agent.

use longshore_agent::update::{HOLD, held_back};
use longshore_protocol::Object;
use serde_json::json;

use crate::holding;

const OPERATIONS: &str = include_str!("../../../docs/OPERATIONS.md");
const AGENT: &str = include_str!("../../../docs/AGENT.md");

/// The texts in double quotes that are one `CamelCase` word.
fn words(source: &str) -> impl Iterator<Item = &str> {
    let quoted = source.split('"').skip(1).step_by(2);
    quoted.filter(|it| {
        it.starts_with(|first: char| first.is_ascii_uppercase())
            && it.chars().all(|it| it.is_ascii_alphanumeric())
    })
}

#[test]
fn every_condition_and_every_reason_of_a_runtime_is_in_the_manual() {
    let table = OPERATIONS
        .split("By the agent, as of its last report:")
        .nth(1);
    let table = table.unwrap().split("The column `SYNC`").next().unwrap();
    let report = include_str!("../../src/report.rs");
    let conditions = report.lines().filter(|it| it.starts_with("pub const "));
    let conditions: Vec<_> = conditions.flat_map(words).collect();
    assert!(conditions.len() >= 8, "{conditions:?}");
    for condition in conditions {
        let row = format!("\n| `{condition}` | ");
        assert!(table.contains(&row), "{condition} is not in the table");
    }
    let runtime = include_str!("../../src/runtime.rs");
    let reasons = runtime.split("pub fn reason(&self)").nth(1).unwrap();
    let reasons = reasons.split("    /// ").next().unwrap();
    let problems = include_str!("../../src/runtime/kube/problem.rs");
    let problems = problems.split("#[cfg(test)]").next().unwrap();
    let problems = problems
        .lines()
        .filter(|it| it.contains("of(") || it.trim().starts_with('"'));
    let podman = include_str!("../../src/runtime/podman/pass.rs");
    let podman = podman.lines().filter(|it| it.contains("fail"));
    let all = words(reasons)
        .chain(problems.flat_map(words))
        .chain(podman.flat_map(words));
    let mut count = 0;
    for reason in all {
        count += 1;
        let cell = format!("`{reason}`");
        assert!(table.contains(&cell), "{reason} is not in the table");
    }
    assert!(count >= 20, "{count} reasons were found in the source");
}

#[test]
fn objects_are_held_back_by_both_values_that_the_manual_names() {
    let annotated = |name: &str, value: &str| {
        let metadata = json!({"name": name, "annotations": {HOLD: value}});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
        Object::from_value(&object).unwrap()
    };
    for value in ["enabled", "true"] {
        let named = [format!("`{HOLD}: {value}`"), format!("or `{value}`;")];
        assert!(named.iter().any(|it| AGENT.contains(it)), "{value}");
        let set = holding(1, [annotated("a", value), annotated("b", "false")]);
        assert_eq!(held_back(&set), ["v1/ConfigMap/a"]);
    }
}
