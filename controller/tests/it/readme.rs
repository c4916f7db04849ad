//! What the README shows is what the program writes: both come from the same snapshots.

use std::{fs, path::Path};

const BEGIN: &str = "<!-- shown: ";
const END: &str = "<!-- end -->";

/// The README with each shown snapshot put in its place anew, as a quotation.
fn with_snapshots(root: &Path, readme: &str) -> (String, usize) {
    let (mut text, mut shown, mut skipping) = (String::new(), 0, false);
    for line in readme.lines() {
        if line == END {
            skipping = false;
        }
        if !skipping {
            text.push_str(line);
            text.push('\n');
        }
        if let Some(file) = line
            .strip_prefix(BEGIN)
            .and_then(|it| it.strip_suffix(" -->"))
        {
            let snapshot = fs::read_to_string(root.join(file)).unwrap();
            let content = snapshot.splitn(3, "---\n").nth(2).unwrap();
            for line in content.trim_end().lines() {
                text.push_str(format!("> {line}").trim_end());
                text.push('\n');
            }
            (shown, skipping) = (shown + 1, true);
        }
    }
    (text, shown)
}

/// With `LONGSHORE_UPDATE_README=1` it brings the README up to date instead of complaining.
#[test]
fn the_readme_shows_what_is_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let file = root.join("README.md");
    let readme = fs::read_to_string(&file).unwrap();
    let (now, shown) = with_snapshots(root, &readme);
    assert_eq!(shown, 2, "an enrollment and a preview");
    if std::env::var_os("LONGSHORE_UPDATE_README").is_some() {
        fs::write(&file, &now).unwrap();
    } else {
        assert!(
            readme == now,
            "README.md shows something else than the snapshots; \
             `LONGSHORE_UPDATE_README=1 cargo test -p longshore-controller readme` brings it up to date"
        );
    }
}
