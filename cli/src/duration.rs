//! Lengths of time, as people give them.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

/// `90m`, `24h`, `7d`, `2 weeks`: days of 24 hours.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let hint = "give a length of time such as `90m`, `24h` or `7d`";
    let span: Span = text.parse().map_err(|_detail| hint.to_owned())?;
    let length = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_detail| hint.to_owned())?;
    let length = Duration::try_from(length).map_err(|_negative| hint.to_owned())?;
    if length.as_secs() == 0 {
        Err("must be at least one second".to_owned())
    } else {
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("24h", 86_400),
            ("7d", 604_800),
            ("90m", 5400),
            ("2w", 1_209_600),
            ("1h 30m", 5400),
        ];
        for (text, seconds) in cases {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "24", "soon", "-1h", "0s", "1 month"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
