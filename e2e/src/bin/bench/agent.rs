//! `agent`: what a real agent costs a device with each of its runtimes, and what it asks of an API server.

use std::{ffi::OsString, fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use longshore_e2e::{
    Agent, World,
    api::FLEET,
    kubernetes::{ApiServer, Call},
    programs,
    wait::eventually,
    world::own_object,
};
use longshore_protocol::api::{Approval, DeviceState};
use serde_json::json;

use crate::report::{Aim, Report, mebibytes, say};

/// What an allocator gives back, it gives back soon.
const SETTLE: Duration = Duration::from_secs(10);
/// 12 MB and 15 MB, in MiB.
const MOST_MEMORY: Aim = Aim::AtMost(11.44);
const MOST_BINARY: Aim = Aim::AtMost(14.3);
const NAME: &str = "store-0001";

#[derive(Args, Clone, Debug)]
pub(crate) struct Agents {
    /// How many objects the device has
    #[arg(long, default_value_t = 100)]
    objects: usize,
    /// For how many seconds the processor time of an idle agent is counted
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Which runtimes
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "directory,podman,command,kube"
    )]
    runtimes: Vec<String>,
}

impl Agents {
    pub(crate) async fn run(&self, report: &Report) -> Result<()> {
        ensure!(
            self.objects > 2 && self.seconds > 0,
            "too little to measure"
        );
        Self::binary(report)?;
        for runtime in &self.runtimes {
            let report = report.with(&[
                ("runtime", json!(runtime)),
                ("objects", json!(self.objects)),
            ]);
            say(&format!("an agent with the runtime {runtime}"));
            self.runtime(&report, runtime).await?;
        }
        Ok(())
    }

    fn binary(report: &Report) -> Result<()> {
        let program = programs::find("longshore-agent")?;
        let folder = tempfile::tempdir()?;
        let stripped = folder.path().join("longshore-agent");
        let mut strip = Command::new("strip");
        let done = strip.arg("-o").arg(&stripped).arg(program).status();
        ensure!(done.context("start strip")?.success(), "strip failed");
        let size = mebibytes(fs::metadata(stripped)?.len());
        report.aim("agent_binary_size_stripped", size, "MiB", 1, MOST_BINARY)
    }

    async fn runtime(&self, report: &Report, runtime: &str) -> Result<()> {
        let mut world = World::start().await?;
        let server = ApiServer::start_with_tls().await;
        let kubeconfig = server.kubeconfig(world.path());
        let kubeconfig = kubeconfig.to_str().context("a path that is no text")?;
        let arguments: Vec<_> = match runtime {
            "kube" => vec!["--runtime", runtime, "--kubeconfig", kubeconfig],
            "command" => vec!["--runtime", runtime, "--command", "cat"],
            _ => vec!["--runtime", runtime],
        }
        .into_iter()
        .map(OsString::from)
        .collect();
        let token = world.api.create_token(Approval::Automatic).await?;
        let home = world.path().join("agents").join(NAME);
        let mut agent = Agent::start_with(&home, NAME, &token, arguments)?;
        let device = Device {
            world: &world,
            server: &server,
            is_kube: runtime == "kube",
        };
        world.api.device_becomes(NAME, DeviceState::Active).await?;
        device.give(self.objects, "start").await?;
        self.costs(report, &device).await?;
        self.idle(report, &mut agent).await?;
        // As on the day after: nothing of how it came here is left in memory.
        agent.stop().await?;
        device.calls();
        agent.start_again()?;
        world.api.in_sync(NAME).await?;
        self.idle(&report.with(&[("restarted", json!(true))]), &mut agent)
            .await?;
        if device.is_kube {
            let writes = device.calls().iter().filter(|call| call.writes()).count();
            report.aim(
                "unchanged_set_writes",
                number(writes),
                "requests",
                1,
                Aim::AtMost(0.0),
            )?;
        }
        agent.stop().await?;
        world.controller.stop().await?;
        world.controller.be_quiet();
        Ok(())
    }

