//! Every answer of the enrollment endpoint, and what concurrency and persistence make of it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use longshore_e2e::{
    Candidate, World,
    api::{Answer, FLEET},
    enroll::ask,
    eventually,
    wait::within,
};
use longshore_protocol::api::{Approval, DeviceState, EnrollPending};
use serde_json::json;
use tokio::task::JoinSet;

fn is_token_not_found(answer: &Answer) -> Result<()> {
    ensure!(answer.status == StatusCode::NOT_FOUND, "{answer:?}");
    ensure!(
        answer.json() == json!({"error": "Token not found"}),
        "{answer:?}"
    );
    Ok(())
}

#[tokio::test]
async fn bad_tokens_are_not_found() -> Result<()> {
    let world = World::start().await?;
    let api = &world.api;
    let device = Candidate::new("store-0001")?;
    let expired = api
        .create_token_with(Approval::Manual, |token| token.expires_in = Some(1))
        .await?;
    let made = Instant::now();
    let revoked = api.create_token(Approval::Manual).await?;
    world
        .cli(&["tokens", "revoke", revoked.token.id.as_str()])
        .await?
        .success()?;
    let once = api
        .create_token_with(Approval::Manual, |token| token.max_uses = Some(1))
        .await?;
    ensure!(
        Candidate::new("first")?
            .ask(api, &once.secret)
            .await?
            .status
            == StatusCode::ACCEPTED
    );
    for secret in [
        "",
        "nonsense",
        &"x".repeat(5000),
        "lst_0000000000000000",
        &revoked.secret,
        &once.secret,
    ] {
        is_token_not_found(&device.ask(api, secret).await?)
            .with_context(|| format!("with `{}`", secret.get(..20).unwrap_or(secret)))?;
    }
    // Whoever asked before that is registered; whoever comes after is not.
    let mut tries = 0;
    eventually("the token expires", async || {
        tries += 1;
        let late = Candidate::new(&format!("late-{tries}"))?;
        is_token_not_found(&late.ask(api, &expired.secret).await?)
    })
    .await?;
    ensure!(
        made.elapsed() >= Duration::from_millis(900),
        "not before its time"
    );
    // One with the token of one use, and those who came in time.
    let registered = api.devices().await?;
    ensure!(
        registered.len() == tries,
        "bad tokens register nobody: {registered:#?}"
    );

    // No token at all is no better.
    let bare = api
        .request(reqwest::Method::POST, "/v1/enroll")
        .json(&json!({"name": "a", "csr": ""}));
    let answer = longshore_e2e::Api::send(bare).await?;
    ensure!(answer.status.is_client_error(), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_name_belongs_to_one_key() -> Result<()> {
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Manual).await?;
    let device = Candidate::new("store-0001")?;
    let answer = device.ask(&world.api, &token.secret).await?;
    ensure!(answer.status == StatusCode::ACCEPTED, "{answer:?}");
    let pending: EnrollPending = answer.success()?;
    ensure!(
        pending.status == "pending" && pending.retry_after > 0,
        "{pending:?}"
    );

    // Asking again is the same enrollment.
    let again: EnrollPending = device.ask(&world.api, &token.secret).await?.success()?;
    ensure!((&again.device_id, &again.device_token) == (&pending.device_id, &pending.device_token));
    ensure!(
        world.api.tokens().await?[0].uses == 1,
        "asking twice uses the token once"
    );
    ensure!(world.api.device("store-0001").await?.public_key == device.fingerprint());

    // Another key is another device, and must take another name, pending or approved.
    let other = Candidate::new("store-0001")?;
    let answer = other.ask(&world.api, &token.secret).await?;
    ensure!(answer.status == StatusCode::CONFLICT, "{answer:?}");
    ensure!(
        answer.json()["detail"]
            .as_str()
            .is_some_and(|it| it.contains("store-0001")),
        "{answer:?}"
    );
    world.api.decide("store-0001", "approve").await?;
    device.enroll(&world.api, &token.secret).await?;
    let answer = other.ask(&world.api, &token.secret).await?;
    ensure!(answer.status == StatusCode::CONFLICT, "{answer:?}");

    // A name that the repo holds with somebody else's key is taken as well.
    let copy = world.repo.copy();
    copy.pull()?;
    let yaml = copy.read("devices/store-0001/device.yaml")?;
    ensure!(yaml.contains(&device.fingerprint().to_string()), "{yaml}");
    Ok(())
}

#[tokio::test]
async fn nonsense_is_refused_with_a_reason() -> Result<()> {
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Manual).await?;
    let good = Candidate::new("store-0001")?.csr()?;
    let mut broken = good.clone();
    let middle = broken.len() / 2;
    let replacement = if &broken[middle..=middle] == "A" {
        "B"
    } else {
        "A"
    };
    broken.replace_range(middle..=middle, replacement);
    let long = "a".repeat(64);
    for (name, csr) in [
        ("", &*good),
        ("Store-0001", &good),
        ("store_0001", &good),
        ("../../etc", &good),
        ("-store", &good),
        (&long, &good),
        ("store-0001", ""),
        (
            "store-0001",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ),
        ("store-0001", &broken),
    ] {
        let answer = ask(&world.api, &token.secret, name, csr, 0).await?;
        ensure!(
            answer.status == StatusCode::UNPROCESSABLE_ENTITY,
            "{name} {csr}: {answer:?}"
        );
        ensure!(
            answer.json()["detail"]
                .as_str()
                .is_some_and(|it| !it.is_empty()),
            "{answer:?}"
        );
    }
    // A server need not read all of a huge body to refuse it; then it hangs up.
    let big = "x".repeat(1024 * 1024);
    if let Ok(answer) = ask(&world.api, &token.secret, "store-0001", &big, 0).await {
        ensure!(
            answer.status == StatusCode::PAYLOAD_TOO_LARGE,
            "{}",
            answer.status
        );
    }
    let registered = eventually("an answer", async || world.api.devices().await).await?;
    ensure!(registered.is_empty(), "nonsense registers nobody");
    ensure!(
        world.api.tokens().await?[0].uses == 0,
        "nonsense uses no token"
    );
    Ok(())
}

