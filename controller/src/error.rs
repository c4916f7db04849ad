//! Errors for people and logs.

use std::error::Error;

/// An error and all its causes in one line, for a log whose format keeps only one text per field.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
