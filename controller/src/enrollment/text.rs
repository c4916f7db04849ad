//! What a reviewer reads of an enrollment.
//!
//! Names, facts, labels and addresses come from devices and operators, so all of them stand in fenced code blocks,
//! whose fence is longer than any that they contain: there, no host finds a mention, a link, an image, HTML or a
//! command. Characters that are not seen, or that turn others around, are spelled out.

use std::fmt::Write as _;

use jiff::Timestamp;
use longshore_protocol::{FleetName, api::Approval};

use crate::{
    forge::PullRequestText,
    store::{devices::Device, tokens::Token},
};

/// How many characters are kept for what says how many devices were left out.
const RESERVE: usize = 200;

/// Title and text of the pull request that asks for these devices, in at most `limit` characters. `noun` is what
/// the host calls a pull request.
pub fn pull_request_text(
    fleet: &FleetName,
    devices: &[(&Device, &Token)],
    noun: &str,
    limit: usize,
) -> PullRequestText {
    match devices {
        [(device, token)] => one(fleet, device, token, noun, limit),
        several => many(fleet, several, noun, limit),
    }
}

fn one(
    fleet: &FleetName,
    device: &Device,
    token: &Token,
    noun: &str,
    limit: usize,
) -> PullRequestText {
    let name = &device.name;
    let mut rows = vec![
        ("name", name.to_string()),
        ("key fingerprint", device.public_key.to_string()),
        ("source address", device.source_address.clone()),
        ("first seen", date(device.created_at)),
    ];
    rows.extend(of_token(token, device));
    let head = format!(
        "The device `{name}` asks to join the fleet `{fleet}`.\n\n{}\n\
         **Compare the key fingerprint** with the one on the device's console: it is what merging vouches for.\n{}",
        block(&rows),
        fallback(token)
    );
    let tail = format!(
        "- **Merging approves the device.** It gets a certificate for that key, and runs what its folder says.\n\
         - **Edits count.** Rename the folder (with `metadata.name` in its `device.yaml`), change labels, choose \
         another overlay: what is merged is what the device gets.\n\
         - **Closing this {noun} rejects the device,** and tells it so. Reopening changes nothing: to ask again, \
         the device needs a new key.\n"
    );
    let said = "\nWhat the device says of itself, unchecked:\n\n";
    let room = limit.saturating_sub(length(&[&head, said, &tail]) + RESERVE);
    let facts = facts(device, room);
    let facts = facts.map(|facts| format!("{said}{facts}"));
    PullRequestText {
        title: format!("Enroll {name}"),
        body: format!("{head}{}\n{tail}", facts.unwrap_or_default()),
    }
}

fn many(
    fleet: &FleetName,
    devices: &[(&Device, &Token)],
    noun: &str,
    limit: usize,
) -> PullRequestText {
    let count = devices.len();
    let shared = devices
        .first()
        .map(|(device, token)| block(&of_token(token, device)))
        .unwrap_or_default();
    let note = devices.first().map(|(_, token)| fallback(token));
    let head = format!(
        "{count} devices ask to join the fleet `{fleet}`, each in a commit of its own.\n\n{shared}\n\
         **Compare the key fingerprints** with those on the devices' consoles: they are what merging vouches for.\n{}",
        note.unwrap_or_default()
    );
    let tail = format!(
        "- **Merging approves the devices that are on the branch.** Each gets a certificate for its key, and runs \
         what its folder says.\n\
         - **Removing a device's folder from the branch rejects that device** alone.\n\
         - **Edits count.** Rename folders (with `metadata.name` in their `device.yaml`), change labels, choose other \
         overlays: what is merged is what the devices get.\n\
         - **Closing this {noun} rejects them all,** and tells them so. Reopening changes nothing: to ask again, \
         a device needs a new key.\n"
    );
    let mut room = limit.saturating_sub(length(&[&head, &tail]) + RESERVE);
    let width = devices.iter().map(|(device, _)| device.name.as_str().len());
    let width = width.max().unwrap_or_default();
    let mut list = String::new();
    let mut listed = 0;
    for (device, _) in devices {
        let row = format!(
            "  {:width$}  {}  {}  {}\n",
            device.name.as_str(),
            device.public_key,
            visible(&device.source_address),
            date(device.created_at),
        );
        let Some(rest) = room.checked_sub(row.chars().count()) else {
            break;
        };
        room = rest;
        list.push_str(&row);
        listed += 1;
    }
    if listed < count {
        // Writing to a `String` cannot fail.
        let _ok = writeln!(list, "  and {} more: see the changed files", count - listed);
    }
    let mut details = String::new();
    for (device, _) in devices {
        let around = format!(
            "<details><summary>{}</summary>\n\n\n</details>\n",
            device.name
        );
        let Some(facts) = room
            .checked_sub(around.len())
            .and_then(|room| facts(device, room))
        else {
            continue;
        };
        let text = format!(
            "<details><summary>{}</summary>\n\n{facts}\n</details>\n",
            device.name
        );
        room = room.saturating_sub(text.chars().count());
        details.push_str(&text);
    }
    if !details.is_empty() {
        details.insert_str(0, "\nWhat the devices say of themselves, unchecked:\n\n");
    }
    PullRequestText {
        title: format!("Enroll {count} devices"),
        body: format!("{head}\n{}{details}\n{tail}", fenced(&list)),
    }
}

