use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    Condition, Digest, Entry, Generation, Object,
    message::{Held, MAX_PART, Phase, RejectReason},
};

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
