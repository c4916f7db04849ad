//! Fleets and their revisions.

use std::collections::BTreeMap;

use longshore_protocol::{Condition, FleetName, TenantName, api::HeldRemoval};
use serde::{Deserialize, Serialize};
use sqlx::{AnyConnection, FromRow};

use super::{StoreError, from_json, is_common, json, parse, placeholders, signed, unsigned};

/// Which fleet of which tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FleetId {
    /// The tenant.
    pub tenant: TenantName,
    /// The fleet within it.
    pub name: FleetName,
}

impl std::fmt::Display for FleetId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

/// A fleet.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Which.
    pub id: FleetId,
    /// The repo: a path or a URL.
    pub repo: String,
    /// The branch to follow.
    pub branch: String,
    /// The fleet's folder in the repo.
    pub path: String,
    /// Whether Git may use the controller's own credentials and read local paths.
    pub trusted: bool,
    /// The webhook's secret, encrypted.
    pub webhook_secret: Vec<u8>,
    /// The one before, encrypted, and until when it holds too.
    pub webhook_secret_before: Option<(Vec<u8>, u64)>,
    /// The forge and the credentials, encrypted.
    pub connection: Option<Vec<u8>>,
    /// Whether the controller hosts the repo itself.
    pub hosted: bool,
    /// How it does.
    pub status: FleetStatus,
    /// The revision whose held removals an operator confirmed.
    pub confirmed_revision: Option<String>,
    /// How many changes of its devices were counted, by [`count_change`].
    pub changes: u64,
    /// When it was made.
    pub created_at: u64,
}

/// Which fleet it is behind its name, and how it is reached: where that changes, it is followed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetLink {
    created_at: u64,
    connection: Option<Vec<u8>>,
}

impl Fleet {
    /// What it takes to follow it.
    pub fn link(&self) -> FleetLink {
        FleetLink {
            created_at: self.created_at,
            connection: self.connection.clone(),
        }
    }
}

/// What the last reconciliation found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetStatus {
    /// The commit in force.
    pub revision: Option<String>,
    /// Conditions of the fleet.
    pub conditions: Vec<Condition>,
    /// `path:line: message` each.
    pub problems: Vec<String>,
    /// Removals that wait for an operator.
    pub held: Vec<HeldRemoval>,
}

#[derive(FromRow)]
struct Row {
    tenant: String,
    name: String,
    repo: String,
    branch: String,
    path: String,
    trusted: i64,
    webhook_secret: Vec<u8>,
    webhook_secret_before: Option<Vec<u8>>,
    webhook_secret_before_until: Option<i64>,
    connection: Option<Vec<u8>>,
    hosted: i64,
    revision: Option<String>,
    conditions: String,
    problems: String,
    held: String,
    confirmed_revision: Option<String>,
    changes: i64,
    created_at: i64,
}

impl TryFrom<Row> for Fleet {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: FleetId {
                tenant: parse(&row.tenant, "fleets.tenant")?,
                name: parse(&row.name, "fleets.name")?,
            },
            repo: row.repo,
            branch: row.branch,
            path: row.path,
            trusted: row.trusted != 0,
            webhook_secret: row.webhook_secret,
            webhook_secret_before: row
                .webhook_secret_before
                .zip(row.webhook_secret_before_until.map(unsigned)),
            connection: row.connection,
            hosted: row.hosted != 0,
            status: FleetStatus {
                revision: row.revision,
                conditions: from_json(&row.conditions, "fleets.conditions")?,
                problems: from_json(&row.problems, "fleets.problems")?,
                held: from_json(&row.held, "fleets.held")?,
            },
            confirmed_revision: row.confirmed_revision,
            changes: unsigned(row.changes),
            created_at: unsigned(row.created_at),
        })
    }
}

