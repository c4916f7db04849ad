//! Messages as frames: Protobuf, with bodies compressed by zstd.

use prost::Message as _;

use super::{
    ControlMessage, DecodeError, DeviceMessage, Held, Hello, LogEnd, LogRequest, MAX_DELTA_BODIES,
    MAX_PART, Part, Patch, Phase, RejectReason, StatusReport,
};
use crate::{Condition, ConditionStatus, Digest, Entry, Generation, Object, ObjectKey, wire};

const COMPRESSION: i32 = 3;

impl DeviceMessage {
    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        use wire::device_message::Kind;
        let kind = match self.clone() {
            Self::Hello(hello) => Kind::Hello(wire::Hello {
                agent_version: hello.agent_version,
                capabilities: hello.capabilities,
                runtime: hello.runtime,
                ledger: hello.ledger.map(|held| wire::Held {
                    generation: held.generation.number(),
                    digest: bytes_of(held.digest),
                }),
                facts: hello.facts.into_iter().collect(),
            }),
            Self::Need { target, digests } => Kind::Need(wire::Need {
                target: bytes_of(target),
                digests: digests.into_iter().map(bytes_of).collect(),
            }),
            Self::Accepted(held) => Kind::Accepted(wire::Accepted {
                generation: held.generation.number(),
                target: bytes_of(held.digest),
            }),
            Self::Reject {
                generation,
                reason,
                message,
            } => Kind::Reject(wire::Reject {
                generation: generation.number(),
                reason: wire::reject::Reason::from(reason).into(),
                message,
            }),
            Self::Status(report) => Kind::Status(wire::Status {
                generation: report.held.generation.number(),
                digest: bytes_of(report.held.digest),
                phase: wire::status::Phase::from(report.phase).into(),
                conditions: report.conditions.into_iter().map(Into::into).collect(),
            }),
            Self::Facts(facts) => Kind::Facts(wire::Facts {
                facts: facts.into_iter().collect(),
            }),
            Self::Renew { csr } => Kind::Renew(wire::Renew { csr }),
            Self::LogChunk { stream, data } => Kind::LogChunk(wire::LogChunk { stream, data }),
            Self::LogEnd { stream, end } => {
                use wire::log_end::Reason;
                let (reason, message) = match end {
                    LogEnd::Done => (Reason::Done, String::new()),
                    LogEnd::Refused(why) => (Reason::Refused, why),
                    LogEnd::Failed(why) => (Reason::Failed, why),
                };
                Kind::LogEnd(wire::LogEnd {
                    stream,
                    reason: reason.into(),
                    message,
                })
            }
        };
        wire::DeviceMessage { kind: Some(kind) }.encode_to_vec()
    }

    /// The message in `frame`; `None` where its kind is not known here.
    ///
    /// # Errors
    /// Where the frame breaks the protocol.
    pub fn decode(frame: &[u8]) -> Result<Option<Self>, DecodeError> {
        use wire::device_message::Kind;
        let Some(kind) = wire::DeviceMessage::decode(frame)?.kind else {
            return Ok(None);
        };
        Ok(Some(match kind {
            Kind::Hello(hello) => Self::Hello(Hello {
                agent_version: hello.agent_version,
                capabilities: hello.capabilities,
                runtime: hello.runtime,
                ledger: hello
                    .ledger
                    .map(|held| held_of(held.generation, &held.digest))
                    .transpose()?,
                facts: hello.facts.into_iter().collect(),
            }),
            Kind::Need(need) => Self::Need {
                target: digest_of(&need.target, "target")?,
                digests: need
                    .digests
                    .iter()
                    .map(|bytes| digest_of(bytes, "digests"))
                    .collect::<Result<_, _>>()?,
            },
            Kind::Accepted(accepted) => {
                Self::Accepted(held_of(accepted.generation, &accepted.target)?)
            }
            Kind::Reject(reject) => Self::Reject {
                generation: generation_of(reject.generation)?,
                reason: reject.reason().into(),
                message: reject.message,
            },
            Kind::Status(status) => Self::Status(StatusReport {
                held: held_of(status.generation, &status.digest)?,
                phase: status.phase().into(),
                conditions: status.conditions.into_iter().map(Into::into).collect(),
            }),
            Kind::Facts(said) => Self::Facts(said.facts.into_iter().collect()),
            Kind::Renew(renew) => Self::Renew { csr: renew.csr },
            Kind::LogChunk(chunk) => Self::LogChunk {
                stream: chunk.stream,
                data: chunk.data,
            },
            Kind::LogEnd(end) => {
                use wire::log_end::Reason;
                Self::LogEnd {
                    stream: end.stream,
                    end: match end.reason() {
                        Reason::Done => LogEnd::Done,
                        Reason::Refused => LogEnd::Refused(end.message),
                        Reason::Failed => LogEnd::Failed(end.message),
                    },
                }
            }
        }))
    }
}

