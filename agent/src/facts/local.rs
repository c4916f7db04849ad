//! Facts that the device's owner adds: files in a directory, read anew at each look.
//!
//! `*.yaml`, `*.yml` and `*.toml` are maps of names to texts, numbers and truths; any other file has lines
//! `name=value`. What is not so is left out and told in the log, once for each change.

use std::{collections::BTreeMap, fs, io::Read as _, path::Path};

use longshore_protocol::api::Facts;
use serde::Deserialize;

/// The most facts of a device's owner.
const MOST: usize = 32;
const MOST_FILES: usize = 32;
const MOST_BYTES: u64 = 16 * 1024;
const LONGEST_NAME: usize = 63;
const LONGEST_VALUE: usize = 200;

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Truth(bool),
    Whole(i64),
    Number(f64),
    Text(String),
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Truth(it) => it.to_string(),
            Self::Whole(it) => it.to_string(),
            Self::Number(it) => it.to_string(),
            Self::Text(it) => it,
        }
    }
}

/// The facts in the files of this directory, in the order of the files' names, and what is wrong with them.
pub(super) fn read(folder: &Path) -> (Facts, Vec<String>) {
    let (mut facts, mut wrong) = (Facts::new(), Vec::new());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return (facts, wrong),
        Err(error) => return (facts, vec![format!("{}: {error}", folder.display())]),
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        path.is_file() && name.is_some_and(|name| !name.starts_with('.') && !name.ends_with('~'))
    });
    paths.sort_unstable();
    if paths.len() > MOST_FILES {
        wrong.push(format!(
            "{}: more than {MOST_FILES} files",
            folder.display()
        ));
        paths.truncate(MOST_FILES);
    }
    for path in paths {
        match file(&path) {
            Ok(found) => {
                for (name, value) in found {
                    if let Err(why) = add(&mut facts, name, &value) {
                        wrong.push(format!("{}: {why}", path.display()));
                    }
                }
            }
            Err(why) => {
                let why = why.lines().next().unwrap_or_default();
                wrong.push(format!("{}: {why}", path.display()));
            }
        }
    }
    (facts, wrong)
}

fn add(facts: &mut Facts, name: String, value: &str) -> Result<(), String> {
    let is_word = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.' | '/');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_word) {
        let name: String = name.chars().take(LONGEST_NAME).collect();
        return Err(format!(
            "`{}` is no name of a fact: up to {LONGEST_NAME} letters, digits, `-`, `_`, `.` and `/`",
            name.escape_debug()
        ));
    }
    let value = value.trim();
    if value.chars().count() > LONGEST_VALUE || value.chars().any(char::is_control) {
        return Err(format!(
            "{name}: more than {LONGEST_VALUE} characters, or more than a line"
        ));
    }
    if facts.len() >= MOST && !facts.contains_key(&name) {
        return Err(format!("{name}: there are {MOST} facts already"));
    }
    facts.insert(name, value.to_owned());
    Ok(())
}

fn file(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut text = String::new();
    let opened = fs::File::open(path).map_err(|error| error.to_string())?;
    let read = opened.take(MOST_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("more than {MOST_BYTES} bytes"));
    }
    let scalars: BTreeMap<String, Scalar> = match path.extension().and_then(|it| it.to_str()) {
        Some("yaml" | "yml") if text.trim().is_empty() => BTreeMap::new(),
        Some("yaml" | "yml") => serde_saphyr::from_str(&text).map_err(|error| error.to_string())?,
        Some("toml") => toml::from_str(&text).map_err(|error| error.to_string())?,
        _ => return lines(&text),
    };
    let texts = scalars
        .into_iter()
        .map(|(name, value)| (name, value.text()));
    Ok(texts.collect())
}

fn lines(text: &str) -> Result<BTreeMap<String, String>, String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.split_once('=').ok_or("a line without `=`")?;
            let value = value.trim().trim_matches('"');
            Ok((name.trim().to_owned(), value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_all_forms_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("10-site.yaml", "site: madrid\nfloor: 3\nkiosk: true\n");
        put("20-more.toml", "floor = 4\nheight = 1.5\n");
        put("30-plain", "# by hand\nline = \"a b\"\n");
        put(".hidden", "nonsense");
        put("empty.yaml", "");
        let (facts, wrong) = read(dir.path());
        assert!(wrong.is_empty(), "{wrong:?}");
        let found: Vec<_> = facts
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            found,
            [
                "floor=4",
                "height=1.5",
                "kiosk=true",
                "line=a b",
                "site=madrid"
            ]
        );
        assert!(read(&dir.path().join("none")).0.is_empty());
    }

    #[test]
    fn what_is_wrong_is_left_out_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("a.yaml", "nested: {a: b}");
        put("b.toml", "x =");
        put("c", "no equals sign");
        put(
            "d",
            &format!(
                "{} = 1\nlong = {}\nesc = \u{1b}[1m\nfine = 1\n",
                "n".repeat(64),
                "v".repeat(201)
            ),
        );
        put("e", &"#".repeat(20_000));
        std::os::unix::fs::symlink("/proc/self/mem", dir.path().join("f")).unwrap();
        let (facts, wrong) = read(dir.path());
        assert_eq!(facts.into_keys().collect::<Vec<_>>(), ["fine"]);
        assert_eq!(wrong.len(), 8, "{wrong:#?}");
        assert!(wrong.iter().all(|it| !it.contains('\n')), "{wrong:#?}");
        let many: Vec<_> = (0..100).map(|n| format!("n{n} = 1\n")).collect();
        put("z", &many.concat());
        assert_eq!(read(dir.path()).0.len(), MOST);
    }
}
