//! `push`: real agents, from `git push` to applied on the one device that it changes, and what it costs.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use longshore_e2e::{Agent, World, programs, repo::git, wait::PATIENCE};
use serde_json::json;

use crate::{
    report::{Report, mebibytes, milliseconds, quantile, say},
    stage::{self, LOOK},
};

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Push {
    /// How many pushes
    #[arg(long, default_value_t = 60)]
    pushes: usize,
    /// How many devices, of which each push changes one
    #[arg(long, default_value_t = 6)]
    devices: usize,
    /// How many objects each device has
    #[arg(long, default_value_t = 20)]
    objects: usize,
}

/// The times of one push, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// Until the repo had the commit.
    landed: f64,
    /// Until `git push` returned.
    returned: f64,
    /// Until the device's file had the change.
    applied: f64,
    /// A plain `kustomize build` of the same overlay, right afterwards.
    build: f64,
}

impl Push {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        ensure!(
            self.pushes > 0 && self.devices > 1 && self.objects > 1,
            "too little to measure"
        );
        let report = report.with(&[
            ("devices", json!(self.devices)),
            ("objects", json!(self.objects)),
        ]);
        say("starting a controller and its devices");
        let mut world = World::start().await?;
        let mut agents = stage::enroll(&world, self.devices, self.objects).await?;
        let pushes = self.pushes(&world, &agents).await?;
        Self::times(&report, &pushes)?;
        self.costs(&report, &world, &agents).await?;
        Self::footprint(&report, &mut world, &mut agents).await?;
        for agent in &mut agents {
            agent.stop().await?;
        }
        world.controller.stop().await?;
        world.controller.be_quiet();
        Ok(())
    }

    async fn pushes(&self, world: &World, agents: &[Agent]) -> Result<Vec<Times>> {
        let mut pushes = Vec::new();
        // The first ones warm the machine up.
        for round in 0..self.pushes + 3 {
            let agent = agents.get(round % agents.len()).context("a device")?;
            let marker = format!("push {round}.");
            let own = format!("devices/{}/own.yaml", agent.name());
            let copy = world.repo.copy();
            copy.write(&own, longshore_e2e::world::own_object(&marker))?;
            let commit = copy.commit(&marker)?;
            let path = copy.path().to_owned();
            let begun = Instant::now();
            let push = tokio::task::spawn_blocking(move || {
                git(&path, ["push", "--quiet", "origin", "main"])?;
                anyhow::Ok(milliseconds(begun.elapsed()))
            });
            lands(world, &commit).await?;
            let landed = milliseconds(begun.elapsed());
            stage::arrives(agent, &marker).await?;
            let applied = milliseconds(begun.elapsed());
            let returned = push.await??;
            world.api.in_sync(agent.name()).await?;
            let build = stage::build(world, agent.name())?;
            if round >= 3 {
                pushes.push(Times {
                    landed,
                    returned,
                    applied,
                    build,
                });
            }
            if round % 10 == 9 {
                say(&format!("{} of {} pushes", round + 1, self.pushes + 3));
            }
        }
        Ok(pushes)
    }

    fn times(report: &Report, pushes: &[Times]) -> Result<()> {
        let sorted = |value: fn(&Times) -> f64| {
            let mut values: Vec<_> = pushes.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let n = pushes.len();
        let whole = sorted(|push| push.applied);
        let after = sorted(|push| push.applied - push.returned);
        let build = sorted(|push| push.build);
        let landed = sorted(|push| push.applied - push.landed);
        for (metric, values) in [
            ("commit_to_applied", &whole),
            ("landed_to_applied", &landed),
            ("push_returned_to_applied", &after),
            ("git_push", &sorted(|push| push.returned)),
            ("kustomize_build", &build),
            (
                "commit_to_applied_minus_build",
                &sorted(|push| push.applied - push.build),
            ),
            (
                "landed_to_applied_minus_build",
                &sorted(|push| push.applied - push.landed - push.build),
            ),
            (
                "push_returned_to_applied_minus_build",
                &sorted(|push| push.applied - push.returned - push.build),
            ),
        ] {
            report.line(&format!("{metric}_median"), quantile(values, 0.5)?, "ms", n)?;
            report.line(&format!("{metric}_p99"), quantile(values, 0.99)?, "ms", n)?;
        }
        let ratio = quantile(&whole, 0.5)? / quantile(&build, 0.5)?;
        report.line("commit_to_applied_per_kustomize_build", ratio, "ratio", n)
    }

    /// What a commit costs that changes nothing, and one that changes one field.
    async fn costs(&self, report: &Report, world: &World, agents: &[Agent]) -> Result<()> {
        say("a commit that no device reads, and one that changes one field");
        let copy = world.repo.copy();
        let before = world.api.metrics().await?;
        copy.write("README.md", "# Nothing that a device reads\n")?;
        let commit = copy.publish("Change nothing")?;
        world.api.sees(&commit).await?;
        // Whatever it may have set off gets the time to happen.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = world.api.metrics().await?;
        let difference = |name| after.value(name) - before.value(name);
        report.line(
            "unread_commit_renders",
            difference("renders_total"),
            "builds",
            1,
        )?;
        report.line(
            "unread_commit_bytes",
            difference("manifest_bytes_total"),
            "B",
            1,
        )?;

        let agent = agents.first().context("a device")?;
        let before = world.api.metrics().await?;
        let own = format!("devices/{}/own.yaml", agent.name());
        copy.write(&own, longshore_e2e::world::own_object("one field"))?;
        copy.publish("Change one field")?;
        stage::arrives(agent, "one field").await?;
        world.api.in_sync(agent.name()).await?;
        let after = world.api.metrics().await?;
        let delta = after.value("manifest_bytes_total") - before.value("manifest_bytes_total");
        let manifests = world.api.manifests(agent.name()).await?;
        let full: usize = manifests
            .objects
            .iter()
            .map(|it| it.object.to_string().len())
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "manifests are small")]
        let full = full as f64;
        let n = manifests.objects.len();
        report.line("one_field_change_bytes", delta, "B", n)?;
        report.line("full_manifests_bytes", full, "B", n)?;
        report.line("one_field_change_share", delta / full, "ratio", n)
    }

    async fn footprint(report: &Report, world: &mut World, agents: &mut [Agent]) -> Result<()> {
        say("memory and sizes");
        // Idle: nothing happens for as long as it takes an allocator to give back what it will.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut resident = Vec::new();
        for agent in &mut *agents {
            resident.push(mebibytes(agent.process()?.resident_memory()?));
        }
        resident.sort_by(f64::total_cmp);
        report.line(
            "agent_resident_memory_median",
            quantile(&resident, 0.5)?,
            "MiB",
            agents.len(),
        )?;
        report.line(
            "agent_resident_memory_max",
            quantile(&resident, 1.0)?,
            "MiB",
            agents.len(),
        )?;
        let controller = world.controller.process()?.resident_memory()?;
        report.line(
            "controller_resident_memory",
            mebibytes(controller),
            "MiB",
            1,
        )?;
        for program in ["longshore-agent", "longshore-controller", "longshore"] {
            let size = fs::metadata(programs::find(program)?)
                .context(program)?
                .len();
            let metric = format!("{}_binary_size", program.replace('-', "_"));
            report.line(&metric, mebibytes(size), "MiB", 1)?;
        }
        Ok(())
    }
}

/// Waits until the tracked branch of the bare repo is at the commit.
async fn lands(world: &World, commit: &str) -> Result<()> {
    let branch = world.repo.bare().join("refs/heads/main");
    let end = Instant::now() + PATIENCE;
    while fs::read_to_string(&branch).is_ok_and(|id| id.trim() != commit) {
        ensure!(Instant::now() < end, "{commit} is not pushed");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
