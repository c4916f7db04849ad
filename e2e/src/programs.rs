//! Where the programs of the workspace are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// The installed program `name`, by its whole path, as found in `PATH`.
///
/// Whoever starts a program by its name and with another environment forks, and forking thousands of simulated devices
/// takes a hundred milliseconds; a path can be started without.
///
/// # Errors
/// Where it is not installed.
pub fn installed(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("`{name}` is not installed; run `scripts/bootstrap`"))
}

/// A directory with programs that stand in for those of the running executable's profile.
const INSTEAD: &str = "LONGSHORE_PROGRAMS";

/// The built program `name`: in the directory that `LONGSHORE_PROGRAMS` names, in that of the running executable, or
/// above it, as Cargo lays them out.
///
/// # Errors
/// Where it is not built.
pub fn find(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("find the running program")?;
    let instead = env::var_os(INSTEAD).map(PathBuf::from);
    let beside = own.ancestors().skip(1).take(2).map(Path::to_owned);
    let found = instead
        .into_iter()
        .chain(beside)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file());
    match found {
        Some(program) => Ok(program),
        None => bail!(
            "`{name}` is not built beside {}; run `cargo build --workspace --all-targets` first",
            own.parent().unwrap_or(Path::new("/")).display()
        ),
    }
}
