//! Which replicas live, and whether one still holds the lease under which it writes.

use sqlx::AnyConnection;

use super::{StoreError, fleets::FleetId};
use crate::replica::ReplicaId;

/// Remembers that this replica is the only one: whatever was connected to another is no longer.
pub async fn alone(db: &mut AnyConnection, replica: &ReplicaId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM replicas")
        .execute(&mut *db)
        .await?;
    sqlx::query("INSERT INTO replicas (id, alive_until, wants) VALUES ($1, $2, 0)")
        .bind(replica.as_str())
        .bind(i64::MAX)
        .execute(db)
        .await?;
    Ok(())
}

/// Checks that a replica still holds a lease, and keeps others from taking it until the transaction ends. Only
/// PostgreSQL has several replicas.
///
/// The lock is one that the lease's renewal does not wait for, and that makes [`super::peers::Peers::take`] pass over it.
///
/// # Errors
/// [`StoreError::LeaseLost`] where it does not.
pub async fn check(
    db: &mut AnyConnection,
    holder: &ReplicaId,
    fleet: &FleetId,
    epoch: i64,
) -> Result<(), StoreError> {
    let held: Option<(i64,)> = sqlx::query_as(
        "SELECT epoch FROM leases
         WHERE tenant = $1 AND fleet = $2 AND holder = $3 AND epoch = $4 FOR KEY SHARE",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .bind(holder.as_str())
    .bind(epoch)
    .fetch_optional(db)
    .await?;
    held.map(drop).ok_or(StoreError::LeaseLost)
}