impl ControlMessage {
    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        use wire::control_message::Kind;
        let kind = match self.clone() {
            Self::Welcome {
                heartbeat_ms,
                server_time_ms,
            } => Kind::Welcome(wire::Welcome {
                heartbeat_ms,
                server_time_ms,
            }),
            Self::Delta {
                generation,
                revision,
                base,
                target,
                upserts,
                patches,
                removals,
            } => {
                let bodies = wire::Bodies {
                    bodies: upserts
                        .iter()
                        .map(|object| object.body().to_vec())
                        .collect(),
                };
                let upserts = if upserts.is_empty() {
                    Vec::new()
                } else {
                    compress(&bodies.encode_to_vec())
                };
                Kind::Delta(wire::Delta {
                    generation: generation.number(),
                    revision,
                    base: bytes_of(base),
                    target: bytes_of(target),
                    upserts,
                    removals: removals.into_iter().map(Into::into).collect(),
                    patches: patches
                        .into_iter()
                        .map(|patch| wire::Patch {
                            previous: bytes_of(patch.previous),
                            size: patch.size,
                            data: patch.data,
                        })
                        .collect(),
                })
            }
            Self::Offer {
                generation,
                revision,
                target,
                entries,
            } => Kind::Offer(wire::Offer {
                generation: generation.number(),
                revision,
                target: bytes_of(target),
                entries: entries.into_iter().map(Into::into).collect(),
            }),
            Self::Objects { target, parts } => Kind::Objects(wire::Objects {
                target: bytes_of(target),
                parts: parts
                    .into_iter()
                    .map(|part| wire::Part {
                        digest: bytes_of(part.digest),
                        offset: part.offset,
                        compressed: part.compressed,
                        data: part.data,
                    })
                    .collect(),
            }),
            Self::Certificate(result) => Kind::Certificate(match result {
                Ok(chain) => wire::Certificate {
                    chain,
                    error: String::new(),
                },
                Err(error) => wire::Certificate {
                    chain: Vec::new(),
                    error,
                },
            }),
            Self::Decommission { reason } => Kind::Decommission(wire::Decommission { reason }),
            Self::Reconnect { after_ms } => Kind::Reconnect(wire::Reconnect { after_ms }),
            Self::OpenLogs {
                stream,
                request,
                credit,
            } => Kind::OpenLogs(wire::OpenLogs {
                stream,
                object: request.object.map(Into::into),
                container: request.container.unwrap_or_default(),
                follow: request.follow,
                tail: request.tail,
                since: request.since,
                credit,
            }),
            Self::GrantLogs { stream, credit } => {
                Kind::GrantLogs(wire::GrantLogs { stream, credit })
            }
            Self::CloseLogs { stream } => Kind::CloseLogs(wire::CloseLogs { stream }),
        };
        wire::ControlMessage { kind: Some(kind) }.encode_to_vec()
    }

    /// The message in `frame`; `None` where its kind is not known here.
    ///
    /// # Errors
    /// Where the frame breaks the protocol.
    pub fn decode(frame: &[u8]) -> Result<Option<Self>, DecodeError> {
        use wire::control_message::Kind;
        let Some(kind) = wire::ControlMessage::decode(frame)?.kind else {
            return Ok(None);
        };
        Ok(Some(match kind {
            Kind::Welcome(welcome) => Self::Welcome {
                heartbeat_ms: welcome.heartbeat_ms,
                server_time_ms: welcome.server_time_ms,
            },
            Kind::Delta(delta) => Self::Delta {
                generation: generation_of(delta.generation)?,
                revision: delta.revision,
                base: digest_of(&delta.base, "base")?,
                target: digest_of(&delta.target, "target")?,
                upserts: bodies_of(&delta.upserts)?,
                patches: delta
                    .patches
                    .into_iter()
                    .map(|patch| {
                        Ok(Patch {
                            previous: digest_of(&patch.previous, "previous")?,
                            size: patch.size,
                            data: patch.data,
                        })
                    })
                    .collect::<Result<_, DecodeError>>()?,
                removals: delta.removals.into_iter().map(Into::into).collect(),
            },
            Kind::Offer(offer) => Self::Offer {
                generation: generation_of(offer.generation)?,
                revision: offer.revision,
                target: digest_of(&offer.target, "target")?,
                entries: offer
                    .entries
                    .into_iter()
                    .map(TryInto::try_into)
                    .collect::<Result<_, _>>()?,
            },
            Kind::Objects(objects) => Self::Objects {
                target: digest_of(&objects.target, "target")?,
                parts: objects
                    .parts
                    .into_iter()
                    .map(|part| {
                        Ok(Part {
                            digest: digest_of(&part.digest, "digest")?,
                            offset: part.offset,
                            compressed: part.compressed,
                            data: part.data,
                        })
                    })
                    .collect::<Result<_, DecodeError>>()?,
            },
            Kind::Certificate(certificate) => Self::Certificate(if certificate.chain.is_empty() {
                Err(certificate.error)
            } else {
                Ok(certificate.chain)
            }),
            Kind::Decommission(decommission) => Self::Decommission {
                reason: decommission.reason,
            },
            Kind::Reconnect(reconnect) => Self::Reconnect {
                after_ms: reconnect.after_ms,
            },
            Kind::OpenLogs(open) => Self::OpenLogs {
                stream: open.stream,
                request: LogRequest {
                    object: open.object.map(Into::into),
                    container: Some(open.container).filter(|name| !name.is_empty()),
                    follow: open.follow,
                    tail: open.tail,
                    since: open.since,
                },
                credit: open.credit,
            },
            Kind::GrantLogs(grant) => Self::GrantLogs {
                stream: grant.stream,
                credit: grant.credit,
            },
            Kind::CloseLogs(close) => Self::CloseLogs {
                stream: close.stream,
            },
        }))
    }
}

