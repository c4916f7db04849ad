//! What a fleet's reconciler reads of its devices, and which of them changed.
//!
//! Whoever changes what is read here counts a change of the fleet ([`fleets::count_change`]) and stamps the device with
//! the count, in the same transaction.

use std::collections::BTreeMap;

use longshore_protocol::{
    Condition, DeviceId, DeviceName, Digest, Generation,
    api::{DeviceState, Facts},
    message::Held,
};
use sqlx::{AnyConnection, FromRow};

use super::state_of;
use crate::store::{
    ROWS_PER_STATEMENT, StoreError,
    fleets::{self, FleetId},
    from_json, parse, placeholders, signed, unsigned,
};

/// A device, as far as its fleet's reconciler needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: DeviceId,
    /// Its name.
    pub name: DeviceName,
    /// The digest of its public key.
    pub public_key: Digest,
    /// Where it stands.
    pub state: DeviceState,
    /// Its labels in the revision in force.
    pub labels: BTreeMap<String, String>,
    /// What it says of itself, as far as somebody wants to know.
    pub facts: Facts,
    /// The controller's statements about it.
    pub conditions: Vec<Condition>,
    /// What it should run.
    pub target: Option<Held>,
}

#[derive(FromRow)]
struct Row {
    id: String,
    name: String,
    public_key: String,
    state: String,
    labels: String,
    facts: String,
    conditions: String,
    generation: Option<i64>,
    digest: Option<String>,
}

impl TryFrom<Row> for Member {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let target = match row.generation.zip(row.digest) {
            None => None,
            Some((generation, digest)) => Some(Held {
                generation: Generation::from(unsigned(generation)),
                digest: parse(&digest, "desired.digest")?,
            }),
        };
        Ok(Self {
            id: parse(&row.id, "devices.id")?,
            name: parse(&row.name, "devices.name")?,
            public_key: parse(&row.public_key, "devices.public_key")?,
            state: state_of(&row.state)?,
            labels: from_json(&row.labels, "devices.labels")?,
            facts: from_json(&row.facts, "devices.facts")?,
            conditions: from_json(&row.conditions, "devices.conditions")?,
            target,
        })
    }
}

macro_rules! changed_since {
    ($facts:literal) => {
        concat!(
            "SELECT devices.id, devices.name, devices.public_key, devices.state, devices.labels, ",
            $facts,
            ", devices.conditions, desired.generation, desired.digest
             FROM devices LEFT JOIN desired
                 ON desired.tenant = devices.tenant AND desired.device = devices.id
             WHERE devices.tenant = $1 AND devices.fleet = $2 AND devices.changed > $3"
        )
    };
}

/// The fleet's devices whose stamp is above `count`; all of them where there is none. A device may come although it
/// did not change, never the reverse. Their facts are left out unless somebody asks for them.
pub async fn changed_since(
    db: &mut AnyConnection,
    fleet: &FleetId,
    count: Option<u64>,
    with_facts: bool,
) -> Result<Vec<Member>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(if with_facts {
        changed_since!("devices.facts")
    } else {
        changed_since!("'{}' AS facts")
    })
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .bind(count.map_or(-1, signed))
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Stamps devices of which something changes that is kept outside of their rows.
pub(super) async fn stamp(
    db: &mut AnyConnection,
    fleet: &FleetId,
    devices: &[&DeviceId],
) -> Result<(), StoreError> {
    let stamp = fleets::count_change(db, fleet).await?;
    for chunk in devices.chunks(ROWS_PER_STATEMENT) {
        let sql = format!(
            "UPDATE devices SET changed = ${1} WHERE id IN {0} AND tenant = ${2} AND fleet = ${3}",
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
            .bind(stamp)
            .bind(fleet.tenant.as_str())
            .bind(fleet.name.as_str())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}
