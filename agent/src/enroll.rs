//! From a provisioning token to an identity.
//!
//! ```text
//! key on disk ─▶ POST /v1/enroll ─▶ 202: keep id and token, wait, ask again ─▶ 200: identity on disk
//!                      │
//!                      └─ 403, 404, 409, 422: over, with the reason;  anything else: again after a while
//! ```
//!
//! The key is on disk before the first call, and the same key is used until the controller decides, so a
//! restart at any point is the same enrollment. A wait is held by the controller, which answers at once when
//! somebody approves.
//!
//! Only an answer of the shape that the controller's have decides anything. A page, a redirect, a status alone may
//! come from anybody who stands in between, and are tried again.

mod call;

use std::time::Duration;

use longshore_protocol::{
    DeviceName, Digest,
    api::{EnrollApproved, EnrollPending, EnrollRejected, EnrollRequest, Facts, Problem},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::call::Verdict;
use crate::{
    backoff::Backoff,
    causes,
    http_client::{HttpError, IN_BETWEEN},
    identity::{CertificateError, Chain, DeviceKey, Enrollment, Identity, Keep, StateError},
    network::Network,
    tls::{self, TlsError, Trust},
    watchdog,
};

/// For how many seconds the controller may hold an answer.
const HOLD: u64 = 25;

/// What it takes to enroll.
#[derive(Clone, Debug)]
pub struct Application {
    /// The controller's public address.
    pub server: Url,
    /// How to know that it is the controller.
    pub trust: Trust,
    /// The provisioning token.
    pub token: SecretString,
    /// The name to ask for.
    pub name: DeviceName,
    /// What the device says of itself.
    pub facts: Facts,
    /// How to get there.
    pub network: Network,
}

/// Why a device is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The state directory fails.
    #[error(transparent)]
    State(#[from] StateError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key cannot be made, or the certificate that came is of no use.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The server is not the one whose fingerprint was given.
    #[error(
        "{0}. Compare --ca-fingerprint with what `longshore tokens create` printed: either it is mistyped, or {IN_BETWEEN}, or a proxy looks into TLS, whose root --ca would have to name"
    )]
    Untrusted(String),
    /// The token is unknown.
    #[error(
        "Token not found: the controller at {0} does not know this provisioning token, or it has expired, was revoked, or was used up. Create a new one with `longshore tokens create`"
    )]
    TokenNotFound(String),
    /// Somebody rejected the device.
    #[error("the device was {0}: {1}")]
    Rejected(String, String),
    /// The request cannot be granted as it is.
    #[error("the controller refuses to enroll this device ({0}): {1}")]
    Refused(u16, String),
    /// The answer makes no sense.
    #[error("the controller's answer makes no sense: {0}")]
    Answer(String),
    /// The agent was told to stop.
    #[error("stopped while the device was not yet approved; the next start goes on")]
    Stopped,
}

