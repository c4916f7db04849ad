//! A log goes over the link as it is granted, and holds up nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};

use longshore_agent::runtime::logs::{Lines, LogStream};
use longshore_protocol::message::{LOGS, LogEnd, LogRequest, StreamId};

use super::*;

/// A log without an end, of which is known how much was read of it, and how often it is open.
#[derive(Default)]
struct Endless {
    read: AtomicUsize,
    open: AtomicUsize,
}

/// Open until it is dropped.
struct Opened(Arc<Endless>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is granted at a time.
const CREDIT: u64 = 20_000;
const LINE: &[u8] = b"a line of a log without an end\n";

struct Source(Arc<Endless>);

#[async_trait::async_trait]
impl Logs for Source {
    async fn open(&self, request: &LogRequest) -> Result<LogStream, LogEnd> {
        if request.container.is_some() {
            return Err(LogEnd::Refused("there is no such container".to_owned()));
        }
        self.0.open.fetch_add(1, Ordering::SeqCst);
        let lines = futures_util::stream::unfold(Opened(self.0.clone()), |opened| async {
            opened.0.read.fetch_add(LINE.len(), Ordering::SeqCst);
            Some((Ok(LINE.into()), opened))
        });
        let lines: Lines = Box::pin(lines);
        Ok(LogStream::new(lines))
    }
}

fn open_logs(stream: StreamId, credit: u64) -> ControlMessage {
    ControlMessage::OpenLogs {
        stream,
        request: LogRequest {
            object: Some(object("a", "1").key().clone()),
            follow: true,
            ..LogRequest::default()
        },
        credit,
    }
}

#[tokio::test]
async fn a_log_is_read_as_it_is_granted_and_ends_with_its_reader() {
    let endless = Arc::new(Endless::default());
    let pki = Arc::new(Pki::new());
    let edge = Edge::start(pki.clone(), device(), 10_000, Behavior::default()).await;
    let agent = Agent::start_with(
        Network::default(),
        tempfile::tempdir().unwrap(),
        identity(&pki, &edge, Life::USUAL),
        SHORT,
        Arc::new(Source(endless.clone())),
    );
    let mut seen = edge.seen.clone();
    until(&mut seen, "a session", |seen| {
        !seen.reports.is_empty() || !seen.hellos.is_empty()
    })
    .await;
    assert!(
        seen.borrow().hellos[0]
            .capabilities
            .iter()
            .any(|it| it == LOGS)
    );
    let came = |seen: &Seen, stream| seen.logs.get(&stream).map_or(0, |(text, _)| text.len());
    edge.push(open_logs(1, CREDIT));
    // All of the credit is used: what is left would not pay for a chunk of one byte.
    until(&mut seen, "what was granted", |seen| came(seen, 1) > 19_000).await;
    // Everything else goes its way while nobody grants more.
    let held = edge.desire(1, &[object("a", "1")]);
    until(&mut seen, "a set applied", |seen| {
        seen.reports
            .iter()
            .any(|it| it.held == held && it.phase == Phase::Applied)
    })
    .await;
    assert!(came(&seen.borrow(), 1) < 20_000);
    let read = endless.read.load(Ordering::SeqCst);
    assert!(read < 20_000 + LINE.len(), "{read} bytes were read of it");
    edge.push(ControlMessage::GrantLogs {
        stream: 1,
        credit: CREDIT,
    });
    until(&mut seen, "what was granted later", |seen| {
        came(seen, 1) > 38_000
    })
    .await;
    let whole = seen.borrow().logs[&1].0.clone();
    assert!(whole.chunks(LINE.len()).all(|line| LINE.starts_with(line)));

    // One that cannot be opened says why; the other one goes on.
    let ControlMessage::OpenLogs { mut request, .. } = open_logs(2, CREDIT) else {
        unreachable!("it is what was made")
    };
    request.container = Some("x".to_owned());
    edge.push(ControlMessage::OpenLogs {
        stream: 2,
        request,
        credit: CREDIT,
    });
    let end = |seen: &Seen, stream| seen.logs.get(&stream).and_then(|(_, end)| end.clone());
    until(&mut seen, "the refusal", |seen| {
        end(seen, 2) == Some(LogEnd::Refused("there is no such container".to_owned()))
    })
    .await;
    assert_eq!(endless.open.load(Ordering::SeqCst), 1);

    // The reader leaves.
    edge.push(ControlMessage::CloseLogs { stream: 1 });
    until(&mut seen, "the end", |seen| {
        end(seen, 1) == Some(LogEnd::Done)
    })
    .await;
    until_true("its source is closed", || {
        endless.open.load(Ordering::SeqCst) == 0
    })
    .await;
    // The connection breaks.
    edge.push(open_logs(3, CREDIT));
    until(&mut seen, "another log", |seen| came(seen, 3) > 0).await;
    edge.push(ControlMessage::Reconnect { after_ms: 0 });
    until_true("its source is closed", || {
        endless.open.load(Ordering::SeqCst) == 0
    })
    .await;
    agent.stop().await;
}
