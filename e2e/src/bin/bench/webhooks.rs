//! `webhooks`: how fast webhooks are answered, and how fast what they tell of is applied.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use http::StatusCode;
use longshore_e2e::{
    Agent, ControllerOptions, World, WorldOptions,
    webhook::{Sender, Webhook},
    world::own_object,
};
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    report::{Report, milliseconds, quantile, say},
    stage,
};

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Webhooks {
    /// How many calls
    #[arg(long, default_value_t = 4000)]
    calls: u32,
    /// How many of them a second
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// How many fleets they are for
    #[arg(long, default_value_t = 4)]
    fleets: usize,
    /// How many pushes
    #[arg(long, default_value_t = 40)]
    pushes: u32,
    /// How many objects the device has
    #[arg(long, default_value_t = 20)]
    objects: usize,
}

/// Between two pushes, so that none of them is held back for coming too soon after the one before.
const BETWEEN: Duration = Duration::from_millis(500);
/// How many pushes and calls warm the machine up.
const WARM_UP: u32 = 3;
/// The size of what GitHub sends for a push of a few commits.
const BODY: usize = 8 * 1024;

/// The times of one push, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Push {
    /// Until the webhook was answered.
    answered: f64,
    /// Until the device's file had the change.
    applied: f64,
    /// A plain `kustomize build` of the same overlay, right afterwards.
    build: f64,
}

impl Webhooks {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        ensure!(
            self.calls > 0
                && self.rate > 0
                && self.fleets > 0
                && self.pushes > 0
                && self.objects > 1,
            "too little to measure"
        );
        let report = report.with(&[
            ("calls_per_second", json!(self.rate)),
            ("fleets", json!(self.fleets)),
            ("objects", json!(self.objects)),
        ]);
        say("starting a controller and its device");
        let controller = ControllerOptions {
            arguments: vec!["--poll-interval".into(), "1h".into()],
            ..ControllerOptions::default()
        };
        let mut world = World::with(WorldOptions {
            controller,
            by_url: true,
            ..WorldOptions::default()
        })
        .await?;
        let mut agents = stage::enroll(&world, 1, self.objects).await?;
        let agent = agents.first().context("a device")?;
        let pushes = self.pushes(&world, agent).await?;
        Self::applied(&report, &pushes)?;
        self.answer(&report, &world).await?;
        for agent in &mut agents {
            agent.stop().await?;
        }
        world.controller.stop().await?;
        world.controller.be_quiet();
        Ok(())
    }

    async fn pushes(&self, world: &World, agent: &Agent) -> Result<Vec<Push>> {
        say("pushes, each with its webhook");
        let mut pushes = Vec::new();
        let mut turns = tokio::time::interval(BETWEEN);
        for round in 0..self.pushes + WARM_UP {
            turns.tick().await;
            let marker = format!("push {round}.");
            let copy = world.repo.copy();
            let own = format!("devices/{}/own.yaml", agent.name());
            copy.write(&own, own_object(&marker))?;
            let commit = copy.publish(&marker)?;
            let push = Webhook::push(Sender::GitHub, &commit, &world.webhook_secret);
            let request = push.request(&world.api, &world.webhook_path)?;
            let begun = Instant::now();
            let answer = tokio::spawn(async move {
                let status = request.send().await.context("no answer")?.status();
                ensure!(status == StatusCode::ACCEPTED, "{status}");
                Ok(milliseconds(begun.elapsed()))
            });
            stage::arrives(agent, &marker).await?;
            let applied = milliseconds(begun.elapsed());
            let answered = answer.await??;
            world.api.in_sync(agent.name()).await?;
            let build = stage::build(world, agent.name())?;
            if round >= WARM_UP {
                pushes.push(Push {
                    answered,
                    applied,
                    build,
                });
            }
        }
        Ok(pushes)
    }

    fn applied(report: &Report, pushes: &[Push]) -> Result<()> {
        let sorted = |value: fn(&Push) -> f64| {
            let mut values: Vec<_> = pushes.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let n = pushes.len();
        for (metric, values) in [
            ("webhook_to_applied", sorted(|push| push.applied)),
            ("kustomize_build", sorted(|push| push.build)),
            (
                "webhook_to_applied_minus_build",
                sorted(|push| push.applied - push.build),
            ),
            ("webhook_answer_after_push", sorted(|push| push.answered)),
        ] {
            report.line(
                &format!("{metric}_median"),
                quantile(&values, 0.5)?,
                "ms",
                n,
            )?;
            report.line(&format!("{metric}_p99"), quantile(&values, 0.99)?, "ms", n)?;
        }
        Ok(())
    }

    async fn answer(&self, report: &Report, world: &World) -> Result<()> {
        say("calls at a fixed rate");
        let mut hooks = Vec::new();
        for n in 0..self.fleets {
            let fleet = world
                .api
                .create_fleet(&format!("fleet-{n}"), &world.repo.url())
                .await?;
            let body = json!({
                "ref": "refs/heads/main",
                "before": "0".repeat(40),
                "after": "a".repeat(40),
                "repository": { "full_name": "acme/fleet" },
                "commits": [{ "message": "x".repeat(BODY) }],
            });
            let push = Webhook::event(
                Sender::GitHub,
                "push",
                body.to_string(),
                &fleet.webhook_secret,
            );
            hooks.push((push, fleet.webhook_path));
        }
        let hooks = Arc::new(hooks);
        let every = Duration::from_secs(1) / self.rate;
        let mut calls = JoinSet::new();
        let start = Instant::now();
        let warm_up = self.rate * WARM_UP;
        for n in 0..self.calls + warm_up {
            let due = start + every * n;
            tokio::time::sleep_until(due).await;
            let (hooks, api) = (hooks.clone(), world.api.clone());
            calls.spawn(async move {
                let at = usize::try_from(n)? % hooks.len();
                let (push, path) = hooks.get(at).context("a fleet")?;
                let answer = push.again().deliver(&api, path).await?;
                let took = milliseconds(due.elapsed());
                ensure!(answer.status == StatusCode::ACCEPTED, "{answer:?}");
                anyhow::Ok((n >= warm_up).then_some(took))
            });
        }
        let mut sorted = Vec::new();
        while let Some(call) = calls.join_next().await {
            sorted.extend(call??);
        }
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        for (metric, share) in [
            ("webhook_answer_p50", 0.5),
            ("webhook_answer_p99", 0.99),
            ("webhook_answer_max", 1.0),
        ] {
            report.line(metric, quantile(&sorted, share)?, "ms", n)?;
        }
        Ok(())
    }
}
