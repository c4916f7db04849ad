//! Webhooks: a verified call makes the fleet's source look, and says nothing else.
//!
//! ```text
//! headers ─▶ which host? signed? ─▶ body ─▶ verified? ─▶ not too many? ─▶ first time? ─▶ poke
//!            401, no byte read      413     401          429              200            202
//! ```
//!
//! One URL and one secret per fleet serve all hosts. A fleet that does not exist is answered like a wrong signature,
//! after the same work. A stranger cannot use up what a fleet's host may use: signed calls have a budget per fleet,
//! others one per address, and a call that is signed is never turned away for its neighbors' sake. Bodies of ordinary
//! size are read like any other call's; large ones take turns.

mod deliveries;
mod outcome;

use std::{net::IpAddr, time::Duration};

use axum::{
    Extension, Json,
    body::{Body, HttpBody as _},
    extract::{Path, State as Extract},
    http::{HeaderMap, StatusCode},
};
use longshore_protocol::api::{RotateWebhookSecret, RotatedWebhookSecret};
use longshore_webhooks::{Delivery, Event, Host};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{sync::Semaphore, time::timeout};
use tracing::{debug, info, warn};

use self::{
    deliveries::Deliveries,
    outcome::{Outcome, Refusal, label},
};
use super::{Api, ApiError, Peer, State, access::InFleet, body};
use crate::{
    clock,
    rate::{Buckets, Rate, network},
    secret,
    store::fleets::{self, FleetId},
};

/// The largest body: GitHub's own limit.
const MAX_BODY: usize = 25 * 1024 * 1024;
/// Up to here a body is read like that of any other call.
const ORDINARY_BODY: u64 = 64 * 1024;
/// How many larger ones are read at once.
const LARGE_AT_ONCE: usize = 8;
/// How long a large one may wait for its turn.
const WAIT: Duration = Duration::from_secs(5);
/// Signed calls, by fleet. A pull request for each of hundreds of devices is a burst of some thousand events.
const BY_FLEET: Rate = Rate {
    burst: 2000.0,
    per_second: 50.0,
};
/// Calls that are not what they say, by address.
const BY_STRANGER: Rate = Rate {
    burst: 100.0,
    per_second: 1.0,
};
/// For how long a secret that is replaced holds too, unless told otherwise.
const OVERLAP: Duration = Duration::from_hours(24);
const MAX_OVERLAP: Duration = Duration::from_hours(30 * 24);

/// What is remembered between calls.
#[derive(Debug)]
pub struct Webhooks {
    large: Semaphore,
    by_fleet: Buckets<FleetId>,
    by_stranger: Buckets<IpAddr>,
    deliveries: Deliveries,
    /// What calls of fleets that do not exist are verified with.
    decoy: SecretString,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            large: Semaphore::new(LARGE_AT_ONCE),
            by_fleet: Buckets::new(BY_FLEET),
            by_stranger: Buckets::new(BY_STRANGER),
            deliveries: Deliveries::default(),
            decoy: secret::generate_for_webhooks(),
        }
    }
}

/// The path of a fleet's webhook.
pub(super) fn path(fleet: &FleetId) -> String {
    format!("/webhooks/{}/{}", fleet.tenant, fleet.name)
}

/// What a webhook's secret is encrypted for.
pub(super) fn purpose(fleet: &FleetId) -> String {
    format!("webhook {fleet}")
}

pub(super) async fn receive(
    Extract(api): State,
    Extension(Peer(peer)): Extension<Peer>,
    Path((tenant, fleet)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let fleet = match (tenant.parse(), fleet.parse()) {
        (Ok(tenant), Ok(name)) => Some(FleetId { tenant, name }),
        _ => None,
    };
    let host = Host::of(&headers);
    let name = host.as_ref().map_or("unknown", |host| host.name());
    let result = match host {
        Ok(host) => {
            let stranger = network(peer.ip());
            let call = Call {
                api: &api,
                host,
                headers: &headers,
                stranger,
            };
            call.handle(fleet.as_ref(), body).await
        }
        // Who does not even claim a signature gets no byte of memory.
        Err(_) => Err(Refusal::Unsigned),
    };
    let labels = [("host", name), ("outcome", label(&result))];
    api.metrics.webhooks.get_or_create(&labels).inc();
    Ok(result?.into())
}

/// One call that claims to be signed.
struct Call<'a> {
    api: &'a Api,
    host: Host,
    headers: &'a HeaderMap,
    stranger: IpAddr,
}

