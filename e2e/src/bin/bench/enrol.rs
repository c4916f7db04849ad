//! `enrol`: how fast new devices get in, with an automatic token.

use anyhow::Result;
use clap::Args;

use crate::{
    report::{Aim, Report},
    yard::Yard,
};

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Enrol {
    /// How many devices
    #[arg(long, default_value_t = 2000)]
    devices: usize,
}

impl Enrol {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let yard = Yard::enroll(report, self.devices).await?;
        tell(&yard)?;
        yard.end().await
    }
}

/// What starting the yard took.
pub(crate) fn tell(yard: &Yard) -> Result<()> {
    let devices = yard.len();
    #[expect(clippy::cast_precision_loss, reason = "there are few devices")]
    let rate = devices as f64 / yard.enrolled_in.as_secs_f64();
    let report = &yard.report;
    report.aim("enrol_rate", rate, "1/s", devices, Aim::AtLeast(150.0))?;
    let all = yard.enrolled_in.as_secs_f64();
    report.line("enrol_until_all_connected", all, "s", devices)?;
    let cpu = yard.enrolled_for.own.as_secs_f64();
    report.line("enrol_controller_cpu", cpu, "s", devices)
}