/// Cuts objects into messages of at most [`MAX_PART`] bytes of compressed bodies each.
pub fn objects_in_parts<'a>(
    target: Digest,
    objects: impl IntoIterator<Item = &'a Object>,
) -> Vec<ControlMessage> {
    let mut messages = Vec::new();
    let mut parts = Vec::new();
    let mut room = MAX_PART;
    for object in objects {
        let compressed = compress(object.body());
        let mut rest = compressed.as_slice();
        let mut offset = 0;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(rest.len().min(room));
            parts.push(Part {
                digest: object.digest(),
                offset,
                compressed: compressed.len() as u64,
                data: piece.to_vec(),
            });
            offset += piece.len() as u64;
            room -= piece.len();
            rest = tail;
            if room == 0 {
                messages.push(ControlMessage::Objects {
                    target,
                    parts: std::mem::take(&mut parts),
                });
                room = MAX_PART;
            }
        }
    }
    if !parts.is_empty() {
        messages.push(ControlMessage::Objects { target, parts });
    }
    messages
}

/// The largest compressed form that a body of `size` bytes can have.
pub(crate) fn compressed_bound(size: u64) -> u64 {
    size + size / 128 + 1024
}

/// Undoes the compression of one body whose size was announced.
pub(crate) fn decompress(compressed: &[u8], size: u64) -> Result<Vec<u8>, DecodeError> {
    let capacity = usize::try_from(size).map_err(|_overflow| DecodeError::Compression(size))?;
    zstd::bulk::decompress(compressed, capacity).map_err(|_detail| DecodeError::Compression(size))
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    // In-memory compression at a valid level fails only when memory runs out, and then Rust aborts.
    zstd::bulk::compress(bytes, COMPRESSION).unwrap_or_default()
}

fn bodies_of(compressed: &[u8]) -> Result<Vec<Object>, DecodeError> {
    if compressed.is_empty() {
        return Ok(Vec::new());
    }
    let bodies = decompress(compressed, MAX_DELTA_BODIES + 64 * 1024)?;
    wire::Bodies::decode(bodies.as_slice())?
        .bodies
        .into_iter()
        .map(|body| Ok(Object::from_canonical(body)?))
        .collect()
}

fn bytes_of(digest: Digest) -> Vec<u8> {
    digest.as_bytes().to_vec()
}

fn digest_of(bytes: &[u8], field: &'static str) -> Result<Digest, DecodeError> {
    Digest::try_from(bytes).map_err(|_length| DecodeError::Field(field))
}

fn held_of(generation: u64, digest: &[u8]) -> Result<Held, DecodeError> {
    Ok(Held {
        generation: generation_of(generation)?,
        digest: digest_of(digest, "digest")?,
    })
}

fn generation_of(number: u64) -> Result<Generation, DecodeError> {
    let generation = Generation::from(number);
    if generation > Generation::LARGEST_NAMED {
        return Err(DecodeError::Field("generation"));
    }
    Ok(generation)
}

