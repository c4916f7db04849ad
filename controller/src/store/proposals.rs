//! Enrollment branches, each with the pull request that people decide it with.

use git2::Oid;
use longshore_protocol::{Digest, TokenId};
use sqlx::{AnyConnection, FromRow};

use super::{StoreError, fleets::FleetId, in_chunks, parse, signed, unsigned};

/// An enrollment branch, and what is known of its pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The branch, in the fleet repo.
    pub branch: String,
    /// The token of the devices that it carries.
    pub token: TokenId,
    /// When the first device was put on it.
    pub opened_at: u64,
    /// The commit of the tracked branch that it was made on.
    pub base: Option<Oid>,
    /// The tip as the controller wants it.
    pub pushed: Option<Oid>,
    /// The tip that the last push was to replace: where that failed, it is still in the repo.
    pub pushed_before: Option<Oid>,
    /// Whether people pushed to the branch: from then on it is theirs.
    pub edited: bool,
    /// The number of its pull request.
    pub number: Option<u64>,
    /// The page of its pull request.
    pub url: Option<String>,
    /// The digest of the text that the controller wrote last.
    pub written: Option<Digest>,
    /// Whether labels and reviewers were asked for.
    pub dressed: bool,
    /// What the forge had against them.
    pub warning: Option<String>,
}

impl Proposal {
    /// A branch that is still to be made.
    pub fn new(branch: String, token: TokenId, opened_at: u64) -> Self {
        Self {
            branch,
            token,
            opened_at,
            base: None,
            pushed: None,
            pushed_before: None,
            edited: false,
            number: None,
            url: None,
            written: None,
            dressed: false,
            warning: None,
        }
    }
}

#[derive(FromRow)]
struct Row {
    branch: String,
    token_id: String,
    opened_at: i64,
    base: Option<String>,
    pushed: Option<String>,
    pushed_before: Option<String>,
    edited: i64,
    number: Option<i64>,
    url: Option<String>,
    written: Option<String>,
    dressed: i64,
    warning: Option<String>,
}

impl TryFrom<Row> for Proposal {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let commit =
            |text: Option<String>, column| text.map(|text| parse::<Oid>(&text, column)).transpose();
        Ok(Self {
            branch: row.branch,
            token: parse(&row.token_id, "proposals.token_id")?,
            opened_at: unsigned(row.opened_at),
            base: commit(row.base, "proposals.base")?,
            pushed: commit(row.pushed, "proposals.pushed")?,
            pushed_before: commit(row.pushed_before, "proposals.pushed_before")?,
            edited: row.edited != 0,
            number: row.number.map(unsigned),
            url: row.url,
            written: row
                .written
                .map(|digest| parse(&digest, "proposals.written"))
                .transpose()?,
            dressed: row.dressed != 0,
            warning: row.warning,
        })
    }
}

/// The fleet's enrollment branches, by name.
pub async fn list(db: &mut AnyConnection, fleet: &FleetId) -> Result<Vec<Proposal>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT branch, token_id, opened_at, base, pushed, pushed_before, edited, number, url,
            written, dressed, warning
         FROM proposals WHERE tenant = $1 AND fleet = $2 ORDER BY branch",
    )
    .bind(fleet.tenant.as_str())
    .bind(fleet.name.as_str())
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Writes enrollment branches, new ones and known ones.
pub async fn put(
    db: &mut AnyConnection,
    fleet: &FleetId,
    proposals: &[Proposal],
) -> Result<(), StoreError> {
    let text = |commit: Option<Oid>| commit.map(|id| id.to_string());
    in_chunks(
        db,
        proposals,
        14,
        |rows| {
            format!(
                "INSERT INTO proposals (tenant, fleet, branch, token_id, opened_at, base, pushed,
                    pushed_before, edited, number, url, written, dressed, warning)
                 VALUES {rows}
                 ON CONFLICT (tenant, fleet, branch) DO UPDATE SET
                    base = excluded.base, pushed = excluded.pushed,
                    pushed_before = excluded.pushed_before, edited = excluded.edited,
                    number = excluded.number, url = excluded.url, written = excluded.written,
                    dressed = excluded.dressed, warning = excluded.warning"
            )
        },
        |query, row| {
            query
                .bind(fleet.tenant.to_string())
                .bind(fleet.name.to_string())
                .bind(row.branch.clone())
                .bind(row.token.to_string())
                .bind(signed(row.opened_at))
                .bind(text(row.base))
                .bind(text(row.pushed))
                .bind(text(row.pushed_before))
                .bind(i64::from(row.edited))
                .bind(row.number.map(signed))
                .bind(row.url.clone())
                .bind(row.written.map(|digest| digest.to_string()))
                .bind(i64::from(row.dressed))
                .bind(row.warning.clone())
        },
    )
    .await?;
    Ok(())
}

/// Forgets an enrollment branch.
pub async fn delete(
    db: &mut AnyConnection,
    fleet: &FleetId,
    branch: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM proposals WHERE tenant = $1 AND fleet = $2 AND branch = $3")
        .bind(fleet.tenant.as_str())
        .bind(fleet.name.as_str())
        .bind(branch)
        .execute(db)
        .await?;
    Ok(())
}
