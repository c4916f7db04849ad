//! Logs on demand: what is asked for, and how much may be on its way.
//!
//! The controller grants credit as whoever asked takes what came, and the device sends no more than it was granted. So
//! a slow reader slows its log down, and nothing else.

use crate::ObjectKey;

/// What an agent says in [`Hello::capabilities`](super::Hello::capabilities) that can be asked for logs.
pub const LOGS: &str = "logs";
/// The most bytes in one chunk: so little that what else there is to say does not wait for long.
pub const MAX_LOG_CHUNK: usize = 8 * 1024;
/// How much the controller grants ahead, all in all: what it may have to hold for one stream.
pub const LOG_WINDOW: u64 = 64 * 1024;
/// How many log streams a device has at a time.
pub const MAX_LOG_STREAMS: usize = 8;
/// What a chunk costs besides its bytes, so that many small ones are bounded as well.
const CHUNK_OVERHEAD: u64 = 64;

/// How both ends of a session call one log stream.
pub type StreamId = u64;

/// Which log, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// The object whose log it is; the agent itself where there is none.
    pub object: Option<ObjectKey>,
    /// One of the object's containers; all where there is none.
    pub container: Option<String>,
    /// Whether it goes on with what is logged later.
    pub follow: bool,
    /// Only so many of the last lines.
    pub tail: Option<u64>,
    /// Only what is no older than so many seconds.
    pub since: Option<u64>,
}

/// Why a log stream is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// All that was asked for was sent, or nobody wants more.
    Done,
    /// There is no such log; why, for people.
    Refused(String),
    /// It cannot be read; why, for people.
    Failed(String),
}

/// How much credit a chunk of so many bytes costs.
pub fn log_cost(bytes: usize) -> u64 {
    bytes as u64 + CHUNK_OVERHEAD
}

/// How many bytes a chunk may have for this much credit; `None` where there is too little to be worth one.
pub(crate) fn affordable(credit: u64) -> Option<usize> {
    let bytes = usize::try_from(credit.checked_sub(CHUNK_OVERHEAD)?).unwrap_or(usize::MAX);
    (bytes > 0).then(|| bytes.min(MAX_LOG_CHUNK))
}
