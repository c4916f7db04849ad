//! Devices: what they are, what they should run, what they report.

use std::collections::{BTreeMap, HashMap, HashSet};

use longshore_protocol::{
    Condition, DeviceId, DeviceName, Digest, Generation, TenantName, TokenId,
    api::{DeviceState, Facts},
    message::{Held, Phase, StatusReport},
};
use sqlx::{AnyConnection, FromRow};

use super::{
    StoreError, fleets::FleetId, from_json, in_chunks, json, parse, placeholders, signed, unsigned,
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
    /// Whether the controller pushed its enrolment branch.
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
    /// Whether it is connected.
    pub connected: bool,
    /// When it was last heard of.
    pub last_seen: Option<u64>,
    /// When it enrolled.
    pub created_at: u64,
}

/// What a device should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Generation and digest of the set.
    pub target: Held,
    /// The commit that it comes from.
    pub revision: String,
    /// How many objects it has.
    pub objects: u64,
    /// When it was planned.
    pub since: u64,
}

/// What a device holds and reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The report.
    pub report: StatusReport,
    /// When it came.
    pub reported_at: u64,
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
    branch_pushed: i64,
    folder_to_delete: i64,
    labels: String,
    facts: String,
    conditions: String,
    source_address: String,
    connected: i64,
    last_seen: Option<i64>,
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
            branch_pushed: row.branch_pushed != 0,
            folder_to_delete: row.folder_to_delete != 0,
            labels: from_json(&row.labels, "devices.labels")?,
            facts: from_json(&row.facts, "devices.facts")?,
            conditions: from_json(&row.conditions, "devices.conditions")?,
            source_address: row.source_address,
            connected: row.connected != 0,
            last_seen: row.last_seen.map(unsigned),
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
        other => return Err(super::corrupt("devices.state", other)),
    })
}

/// Registers a device.
///
/// # Errors
/// [`StoreError::Duplicate`] where the fleet has a live device of that name, or any of that key.
pub async fn insert(db: &mut AnyConnection, device: &Device) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO devices (tenant, id, fleet, name, public_key, state, state_reason, token_id,
            branch_pushed, folder_to_delete, labels, facts, conditions, source_address, connected,
            last_seen, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
    )
    .bind(device.fleet.tenant.as_str())
    .bind(device.id.as_str())
    .bind(device.fleet.name.as_str())
    .bind(device.name.as_str())
    .bind(device.public_key.to_string())
    .bind(state_name(device.state))
    .bind(&device.state_reason)
    .bind(device.token.as_str())
    .bind(i64::from(device.branch_pushed))
    .bind(i64::from(device.folder_to_delete))
    .bind(json(&device.labels))
    .bind(json(&device.facts))
    .bind(json(&device.conditions))
    .bind(&device.source_address)
    .bind(i64::from(device.connected))
    .bind(device.last_seen.map(signed))
    .bind(signed(device.created_at))
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

