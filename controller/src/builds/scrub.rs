//! Kustomize's messages without the secrets that they quote.
//!
//! A message may quote what it complains of: a literal of a generator, a patch. It becomes a condition, a line of a log,
//! a comment on a pull request. So whatever stands as a value in the files of a build that make `Secret`s is taken out
//! of it. That may take out too much, and the place is still named.

use longshore_fleet::{Closure, EntryKind, Tree};

/// The largest file that is looked through; a message about a build with a larger one is not shown.
const MAX_FILE: u64 = 1024 * 1024;
/// Shorter values are words of the message's own.
const SHORTEST: usize = 4;
const REDACTED: &str = "(redacted)";
const UNKNOWN: &str = "the build fails; its message is not shown, because it may quote a secret";
/// Fields whose values are names and not secrets.
const NAMES: &[&str] = &[
    "apiVersion",
    "kind",
    "name",
    "namespace",
    "type",
    "path",
    "op",
    "behavior",
];

/// `message`, which is one line, without the values of secrets that the build read.
pub(super) fn scrubbed(message: String, closure: &Closure, tree: &dyn Tree) -> String {
    let Some(values) = values(closure, tree) else {
        return UNKNOWN.to_owned();
    };
    values.iter().fold(message, |message, value| {
        message.replace(value.as_str(), REDACTED)
    })
}

/// What stands as a value in files that make secrets, the longest first; `None` where that cannot be told.
fn values(closure: &Closure, tree: &dyn Tree) -> Option<Vec<String>> {
    let mut files = Vec::new();
    let mut generates = false;
    for file in closure.files.iter() {
        if !matches!(file.kind, EntryKind::File { .. }) {
            continue;
        }
        if tree.size(file.id).ok()? > MAX_FILE {
            return None;
        }
        let text = String::from_utf8_lossy(&tree.blob(file.id).ok()?).into_owned();
        generates |= text.contains("secretGenerator");
        files.push(text);
    }
    // What a generator reads may be any file.
    let files = files
        .iter()
        .filter(|text| generates || text.contains("Secret"));
    let is_path = |value: &str| {
        closure
            .files
            .iter()
            .any(|file| file.path.as_str().ends_with(value))
    };
    let mut values: Vec<_> = files
        .flat_map(|text| text.lines())
        .flat_map(of_line)
        .filter(|value| value.len() >= SHORTEST && !is_path(value))
        .collect();
    values.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    values.dedup();
    Some(values)
}

/// What may be a value in one line: all of it, what follows the first `:` or `=`, and the same of its pieces where it
/// is a list or a map in one line.
fn of_line(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches("- ").trim();
    let (name, value) = line.split_once([':', '=']).unwrap_or(("", line));
    if line.ends_with(':') || NAMES.contains(&plain(name).as_str()) {
        return Vec::new();
    }
    let pieces = value.split(['[', ']', '{', '}', ',', '"', '\'']);
    let parts = pieces.flat_map(|piece| {
        let value = piece.split_once([':', '=']).map(|(_, value)| value);
        [Some(piece), value].into_iter().flatten()
    });
    [line, value].into_iter().chain(parts).map(plain).collect()
}

/// Without quotes around it, and on one line as the message is.
fn plain(text: &str) -> String {
    let text = text.trim().trim_matches(['"', '\'']);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use longshore_fleet::{Closures, RepoPath, WorkTree};

    use super::*;

    fn said(files: &[(&str, &str)], message: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let tree = WorkTree::open(directory.path()).unwrap();
        let closure = Closures::new(&tree, "none")
            .closure(&RepoPath::root())
            .unwrap();
        scrubbed(message.to_owned(), &closure, &tree)
    }

    #[test]
    fn quoted_secrets_are_taken_out() {
        let generator = "secretGenerator:\n- name: s\n  literals: [pin=87654321, hunter2hunter2]\n  envs: [e.env]\n";
        assert_eq!(
            said(
                &[
                    ("kustomization.yaml", generator),
                    ("e.env", "TOKEN=swordfish 7\n")
                ],
                "literal sources [pin=87654321 hunter2hunter2]: invalid literal source hunter2hunter2; e.env: TOKEN: swordfish 7"
            ),
            "literal sources [(redacted) (redacted)]: invalid literal source (redacted); e.env: TOKEN: (redacted)"
        );
        let secret = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: printer\nstringData:\n  pin: \"12345678\"\n  key: |\n    first line\n";
        assert_eq!(
            said(
                &[
                    ("kustomization.yaml", "resources: [s.yaml]\n"),
                    ("s.yaml", secret)
                ],
                "from 's.yaml': Secret printer: 12345678: first line: line 3"
            ),
            "from 's.yaml': Secret printer: (redacted): (redacted): line 3"
        );
    }

    #[test]
    fn other_messages_stay() {
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: hunter2}\n";
        let files = [
            ("kustomization.yaml", "resources: [m.yaml]\n"),
            ("m.yaml", map),
        ];
        assert_eq!(said(&files, "bad: hunter2"), "bad: hunter2");
    }

    #[test]
    fn what_cannot_be_looked_through_is_not_quoted() {
        let large = "x".repeat(2 * 1024 * 1024);
        let files = [
            (
                "kustomization.yaml",
                "configMapGenerator: [{name: a, files: [large]}]\n",
            ),
            ("large", large.as_str()),
        ];
        assert_eq!(said(&files, "bad: hunter2"), UNKNOWN);
    }
}
