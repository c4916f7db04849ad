//! A forge that refuses, breaks off, hangs, is away; a controller that is killed: nothing lost, nothing twice.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::{Method, StatusCode};
use longshore_e2e::{
    Candidate, eventually,
    forge::{
        Fault, Forge, Host, How, Kind, REVIEWER,
        world::{ForgeOptions, ForgeWorld},
    },
    wait::within,
};
use longshore_protocol::api::Approval;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

use super::branch_of;

/// Where pull requests are opened.
fn opens(host: Host) -> &'static str {
    match host {
        Host::GitHub | Host::Gitea => "/repos/acme/kiosks/pulls",
        Host::GitLab => "/merge_requests",
    }
}

/// No branch has more than one pull request, and no pull request the same comment twice.
fn nothing_twice(forge: &Forge) -> Result<()> {
    let mut of_branch = BTreeMap::<_, usize>::new();
    for pull in forge.pull_requests() {
        let comments = forge.comments(pull.number);
        ensure!(comments.len() <= 1, "{comments:#?}");
        *of_branch.entry(pull.head_branch).or_default() += 1;
    }
    ensure!(
        of_branch.values().all(|count| *count == 1),
        "{of_branch:#?}"
    );
    Ok(())
}

/// Opening a pull request goes wrong in each of these ways, once per device: each gets its own, and one only.
async fn opening_goes_wrong(host: Host, kinds: &[Kind]) -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
    let forge = &world.forge;
    let token = world.api.create_token(Approval::Manual).await?;
    for (n, kind) in kinds.iter().enumerate() {
        let name = format!("store-{n}");
        forge.set_fault(Fault::every(*kind).on(Method::POST, opens(host)).times(1));
        let device = Candidate::new(&name)?;
        device.ask(&world.api, &token.secret).await?;
        forge
            .pull_request_of(&branch_of(&name))
            .await
            .with_context(|| format!("{kind:?}"))?;
        forge.heal();
    }
    // None of them was lost or is asked for twice later on.
    let late = Candidate::new("late")?;
    late.ask(&world.api, &token.secret).await?;
    let pull = forge.pull_request_of(&branch_of("late")).await?;
    forge.merge(pull.number, How::SquashAndDelete)?;
    late.enroll(&world.api, &token.secret).await?;
    ensure!(forge.pull_requests().len() == kinds.len() + 1);
    nothing_twice(forge)?;
    forge.is_content()
}

#[tokio::test]
async fn refusals_only_delay() -> Result<()> {
    let kinds = [
        StatusCode::UNAUTHORIZED,
        StatusCode::NOT_FOUND,
        StatusCode::CONFLICT,
        StatusCode::UNPROCESSABLE_ENTITY,
        StatusCode::INTERNAL_SERVER_ERROR,
    ]
    .map(Kind::Status);
    opening_goes_wrong(Host::GitHub, &kinds).await
}

#[tokio::test]
async fn limits_are_kept() -> Result<()> {
    let second = Duration::from_secs(1);
    let kinds = [Kind::RateLimit(second), Kind::TooMany(second)];
    opening_goes_wrong(Host::GitHub, &kinds).await
}

#[tokio::test]
async fn answers_that_are_lost_make_no_second_pull_request() -> Result<()> {
    let kinds = [Kind::LoseAnswer, Kind::HalfBody, Kind::Cut];
    opening_goes_wrong(Host::GitHub, &kinds).await
}

#[tokio::test]
async fn nor_do_they_at_gitlab() -> Result<()> {
    opening_goes_wrong(Host::GitLab, &[Kind::LoseAnswer, Kind::HalfBody]).await
}

#[tokio::test]
async fn nor_do_they_at_gitea() -> Result<()> {
    opening_goes_wrong(Host::Gitea, &[Kind::LoseAnswer, Kind::HalfBody]).await
}

/// While the limit lasts, the forge is not called; the device's console says what it waits for.
#[tokio::test]
async fn a_forge_that_wants_no_calls_gets_none() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let forge = &world.forge;
    let token = world.api.create_token(Approval::Manual).await?;
    let limit = Kind::TooMany(Duration::from_mins(10));
    forge.set_fault(Fault::every(limit).of_api());
    let agent = world.agent("store-0001", &token)?;
    eventually("the console tells what it waits for", async || {
        let log = agent.log();
        ensure!(
            log.contains("no more calls") || log.contains("rate limit"),
            "{log}"
        );
        Ok(())
    })
    .await?;
    let api_calls = || {
        let calls = forge.calls();
        calls.iter().filter(|call| call.contains("/api/")).count()
    };
    let before = api_calls();
    // What would make a careless controller call: a push, a webhook, another device.
    let copy = world.repo.copy();
    copy.write("README.local", "nothing")?;
    let commit = copy.publish("Nothing")?;
    world.api.sees(&commit).await?;
    Candidate::new("store-0002")?
        .ask(&world.api, &token.secret)
        .await?;
    eventually("the second branch", async || {
        forge.branch(&branch_of("store-0002"))
    })
    .await?;
    ensure!(api_calls() <= before + 4, "{:#?}", forge.calls());
    forge.is_content()
}

