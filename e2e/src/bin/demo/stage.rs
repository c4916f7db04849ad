//! Where the demo plays: stdout, in color where that is a terminal.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// The one who shows.
pub(crate) struct Stage {
    out: io::Stdout,
    color: bool,
    steps: usize,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            out: io::stdout(),
            color: io::stdout().is_terminal() && !no_color,
            steps: 0,
        }
    }

    pub(crate) fn line(&self, text: &str) -> Result<()> {
        let mut out = self.out.lock();
        writeln!(out, "{text}").context("write to stdout")?;
        out.flush().context("write to stdout")
    }

    pub(crate) fn paint(&self, code: &str, text: &str) -> String {
        if self.color {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    /// A command that is only suggested.
    pub(crate) fn suggest(&self, command: &str) -> Result<()> {
        self.line(&format!(
            "    {} {}",
            self.dim("$"),
            self.paint("33", command)
        ))
    }

    pub(crate) fn title(&self, text: &str) -> Result<()> {
        self.line("")?;
        self.line(&self.paint("1", text))
    }

    pub(crate) fn step(&mut self, text: &str) -> Result<()> {
        self.steps += 1;
        self.line("")?;
        let number = self.paint("1;36", &format!("{:>2}", self.steps));
        self.line(&format!(" {number}  {}", self.paint("1", text)))
    }

    pub(crate) fn fact(&self, name: &str, value: &str) -> Result<()> {
        self.line(&format!(
            "      {} {value}",
            self.dim(&format!("{name:<13}"))
        ))
    }

    pub(crate) fn time(&self, what: &str, took: Duration) -> Result<()> {
        let took = self.paint("1;32", &format!("{} ms", took.as_millis()));
        self.line(&format!("    {} {what}: {took}", self.green("✓")))
    }

    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let words: Vec<_> = arguments.iter().map(|word| quoted(word)).collect();
        let text = format!("{program} {}", words.join(" "));
        self.line(&format!(
            "    {} {}",
            self.dim("$"),
            self.paint("33", &text)
        ))
    }

    pub(crate) fn quote(&self, text: &str) -> Result<()> {
        self.line(&format!("      {text}"))
    }

    pub(crate) fn diff(&self, text: &str) -> Result<()> {
        let shown = text.lines().filter(|line| {
            !["diff --git", "index ", "new file", "--- ", "+++ /dev/null"]
                .iter()
                .any(|prefix| line.starts_with(prefix))
        });
        for line in shown {
            let painted = match line.as_bytes().first() {
                Some(b'+') if line.starts_with("+++ ") => self.dim(line),
                Some(b'+') => self.green(line),
                Some(b'-') => self.paint("31", line),
                _ => self.dim(line),
            };
            self.quote(&painted)?;
        }
        Ok(())
    }
}

fn quoted(word: &str) -> String {
    if word.contains(' ') {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}
