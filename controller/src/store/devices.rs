//! Devices: what they are, with what they should run and what they report.

mod connections;
mod counts;
mod describe;
mod facts;
mod pending;
mod roster;
mod standing;
mod states;

use std::collections::BTreeMap;

use git2::Oid;
use longshore_protocol::{
    Condition, ConditionStatus, DeviceId, DeviceName, Digest, TokenId,
    api::{DeviceState, Facts},
    message::Phase,
};
use sqlx::{AnyConnection, FromRow};

pub use self::{
    connections::{Coming, Connection, connected_at, count_at, lagging_at, put_connections},
    counts::{Spread, counts, counts_by_fleet, spread},
    describe::{Description, describe},
    facts::set_facts,
    pending::{
        Assignment, Waiting, assign, ended, of_enrollment, put_waiting, reject, set_branch_pushed,
    },
    roster::{Member, changed_since},
    standing::{Standing, standings},
    states::{
        Desired, Observed, Reported, desired, lagging, put_desired, put_observed, raise_generation,
    },
};
use super::{
    StoreError, corrupt,
    fleets::{self, FleetId},
    from_json, json, parse, placeholders, signed, unsigned,
};

/// A device.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Its fleet.
    pub fleet: FleetId,
    /// Its name.
    pub name: DeviceName,
    /// The digest of its public key.
    pub public_key: Digest,
    /// Where it stands.
    pub state: DeviceState,
    /// Why it stands there, for people.
    pub state_reason: String,
    /// The token it enrolled with.
    pub token: TokenId,
    /// The enrollment branch that carries it.
    pub enrollment_branch: Option<String>,
    /// The commit that adds it there.
    pub enrollment_commit: Option<Oid>,
    /// Whether the repo had that branch, with the device's key: from then on, its absence means a rejection.
    pub branch_pushed: bool,
    /// Whether its folder is still to be deleted from the tracked branch.
    pub folder_to_delete: bool,
    /// Its labels in the revision in force.
    pub labels: BTreeMap<String, String>,
    /// What it said of itself.
    pub facts: Facts,
    /// The controller's statements about it.
    pub conditions: Vec<Condition>,
    /// From which address it enrolled.
    pub source_address: String,
    /// When it enrolled.
    pub created_at: u64,
}

/// A device with its desired and observed state.
#[derive(Clone, Debug)]
pub struct DeviceView {
    /// The device.
    pub device: Device,
    /// What it should run.
    pub desired: Option<Desired>,
    /// What it reports.
    pub observed: Option<Observed>,
    /// Whether it is there.
    pub connection: Connection,
}

impl DeviceView {
    /// Whether the device reported the desired generation as applied.
    pub fn in_sync(&self) -> bool {
        match (&self.desired, &self.observed) {
            (Some(desired), Some(observed)) => {
                observed.report.phase == Phase::Applied && observed.report.held == desired.target
            }
            _ => false,
        }
    }

    /// Whether the device's overlay does not build.
    pub fn is_unbuilt(&self) -> bool {
        is_unbuilt(&self.device.conditions)
    }

    /// Whether the device's overlay does not build, or its runtime does not take what was built.
    pub fn is_failing(&self) -> bool {
        let failed = |it: &Observed| it.report.phase == Phase::Failed;
        self.is_unbuilt() || self.observed.as_ref().is_some_and(failed)
    }
}

/// Whether these statements say that a device's overlay does not build. Whoever writes `devices.conditions` writes this
/// to `devices.unbuilt`, where counts look.
fn is_unbuilt(conditions: &[Condition]) -> bool {
    conditions.iter().any(|it| {
        it.kind == "Rendered" && it.status == ConditionStatus::False && it.reason != "Building"
    })
}

#[derive(FromRow)]
struct Row {
    tenant: String,
    id: String,
    fleet: String,
    name: String,
    public_key: String,
    state: String,
    state_reason: String,
    token_id: String,
    enrollment_branch: Option<String>,
    enrollment_commit: Option<String>,
    branch_pushed: i64,
    folder_to_delete: i64,
    labels: String,
    facts: String,
    conditions: String,
    source_address: String,
    created_at: i64,
}

