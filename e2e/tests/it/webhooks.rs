//! Webhooks of all hosts: what makes the controller look, what does not, and that nobody can spoil it for others.

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use longshore_e2e::{
    Api, ControllerOptions, World, WorldOptions, eventually,
    webhook::{SENDERS, Sender, Webhook},
};
use longshore_protocol::api::RotatedWebhookSecret;
use reqwest::Method;
use serde_json::{Value, json};

const OK: StatusCode = StatusCode::OK;
const ACCEPTED: StatusCode = StatusCode::ACCEPTED;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;
const TOO_MANY: StatusCode = StatusCode::TOO_MANY_REQUESTS;

/// A world in which nothing but a webhook makes the controller look within a test's time. It has looked once.
async fn unpolled() -> Result<World> {
    let controller = ControllerOptions {
        arguments: vec!["--poll-interval".into(), "1h".into()],
        ..ControllerOptions::default()
    };
    let world = World::with(WorldOptions {
        controller,
        by_url: true,
        ..WorldOptions::default()
    })
    .await?;
    let first = world.repo.copy().git(["rev-parse", "HEAD"])?;
    world.api.sees(&first).await?;
    Ok(world)
}

async fn deliver(world: &World, webhook: &Webhook) -> Result<StatusCode> {
    let answer = webhook.deliver(&world.api, &world.webhook_path).await?;
    Ok(answer.status)
}

fn change(world: &World, note: &str) -> Result<String> {
    let copy = world.repo.copy();
    copy.write("NOTES.md", note)?;
    copy.publish(note)
}

/// How many calls came to this.
async fn count(world: &World, host: &str, outcome: &str) -> Result<u64> {
    let name = format!("webhooks_total{{host=\"{host}\",outcome=\"{outcome}\"}}");
    Ok(world.api.metrics().await?.count(&name))
}

async fn revision(world: &World) -> Result<Option<String>> {
    Ok(world.api.fleet().await?.revision)
}

#[tokio::test]
async fn each_hosts_push_arrives_long_before_the_next_poll() -> Result<()> {
    let world = unpolled().await?;
    for sender in SENDERS {
        let commit = change(&world, &format!("{sender:?}"))?;
        let push = Webhook::push(sender, &commit, &world.webhook_secret);
        ensure!(deliver(&world, &push).await? == ACCEPTED, "{sender:?}");
        world.api.sees(&commit).await?;
    }
    // A pull request may be an enrollment's, so it makes the controller look, too.
    let commit = change(&world, "by the way")?;
    let side = |branch| json!({ "ref": branch, "sha": commit, "repo": { "id": 1 } });
    let body = json!({
        "action": "closed",
        "number": 7,
        "pull_request": {
            "html_url": "https://git.example/acme/fleet/pull/7",
            "merged": true,
            "head": side("longshore/enroll/store-0007"),
            "base": side("main"),
        },
    });
    let secret = &world.webhook_secret;
    let merged = Webhook::event(Sender::GitHub, "pull_request", body.to_string(), secret);
    ensure!(deliver(&world, &merged).await? == ACCEPTED);
    world.api.sees(&commit).await?;

    // What says nothing is answered well.
    for event in ["ping", "issues"] {
        let nothing = Webhook::event(Sender::GitHub, event, "{}", secret);
        ensure!(deliver(&world, &nothing).await? == OK, "{event}");
    }
    ensure!(count(&world, "github", "ignored").await? == 2);
    ensure!(count(&world, "gitlab", "accepted").await? == 2);
    // What is signed and makes no sense is answered with what is wrong.
    let broken = Webhook::event(Sender::GitHub, "push", "{\"ref\": 7}", secret);
    let answer = broken.deliver(&world.api, &world.webhook_path).await?;
    ensure!(
        answer.status == StatusCode::BAD_REQUEST && answer.text.contains("`ref`"),
        "{answer:?}"
    );
    Ok(())
}