impl From<ObjectKey> for wire::ObjectKey {
    fn from(key: ObjectKey) -> Self {
        Self {
            api_version: key.api_version,
            kind: key.kind,
            namespace: key.namespace,
            name: key.name,
        }
    }
}

impl From<wire::ObjectKey> for ObjectKey {
    fn from(key: wire::ObjectKey) -> Self {
        Self {
            api_version: key.api_version,
            kind: key.kind,
            namespace: key.namespace,
            name: key.name,
        }
    }
}

impl From<Entry> for wire::Entry {
    fn from(entry: Entry) -> Self {
        Self {
            key: Some(entry.key.into()),
            digest: bytes_of(entry.digest),
            size: entry.size,
        }
    }
}

impl TryFrom<wire::Entry> for Entry {
    type Error = DecodeError;

    fn try_from(entry: wire::Entry) -> Result<Self, DecodeError> {
        Ok(Self {
            key: entry.key.ok_or(DecodeError::Field("key"))?.into(),
            digest: digest_of(&entry.digest, "digest")?,
            size: entry.size,
        })
    }
}

impl From<Condition> for wire::Condition {
    fn from(condition: Condition) -> Self {
        let status = match condition.status {
            ConditionStatus::True => wire::condition::Status::True,
            ConditionStatus::False => wire::condition::Status::False,
            ConditionStatus::Unknown => wire::condition::Status::Unknown,
        };
        Self {
            r#type: condition.kind,
            status: status.into(),
            reason: condition.reason,
            message: condition.message,
            since: condition.since,
        }
    }
}

impl From<wire::Condition> for Condition {
    fn from(condition: wire::Condition) -> Self {
        let status = match condition.status() {
            wire::condition::Status::True => ConditionStatus::True,
            wire::condition::Status::False => ConditionStatus::False,
            wire::condition::Status::Unknown => ConditionStatus::Unknown,
        };
        Self {
            kind: condition.r#type,
            status,
            reason: condition.reason,
            message: condition.message,
            since: condition.since,
        }
    }
}