impl TryFrom<Row> for Device {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse(&row.id, "devices.id")?,
            fleet: FleetId {
                tenant: parse(&row.tenant, "devices.tenant")?,
                name: parse(&row.fleet, "devices.fleet")?,
            },
            name: parse(&row.name, "devices.name")?,
            public_key: parse(&row.public_key, "devices.public_key")?,
            state: state_of(&row.state)?,
            state_reason: row.state_reason,
            token: parse(&row.token_id, "devices.token_id")?,
            enrollment_branch: row.enrollment_branch,
            enrollment_commit: row
                .enrollment_commit
                .map(|commit| parse(&commit, "devices.enrollment_commit"))
                .transpose()?,
            branch_pushed: row.branch_pushed != 0,
            folder_to_delete: row.folder_to_delete != 0,
            labels: from_json(&row.labels, "devices.labels")?,
            facts: from_json(&row.facts, "devices.facts")?,
            conditions: from_json(&row.conditions, "devices.conditions")?,
            source_address: row.source_address,
            created_at: unsigned(row.created_at),
        })
    }
}

fn state_name(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Pending => "pending",
        DeviceState::Active => "active",
        DeviceState::Rejected => "rejected",
        DeviceState::Decommissioned => "decommissioned",
    }
}

fn state_of(text: &str) -> Result<DeviceState, StoreError> {
    Ok(match text {
        "pending" => DeviceState::Pending,
        "active" => DeviceState::Active,
        "rejected" => DeviceState::Rejected,
        "decommissioned" => DeviceState::Decommissioned,
        other => return Err(corrupt("devices.state", other)),
    })
}

/// Registers a device.
///
/// # Errors
/// [`StoreError::Duplicate`] where the fleet has a live device of that name, or any of that key.
pub async fn insert(db: &mut AnyConnection, device: &Device) -> Result<(), StoreError> {
    let stamp = fleets::count_change(db, &device.fleet).await?;
    sqlx::query(
        "INSERT INTO devices (tenant, id, fleet, name, public_key, state, state_reason, token_id,
            enrollment_branch, enrollment_commit, branch_pushed, folder_to_delete, labels, facts, conditions, source_address,
            created_at, changed, unbuilt)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
    )
    .bind(device.fleet.tenant.as_str())
    .bind(device.id.as_str())
    .bind(device.fleet.name.as_str())
    .bind(device.name.as_str())
    .bind(device.public_key.to_string())
    .bind(state_name(device.state))
    .bind(&device.state_reason)
    .bind(device.token.as_str())
    .bind(device.enrollment_branch.as_deref())
    .bind(device.enrollment_commit.map(|id| id.to_string()))
    .bind(i64::from(device.branch_pushed))
    .bind(i64::from(device.folder_to_delete))
    .bind(json(&device.labels))
    .bind(json(&device.facts))
    .bind(json(&device.conditions))
    .bind(&device.source_address)
    .bind(signed(device.created_at))
    .bind(stamp)
    .bind(i64::from(is_unbuilt(&device.conditions)))
    .execute(db)
    .await?;
    Ok(())
}

