//! A repo with a good and a bad device.

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Agent, WorkingCopy, World, WorldOptions,
    api::condition,
    eventually,
    world::{OWN, own_object},
};
use longshore_protocol::{ConditionStatus, api::Approval};

/// A repo with a device that stays good and one that gets into trouble; both run something.
pub(super) struct Ward {
    pub(super) good: Agent,
    pub(super) bad: Agent,
    pub(super) world: World,
    /// The commit in which both are well.
    well: String,
    count: usize,
}

impl Ward {
    pub(super) async fn new(options: WorldOptions) -> Result<Self> {
        let world = World::with(options).await?;
        let token = world.api.create_token(Approval::Automatic).await?;
        let good = world.agent("good", &token)?;
        let bad = world.agent("bad", &token)?;
        for name in ["good", "bad"] {
            world.api.in_sync(name).await?;
        }
        world.repo.copy().pull()?;
        world.give_own_overlay("good", "well 0")?;
        world.give_own_overlay("bad", "last good")?;
        let well = world.repo.copy().publish("Overlays of their own")?;
        good.shows(OWN, "well 0").await?;
        bad.shows(OWN, "last good").await?;
        Ok(Self {
            world,
            good,
            bad,
            well,
            count: 0,
        })
    }

    /// Breaks the bad device by `change` in the same commit that changes the good one, and checks that the good
    /// one moves, the bad one stays, and the trouble is told with `place` and `words`.
    pub(super) async fn trouble(
        &mut self,
        case: &str,
        change: impl FnOnce(&WorkingCopy) -> Result<()>,
        place: &str,
        words: &str,
    ) -> Result<()> {
        self.count += 1;
        let copy = self.world.repo.copy();
        copy.git(["read-tree", "-u", "--reset", &self.well])?;
        let marker = format!("well {}", self.count);
        copy.write("devices/good/own.yaml", own_object(&marker))?;
        change(copy)?;
        let commit = copy.publish(case)?;
        self.good
            .shows(OWN, &marker)
            .await
            .context("the good device goes on")?;
        let message = eventually("the trouble is told", async || {
            let device = self.world.api.device("bad").await?;
            let rendered = condition(&device.conditions, "Rendered")?;
            ensure!(rendered.status == ConditionStatus::False, "{rendered:?}");
            ensure!(
                rendered.message.contains(place),
                "no `{place}` in: {}",
                rendered.message
            );
            ensure!(
                rendered.message.contains(words),
                "no `{words}` in: {}",
                rendered.message
            );
            Ok(rendered.message.clone())
        })
        .await?;
        let fleet = self.world.api.sees(&commit).await?;
        ensure!(
            fleet.problems.iter().any(|problem| problem.contains(place)),
            "no {place} among {:?}",
            fleet.problems
        );
        ensure!(condition(&fleet.conditions, "FleetValid")?.status == ConditionStatus::False);
        let shown = self
            .world
            .cli(&["devices", "show", "bad"])
            .await?
            .success()?
            .stdout;
        ensure!(
            shown.contains(place),
            "`devices show` does not say `{place}`:\n{shown}"
        );
        let shown = self
            .world
            .cli(&["fleets", "show", "example"])
            .await?
            .success()?
            .stdout;
        ensure!(
            shown.contains(place),
            "`fleets show` does not say `{place}`:\n{shown}"
        );
        ensure!(
            self.bad.manifest(OWN)?.contains("last good"),
            "the last good state stays"
        );
        eprintln!("{case}: {message}");
        Ok(())
    }

    /// Both are well again.
    pub(super) async fn recovers(&mut self) -> Result<()> {
        let copy = self.world.repo.copy();
        copy.git(["read-tree", "-u", "--reset", &self.well])?;
        copy.write("devices/bad/own.yaml", own_object("mended"))?;
        copy.publish("Mend it")?;
        self.bad.shows(OWN, "mended").await?;
        eventually("no problems are left", async || {
            let fleet = self.world.api.fleet().await?;
            ensure!(fleet.problems.is_empty(), "{:?}", fleet.problems);
            let device = self.world.api.device("bad").await?;
            ensure!(condition(&device.conditions, "Rendered")?.status == ConditionStatus::True);
            Ok(())
        })
        .await
    }
}
