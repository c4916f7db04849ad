//! What travels on the WebSocket, one message per binary frame.
//!
//! These are the domain's types; the Protobuf ones stay inside this module. Decoding gives `None` for a kind
//! that this version does not know, and checks everything else: digests have 32 bytes, bodies are canonical,
//! and nothing is decompressed past its announced size.

mod codec;
mod logs;
mod patch;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Condition, Digest, Entry, Generation, Object, ObjectKey, object::InvalidObject};

/// The largest frame that the controller accepts from a device, in bytes.
pub const MAX_DEVICE_FRAME: usize = 512 * 1024;
/// The largest frame that a device accepts from the controller, in bytes.
pub const MAX_CONTROL_FRAME: usize = 4 * 1024 * 1024;
/// The most bytes of bodies that a [`ControlMessage::Delta`] stands for; a larger change is offered instead.
pub const MAX_DELTA_BODIES: u64 = 1024 * 1024;
/// The most bytes of compressed bodies in one [`ControlMessage::Objects`].
pub const MAX_PART: usize = 256 * 1024;
/// The largest canonical form of one object, in bytes. Kubernetes itself accepts less.
pub const MAX_OBJECT: u64 = 4 * 1024 * 1024;
/// The most objects of one manifest set, so that an offer or a `Need` of them fits a frame.
pub const MAX_OBJECTS: usize = 10_000;

pub use self::{
    codec::objects_in_parts,
    logs::{
        LOG_WINDOW, LOGS, LogEnd, LogRequest, MAX_LOG_CHUNK, MAX_LOG_STREAMS, StreamId, log_cost,
    },
    patch::{PATCHES, Patch, patched},
};
pub(crate) use self::{
    codec::{compressed_bound, decompress},
    logs::affordable,
};

/// A manifest set that a device holds, by reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its generation.
    pub generation: Generation,
    /// The digest of the set.
    pub digest: Digest,
}

/// The first message of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The agent's version.
    pub agent_version: String,
    /// What the agent can do beyond the first version of the protocol.
    pub capabilities: Vec<String>,
    /// `kube`, `podman`, `directory` or `command`.
    pub runtime: String,
    /// What the device's ledger holds.
    pub ledger: Option<Held>,
    /// What the device says of itself.
    pub facts: BTreeMap<String, String>,
}

/// How far the runtime is with what was accepted last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted, not begun.
    #[default]
    Pending,
    /// Being applied.
    Applying,
    /// The runtime matches it.
    Applied,
    /// The runtime does not match it; the conditions say why. The agent tries again.
    Failed,
}

/// The whole state of a device's runtime; never a change of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// What it is about.
    pub held: Held,
    /// How far the runtime is.
    pub phase: Phase,
    /// `Applied`, `Drifted`, `LedgerWritable`, …
    pub conditions: Vec<Condition>,
}

/// Why a device refuses what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// A reason that this version does not know.
    Unspecified,
    /// The delta's base is not what the device holds.
    BaseMismatch,
    /// What came does not have the digest that was promised.
    DigestMismatch,
    /// The device holds this generation with another digest.
    GenerationConflict,
    /// The device could not keep it.
    Storage,
}

/// From the device to the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceMessage {
    /// Opens the session; repeated until a `Welcome` comes.
    Hello(Hello),
    /// Asks for the objects of an offered set that the device lacks.
    Need {
        /// The offered set.
        target: Digest,
        /// The objects.
        digests: Vec<Digest>,
    },
    /// A set is verified and durable on the device.
    Accepted(Held),
    /// A set is refused.
    Reject {
        /// Its generation.
        generation: Generation,
        /// Why, for programs.
        reason: RejectReason,
        /// Why, for people.
        message: String,
    },
    /// How the runtime does.
    Status(StatusReport),
    /// What the device says of itself, in place of what it said before.
    Facts(BTreeMap<String, String>),
    /// Asks for a new certificate.
    Renew {
        /// The signing request in DER form, with a fresh key.
        csr: Vec<u8>,
    },
    /// Some bytes of a log; the first ones, which may be none, say that the stream is open.
    LogChunk {
        /// The stream.
        stream: StreamId,
        /// At most [`MAX_LOG_CHUNK`].
        data: Vec<u8>,
    },
    /// A log stream is over.
    LogEnd {
        /// The stream.
        stream: StreamId,
        /// Why.
        end: LogEnd,
    },
}

/// A piece of one object's compressed canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The object.
    pub digest: Digest,
    /// Where the piece starts in the compressed form.
    pub offset: u64,
    /// The size of the whole compressed form.
    pub compressed: u64,
    /// The piece.
    pub data: Vec<u8>,
}

/// From the controller to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlMessage {
    /// Answers `Hello`.
    Welcome {
        /// How often the device sends a WebSocket ping, in milliseconds.
        heartbeat_ms: u64,
        /// The controller's clock, in milliseconds since the Unix epoch.
        server_time_ms: u64,
    },
    /// What takes the set that the device holds to the target.
    Delta {
        /// The target's generation.
        generation: Generation,
        /// The commit that the target comes from.
        revision: String,
        /// The set that the device is believed to hold.
        base: Digest,
        /// The set that must come out.
        target: Digest,
        /// Objects to add or replace.
        upserts: Vec<Object>,
        /// Objects to replace, by their difference from those of the base.
        patches: Vec<Patch>,
        /// Objects to remove.
        removals: Vec<ObjectKey>,
    },
    /// A whole set by reference.
    Offer {
        /// The target's generation.
        generation: Generation,
        /// The commit that the target comes from.
        revision: String,
        /// The set's digest.
        target: Digest,
        /// The set's entries.
        entries: Vec<Entry>,
    },
    /// Objects of an offered set, in pieces.
    Objects {
        /// The offered set.
        target: Digest,
        /// The pieces.
        parts: Vec<Part>,
    },
    /// Answers `Renew`: the chain in DER form, leaf first, or why there is none.
    Certificate(Result<Vec<Vec<u8>>, String>),
    /// The device is no longer part of the fleet.
    Decommission {
        /// Why, for people.
        reason: String,
    },
    /// Come back later.
    Reconnect {
        /// After how many milliseconds.
        after_ms: u64,
    },
    /// Asks for a log.
    OpenLogs {
        /// How both ends call the stream.
        stream: StreamId,
        /// Which log, and how much of it.
        request: LogRequest,
        /// How much the device may send before it is granted more.
        credit: u64,
    },
    /// Lets the device send more of a log.
    GrantLogs {
        /// The stream.
        stream: StreamId,
        /// How much more.
        credit: u64,
    },
    /// Nobody wants more of a log.
    CloseLogs {
        /// The stream.
        stream: StreamId,
    },
}

/// Why a frame is no message. Always the peer's fault.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is not Protobuf.
    #[error("the frame is not a protocol message")]
    Protobuf(#[from] prost::DecodeError),
    /// A field that the kind cannot do without is missing or malformed.
    #[error("field `{0}` is missing or malformed")]
    Field(&'static str),
    /// Compressed bodies do not decompress within their bounds.
    #[error("compressed bodies do not decompress within {0} bytes")]
    Compression(u64),
    /// A body is not an object in canonical form.
    #[error("a body is no object")]
    Object(#[from] InvalidObject),
}
