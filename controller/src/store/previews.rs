//! What was found out about pull requests, and what their host was told of it.

use longshore_protocol::api::preview::Preview;
use serde::{Deserialize, Serialize};
use sqlx::{AnyConnection, FromRow};

use super::{
    StoreError,
    content::{compress, decompress},
    corrupt,
    fleets::FleetId,
    from_json, json, signed, unsigned,
};

/// What was compared for one pull request, and what its host was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The pull request's number.
    pub number: u64,
    /// The commit that it was compared with.
    pub base: String,
    /// The commit that it proposed.
    pub head: String,
    /// What the host was told.
    pub told: Told,
    /// When.
    pub at: u64,
}

/// What a host was told of one pull request: digests of texts, so that nothing is told twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The commit status.
    pub status: Option<String>,
    /// The comment; once there was one, it is kept up to date.
    pub comment: Option<String>,
    /// Whether that is all.
    #[serde(default)]
    pub done: bool,
    /// Whether a build failed in a way that may pass, so that another try may find something else.
    #[serde(default)]
    pub may_pass: bool,
}

#[derive(FromRow)]
struct Row {
    number: i64,
    base: String,
    head: String,
    told: String,
    reported_at: i64,
}

impl TryFrom<Row> for Reported {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            number: unsigned(row.number),
            base: row.base,
            head: row.head,
            told: from_json(&row.told, "previews.told")?,
            at: unsigned(row.reported_at),
        })
    }
}

/// Remembers what was compared and found of a pull request, in the place of what was remembered before. Without a
/// report, it is not rendered, or not yet.
pub async fn put(
    db: &mut AnyConnection,
    fleet: &FleetId,
    reported: &Reported,
    report: Option<&Preview>,
) -> Result<(), StoreError> {
    let report = report.map(|report| compress(json(report).as_bytes()));
    sqlx::query(
        "INSERT INTO previews (tenant, fleet, number, base, head, report, told, reported_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (tenant, fleet, number) DO UPDATE SET base = excluded.base,
            head = excluded.head, report = excluded.report, told = excluded.told,
            reported_at = excluded.reported_at",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .bind(signed(reported.number))
    .bind(&reported.base)
    .bind(&reported.head)
    .bind(report)
    .bind(json(&reported.told))
    .bind(signed(reported.at))
    .execute(db)
    .await?;
    Ok(())
}

/// Remembers what the host was told.
pub async fn set_told(
    db: &mut AnyConnection,
    fleet: &FleetId,
    number: u64,
    told: &Told,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE previews SET told = $4 WHERE tenant = $1 AND fleet = $2 AND number = $3")
        .bind(fleet.tenant.as_str())
        .bind(fleet.name.as_str())
        .bind(signed(number))
        .bind(json(told))
        .execute(db)
        .await?;
    Ok(())
}

/// What is remembered of the fleet's pull requests, by number.
pub async fn list(db: &mut AnyConnection, fleet: &FleetId) -> Result<Vec<Reported>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT number, base, head, told, reported_at FROM previews
         WHERE tenant = $1 AND fleet = $2 ORDER BY number",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// The report of one pull request, where it was rendered, and the commit that it is about.
pub async fn report(
    db: &mut AnyConnection,
    fleet: &FleetId,
    number: u64,
) -> Result<Option<(String, Preview)>, StoreError> {
    let row: Option<(String, Option<Vec<u8>>)> = sqlx::query_as(
        "SELECT head, report FROM previews WHERE tenant = $1 AND fleet = $2 AND number = $3",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .bind(signed(number))
    .fetch_optional(db)
    .await?;
    let Some((head, Some(report))) = row else {
        return Ok(None);
    };
    let report = serde_json::from_slice(&decompress(&report, "previews.report")?)
        .map_err(|error| corrupt("previews.report", &error.to_string()))?;
    Ok(Some((head, report)))
}

/// Forgets a pull request.
pub async fn delete(
    db: &mut AnyConnection,
    fleet: &FleetId,
    number: u64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM previews WHERE tenant = $1 AND fleet = $2 AND number = $3")
        .bind(fleet.tenant.as_str())
        .bind(fleet.name.as_str())
        .bind(signed(number))
        .execute(db)
        .await?;
    Ok(())
}