/// Makes a fleet.
///
/// # Errors
/// [`StoreError::Duplicate`] where the tenant has one of that name.
pub async fn insert(db: &mut AnyConnection, fleet: &Fleet) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO fleets (tenant, name, repo, branch, path, trusted, webhook_secret,
            webhook_secret_before, webhook_secret_before_until, connection, hosted, revision,
            conditions, problems, held, confirmed_revision, changes, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
    )
    .bind(fleet.id.tenant.as_str())
    .bind(fleet.id.name.as_str())
    .bind(&fleet.repo)
    .bind(&fleet.branch)
    .bind(&fleet.path)
    .bind(i64::from(fleet.trusted))
    .bind(&fleet.webhook_secret)
    .bind(
        fleet
            .webhook_secret_before
            .as_ref()
            .map(|(secret, _)| secret.as_slice()),
    )
    .bind(
        fleet
            .webhook_secret_before
            .as_ref()
            .map(|(_, until)| signed(*until)),
    )
    .bind(fleet.connection.as_deref())
    .bind(i64::from(fleet.hosted))
    .bind(fleet.status.revision.as_deref())
    .bind(json(&fleet.status.conditions))
    .bind(json(&fleet.status.problems))
    .bind(json(&fleet.status.held))
    .bind(fleet.confirmed_revision.as_deref())
    .bind(signed(fleet.changes))
    .bind(signed(fleet.created_at))
    .execute(db)
    .await?;
    Ok(())
}

/// Every fleet of every tenant: what the controller follows.
pub async fn links(db: &mut AnyConnection) -> Result<BTreeMap<FleetId, FleetLink>, StoreError> {
    #[derive(FromRow)]
    struct Row {
        tenant: String,
        name: String,
        created_at: i64,
        connection: Option<Vec<u8>>,
    }
    let rows: Vec<Row> = sqlx::query_as("SELECT tenant, name, created_at, connection FROM fleets")
        .fetch_all(db)
        .await?;
    rows.into_iter()
        .map(|row| {
            let id = FleetId {
                tenant: parse(&row.tenant, "fleets.tenant")?,
                name: parse(&row.name, "fleets.name")?,
            };
            let link = FleetLink {
                created_at: unsigned(row.created_at),
                connection: row.connection,
            };
            Ok((id, link))
        })
        .collect()
}

/// The tenant's fleets, by name.
pub async fn list(db: &mut AnyConnection, tenant: &TenantName) -> Result<Vec<Fleet>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as("SELECT * FROM fleets WHERE tenant = $1 ORDER BY name")
        .bind(tenant.as_str())
        .fetch_all(db)
        .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// One fleet.
