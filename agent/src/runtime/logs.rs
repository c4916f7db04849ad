//! What workloads say: opened when somebody asks, and read no faster than it is asked for.
//!
//! ```text
//! pipe or answer ─▶ lines ─┐
//! pipe or answer ─▶ lines ─┼▶ LogStream::read(most) ─▶ a chunk
//! pipe or answer ─▶ lines ─┘   (several containers: each line begins with whose it is)
//! ```
//!
//! What is not read stays where it is: a pipe that is full stops the program that fills it. Dropping a stream ends
//! everything that was started for it.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{
    FutureExt as _, StreamExt as _,
    stream::{self, BoxStream},
};
use longshore_protocol::message::{LogEnd, LogRequest};
use tokio::io::AsyncRead;
use tokio_util::codec::{Decoder, FramedRead};

/// A longer line is cut into pieces of this many bytes.
const LONGEST_LINE: usize = 4 * 1024;
/// How many containers are read together at most.
const MOST_SOURCES: usize = 32;

/// Where the logs of a runtime's workloads are to be had, beside whatever the runtime is doing.
#[async_trait]
pub trait Logs: Send + Sync + 'static {
    /// Opens the log of an object.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    async fn open(&self, request: &LogRequest) -> Result<LogStream, LogEnd>;
}

impl std::fmt::Debug for dyn Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Logs")
    }
}

/// Of a runtime that knows of none, for this reason.
#[derive(Debug)]
pub struct NoLogs(pub &'static str);

#[async_trait]
impl Logs for NoLogs {
    async fn open(&self, _request: &LogRequest) -> Result<LogStream, LogEnd> {
        Err(LogEnd::Refused(self.0.to_owned()))
    }
}

/// Lines of a log, or why it broke off.
pub type Lines = BoxStream<'static, Result<Bytes, String>>;

/// An open log.
pub struct LogStream {
    lines: Lines,
    rest: Bytes,
    broken: Option<String>,
}

impl std::fmt::Debug for LogStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStream").finish_non_exhaustive()
    }
}

impl LogStream {
    /// Of these lines.
    pub fn new(lines: Lines) -> Self {
        Self {
            // It may be asked again after its end.
            lines: lines.fuse().boxed(),
            rest: Bytes::new(),
            broken: None,
        }
    }

    /// Of these containers, each after what its lines begin with; one alone has nothing there. Where one of several is
    /// not to be had, or breaks off, that is a line, and the others go on.
    ///
    /// # Errors
    /// Where none of them is to be had, with why that is of the first.
    pub(super) fn of_all(sources: Vec<Source>) -> Result<Self, LogEnd> {
        let is_only = sources.len() == 1;
        let refused = sources
            .iter()
            .find_map(|source| source.lines.as_ref().err());
        let opened = sources.iter().any(|source| source.lines.is_ok());
        if let Some(end) = refused.filter(|_| !opened) {
            return Err(end.clone());
        }
        let lines = sources.into_iter().map(|source| {
            if is_only {
                source.lines.unwrap_or_else(|_| stream::empty().boxed())
            } else {
                source.in_company()
            }
        });
        Ok(Self::new(stream::select_all(lines).boxed()))
    }

    /// What there is, and at most so much: waits for some, and takes what more is there already. `None` at the end.
    ///
    /// # Errors
    /// Where it breaks off, with why.
    pub async fn read(&mut self, most: usize) -> Result<Option<Vec<u8>>, String> {
        let mut chunk = Vec::new();
        while chunk.len() < most {
            if self.rest.is_empty() {
                let next = if chunk.is_empty() {
                    Some(self.next().await)
                } else {
                    self.next().now_or_never()
                };
                match next {
                    Some(Some(line)) => self.rest = line,
                    Some(None) if chunk.is_empty() => {
                        return self.broken.take().map_or(Ok(None), Err);
                    }
                    _ => break,
                }
            }
            let fits = self.rest.len().min(most - chunk.len());
            chunk.extend_from_slice(&self.rest.split_to(fits));
        }
        Ok(Some(chunk))
    }

