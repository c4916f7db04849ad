//! What the edge must know of a device, in one look.

use std::collections::HashMap;

use longshore_protocol::{DeviceId, DeviceName, Digest, api::DeviceState};
use sqlx::{AnyConnection, FromRow};

use super::{Desired, state_of, states::DesiredRow};
use crate::store::{ROWS_PER_STATEMENT, StoreError, fleets::FleetId, parse, placeholders};

/// Who a device is, whether it may connect, and what it should run.
#[derive(Clone, Debug)]
pub struct Standing {
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
    /// What it should run.
    pub desired: Option<Desired>,
}

#[derive(FromRow)]
struct Row {
    id: String,
    tenant: String,
    fleet: String,
    name: String,
    public_key: String,
    state: String,
    state_reason: String,
    generation: Option<i64>,
    digest: Option<String>,
    revision: Option<String>,
    objects: Option<i64>,
    since: Option<i64>,
}

impl TryFrom<Row> for Standing {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let desired = match (
            row.generation,
            row.digest,
            row.revision,
            row.objects,
            row.since,
        ) {
            (Some(generation), Some(digest), Some(revision), Some(objects), Some(since)) => {
                Some(DesiredRow {
                    device: row.id,
                    generation,
                    digest,
                    revision,
                    objects,
                    since,
                })
            }
            _ => None,
        };
        Ok(Self {
            fleet: FleetId {
                tenant: parse(&row.tenant, "devices.tenant")?,
                name: parse(&row.fleet, "devices.fleet")?,
            },
            name: parse(&row.name, "devices.name")?,
            public_key: parse(&row.public_key, "devices.public_key")?,
            state: state_of(&row.state)?,
            state_reason: row.state_reason,
            desired: desired.map(TryInto::try_into).transpose()?,
        })
    }
}

/// How these devices stand. Their certificates are what says so, hence no tenant. One that cannot be read is an
/// error of its own.
pub async fn standings(
    db: &mut AnyConnection,
    devices: &[DeviceId],
) -> Result<HashMap<DeviceId, Result<Standing, StoreError>>, StoreError> {
    let mut found = HashMap::with_capacity(devices.len());
    for chunk in devices.chunks(ROWS_PER_STATEMENT) {
        let sql = format!(
            "SELECT devices.id, devices.tenant, devices.fleet, devices.name, devices.public_key,
                devices.state, devices.state_reason, desired.generation, desired.digest,
                desired.revision, desired.objects, desired.since
             FROM devices LEFT JOIN desired
                ON desired.tenant = devices.tenant AND desired.device = devices.id
             WHERE devices.id IN {}",
            placeholders(1, chunk.len()),
        );
        let mut query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .persistent(crate::store::is_common(chunk.len()));
        for device in chunk {
            query = query.bind(device.as_str());
        }
        let rows: Vec<Row> = query.fetch_all(&mut *db).await?;
        for row in rows {
            found.insert(parse(&row.id, "devices.id")?, row.try_into());
        }
    }
    Ok(found)
}
