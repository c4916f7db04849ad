//! Whatever one device's files say, the others go on, and the message says where to look.

mod builds;
mod ward;

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    WorkingCopy, World, WorldOptions, api::condition, eventually, world::own_object,
};
use longshore_protocol::ConditionStatus;

use self::ward::Ward;

const YAML: &str = "devices/bad/device.yaml";
const KUSTOMIZATION: &str = "devices/bad/kustomization.yaml";

fn lines(copy: &WorkingCopy, path: &str) -> Result<usize> {
    Ok(copy.read(path)?.lines().count())
}

#[tokio::test]
async fn a_bad_device_file_holds_back_that_device_alone() -> Result<()> {
    let mut ward = Ward::new(WorldOptions::default()).await?;
    let copy = ward.world.repo.copy();
    let next = lines(copy, YAML)? + 1;
    let append =
        |text: &'static str| move |copy: &WorkingCopy| copy.write(YAML, copy.read(YAML)? + text);
    let place = format!("{YAML}:{next}: ");
    ward.trouble(
        "YAML that does not parse",
        append("  variables: {A: \"b\n"),
        YAML,
        "not valid YAML",
    )
    .await?;
    ward.trouble(
        "an unknown field",
        append("  color: blue\n"),
        &place,
        "color",
    )
    .await?;
    ward.trouble(
        "a duplicate key",
        append("  variables: {}\n  variables: {}\n"),
        &format!("{YAML}:{}: ", next + 1),
        "variables",
    )
    .await?;
    ward.trouble(
        "another name",
        |copy| copy.replace(YAML, "name: bad", "name: worse"),
        &format!("{YAML}:4: "),
        "they must be equal",
    )
    .await?;
    ward.trouble(
        "a bad name",
        |copy| copy.replace(YAML, "name: bad", "name: Bad_Name"),
        &format!("{YAML}:4: "),
        "metadata.name",
    )
    .await?;
    ward.trouble(
        "no overlay at all",
        |copy| copy.git(["rm", "-qf", KUSTOMIZATION]).map(drop),
        YAML,
        "no manifests",
    )
    .await?;
    let overlay = |overlay: &'static str| {
        move |copy: &WorkingCopy| {
            copy.git(["rm", "-qf", KUSTOMIZATION])?;
            copy.write(YAML, copy.read(YAML)? + &format!("  overlay: {overlay}\n"))
        }
    };
    ward.trouble(
        "an overlay that is not there",
        overlay("../../groups/nowhere"),
        &place,
        "spec.overlay",
    )
    .await?;
    ward.trouble(
        "an overlay outside of the repo",
        overlay("../../../outside"),
        &place,
        "spec.overlay",
    )
    .await?;
    ward.trouble(
        "an absolute overlay",
        overlay("/etc"),
        &place,
        "spec.overlay",
    )
    .await?;
    ward.trouble(
        "an overlay behind a symlink that leaves the repo",
        |copy| {
            overlay("../../groups/link")(copy)?;
            symlink("/etc", copy.path().join("groups/link")).context("make a symlink")
        },
        &place,
        "spec.overlay",
    )
    .await?;
    ward.trouble(
        "an id twice",
        |copy| {
            copy.write(
                "devices/copycat/device.yaml",
                copy.read(YAML)?.replace("name: bad", "name: copycat"),
            )?;
            copy.write(
                "devices/copycat/kustomization.yaml",
                "resources:\n- ../../base\n",
            )
        },
        YAML,
        "copycat",
    )
    .await?;
    ward.recovers().await
}

