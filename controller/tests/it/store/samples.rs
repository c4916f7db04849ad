//! Rows to write.

use std::collections::BTreeMap;

use longshore_controller::store::{
    devices::{self, Coming, Desired, Device, Observed, Reported},
    fleets::{self, Fleet, FleetId, FleetStatus},
    tenants,
    tokens::Token,
};
use longshore_protocol::{
    DeviceId, Digest, Generation, Object, TenantName, TokenId,
    api::{Approval, DeviceState},
    message::{Held, StatusReport},
};
use serde_json::json;

use super::database::Database;

pub fn tenant(name: &str) -> TenantName {
    name.parse().unwrap()
}

pub fn fleet_id(tenant: &str, name: &str) -> FleetId {
    FleetId {
        tenant: tenant.parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

pub fn fleet(tenant: &str, name: &str) -> Fleet {
    Fleet {
        id: fleet_id(tenant, name),
        repo: format!("https://git.example/{tenant}/{name}.git"),
        branch: "main".to_owned(),
        path: String::new(),
        trusted: false,
        webhook_secret: vec![0, 1, 0xff],
        webhook_secret_before: None,
        connection: None,
        hosted: false,
        status: FleetStatus::default(),
        confirmed_revision: None,
        changes: 0,
        created_at: 7,
    }
}

/// The id that `n` stands for.
pub fn device_id(n: u32) -> DeviceId {
    let mut random = [0; 16];
    random[..4].copy_from_slice(&n.to_be_bytes());
    DeviceId::from_random(random)
}

/// A pending device `device-<n>`.
pub fn device(fleet: &FleetId, n: u32) -> Device {
    Device {
        id: device_id(n),
        fleet: fleet.clone(),
        name: format!("device-{n}").parse().unwrap(),
        public_key: Digest::of(&n.to_be_bytes()),
        state: DeviceState::Pending,
        state_reason: "waits for approval".to_owned(),
        token: TokenId::from_random([1; 16]),
        enrollment_branch: None,
        enrollment_commit: None,
        branch_pushed: false,
        folder_to_delete: false,
        labels: BTreeMap::from([("site".to_owned(), "madrid".to_owned())]),
        facts: BTreeMap::from([("arch".to_owned(), "aarch64".to_owned())]),
        conditions: Vec::new(),
        source_address: "192.0.2.7".to_owned(),
        created_at: 1_000 + u64::from(n),
    }
}

pub fn coming(device: &Device, came: bool, at: u64) -> Coming {
    Coming {
        tenant: device.fleet.tenant.clone(),
        device: device.id.clone(),
        came,
        at,
    }
}

pub fn observed(report: StatusReport, reported_at: u64) -> Observed {
    Observed {
        report,
        reported_at,
    }
}

pub fn reported<'a>(device: &'a Device, observed: &'a Observed) -> Reported<'a> {
    Reported {
        tenant: &device.fleet.tenant,
        device: &device.id,
        observed,
    }
}

pub fn desired(generation: u64, content: &str) -> Desired {
    Desired {
        target: Held {
            generation: Generation::from(generation),
            digest: Digest::of(content.as_bytes()),
        },
        revision: format!("commit of {content}"),
        objects: 3,
        since: 5,
    }
}

pub fn token(fleet: &FleetId, n: u8) -> Token {
    Token {
        id: TokenId::from_random([n; 16]),
        fleet: fleet.clone(),
        label: format!("label {n}"),
        approval: Approval::Manual,
        uses: 0,
        max_uses: None,
        expires_at: None,
        revoked: false,
        overlay: None,
        labels: BTreeMap::new(),
        created_at: u64::from(n),
    }
}

pub fn object(name: &str, value: &str) -> Object {
    Object::from_value(&json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"value": value},
    }))
    .unwrap()
}

/// Two tenants, `one` and `two`, each with the fleets `shops` and `boats`.
pub async fn two_tenants(database: &Database) {
    let mut db = database.write().await;
    for tenant in ["one", "two"] {
        tenants::insert(&mut db, &tenant.parse().unwrap(), 1)
            .await
            .unwrap();
        for name in ["shops", "boats"] {
            fleets::insert(&mut db, &fleet(tenant, name)).await.unwrap();
        }
    }
    db.commit().await.unwrap();
}

/// Those devices, in a store that has their fleet.
pub async fn insert_devices(database: &Database, devices: impl IntoIterator<Item = &Device>) {
    let mut db = database.write().await;
    for device in devices {
        devices::insert(&mut db, device).await.unwrap();
    }
    db.commit().await.unwrap();
}