impl Call<'_> {
    async fn handle(&self, fleet: Option<&FleetId>, body: Body) -> Result<Outcome, Refusal> {
        let secrets = self.secrets(fleet).await?;
        let delivery = self.verified(&secrets, body).await;
        let (Some(fleet), Ok(delivery)) = (fleet, &delivery) else {
            return Err(self.refused(fleet, delivery.err()));
        };
        let Webhooks {
            by_fleet,
            deliveries,
            ..
        } = &self.api.webhooks;
        by_fleet.take(fleet.clone()).map_err(Refusal::TooMany)?;
        debug!(
            tenant = %fleet.tenant, fleet = %fleet.name, host = %self.host, delivery = delivery.id,
            "webhook"
        );
        Ok(match delivery.event {
            Event::Ping | Event::Ignored(_) => Outcome::Ignored,
            Event::Push(_) | Event::PullRequest(_) if deliveries.is_first(fleet, delivery) => {
                // Whatever happened: what counts is what the source finds.
                self.api.fleets.look(fleet);
                Outcome::Accepted
            }
            Event::Push(_) | Event::PullRequest(_) => Outcome::Repeated,
        })
    }

    /// The secrets that are in force. Nobody knows that of a fleet that does not exist.
    async fn secrets(&self, fleet: Option<&FleetId>) -> Result<Vec<SecretString>, ApiError> {
        let decoy = || vec![self.api.webhooks.decoy.clone()];
        let Some(fleet) = fleet else {
            return Ok(decoy());
        };
        let mut db = self.api.store.read().await?;
        let Some(found) = fleets::webhook_secrets(&mut db, fleet).await? else {
            return Ok(decoy());
        };
        drop(db);
        let now = clock::now_ms();
        let before = found.before.filter(|(_, until)| now < *until);
        let sealed = [Some(found.current), before.map(|(sealed, _)| sealed)];
        let purpose = purpose(fleet);
        let mut secrets = Vec::new();
        for sealed in sealed.into_iter().flatten() {
            secrets.push(self.api.keyring.decrypt(&purpose, &sealed)?);
        }
        Ok(secrets)
    }

    async fn verified(&self, secrets: &[SecretString], body: Body) -> Result<Delivery, Refusal> {
        let Webhooks {
            large, by_stranger, ..
        } = &self.api.webhooks;
        let is_ordinary = body
            .size_hint()
            .upper()
            .is_some_and(|size| size <= ORDINARY_BODY);
        let _turn = if is_ordinary {
            None
        } else {
            // Whoever sent much that was not signed is not believed to sign what is large.
            by_stranger.look(&self.stranger).map_err(Refusal::TooMany)?;
            match timeout(WAIT, large.acquire()).await {
                Ok(Ok(turn)) => Some(turn),
                _ => return Err(Refusal::Busy),
            }
        };
        let body = body::read(body, MAX_BODY).await.map_err(Refusal::Unread)?;
        self.host
            .receive(self.headers, &body, secrets)
            .map_err(|error| {
                if error.is_unverified() {
                    Refusal::Forged
                } else {
                    Refusal::Invalid(error)
                }
            })
    }

    /// Counts a call that was refused, where it was refused for what it is.
    fn refused(&self, fleet: Option<&FleetId>, refusal: Option<Refusal>) -> Refusal {
        match refusal.unwrap_or(Refusal::Forged) {
            Refusal::Forged => match self.api.webhooks.by_stranger.take(self.stranger) {
                Ok(()) => {
                    let fleet = fleet.map(ToString::to_string).unwrap_or_default();
                    warn!(fleet, host = %self.host, source = %self.stranger, "a webhook was refused");
                    Refusal::Forged
                }
                Err(pause) => Refusal::TooMany(pause),
            },
            other => other,
        }
    }
}

/// Makes a new secret; the one in force until now holds for a while too, so that there is time to tell the host.
pub(super) async fn rotate(
    Extract(api): State,
    InFleet(fleet): InFleet,
    Json(RotateWebhookSecret { overlap_seconds }): Json<RotateWebhookSecret>,
) -> Result<Json<RotatedWebhookSecret>, ApiError> {
    let overlap = overlap_seconds.map_or(OVERLAP, Duration::from_secs);
    if overlap > MAX_OVERLAP {
        return Err(ApiError::refused(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the old secret may hold for 30 days at most; give a smaller `overlapSeconds`",
        ));
    }
    let overlap = u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX);
    let until = clock::now_ms().saturating_add(overlap);
    let secret = secret::generate_for_webhooks();
    let sealed = api.keyring.encrypt(&purpose(&fleet.id), &secret)?;
    let mut db = api.store.write().await?;
    fleets::rotate_webhook_secret(&mut db, &fleet.id, &sealed, until).await?;
    db.commit().await?;
    info!(tenant = %fleet.id.tenant, fleet = %fleet.id.name, until, "the webhook has a new secret");
    Ok(Json(RotatedWebhookSecret {
        webhook_path: path(&fleet.id),
        webhook_secret: secret.expose_secret().to_owned(),
        webhook_secret_before_until: until,
    }))
}