#[tokio::test]
async fn a_bad_overlay_holds_back_that_device_alone() -> Result<()> {
    let mut ward = Ward::new(WorldOptions::default()).await?;
    let write = |text: &'static str| move |copy: &WorkingCopy| copy.write(KUSTOMIZATION, text);
    let at = |line: usize| format!("{KUSTOMIZATION}:{line}: ");
    ward.trouble(
        "a kustomization that does not parse",
        write("resources: [own.yaml\n"),
        KUSTOMIZATION,
        "not valid YAML",
    )
    .await?;
    ward.trouble(
        "a resource that is not there",
        write("resources:\n- own.yaml\n- gone.yaml\n"),
        &at(3),
        "gone.yaml",
    )
    .await?;
    ward.trouble(
        "a resource outside of the repo",
        write("resources:\n- own.yaml\n- ../../../etc\n"),
        &at(3),
        "../../../etc",
    )
    .await?;
    ward.trouble(
        "an absolute resource",
        write("resources:\n- own.yaml\n- /etc/passwd\n"),
        &at(3),
        "/etc/passwd",
    )
    .await?;
    ward.trouble(
        "a remote base",
        write("resources:\n- own.yaml\n- https://example.com/base?ref=v1\n"),
        &at(3),
        "remote",
    )
    .await?;
    ward.trouble(
        "a Git remote base",
        write("resources:\n- own.yaml\n- git@example.com:acme/base.git\n"),
        &at(3),
        "remote",
    )
    .await?;
    ward.trouble(
        "a Helm chart",
        write("resources:\n- own.yaml\nhelmCharts:\n- name: x\n  repo: https://charts.example\n"),
        KUSTOMIZATION,
        "elm",
    )
    .await?;
    ward.trouble(
        "an exec plugin",
        |copy| {
            copy.write(KUSTOMIZATION, "resources:\n- own.yaml\ngenerators:\n- plugin.yaml\n")?;
            copy.write(
                "devices/bad/plugin.yaml",
                "apiVersion: x.example/v1\nkind: Gen\nmetadata:\n  name: g\n  annotations:\n    config.kubernetes.io/function: |\n      exec: {path: ./run}\n",
            )
        },
        "devices/bad/plugin.yaml:1: ",
        "plugin",
    )
    .await?;
    ward.trouble(
        "a symlink that leaves the repo",
        |copy| {
            copy.write(KUSTOMIZATION, "resources:\n- own.yaml\n- link.yaml\n")?;
            symlink("/etc/passwd", copy.path().join("devices/bad/link.yaml")).context("symlink")
        },
        &at(3),
        "link.yaml",
    )
    .await?;
    ward.trouble(
        "a kustomize that fails",
        write("resources:\n- own.yaml\npatches:\n- target: {kind: ConfigMap}\n  patch: |\n    - {op: replace, path: /nowhere/at/all, value: x}\n"),
        "devices/bad",
        "nowhere",
    )
    .await?;
    ward.trouble(
        "a variable that is not set",
        |copy| copy.write("devices/bad/own.yaml", own_object("${NOT_SET}")),
        YAML,
        "NOT_SET",
    )
    .await?;
    ward.trouble(
        "a name that is not UTF-8",
        |copy| {
            let name = OsStr::from_bytes(b"bad-\xff.yaml");
            fs::write(copy.path().join("devices/bad").join(name), own_object("x")).context("write")
        },
        "devices/bad",
        "UTF-8",
    )
    .await?;
    ward.trouble(
        "a file of 100 MB",
        |copy| {
            copy.write(
                KUSTOMIZATION,
                "resources:\n- own.yaml\nconfigMapGenerator:\n- name: big\n  files: [big.bin]\n",
            )?;
            copy.write("devices/bad/big.bin", vec![b'x'; 100_000_000])
        },
        "devices/bad/",
        "big.bin",
    )
    .await?;
    ward.recovers().await
}

/// Problems beside any device's folder are told too.
#[tokio::test]
async fn a_folder_that_is_no_device_is_told() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.write("devices/Not_A_Name/device.yaml", "a: b\n")?;
    let odd = copy
        .path()
        .join("devices")
        .join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir_all(&odd)?;
    fs::write(odd.join("device.yaml"), "a: b\n")?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Undisturbed at")?;
    let commit = copy.publish("Odd folders")?;
    agent.page_shows("Undisturbed at Our shop").await?;
    let problems = world.api.sees(&commit).await?.problems.join("\n");
    ensure!(
        problems.contains("devices/Not_A_Name") && problems.contains("UTF-8"),
        "{problems}"
    );
    Ok(())
}

/// A repo whose `fleet.yaml` is broken changes nothing until it is mended.
#[tokio::test]
async fn a_broken_fleet_file_changes_nothing() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    let good = agent.manifests()?;
    let copy = world.repo.copy();
    copy.pull()?;
    let before = copy.read("fleet.yaml")?;
    for (text, words) in [
        ("apiVersion: [\n".to_owned(), "fleet.yaml"),
        (before.clone() + "  colour: blue\n", "colour"),
        (
            before.replace("maxDecommission: 5", "maxDecommission: -1"),
            "fleet.yaml:10: ",
        ),
    ] {
        copy.write("fleet.yaml", text)?;
        copy.replace("groups/kiosk/page.yaml", "shop>", "shop >")
            .ok();
        copy.publish("Break the fleet file")?;
        eventually("the problem is told", async || {
            let fleet = world.api.fleet().await?;
            let problems = fleet.problems.join("\n");
            ensure!(
                problems.contains("fleet.yaml") && problems.contains(words),
                "{problems}"
            );
            ensure!(condition(&fleet.conditions, "FleetValid")?.status == ConditionStatus::False);
            Ok(())
        })
        .await?;
    }
    ensure!(agent.manifests()? == good);
    copy.write("fleet.yaml", before)?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Mended at")?;
    copy.publish("Mend it")?;
    agent.page_shows("Mended at Our shop").await
}
