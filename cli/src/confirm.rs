//! Asking before something that cannot be undone.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::{Error, output};

/// Whether to go on: yes with `--yes`, else what the person at the terminal says.
///
/// # Errors
/// Where there is neither `--yes` nor a terminal: a script says what it means.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<bool, Error> {
    if yes {
        return Ok(true);
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(
            Error::usage(format!("{question} There is no terminal to ask at"))
                .hint("add `--yes` to do it without being asked"),
        );
    }
    let agreed = ask(question, io::stdin().lock(), io::stderr().lock())
        .map_err(|error| Error::internal("reading the answer failed").because(error))?;
    if !agreed {
        output::say("nothing was changed");
    }
    Ok(agreed)
}

/// Anything but `y` or `yes` is no, and so is the end of the input.
fn ask(question: &str, mut input: impl BufRead, mut output: impl Write) -> io::Result<bool> {
    write!(output, "{question} [y/N] ")?;
    output.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (answer, agreed) in [
            ("y\n", true),
            ("YES\n", true),
            ("", false),
            ("\n", false),
            ("n\n", false),
            ("yep\n", false),
        ] {
            let mut said = Vec::new();
            assert_eq!(
                ask("Remove it?", answer.as_bytes(), &mut said).unwrap(),
                agreed,
                "{answer:?}"
            );
            assert_eq!(said, b"Remove it? [y/N] ");
        }
    }
}