    /// The next line. An error is kept for when all lines before it are read.
    async fn next(&mut self) -> Option<Bytes> {
        if self.broken.is_some() {
            return None;
        }
        match self.lines.next().await? {
            Ok(line) => Some(line),
            Err(why) => {
                self.broken = Some(why);
                None
            }
        }
    }
}

/// The log of one container.
pub(super) struct Source {
    pub(super) prefix: String,
    pub(super) lines: Result<Lines, LogEnd>,
}

impl Source {
    /// Its lines beside those of others.
    fn in_company(self) -> Lines {
        let prefix = self.prefix;
        let told = move |why: &str| Bytes::from(format!("{prefix}the log broke off: {why}\n"));
        match self.lines {
            Ok(lines) => lines
                .map(move |line| Ok(line.unwrap_or_else(|why| told(&why))))
                .boxed(),
            Err(LogEnd::Done) => stream::empty().boxed(),
            Err(LogEnd::Refused(why) | LogEnd::Failed(why)) => {
                stream::iter([Ok(told(&why))]).boxed()
            }
        }
    }
}

/// The lines of what comes from here, each after `prefix`.
pub(super) fn lines(from: impl AsyncRead + Send + 'static, prefix: &str) -> Lines {
    let prefix = Bytes::copy_from_slice(prefix.as_bytes());
    FramedRead::new(from, ByLine { prefix })
        .map(|line| line.map_err(|error| error.to_string()))
        .boxed()
}

/// What stands before the lines of one of several sources.
pub(super) fn prefix(name: &str, several: bool) -> String {
    if several {
        format!("[{name}] ")
    } else {
        String::new()
    }
}

struct ByLine {
    prefix: Bytes,
}

impl ByLine {
    fn line(&self, line: &[u8]) -> Bytes {
        let mut whole = Vec::with_capacity(self.prefix.len() + line.len() + 1);
        whole.extend_from_slice(&self.prefix);
        whole.extend_from_slice(line);
        // What others say next begins a line of its own.
        if line.last() != Some(&b'\n') && !self.prefix.is_empty() {
            whole.push(b'\n');
        }
        whole.into()
    }
}

