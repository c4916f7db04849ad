//! A preview as the one comment on a pull request.
//!
//! What comes from the repo is text and nothing else. Names stand escaped inside of HTML blocks, where hosts read no
//! Markdown and link no mention; diffs stand in fences that are longer than any run of backticks in them. The comment
//! ends at the border of an entry where the host's limit would cut it, and says what is left out.

use std::fmt::Write as _;

use longshore_protocol::{
    DeviceName, ObjectKey,
    api::preview::{
        Change, Enrolled, Group, Preview, Problems,
        text::{devices, word},
    },
    text::{cut, printable, printable_lines},
};

use crate::store::fleets::FleetId;

/// How many devices an entry names.
const MAX_NAMES: usize = 12;
/// How many problems are listed.
const MAX_PROBLEMS: usize = 20;
/// How many objects of devices that enroll are listed.
const MAX_OBJECTS: usize = 50;
/// How long a name or a problem is, in characters.
const MAX_TEXT: usize = 400;

/// What surrounds the report.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The fleet.
    pub fleet: &'a FleetId,
    /// How long a comment may be.
    pub limit: usize,
    /// Where the whole report is.
    pub link: Option<&'a str>,
}

/// What makes the comment ours, and this fleet's: two fleets may live in one repo.
pub fn marker(fleet: &FleetId) -> String {
    format!("<!-- longshore/preview {fleet} -->")
}

/// The comment.
pub fn comment(preview: &Preview, frame: Frame<'_>) -> String {
    let mut text = format!("{}\n### {}\n\n", marker(frame.fleet), preview.headline());
    if let Some(warning) = preview.warning() {
        // Writing to a `String` cannot fail.
        let _ok = writeln!(text, "**Warning: {warning}.**\n");
    }
    if let Some(note) = &preview.note {
        let _ok = writeln!(text, "<p>{}</p>\n", escape(note));
    }
    text.push_str(&problems(
        "What does not work with this change",
        &preview.problems,
    ));
    let end = footer(frame);
    let (mut left_out, mut shortened) = (0, false);
    for entry in entries(preview) {
        // Characters are at least as few as bytes, whichever of them a host counts.
        let room = frame
            .limit
            .saturating_sub(text.len() + end.len() + LEFT_OUT);
        if left_out == 0 && entry.whole.len() <= room {
            text.push_str(&entry.whole);
        } else if left_out == 0 && entry.short.len() <= room {
            text.push_str(&entry.short);
            shortened = true;
        } else {
            left_out += 1;
        }
    }
    if left_out > 0 {
        let _ok = writeln!(
            text,
            "<p>{left_out} more entries did not fit in here.</p>\n"
        );
    } else if shortened {
        text.push_str("<p>Not all diffs did fit in here.</p>\n\n");
    }
    text.push_str(&end);
    text
}

/// Room for the line that tells what is left out.
const LEFT_OUT: usize = 80;

/// What may be left out as one.
struct Entry {
    whole: String,
    /// Without diffs.
    short: String,
}

fn entries(preview: &Preview) -> Vec<Entry> {
    let groups = preview.groups.iter().map(|group| Entry {
        whole: of_group(group, true),
        short: of_group(group, false),
    });
    let added = preview.enrolled.iter().map(of_added);
    let gone = [
        (&preview.decommissioned, "decommissioned"),
        (&preview.emptied, "left without objects"),
    ]
    .into_iter()
    .filter(|(names, _)| !names.is_empty())
    .map(|(names, what)| {
        format!(
            "<p><b>{} {what}</b>: {}</p>\n\n",
            devices(names.len()),
            list(names)
        )
    });
    let old = problems(
        "What does not work, with or without this change",
        &preview.old_problems,
    );
    let plain = added.chain(gone).chain([old]).map(|text| Entry {
        whole: text.clone(),
        short: text,
    });
    groups.chain(plain).collect()
}

