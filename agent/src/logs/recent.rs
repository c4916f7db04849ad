//! The last lines that the agent said, in memory, for those who ask over the connection.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use longshore_protocol::message::LogRequest;
use tokio::sync::watch;

use crate::{clock::Wall, runtime::logs::LogStream};

/// How much is kept, in bytes.
const KEPT: usize = 64 * 1024;
/// How much of one line is.
const LONGEST: usize = 4 * 1024;

/// The last lines of a log.
#[derive(Debug)]
pub struct Recent {
    lines: Mutex<Lines>,
    /// How many lines there were.
    grown: watch::Sender<u64>,
    wall: Wall,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<Line>,
    bytes: usize,
    /// How many there were, those included that are not kept any more.
    count: u64,
}

#[derive(Debug)]
struct Line {
    /// In milliseconds since the Unix epoch.
    at: u64,
    text: Bytes,
}

impl Recent {
    /// Nothing was said yet.
    pub fn new(wall: Wall) -> Self {
        Self {
            lines: Mutex::default(),
            grown: watch::Sender::new(0),
            wall,
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: &[u8]) {
        let mut text = line.get(..LONGEST).unwrap_or(line).to_vec();
        if text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
        let count = self.lines().add(Line {
            at: (self.wall)(),
            text: text.into(),
        });
        self.grown.send_replace(count);
    }

    /// What was said of late, and is said from now on where that is asked for.
    pub fn read(&'static self, request: &LogRequest) -> LogStream {
        let from = self.lines().beginning(request, (self.wall)());
        let grown = request.follow.then(|| self.grown.subscribe());
        let lines = stream::unfold((from, grown), move |(from, mut grown)| async move {
            loop {
                if let Some(grown) = &mut grown {
                    grown.mark_unchanged();
                }
                let line = self.lines().get(from);
                if let Some((line, next)) = line {
                    return Some((Ok(line), (next, grown)));
                }
                // It cannot end before the process does.
                grown.as_mut()?.changed().await.ok()?;
            }
        });
        LogStream::new(lines.boxed())
    }
}

impl Lines {
    fn add(&mut self, line: Line) -> u64 {
        self.bytes += line.text.len();
        self.kept.push_back(line);
        self.count += 1;
        while self.bytes > KEPT
            && let Some(oldest) = self.kept.pop_front()
        {
            self.bytes -= oldest.text.len();
        }
        self.count
    }

    /// The number of the first line that is kept.
    fn first(&self) -> u64 {
        self.count - self.kept.len() as u64
    }

    /// The number of the first line that is asked for.
    fn beginning(&self, request: &LogRequest, now: u64) -> u64 {
        let tail = request
            .tail
            .map_or(0, |lines| self.count.saturating_sub(lines));
        let since = request
            .since
            .map(|seconds| now.saturating_sub(seconds.saturating_mul(1000)));
        let older = since.map_or(0, |since| {
            self.kept.iter().take_while(|line| line.at < since).count()
        });
        tail.max(self.first() + older as u64)
    }

    /// The line of this number, and the number of the next one. Where it is not kept any more, that is said in its
    /// place.
    fn get(&self, number: u64) -> Option<(Bytes, u64)> {
        let first = self.first();
        if number < first {
            let lost = format!(
                "... {} lines were said faster than they were read\n",
                first - number
            );
            return Some((lost.into(), first));
        }
        let line = self.kept.get(usize::try_from(number - first).ok()?)?;
        Some((line.text.clone(), number + 1))
    }
}

/// Each write is a line: so does `tracing_subscriber` write events.
impl io::Write for &Recent {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.say(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn recent() -> &'static Recent {
        Box::leak(Box::new(Recent::new(crate::clock::system)))
    }

    fn say(recent: &Recent, lines: impl IntoIterator<Item = u32>) {
        for line in lines {
            recent.say(format!("line {line}\n").as_bytes());
        }
    }

    /// What can be read at once, and whether the log has ended.
    fn read(log: &mut LogStream) -> (String, bool) {
        let mut text = Vec::new();
        loop {
            match log.read(1000).now_or_never() {
                Some(Ok(Some(chunk))) => text.extend(chunk),
                Some(Ok(None)) => return (String::from_utf8(text).unwrap(), true),
                Some(Err(why)) => panic!("{why}"),
                None => return (String::from_utf8(text).unwrap(), false),
            }
        }
    }

    #[test]
    fn the_last_lines_are_read_and_those_that_follow() {
        let recent = recent();
        say(recent, 0..5);
        let mut all = recent.read(&LogRequest::default());
        let (text, ended) = read(&mut all);
        assert_eq!((text.lines().count(), ended), (5, true));
        let mut follows = recent.read(&LogRequest {
            follow: true,
            tail: Some(2),
            ..LogRequest::default()
        });
        assert_eq!(read(&mut follows), ("line 3\nline 4\n".to_owned(), false));
        say(recent, 5..6);
        assert_eq!(read(&mut follows), ("line 5\n".to_owned(), false));
        let mut none = recent.read(&LogRequest {
            tail: Some(0),
            ..LogRequest::default()
        });
        assert_eq!(read(&mut none), (String::new(), true));
    }

    #[test]
    fn what_is_older_than_asked_for_is_left_out() {
        let mut lines = Lines::default();
        for at in [1000, 2000, 3000] {
            lines.add(Line {
                at,
                text: Bytes::from_static(b"\n"),
            });
        }
        let since = |seconds| LogRequest {
            since: Some(seconds),
            ..LogRequest::default()
        };
        assert_eq!(lines.beginning(&since(1), 3500), 2);
        assert_eq!(lines.beginning(&since(100), 3500), 0);
        assert_eq!(lines.beginning(&since(0), 3500), 3);
    }

    #[test]
    fn memory_has_a_bound_and_a_slow_reader_is_told_what_it_missed() {
        let recent = recent();
        let mut slow = recent.read(&LogRequest {
            follow: true,
            ..LogRequest::default()
        });
        recent.say(&vec![b'x'; 10 * LONGEST]);
        assert_eq!(recent.lines().bytes, LONGEST + 1);
        say(recent, 0..20_000);
        assert!(recent.lines().bytes <= KEPT);
        let (text, _) = read(&mut slow);
        assert!(text.starts_with("... 1"), "{}", &text[..60]);
        assert!(text.ends_with("line 19999\n"));
        assert!(text.len() <= KEPT + 100);
    }
}
