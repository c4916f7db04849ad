//! `longshore-sim repo`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use longshore_agent::sim::{
    self, Roster,
    repo::{Overlays, Shape},
};

use crate::{Failure, say};

/// Writes a fleet repo. Each device's folder has the key that the device will enroll with, so that enrolling needs
/// no commits of the controller.
#[derive(Args, Debug)]
pub(crate) struct Repo {
    /// Where to write it. What is there is overwritten, and nothing removed
    directory: PathBuf,
    /// The file with the devices' keys; made where it is missing. Private keys stand in it in the open
    #[arg(long, value_name = "FILE")]
    identities: PathBuf,
    /// How many devices. With 0 there are only bases and groups: devices then come with an automatic token that names a
    /// group (`longshore tokens create --auto --overlay groups/group-00`)
    #[arg(long, default_value_t = 100)]
    devices: usize,
    /// What the devices' names begin with
    #[arg(long, default_value = "sim")]
    prefix: String,
    /// How many overlays the devices share; each device fills in variables of its own
    #[arg(long, default_value_t = 12, conflicts_with = "unique")]
    overlays: usize,
    /// Give each device an overlay of its own
    #[arg(long)]
    unique: bool,
    /// How many objects each device has, at least 2
    #[arg(long, default_value_t = 20)]
    objects: usize,
    /// How many layers of bases the overlays build on
    #[arg(long, default_value_t = 2)]
    layers: usize,
    /// The size of one more object that does not compress, in bytes
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    ballast: usize,
}

impl Repo {
    pub(crate) fn write(&self) -> Result<ExitCode, Failure> {
        let shape = Shape {
            overlays: if self.unique {
                Overlays::Unique
            } else {
                Overlays::Shared(self.overlays)
            },
            objects: self.objects,
            layers: self.layers,
            ballast: self.ballast,
        };
        let names = sim::names(&self.prefix, self.devices)?;
        let roster = Roster::open(&self.identities)?;
        shape.write_base(&self.directory)?;
        for (index, name) in names.iter().enumerate() {
            let key = roster.key_of(name)?;
            shape.write_device(&self.directory, index, name, key)?;
        }
        say(&format!(
            "{} devices in {}, their keys in {}. Next: commit it, and let a controller follow it",
            self.devices,
            self.directory.display(),
            self.identities.display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}