/// The forge goes away, Git and all, and comes back: what was asked meanwhile is done.
#[tokio::test]
async fn a_forge_that_was_away_is_caught_up_with() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions {
        poll_interval: "1s",
        ..ForgeOptions::at(Host::GitLab)
    })
    .await?;
    let forge = &world.forge;
    let running = world.enrolled("running").await?;
    let token = world.api.create_token(Approval::Manual).await?;
    let before = Candidate::new("before")?;
    before.ask(&world.api, &token.secret).await?;
    let pull = forge.pull_request_of(&branch_of("before")).await?;

    forge.set_fault(Fault::every(Kind::Cut));
    let during = Candidate::new("during")?;
    during.ask(&world.api, &token.secret).await?;
    eventually("the controller notices", async || {
        let fleet = world.api.fleet().await?;
        ensure!(
            fleet
                .conditions
                .iter()
                .any(|it| it.message.contains("127.0.0.1") || it.message.contains("reach")),
            "{:#?}",
            fleet.conditions
        );
        Ok(())
    })
    .await?;
    // People go on at the forge, for whom it is not away.
    forge.merge(pull.number, How::SquashAndDelete)?;
    ensure!(
        running.page_shows("running").await.is_ok(),
        "devices do not notice"
    );
    forge.heal();
    before.enroll(&world.api, &token.secret).await?;
    let pull = forge.pull_request_of(&branch_of("during")).await?;
    forge.merge(pull.number, How::MergeAndDelete)?;
    during.enroll(&world.api, &token.secret).await?;
    nothing_twice(forge)?;
    forge.is_content()
}

/// A call that is never answered holds up nothing but itself, and is given up.
#[tokio::test]
async fn a_forge_that_hangs_holds_up_no_device() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let forge = &world.forge;
    let hangs = Fault::every(Kind::Hang).on(Method::POST, opens(Host::GitHub));
    forge.set_fault(hangs.times(1));
    let token = world.api.create_token(Approval::Manual).await?;
    let waits = Candidate::new("waits")?;
    waits.ask(&world.api, &token.secret).await?;
    eventually("the call that hangs", async || {
        let calls = forge.calls();
        ensure!(
            calls.iter().any(|call| call.starts_with("POST /api")),
            "{calls:#?}"
        );
        Ok(())
    })
    .await?;
    // A rollout and a push need no answer of that kind.
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Still open:")?;
    let commit = copy.publish("Go on")?;
    world.api.sees(&commit).await?;
    let asked_again = Duration::from_secs(75);
    within(asked_again, "it is asked again", async || {
        ensure!(forge.pull_requests().len() == 1);
        Ok(())
    })
    .await?;
    forge.is_content()
}

/// Lists, labels, reviewers, comments, statuses: what fails once is made up for.
#[tokio::test]
async fn whatever_fails_once_is_made_up_for() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions {
        settings: "  enrollment:\n    labels: [edge]\n    reviewers: [noor]\n",
        ..ForgeOptions::at(Host::GitHub)
    })
    .await?;
    let forge = &world.forge;
    let unavailable = Kind::Status(StatusCode::SERVICE_UNAVAILABLE);
    for (method, path) in [
        (Method::GET, "/pulls"),
        (Method::POST, "/labels"),
        (Method::POST, "/requested_reviewers"),
        (Method::POST, "/comments"),
        (Method::POST, "/statuses/"),
    ] {
        forge.set_fault(Fault::every(unavailable).on(method, path).times(1));
    }
    let token = world.api.create_token(Approval::Manual).await?;
    Candidate::new("store-0001")?
        .ask(&world.api, &token.secret)
        .await?;
    let pull = forge.pull_request_of(&branch_of("store-0001")).await?;
    eventually("all of it", async || {
        let now = forge.pull_request(pull.number)?;
        let asked = (now.labels.as_slice(), now.reviewers.as_slice());
        ensure!(
            asked == (&["edge".to_owned()], &[REVIEWER.to_owned()]),
            "{now:#?}"
        );
        ensure!(forge.comments(pull.number).len() == 1, "no comment");
        Ok(())
    })
    .await?;
    forge
        .status_becomes(&pull.head_commit, "longshore/preview", "success", "")
        .await?;
    nothing_twice(forge)?;
    forge.is_content()
}

/// Killed at any moment of an enrollment, the controller ends with exactly one pull request for each device.
#[tokio::test]
async fn killed_at_random_points_there_is_one_pull_request() -> Result<()> {
    const ROUNDS: usize = 6;
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let mut world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let token = world.api.create_token(Approval::Manual).await?;
    let mut devices = Vec::new();
    for n in 0..ROUNDS {
        let device = Candidate::new(&format!("store-{n}"))?;
        device.ask(&world.api, &token.secret).await?;
        let moment = Duration::from_millis(chance.random_range(0..600));
        eprintln!("round {n}: killed after {moment:?}");
        sleep(moment).await;
        world.controller.kill();
        world.controller.start_again().await?;
        devices.push(device);
    }
    for (n, device) in devices.iter().enumerate() {
        let pull = world
            .forge
            .pull_request_of(&branch_of(&format!("store-{n}")))
            .await?;
        world.forge.merge(pull.number, How::SquashAndDelete)?;
        device.enroll(&world.api, &token.secret).await?;
    }
    ensure!(world.forge.pull_requests().len() == ROUNDS);
    nothing_twice(&world.forge)?;
    world.forge.is_content()
}
