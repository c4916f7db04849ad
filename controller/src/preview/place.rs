//! Where in the repo a build's failure is to be mended, as far as kustomize says it.

use longshore_fleet::{Closure, Problem};

/// The problem of an overlay that does not build: at the file and line that the message names, else at the overlay.
pub(super) fn place(closure: &Closure, message: String) -> Problem {
    let Some(file) = named_file(&message) else {
        return Problem::at(&closure.overlay, message);
    };
    let mut matching = closure.files.iter().filter(|known| {
        let path = known.path.as_str();
        path == file || path.ends_with(&format!("/{file}"))
    });
    // Several files of that name: which of them is meant, kustomize does not say.
    match (matching.next(), matching.next()) {
        (Some(only), None) => Problem {
            line: named_line(&message),
            ..Problem::at(&only.path, message)
        },
        _ => Problem::at(&closure.overlay, message),
    }
}

/// `… in File: page.yaml`
fn named_file(message: &str) -> Option<&str> {
    let (_, rest) = message.rsplit_once("in File: ")?;
    let file = rest.split([' ', '\'', ':']).next()?;
    Some(file.trim_start_matches("./").trim_start_matches("../"))
}

/// `yaml: line 6: …`
fn named_line(message: &str) -> Option<u32> {
    let (_, rest) = message.split_once("yaml: line ")?;
    rest.split(':').next()?.parse().ok()
}
