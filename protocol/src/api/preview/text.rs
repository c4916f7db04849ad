//! A preview in short plain lines: for a terminal, for `remote:` lines of a push, for a commit status.
//!
//! Bounded, and without control characters, whatever the repo holds.

use super::{ChangeKind, Group, Preview};
use crate::{
    DeviceName, ObjectKey,
    text::{cut, printable, printable_lines},
};

/// How many devices one line names.
const MAX_NAMES: usize = 10;
/// How many groups, and how many objects of each, are named.
const MAX_ENTRIES: usize = 10;
/// How many problems are listed.
const MAX_PROBLEMS: usize = 20;
/// How long one line is, in characters.
const MAX_LINE: usize = 500;

impl Preview {
    /// All in one line: `3 devices change, 1 device enrolls`.
    pub fn headline(&self) -> String {
        let parts: Vec<_> = [
            (self.changed(), "changes", "change"),
            (self.enrolling(), "enrolls", "enroll"),
            (
                self.decommissioned.len(),
                "is decommissioned",
                "are decommissioned",
            ),
        ]
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, many)| format!("{} {}", devices(count), verb(count, one, many)))
        .collect();
        if parts.is_empty() {
            "no device changes".to_owned()
        } else {
            parts.join(", ")
        }
    }

    /// Whether to worry: how many devices the change takes away, where that is more than the fleet lets go.
    pub fn warning(&self) -> Option<String> {
        let removals = self.removals();
        let then = if self.guard.holds {
            "an operator will have to confirm it"
        } else {
            "this change itself allows it"
        };
        self.guard.exceeded.then(|| {
            format!(
                "{} {} removed or left without objects, and the fleet lets {} go unasked; {then}",
                devices(removals),
                verb(removals, "is", "are"),
                self.guard.allowed
            )
        })
    }

    /// The first problem that the change brings, as `path:line: message`.
    pub fn first_problem(&self) -> Option<String> {
        Some(printable(self.problems.lines.first()?))
    }

    /// The whole, in lines without line breaks.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.note.as_deref().map(printable));
        match self.groups.as_slice() {
            [] => {}
            [only] => {
                let count = only.devices.len();
                lines.push(format!(
                    "{} {}: {}",
                    devices(count),
                    verb(count, "changes", "change"),
                    names(&only.devices)
                ));
                lines.extend(objects(only, "  "));
            }
            several => {
                lines.push(format!("{} change", devices(self.changed())));
                for group in several.iter().take(MAX_ENTRIES) {
                    let count = devices(group.devices.len());
                    lines.push(format!("  {count}: {}", names(&group.devices)));
                    lines.extend(objects(group, "    "));
                }
                lines
                    .extend(more(several.len(), MAX_ENTRIES, "groups").map(|it| format!("  {it}")));
            }
        }
        for added in self.enrolled.iter().take(MAX_ENTRIES) {
            let count = added.devices.len();
            lines.push(format!(
                "{} {} with {}: {}",
                devices(count),
                verb(count, "enrolls", "enroll"),
                printable(&added.overlay),
                names(&added.devices)
            ));
        }
        lines.extend(more(self.enrolled.len(), MAX_ENTRIES, "overlays"));
        for (gone, one, many) in [
            (
                &self.decommissioned,
                "is decommissioned",
                "are decommissioned",
            ),
            (
                &self.emptied,
                "is left without objects",
                "are left without objects",
            ),
        ] {
            if !gone.is_empty() {
                let verb = verb(gone.len(), one, many);
                lines.push(format!("{} {verb}: {}", devices(gone.len()), names(gone)));
            }
        }
        lines.extend(self.warning().map(|warning| format!("warning: {warning}")));
        for (label, problems) in [
            ("problem", &self.problems),
            ("old problem", &self.old_problems),
        ] {
            let shown = problems.lines.iter().take(MAX_PROBLEMS);
            lines.extend(shown.map(|line| format!("{label}: {}", printable(line))));
            let count = usize::try_from(problems.count).unwrap_or(usize::MAX);
            lines.extend(more(count, MAX_PROBLEMS, &format!("{label}s")));
        }
        if self.is_nothing() {
            lines.push(self.headline());
        }
        lines.iter().map(|line| cut(line, MAX_LINE)).collect()
    }
}

impl Preview {
    /// Everything that is known, with all names and all diffs.
    pub fn report(&self) -> String {
        let groups = self.groups.iter().flat_map(|group| {
            let head = format!(
                "\n{} with {}: {}",
                devices(group.devices.len()),
                printable(&group.overlays.join(", ")),
                all(&group.devices)
            );
            let diffs = group.changes.iter().map(|change| {
                let diff = printable_lines(&change.diff);
                diff.trim_end_matches('\n').to_owned()
            });
            [head].into_iter().chain(diffs)
        });
        let enrolled = self.enrolled.iter().map(|added| {
            let objects: Vec<_> = added.objects.iter().map(named).collect();
            format!(
                "\n{} enrolled with {}: {}\n  {}",
                devices(added.devices.len()),
                printable(&added.overlay),
                all(&added.devices),
                printable(&objects.join(", "))
            )
        });
        let gone = [
            (&self.decommissioned, "decommissioned"),
            (&self.emptied, "left without objects"),
        ]
        .into_iter()
        .filter(|(names, _)| names.len() > MAX_NAMES)
        .map(|(names, what)| format!("\n{} {what}: {}", devices(names.len()), all(names)));
        let lines = self
            .lines()
            .into_iter()
            .chain(groups)
            .chain(enrolled)
            .chain(gone);
        lines.map(|line| line + "\n").collect()
    }
}

