//! A controller with one fleet, three devices and two tokens.

use std::time::SystemTime;

use longshore_protocol::{
    Condition, DeviceId, Digest, Generation, TokenId,
    api::{
        Approval, CreatedFleet, CreatedTenant, CreatedToken, Device, DeviceCounts, DeviceDesired,
        DeviceObserved, DeviceState, Fleet, HeldRemoval, List, Revision, RotatedWebhookSecret,
        Tenant, Token,
    },
    message::Phase,
};
use serde_json::Value;

use crate::controller::{Controller, answer};

/// The commit in force.
pub const REVISION: &str = "76ae82c7b1a177c8d03f9e96e0adf2466113728f";

/// An instant some minutes ago, so that ages are the same on every run.
fn ago(minutes: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_millis()).unwrap() - minutes * 60_000
}

pub fn fleet(name: &str) -> Fleet {
    Fleet {
        hosted: false,
        name: name.parse().unwrap(),
        repo: "https://git.example/acme/shops.git".into(),
        branch: "main".into(),
        path: String::new(),
        revision: Some(REVISION.into()),
        devices: DeviceCounts {
            total: 3,
            pending: 1,
            active: 2,
            connected: 2,
            in_sync: 1,
            failing: 1,
        },
        conditions: vec![
            Condition::holds("SourceReady", "Fetched", "", ago(5)),
            Condition::fails("FleetValid", "Problems", "1 problem", ago(5)),
        ],
        problems: vec![
            "devices/store-0003/device.yaml:7: unknown field `spec.oops`\u{1b}[2J".into(),
        ],
        held: vec![HeldRemoval {
            device: "store-0009".parse().unwrap(),
            removal: "Decommission".into(),
        }],
        created_at: ago(5),
    }
}

fn device(name: &str, state: DeviceState) -> Device {
    Device {
        id: DeviceId::from_random([7; 16]),
        name: name.parse().unwrap(),
        fleet: "shops".parse().unwrap(),
        state,
        public_key: Digest::of(b"key"),
        enrollment_branch: Some(format!("longshore/enroll/{name}")),
        labels: [("site".to_owned(), "madrid".to_owned())].into(),
        facts: [("model\u{1b}[2J".to_owned(), "rpi4\nName: forged".to_owned())].into(),
        token_label: "store rollout".into(),
        source_address: "192.0.2.7".into(),
        desired: Some(DeviceDesired {
            generation: Generation::from(4),
            digest: Digest::of(b"four"),
            revision: REVISION.into(),
            objects: 20,
            since: ago(5),
        }),
        observed: Some(DeviceObserved {
            generation: Generation::from(3),
            digest: Digest::of(b"three"),
            phase: Phase::Applied,
            reported_at: ago(5),
        }),
        connected: true,
        last_seen: Some(ago(5)),
        conditions: vec![Condition::holds("Rendered", "Built", "", ago(5))],
        created_at: ago(5),
    }
}

pub fn token() -> Token {
    Token {
        id: TokenId::from_random([9; 16]),
        fleet: "shops".parse().unwrap(),
        label: "store rollout".into(),
        approval: Approval::Manual,
        uses: 3,
        max_uses: Some(50),
        expires_at: None,
        revoked: false,
        created_at: ago(5),
    }
}

pub fn list<T>(items: impl Into<Vec<T>>) -> List<T> {
    List {
        items: items.into(),
    }
}

pub fn controller() -> Controller {
    let created_token = CreatedToken {
        token: token(),
        secret: "lsp-a-secret".into(),
        server: "https://longshore.example:8443".into(),
        ca_fingerprint: Digest::of(b"root"),
    };
    let created_fleet = CreatedFleet {
        fleet: fleet("shops"),
        webhook_path: "/webhooks/default/shops".into(),
        webhook_secret: "whs-a-secret".into(),
    };
    let rotated = RotatedWebhookSecret {
        webhook_path: "/webhooks/default/shops".into(),
        webhook_secret: "whs-the-next".into(),
        webhook_secret_before_until: ago(5),
    };
    let pending = device("store-0002", DeviceState::Pending);
    Controller::start([
        answer("GET fleets", 200, &list([fleet("shops")])),
        answer("POST fleets", 201, &created_fleet),
        answer("GET fleets/shops", 200, &fleet("shops")),
        answer("DELETE fleets/shops", 204, &Value::Null),
        answer("POST fleets/shops/sync", 202, &Value::Null),
        answer("POST fleets/shops/webhook/rotate", 200, &rotated),
        answer("POST fleets/shops/removals/confirm", 202, &Value::Null),
        answer(
            "GET fleets/shops/tokens",
            200,
            &list([
                token(),
                Token {
                    revoked: true,
                    ..token()
                },
            ]),
        ),
        answer("POST fleets/shops/tokens", 201, &created_token),
        answer(
            &format!("DELETE fleets/shops/tokens/{}", token().id),
            204,
            &Value::Null,
        ),
        answer(
            "GET fleets/shops/devices",
            200,
            &list([device("store-0001", DeviceState::Active), pending.clone()]),
        ),
        answer("GET fleets/shops/devices/store-0002", 200, &pending),
        answer(
            "POST fleets/shops/devices/store-0002/approve",
            200,
            &device("store-0002", DeviceState::Active),
        ),
        answer(
            "POST fleets/shops/devices/store-0002/reject",
            200,
            &device("store-0002", DeviceState::Rejected),
        ),
        answer(
            "POST fleets/shops/devices/store-0001/decommission",
            200,
            &device("store-0001", DeviceState::Decommissioned),
        ),
        answer(
            "GET fleets/shops/revisions",
            200,
            &list([Revision {
                commit: REVISION.into(),
                summary: "Raise the till's limit".into(),
                author: "Ada".into(),
                observed_at: ago(5),
                devices_changed: 2,
                problems: 1,
            }]),
        ),
        answer(
            "GET /api/v1/tenants",
            200,
            &list([Tenant {
                name: "default".parse().unwrap(),
                created_at: ago(5),
            }]),
        ),
        answer(
            "POST /api/v1/tenants",
            201,
            &CreatedTenant {
                name: "acme".parse().unwrap(),
                api_token: "lsa-of-acme".into(),
            },
        ),
    ])
}
