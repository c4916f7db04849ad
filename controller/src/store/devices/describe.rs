//! What the repo and the controller say of devices: names, labels, conditions.

use std::collections::{BTreeMap, HashMap, HashSet};

use longshore_protocol::{Condition, DeviceId, DeviceName, TenantName};
use sqlx::AnyConnection;

use super::is_unbuilt;
use crate::store::{
    StoreError,
    fleets::{self, FleetId},
    in_chunks, json, placeholders,
};

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

/// Writes descriptions of the fleet's devices. A device whose new name another living device has, and keeps, keeps
/// its own.
pub async fn describe(
    db: &mut AnyConnection,
    fleet: &FleetId,
    descriptions: &[Description],
) -> Result<(), StoreError> {
    if descriptions.is_empty() {
        return Ok(());
    }
    let stamp = fleets::count_change(db, fleet).await?;
    in_chunks(
        db,
        descriptions,
        7,
        |rows| {
            format!(
                "UPDATE devices SET labels = v.column4, conditions = v.column5, changed = v.column6,
                    unbuilt = v.column7
                 FROM (VALUES {rows}) AS v
                 WHERE devices.tenant = v.column1 AND devices.fleet = v.column2
                     AND devices.id = v.column3"
            )
        },
        |query, row| {
            query
                .bind(fleet.tenant.to_string())
                .bind(fleet.name.to_string())
                .bind(row.id.to_string())
                .bind(json(&row.labels))
                .bind(json(&row.conditions))
                .bind(stamp)
                .bind(i64::from(is_unbuilt(&row.conditions)))
        },
    )
    .await?;
    let renames = renames(db, fleet, descriptions).await?;
    // Names change places by way of a name that no device can have.
    let aside: Vec<_> = renames.iter().map(|(id, _)| (id, id)).collect();
    set_names(db, &fleet.tenant, &aside).await?;
    let names: Vec<_> = renames.iter().map(|(id, name)| (id, name)).collect();
    set_names(db, &fleet.tenant, &names).await
}

/// The devices that get another name, with it.
async fn renames(
    db: &mut AnyConnection,
    fleet: &FleetId,
    descriptions: &[Description],
) -> Result<Vec<(String, String)>, StoreError> {
    let mut wanted = Vec::new();
    for chunk in descriptions.chunks(crate::store::ROWS_PER_STATEMENT) {
        let sql = format!(
            "SELECT devices.id, v.column2 FROM (VALUES {}) AS v
             JOIN devices ON devices.id = v.column1 AND devices.name <> v.column2
             WHERE devices.tenant = ${} AND devices.fleet = ${}",
            placeholders(chunk.len(), 2),
            2 * chunk.len() + 1,
            2 * chunk.len() + 2
        );
        let mut query = sqlx::query_as(sqlx::AssertSqlSafe(sql));
        for row in chunk {
            query = query.bind(row.id.as_str()).bind(row.name.as_str());
        }
        let rows: Vec<(String, String)> = query
            .bind(fleet.tenant.as_str())
            .bind(fleet.name.as_str())
            .fetch_all(&mut *db)
            .await?;
        wanted.extend(rows);
    }
    let mut holders = HashMap::new();
    for (_, name) in &wanted {
        let holder: Option<(String,)> = sqlx::query_as(
            "SELECT id FROM devices WHERE tenant = $1 AND fleet = $2 AND name = $3
             AND state IN ('pending', 'active')",
        )
        .bind(fleet.tenant.as_str())
        .bind(fleet.name.as_str())
        .bind(name)
        .fetch_optional(&mut *db)
        .await?;
        if let Some((holder,)) = holder {
            holders.insert(name.clone(), holder);
        }
    }
    // Whoever keeps its name may keep others from getting theirs, and so on.
    loop {
        let moving: HashSet<_> = wanted.iter().map(|(id, _)| id.clone()).collect();
        let before = wanted.len();
        wanted.retain(|(_, name)| {
            holders
                .get(name)
                .is_none_or(|holder| moving.contains(holder))
        });
        if wanted.len() == before {
            break;
        }
    }
    Ok(wanted)
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