#[tokio::test]
async fn forged_and_unsigned_calls_poke_nobody() -> Result<()> {
    let world = unpolled().await?;
    let before = revision(&world).await?;
    let commit = change(&world, "unseen")?;
    let strange = "whsec_c3RyYW5nZXJzIGhhdmUgbm8gc2VjcmV0IG9mIG91cnM=";
    for sender in SENDERS {
        let push = Webhook::push(sender, &commit, &world.webhook_secret);
        let answer = push
            .signed_with(strange)
            .deliver(&world.api, &world.webhook_path)
            .await?;
        ensure!(answer.status == UNAUTHORIZED, "{sender:?}: {answer:?}");
        ensure!(
            deliver(&world, &push.unsigned()).await? == UNAUTHORIZED,
            "{sender:?}"
        );
        // A fleet that is not there looks the same, even to who knows another one's secret.
        for path in [
            "/webhooks/default/other",
            "/webhooks/other/example",
            "/webhooks/A/B",
        ] {
            let other = push.deliver(&world.api, path).await?;
            ensure!(
                other.status == UNAUTHORIZED && other.text == answer.text,
                "{path}: {other:?}"
            );
        }
    }
    // One host's proof with another's headers.
    let mixed = Webhook::push(Sender::GitLab, &commit, &world.webhook_secret);
    let mixed = mixed.request(&world.api, &world.webhook_path)?;
    let mixed = mixed.header("x-github-event", "push");
    ensure!(Api::send(mixed).await?.status == UNAUTHORIZED);
    // A body that nobody wants is not read: whoever goes on sending it may find the connection closed.
    let another = world.controller.api()?;
    let nobody = another.request(Method::POST, &world.webhook_path);
    let answer = Api::send(nobody.body("x".repeat(1 << 20))).await;
    ensure!(answer.is_err() || answer?.status == UNAUTHORIZED);

    for outcome in ["accepted", "repeated", "ignored"] {
        for host in ["github", "gitlab", "generic"] {
            ensure!(count(&world, host, outcome).await? == 0, "{host} {outcome}");
        }
    }
    ensure!(revision(&world).await? == before, "somebody was poked");
    Ok(())
}

