//! What devices should run, and what they report.

use std::collections::HashMap;

use longshore_protocol::{
    DeviceId, Generation, TenantName,
    message::{Held, StatusReport},
};
use sqlx::{AnyConnection, FromRow};

use super::roster;
use crate::{
    replica::ReplicaId,
    store::{StoreError, fleets::FleetId, from_json, in_chunks, json, parse, signed, unsigned},
};

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

#[derive(FromRow)]
pub(super) struct DesiredRow {
    pub device: String,
    pub generation: i64,
    pub digest: String,
    pub revision: String,
    pub objects: i64,
    pub since: i64,
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
    fleet: &FleetId,
    moves: &[(DeviceId, Desired)],
) -> Result<u64, StoreError> {
    if moves.is_empty() {
        return Ok(0);
    }
    let moving: Vec<_> = moves.iter().map(|(device, _)| device).collect();
    roster::stamp(db, fleet, &moving).await?;
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
                .bind(fleet.tenant.to_string())
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
    fleet: &FleetId,
    device: &DeviceId,
    above: Generation,
) -> Result<(), StoreError> {
    let held = i64::try_from(above.number())
        .ok()
        .filter(|held| *held < i64::MAX / 2)
        .ok_or(StoreError::GenerationOutOfRange(above))?;
    roster::stamp(db, fleet, &[device]).await?;
    sqlx::query(
        "UPDATE desired SET generation = $3 + 1
         WHERE tenant = $1 AND device = $2 AND generation <= $3",
    )
    .bind(fleet.tenant.as_str())
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

/// What a device holds and reports.
pub(super) async fn observed(
    db: &mut AnyConnection,
    tenant: &TenantName,
    device: &DeviceId,
) -> Result<Option<Observed>, StoreError> {
    let row: Option<ObservedRow> =
        sqlx::query_as("SELECT * FROM observed WHERE tenant = $1 AND device = $2")
            .bind(tenant.as_str())
            .bind(device.as_str())
            .fetch_optional(db)
            .await?;
    row.map(TryInto::try_into).transpose()
}

/// Desired and observed states by device id.
type States = (HashMap<String, Desired>, HashMap<String, Observed>);

/// The states of all devices of a fleet. Two statements, whatever the size.
pub(super) async fn of_fleet(
    db: &mut AnyConnection,
    fleet: &FleetId,
) -> Result<States, StoreError> {
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
    let desired = desired
        .into_iter()
        .map(|row| Ok((row.device.clone(), row.try_into()?)))
        .collect::<Result<_, StoreError>>()?;
    let observed = observed
        .into_iter()
        .map(|row| Ok((row.device.clone(), row.try_into()?)))
        .collect::<Result<_, StoreError>>()?;
    Ok((desired, observed))
}

/// A device's report, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Reported<'a> {
    /// Its tenant.
    pub tenant: &'a TenantName,
    /// The device.
    pub device: &'a DeviceId,
    /// What it reports.
    pub observed: &'a Observed,
}

/// Writes reports that came to `replica`, each device once. Those of devices that are no longer there are left out, and
/// so are those of devices that are at another replica by now: there they say more.
pub async fn put_observed(
    db: &mut AnyConnection,
    replica: &ReplicaId,
    reports: &[Reported<'_>],
) -> Result<(), StoreError> {
    in_chunks(
        db,
        reports,
        8,
        |rows| {
            format!(
                "INSERT INTO observed (tenant, device, generation, digest, phase, conditions, reported_at)
                 SELECT v.column1, v.column2, v.column3, v.column4, v.column5, v.column6, v.column7
                 FROM (VALUES {rows}) AS v
                 JOIN devices ON devices.tenant = v.column1 AND devices.id = v.column2
                 LEFT JOIN connections
                    ON connections.tenant = v.column1 AND connections.device = v.column2
                 WHERE connections.replica IS NULL OR connections.replica = v.column8
                    OR NOT EXISTS (SELECT 1 FROM replicas WHERE replicas.id = connections.replica)
                 ORDER BY v.column1, v.column2
                 ON CONFLICT (tenant, device) DO UPDATE SET
                    generation = excluded.generation, digest = excluded.digest, phase = excluded.phase,
                    conditions = excluded.conditions, reported_at = excluded.reported_at"
            )
        },
        |query, reported| {
            let Observed { report, reported_at } = reported.observed;
            query
                .bind(reported.tenant.to_string())
                .bind(reported.device.to_string())
                .bind(signed(report.held.generation.number()))
                .bind(report.held.digest.to_string())
                .bind(format!("{:?}", report.phase))
                .bind(json(&report.conditions))
                .bind(signed(*reported_at))
                .bind(replica.as_str())
        },
    )
    .await?;
    Ok(())
}

/// The fleet's connected devices that did not report to hold what they should.
pub async fn lagging(db: &mut AnyConnection, fleet: &FleetId) -> Result<Vec<DeviceId>, StoreError> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT devices.id FROM devices
         JOIN connections
             ON connections.tenant = devices.tenant AND connections.device = devices.id
         JOIN desired ON desired.tenant = devices.tenant AND desired.device = devices.id
         LEFT JOIN observed
             ON observed.tenant = devices.tenant AND observed.device = devices.id
         WHERE devices.tenant = $1 AND devices.fleet = $2 AND devices.state = 'active'
             AND connections.replica IN (SELECT id FROM replicas)
             AND (observed.device IS NULL OR observed.generation <> desired.generation
                 OR observed.digest <> desired.digest)",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(db)
    .await?;
    rows.iter().map(|(id,)| parse(id, "devices.id")).collect()
}
