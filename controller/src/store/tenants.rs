//! Tenants and operators' tokens.

use longshore_protocol::{Digest, TenantName};
use sqlx::AnyConnection;

use super::{StoreError, parse, signed, unsigned};

/// A tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// When it was made.
    pub created_at: u64,
}

/// What an operator's token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Everything.
    Administrator,
    /// Everything within one tenant, except to read the controller's own machine.
    Tenant(TenantName),
}

/// Makes a tenant.
///
/// # Errors
/// [`StoreError::Duplicate`] where the name is taken.
pub async fn insert(db: &mut AnyConnection, name: &TenantName, now: u64) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO tenants (name, created_at) VALUES ($1, $2)")
        .bind(name.as_str())
        .bind(signed(now))
        .execute(db)
        .await?;
    Ok(())
}

/// All tenants, by name.
pub async fn list(db: &mut AnyConnection) -> Result<Vec<Tenant>, StoreError> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT name, created_at FROM tenants ORDER BY name")
            .fetch_all(db)
            .await?;
    rows.into_iter()
        .map(|(name, created_at)| {
            Ok(Tenant {
                name: parse(&name, "tenants.name")?,
                created_at: unsigned(created_at),
            })
        })
        .collect()
}

/// Whether the tenant exists.
pub async fn exists(db: &mut AnyConnection, name: &TenantName) -> Result<bool, StoreError> {
    let row: Option<(i64,)> = sqlx::query_as("SELECT created_at FROM tenants WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(db)
        .await?;
    Ok(row.is_some())
}

/// Remembers an operator's token by its hash. One that is known gets the label.
pub async fn insert_api_token(
    db: &mut AnyConnection,
    hash: Digest,
    operator: &Operator,
    label: &str,
    now: u64,
) -> Result<(), StoreError> {
    let tenant = match operator {
        Operator::Administrator => None,
        Operator::Tenant(tenant) => Some(tenant.as_str()),
    };
    sqlx::query(
        "INSERT INTO api_tokens (hash, tenant, label, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (hash) DO UPDATE SET label = excluded.label",
    )
    .bind(hash.to_string())
    .bind(tenant)
    .bind(label)
    .bind(signed(now))
    .execute(db)
    .await?;
    Ok(())
}

/// Who holds the token with this hash.
pub async fn operator(
    db: &mut AnyConnection,
    hash: Digest,
) -> Result<Option<Operator>, StoreError> {
    let row: Option<(Option<String>,)> =
        sqlx::query_as("SELECT tenant FROM api_tokens WHERE hash = $1")
            .bind(hash.to_string())
            .fetch_optional(db)
            .await?;
    row.map(|(tenant,)| match tenant {
        None => Ok(Operator::Administrator),
        Some(tenant) => Ok(Operator::Tenant(parse(&tenant, "api_tokens.tenant")?)),
    })
    .transpose()
}

/// Forgets the administrators' tokens with this label, but for the one with this hash.
pub async fn delete_other_api_tokens(
    db: &mut AnyConnection,
    hash: Digest,
    label: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM api_tokens WHERE tenant IS NULL AND label = $1 AND hash <> $2")
        .bind(label)
        .bind(hash.to_string())
        .execute(db)
        .await?;
    Ok(())
}