fn all(names: &[DeviceName]) -> String {
    let names: Vec<_> = names.iter().map(DeviceName::as_str).collect();
    names.join(", ")
}

/// `ConfigMap default/app changed`, one line each.
fn objects(group: &Group, indent: &str) -> Vec<String> {
    let line = |change: &super::Change| {
        let object = printable(&named(&change.object));
        format!("{indent}{object} {}", word(change.kind))
    };
    let shown = group.changes.iter().take(MAX_ENTRIES).map(line);
    let rest = more(group.changes.len(), MAX_ENTRIES, "objects");
    shown
        .chain(rest.map(|rest| format!("{indent}{rest}")))
        .collect()
}

/// `ConfigMap default/app`: what people call an object.
pub fn named(object: &ObjectKey) -> String {
    let ObjectKey {
        kind,
        namespace,
        name,
        ..
    } = object;
    if namespace.is_empty() {
        format!("{kind} {name}")
    } else {
        format!("{kind} {namespace}/{name}")
    }
}

/// What becomes of an object, in a word.
pub fn word(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "added",
        ChangeKind::Removed => "removed",
        ChangeKind::Changed => "changed",
    }
}

/// `1 device`, `3 devices`.
pub fn devices(count: usize) -> String {
    match count {
        1 => "1 device".to_owned(),
        many => format!("{many} devices"),
    }
}

/// The first few names, and how many more there are.
pub fn names(devices: &[DeviceName]) -> String {
    let shown: Vec<_> = devices
        .iter()
        .take(MAX_NAMES)
        .map(DeviceName::as_str)
        .collect();
    match devices.len().saturating_sub(MAX_NAMES) {
        0 => shown.join(", "),
        rest => format!("{} and {rest} more", shown.join(", ")),
    }
}

fn verb<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

fn more(count: usize, shown: usize, what: &str) -> Option<String> {
    (count > shown).then(|| format!("and {} more {what}", count - shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::preview::{Change, Enrolled, Guard, Problems};

    fn device_names(range: std::ops::Range<u32>) -> Vec<DeviceName> {
        range
            .map(|n| format!("store-{n:04}").parse().unwrap())
            .collect()
    }

    fn group(range: std::ops::Range<u32>, object: &str) -> Group {
        Group {
            devices: device_names(range),
            overlays: vec!["groups/kiosk".to_owned()],
            unknown_before: false,
            changes: vec![Change {
                object: ObjectKey {
                    api_version: "v1".to_owned(),
                    kind: "ConfigMap".to_owned(),
                    namespace: "default".to_owned(),
                    name: object.to_owned(),
                },
                kind: ChangeKind::Changed,
                diff: String::new(),
            }],
        }
    }

    #[test]
    fn a_small_change_names_its_devices() {
        let preview = Preview {
            groups: vec![group(1..4, "app")],
            ..Preview::default()
        };
        assert_eq!(preview.headline(), "3 devices change");
        assert_eq!(
            preview.lines(),
            [
                "3 devices change: store-0001, store-0002, store-0003",
                "  ConfigMap default/app changed"
            ]
        );
        assert_eq!(Preview::default().lines(), ["no device changes"]);
    }

    #[test]
    fn a_large_one_is_cut_and_warns() {
        let preview = Preview {
            groups: vec![group(0..400, "app"), group(400..401, "other")],
            enrolled: vec![Enrolled {
                devices: device_names(500..501),
                overlay: "groups/\u{1b}[2Jkiosk".to_owned(),
                objects: Vec::new(),
            }],
            decommissioned: device_names(600..612),
            guard: Guard {
                allowed: 5,
                exceeded: true,
                holds: true,
            },
            problems: Problems {
                lines: vec!["groups/kiosk/kustomization.yaml:4: no\nsuch".to_owned(); 30],
                count: 300,
            },
            ..Preview::default()
        };
        assert_eq!(
            preview.headline(),
            "401 devices change, 1 device enrolls, 12 devices are decommissioned"
        );
        let lines = preview.lines();
        assert_eq!(lines[0], "401 devices change");
        assert!(
            lines[1].ends_with("store-0009 and 390 more"),
            "{}",
            lines[1]
        );
        assert_eq!(lines[2], "    ConfigMap default/app changed");
        assert_eq!(
            lines[5],
            "1 device enrolls with groups/\\u{1b}[2Jkiosk: store-0500"
        );
        assert_eq!(
            lines[7],
            "warning: 12 devices are removed or left without objects, and the fleet lets 5 go unasked; an operator will have to confirm it"
        );
        assert_eq!(
            lines[8],
            "problem: groups/kiosk/kustomization.yaml:4: no\\nsuch"
        );
        assert_eq!(lines.last().unwrap(), "and 280 more problems");
        assert_eq!(lines.len(), 8 + 21);
    }
}