#[tokio::test]
async fn a_rejected_device_is_told_so() -> Result<()> {
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Manual).await?;
    let device = Candidate::new("store-0001")?;
    device.ask(&world.api, &token.secret).await?;
    world.api.decide("store-0001", "reject").await?;
    let answer = device.ask(&world.api, &token.secret).await?;
    ensure!(answer.status == StatusCode::FORBIDDEN, "{answer:?}");
    ensure!(answer.json()["status"] == "rejected", "{answer:?}");
    let decommissioned = Candidate::new("store-0002")?;
    decommissioned.ask(&world.api, &token.secret).await?;
    world.api.decide("store-0002", "approve").await?;
    world.api.decide("store-0002", "decommission").await?;
    let answer = decommissioned.ask(&world.api, &token.secret).await?;
    ensure!(answer.status == StatusCode::FORBIDDEN, "{answer:?}");
    ensure!(answer.json()["status"] == "decommissioned", "{answer:?}");
    Ok(())
}

/// Ten thousand guesses get nowhere, do not take for ever, and keep nobody else out.
#[tokio::test]
async fn ten_thousand_wrong_tokens_keep_nobody_out() -> Result<()> {
    const TRIES: usize = 10_000;
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Automatic).await?;
    let (api, csr) = (&world.api, Candidate::new("guesser")?.csr()?);
    let csr = &csr;
    let begun = Instant::now();
    let guesses = stream::iter(0..TRIES)
        .map(|n| async move {
            let secret = format!("lst_{n:043}");
            let answer = ask(api, &secret, "guesser", csr, 0).await?;
            let slowed = answer.status == StatusCode::TOO_MANY_REQUESTS;
            ensure!(slowed == answer.retry_after.is_some(), "{answer:?}");
            Ok(answer.status)
        })
        .buffer_unordered(32);
    let right = async {
        // In the midst of it.
        within(Duration::from_mins(1), "the guessing begins", async || {
            ensure!(api.metrics().await?.count("enrollments_refused_total") > 100);
            Ok(())
        })
        .await?;
        let asked = Instant::now();
        Candidate::new("store-0001")?
            .enroll(api, &token.secret)
            .await?;
        anyhow::Ok(asked.elapsed())
    };
    let (statuses, right) = tokio::join!(guesses.collect::<Vec<_>>(), right);
    let right = right.context("the right token works all along")?;
    let (mut not_found, mut too_many) = (0, 0);
    for status in statuses {
        match status? {
            StatusCode::NOT_FOUND => not_found += 1,
            StatusCode::TOO_MANY_REQUESTS => too_many += 1,
            other => anyhow::bail!("a wrong token is answered with {other}"),
        }
    }
    eprintln!(
        "{not_found} not found, {too_many} too many, in {:?}; the right one took {right:?}",
        begun.elapsed()
    );
    ensure!(not_found + too_many == TRIES);
    ensure!(too_many > TRIES / 2, "guessing is slowed down: {too_many}");
    ensure!(
        begun.elapsed() < Duration::from_secs(90),
        "{:?}",
        begun.elapsed()
    );
    ensure!(right < Duration::from_secs(20), "{right:?}");
    ensure!(api.devices().await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn fifty_devices_enroll_at_once_with_one_token() -> Result<()> {
    const DEVICES: usize = 50;
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Automatic).await?;
    let (api, secret) = (&world.api, &token.secret);
    let approved = stream::iter(0..DEVICES)
        .map(|n| async move {
            Candidate::new(&format!("store-{n:04}"))?
                .enroll(api, secret)
                .await
        })
        .buffer_unordered(DEVICES)
        .collect::<Vec<_>>()
        .await;
    let mut ids = BTreeSet::new();
    for approved in approved {
        ids.insert(approved?.device_id.to_string());
    }
    ensure!(ids.len() == DEVICES, "every device has an id of its own");
    let devices = api.devices().await?;
    ensure!(devices.len() == DEVICES && devices.iter().all(|it| it.state == DeviceState::Active));
    ensure!(api.tokens().await?[0].uses == u32::try_from(DEVICES)?);
    let copy = world.repo.copy();
    copy.pull()?;
    for n in 0..DEVICES {
        ensure!(
            copy.path()
                .join(format!("devices/store-{n:04}/device.yaml"))
                .exists(),
            "{n}"
        );
    }
    // Each of them gets its desired state from the one shared build.
    eventually("all have a desired state", async || {
        let devices = api.devices().await?;
        ensure!(devices.iter().all(|device| device.desired.is_some()));
        Ok(())
    })
    .await?;
    ensure!(
        api.metrics().await?.renders() == 1,
        "one overlay is one build"
    );
    Ok(())
}

