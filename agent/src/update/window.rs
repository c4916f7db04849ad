//! When updates may begin: `CRON TIMEZONE for DURATION`, such as `0 2 * * 6 Europe/Madrid for 3h`.

use std::{fmt, str::FromStr};

use cronexpr::{Crontab, MakeTimestamp};
use jiff::{SignedDuration, Timestamp};

/// Times at which updates may begin. It opens at each time of the cron expression and stays open for a while.
#[derive(Clone, Debug)]
pub struct Window {
    text: String,
    opens: Crontab,
    length: SignedDuration,
}

/// Why text is no window.
#[derive(Debug, thiserror::Error)]
pub enum InvalidWindow {
    /// The parts are not there.
    #[error(
        "`{0}` is no update window: write `CRON TIMEZONE for DURATION`, such as `0 2 * * 6 Europe/Madrid for 3h`"
    )]
    Form(String),
    /// The first part.
    #[error("the update window `{0}` opens at no time: {1}")]
    Cron(String, String),
    /// The last part.
    #[error("the update window `{0}` has no length: write it like `3h` or `90m`")]
    Length(String),
}

impl FromStr for Window {
    type Err = InvalidWindow;

    fn from_str(text: &str) -> Result<Self, InvalidWindow> {
        let (cron, length) = text
            .rsplit_once(" for ")
            .ok_or_else(|| InvalidWindow::Form(text.to_owned()))?;
        let opens = cronexpr::parse_crontab(cron.trim())
            .map_err(|error| InvalidWindow::Cron(text.to_owned(), error.to_string()))?;
        let length: SignedDuration = length
            .trim()
            .parse()
            .ok()
            .filter(SignedDuration::is_positive)
            .ok_or_else(|| InvalidWindow::Length(text.to_owned()))?;
        Ok(Self {
            text: text.to_owned(),
            opens,
            length,
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Window {
    /// The first opening after this time; `None` where there is none.
    fn after(&self, time: Timestamp) -> Option<Timestamp> {
        let opens = self.opens.find_next(MakeTimestamp(time)).ok()?;
        Some(opens.timestamp())
    }

    fn is_open(&self, now: Timestamp) -> bool {
        // It is open if it opened within its length. An opening at the very beginning of that time has just
        // closed again, and the search begins after it.
        let earliest = now.checked_sub(self.length).unwrap_or(Timestamp::MIN);
        self.after(earliest).is_some_and(|opened| opened <= now)
    }
}

/// Whether an update may begin now: one of the windows is open, or there is none at all.
pub fn is_open(windows: &[Window], now: Timestamp) -> bool {
    windows.is_empty() || windows.iter().any(|window| window.is_open(now))
}

/// When the next of them opens.
pub fn next(windows: &[Window], now: Timestamp) -> Option<Timestamp> {
    windows.iter().filter_map(|window| window.after(now)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_is_open_from_its_time_for_its_length() {
        let windows = ["0 2 * * 6 Europe/Madrid for 3h".parse::<Window>().unwrap()];
        for (time, open) in [
            ("2026-11-21T01:59:59+01:00", false),
            ("2026-11-21T02:00:00+01:00", true),
            ("2026-11-21T04:59:59+01:00", true),
            ("2026-11-21T05:00:00+01:00", false),
            ("2026-11-22T02:30:00+01:00", false),
            // In summer time.
            ("2026-07-04T02:30:00+02:00", true),
        ] {
            assert_eq!(is_open(&windows, at(time)), open, "{time}");
        }
        let opens = next(&windows, at("2026-11-21T05:00:00+01:00"));
        assert_eq!(opens, Some(at("2026-11-28T02:00:00+01:00")));
        assert!(is_open(&[], at("2026-11-21T05:00:00Z")));
    }

    #[test]
    fn any_of_several_will_do() {
        let windows = ["0 2 * * * UTC for 30m", "0 14 * * * UTC for 1h"]
            .map(|text| text.parse::<Window>().unwrap());
        assert!(is_open(&windows, at("2026-11-21T02:29:00Z")));
        assert!(is_open(&windows, at("2026-11-21T14:59:00Z")));
        assert!(!is_open(&windows, at("2026-11-21T03:00:00Z")));
        let opens = next(&windows, at("2026-11-21T03:00:00Z"));
        assert_eq!(opens, Some(at("2026-11-21T14:00:00Z")));
    }

    #[test]
    fn what_is_no_window_is_named() {
        for (text, expected) in [
            ("0 2 * * 6 Europe/Madrid", "write `CRON TIMEZONE for"),
            ("0 2 * * 6 for 3h", "opens at no time"),
            ("0 2 * * 6 Europe/Atlantis for 3h", "Europe/Atlantis"),
            ("0 2 * * 6 UTC for ever", "has no length"),
            ("0 2 * * 6 UTC for -1h", "has no length"),
        ] {
            let error = text.parse::<Window>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