/// The fleet's device with this key, whatever its state.
pub async fn by_key(
    db: &mut AnyConnection,
    fleet: &FleetId,
    key: Digest,
) -> Result<Option<Device>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT * FROM devices WHERE tenant = $1 AND fleet = $2 AND public_key = $3",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .bind(key.to_string())
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// The device with this id. Its certificate is what says so, hence no tenant.
pub async fn by_id(db: &mut AnyConnection, id: &DeviceId) -> Result<Option<Device>, StoreError> {
    let row: Option<Row> = sqlx::query_as("SELECT * FROM devices WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(db)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// The fleet's device of this name: the live one, else the one that lived last.
pub async fn find(
    db: &mut AnyConnection,
    fleet: &FleetId,
    name: &DeviceName,
) -> Result<Option<Device>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT * FROM devices WHERE tenant = $1 AND fleet = $2 AND name = $3
         ORDER BY CASE WHEN state IN ('pending', 'active') THEN 0 ELSE 1 END, created_at DESC, id",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .bind(name.as_str())
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// The fleet's devices with their desired and observed states and connections, by name. Four statements, whatever the size.
pub async fn list(db: &mut AnyConnection, fleet: &FleetId) -> Result<Vec<DeviceView>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT * FROM devices WHERE tenant = $1 AND fleet = $2 ORDER BY name, created_at, id",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(&mut *db)
    .await?;
    let (mut desired, mut observed) = states::of_fleet(&mut *db, fleet).await?;
    let connections = connections::connections(db, fleet).await?;
    rows.into_iter()
        .map(|row| {
            let (desired, observed) = (desired.remove(&row.id), observed.remove(&row.id));
            let connection = connections.get(&row.id).copied().unwrap_or_default();
            Ok(DeviceView {
                device: row.try_into()?,
                desired,
                observed,
                connection,
            })
        })
        .collect()
}

/// The ids of all of the fleet's devices.
pub async fn ids(db: &mut AnyConnection, fleet: &FleetId) -> Result<Vec<DeviceId>, StoreError> {
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT id FROM devices WHERE tenant = $1 AND fleet = $2")
            .bind(fleet.tenant.as_str())
            .bind(fleet.name.as_str())
            .fetch_all(db)
            .await?;
    rows.iter().map(|(id,)| parse(id, "devices.id")).collect()
}

/// One device with its desired and observed state.
pub async fn view(db: &mut AnyConnection, device: Device) -> Result<DeviceView, StoreError> {
    let desired = desired(&mut *db, &device.fleet.tenant, &device.id).await?;
    let observed = states::observed(&mut *db, &device.fleet.tenant, &device.id).await?;
    let connection = connections::connection(db, &device.fleet.tenant, &device.id).await?;
    Ok(DeviceView {
        device,
        desired,
        observed,
        connection,
    })
}

/// Moves the fleet's devices to a state. A device that was rejected or decommissioned stays so.
pub async fn set_state(
    db: &mut AnyConnection,
    fleet: &FleetId,
    devices: &[DeviceId],
    state: DeviceState,
    reason: &str,
) -> Result<(), StoreError> {
    if devices.is_empty() {
        return Ok(());
    }
    let stamp = fleets::count_change(db, fleet).await?;
    for chunk in devices.chunks(super::ROWS_PER_STATEMENT) {
        let sql = format!(
            "UPDATE devices SET state = ${1}, state_reason = ${2}, changed = ${3}
             WHERE id IN {0} AND tenant = ${4} AND fleet = ${5} AND state IN ('pending', 'active')",
            placeholders(1, chunk.len()),
            chunk.len() + 1,
            chunk.len() + 2,
            chunk.len() + 3,
            chunk.len() + 4,
            chunk.len() + 5,
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for device in chunk {
            query = query.bind(device.as_str());
        }
        query
            .bind(state_name(state))
            .bind(reason)
            .bind(stamp)
            .bind(fleet.tenant.as_str())
            .bind(fleet.name.as_str())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// Remembers whether the device's folder is still to be deleted from the tracked branch.
pub async fn set_folder_to_delete(
    db: &mut AnyConnection,
    fleet: &FleetId,
    device: &DeviceId,
    to_delete: bool,
) -> Result<(), StoreError> {
    fleets::count_change(&mut *db, fleet).await?;
    sqlx::query("UPDATE devices SET folder_to_delete = $3 WHERE tenant = $1 AND id = $2")
        .bind(fleet.tenant.as_str())
        .bind(device.as_str())
        .bind(i64::from(to_delete))
        .execute(db)
        .await?;
    Ok(())
}
