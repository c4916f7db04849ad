//! Devices that wait: which enrollment branch carries them, what they wait for, and their rejection.

use std::collections::HashMap;

use git2::Oid;
use longshore_protocol::{Condition, DeviceId, DeviceName, Digest};
use sqlx::AnyConnection;

use super::{Device, Row, is_unbuilt};
use crate::store::{
    ROWS_PER_STATEMENT, StoreError,
    fleets::{self, FleetId},
    in_chunks, json, parse, placeholders,
};

/// Which enrollment branch carries a device.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The device.
    pub id: DeviceId,
    /// The branch, if any.
    pub branch: Option<String>,
    /// The commit that adds the device there, once it is made.
    pub commit: Option<Oid>,
}

impl Assignment {
    /// Takes a device off its branch.
    pub fn none(id: DeviceId) -> Self {
        Self {
            id,
            branch: None,
            commit: None,
        }
    }
}

/// What a pending device waits for.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The device.
    pub id: DeviceId,
    /// In one line, for the device and for people.
    pub reason: String,
    /// The controller's statements.
    pub conditions: Vec<Condition>,
}

/// The fleet's devices that the enrollment has to do with: those that wait, those that an enrollment branch was made
/// for, and those whose folders are still to be deleted; oldest first. The others are most of a fleet.
pub async fn of_enrollment(
    db: &mut AnyConnection,
    fleet: &FleetId,
) -> Result<Vec<Device>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT * FROM devices WHERE tenant = $1 AND fleet = $2
         AND (state = 'pending' OR enrollment_branch IS NOT NULL OR folder_to_delete <> 0)
         ORDER BY created_at, id",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// The names of the fleet's devices that were rejected or decommissioned, by their keys.
pub async fn ended(
    db: &mut AnyConnection,
    fleet: &FleetId,
) -> Result<HashMap<Digest, DeviceName>, StoreError> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT public_key, name FROM devices WHERE tenant = $1 AND fleet = $2
         AND state IN ('rejected', 'decommissioned')",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|(key, name)| {
            Ok((
                parse(key, "devices.public_key")?,
                parse(name, "devices.name")?,
            ))
        })
        .collect()
}

/// Puts devices on enrollment branches, or takes them off.
pub async fn assign(
    db: &mut AnyConnection,
    fleet: &FleetId,
    assignments: &[Assignment],
) -> Result<(), StoreError> {
    if assignments.is_empty() {
        return Ok(());
    }
    fleets::count_change(db, fleet).await?;
    in_chunks(
        db,
        assignments,
        4,
        |rows| {
            format!(
                "UPDATE devices SET enrollment_branch = NULLIF(v.column3, ''),
                    enrollment_commit = NULLIF(v.column4, ''),
                    branch_pushed = CASE WHEN v.column3 = '' THEN 0 ELSE branch_pushed END
                 FROM (VALUES {rows}) AS v
                 WHERE devices.tenant = v.column1 AND devices.id = v.column2"
            )
        },
        |query, row| {
            query
                .bind(fleet.tenant.to_string())
                .bind(row.id.to_string())
                .bind(row.branch.clone().unwrap_or_default())
                .bind(row.commit.map(|id| id.to_string()).unwrap_or_default())
        },
    )
    .await?;
    Ok(())
}

/// Remembers that the repo has the enrollment branches of these devices, with their keys.
pub async fn set_branch_pushed(
    db: &mut AnyConnection,
    fleet: &FleetId,
    devices: &[DeviceId],
) -> Result<(), StoreError> {
    if devices.is_empty() {
        return Ok(());
    }
    fleets::count_change(db, fleet).await?;
    for chunk in devices.chunks(ROWS_PER_STATEMENT) {
        let sql = format!(
            "UPDATE devices SET branch_pushed = 1 WHERE id IN {} AND tenant = ${}",
            placeholders(1, chunk.len()),
            chunk.len() + 1,
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for device in chunk {
            query = query.bind(device.as_str());
        }
        query.bind(fleet.tenant.as_str()).execute(&mut *db).await?;
    }
    Ok(())
}

/// Says what pending devices wait for.
pub async fn put_waiting(
    db: &mut AnyConnection,
    fleet: &FleetId,
    waiting: &[Waiting],
) -> Result<(), StoreError> {
    if waiting.is_empty() {
        return Ok(());
    }
    let stamp = fleets::count_change(db, fleet).await?;
    in_chunks(
        db,
        waiting,
        7,
        |rows| {
            format!(
                "UPDATE devices SET state_reason = v.column4, conditions = v.column5,
                    changed = v.column6, unbuilt = v.column7
                 FROM (VALUES {rows}) AS v
                 WHERE devices.tenant = v.column1 AND devices.fleet = v.column2
                     AND devices.id = v.column3 AND state = 'pending'"
            )
        },
        |query, row| {
            query
                .bind(fleet.tenant.to_string())
                .bind(fleet.name.to_string())
                .bind(row.id.to_string())
                .bind(row.reason.clone())
                .bind(json(&row.conditions))
                .bind(stamp)
                .bind(i64::from(is_unbuilt(&row.conditions)))
        },
    )
    .await?;
    Ok(())
}

/// Rejects pending devices, each for its reason. One that was approved in the meantime stays approved.
pub async fn reject(
    db: &mut AnyConnection,
    fleet: &FleetId,
    rejected: &[(DeviceId, String)],
) -> Result<(), StoreError> {
    if rejected.is_empty() {
        return Ok(());
    }
    let stamp = fleets::count_change(db, fleet).await?;
    in_chunks(
        db,
        rejected,
        5,
        |rows| {
            format!(
                "UPDATE devices SET state = 'rejected', state_reason = v.column4, conditions = '[]',
                    changed = v.column5, unbuilt = 0
                 FROM (VALUES {rows}) AS v
                 WHERE devices.tenant = v.column1 AND devices.fleet = v.column2
                     AND devices.id = v.column3 AND state = 'pending'"
            )
        },
        |query, (id, reason)| {
            query
                .bind(fleet.tenant.to_string())
                .bind(fleet.name.to_string())
                .bind(id.to_string())
                .bind(reason.clone())
                .bind(stamp)
        },
    )
    .await?;
    Ok(())
}
