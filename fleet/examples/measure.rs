//! Measures reading, closures and builds; prints one JSON object per line.
//!
//! `cargo run --release -p longshore-fleet --example measure -- [devices]`
#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "the measurements are its output"
)]

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use longshore_fleet::{
    Closure, Closures, Kustomize, Reader, Render as _, RenderSettings, RepoPath, Tree, Variables,
    WorkTree,
};
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let devices = std::env::args()
        .nth(1)
        .map_or(Ok(1000), |text| text.parse())?;
    let repo = tempfile::tempdir()?;
    write(repo.path(), devices)?;
    let tree: Arc<dyn Tree> = Arc::new(WorkTree::open(repo.path())?);

    let mut reader = Reader::new();
    let started = Instant::now();
    let fleet = reader.read(tree.as_ref(), &RepoPath::root())?;
    report("read_fleet", started.elapsed(), fleet.devices.len());
    let started = Instant::now();
    reader.read(tree.as_ref(), &RepoPath::root())?;
    report("read_fleet_again", started.elapsed(), fleet.devices.len());

    let mut closures = Closures::new(tree.as_ref(), "measure");
    let started = Instant::now();
    for device in fleet.devices.values() {
        closures.closure(&device.overlay)?;
    }
    report("closures", started.elapsed(), fleet.devices.len());
    let mut closures = Closures::with_cache(tree.as_ref(), "measure", closures.into_cache());
    let started = Instant::now();
    for device in fleet.devices.values() {
        closures.closure(&device.overlay)?;
    }
    report("closures_again", started.elapsed(), fleet.devices.len());

    let runtime = tokio::runtime::Runtime::new()?;
    let started = Instant::now();
    let kustomize = Arc::new(runtime.block_on(Kustomize::detect(RenderSettings::default()))?);
    report("detect", started.elapsed(), 1);
    for overlay in ["groups/small", "groups/merging"] {
        let closure = closures.closure(&RepoPath::new(overlay)?)?;
        let context = format!("{overlay}, {}", kustomize.describe());
        runtime.block_on(builds(&kustomize, &tree, &closure, &context))?;
    }

    let some = fleet
        .devices
        .values()
        .find(|device| device.shared)
        .context("no shared device")?;
    let closure = closures.closure(&some.overlay)?;
    let objects = runtime.block_on(kustomize.render("measure", &tree, &closure))?;
    let started = Instant::now();
    for device in fleet.devices.values() {
        Variables::of(device).substitute(&objects)?;
    }
    report("substitute", started.elapsed(), fleet.devices.len());
    Ok(())
}

async fn builds(
    kustomize: &Arc<Kustomize>,
    tree: &Arc<dyn Tree>,
    closure: &Arc<Closure>,
    context: &str,
) -> anyhow::Result<()> {
    const BUILDS: usize = 40;
    let started = Instant::now();
    for _ in 0..BUILDS {
        kustomize.render("measure", tree, closure).await?;
    }
    line("build_alone", started.elapsed(), BUILDS, context);
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..BUILDS {
        let (kustomize, tree, closure) = (kustomize.clone(), tree.clone(), closure.clone());
        tasks.spawn(async move { kustomize.render("measure", &tree, &closure).await.map(drop) });
    }
    while let Some(built) = tasks.join_next().await {
        built??;
    }
    line("build_parallel", started.elapsed(), BUILDS, context);
    Ok(())
}

fn report(metric: &str, elapsed: Duration, n: usize) {
    line(metric, elapsed, n, "");
}

fn line(metric: &str, elapsed: Duration, n: usize, context: &str) {
    let each = elapsed.as_secs_f64() * 1000.0 / n.max(1) as f64;
    println!(
        "{}",
        json!({"metric": metric, "value": each, "unit": "ms", "n": n, "context": context})
    );
}

/// Half of the devices share an overlay, half have their own.
fn write(root: &Path, devices: usize) -> anyhow::Result<()> {
    let put = |path: &str, text: &str| -> anyhow::Result<()> {
        let file = root.join(path);
        fs::create_dir_all(file.parent().context("a file has a directory")?)?;
        fs::write(file, text)?;
        Ok(())
    };
    put(
        "fleet.yaml",
        "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: shops}\n",
    )?;
    put(
        "base/kustomization.yaml",
        "resources: [app.yaml, map.yaml]\n",
    )?;
    put(
        "base/app.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: app}\nspec:\n  template: {spec: {containers: [{name: c, image: app}]}}\n",
    )?;
    put(
        "base/map.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\ndata: {who: \"${DEVICE_NAME}\"}\n",
    )?;
    put(
        "groups/small/kustomization.yaml",
        "resources: [../../base]\nnamePrefix: shop-\n",
    )?;
    put(
        "groups/merging/kustomization.yaml",
        "resources: [../../base]\npatches: [{path: p.yaml}]\n",
    )?;
    put(
        "groups/merging/p.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: app}\nspec:\n  template: {spec: {containers: [{name: c, env: [{name: A, value: b}]}]}}\n",
    )?;
    for number in 0..devices {
        let name = format!("store-{number:05}");
        let shared = number % 2 == 0;
        let spec = if shared {
            "spec: {overlay: ../../groups/small}\n"
        } else {
            ""
        };
        put(
            &format!("devices/{name}/device.yaml"),
            &format!(
                "apiVersion: longshore.dev/v1alpha1\nkind: Device\nmetadata: {{name: {name}, labels: {{site: madrid}}}}\n{spec}"
            ),
        )?;
        if !shared {
            put(
                &format!("devices/{name}/kustomization.yaml"),
                "resources: [../../groups/small]\nnameSuffix: -x\n",
            )?;
        }
    }
    Ok(())
}
