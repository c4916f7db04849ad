//! `preview`: what it costs to tell what a change of a base does that many devices share.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use longshore_e2e::{World, WorldOptions, api::FLEET};
use longshore_protocol::api::preview::{CreatePreview, Preview as Told};
use reqwest::Method;
use serde_json::json;

use crate::report::{Report, milliseconds, quantile, say};

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Preview {
    /// How many devices
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// How many overlays they share, on one base
    #[arg(long, default_value_t = 12)]
    overlays: usize,
    /// How many previews, each of another change
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

impl Preview {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        ensure!(
            self.devices >= self.overlays && self.overlays > 0 && self.rounds > 0,
            "too little to measure"
        );
        let report = report.with(&[
            ("devices", json!(self.devices)),
            ("overlays", json!(self.overlays)),
        ]);
        say("starting a controller");
        let options = WorldOptions {
            empty: true,
            ..WorldOptions::default()
        };
        let mut world = World::with(options).await?;
        let commit = self.fleet(&world)?;
        world.api.sees(&commit).await?;

        let (first, builds) = self.preview(&world, 0).await?;
        report.line("preview_unbuilt_base", first, "ms", 1)?;
        report.line("preview_unbuilt_base_builds", builds, "builds", 1)?;
        let (mut times, mut most) = (Vec::new(), 0.0_f64);
        for round in 1..=self.rounds {
            let (took, builds) = self.preview(&world, round).await?;
            times.push(took);
            most = most.max(builds);
        }
        times.sort_by(f64::total_cmp);
        let n = times.len();
        report.line("preview_median", quantile(&times, 0.5)?, "ms", n)?;
        report.line("preview_max", quantile(&times, 1.0)?, "ms", n)?;
        report.line("preview_builds", most, "builds", n)?;
        let begun = Instant::now();
        self.told(&world, &branch(self.rounds)).await?;
        report.line("preview_again", milliseconds(begun.elapsed()), "ms", 1)?;
        world.controller.stop().await?;
        world.controller.be_quiet();
        Ok(())
    }

    /// Devices on shared overlays on one base.
    fn fleet(self, world: &World) -> Result<String> {
        let copy = world.repo.copy();
        copy.write(
            "fleet.yaml",
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: example}\n",
        )?;
        copy.write("base/kustomization.yaml", "resources: [shared.yaml]\n")?;
        copy.write("base/shared.yaml", shared(0))?;
        for n in 0..self.overlays {
            let kustomization = format!("resources: [../../base]\nnamePrefix: g{n}-\n");
            copy.write(&format!("groups/g{n}/kustomization.yaml"), kustomization)?;
        }
        for n in 0..self.devices {
            let (name, group) = (format!("store-{n:04}"), n % self.overlays);
            copy.write(
                &format!("devices/{name}/device.yaml"),
                format!(
                    "apiVersion: longshore.dev/v1alpha1\nkind: Device\nmetadata: {{name: {name}}}\n\
                     spec: {{overlay: ../../groups/g{group}, variables: {{STORE: \"{n}\"}}}}\n"
                ),
            )?;
        }
        let commit = copy.commit("A fleet")?;
        copy.push()?;
        Ok(commit)
    }

    /// Proposes another change of the base, and asks what it does. Returns the time and the number of builds.
    async fn preview(self, world: &World, round: usize) -> Result<(f64, f64)> {
        let copy = world.repo.copy();
        let branch = branch(round);
        copy.git(["switch", "--quiet", "-c", &branch, "main"])?;
        copy.write("base/shared.yaml", shared(round + 1))?;
        copy.commit("Change the base")?;
        copy.git(["push", "--quiet", "origin", &branch])?;
        let before = world.api.metrics().await?.value("renders_total");
        let begun = Instant::now();
        let told = self.told(world, &branch).await?;
        let took = milliseconds(begun.elapsed());
        ensure!(told.changed() == self.devices, "{} change", told.changed());
        let after = world.api.metrics().await?.value("renders_total");
        Ok((took, after - before))
    }

    async fn told(self, world: &World, branch: &str) -> Result<Told> {
        let path = format!("fleets/{FLEET}/previews");
        let branch = branch.to_owned();
        let answer = world
            .api
            .call(Method::POST, &path, Some(&CreatePreview { branch }))
            .await?;
        answer.success().context("a preview")
    }
}

fn branch(round: usize) -> String {
    format!("change-{round}")
}

fn shared(version: usize) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: shared\ndata:\n  version: \"{version}\"\n  store: ${{STORE}}\n"
    )
}