#[tokio::test]
async fn a_token_of_ten_uses_enrolls_exactly_ten() -> Result<()> {
    let world = World::start().await?;
    let token = world
        .api
        .create_token_with(Approval::Manual, |token| token.max_uses = Some(10))
        .await?;
    let (api, secret) = (Arc::new(world.api.clone()), Arc::new(token.secret));
    let tries = (0..50).map(|n| {
        let (api, secret) = (api.clone(), secret.clone());
        tokio::spawn(async move {
            let device = Candidate::new(&format!("store-{n:04}"))?;
            let first = device.ask(&api, &secret).await?;
            // Who got in may ask again as often as it likes.
            let second = device.ask(&api, &secret).await?;
            ensure!(first.status == second.status, "{first:?} {second:?}");
            Ok(first)
        })
    });
    let mut accepted = 0;
    for answer in futures_util::future::join_all(tries).await {
        let answer = answer??;
        if answer.status == StatusCode::ACCEPTED {
            accepted += 1;
        } else {
            is_token_not_found(&answer)?;
        }
    }
    ensure!(accepted == 10, "{accepted} got in");
    ensure!(api.devices().await?.len() == 10);
    ensure!(api.tokens().await?[0].uses == 10);
    Ok(())
}

/// One tenant's crowd fills its own line. Another tenant's devices are let in as if nobody else were there.
#[tokio::test]
async fn a_tenants_crowd_does_not_delay_another_tenants_device() -> Result<()> {
    const CONNECTIONS: usize = 4;
    const CALLS: usize = 200;
    let world = World::start().await?;
    // Each call of the crowd takes the whole way, and only the first one leaves a device.
    let once = world
        .api
        .create_token_with(Approval::Manual, |token| token.max_uses = Some(1))
        .await?;
    let acme = world.api.create_tenant("acme").await?;
    let theirs = world.api.as_tenant("acme", &acme.api_token);
    theirs.create_fleet(FLEET, "").await?;
    let token = theirs.create_token(Approval::Manual).await?;

    let (done, busy) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut crowd = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let api = world.controller.api()?;
        for n in 0..CALLS {
            let (api, secret) = (api.clone(), once.secret.clone());
            let (done, busy) = (done.clone(), busy.clone());
            crowd.spawn(async move {
                let device = Candidate::new(&format!("crowd-{n}"))?;
                loop {
                    let answer = device.ask(&api, &secret).await?;
                    match answer.status {
                        StatusCode::NOT_FOUND | StatusCode::ACCEPTED | StatusCode::CONFLICT => {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                            ensure!(answer.retry_after.is_some(), "{answer:?}");
                            busy.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => anyhow::bail!("{answer:?}"),
                    }
                }
                #[expect(unreachable_code, reason = "says what the task is")]
                Ok(())
            });
        }
    }
    eventually("the crowd's line is full", async || {
        ensure!(busy.load(Ordering::Relaxed) > 0);
        Ok(())
    })
    .await?;
    let mut overtook = Vec::new();
    for n in 0..7 {
        let before = done.load(Ordering::Relaxed);
        let device = Candidate::new(&format!("store-{n:04}"))?;
        let answer = device.ask(&theirs, &token.secret).await?;
        ensure!(answer.status == StatusCode::ACCEPTED, "{answer:?}");
        overtook.push(done.load(Ordering::Relaxed) - before);
    }
    // In one line with the crowd, each of them waits for all that stand there. The store has no line for its writers,
    // so a single one may be unlucky.
    overtook.sort_unstable();
    let median = overtook.get(overtook.len() / 2).copied();
    ensure!(
        median.is_some_and(|median| median < 200),
        "calls of the crowd that were answered meanwhile: {overtook:?}"
    );
    if let Some(ended) = crowd.try_join_next() {
        ended??;
    }
    crowd.shutdown().await;
    Ok(())
}
