//! What a host says that wants fewer calls: `429`, or `503`, and `Retry-After` (RFC 9110, section 10.2.3).
//!
//! Git prints the status and keeps `Retry-After` to itself. So every `git` runs with libcurl's trace on stderr,
//! without the data, and with Git's redaction of credentials. The trace is read here and goes nowhere else:
//! [`split`] takes it out of what the program printed. For remotes that are not reached over HTTP there is none.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};

/// Makes Git print the heads of its calls to stderr (git(1): `GIT_TRACE_CURL`).
pub(super) const TRACE: [(&str, &str); 3] = [
    ("GIT_TRACE_CURL", "2"),
    ("GIT_TRACE_CURL_NO_DATA", "1"),
    ("GIT_TRACE_REDACT", "1"),
];

/// The longest that a host is left alone because it said so.
const LONGEST: Duration = Duration::from_hours(1);

/// A host wants fewer calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Throttled {
    /// When to come back, where the host said so.
    pub(super) retry_after: Option<Duration>,
}

/// Divides what Git printed: its messages, and whether the last answer of the host was that it wants fewer calls.
pub(super) fn split(stderr: &str, now_ms: u64) -> (Vec<&str>, Option<Throttled>) {
    let mut messages = Vec::new();
    let mut throttled = None;
    for line in stderr.lines() {
        let Some(traced) = trace_of(line) else {
            messages.push(line);
            continue;
        };
        let Some(header) = traced.strip_prefix("<= Recv header: ") else {
            continue;
        };
        if header.starts_with("HTTP/") {
            let status = header.split_ascii_whitespace().nth(1);
            let is_throttling = matches!(status, Some("429" | "503"));
            throttled = is_throttling.then_some(Throttled { retry_after: None });
        } else if let Some(throttled) = &mut throttled
            && let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("retry-after")
        {
            throttled.retry_after = pause(value.trim(), now_ms);
        }
    }
    (messages, throttled)
}

/// What a line of the trace says: `23:56:48.919989 http.c:872              <= Recv header: …`.
fn trace_of(line: &str) -> Option<&str> {
    let (time, rest) = line.split_at_checked(15)?;
    let is_time = time
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'.'));
    let said = rest.strip_prefix(" http.c:").filter(|_| is_time)?;
    Some(said.trim_start_matches(|char: char| char.is_ascii_digit() || char == ' '))
}

/// `Retry-After`: seconds, or the date until which to wait. Bounded, for the host may be anybody's.
fn pause(value: &str, now_ms: u64) -> Option<Duration> {
    let pause = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let date: Timestamp = DateTimeParser::new().parse_timestamp(value).ok()?;
        let until = u64::try_from(date.as_millisecond()).unwrap_or(0);
        Duration::from_millis(until.saturating_sub(now_ms))
    };
    Some(pause.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn said(status: &str, headers: &[&str]) -> String {
        let received = |header: &&str| {
            format!("23:56:48.919998 http.c:872              <= Recv header: {header}\n")
        };
        let headers: String = headers.iter().map(received).collect();
        format!(
            "23:56:48.893101 http.c:872              => Send header: retry-after: 7\n\
             23:56:48.919989 http.c:860              <= Recv header, 0000000032 bytes (0x00000020)\n\
             23:56:48.919989 http.c:872              <= Recv header: HTTP/1.1 {status}\n\
             {headers}\
             fatal: unable to access 'https://git.example/': The requested URL returned error\n"
        )
    }

    #[test]
    fn the_trace_is_taken_out_of_the_messages() {
        let text = said("200 OK", &["Server: example"]);
        let (messages, throttled) = split(&text, NOW);
        assert_eq!(
            messages,
            ["fatal: unable to access 'https://git.example/': The requested URL returned error"]
        );
        assert_eq!(throttled, None);
        // What only looks like a trace is a message, whatever the bytes.
        for line in ["remote: 23:56:48.919989 http.c:872 <= x", "é", "23:56", ""] {
            assert_eq!(split(line, NOW).0, line.lines().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_host_says_when_to_come_back() {
        let cases: [(&str, &[&str], Option<u64>); 6] = [
            ("429 Too Many Requests", &["Retry-After: 30"], Some(30)),
            ("503 Service Unavailable", &["retry-after:5"], Some(5)),
            ("429", &[], None),
            ("429", &["Retry-After: soon"], None),
            // Until 120 s from now, until long ago, and for longer than anybody should be believed.
            (
                "429",
                &["Retry-After: Tue, 14 Nov 2023 22:15:20 GMT"],
                Some(120),
            ),
            ("429", &["Retry-After: 99999999999"], Some(3600)),
        ];
        for (status, headers, seconds) in cases {
            let (_, throttled) = split(&said(status, headers), NOW);
            let expected = Throttled {
                retry_after: seconds.map(Duration::from_secs),
            };
            assert_eq!(throttled, Some(expected), "{status} {headers:?}");
        }
        let past = said("429", &["Retry-After: Tue, 14 Nov 2000 22:15:20 GMT"]);
        assert_eq!(
            split(&past, NOW).1.unwrap().retry_after,
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn the_last_answer_counts() {
        let text = said("429", &["Retry-After: 30"]) + &said("401 Unauthorized", &[]);
        assert_eq!(split(&text, NOW).1, None);
        let text = said("401", &["Retry-After: 30"]) + &said("429", &[]);
        assert_eq!(split(&text, NOW).1, Some(Throttled { retry_after: None }));
    }
}
