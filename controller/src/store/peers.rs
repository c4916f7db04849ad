//! How replicas that share a PostgreSQL know of each other, share the fleets, and talk.
//!
//! This is for PostgreSQL alone, on connections of its own: neither a rush on the store's connections nor a long
//! transaction may keep a replica from renewing its leases. All instants are of the database's clock.

use std::time::Duration;

use sqlx::{
    FromRow, PgPool,
    postgres::{PgListener, PgPoolOptions},
};

use super::{StoreError, fleets::FleetId, parse, signed};
use crate::replica::{Notice, ReplicaId, texts};

const CHANNEL: &str = "longshore";
/// Milliseconds since the Unix epoch, by the database's clock.
const NOW: &str = "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::BIGINT";

/// The way to the other replicas.
#[derive(Clone, Debug)]
pub struct Peers(PgPool);

/// Who is there, and what there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Census {
    /// How many replicas live, this one included.
    pub living: i64,
    /// How many fleets there are.
    pub fleets: usize,
    /// How many fleets the other replicas could work for, all together.
    pub others_want: usize,
}

/// A lease in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Of which fleet.
    pub fleet: FleetId,
    /// How often it had changed hands.
    pub epoch: i64,
}

#[derive(FromRow)]
struct Row {
    tenant: String,
    fleet: String,
    epoch: i64,
}

impl TryFrom<Row> for Granted {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let fleet = FleetId {
            tenant: parse(&row.tenant, "leases.tenant")?,
            name: parse(&row.fleet, "leases.fleet")?,
        };
        Ok(Self {
            fleet,
            epoch: row.epoch,
        })
    }
}

fn granted(rows: Vec<Row>) -> Result<Vec<Granted>, StoreError> {
    rows.into_iter().map(TryInto::try_into).collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Fleets as two columns.
fn columns(fleets: &[FleetId]) -> (Vec<&str>, Vec<&str>) {
    fleets
        .iter()
        .map(|fleet| (fleet.tenant.as_str(), fleet.name.as_str()))
        .unzip()
}

impl Peers {
    pub(super) fn open(url: &str) -> Result<Self, StoreError> {
        // One listens, one renews, one tells.
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy(url)?;
        Ok(Self(pool))
    }

    pub(super) async fn close(&self) {
        self.0.close().await;
    }

    /// Says that this replica lives, and how many fleets it could work for; buries the dead, and sees to it that every fleet has a
    /// lease to take.
    pub async fn beat(
        &self,
        replica: &ReplicaId,
        wants: usize,
        life: Duration,
    ) -> Result<Census, StoreError> {
        let mut db = self.0.acquire().await?;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO replicas (id, alive_until, wants) VALUES ($1, {NOW} + $2, $3)
             ON CONFLICT (id) DO UPDATE SET
                alive_until = excluded.alive_until, wants = excluded.wants"
        )))
        .bind(replica.as_str())
        .bind(millis(life))
        .bind(signed(wants as u64))
        .execute(&mut *db)
        .await?;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "DELETE FROM replicas WHERE alive_until < {NOW}"
        )))
        .execute(&mut *db)
        .await?;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO leases (tenant, fleet, holder, held_until, epoch)
             SELECT fleets.tenant, fleets.name, '', {NOW} - 1, 0 FROM fleets
             LEFT JOIN leases ON leases.tenant = fleets.tenant AND leases.fleet = fleets.name
             WHERE leases.tenant IS NULL
             ON CONFLICT DO NOTHING"
        )))
        .execute(&mut *db)
        .await?;
        let (living, others_want, fleets): (i64, i64, i64) = sqlx::query_as(
            "SELECT COUNT(*), COALESCE(SUM(CASE WHEN id = $1 THEN 0 ELSE wants END), 0)::BIGINT,
                (SELECT COUNT(*) FROM leases)
             FROM replicas",
        )
        .bind(replica.as_str())
        .fetch_one(&mut *db)
        .await?;
        Ok(Census {
            living,
            fleets: usize::try_from(fleets).unwrap_or_default(),
            others_want: usize::try_from(others_want).unwrap_or_default(),
        })
    }

    /// Renews what this replica holds, and returns all of that.
    pub async fn renew(
        &self,
        replica: &ReplicaId,
        life: Duration,
    ) -> Result<Vec<Granted>, StoreError> {
        let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "UPDATE leases SET held_until = {NOW} + $2 WHERE holder = $1
             RETURNING tenant, fleet, epoch"
        )))
        .bind(replica.as_str())
        .bind(millis(life))
        .fetch_all(&self.0)
        .await?;
        granted(rows)
    }

    /// Takes leases that nobody held for `free`, those that are free the longest first, of these fleets, and not more
    /// than `most`.
    ///
    /// A lease under which somebody is writing right now ([`super::replicas::check`]) is left alone.
    pub async fn take(
        &self,
        replica: &ReplicaId,
        fleets: &[FleetId],
        most: usize,
        free: Duration,
        life: Duration,
    ) -> Result<Vec<Granted>, StoreError> {
        let (tenants, names) = columns(fleets);
        let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "WITH free AS (
                SELECT tenant, fleet FROM leases
                WHERE held_until < {NOW} - $5 AND holder <> $1
                  AND (tenant, fleet) IN (SELECT * FROM UNNEST($2::TEXT[], $3::TEXT[]))
                ORDER BY held_until LIMIT $4 FOR UPDATE SKIP LOCKED)
             UPDATE leases SET holder = $1, held_until = {NOW} + $6, epoch = epoch + 1
             FROM free WHERE leases.tenant = free.tenant AND leases.fleet = free.fleet
             RETURNING leases.tenant, leases.fleet, leases.epoch"
        )))
        .bind(replica.as_str())
        .bind(tenants)
        .bind(names)
        .bind(signed(most as u64))
        .bind(millis(free))
        .bind(millis(life))
        .fetch_all(&self.0)
        .await?;
        granted(rows)
    }

    /// Gives leases back, so that others can take them at once.
    pub async fn release(&self, replica: &ReplicaId, fleets: &[FleetId]) -> Result<(), StoreError> {
        let (tenants, names) = columns(fleets);
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE leases SET holder = '', held_until = {NOW} - 1
             WHERE holder = $1 AND (tenant, fleet) IN (SELECT * FROM UNNEST($2::TEXT[], $3::TEXT[]))"
        )))
        .bind(replica.as_str())
        .bind(tenants)
        .bind(names)
        .execute(&self.0)
        .await?;
        Ok(())
    }

    /// Gives everything back: this replica stops.
    pub async fn leave(&self, replica: &ReplicaId) -> Result<(), StoreError> {
        let mut db = self.0.acquire().await?;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE leases SET holder = '', held_until = {NOW} - 1 WHERE holder = $1"
        )))
        .bind(replica.as_str())
        .execute(&mut *db)
        .await?;
        sqlx::query("DELETE FROM replicas WHERE id = $1")
            .bind(replica.as_str())
            .execute(&mut *db)
            .await?;
        Ok(())
    }

    /// Tells the other replicas.
    pub async fn tell(&self, replica: &ReplicaId, notices: &[Notice]) -> Result<(), StoreError> {
        sqlx::query("SELECT pg_notify($1, text) FROM UNNEST($2::TEXT[]) AS text")
            .bind(CHANNEL)
            .bind(texts(replica, notices))
            .execute(&self.0)
            .await?;
        Ok(())
    }

    /// Listens to the other replicas.
    pub async fn listen(&self) -> Result<PgListener, StoreError> {
        let mut listener = PgListener::connect_with(&self.0).await?;
        listener.listen(CHANNEL).await?;
        Ok(listener)
    }
}
