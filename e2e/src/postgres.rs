//! Databases in the PostgreSQL that `scripts/test` starts.

use std::{env, process::Command};

use anyhow::{Context as _, Result, ensure};
use url::Url;

/// Where the PostgreSQL for tests is: a URL with the right to make databases.
pub const VARIABLE: &str = "LONGSHORE_TEST_POSTGRES_URL";

/// Makes a new, empty database and returns its URL. The whole server goes when `scripts/test` ends.
///
/// # Errors
/// Where no PostgreSQL was started for the tests.
pub fn new_database() -> Result<String> {
    let server = env::var(VARIABLE)
        .with_context(|| format!("{VARIABLE} is not set; run the tests with scripts/test"))?;
    let name = format!("e2e_{:016x}", rand::random::<u64>());
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--dbname", &server])
        .args(["--command", &format!("CREATE DATABASE {name}")])
        .output()
        .context("start psql")?;
    ensure!(
        output.status.success(),
        "psql: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut url = Url::parse(&server).context(VARIABLE)?;
    url.set_path(&name);
    Ok(url.into())
}
