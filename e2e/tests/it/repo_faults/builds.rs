//! Builds that misbehave, by a program that stands in for kustomize.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use longshore_e2e::{
    Candidate, ControllerOptions, WorkingCopy, WorldOptions,
    world::{OWN, kustomize_stub, own_object},
};
use longshore_protocol::api::Approval;

use super::{KUSTOMIZATION, ward::Ward};

fn stubbed(timeout: &str) -> Result<WorldOptions> {
    let controller = ControllerOptions {
        kustomize: Some(kustomize_stub()?),
        arguments: [
            "--render-timeout",
            timeout,
            "--render-memory",
            "128",
            "--render-parallelism",
            "2",
        ]
        .map(Into::into)
        .to_vec(),
        ..ControllerOptions::default()
    };
    Ok(WorldOptions {
        controller,
        ..WorldOptions::default()
    })
}

fn misbehaves(how: &'static str) -> impl FnOnce(&WorkingCopy) -> Result<()> {
    move |copy| {
        copy.write(
            KUSTOMIZATION,
            format!("resources:\n- own.yaml\n- {how}.yaml\n"),
        )?;
        copy.write(
            &format!("devices/bad/{how}.yaml"),
            own_object(how).replace("name: own", "name: other"),
        )
    }
}

#[tokio::test]
async fn a_build_that_misbehaves_is_ended() -> Result<()> {
    let mut ward = Ward::new(stubbed("2s")?).await?;
    ward.trouble(
        "a build that fails",
        misbehaves("fail"),
        "devices/bad",
        "told to fail",
    )
    .await?;
    ward.trouble(
        "a build that floods its output",
        misbehaves("flood"),
        "devices/bad",
        "printed more",
    )
    .await?;
    ward.trouble(
        "a build that eats memory",
        misbehaves("eat"),
        "devices/bad",
        "killed by signal",
    )
    .await?;
    ward.trouble(
        "a build that hangs",
        misbehaves("hang"),
        "devices/bad",
        "longer than 2 s",
    )
    .await?;
    ward.recovers().await
}

/// While one build hangs for a long time, other devices get one commit after the other.
#[tokio::test]
async fn a_hanging_build_delays_nobody() -> Result<()> {
    let ward = Ward::new(stubbed("10m")?).await?;
    let copy = ward.world.repo.copy();
    misbehaves("hang")(copy)?;
    copy.publish("Hang")?;
    let begun = Instant::now();
    for round in 0..5 {
        let marker = format!("round {round}");
        copy.write("devices/good/own.yaml", own_object(&marker))?;
        copy.publish(&marker)?;
        ward.good.shows(OWN, &marker).await?;
    }
    ensure!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    ensure!(ward.bad.manifest(OWN)?.contains("last good"));
    // A new device gets in meanwhile, too.
    let token = ward.world.api.create_token(Approval::Automatic).await?;
    Candidate::new("newcomer")?
        .enroll(&ward.world.api, &token.secret)
        .await?;
    Ok(())
}