/// The fleet's devices with their desired and observed states, by name. Three statements, whatever the size.
pub async fn list(db: &mut AnyConnection, fleet: &FleetId) -> Result<Vec<DeviceView>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT * FROM devices WHERE tenant = $1 AND fleet = $2 ORDER BY name, created_at, id",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(&mut *db)
    .await?;
    let desired: Vec<DesiredRow> = sqlx::query_as(
        "SELECT desired.* FROM desired JOIN devices
             ON devices.tenant = desired.tenant AND devices.id = desired.device
         WHERE devices.tenant = $1 AND devices.fleet = $2",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(&mut *db)
    .await?;
    let observed: Vec<ObservedRow> = sqlx::query_as(
        "SELECT observed.* FROM observed JOIN devices
             ON devices.tenant = observed.tenant AND devices.id = observed.device
         WHERE devices.tenant = $1 AND devices.fleet = $2",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(&mut *db)
    .await?;
    let mut desired: BTreeMap<_, _> = desired
        .into_iter()
        .map(|row| (row.device.clone(), row))
        .collect();
    let mut observed: BTreeMap<_, _> = observed
        .into_iter()
        .map(|row| (row.device.clone(), row))
        .collect();
    rows.into_iter()
        .map(|row| {
            let desired = desired.remove(&row.id).map(TryInto::try_into).transpose()?;
            let observed = observed
                .remove(&row.id)
                .map(TryInto::try_into)
                .transpose()?;
            Ok(DeviceView {
                device: row.try_into()?,
                desired,
                observed,
            })
        })
        .collect()
}

/// One device with its desired and observed state.
pub async fn view(db: &mut AnyConnection, device: Device) -> Result<DeviceView, StoreError> {
    let desired = desired(db, &device.fleet.tenant, &device.id).await?;
    let row: Option<ObservedRow> =
        sqlx::query_as("SELECT * FROM observed WHERE tenant = $1 AND device = $2")
            .bind(device.fleet.tenant.as_str())
            .bind(device.id.as_str())
            .fetch_optional(db)
            .await?;
    Ok(DeviceView {
        device,
        desired,
        observed: row.map(TryInto::try_into).transpose()?,
    })
}

/// Moves devices to a state. A device that was rejected or decommissioned stays so.
pub async fn set_state(
    db: &mut AnyConnection,
    tenant: &TenantName,
    devices: &[DeviceId],
    state: DeviceState,
    reason: &str,
) -> Result<(), StoreError> {
    for chunk in devices.chunks(super::ROWS_PER_STATEMENT) {
        let sql = format!(
            "UPDATE devices SET state = ${1}, state_reason = ${2}
             WHERE id IN {0} AND tenant = ${3} AND state IN ('pending', 'active')",
            placeholders(1, chunk.len()),
            chunk.len() + 1,
            chunk.len() + 2,
            chunk.len() + 3,
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for device in chunk {
            query = query.bind(device.as_str());
        }
        query
            .bind(state_name(state))
            .bind(reason)
            .bind(tenant.as_str())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// What the repo and the controller say of a device.
#[derive(Clone, Debug)]
pub struct Description {
    /// The device.
    pub id: DeviceId,
    /// Its name in the repo.
    pub name: DeviceName,
    /// Its labels in the repo.
    pub labels: BTreeMap<String, String>,
    /// The controller's statements.
    pub conditions: Vec<Condition>,
}

/// Writes descriptions. A device whose new name another living device has, and keeps, keeps its own.
pub async fn describe(
    db: &mut AnyConnection,
    tenant: &TenantName,
    descriptions: &[Description],
) -> Result<(), StoreError> {
    in_chunks(
        db,
        descriptions,
        4,
        |rows| {
            format!(
                "UPDATE devices SET labels = v.column3, conditions = v.column4
                 FROM (VALUES {rows}) AS v
                 WHERE devices.tenant = v.column1 AND devices.id = v.column2"
            )
        },
        |query, row| {
            query
                .bind(tenant.to_string())
                .bind(row.id.to_string())
                .bind(json(&row.labels))
                .bind(json(&row.conditions))
        },
    )
    .await?;
    let renames = renames(db, tenant, descriptions).await?;
    // Names change places by way of a name that no device can have.
    let aside: Vec<_> = renames.iter().map(|(id, _)| (id, id)).collect();
    set_names(db, tenant, &aside).await?;
    let names: Vec<_> = renames.iter().map(|(id, name)| (id, name)).collect();
    set_names(db, tenant, &names).await
}

/// The devices that get another name, with it.
async fn renames(
    db: &mut AnyConnection,
    tenant: &TenantName,
    descriptions: &[Description],
) -> Result<Vec<(String, String)>, StoreError> {
    let mut wanted = Vec::new();
    for chunk in descriptions.chunks(super::ROWS_PER_STATEMENT) {
        let sql = format!(
            "SELECT devices.fleet, devices.id, v.column2 FROM (VALUES {}) AS v
             JOIN devices ON devices.id = v.column1 AND devices.name <> v.column2
             WHERE devices.tenant = ${}",
            placeholders(chunk.len(), 2),
            2 * chunk.len() + 1
        );
        let mut query = sqlx::query_as(sqlx::AssertSqlSafe(sql));
        for row in chunk {
            query = query.bind(row.id.as_str()).bind(row.name.as_str());
        }
        let rows: Vec<(String, String, String)> =
            query.bind(tenant.as_str()).fetch_all(&mut *db).await?;
        wanted.extend(rows);
    }
    let mut holders = HashMap::new();
    for (fleet, _, name) in &wanted {
        let holder: Option<(String,)> = sqlx::query_as(
            "SELECT id FROM devices WHERE tenant = $1 AND fleet = $2 AND name = $3
             AND state IN ('pending', 'active')",
        )
        .bind(tenant.as_str())
        .bind(fleet)
        .bind(name)
        .fetch_optional(&mut *db)
        .await?;
        if let Some((holder,)) = holder {
            holders.insert((fleet.clone(), name.clone()), holder);
        }
    }
    // Whoever keeps its name may keep others from getting theirs, and so on.
    loop {
        let moving: HashSet<_> = wanted.iter().map(|(_, id, _)| id.clone()).collect();
        let before = wanted.len();
        wanted.retain(|(fleet, _, name)| {
            holders
                .get(&(fleet.clone(), name.clone()))
                .is_none_or(|holder| moving.contains(holder))
        });
        if wanted.len() == before {
            break;
        }
    }
    Ok(wanted.into_iter().map(|(_, id, name)| (id, name)).collect())
}

async fn set_names(
    db: &mut AnyConnection,
    tenant: &TenantName,
    names: &[(&String, &String)],
) -> Result<(), StoreError> {
    in_chunks(
        db,
        names,
        3,
        |rows| {
            format!(
                "UPDATE devices SET name = v.column3 FROM (VALUES {rows}) AS v
                 WHERE devices.tenant = v.column1 AND devices.id = v.column2"
            )
        },
        |query, (id, name)| {
            query
                .bind(tenant.to_string())
                .bind(id.as_str())
                .bind(name.as_str())
        },
    )
    .await?;
    Ok(())
}

/// Remembers that the enrolment branch of a pending device is in the repo.
pub async fn set_branch_pushed(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE devices SET branch_pushed = 1 WHERE tenant = $1 AND id = $2")
        .bind(tenant.as_str())
        .bind(device.as_str())
        .execute(db)
        .await?;
    Ok(())
}

/// Remembers whether the device's folder is still to be deleted from the tracked branch.
pub async fn set_folder_to_delete(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
    to_delete: bool,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE devices SET folder_to_delete = $3 WHERE tenant = $1 AND id = $2")
        .bind(tenant.as_str())
        .bind(device.as_str())
        .bind(i64::from(to_delete))
        .execute(db)
        .await?;
    Ok(())
}

/// Remembers that a device came or went, and what it says of itself.
pub async fn set_connected(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
    connected: bool,
    now: u64,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE devices SET connected = $3, last_seen = $4 WHERE tenant = $1 AND id = $2")
        .bind(tenant.as_str())
        .bind(device.as_str())
        .bind(i64::from(connected))
        .bind(signed(now))
        .execute(db)
        .await?;
    Ok(())
}

/// Remembers what a device says of itself.
pub async fn set_facts(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
    facts: &Facts,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE devices SET facts = $3 WHERE tenant = $1 AND id = $2")
        .bind(tenant.as_str())
        .bind(device.as_str())
        .bind(json(facts))
        .execute(db)
        .await?;
    Ok(())
}

/// Forgets all connections: a controller that starts has none.
pub async fn reset_connected(db: &mut AnyConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE devices SET connected = 0 WHERE connected <> 0")
        .execute(db)
        .await?;
    Ok(())
}

#[derive(FromRow)]
struct DesiredRow {
    device: String,
    generation: i64,
    digest: String,
    revision: String,
    objects: i64,
    since: i64,
}

impl TryFrom<DesiredRow> for Desired {
    type Error = StoreError;

    fn try_from(row: DesiredRow) -> Result<Self, StoreError> {
        Ok(Self {
            target: Held {
                generation: Generation::from(unsigned(row.generation)),
                digest: parse(&row.digest, "desired.digest")?,
            },
            revision: row.revision,
            objects: unsigned(row.objects),
            since: unsigned(row.since),
        })
    }
}

/// What a device should run.
pub async fn desired(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
) -> Result<Option<Desired>, StoreError> {
    let row: Option<DesiredRow> =
        sqlx::query_as("SELECT * FROM desired WHERE tenant = $1 AND device = $2")
            .bind(tenant.as_str())
            .bind(device.as_str())
            .fetch_optional(db)
            .await?;
    row.map(TryInto::try_into).transpose()
}

/// Writes desired states. A generation that is not above the stored one is left out, so that generations
/// never fall and one generation keeps its digest.
pub async fn put_desired(
    db: &mut AnyConnection,
    tenant: &TenantName,
    moves: &[(DeviceId, Desired)],
) -> Result<u64, StoreError> {
    in_chunks(
        db,
        moves,
        7,
        |rows| {
            format!(
                "INSERT INTO desired (tenant, device, generation, digest, revision, objects, since)
                 VALUES {rows} ON CONFLICT (tenant, device) DO UPDATE SET
                    generation = excluded.generation, digest = excluded.digest,
                    revision = excluded.revision, objects = excluded.objects, since = excluded.since
                 WHERE desired.generation < excluded.generation"
            )
        },
        |query, (device, desired)| {
            query
                .bind(tenant.to_string())
                .bind(device.to_string())
                .bind(signed(desired.target.generation.number()))
                .bind(desired.target.digest.to_string())
                .bind(desired.revision.as_str())
                .bind(signed(desired.objects))
                .bind(signed(desired.since))
        },
    )
    .await
}

/// Lifts the generation of a device's desired state above what the device holds.
///
/// # Errors
/// [`StoreError::GenerationOutOfRange`] where that leaves no room to count on.
pub async fn raise_generation(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
    above: Generation,
) -> Result<(), StoreError> {
    let held = i64::try_from(above.number())
        .ok()
        .filter(|held| *held < i64::MAX / 2)
        .ok_or(StoreError::GenerationOutOfRange(above))?;
    sqlx::query(
        "UPDATE desired SET generation = $3 + 1
         WHERE tenant = $1 AND device = $2 AND generation <= $3",
    )
    .bind(tenant.as_str())
    .bind(device.as_str())
    .bind(held)
    .execute(db)
    .await?;
    Ok(())
}

#[derive(FromRow)]
struct ObservedRow {
    device: String,
    generation: i64,
    digest: String,
    phase: String,
    conditions: String,
    reported_at: i64,
}

impl TryFrom<ObservedRow> for Observed {
    type Error = StoreError;

    fn try_from(row: ObservedRow) -> Result<Self, StoreError> {
        Ok(Self {
            report: StatusReport {
                held: Held {
                    generation: Generation::from(unsigned(row.generation)),
                    digest: parse(&row.digest, "observed.digest")?,
                },
                phase: from_json(&format!("\"{}\"", row.phase), "observed.phase")?,
                conditions: from_json(&row.conditions, "observed.conditions")?,
            },
            reported_at: unsigned(row.reported_at),
        })
    }
}

/// Writes a device's report.
pub async fn put_observed(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
    report: &StatusReport,
    now: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO observed (tenant, device, generation, digest, phase, conditions, reported_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (tenant, device) DO UPDATE SET
            generation = excluded.generation, digest = excluded.digest, phase = excluded.phase,
            conditions = excluded.conditions, reported_at = excluded.reported_at",
    )
    .bind(tenant.as_str())
    .bind(device.as_str())
    .bind(signed(report.held.generation.number()))
    .bind(report.held.digest.to_string())
    .bind(format!("{:?}", report.phase))
    .bind(json(&report.conditions))
    .bind(signed(now))
    .execute(db)
    .await?;
    Ok(())
}