/// What a device has from its token.
fn of_token<'a>(token: &Token, device: &Device) -> Vec<(&'a str, String)> {
    let labels: Vec<_> = device
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let overlay = token.overlay.clone();
    vec![
        ("token", token.label.clone()),
        ("overlay", overlay.unwrap_or_else(|| "its own".to_owned())),
        (
            "labels",
            if labels.is_empty() {
                "none".to_owned()
            } else {
                labels.join(", ")
            },
        ),
    ]
}

/// Why people are asked although the token says that nobody needs to be.
fn fallback(token: &Token) -> &'static str {
    match token.approval {
        Approval::Automatic => {
            "\nThe token approves without asking, but the tracked branch does not take that from the controller.\n"
        }
        Approval::Manual => "",
    }
}

/// What a device says of itself, as far as there is room; `None` where it says nothing.
fn facts(device: &Device, room: usize) -> Option<String> {
    let rows: Vec<_> = device
        .facts
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    (1..=rows.len())
        .rev()
        .filter_map(|count| rows.get(..count).map(block))
        .find(|text| text.chars().count() <= room)
}

/// Two columns.
fn block(rows: &[(&str, String)]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|(name, value)| (visible(name), visible(value)))
        .collect();
    let width = rows.iter().map(|(name, _)| name.chars().count().min(40));
    let width = width.max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in rows {
        // Writing to a `String` cannot fail.
        let _ok = writeln!(text, "  {name:width$}  {value}");
    }
    fenced(&text)
}

/// A code block of these lines, none of which can end it.
fn fenced(lines: &str) -> String {
    let longest = lines.split(|char| char != '`').map(str::len).max();
    let fence = "`".repeat(longest.unwrap_or_default().max(2) + 1);
    format!("{fence}text\n{lines}{fence}\n")
}

/// A text in one line whose every character is seen where it stands.
fn visible(text: &str) -> String {
    text.chars()
        .map(|char| {
            if is_plain(char) {
                char.to_string()
            } else {
                char.escape_unicode().to_string()
            }
        })
        .collect()
}

/// Whether a character is seen, and leaves the others where they are.
fn is_plain(char: char) -> bool {
    let unseen = [
        '\u{ad}'..='\u{ad}',
        '\u{61c}'..='\u{61c}',
        '\u{180b}'..='\u{180f}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{fe00}'..='\u{fe0f}',
        '\u{feff}'..='\u{feff}',
        '\u{fff0}'..='\u{fffb}',
        '\u{e0000}'..='\u{e0fff}',
    ];
    !char.is_control() && !unseen.iter().any(|range| range.contains(&char))
}

fn date(milliseconds: u64) -> String {
    i64::try_from(milliseconds)
        .ok()
        .and_then(|at| Timestamp::from_millisecond(at).ok())
        .map(|at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
        .unwrap_or_default()
}

fn length(texts: &[&str]) -> usize {
    texts.iter().map(|text| text.chars().count()).sum()
}

#[cfg(test)]
mod tests;
