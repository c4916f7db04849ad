//! Errors that say what to do next, and the exit codes.

use std::{error::Error as StdError, fmt, process::ExitCode};

use crate::text;

/// How the program ends. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; or: no differences.
    Success = 0,
    /// Differences; or a question was answered with no.
    Negative = 1,
    /// The command, the settings or the fleet repo is wrong.
    Usage = 2,
    /// The controller refused (an HTTP 4xx).
    Refused = 3,
    /// The controller could not be reached, or not trusted.
    Unreachable = 4,
    /// The controller failed (an HTTP 5xx), or this program did.
    Internal = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What went wrong, as which exit code it counts, and what to do next.
#[derive(Debug)]
pub struct Error {
    exit: Exit,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    hints: Vec<String>,
    is_misdirected: bool,
}

impl Error {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            source: None,
            hints: Vec::new(),
            is_misdirected: false,
        }
    }

    /// The command, the settings or the fleet repo is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The controller refused.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, message)
    }

    /// The controller could not be reached.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, message)
    }

    /// The controller failed, or this program did.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Exit::Internal, message)
    }

    /// Another one of several servers behind the same address can do it.
    pub(crate) fn misdirected(mut self) -> Self {
        self.is_misdirected = true;
        self
    }

    /// Whether another one of several servers behind the same address can do it.
    pub(crate) fn is_misdirected(&self) -> bool {
        self.is_misdirected
    }

    /// With what caused it.
    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// With one more thing to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The exit code it counts as.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The whole of it for a terminal: the message, what caused it, what to do next.
    pub fn report(&self) -> String {
        let mut lines = vec![format!("error: {}", text::printable_lines(&self.message))];
        let mut source = self.source();
        while let Some(cause) = source {
            lines.push(format!(
                "  caused by: {}",
                text::printable_lines(&cause.to_string())
            ));
            source = cause.source();
        }
        lines.extend(
            self.hints
                .iter()
                .map(|hint| format!("hint: {}", text::printable(hint))),
        );
        lines.join("\n")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_cause_and_next_step() {
        let error = Error::unreachable("the controller did not answer")
            .because(std::io::Error::other("connection refused"))
            .hint("start it with `longshore-controller`");
        assert_eq!(
            error.report(),
            "error: the controller did not answer\n  caused by: connection refused\n\
             hint: start it with `longshore-controller`"
        );
        assert_eq!(error.exit() as u8, 4);
    }

    #[test]
    fn a_report_cannot_steer_the_terminal() {
        let report = Error::refused("bad \u{1b}[31mred").report();
        assert_eq!(report, "error: bad \\u{1b}[31mred");
    }
}
