//! What a change does to devices, from what was built of both sides: pure, no clock, no I/O.
//!
//! A shared overlay is compared as it is, with `${NAME}` left in place: its diff is one entry, whatever its devices'
//! variables. Substituting still decides per device whether anything changes at all, and whether it can. Devices whose
//! own variables change are compared as substituted. Then equal changes become one group, across overlays.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use longshore_fleet::{
    Closure, DeviceSpec, Problem, RepoPath,
    difference::{Side, between},
};
use longshore_protocol::{
    DeviceName, Digest, ManifestSet, Object, ObjectKey,
    api::preview::{Change, Enrolled, Group, Preview},
};

use super::{
    pairs::{Added, Pair},
    place::place,
};
use crate::builds::outcome::{Outcome, has_references, of_device, set_of};

/// How many bytes of diffs a preview holds; what comes after is named without.
const MAX_DIFFS: usize = 8 * 1024 * 1024;

/// What is found, pair by pair.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    groups: Vec<Found>,
    by_changes: HashMap<Digest, usize>,
    enrolled: BTreeMap<(String, Vec<ObjectKey>), BTreeSet<DeviceName>>,
    emptied: BTreeSet<DeviceName>,
    /// What does not build or substitute before the change.
    pub old_problems: Vec<Problem>,
    /// What does not after it.
    pub problems: Vec<Problem>,
    diffs: usize,
}

/// A group as it grows.
#[derive(Debug)]
struct Found {
    devices: BTreeSet<DeviceName>,
    overlays: BTreeSet<String>,
    unknown_before: bool,
    changes: Vec<Change>,
}

impl Comparison {
    /// Compares what one pair's devices run before and after; `None` is an overlay that was refused.
    pub fn pair(&mut self, pair: &Pair, before: Option<&Outcome>, after: &Outcome) {
        let before = before
            .zip(pair.before.as_ref())
            .and_then(|(outcome, closure)| Template::of(closure, outcome, &mut self.old_problems));
        let overlay = &pair.after.overlay;
        let Some(after) = Template::of(&pair.after, after, &mut self.problems) else {
            return;
        };
        let same = self.changing(&pair.same, before.as_ref(), &after);
        if !same.is_empty() {
            let before = before.as_ref().map(|before| before.objects);
            self.change(same, overlay, before, after.objects);
        }
        for (old, new) in &pair.edited {
            let before = before.as_ref().and_then(|before| {
                let own = of_device(old, before.objects);
                noted(old, own, &mut self.old_problems)
            });
            let own = of_device(new, after.objects);
            let Some((after, set)) = noted(new, own, &mut self.problems) else {
                continue;
            };
            let was = before.as_ref().map(|(_, set)| set);
            if was != Some(&set) {
                let device = BTreeSet::from([new.name.clone()]);
                self.note_empty(&device, was, &set);
                let before = before.as_ref().map(|(objects, _)| objects.as_slice());
                self.change(device, overlay, before, &after);
            }
        }
    }

    /// The devices among `specs` whose sets differ.
    fn changing(
        &mut self,
        specs: &[DeviceSpec],
        before: Option<&Template<'_>>,
        after: &Template<'_>,
    ) -> BTreeSet<DeviceName> {
        let names = || specs.iter().map(|spec| spec.name.clone()).collect();
        let was_shared = before.is_none_or(|before| before.shared.is_some());
        if let (true, Some(new)) = (was_shared, &after.shared) {
            let old = before.and_then(|before| before.shared.as_ref());
            if old == Some(new) {
                return BTreeSet::new();
            }
            self.note_empty(&names(), old, new);
            return names();
        }
        let mut changing = BTreeSet::new();
        for spec in specs {
            let old =
                before.and_then(|before| noted(spec, before.set(spec), &mut self.old_problems));
            let Some(new) = noted(spec, after.set(spec), &mut self.problems) else {
                continue;
            };
            if old.as_ref() != Some(&new) {
                let device = BTreeSet::from([spec.name.clone()]);
                self.note_empty(&device, old.as_ref(), &new);
                changing.extend(device);
            }
        }
        changing
    }

    fn note_empty(
        &mut self,
        devices: &BTreeSet<DeviceName>,
        old: Option<&ManifestSet>,
        new: &ManifestSet,
    ) {
        if new.is_empty() && old.is_some_and(|old| !old.is_empty()) {
            self.emptied.extend(devices.iter().cloned());
        }
    }

    /// Adds devices to the group with this change.
    fn change(
        &mut self,
        devices: BTreeSet<DeviceName>,
        overlay: &RepoPath,
        before: Option<&[Object]>,
        after: &[Object],
    ) {
        let mut changes = between(
            &Side::of("base", before.unwrap_or_default()),
            &Side::of("head", after),
        );
        let unknown_before = before.is_none();
        let digest = digest_of(unknown_before, &changes);
        let at = *self.by_changes.entry(digest).or_insert_with(|| {
            for change in &mut changes {
                change.diff = without_digests(&change.diff);
                self.diffs = self.diffs.saturating_add(change.diff.len());
                if self.diffs > MAX_DIFFS {
                    "(not shown: this preview is too large)\n".clone_into(&mut change.diff);
                }
            }
            self.groups.push(Found {
                devices: BTreeSet::new(),
                overlays: BTreeSet::new(),
                unknown_before,
                changes,
            });
            self.groups.len() - 1
        });
        if let Some(found) = self.groups.get_mut(at) {
            found.devices.extend(devices);
            found.overlays.insert(overlay.to_string());
        }
    }

