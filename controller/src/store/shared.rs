//! What all replicas must have in common, encrypted.

use sqlx::AnyConnection;

use super::StoreError;

/// What is remembered under a name.
pub async fn find(db: &mut AnyConnection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let row: Option<(Vec<u8>,)> = sqlx::query_as("SELECT value FROM shared WHERE name = $1")
        .bind(name)
        .fetch_optional(db)
        .await?;
    Ok(row.map(|(value,)| value))
}

/// Remembers a value in the place of `before`, unless somebody else was faster.
pub async fn put(
    db: &mut AnyConnection,
    name: &str,
    value: &[u8],
    before: Option<&[u8]>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO shared (name, value) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE shared.value = $3",
    )
    .bind(name)
    .bind(value)
    .bind(before)
    .execute(db)
    .await?;
    Ok(())
}