/// Enrolls, however long that takes. `announce` is called with the key that the approver is to compare.
pub async fn enroll(
    state: &impl Keep,
    application: &Application,
    announce: impl Fn(&DeviceName, &DeviceKey),
    mut backoff: Backoff,
    stop: &CancellationToken,
) -> Result<Identity, EnrollError> {
    let tls = tls::enrollment(&application.trust, &application.network)?;
    let mut enrollment = begun(state, &application.name).await?;
    let key = DeviceKey::from_pem(&enrollment.key)?;
    announce(&enrollment.name, &key);
    let mut request = EnrollRequest {
        name: enrollment.name.to_string(),
        csr: key.request(&enrollment.name)?.pem,
        facts: application.facts.clone(),
        // The first answer is wanted at once, for the id and the token in it.
        wait: if enrollment.registered.is_some() {
            HOLD
        } else {
            0
        },
    };
    let mut told = None;
    loop {
        let call = call::call(
            &application.network,
            &application.server,
            tls.clone(),
            &application.token,
            &request,
        );
        watchdog::beat(call::PATIENCE + Duration::from_secs(request.wait));
        let answer = tokio::select! {
            () = stop.cancelled() => return Err(EnrollError::Stopped),
            answer = call => answer,
        };
        let wait = match answer {
            Ok(Verdict::Approved(approved)) => {
                return approve(state, application, &enrollment, &key, *approved).await;
            }
            Ok(Verdict::Pending(pending)) => {
                backoff.reset();
                let is_news = pending.message.is_some() && pending.message != told;
                let wait = if is_news {
                    // The controller answered for the news; the decision may be right behind.
                    Duration::ZERO
                } else {
                    pause(&mut backoff, &request, &pending)
                };
                if enrollment.registered.is_none() {
                    tracing::info!(device = %pending.device_id, name = %enrollment.name, fingerprint = %key.fingerprint(), "registered; waiting for approval");
                    enrollment.registered = Some((pending.device_id, pending.device_token.into()));
                    state.keep_enrollment(&enrollment).await?;
                }
                if is_news {
                    told = pending.message;
                    tracing::info!(
                        name = %enrollment.name,
                        waiting = told.as_deref().unwrap_or_default(),
                        "not approved yet"
                    );
                }
                request.wait = HOLD;
                wait
            }
            Ok(Verdict::Rejected(EnrollRejected { status, reason })) => {
                return Err(EnrollError::Rejected(status, reason));
            }
            Ok(Verdict::TokenNotFound) => {
                return Err(EnrollError::TokenNotFound(application.server.to_string()));
            }
            Ok(Verdict::Refused(status, problem)) => {
                return Err(EnrollError::Refused(status, explain(problem)));
            }
            Ok(Verdict::Later(status, asked)) => {
                tracing::warn!(status, "the controller asks to come back later");
                backoff.after_refusal(asked)
            }
            Ok(Verdict::Foreign(why)) => {
                tracing::warn!(
                    why,
                    "the answer is not a controller's: {IN_BETWEEN}; trying again"
                );
                backoff.after_failure()
            }
            // Once a server that proved to be the controller has answered, the fingerprint is right.
            Err(HttpError::Untrusted(at, wrong)) if enrollment.registered.is_none() => {
                return Err(EnrollError::Untrusted(format!(
                    "{at} is not the controller that was asked for ({wrong})"
                )));
            }
            Err(error) => {
                tracing::warn!(
                    error = causes(&error),
                    "no answer from the controller; trying again"
                );
                backoff.after_failure()
            }
        };
        watchdog::beat(wait);
        tokio::select! {
            () = stop.cancelled() => return Err(EnrollError::Stopped),
            () = time::sleep(wait) => {}
        }
    }
}

/// The enrollment that is under way for this name, or a new one with a new key.
async fn begun(state: &impl Keep, name: &DeviceName) -> Result<Enrollment, EnrollError> {
    if let Some(enrollment) = state.enrollment()?.filter(|it| it.name == *name) {
        return Ok(enrollment);
    }
    let key = DeviceKey::generate()?.pem();
    let enrollment = Enrollment {
        name: name.clone(),
        key,
        registered: None,
    };
    state.keep_enrollment(&enrollment).await?;
    Ok(enrollment)
}

fn pause(backoff: &mut Backoff, request: &EnrollRequest, pending: &EnrollPending) -> Duration {
    if request.wait == 0 {
        Duration::ZERO
    } else {
        backoff.at_least(Duration::from_secs(pending.retry_after.min(3600)))
    }
}

async fn approve(
    state: &impl Keep,
    application: &Application,
    enrollment: &Enrollment,
    key: &DeviceKey,
    approved: EnrollApproved,
) -> Result<Identity, EnrollError> {
    let chain = Chain::verify(&approved.certificate_chain, &approved.ca_bundle, None)?;
    chain.belongs_to(key)?;
    chain.names(&approved.device_id)?;
    let edge_url = approved.edge_url;
    let edge_url = Url::parse(&edge_url)
        .ok()
        .filter(|url| url.scheme() == "wss" && url.host().is_some())
        .ok_or_else(|| EnrollError::Answer(format!("`{edge_url}` is no wss:// address")))?;
    let identity = Identity {
        device_id: approved.device_id,
        name: enrollment.name.clone(),
        device_token: approved.device_token.into(),
        key: enrollment.key.clone(),
        chain: chain.pem(),
        ca_bundle: approved.ca_bundle,
        edge_url,
        server: application.server.clone(),
        trust: Some(application.trust.clone()),
        token: digest(&application.token),
    };
    state.keep_identity(&identity).await?;
    tracing::info!(device = %identity.device_id, name = %identity.name, edge = %identity.edge_url, "approved and enrolled");
    Ok(identity)
}

/// What is kept of a token: enough to know it again.
pub fn digest(token: &SecretString) -> Digest {
    Digest::of(token.expose_secret().as_bytes())
}

fn explain(problem: Problem) -> String {
    if problem.detail.is_empty() {
        problem.title
    } else {
        problem.detail
    }
}