pub async fn find(db: &mut AnyConnection, id: &FleetId) -> Result<Option<Fleet>, StoreError> {
    let row: Option<Row> = sqlx::query_as("SELECT * FROM fleets WHERE tenant = $1 AND name = $2")
        .bind(id.tenant.as_str())
        .bind(id.name.as_str())
        .fetch_optional(db)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// Removes a fleet, its devices, tokens and revisions.
pub async fn delete(db: &mut AnyConnection, id: &FleetId) -> Result<bool, StoreError> {
    // Whoever works for it holds its lease first, and then locks the fleet.
    sqlx::query("DELETE FROM leases WHERE tenant = $1 AND fleet = $2")
        .bind(id.tenant.as_str())
        .bind(id.name.as_str())
        .execute(&mut *db)
        .await?;
    let done = sqlx::query("DELETE FROM fleets WHERE tenant = $1 AND name = $2")
        .bind(id.tenant.as_str())
        .bind(id.name.as_str())
        .execute(db)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Keeps fleets from being deleted until the transaction ends. Whoever writes what goes with a fleet calls this first,
/// unless it locks the fleet anyway: a deletion then waits here, and not in the middle of what the other one needs.
pub async fn keep(
    db: &mut AnyConnection,
    ids: impl IntoIterator<Item = &FleetId>,
) -> Result<(), StoreError> {
    // SQLite has one writer.
    if db.backend_name() != "PostgreSQL" {
        return Ok(());
    }
    let ids: Vec<_> = ids.into_iter().collect();
    for chunk in ids.chunks(super::ROWS_PER_STATEMENT) {
        let sql = format!(
            "SELECT 1 FROM fleets WHERE (tenant, name) IN (VALUES {})
             ORDER BY tenant, name FOR KEY SHARE",
            placeholders(chunk.len(), 2),
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(is_common(chunk.len()));
        for id in chunk {
            query = query.bind(id.tenant.as_str()).bind(id.name.as_str());
        }
        query.execute(&mut *db).await?;
    }
    Ok(())
}

/// Counts a change of the fleet's devices, and returns the stamp of those that change.
///
/// The fleet's row stays locked until the transaction ends: so stamps are in the order of commits, and who sees the
/// fleet's count sees every device with a stamp up to it. Whoever writes several devices of a fleet calls this first,
/// also where there is nothing to stamp, so that nobody locks devices in another order.
pub(super) async fn count_change(db: &mut AnyConnection, id: &FleetId) -> Result<i64, StoreError> {
    let stamp: Option<(i64,)> = sqlx::query_as(
        "UPDATE fleets SET changes = changes + 1 WHERE tenant = $1 AND name = $2 RETURNING changes",
    )
    .bind(id.tenant.as_str())
    .bind(id.name.as_str())
    .fetch_optional(db)
    .await?;
    // Where there is no fleet, there are no devices to stamp.
    Ok(stamp.map_or(0, |(stamp,)| stamp))
}

/// Writes what a reconciliation found.
pub async fn set_status(
    db: &mut AnyConnection,
    id: &FleetId,
    status: &FleetStatus,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE fleets SET revision = $3, conditions = $4, problems = $5, held = $6
         WHERE tenant = $1 AND name = $2",
    )
    .bind(id.tenant.as_str())
    .bind(id.name.as_str())
    .bind(status.revision.as_deref())
    .bind(json(&status.conditions))
    .bind(json(&status.problems))
    .bind(json(&status.held))
    .execute(db)
    .await?;
    Ok(())
}

/// A fleet's webhook secrets, encrypted.
#[derive(Clone, Debug)]
pub struct WebhookSecrets {
    /// The one in force.
    pub current: Vec<u8>,
    /// The one before, and until when it holds too.
    pub before: Option<(Vec<u8>, u64)>,
}

/// The webhook secrets of one fleet, and nothing else of it: webhooks come in bursts.
pub async fn webhook_secrets(
    db: &mut AnyConnection,
    id: &FleetId,
) -> Result<Option<WebhookSecrets>, StoreError> {
    #[derive(FromRow)]
    struct Row {
        secret: Vec<u8>,
        old: Option<Vec<u8>>,
        old_until: Option<i64>,
    }
    let row: Option<Row> = sqlx::query_as(
        "SELECT webhook_secret AS secret, webhook_secret_before AS old,
            webhook_secret_before_until AS old_until
         FROM fleets WHERE tenant = $1 AND name = $2",
    )
    .bind(id.tenant.as_str())
    .bind(id.name.as_str())
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| WebhookSecrets {
        current: row.secret,
        before: row.old.zip(row.old_until.map(unsigned)),
    }))
}

/// Replaces the webhook's secret; the one that was in force holds until `until`, too.
pub async fn rotate_webhook_secret(
    db: &mut AnyConnection,
    id: &FleetId,
    secret: &[u8],
    until: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE fleets SET webhook_secret_before = webhook_secret, webhook_secret_before_until = $4,
            webhook_secret = $3
         WHERE tenant = $1 AND name = $2",
    )
    .bind(id.tenant.as_str())
    .bind(id.name.as_str())
    .bind(secret)
    .bind(signed(until))
    .execute(db)
    .await?;
    Ok(())
}

/// Replaces the forge and the credentials, encrypted; `None` takes them away.
pub async fn set_connection(
    db: &mut AnyConnection,
    id: &FleetId,
    connection: Option<&[u8]>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE fleets SET connection = $3 WHERE tenant = $1 AND name = $2")
        .bind(id.tenant.as_str())
        .bind(id.name.as_str())
        .bind(connection)
        .execute(db)
        .await?;
    Ok(())
}

