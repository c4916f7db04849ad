//! Where devices are connected, and when they were last heard of. A connection counts while its replica lives.

use std::collections::{HashMap, HashSet};

use longshore_protocol::{DeviceId, TenantName};
use sqlx::{AnyConnection, FromRow};

use crate::{
    replica::ReplicaId,
    store::{StoreError, fleets::FleetId, in_chunks, parse, signed, unsigned},
};

/// How far replicas' clocks may be apart.
const SKEW_MS: u64 = 5_000;

/// Whether a device is connected, and when it last came or went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Whether some replica has it.
    pub connected: bool,
    /// When it came or went, where it ever did.
    pub seen_at: Option<u64>,
}

/// A device came to a replica, or went.
#[derive(Clone, Debug)]
pub struct Coming {
    /// Its tenant.
    pub tenant: TenantName,
    /// The device.
    pub device: DeviceId,
    /// Whether it came.
    pub came: bool,
    /// When.
    pub at: u64,
}

/// Remembers which devices came to this replica, and which went, each device once. One that went here and is
/// connected elsewhere by now stays connected. Devices that are no longer there are left out, and so are those that
/// came here and are at another living replica since: what is stored late must not look like news.
pub async fn put_connections(
    db: &mut AnyConnection,
    replica: &ReplicaId,
    comings: &[Coming],
) -> Result<(), StoreError> {
    let replica = replica.as_str();
    let (came, went): (Vec<_>, Vec<_>) = comings.iter().partition(|coming| coming.came);
    in_chunks(
        db,
        &came,
        4,
        |rows| {
            format!(
                "INSERT INTO connections (tenant, device, replica, seen_at)
                 SELECT v.column1, v.column2, v.column3, v.column4 FROM (VALUES {rows}) AS v
                 JOIN devices ON devices.tenant = v.column1 AND devices.id = v.column2
                 WHERE true ORDER BY v.column1, v.column2 ON CONFLICT (tenant, device) DO UPDATE SET
                    replica = excluded.replica, seen_at = excluded.seen_at
                 WHERE connections.replica IS NULL OR connections.replica = excluded.replica
                    OR connections.seen_at <= excluded.seen_at + {SKEW_MS}
                    OR NOT EXISTS (SELECT 1 FROM replicas WHERE replicas.id = connections.replica)"
            )
        },
        |query, coming| {
            query
                .bind(coming.tenant.to_string())
                .bind(coming.device.to_string())
                .bind(replica)
                .bind(signed(coming.at))
        },
    )
    .await?;
    in_chunks(
        db,
        &went,
        4,
        |rows| {
            format!(
                "UPDATE connections SET replica = NULL, seen_at = v.column4
                 FROM (VALUES {rows}) AS v
                 WHERE connections.tenant = v.column1 AND connections.device = v.column2
                     AND connections.replica = v.column3"
            )
        },
        |query, going| {
            query
                .bind(going.tenant.to_string())
                .bind(going.device.to_string())
                .bind(replica)
                .bind(signed(going.at))
        },
    )
    .await?;
    Ok(())
}

/// The devices that this replica has, as far as the store knows.
pub async fn connected_at(
    db: &mut AnyConnection,
    replica: &ReplicaId,
) -> Result<HashSet<DeviceId>, StoreError> {
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT device FROM connections WHERE connections.replica = $1")
            .bind(replica.as_str())
            .fetch_all(db)
            .await?;
    rows.iter()
        .map(|(id,)| parse(id, "connections.device"))
        .collect()
}

/// How many devices this replica has, as far as the store knows.
pub async fn count_at(db: &mut AnyConnection, replica: &ReplicaId) -> Result<u64, StoreError> {
    let (count,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM connections WHERE connections.replica = $1")
            .bind(replica.as_str())
            .fetch_one(db)
            .await?;
    Ok(unsigned(count))
}

/// The devices that this replica has, and that do not hold what they should since `late` or longer, or are no longer
/// active.
pub async fn lagging_at(
    db: &mut AnyConnection,
    replica: &ReplicaId,
    late: u64,
) -> Result<Vec<DeviceId>, StoreError> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT devices.id FROM connections
         JOIN devices ON devices.tenant = connections.tenant AND devices.id = connections.device
         LEFT JOIN desired
             ON desired.tenant = connections.tenant AND desired.device = connections.device
         LEFT JOIN observed
             ON observed.tenant = connections.tenant AND observed.device = connections.device
         WHERE connections.replica = $1 AND (devices.state <> 'active' OR desired.since < $2
             AND (observed.device IS NULL OR observed.generation <> desired.generation
                 OR observed.digest <> desired.digest))",
    )
    .bind(replica.as_str())
    .bind(signed(late))
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|(id,)| parse(&id, "devices.id"))
        .collect()
}

#[derive(FromRow)]
struct Row {
    device: String,
    /// Null where it is not alive.
    replica: Option<String>,
    seen_at: i64,
}

impl From<Row> for Connection {
    fn from(row: Row) -> Self {
        Self {
            connected: row.replica.is_some(),
            seen_at: Some(unsigned(row.seen_at)),
        }
    }
}

/// One device's connection.
pub(super) async fn connection(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
) -> Result<Connection, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT connections.device, replicas.id AS replica, connections.seen_at
             FROM connections LEFT JOIN replicas ON replicas.id = connections.replica
             WHERE connections.tenant = $1 AND connections.device = $2",
    )
    .bind(tenant.as_str())
    .bind(device.as_str())
    .fetch_optional(db)
    .await?;
    Ok(row.map(Into::into).unwrap_or_default())
}

/// The connections of a fleet's devices, by device id.
pub(super) async fn connections(
    db: &mut AnyConnection,
    fleet: &FleetId,
) -> Result<HashMap<String, Connection>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT connections.device, replicas.id AS replica, connections.seen_at
         FROM connections JOIN devices
             ON devices.tenant = connections.tenant AND devices.id = connections.device
         LEFT JOIN replicas ON replicas.id = connections.replica
         WHERE devices.tenant = $1 AND devices.fleet = $2",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.device.clone(), row.into()))
        .collect())
}
