//! The logs that somebody reads over this connection. Each has a task that reads only when the session says so; it
//! ends, with all that was started for it, when the log is closed or the connection is.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longshore_protocol::{
    message::{LogEnd, LogRequest, StreamId},
    session::device::Event,
};
use tokio::{sync::mpsc, time};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    logs::own,
    runtime::logs::{LogStream, Logs},
};

/// Between two chunks that are not full: what trickles is sent together.
const GATHERING: Duration = Duration::from_millis(50);

/// The open logs.
#[derive(Debug)]
pub(super) struct OpenLogs {
    sources: Arc<dyn Logs>,
    open: BTreeMap<StreamId, OpenLog>,
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
}

#[derive(Debug)]
struct OpenLog {
    reads: mpsc::Sender<usize>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct News {
    stream: StreamId,
    what: What,
}

#[derive(Debug)]
enum What {
    Opened,
    Read(Vec<u8>),
    Ended(LogEnd),
}

impl OpenLogs {
    pub(super) fn of(sources: Arc<dyn Logs>) -> Self {
        Self {
            sources,
            open: BTreeMap::new(),
            news: mpsc::channel(1),
        }
    }

    pub(super) fn open(&mut self, stream: StreamId, request: LogRequest) {
        let (reads, wanted) = mpsc::channel(1);
        let serving = Serving {
            stream,
            news: self.news.0.clone(),
            wanted,
        };
        let task = tokio::spawn(serving.run(self.sources.clone(), request));
        let open = OpenLog {
            reads,
            _task: AbortOnDropHandle::new(task),
        };
        self.open.insert(stream, open);
    }

    /// Reads at most so much. There is one read at a time.
    pub(super) fn read(&self, stream: StreamId, most: usize) {
        if let Some(log) = self.open.get(&stream)
            && log.reads.try_send(most).is_err()
        {
            tracing::debug!(stream, "a log ended before it was read");
        }
    }

    pub(super) fn close(&mut self, stream: StreamId) {
        self.open.remove(&stream);
    }

    /// What came of one of them.
    pub(super) async fn news(&mut self) -> Event {
        // It never ends, for we hold a sender ourselves.
        let Some(News { stream, what }) = self.news.1.recv().await else {
            return std::future::pending().await;
        };
        match what {
            What::Opened => Event::LogsOpened { stream },
            What::Read(data) => Event::LogsRead { stream, data },
            What::Ended(end) => {
                self.open.remove(&stream);
                Event::LogsEnded { stream, end }
            }
        }
    }
}

struct Serving {
    stream: StreamId,
    news: mpsc::Sender<News>,
    wanted: mpsc::Receiver<usize>,
}

impl Serving {
    async fn run(mut self, sources: Arc<dyn Logs>, request: LogRequest) {
        let opened = match &request.object {
            Some(_) => sources.open(&request).await,
            None => Ok(own(&request)),
        };
        let end = match opened {
            Ok(log) => match self.serve(log).await {
                Some(end) => end,
                None => return,
            },
            Err(end) => end,
        };
        self.tell(What::Ended(end)).await;
    }

    /// Reads as it is asked to, until the log ends; `None` where nobody asks any more.
    async fn serve(&mut self, mut log: LogStream) -> Option<LogEnd> {
        self.tell(What::Opened).await?;
        loop {
            let most = self.wanted.recv().await?;
            match log.read(most).await {
                Ok(Some(data)) => {
                    let is_full = data.len() == most;
                    self.tell(What::Read(data)).await?;
                    if !is_full {
                        time::sleep(GATHERING).await;
                    }
                }
                Ok(None) => return Some(LogEnd::Done),
                Err(why) => return Some(LogEnd::Failed(why)),
            }
        }
    }

    async fn tell(&self, what: What) -> Option<()> {
        let stream = self.stream;
        self.news.send(News { stream, what }).await.ok()
    }
}
