//! What messages are made of, from and into what Protobuf makes of them.

use crate::{
    Condition, ConditionStatus, Digest, Entry, Generation, ObjectKey,
    message::{DecodeError, Held, Phase, RejectReason},
    wire,
};

pub(super) fn bytes_of(digest: Digest) -> Vec<u8> {
    digest.as_bytes().to_vec()
}

pub(super) fn digest_of(bytes: &[u8], field: &'static str) -> Result<Digest, DecodeError> {
    Digest::try_from(bytes).map_err(|_length| DecodeError::Field(field))
}

pub(super) fn held_of(generation: u64, digest: &[u8]) -> Result<Held, DecodeError> {
    Ok(Held {
        generation: generation_of(generation)?,
        digest: digest_of(digest, "digest")?,
    })
}

pub(super) fn generation_of(number: u64) -> Result<Generation, DecodeError> {
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