macro_rules! same_names {
    ($ours:ty, $theirs:ty: $($name:ident),+) => {
        impl From<$ours> for $theirs {
            fn from(value: $ours) -> Self {
                match value { $(<$ours>::$name => Self::$name),+ }
            }
        }
        impl From<$theirs> for $ours {
            fn from(value: $theirs) -> Self {
                match value { $(<$theirs>::$name => Self::$name),+ }
            }
        }
    };
}
same_names!(Phase, wire::status::Phase: Pending, Applying, Applied, Failed);
same_names!(RejectReason, wire::reject::Reason: Unspecified, BaseMismatch, DigestMismatch, GenerationConflict, Storage);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(name: &str, size: usize) -> Object {
        // Text that does not compress, so that sizes mean something.
        let text: String = (0..=size / 64)
            .map(|n| Digest::of(&n.to_le_bytes()).to_hex())
            .collect();
        Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}, "data": {"text": text}}))
        .unwrap()
    }

    #[test]
    fn messages_survive_the_wire() {
        let held = Held {
            generation: Generation::FIRST,
            digest: Digest::of(b"set"),
        };
        let from_device = [
            DeviceMessage::Hello(Hello {
                agent_version: "1".into(),
                capabilities: vec!["x".into()],
                runtime: "directory".into(),
                ledger: Some(held),
                facts: BTreeMap::from([("arch".into(), "arm64".into())]),
            }),
            DeviceMessage::Need {
                target: held.digest,
                digests: vec![Digest::of(b"a")],
            },
            DeviceMessage::Accepted(held),
            DeviceMessage::Reject {
                generation: held.generation,
                reason: RejectReason::Storage,
                message: "disk full".into(),
            },
            DeviceMessage::Status(StatusReport {
                held,
                phase: Phase::Failed,
                conditions: vec![Condition::fails("Applied", "DiskFull", "no space", 7)],
            }),
            DeviceMessage::Facts(BTreeMap::from([("site".into(), "madrid".into())])),
            DeviceMessage::Renew { csr: vec![1, 2] },
        ];
        for message in from_device {
            assert_eq!(
                DeviceMessage::decode(&message.encode()).unwrap(),
                Some(message)
            );
        }
        let thing = object("a", 100);
        let from_control = [
            ControlMessage::Welcome {
                heartbeat_ms: 1,
                server_time_ms: 2,
            },
            ControlMessage::Delta {
                generation: held.generation,
                revision: "abc".into(),
                base: held.digest,
                target: Digest::of(b"t"),
                upserts: vec![thing.clone()],
                patches: vec![Patch {
                    previous: held.digest,
                    size: 9,
                    data: vec![1, 2, 3],
                }],
                removals: vec![thing.key().clone()],
            },
            ControlMessage::Offer {
                generation: held.generation,
                revision: "abc".into(),
                target: held.digest,
                entries: vec![Entry::from(&thing)],
            },
            ControlMessage::Certificate(Ok(vec![vec![1]])),
            ControlMessage::Certificate(Err("no".into())),
            ControlMessage::Decommission {
                reason: "gone".into(),
            },
            ControlMessage::Reconnect { after_ms: 9 },
        ];
        for message in from_control {
            assert_eq!(
                ControlMessage::decode(&message.encode()).unwrap(),
                Some(message)
            );
        }
    }

    #[test]
    fn messages_of_logs_survive_the_wire() {
        let from_device = [
            DeviceMessage::LogChunk {
                stream: 7,
                data: b"line\n".to_vec(),
            },
            DeviceMessage::LogEnd {
                stream: 7,
                end: LogEnd::Done,
            },
            DeviceMessage::LogEnd {
                stream: 8,
                end: LogEnd::Refused("no such container".into()),
            },
            DeviceMessage::LogEnd {
                stream: 9,
                end: LogEnd::Failed("the disk is gone".into()),
            },
        ];
        for message in from_device {
            assert_eq!(
                DeviceMessage::decode(&message.encode()).unwrap(),
                Some(message)
            );
        }
        let from_control = [
            ControlMessage::OpenLogs {
                stream: 1,
                request: LogRequest::default(),
                credit: 9,
            },
            ControlMessage::OpenLogs {
                stream: 2,
                request: LogRequest {
                    object: Some(object("a", 1).key().clone()),
                    container: Some("till".into()),
                    follow: true,
                    tail: Some(0),
                    since: Some(600),
                },
                credit: 9,
            },
            ControlMessage::GrantLogs {
                stream: 1,
                credit: 5,
            },
            ControlMessage::CloseLogs { stream: 1 },
        ];
        for message in from_control {
            assert_eq!(
                ControlMessage::decode(&message.encode()).unwrap(),
                Some(message)
            );
        }
    }

    #[test]
    fn a_generation_near_overflow_is_refused() {
        let held = |number: u64| {
            let digest = Digest::of(b"set");
            DeviceMessage::Accepted(Held {
                generation: number.into(),
                digest,
            })
            .encode()
        };
        assert!(DeviceMessage::decode(&held(1 << 62)).is_ok());
        for number in [(1 << 62) + 1, i64::MAX as u64, u64::MAX] {
            assert!(matches!(
                DeviceMessage::decode(&held(number)),
                Err(DecodeError::Field("generation"))
            ));
        }
    }

    #[test]
    fn an_unknown_kind_is_ignored() {
        // Field 100, length-delimited, one byte.
        let frame = [0xa2, 0x06, 0x01, 0x00];
        assert_eq!(DeviceMessage::decode(&frame).unwrap(), None);
        assert_eq!(ControlMessage::decode(&frame).unwrap(), None);
    }

    #[test]
    fn parts_are_bounded_and_whole() {
        let objects = [object("a", 10), object("b", 700_000), object("c", 10)];
        let target = Digest::of(b"t");
        let mut assembled: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
        for message in objects_in_parts(target, &objects) {
            let ControlMessage::Objects { parts, .. } = message else {
                panic!("parts")
            };
            assert!(parts.iter().map(|part| part.data.len()).sum::<usize>() <= MAX_PART);
            for part in parts {
                let bytes = assembled.entry(part.digest).or_default();
                assert_eq!(bytes.len() as u64, part.offset);
                bytes.extend(part.data);
            }
        }
        for object in objects {
            let size = object.body().len() as u64;
            let compressed = &assembled[&object.digest()];
            assert!(compressed.len() as u64 <= compressed_bound(size));
            assert_eq!(
                decompress(compressed, size).unwrap(),
                object.body().to_vec()
            );
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = compress(&vec![0; 64 * 1024 * 1024]);
        assert!(matches!(bodies_of(&bomb), Err(DecodeError::Compression(_))));
        assert!(matches!(
            decompress(&bomb, 1000),
            Err(DecodeError::Compression(1000))
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // The result does not matter; that there is one does.
            drop(DeviceMessage::decode(&bytes));
            drop(ControlMessage::decode(&bytes));
        }
    }
}
