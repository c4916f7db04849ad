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
    let name = format!("e2e_{:016x}", rand::random::<u64>());
    run(&format!("CREATE DATABASE {name}"))?;
    let mut url = Url::parse(&server()?).context(VARIABLE)?;
    url.set_path(&name);
    Ok(url.into())
}

fn run(sql: &str) -> Result<()> {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--dbname", &server()?])
        .args(["--command", sql])
        .output()
        .context("start psql")?;
    ensure!(
        output.status.success(),
        "psql: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn server() -> Result<String> {
    env::var(VARIABLE)
        .with_context(|| format!("{VARIABLE} is not set; run the tests with scripts/test"))
}

/// Cuts all connections to a database and takes no new ones, or takes them again.
///
/// # Errors
/// Where the server refuses.
pub fn allow_connections(database_url: &str, allowed: bool) -> Result<()> {
    let url = Url::parse(database_url).context("the database's URL")?;
    let name = url.path().trim_start_matches('/');
    run(&format!(
        "ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}"
    ))?;
    if allowed {
        return Ok(());
    }
    run(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    ))
}
