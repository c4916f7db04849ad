//! Both ends of log streams: who may send how much.
//!
//! ```text
//! control                                             device
//!   │ ── OpenLogs{request, credit} ────────────────────▶ │  OpenLogs
//!   │ ◀─────────────────── LogChunk, perhaps empty ───── │  it is open
//!   │ ◀─────────────────── LogChunk, as credit allows ── │  ReadLogs, as much as may be sent
//!   │ ── GrantLogs, as the reader takes it ────────────▶ │
//!   │ ── CloseLogs, when the reader leaves ────────────▶ │
//!   │ ◀─────────────────── LogEnd, once for each ─────── │
//! ```
//!
//! A device that sends more than it was granted, or for a stream that it was not asked for, breaks the protocol. A
//! session without streams has no memory for them.

use std::collections::BTreeMap;

use super::{control, device};
use crate::message::{
    ControlMessage, DeviceMessage, LOG_WINDOW, LogEnd, LogRequest, MAX_LOG_CHUNK, MAX_LOG_STREAMS,
    StreamId, affordable, log_cost,
};

/// The controller's end.
#[derive(Debug, Default)]
pub(super) struct Demand(BTreeMap<StreamId, Asked>);

#[derive(Debug)]
struct Asked {
    /// What the device may still send.
    credit: u64,
    /// What the reader took and the device was not granted anew.
    taken: u64,
    /// Whether the reader has left.
    closing: bool,
}

impl Demand {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn open(&mut self, stream: StreamId, request: LogRequest) -> Vec<control::Effect> {
        if self.0.len() >= MAX_LOG_STREAMS {
            let why = format!("{MAX_LOG_STREAMS} logs of this device are being read already");
            return vec![control::Effect::LogsEnd {
                stream,
                end: LogEnd::Refused(why),
            }];
        }
        let asked = Asked {
            credit: LOG_WINDOW,
            taken: 0,
            closing: false,
        };
        self.0.insert(stream, asked);
        vec![control::Effect::Send(ControlMessage::OpenLogs {
            stream,
            request,
            credit: LOG_WINDOW,
        })]
    }

    /// The reader took what cost so much. It is granted anew in portions, not for each line.
    pub(super) fn taken(&mut self, stream: StreamId, cost: u64) -> Vec<control::Effect> {
        let asked = self.0.get_mut(&stream).filter(|asked| !asked.closing);
        let Some(asked) = asked else {
            return Vec::new();
        };
        asked.taken += cost;
        if asked.taken < LOG_WINDOW / 2 {
            return Vec::new();
        }
        let credit = std::mem::take(&mut asked.taken);
        asked.credit += credit;
        vec![control::Effect::Send(ControlMessage::GrantLogs {
            stream,
            credit,
        })]
    }

    pub(super) fn close(&mut self, stream: StreamId) -> Vec<control::Effect> {
        let asked = self.0.get_mut(&stream).filter(|asked| !asked.closing);
        let Some(asked) = asked else {
            return Vec::new();
        };
        asked.closing = true;
        vec![control::Effect::Send(ControlMessage::CloseLogs { stream })]
    }

    pub(super) fn chunk(&mut self, stream: StreamId, data: Vec<u8>) -> Vec<control::Effect> {
        let cost = log_cost(data.len());
        let asked = self.0.get_mut(&stream);
        let asked = asked.filter(|asked| cost <= asked.credit && data.len() <= MAX_LOG_CHUNK);
        let Some(asked) = asked else {
            let what = "a log chunk that it was not granted".to_owned();
            return vec![control::Effect::Break(what)];
        };
        asked.credit -= cost;
        if asked.closing {
            return Vec::new();
        }
        vec![control::Effect::LogData { stream, data }]
    }

    pub(super) fn ended(&mut self, stream: StreamId, end: LogEnd) -> Vec<control::Effect> {
        match self.0.remove(&stream) {
            Some(asked) if !asked.closing => vec![control::Effect::LogsEnd { stream, end }],
            _ => Vec::new(),
        }
    }
}

/// The device's end.
#[derive(Debug, Default)]
pub(super) struct Supply(BTreeMap<StreamId, Source>);

#[derive(Debug)]
struct Source {
    credit: u64,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    /// The driver was told to read, and has not answered yet.
    Reading,
}

impl Supply {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn open(
        &mut self,
        stream: StreamId,
        request: LogRequest,
        credit: u64,
    ) -> Vec<device::Effect> {
        if self.0.contains_key(&stream) {
            return Vec::new();
        }
        if self.0.len() >= MAX_LOG_STREAMS {
            let why = format!("{MAX_LOG_STREAMS} logs are being read already");
            return end(stream, LogEnd::Refused(why));
        }
        let state = State::Opening;
        self.0.insert(stream, Source { credit, state });
        vec![device::Effect::OpenLogs { stream, request }]
    }

    pub(super) fn grant(&mut self, stream: StreamId, credit: u64) -> Vec<device::Effect> {
        let Some(source) = self.0.get_mut(&stream) else {
            return Vec::new();
        };
        source.credit = source.credit.saturating_add(credit);
        source.read(stream)
    }

    pub(super) fn close(&mut self, stream: StreamId) -> Vec<device::Effect> {
        if self.0.remove(&stream).is_none() {
            return Vec::new();
        }
        let mut effects = vec![device::Effect::CloseLogs { stream }];
        effects.extend(end(stream, LogEnd::Done));
        effects
    }

    pub(super) fn opened(&mut self, stream: StreamId) -> Vec<device::Effect> {
        match self.0.get_mut(&stream) {
            Some(source) if source.state == State::Opening => source.send(stream, Vec::new()),
            _ => Vec::new(),
        }
    }

    pub(super) fn read(&mut self, stream: StreamId, data: Vec<u8>) -> Vec<device::Effect> {
        match self.0.get_mut(&stream) {
            Some(source) if source.state == State::Reading => source.send(stream, data),
            _ => Vec::new(),
        }
    }

    pub(super) fn ended(&mut self, stream: StreamId, why: LogEnd) -> Vec<device::Effect> {
        match self.0.remove(&stream) {
            Some(_) => end(stream, why),
            None => Vec::new(),
        }
    }
}

impl Source {
    /// Sends a chunk, and reads on.
    fn send(&mut self, stream: StreamId, data: Vec<u8>) -> Vec<device::Effect> {
        self.credit = self.credit.saturating_sub(log_cost(data.len()));
        self.state = State::Open;
        let chunk = DeviceMessage::LogChunk { stream, data };
        let mut effects = vec![device::Effect::Send(chunk)];
        effects.extend(self.read(stream));
        effects
    }

    /// Reads as much as may be sent, unless that is being done.
    fn read(&mut self, stream: StreamId) -> Vec<device::Effect> {
        if self.state != State::Open {
            return Vec::new();
        }
        let Some(most) = affordable(self.credit) else {
            return Vec::new();
        };
        self.state = State::Reading;
        vec![device::Effect::ReadLogs { stream, most }]
    }
}

fn end(stream: StreamId, end: LogEnd) -> Vec<device::Effect> {
    vec![device::Effect::Send(DeviceMessage::LogEnd { stream, end })]
}
