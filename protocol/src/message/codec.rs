//! Messages as frames: Protobuf, with bodies compressed by zstd.

mod bodies;
mod values;

use prost::Message as _;

pub use self::bodies::objects_in_parts;
pub(crate) use self::bodies::{compressed_bound, decompress};
use self::{
    bodies::{bodies_of, compress},
    values::{bytes_of, digest_of, generation_of, held_of},
};
use super::{
    ControlMessage, DecodeError, DeviceMessage, Hello, LogEnd, LogRequest, Part, Patch,
    StatusReport,
};
use crate::wire;

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

#[cfg(test)]
mod tests;
