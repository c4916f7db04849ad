//! What devices say of themselves.

use std::collections::{BTreeMap, HashSet};

use longshore_protocol::{DeviceId, api::Facts};
use sqlx::AnyConnection;

use crate::store::{
    ROWS_PER_STATEMENT, StoreError,
    fleets::{self, FleetId},
    in_chunks, is_common, json, placeholders,
};

/// Remembers what devices say of themselves, each device once. What is known already is not written. Returns the fleets
/// of the others.
pub async fn set_facts(
    db: &mut AnyConnection,
    facts: &[(&FleetId, &DeviceId, &Facts)],
) -> Result<Vec<FleetId>, StoreError> {
    // They are said at every connect and hardly ever new, so most often this is all.
    let mut news = Vec::new();
    for chunk in facts.chunks(ROWS_PER_STATEMENT) {
        let sql = format!(
            "SELECT devices.id FROM (VALUES {}) AS v
             JOIN devices ON devices.tenant = v.column1 AND devices.id = v.column2
             WHERE devices.facts <> v.column3",
            placeholders(chunk.len(), 3),
        );
        let mut query =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).persistent(is_common(chunk.len()));
        for (fleet, device, facts) in chunk {
            query = query
                .bind(fleet.tenant.as_str())
                .bind(device.as_str())
                .bind(json(facts));
        }
        let new: HashSet<String> = query.fetch_all(&mut *db).await?.into_iter().collect();
        let is_new =
            |(_, device, _): &&(&FleetId, &DeviceId, &Facts)| new.contains(device.as_str());
        news.extend(chunk.iter().filter(is_new).copied());
    }
    // Whoever writes many devices of a fleet locks the fleet first, so that none waits for another in a circle.
    let mut stamps: BTreeMap<&FleetId, i64> = news.iter().map(|(fleet, ..)| (*fleet, 0)).collect();
    for (fleet, stamp) in &mut stamps {
        *stamp = fleets::count_change(db, fleet).await?;
    }
    let stamped: Vec<_> = news
        .into_iter()
        .filter_map(|(fleet, device, facts)| Some((fleet, device, facts, *stamps.get(fleet)?)))
        .collect();
    in_chunks(
        db,
        &stamped,
        4,
        |rows| {
            format!(
                "UPDATE devices SET facts = v.column3, changed = v.column4
                 FROM (VALUES {rows}) AS v
                 WHERE devices.tenant = v.column1 AND devices.id = v.column2"
            )
        },
        |query, (fleet, device, facts, stamp)| {
            query
                .bind(fleet.tenant.to_string())
                .bind(device.to_string())
                .bind(json(facts))
                .bind(*stamp)
        },
    )
    .await?;
    Ok(stamps.into_keys().cloned().collect())
}
