//! Provisioning tokens, known by the hash of their secret.

use std::collections::{BTreeMap, HashMap};

use longshore_protocol::{Digest, TenantName, TokenId, api::Approval};
use sqlx::{AnyConnection, FromRow};

use super::{
    ROWS_PER_STATEMENT, StoreError,
    fleets::{self, FleetId},
    from_json, is_common, json, parse, placeholders, signed, unsigned,
};

/// A provisioning token without its secret.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its public id.
    pub id: TokenId,
    /// The fleet that it enrolls into.
    pub fleet: FleetId,
    /// What it is for.
    pub label: String,
    /// Who approves its devices.
    pub approval: Approval,
    /// How many devices enrolled with it.
    pub uses: u32,
    /// How many may.
    pub max_uses: Option<u32>,
    /// When it stops to work.
    pub expires_at: Option<u64>,
    /// Whether somebody revoked it.
    pub revoked: bool,
    /// The shared overlay that its devices get, from the fleet's root.
    pub overlay: Option<String>,
    /// The labels that its devices get.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: u64,
}

#[derive(FromRow)]
struct Row {
    tenant: String,
    id: String,
    fleet: String,
    label: String,
    hash: String,
    approval: String,
    uses: i64,
    max_uses: Option<i64>,
    expires_at: Option<i64>,
    revoked: i64,
    overlay: Option<String>,
    labels: String,
    created_at: i64,
}

impl TryFrom<Row> for Token {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse(&row.id, "tokens.id")?,
            fleet: FleetId {
                tenant: parse(&row.tenant, "tokens.tenant")?,
                name: parse(&row.fleet, "tokens.fleet")?,
            },
            label: row.label,
            approval: if row.approval == "automatic" {
                Approval::Automatic
            } else {
                Approval::Manual
            },
            uses: u32::try_from(row.uses).unwrap_or(u32::MAX),
            max_uses: row
                .max_uses
                .map(|uses| u32::try_from(uses).unwrap_or(u32::MAX)),
            expires_at: row.expires_at.map(unsigned),
            revoked: row.revoked != 0,
            overlay: row.overlay,
            labels: from_json(&row.labels, "tokens.labels")?,
            created_at: unsigned(row.created_at),
        })
    }
}

/// Makes a token whose secret has this hash.
pub async fn insert(db: &mut AnyConnection, token: &Token, hash: Digest) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tokens (tenant, id, fleet, label, hash, approval, uses, max_uses, expires_at,
            revoked, overlay, labels, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(token.fleet.tenant.as_str())
    .bind(token.id.as_str())
    .bind(token.fleet.name.as_str())
    .bind(&token.label)
    .bind(hash.to_string())
    .bind(match token.approval {
        Approval::Automatic => "automatic",
        Approval::Manual => "manual",
    })
    .bind(i64::from(token.uses))
    .bind(token.max_uses.map(i64::from))
    .bind(token.expires_at.map(signed))
    .bind(i64::from(token.revoked))
    .bind(token.overlay.as_deref())
    .bind(json(&token.labels))
    .bind(signed(token.created_at))
    .execute(db)
    .await?;
    Ok(())
}

/// The fleet's tokens, oldest first.
pub async fn list(db: &mut AnyConnection, fleet: &FleetId) -> Result<Vec<Token>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT * FROM tokens WHERE tenant = $1 AND fleet = $2 ORDER BY created_at, id",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// The tokens whose secrets have these hashes, by hash, whatever their state. A hash says by itself whose token it is,
/// hence no tenant. One that cannot be read is an error of its own.
pub async fn by_hashes(
    db: &mut AnyConnection,
    hashes: &[Digest],
) -> Result<HashMap<Digest, Result<Token, StoreError>>, StoreError> {
    let mut found = HashMap::with_capacity(hashes.len());
    for chunk in hashes.chunks(ROWS_PER_STATEMENT) {
        let sql = format!(
            "SELECT * FROM tokens WHERE hash IN {}",
            placeholders(1, chunk.len()),
        );
        let mut query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).persistent(is_common(chunk.len()));
        for hash in chunk {
            query = query.bind(hash.to_string());
        }
        let rows: Vec<Row> = query.fetch_all(&mut *db).await?;
        for row in rows {
            found.insert(parse(&row.hash, "tokens.hash")?, row.try_into());
        }
    }
    Ok(found)
}

/// The token with this id.
pub async fn find(
    db: &mut AnyConnection,
    tenant: &TenantName,
    id: &TokenId,
) -> Result<Option<Token>, StoreError> {
    let row: Option<Row> = sqlx::query_as("SELECT * FROM tokens WHERE tenant = $1 AND id = $2")
        .bind(tenant.as_str())
        .bind(id.as_str())
        .fetch_optional(db)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// Counts one use, unless the token is revoked, expired or exhausted. Exact under concurrency: the row is
/// the lock.
pub async fn take_use(db: &mut AnyConnection, token: &Token, now: u64) -> Result<bool, StoreError> {
    // The device that it is for locks the fleet.
    fleets::keep(&mut *db, [&token.fleet]).await?;
    let done = sqlx::query(
        "UPDATE tokens SET uses = uses + 1
         WHERE tenant = $1 AND id = $2 AND revoked = 0
           AND (max_uses IS NULL OR uses < max_uses)
           AND (expires_at IS NULL OR expires_at > $3)",
    )
    .bind(token.fleet.tenant.as_str())
    .bind(token.id.as_str())
    .bind(signed(now))
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Revokes a token.
pub async fn revoke(
    db: &mut AnyConnection,
    fleet: &FleetId,
    id: &TokenId,
) -> Result<bool, StoreError> {
    let done =
        sqlx::query("UPDATE tokens SET revoked = 1 WHERE tenant = $1 AND fleet = $2 AND id = $3")
            .bind(fleet.tenant.as_str())
            .bind(fleet.name.as_str())
            .bind(id.as_str())
            .execute(db)
            .await?;
    Ok(done.rows_affected() > 0)
}