    /// What many objects cost, and then one.
    async fn costs(&self, report: &Report, device: &Device<'_>) -> Result<()> {
        if !device.is_kube {
            return device.change("one").await;
        }
        let calls = device.calls();
        let of = |verb: &str| calls.iter().filter(|call| call.verb == verb).count();
        let discovery = of("discover");
        let watches = of("watch") + of("list");
        // What the device had before, and gives up now, is not among them.
        let of_objects = calls.iter().filter(|call| {
            let is_ours = call.namespace == NAMESPACE || call.name == NAMESPACE;
            is_ours && !["discover", "watch", "list"].contains(&call.verb.as_str())
        });
        let rest = of_objects.count();
        let n = self.objects;
        report.line("discovery_requests", number(discovery), "requests", n)?;
        report.line("list_and_watch_requests", number(watches), "requests", n)?;
        let share = number(rest) / number(n);
        report.aim(
            "requests_per_object",
            share,
            "requests",
            n,
            Aim::AtMost(1.0),
        )?;
        device.change("one").await?;
        let writes: Vec<_> = device.calls().into_iter().filter(Call::writes).collect();
        let touched = number(writes.len());
        report.aim(
            "one_object_change_writes",
            touched,
            "requests",
            1,
            Aim::AtMost(1.0),
        )
    }

    async fn idle(&self, report: &Report, agent: &mut Agent) -> Result<()> {
        tokio::time::sleep(SETTLE).await;
        let before = agent.process()?.cpu_time()?;
        let measured = Duration::from_secs(self.seconds);
        tokio::time::sleep(measured).await;
        let after = agent.process()?.cpu_time()?;
        let took = (after.own + after.children).saturating_sub(before.own + before.children);
        let percent = 100.0 * took.as_secs_f64() / measured.as_secs_f64();
        let resident = mebibytes(agent.process()?.resident_memory()?);
        report.aim(
            "agent_resident_memory_idle",
            resident,
            "MiB",
            1,
            MOST_MEMORY,
        )?;
        let seconds = usize::try_from(self.seconds)?;
        report.aim("agent_cpu_idle", percent, "%", seconds, Aim::AtMost(0.1))
    }
}

/// The namespace of all its objects.
const NAMESPACE: &str = "own";

/// The device and what it applies to.
struct Device<'a> {
    world: &'a World,
    server: &'a ApiServer,
    is_kube: bool,
}

impl Device<'_> {
    /// Gives it an overlay of its own: a namespace, and otherwise objects without a life of their own.
    async fn give(&self, objects: usize, content: &str) -> Result<()> {
        let copy = self.world.repo.copy();
        copy.pull()?;
        self.world.give_own_overlay(NAME, content)?;
        let folder = format!("devices/{NAME}");
        let mut kustomization = "resources:\n  - own.yaml\n  - namespace.yaml\n".to_owned();
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: own\n";
        copy.write(&format!("{folder}/namespace.yaml"), namespace)?;
        for object in 2..objects {
            let file = format!("part-{object}.yaml");
            copy.write(&format!("{folder}/{file}"), part(object))?;
            kustomization.extend(["  - ", &file, "\n"]);
        }
        copy.write(&format!("{folder}/kustomization.yaml"), kustomization)?;
        self.publish("An overlay of its own").await
    }

    async fn change(&self, content: &str) -> Result<()> {
        let file = format!("devices/{NAME}/own.yaml");
        self.world.repo.copy().write(&file, own_object(content))?;
        self.publish("One object").await
    }

    async fn publish(&self, message: &str) -> Result<()> {
        let commit = self.world.repo.copy().publish(message)?;
        let synced = self.world.cli(&["fleets", "sync", FLEET]).await?;
        synced.success()?;
        // A commit is in force before what it makes of the device is built.
        eventually("the device is to run the commit", async || {
            let device = self.world.api.device(NAME).await?;
            let desired = device.desired.context("nothing is desired")?;
            ensure!(desired.revision == commit, "still {}", desired.revision);
            Ok(())
        })
        .await?;
        self.world.api.in_sync(NAME).await.map(drop)
    }

    fn calls(&self) -> Vec<Call> {
        self.server.calls()
    }
}

/// An object of some 600 bytes.
fn part(n: usize) -> String {
    let lines: Vec<_> = (0..8)
        .map(|line| format!("    setting-{line} = the value of the setting {line} of part {n}\n"))
        .collect();
    let lines = lines.concat();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: part-{n}\n  namespace: own\n  labels:\n    app: part-{n}\ndata:\n  settings: |\n{lines}"
    )
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn number(count: usize) -> f64 {
    count as f64
}
