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

/// The newest report of one pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The pull request's number.
    pub number: u64,
    /// The commit that it was compared with.
    pub base: String,
    /// The commit that it proposed.
    pub head: String,
    /// What was found; `None` where it is not rendered.
    pub report: Option<Preview>,
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
    report: Option<Vec<u8>>,
    told: String,
    reported_at: i64,
}

impl TryFrom<Row> for Reported {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let report = row.report.map(|report| {
            let text = decompress(&report, "previews.report")?;
            serde_json::from_slice(&text)
                .map_err(|error| corrupt("previews.report", &error.to_string()))
        });
        Ok(Self {
            number: unsigned(row.number),
            base: row.base,
            head: row.head,
            report: report.transpose()?,
            told: from_json(&row.told, "previews.told")?,
            at: unsigned(row.reported_at),
        })
    }
}

/// Remembers what was found and told of a pull request, in the place of what was remembered before.
pub async fn put(
    db: &mut AnyConnection,
    fleet: &FleetId,
    reported: &Reported,
) -> Result<(), StoreError> {
    let report = reported
        .report
        .as_ref()
        .map(|report| compress(json(report).as_bytes()));
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

/// What is remembered of one pull request.
pub async fn find(
    db: &mut AnyConnection,
    fleet: &FleetId,
    number: u64,
) -> Result<Option<Reported>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT number, base, head, report, told, reported_at FROM previews
         WHERE tenant = $1 AND fleet = $2 AND number = $3",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .bind(signed(number))
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// The numbers of the pull requests that something is remembered of.
pub async fn numbers(db: &mut AnyConnection, fleet: &FleetId) -> Result<Vec<u64>, StoreError> {
    let rows: Vec<(i64,)> = sqlx::query_as(
        "SELECT number FROM previews WHERE tenant = $1 AND fleet = $2 ORDER BY number",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|(number,)| unsigned(number)).collect())
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