/// What the forge was told of commits, as [`set_reported`] wrote it.
pub async fn reported(db: &mut AnyConnection, id: &FleetId) -> Result<Option<String>, StoreError> {
    let row: Option<(Option<String>,)> =
        sqlx::query_as("SELECT reported FROM fleets WHERE tenant = $1 AND name = $2")
            .bind(id.tenant.as_str())
            .bind(id.name.as_str())
            .fetch_optional(db)
            .await?;
    Ok(row.and_then(|(reported,)| reported))
}

/// Remembers what the forge was told of commits.
pub async fn set_reported(
    db: &mut AnyConnection,
    id: &FleetId,
    reported: &str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE fleets SET reported = $3 WHERE tenant = $1 AND name = $2")
        .bind(id.tenant.as_str())
        .bind(id.name.as_str())
        .bind(reported)
        .execute(db)
        .await?;
    Ok(())
}

/// Lets the held removals of `revision` happen, if it is the one in force.
pub async fn confirm_removals(
    db: &mut AnyConnection,
    id: &FleetId,
    revision: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE fleets SET confirmed_revision = $3
         WHERE tenant = $1 AND name = $2 AND revision = $3",
    )
    .bind(id.tenant.as_str())
    .bind(id.name.as_str())
    .bind(revision)
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// A commit as the controller observed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The commit's id.
    pub commit: String,
    /// The first line of its message.
    pub summary: String,
    /// Its author's name.
    pub author: String,
    /// When the controller saw it.
    pub observed_at: u64,
    /// How many devices' desired state it changed.
    pub devices_changed: u64,
    /// How many problems it had.
    pub problems: u64,
}

/// Adds a revision, unless the newest one is of the same commit; then its counts are brought up to date,
/// `devices_changed` by adding to it.
pub async fn record_revision(
    db: &mut AnyConnection,
    id: &FleetId,
    revision: &Revision,
) -> Result<(), StoreError> {
    let updated = sqlx::query(
        "UPDATE revisions SET devices_changed = devices_changed + $4, problems = $5
         WHERE tenant = $1 AND fleet = $2 AND commit_id = $3
           AND seq = (SELECT MAX(seq) FROM revisions WHERE tenant = $1 AND fleet = $2)",
    )
    .bind(id.tenant.as_str())
    .bind(id.name.as_str())
    .bind(&revision.commit)
    .bind(signed(revision.devices_changed))
    .bind(signed(revision.problems))
    .execute(&mut *db)
    .await?;
    if updated.rows_affected() > 0 {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO revisions (tenant, fleet, seq, commit_id, summary, author, observed_at,
            devices_changed, problems)
         SELECT $1, $2, COALESCE(MAX(seq), 0) + 1, $3, $4, $5, $6, $7, $8
         FROM revisions WHERE tenant = $1 AND fleet = $2",
    )
    .bind(id.tenant.as_str())
    .bind(id.name.as_str())
    .bind(&revision.commit)
    .bind(&revision.summary)
    .bind(&revision.author)
    .bind(signed(revision.observed_at))
    .bind(signed(revision.devices_changed))
    .bind(signed(revision.problems))
    .execute(db)
    .await?;
    Ok(())
}

/// The newest revisions, newest first.
pub async fn revisions(
    db: &mut AnyConnection,
    id: &FleetId,
    limit: u32,
) -> Result<Vec<Revision>, StoreError> {
    #[derive(FromRow)]
    struct Row {
        commit_id: String,
        summary: String,
        author: String,
        observed_at: i64,
        devices_changed: i64,
        problems: i64,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT * FROM revisions WHERE tenant = $1 AND fleet = $2 ORDER BY seq DESC LIMIT $3",
    )
    .bind(id.tenant.as_str())
    .bind(id.name.as_str())
    .bind(i64::from(limit))
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Revision {
            commit: row.commit_id,
            summary: row.summary,
            author: row.author,
            observed_at: unsigned(row.observed_at),
            devices_changed: unsigned(row.devices_changed),
            problems: unsigned(row.problems),
        })
        .collect())
}
