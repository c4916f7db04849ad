//! A session's logs: what operators ask for goes to the device, what comes of it to them.

use std::collections::BTreeMap;

use longshore_protocol::{
    message::{LogEnd, StreamId},
    session::control::Event,
};

use super::{End, Session};
use crate::logs::{Opening, Piece, Writer};

/// How many characters of what a device says about a log's end are handed on.
const MAX_WORDS: usize = 1000;

/// Where the logs go that are being read.
#[derive(Debug, Default)]
pub(super) struct LogWriters(BTreeMap<StreamId, Writer>);

impl Session {
    /// Asks for logs that somebody wants, grants what was read, and closes what nobody reads any more.
    pub(super) async fn tend_logs(&mut self) -> Result<(), End> {
        for opening in self.entry.openings() {
            let Opening {
                stream,
                request,
                writer,
            } = opening;
            if writer.is_gone() {
                continue;
            }
            self.logs.get_or_insert_default().0.insert(stream, writer);
            self.handle(Event::OpenLogs { stream, request }).await?;
        }
        let Some(writers) = &mut self.logs else {
            return Ok(());
        };
        let news: Vec<_> = writers
            .0
            .iter()
            .filter_map(|(stream, writer)| writer.news(*stream))
            .collect();
        writers.0.retain(|_, writer| !writer.is_gone());
        self.forget_logs();
        for event in news {
            self.handle(event).await?;
        }
        Ok(())
    }

    /// Hands on what came of a log. Nothing waits for the reader.
    pub(super) fn log_data(&mut self, stream: StreamId, data: Vec<u8>) -> Result<(), End> {
        // A log must not use up what the device may say of its own.
        self.socket.get_mut().asked_for(data.len());
        let writer = self.logs.as_ref().and_then(|logs| logs.0.get(&stream));
        let fits = writer.is_none_or(|writer| writer.put(Piece::Data(data.into())));
        // The machine counts what is on its way, so this cannot be.
        fits.then_some(())
            .ok_or_else(|| End::Protocol("more of a log than there is room for".to_owned()))
    }

    pub(super) fn logs_end(&mut self, stream: StreamId, mut end: LogEnd) {
        if let LogEnd::Refused(words) | LogEnd::Failed(words) = &mut end {
            *words = words.chars().take(MAX_WORDS).collect();
        }
        let writers = self.logs.as_mut();
        if let Some(writer) = writers.and_then(|logs| logs.0.remove(&stream)) {
            writer.put(Piece::End(end));
        }
        self.forget_logs();
    }

    /// The session is over, and so are its logs. Where nothing is said, the device has disconnected.
    pub(super) fn end_logs(&mut self, end: &End) {
        let logs = self.logs.take();
        if let (Some(logs), End::Shutdown) = (logs, end) {
            for writer in logs.0.values() {
                writer.put(Piece::End(LogEnd::Failed(
                    "the controller stops".to_owned(),
                )));
            }
        }
    }

    /// A session that has no logs holds nothing for them.
    fn forget_logs(&mut self) {
        self.logs.take_if(|logs| logs.0.is_empty());
    }
}
