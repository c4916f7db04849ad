//! Settings that are more than a word.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A program with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Line {
    text: String,
    pub(super) words: Vec<String>,
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = shlex::split(text).ok_or("a quote is not closed")?;
        if words.is_empty() {
            return Err("a program is needed".to_owned());
        }
        let text = text.to_owned();
        Ok(Self { text, words })
    }
}

impl TryFrom<String> for Line {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Line> for String {
    fn from(line: Line) -> Self {
        line.text
    }
}

/// The name of a Secret of Kubernetes: a DNS name (RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct SecretName(pub(super) String);

impl FromStr for SecretName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_part = |part: &str| {
            let is_fit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let bytes = part.as_bytes();
            [bytes.first(), bytes.last()]
                .iter()
                .all(|end| end.is_some_and(|byte| is_fit(*byte)))
                && bytes.iter().all(|byte| is_fit(*byte) || *byte == b'-')
        };
        if text.len() > 253 || !text.split('.').all(is_part) {
            return Err(format!(
                "`{text}` is no name of a Secret: lower-case letters, digits, `-` and `.`"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for SecretName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A time that something takes: `90s`, `5m`, `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Period(pub(super) Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no time such as `90s`, `5m` or `1h 30m`");
        let duration: jiff::SignedDuration = text.parse().map_err(|_detail| wrong())?;
        match Duration::try_from(duration) {
            Ok(duration) if !duration.is_zero() => Ok(Self(duration)),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = jiff::SignedDuration::try_from(self.0).unwrap_or(jiff::SignedDuration::MAX);
        write!(f, "{signed:#}")
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_as_a_shell_would() {
        let line: Line = "/opt/my\\ own --a='b c' -".parse().unwrap();
        assert_eq!(line.words, ["/opt/my own", "--a=b c", "-"]);
        for wrong in ["", "  ", "a 'b"] {
            wrong.parse::<Line>().unwrap_err();
        }
    }

    #[test]
    fn periods_read_and_print() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h 30m", 5400)] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.0, Duration::from_secs(seconds));
            assert_eq!(period.to_string().parse(), Ok(period));
        }
        for wrong in ["", "5", "-5m", "0s", "often"] {
            wrong.parse::<Period>().unwrap_err();
        }
    }
}