#[tokio::test]
async fn lost_doubled_replayed_and_late_webhooks_change_nothing() -> Result<()> {
    let world = unpolled().await?;
    let push = |commit: &str| Webhook::push(Sender::GitHub, commit, &world.webhook_secret);
    // The first one is lost; the second one brings both commits.
    let lost = change(&world, "lost")?;
    let first = push(&lost);
    let commit = change(&world, "heard")?;
    let second = push(&commit);
    ensure!(deliver(&world, &second).await? == ACCEPTED);
    world.api.sees(&commit).await?;
    // The host says it again, and somebody who listened does.
    for _ in 0..3 {
        ensure!(deliver(&world, &second).await? == OK);
    }
    ensure!(count(&world, "github", "repeated").await? == 3);
    // The lost one comes after all.
    ensure!(deliver(&world, &first).await? == ACCEPTED);
    let newest = change(&world, "newest")?;
    ensure!(deliver(&world, &push(&newest)).await? == ACCEPTED);
    world.api.sees(&newest).await?;
    let seen = world.api.revisions().await?;
    ensure!(
        seen.iter().all(|revision| revision.commit != lost),
        "{seen:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_secret_is_replaced_without_losing_a_webhook() -> Result<()> {
    let world = unpolled().await?;
    let commit = change(&world, "rotated")?;
    let delivered = async |secret: &str| {
        let push = Webhook::push(Sender::GitLabSigning, &commit, secret);
        deliver(&world, &push).await
    };
    let first = world.webhook_secret.clone();
    let rotated = world
        .cli_json(&["fleets", "rotate-webhook-secret", "example"])
        .await?;
    ensure!(
        rotated["webhookPath"] == json!(world.webhook_path),
        "{rotated}"
    );
    let second = rotated["webhookSecret"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(first != second);
    ensure!(delivered(&second).await? == ACCEPTED && delivered(&first).await? == ACCEPTED);

    // Once more: the first one is over, the second one holds for the overlap.
    let rotate = async |overlap: Value| {
        let path = "fleets/example/webhook/rotate";
        world.api.call(Method::POST, path, Some(&overlap)).await
    };
    let third: RotatedWebhookSecret = rotate(json!({"overlapSeconds": 1})).await?.success()?;
    ensure!(delivered(&third.webhook_secret).await? == ACCEPTED);
    ensure!(delivered(&first).await? == UNAUTHORIZED);
    eventually("the old secret ends", async || {
        ensure!(delivered(&second).await? == UNAUTHORIZED);
        Ok(())
    })
    .await?;
    let last: RotatedWebhookSecret = rotate(json!({"overlapSeconds": 0})).await?.success()?;
    ensure!(delivered(&third.webhook_secret).await? == UNAUTHORIZED);
    ensure!(delivered(&last.webhook_secret).await? == ACCEPTED);
    let too_long = rotate(json!({"overlapSeconds": 31 * 24 * 3600})).await?;
    ensure!(
        too_long.status == StatusCode::UNPROCESSABLE_ENTITY,
        "{too_long:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_flood_is_bounded_and_starves_nobody() -> Result<()> {
    let mut world = unpolled().await?;
    let other = world.api.create_fleet("other", &world.repo.url()).await?;
    let push = Webhook::push(Sender::GitHub, &"a".repeat(40), &world.webhook_secret);

    // Strangers first: soon they hear nothing but that it is too much.
    let forged = push.signed_with("a guess");
    eventually("strangers are turned away", async || {
        let answer = forged.deliver(&world.api, &world.webhook_path).await?;
        ensure!(
            answer.status == TOO_MANY && answer.retry_after.is_some(),
            "{answer:?}"
        );
        Ok(())
    })
    .await?;
    ensure!(count(&world, "github", "forged").await? >= 100);
    // The host is not affected, though it calls from the same address.
    ensure!(deliver(&world, &push).await? == ACCEPTED);

    // Then the host itself, more than anybody could need.
    let flood = stream::iter(0..20_000)
        .map(|_| async { push.again().deliver(&world.api, &world.webhook_path).await })
        .buffer_unordered(64)
        .skip_while(|answer| {
            let accepted = answer
                .as_ref()
                .is_ok_and(|answer| answer.status == ACCEPTED);
            std::future::ready(accepted)
        });
    let mut flood = std::pin::pin!(flood);
    let Some(refused) = flood.next().await else {
        anyhow::bail!("20,000 calls were accepted");
    };
    let refused = refused?;
    ensure!(refused.status == TOO_MANY, "{refused:?}");
    let seconds: u64 = refused.retry_after.as_deref().unwrap_or_default().parse()?;
    ensure!((1..60).contains(&seconds), "{seconds}");
    let accepted = count(&world, "github", "accepted").await?;
    ensure!(accepted >= 2000, "{accepted}");
    // A fleet's flood is its own.
    let neighbor = Webhook::push(Sender::GitHub, &"b".repeat(40), &other.webhook_secret);
    let answer = neighbor.deliver(&world.api, &other.webhook_path).await?;
    ensure!(answer.status == ACCEPTED, "{answer:?}");
    // And it passes.
    eventually("the fleet may call again", async || {
        ensure!(deliver(&world, &push.again()).await? == ACCEPTED);
        Ok(())
    })
    .await?;
    world.controller.process()?.check()
}

#[tokio::test]
async fn bodies_are_bounded() -> Result<()> {
    const LIMIT: usize = 25 * 1024 * 1024;
    let world = unpolled().await?;
    let of_size = |size| {
        let body = vec![b' '; size];
        Webhook::event(Sender::Generic, "", body, &world.webhook_secret)
    };
    ensure!(deliver(&world, &of_size(LIMIT)).await? == ACCEPTED);
    // What is too large is not read to its end: whoever goes on sending it may find the connection closed.
    let another = world.controller.api()?;
    let too_large = of_size(LIMIT + 1);
    let answer = too_large.deliver(&another, &world.webhook_path).await;
    ensure!(answer.is_err() || answer?.status == StatusCode::PAYLOAD_TOO_LARGE);
    ensure!(count(&world, "generic", "unread").await? == 1);
    // Large ones take turns, and none of them is lost.
    let body = vec![b' '; 1 << 20];
    let large = Webhook::event(Sender::Generic, "", body, &world.webhook_secret);
    let answers: Vec<_> = stream::iter(0..32)
        .map(|_| async { deliver(&world, &large.again()).await })
        .buffer_unordered(32)
        .collect()
        .await;
    for answer in answers {
        ensure!(answer? == ACCEPTED);
    }
    Ok(())
}

/// Nobody gets a secret of another tenant's fleet by making a new one.
#[tokio::test]
async fn another_tenants_secret_cannot_be_replaced() -> Result<()> {
    let world = unpolled().await?;
    let stranger = world.api.create_tenant("stranger").await?;
    let path = "fleets/example/webhook/rotate";
    for api in [
        world.api.as_tenant("stranger", &stranger.api_token),
        world.api.with_token(&stranger.api_token),
    ] {
        let answer = api.call(Method::POST, path, Some(&json!({}))).await?;
        ensure!(answer.status == StatusCode::NOT_FOUND, "{answer:?}");
    }
    let push = Webhook::push(Sender::GitHub, &"a".repeat(40), &world.webhook_secret);
    ensure!(deliver(&world, &push).await? == ACCEPTED);
    Ok(())
}