impl Decoder for ByLine {
    type Item = Bytes;
    type Error = std::io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Self::Error> {
        let end = buffer.iter().take(LONGEST_LINE).position(|it| *it == b'\n');
        let length = match end {
            Some(end) => end + 1,
            None if buffer.len() >= LONGEST_LINE => LONGEST_LINE,
            None => return Ok(None),
        };
        Ok(Some(self.line(&buffer.split_to(length))))
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Self::Error> {
        match self.decode(buffer)? {
            Some(line) => Ok(Some(line)),
            None if buffer.is_empty() => Ok(None),
            None => {
                let last = buffer.split();
                Ok(Some(self.line(&last)))
            }
        }
    }
}

/// The containers that are asked for, among these.
///
/// # Errors
/// Where there are none, or more than can be read together; the error lists what there is.
pub(super) fn chosen<T>(
    mut found: Vec<T>,
    name: impl Fn(&T) -> &str,
    wanted: Option<&str>,
) -> Result<Vec<T>, LogEnd> {
    let mut names: Vec<_> = found.iter().map(|it| name(it).to_owned()).collect();
    names.sort();
    names.dedup();
    let names = names.join(", ");
    if let Some(wanted) = wanted {
        found.retain(|it| name(it) == wanted);
    }
    let why = match (found.len(), wanted) {
        (0, wanted) => {
            let wanted = wanted.unwrap_or_default();
            format!("there is no container `{wanted}`; the containers are: {names}")
        }
        (1..=MOST_SOURCES, _) => return Ok(found),
        (count, None) => format!("these are {count} containers; name one of: {names}"),
        (count, Some(wanted)) => {
            format!(
                "{count} pods have a container `{wanted}`, and logs of {MOST_SOURCES} are read together at most"
            )
        }
    };
    Err(LogEnd::Refused(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut log: LogStream, most: usize) -> (Vec<String>, Option<String>) {
        let mut chunks = Vec::new();
        loop {
            match log.read(most).await {
                Ok(Some(chunk)) => {
                    assert!(!chunk.is_empty() && chunk.len() <= most);
                    chunks.push(String::from_utf8(chunk).unwrap());
                }
                Ok(None) => return (chunks, None),
                Err(why) => return (chunks, Some(why)),
            }
        }
    }

    #[tokio::test]
    async fn what_is_there_is_read_together_and_never_more_than_was_asked_for() {
        let log = || LogStream::new(lines(&b"one\ntwo\nthree"[..], ""));
        let (chunks, end) = all(log(), 100).await;
        assert_eq!((chunks.concat().as_str(), end), ("one\ntwo\nthree", None));
        let mut ended = LogStream::new(stream::unfold((), |()| async { None }).boxed());
        for _ in 0..2 {
            assert_eq!(ended.read(10).await, Ok(None));
        }
        let (chunks, _) = all(log(), 5).await;
        assert_eq!(chunks, ["one\nt", "wo\nth", "ree"]);
    }

    #[tokio::test]
    async fn lines_of_several_sources_say_whose_they_are_and_are_not_mixed() {
        let long = "x".repeat(LONGEST_LINE + 10);
        let source = |prefix: &str, text: String| Source {
            prefix: prefix.to_owned(),
            lines: Ok(lines(std::io::Cursor::new(text), prefix)),
        };
        let breaks = stream::iter([Err("gone".to_owned())]);
        let sources = vec![
            source("[a] ", format!("{long}\n")),
            source("[b] ", "short\nends without".to_owned()),
            Source {
                prefix: "[c] ".to_owned(),
                lines: Ok(breaks.boxed()),
            },
            Source {
                prefix: "[d] ".to_owned(),
                lines: Err(LogEnd::Refused("it has not begun".to_owned())),
            },
        ];
        let (chunks, end) = all(LogStream::of_all(sources).unwrap(), 8000).await;
        assert_eq!(end, None);
        let text = chunks.concat();
        let mut read: Vec<_> = text.lines().collect();
        read.sort_unstable();
        let first = format!("[a] {}", "x".repeat(LONGEST_LINE));
        let second = "[a] xxxxxxxxxx";
        let mut expected = vec![
            first.as_str(),
            second,
            "[b] ends without",
            "[b] short",
            "[c] the log broke off: gone",
            "[d] the log broke off: it has not begun",
        ];
        expected.sort_unstable();
        assert_eq!(read, expected);
    }

    #[tokio::test]
    async fn where_nothing_is_to_be_had_the_first_says_why() {
        let refused = |why: &str| Source {
            prefix: String::new(),
            lines: Err(LogEnd::Refused(why.to_owned())),
        };
        let end = LogStream::of_all(vec![refused("one"), refused("two")]).unwrap_err();
        assert_eq!(end, LogEnd::Refused("one".to_owned()));
        let end = LogStream::of_all(vec![refused("only")]).unwrap_err();
        assert_eq!(end, LogEnd::Refused("only".to_owned()));
    }

    #[tokio::test]
    async fn what_came_before_a_break_is_read() {
        let breaks = stream::iter([Ok(Bytes::from_static(b"last\n")), Err("gone".to_owned())]);
        let (chunks, end) = all(LogStream::new(breaks.boxed()), 100).await;
        assert_eq!(
            (chunks.concat().as_str(), end.as_deref()),
            ("last\n", Some("gone"))
        );
    }

    #[test]
    fn a_container_that_is_not_there_lists_those_that_are() {
        let found = vec!["web", "till", "web"];
        let chosen = |wanted| chosen(found.clone(), |it| it, wanted);
        assert_eq!(chosen(None).unwrap().len(), 3);
        assert_eq!(chosen(Some("web")).unwrap(), ["web", "web"]);
        assert_eq!(
            chosen(Some("x")).unwrap_err(),
            LogEnd::Refused("there is no container `x`; the containers are: till, web".to_owned())
        );
    }
}
