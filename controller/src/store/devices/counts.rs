//! How many devices of a fleet there are, and how they do: counted by the database, in one statement.
//!
//! What is counted here is what [`DeviceView`](super::DeviceView) says of each device.

use std::collections::BTreeMap;

use longshore_protocol::{
    DeviceName, FleetName, TenantName,
    api::{DeviceCounts, DeviceState},
};
use sqlx::{AnyConnection, FromRow};

use super::state_of;
use crate::store::{StoreError, fleets::FleetId, parse, unsigned};

/// A device with its states, each where it has one.
const STATES: &str = "devices
    LEFT JOIN desired ON desired.tenant = devices.tenant AND desired.device = devices.id
    LEFT JOIN observed ON observed.tenant = devices.tenant AND observed.device = devices.id";
/// A device's report is about what it should run now.
const IS_CURRENT: &str =
    "observed.generation = desired.generation AND observed.digest = desired.digest";

/// How a fleet's devices are counted.
#[derive(FromRow)]
struct Row {
    fleet: String,
    state: String,
    devices: i64,
    connected: i64,
    in_sync: i64,
    failing: i64,
}

/// How the tenant's devices do, by fleet; of one fleet, where it is named. Fleets without devices are left out.
async fn count(
    db: &mut AnyConnection,
    tenant: &TenantName,
    fleet: Option<&FleetName>,
) -> Result<BTreeMap<FleetName, DeviceCounts>, StoreError> {
    let of_fleet = fleet.map_or("", |_| "AND devices.fleet = $2");
    let sql = format!(
        "SELECT devices.fleet, devices.state, COUNT(*) AS devices, COUNT(replicas.id) AS connected,
            COUNT(CASE WHEN observed.phase = 'Applied' AND {IS_CURRENT} THEN 1 END) AS in_sync,
            COUNT(CASE WHEN devices.unbuilt <> 0 OR observed.phase = 'Failed' THEN 1 END) AS failing
         FROM {STATES}
         LEFT JOIN connections
             ON connections.tenant = devices.tenant AND connections.device = devices.id
         LEFT JOIN replicas ON replicas.id = connections.replica
         WHERE devices.tenant = $1 {of_fleet} AND devices.state IN ('pending', 'active')
         GROUP BY devices.fleet, devices.state"
    );
    let mut query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.as_str());
    if let Some(fleet) = fleet {
        query = query.bind(fleet.as_str());
    }
    let rows: Vec<Row> = query.fetch_all(db).await?;
    let mut counts = BTreeMap::<_, DeviceCounts>::new();
    for row in rows {
        let counts = counts
            .entry(parse(&row.fleet, "devices.fleet")?)
            .or_default();
        let devices = unsigned(row.devices);
        match state_of(&row.state)? {
            DeviceState::Pending => counts.pending += devices,
            _ => counts.active += devices,
        }
        counts.total += devices;
        counts.connected += unsigned(row.connected);
        counts.in_sync += unsigned(row.in_sync);
        counts.failing += unsigned(row.failing);
    }
    Ok(counts)
}

/// How the devices of each fleet of a tenant do; fleets without any are left out. Those that ended are not counted.
pub async fn counts_by_fleet(
    db: &mut AnyConnection,
    tenant: &TenantName,
) -> Result<BTreeMap<FleetName, DeviceCounts>, StoreError> {
    count(db, tenant, None).await
}

/// How the devices of a fleet do. Those that ended are not counted.
pub async fn counts(db: &mut AnyConnection, fleet: &FleetId) -> Result<DeviceCounts, StoreError> {
    let mut counts = count(db, &fleet.tenant, Some(&fleet.name)).await?;
    Ok(counts.remove(&fleet.name).unwrap_or_default())
}

/// How far a fleet's active devices are with what they should run now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// How many there are.
    pub devices: u64,
    /// How many run it.
    pub in_sync: u64,
    /// How many do not get it built, or cannot apply it.
    pub failing: u64,
    /// The first few of those, by name.
    pub failing_first: Vec<DeviceName>,
}

/// How far a fleet's active devices are, with the names of at most `most` that fail. What a device said of an older
/// desired state counts for nothing.
pub async fn spread(
    db: &mut AnyConnection,
    fleet: &FleetId,
    most: u32,
) -> Result<Spread, StoreError> {
    let is_failing = format!(
        "(devices.unbuilt <> 0
            OR observed.phase = 'Failed' AND (desired.device IS NULL OR {IS_CURRENT}))"
    );
    let is_active = "devices.tenant = $1 AND devices.fleet = $2 AND devices.state = 'active'";
    let (devices, in_sync, failing): (i64, i64, i64) =
        sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT COUNT(*), COUNT(CASE WHEN observed.phase = 'Applied' AND {IS_CURRENT} THEN 1 END),
            COUNT(CASE WHEN {is_failing} THEN 1 END)
         FROM {STATES} WHERE {is_active}"
    )))
        .bind(fleet.tenant.as_str())
        .bind(fleet.name.as_str())
        .fetch_one(&mut *db)
        .await?;
    let mut spread = Spread {
        devices: unsigned(devices),
        in_sync: unsigned(in_sync),
        ..Spread::default()
    };
    if failing == 0 {
        return Ok(spread);
    }
    // Counted again, so that the number goes with the names.
    let rows: Vec<(String, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT devices.name, COUNT(*) OVER () FROM {STATES}
         WHERE {is_active} AND {is_failing} ORDER BY devices.name LIMIT $3"
    )))
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .bind(i64::from(most))
    .fetch_all(db)
    .await?;
    for (name, failing) in rows {
        spread.failing = unsigned(failing);
        spread.failing_first.push(parse(&name, "devices.name")?);
    }
    Ok(spread)
}
