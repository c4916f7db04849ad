//! Texts for people: ages, short ids, and nothing that steers a terminal.

use jiff::Timestamp;
use longshore_protocol::api::Approval;
pub(crate) use longshore_protocol::text::{printable, printable_lines};

/// How long ago `then` was: `45s`, `5m`, `3h`, `12d`, `3y`. The larger unit begins at two of it.
pub(crate) fn age(now: Timestamp, then: u64) -> String {
    let then = i64::try_from(then).unwrap_or(i64::MAX);
    let seconds = now.as_millisecond().saturating_sub(then).max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if minutes < 2 {
        format!("{seconds}s")
    } else if hours < 2 {
        format!("{minutes}m")
    } else if days < 2 {
        format!("{hours}h")
    } else if days < 730 {
        format!("{days}d")
    } else {
        format!("{}y", days / 365)
    }
}

/// Like [`age`], for an instant that may lie ahead: `in 23h`, `5m ago`.
pub(crate) fn until(now: Timestamp, then: u64) -> String {
    let now_milliseconds = u64::try_from(now.as_millisecond()).unwrap_or_default();
    if then > now_milliseconds {
        let mirrored = now_milliseconds.saturating_sub(then - now_milliseconds);
        format!("in {}", age(now, mirrored))
    } else {
        format!("{} ago", age(now, then))
    }
}

/// The first twelve characters of a commit.
pub(crate) fn short(commit: &str) -> String {
    printable(&commit.chars().take(12).collect::<String>())
}

/// What stands for nothing in a table.
pub(crate) fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

/// The word of the API.
pub(crate) fn approval(approval: Approval) -> &'static str {
    match approval {
        Approval::Automatic => "automatic",
        Approval::Manual => "manual",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_look_like_those_of_kubectl() {
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        let ago = |seconds: u64| age(now, (1_000_000_000 - seconds) * 1000);
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7199, "119m"),
            (7200, "2h"),
            (2 * 86_400, "2d"),
            (730 * 86_400, "2y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(ago(seconds), text);
        }
        assert_eq!(age(now, u64::MAX), "0s", "a clock that runs ahead");
        assert_eq!(until(now, 1_000_000_000_000 + 3 * 3_600_000), "in 3h");
        assert_eq!(until(now, 1_000_000_000_000 - 300_000), "5m ago");
        assert_eq!(until(now, u64::MAX), format!("in {}", age(now, 0)));
    }
}