fn of_group(group: &Group, with_diffs: bool) -> String {
    let mut text = format!(
        "<details>\n<summary><b>{}</b>: {}</summary>\n\n",
        devices(group.devices.len()),
        list(&group.devices),
    );
    let overlays: Vec<_> = group
        .overlays
        .iter()
        .take(MAX_NAMES)
        .map(|it| code(it))
        .collect();
    let _ok = writeln!(
        text,
        "<p>{}{}</p>\n",
        overlays.join(", "),
        more(group.overlays.len(), MAX_NAMES)
    );
    if group.unknown_before {
        text.push_str("<p>It did not build before, so all of it counts as added.</p>\n\n");
    }
    if with_diffs {
        for change in &group.changes {
            let _ok = write!(
                text,
                "<details>\n<summary>{}</summary>\n\n{}\n</details>\n\n",
                changed(change),
                fenced(&change.diff)
            );
        }
    } else {
        let shown: Vec<_> = group
            .changes
            .iter()
            .take(MAX_OBJECTS)
            .map(changed)
            .collect();
        let _ok = writeln!(
            text,
            "<p>{}{}</p>\n",
            shown.join("<br>"),
            more(group.changes.len(), MAX_OBJECTS)
        );
    }
    text.push_str("</details>\n\n");
    text
}

fn of_added(added: &Enrolled) -> String {
    let shown: Vec<_> = added.objects.iter().take(MAX_OBJECTS).map(object).collect();
    format!(
        "<details>\n<summary><b>{} enrolled</b>: {}</summary>\n\n<p>{}: {}{}</p>\n</details>\n\n",
        devices(added.devices.len()),
        list(&added.devices),
        code(&added.overlay),
        shown.join(", "),
        more(added.objects.len(), MAX_OBJECTS)
    )
}

fn problems(title: &str, problems: &Problems) -> String {
    if problems.lines.is_empty() {
        return String::new();
    }
    let lines = problems.lines.iter().take(MAX_PROBLEMS);
    let lines: Vec<_> = lines
        .map(|line| format!("<li>{}</li>\n", code(line)))
        .collect();
    let lines = lines.concat();
    let count = usize::try_from(problems.count).unwrap_or(usize::MAX);
    let rest = match more(count, MAX_PROBLEMS) {
        rest if rest.is_empty() => rest,
        rest => format!("<li>{rest}</li>\n"),
    };
    format!("#### {title}\n\n<ul>\n{lines}{rest}</ul>\n\n")
}

fn footer(frame: Frame<'_>) -> String {
    let link = frame
        .link
        .map(|link| format!(" · <a href=\"{}\">the whole report</a>", escape(link)));
    format!(
        "<sub>Longshore · fleet {}{}</sub>\n",
        code(&frame.fleet.to_string()),
        link.unwrap_or_default()
    )
}

fn changed(change: &Change) -> String {
    format!("{} {}", object(&change.object), word(change.kind))
}

fn object(key: &ObjectKey) -> String {
    let name = match key.namespace.as_str() {
        "" => key.name.clone(),
        namespace => format!("{namespace}/{}", key.name),
    };
    format!("{} {}", code(&key.kind), code(&name))
}

fn list(names: &[DeviceName]) -> String {
    let shown: Vec<_> = names
        .iter()
        .take(MAX_NAMES)
        .map(DeviceName::as_str)
        .collect();
    format!("{}{}", shown.join(", "), more(names.len(), MAX_NAMES))
}

fn more(count: usize, shown: usize) -> String {
    match count.saturating_sub(shown) {
        0 => String::new(),
        rest => format!(" and {rest} more"),
    }
}

/// Foreign text as code, on one line. Hosts link no mention in code.
fn code(text: &str) -> String {
    format!("<code>{}</code>", escape(&cut(text, MAX_TEXT)))
}

/// Foreign text in HTML. No line break means no end of the HTML block.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '&' | '<' | '>' | '"' | '\'' | '`' | '@' | '#' | '*' | '_' | '[' | ']' | '\\' | '~' => {
                let _ok = write!(escaped, "&#{};", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

/// A diff in a fence that nothing in it can close.
fn fenced(diff: &str) -> String {
    let diff = printable_lines(diff);
    let longest = diff
        .split(|character| character != '`')
        .map(str::len)
        .max()
        .unwrap_or_default();
    let fence = "`".repeat((longest + 1).max(3));
    format!("{fence}diff\n{}\n{fence}\n", diff.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests;
