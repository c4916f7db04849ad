//! What a forge's answer means where it is not what was asked for; the same for all of them.

use http::StatusCode;

use super::{ForgeError, client::CallError};

/// How many characters of a forge's words are repeated.
const MAX_MESSAGE: usize = 300;

/// An answer that is no success.
pub(super) fn refused(
    forge: &str,
    operation: &'static str,
    status: StatusCode,
    message: &str,
) -> ForgeError {
    let forge = forge.to_owned();
    let message = words(message, status);
    match status {
        StatusCode::UNAUTHORIZED => ForgeError::Unauthorized { forge, message },
        StatusCode::FORBIDDEN => ForgeError::Forbidden {
            forge,
            operation,
            message,
        },
        StatusCode::NOT_FOUND | StatusCode::GONE => ForgeError::NotFound { forge, operation },
        status if status.is_redirection() => ForgeError::Refused {
            forge,
            operation,
            message: "the repo is elsewhere now; connect the fleet again with its new name"
                .to_owned(),
        },
        status if status.is_client_error() => ForgeError::Refused {
            forge,
            operation,
            message,
        },
        status => ForgeError::Unavailable {
            forge,
            operation,
            source: format!("it answers {status}: {message}").into(),
        },
    }
}

/// No answer.
pub(super) fn unanswered(forge: &str, operation: &'static str, error: CallError) -> ForgeError {
    let forge = forge.to_owned();
    match error {
        CallError::Throttled(retry_after) => ForgeError::RateLimited { forge, retry_after },
        other => ForgeError::Unavailable {
            forge,
            operation,
            source: Box::new(other),
        },
    }
}

/// An answer that says something else than the host's documentation promises.
pub(super) fn misunderstood(
    forge: &str,
    operation: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> ForgeError {
    ForgeError::Unavailable {
        forge: forge.to_owned(),
        operation,
        source: Box::new(error),
    }
}

/// All three hosts say "already exists" of a second pull request from one branch, with `409` or `422`.
pub(super) fn or_exists(error: ForgeError) -> ForgeError {
    match error {
        ForgeError::Refused { forge, message, .. } if message.contains("already exists") => {
            ForgeError::Exists { forge, message }
        }
        other => other,
    }
}

/// A host's words, cut, and without what a terminal would take for more than words.
fn words(message: &str, status: StatusCode) -> String {
    let words: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_MESSAGE)
        .collect();
    match words.trim() {
        "" => status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned(),
        words => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_cut_and_printable() {
        let message = format!("a\u{1b}[2J\n{}", "x".repeat(1000));
        let error = refused("git.example/a/b", "push", StatusCode::BAD_REQUEST, &message);
        let text = error.to_string();
        assert!(
            text.len() < 400 && !text.contains(char::is_control),
            "{text}"
        );
    }

    #[test]
    fn a_second_pull_request_is_told_from_other_refusals() {
        let of = |status, message| or_exists(refused("f", "open", status, message));
        let exists = of(
            StatusCode::UNPROCESSABLE_ENTITY,
            "A pull request already exists for a:b.",
        );
        assert!(matches!(exists, ForgeError::Exists { .. }));
        let other = of(
            StatusCode::UNPROCESSABLE_ENTITY,
            "No commits between main and b",
        );
        assert!(matches!(other, ForgeError::Refused { .. }));
    }
}