    /// Notes what devices will run that the change adds.
    pub fn added(&mut self, added: &Added, outcome: &Outcome) {
        let overlay = &added.overlay.overlay;
        let Some(template) = Template::of(&added.overlay, outcome, &mut self.problems) else {
            return;
        };
        for spec in &added.devices {
            let set = template.set(spec);
            let Some(set) = noted(spec, set, &mut self.problems) else {
                continue;
            };
            let keys = set.entries().iter().map(|entry| entry.key.clone());
            let devices = self.enrolled.entry((overlay.to_string(), keys.collect()));
            devices.or_default().insert(spec.name.clone());
        }
    }

    /// Everything that was found, without what is known without building.
    pub fn finish(self) -> (Preview, Vec<Problem>, Vec<Problem>) {
        let mut groups: Vec<_> = self
            .groups
            .into_iter()
            .map(|found| Group {
                devices: found.devices.into_iter().collect(),
                overlays: found.overlays.into_iter().collect(),
                unknown_before: found.unknown_before,
                changes: found.changes,
            })
            .collect();
        groups.sort_by(|a, b| {
            let size = b.devices.len().cmp(&a.devices.len());
            size.then_with(|| a.devices.cmp(&b.devices))
        });
        let enrolled = self
            .enrolled
            .into_iter()
            .map(|((overlay, objects), devices)| Enrolled {
                devices: devices.into_iter().collect(),
                overlay,
                objects,
            })
            .collect();
        let preview = Preview {
            groups,
            enrolled,
            emptied: self.emptied.into_iter().collect(),
            ..Preview::default()
        };
        (preview, self.problems, self.old_problems)
    }
}

/// The objects of an overlay, before devices' variables.
struct Template<'a> {
    objects: &'a [Object],
    /// Their set, where no object has references: then every device has it.
    shared: Option<ManifestSet>,
}

impl<'a> Template<'a> {
    /// Where the overlay gives no objects that devices would take, that is a problem.
    fn of(closure: &Closure, outcome: &'a Outcome, problems: &mut Vec<Problem>) -> Option<Self> {
        let template = outcome
            .as_deref()
            .map_err(Clone::clone)
            .and_then(|objects| {
                let shared = (!has_references(objects)).then(|| set_of(objects));
                let shared = shared.transpose()?;
                Ok(Self { objects, shared })
            });
        template
            .map_err(|message| problems.push(place(closure, message)))
            .ok()
    }

    fn set(&self, spec: &DeviceSpec) -> Result<ManifestSet, String> {
        match &self.shared {
            Some(shared) => Ok(shared.clone()),
            None => of_device(spec, self.objects).map(|(_, set)| set),
        }
    }
}

/// What a device gets; where it gets nothing, that is a problem at its file.
fn noted<T>(spec: &DeviceSpec, got: Result<T, String>, problems: &mut Vec<Problem>) -> Option<T> {
    got.map_err(|message| {
        problems.push(Problem::at(&spec.file, message).for_device(&spec.name));
    })
    .ok()
}

/// A diff without what tells redacted values apart: who reads it may try to guess a weak one.
fn without_digests(diff: &str) -> String {
    const MARK: &str = "(redacted, ";
    let mut shown = String::with_capacity(diff.len());
    for line in diff.split_inclusive('\n') {
        let now = if line.starts_with('+') {
            "(redacted, changed)"
        } else {
            "(redacted)"
        };
        let mut rest = line;
        while let Some((before, after)) = rest.split_once(MARK) {
            shown.push_str(before);
            shown.push_str(now);
            // Other content may say the same; a line stays a line.
            rest = after.split_once(')').map_or(
                if after.ends_with('\n') { "\n" } else { "" },
                |(_, rest)| rest,
            );
        }
        shown.push_str(rest);
    }
    shown
}

fn digest_of(unknown_before: bool, changes: &[Change]) -> Digest {
    let parts = changes.iter().flat_map(|change| {
        [
            change.object.to_string(),
            format!("{:?}", change.kind),
            change.diff.clone(),
        ]
    });
    let parts: Vec<_> = [unknown_before.to_string()]
        .into_iter()
        .chain(parts)
        .collect();
    Digest::of_parts(parts.iter().map(String::as_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_says_that_a_secret_changes_and_nothing_of_it() {
        let diff = " kind: Secret\n-  pin: (redacted, 4 bytes, 5feceb66ffc8)\n\
                    +  pin: (redacted, 4 bytes, 6b86b273ff34)\n   key: (redacted, 9 bytes, d4735e3a265e)\n";
        assert_eq!(
            without_digests(diff),
            " kind: Secret\n-  pin: (redacted)\n+  pin: (redacted, changed)\n   key: (redacted)\n"
        );
        assert_eq!(without_digests("+a (redacted, "), "+a (redacted, changed)");
        assert_eq!(without_digests("+a: b\n"), "+a: b\n");
    }
}
