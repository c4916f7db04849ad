//! How much a device may say, and how much it is sent at once.

use longshore_protocol::{
    Delta, Entry,
    message::{DeviceMessage, StatusReport},
};

use crate::rate::Rate;

const MAX_CONDITIONS: usize = 32;
/// How much text a device's statement may have, in bytes.
pub(super) const MAX_CONDITION_TEXT: usize = 2000;
/// How much text the conditions of one report may have together, in bytes.
const MAX_REPORT_TEXT: usize = 16 * 1024;
/// How many bytes of bodies are read and sent at a time.
const BODIES_AT_ONCE: u64 = 64 * 1024;
/// What an entry of a list takes in memory, in bytes: names, a digest, and what they are kept in.
const ENTRY: usize = 256;
/// How many frames a device may send; one of many bytes counts as many. Whoever sends more is read later.
pub(super) const PACE: Rate = Rate {
    burst: 200.0,
    per_second: 50.0,
};
/// The same for all of a tenant's devices together: as many as report after a commit, and then so many in each second.
pub(crate) const TENANT_PACE: Rate = Rate {
    burst: 50_000.0,
    per_second: 10_000.0,
};
const BYTES_PER_FRAME: usize = 1024;

/// How much of its pace a frame costs a device.
pub(super) fn cost(bytes: usize) -> f64 {
    let frames = u32::try_from(1 + bytes / BYTES_PER_FRAME).unwrap_or(u32::MAX);
    f64::from(frames)
}

/// How much of it a portion of bodies costs that it asked for: whoever asks for the same again and again waits.
pub(super) const PORTION: f64 = 1.0;

/// How much of it a chunk of a log costs: 200 of them, or 1.6 MB, are read in a second.
const LOG_CHUNK: f64 = 0.25;

/// How much of it a message costs that came in a frame of so many bytes, with what it makes the controller do.
pub(super) fn price(message: &DeviceMessage, bytes: usize) -> f64 {
    match message {
        // Its bytes were asked for, and are bounded by their credit.
        DeviceMessage::LogChunk { .. } => LOG_CHUNK,
        other => cost(bytes) + effort(other),
    }
}

fn effort(message: &DeviceMessage) -> f64 {
    match message {
        // A signature is checked and another one made.
        DeviceMessage::Renew { .. } => 100.0,
        // The store is asked.
        DeviceMessage::Hello(_) => 10.0,
        DeviceMessage::Need { .. } => 5.0,
        _ => 0.0,
    }
}

/// How many of these bodies are read and sent together: at least one.
pub(super) fn first_few(entries: &[Entry]) -> usize {
    let mut size = 0;
    let fits = entries.iter().take_while(|entry| {
        size += entry.size;
        size <= BODIES_AT_ONCE
    });
    fits.count().max(1).min(entries.len())
}

/// What a list of so many objects takes in memory, in bytes.
pub(super) fn of_list(objects: u64) -> usize {
    usize::try_from(objects)
        .unwrap_or(usize::MAX)
        .saturating_mul(ENTRY)
}

/// What a delta takes while it is made, in bytes.
pub(super) fn of_delta(delta: &Delta, previous: &[Entry]) -> usize {
    let lists = ENTRY * (delta.upserts.len() + delta.removals.len() + previous.len());
    lists.saturating_add(of_bodies(&delta.upserts))
}

/// What these objects take while they are sent in portions, in bytes.
pub(super) fn of_portions(entries: &[Entry]) -> usize {
    let largest = entries.iter().map(|entry| entry.size).max();
    let portion = of_bodies(entries).min(size(largest.unwrap_or_default().max(BODIES_AT_ONCE)));
    (ENTRY * entries.len()).saturating_add(portion)
}

fn of_bodies(entries: &[Entry]) -> usize {
    size(entries.iter().map(|entry| entry.size).sum())
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// A device's words are stored; keep them short.
pub(super) fn bound_report(mut report: StatusReport) -> StatusReport {
    report.conditions.truncate(MAX_CONDITIONS);
    let mut room = MAX_REPORT_TEXT;
    for condition in &mut report.conditions {
        for text in [&mut condition.kind, &mut condition.reason] {
            *text = text.chars().take(64).collect();
        }
        let most = MAX_CONDITION_TEXT.min(room);
        if condition.message.len() > most {
            let end = condition.message.floor_char_boundary(most);
            condition.message.truncate(end);
        }
        room -= condition.message.len();
    }
    report
}

#[cfg(test)]
mod tests {
    use longshore_protocol::{
        Condition, Digest, Generation, ObjectKey,
        message::{Held, Phase},
    };

    use super::*;

    #[test]
    fn a_report_has_bounds() {
        let conditions =
            (0..100).map(|_| Condition::holds(&"k".repeat(99), "r", "ä".repeat(1500), 1));
        let report = bound_report(StatusReport {
            held: Held {
                generation: Generation::FIRST,
                digest: Digest::of(b""),
            },
            phase: Phase::Failed,
            conditions: conditions.collect(),
        });
        assert_eq!(report.conditions.len(), MAX_CONDITIONS);
        let texts = report.conditions.iter().map(|it| it.message.len());
        assert!(texts.clone().all(|length| length <= MAX_CONDITION_TEXT));
        assert!((MAX_REPORT_TEXT - 1..=MAX_REPORT_TEXT).contains(&texts.sum()));
    }

    #[test]
    fn bodies_go_in_portions() {
        let entry = |size| Entry {
            key: ObjectKey {
                api_version: "v1".to_owned(),
                kind: "ConfigMap".to_owned(),
                namespace: String::new(),
                name: "a".to_owned(),
            },
            digest: Digest::of(b"a"),
            size,
        };
        let of = |sizes: &[u64]| first_few(&sizes.iter().copied().map(entry).collect::<Vec<_>>());
        assert_eq!(of(&[1, 1, 1]), 3);
        assert_eq!(of(&[BODIES_AT_ONCE - 1, 1, 1]), 2);
        assert_eq!(of(&[BODIES_AT_ONCE + 1, 1]), 1);
        assert_eq!(of(&[]), 0);
    }
}
