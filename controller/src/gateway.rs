//! The edge listener: one WebSocket per device, driven by [`ControlSession`].
//!
//! ```text
//! TLS handshake (certificate of our authority) ─▶ device by certificate ─▶ upgrade (device token) ─▶ session
//! ```
//!
//! Who a device is comes from its certificate alone. The certificate and the token must belong to the same,
//! active device; that is looked up at every connect, and a poke looks it up again, so a cut-off takes effect at
//! once. One task per connection; a peer that does not read is cut off when its frame does not get through.

mod gather;
mod lookups;
pub mod outgoing;
mod places;
mod recorder;
mod session;

use std::{net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{
    HeaderValue, Response, StatusCode,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER,
        SEC_WEBSOCKET_PROTOCOL,
    },
};
use longshore_protocol::{
    DeviceId,
    api::{DeviceState, EDGE_PATH, EnrollRejected, SUBPROTOCOL},
    message::MAX_DEVICE_FRAME,
};
use rand::RngExt as _;
use tokio::{
    sync::Semaphore,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::{
        handshake::server::{ErrorResponse, Request, Response as Upgrade},
        protocol::WebSocketConfig,
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

pub(crate) use self::gather::AskError;
pub use self::{lookups::Lookups, places::Places, recorder::Recorder};
use self::{outgoing::Outgoing, session::Session};

use crate::{
    ca::{Ca, identity_of},
    error::chain,
    hub::Hub,
    metrics::Metrics,
    secret::Keyring,
    store::{Store, devices::Standing},
    tls::{Stream, TlsListener},
};

const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// How many devices are served at once; further ones wait.
const MAX_SESSIONS: usize = 50_000;
/// The WebSocket library's default of 128 KiB per connection would be 1.3 GB for 10,000 devices.
const BUFFER: usize = 512;

/// How often the hub looks at all sessions, at most.
const SWEEP: Duration = Duration::from_secs(5);
/// A device that is silent for this many heartbeats is gone.
const MISSED_HEARTBEATS: u32 = 3;

/// After how many seconds a device comes back that could not be looked up.
const LATER: RangeInclusive<u64> = 2..=10;

/// The device cannot be looked up now.
#[derive(Clone, Copy, Debug)]
struct Later;

/// Serves devices.
#[derive(Debug)]
pub struct Gateway {
    /// Remembers.
    pub store: Store,
    /// Knows who is connected.
    pub hub: Arc<Hub>,
    /// Says how devices stand.
    pub lookups: Arc<Lookups>,
    /// Where sessions read and encode.
    pub places: Places,
    /// Memory for what is sent.
    pub outgoing: Outgoing,
    /// Stores what devices say.
    pub recorder: Recorder,
    /// Checks device tokens.
    pub keyring: Arc<Keyring>,
    /// Issues certificates.
    pub ca: Arc<Ca>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// How often devices ping.
    pub heartbeat: Duration,
}

impl Gateway {
    /// Serves what `listener` accepts, until the shutdown and the end of the last session. What devices said is
    /// stored when this returns.
    pub async fn run(self: Arc<Self>, listener: TlsListener) {
        let ended = CancellationToken::new();
        let serve = async {
            self.accept(listener).await;
            ended.cancel();
        };
        tokio::join!(
            serve,
            self.sweep(&ended),
            self.lookups.run(ended.clone()),
            self.recorder.run(ended.clone()),
        );
    }

    async fn accept(self: &Arc<Self>, mut listener: TlsListener) {
        let sessions = TaskTracker::new();
        let room = Arc::new(Semaphore::new(MAX_SESSIONS));
        while let Some((stream, peer)) = listener.next().await {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let gateway = self.clone();
            sessions.spawn(async move {
                // What it takes to get in is forgotten before the session begins, which lasts.
                if let Some(mut session) = Box::pin(gateway.admit(stream, peer)).await {
                    session.run().await;
                }
                drop(permit);
            });
        }
        self.hub.stop();
        sessions.close();
        sessions.wait().await;
    }

    /// Looks at all sessions every now and then, so that none of them needs a timer of its own.
    async fn sweep(&self, ended: &CancellationToken) {
        let mut tick = interval(SWEEP.min(self.heartbeat));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.hub.sweep(self.heartbeat * MISSED_HEARTBEATS),
                () = ended.cancelled() => return,
            }
        }
    }

    async fn admit(self: Arc<Self>, stream: Stream, peer: SocketAddr) -> Option<Box<Session>> {
        let identity = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| identity_of(chain.first()?, self.ca.trust_domain()));
        let Some(identity) = identity else {
            debug!(%peer, "a certificate of ours that is no device's");
            return None;
        };
        let (tenant, id) = (identity.tenant, identity.device);
        let pokes = self.hub.pokes();
        let standing = match self.lookups.standing(&id).await {
            Ok(standing) => Ok(standing.filter(|standing| standing.fleet.tenant == tenant)),
            Err(error) => {
                warn!(%tenant, %id, error = %chain(&error), "the device cannot be looked up; it has to come back");
                Err(Later)
            }
        };
        let socket = self.upgrade(stream, &id, &standing).await?;
        let standing = standing.ok()??;
        Some(Box::new(Session::new(self, id, standing, pokes, socket)))
    }

    async fn upgrade(
        &self,
        stream: Stream,
        id: &DeviceId,
        standing: &Result<Option<Standing>, Later>,
    ) -> Option<WebSocketStream<Stream>> {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(64 * 1024)
            .max_message_size(Some(MAX_DEVICE_FRAME))
            .max_frame_size(Some(MAX_DEVICE_FRAME));
        #[expect(
            clippy::result_large_err,
            reason = "the signature is the WebSocket library's"
        )]
        let check = |request: &Request, mut response: Upgrade| {
            admit(&self.keyring, id, standing, request)?;
            let protocol = HeaderValue::from_static(SUBPROTOCOL);
            response
                .headers_mut()
                .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
            Ok(response)
        };
        let upgrade = accept_hdr_async_with_config(stream, check, Some(config));
        match timeout(UPGRADE_DEADLINE, upgrade).await {
            Ok(Ok(socket)) => Some(socket),
            Ok(Err(error)) => {
                debug!(%error, "the device was not let in");
                None
            }
            Err(_elapsed) => {
                debug!("the device did not ask for a session in time");
                None
            }
        }
    }
}

/// Checks what the TLS handshake could not.
#[expect(
    clippy::result_large_err,
    reason = "the error type is the WebSocket library's"
)]
fn admit(
    keyring: &Keyring,
    id: &DeviceId,
    standing: &Result<Option<Standing>, Later>,
    request: &Request,
) -> Result<(), ErrorResponse> {
    if request.uri().path() != EDGE_PATH {
        return Err(refuse(
            StatusCode::NOT_FOUND,
            "unknown",
            "the path is not known",
        ));
    }
    let speaks = request
        .headers()
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .any(|value| {
            value
                .to_str()
                .is_ok_and(|list| list.split(',').any(|name| name.trim() == SUBPROTOCOL))
        });
    if !speaks {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unknown",
            "the subprotocol is not offered",
        ));
    }
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default();
    let Ok(standing) = standing else {
        let mut later = refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "the controller cannot look the device up now",
        );
        // Each device gets another number, so that they do not come back together.
        let seconds = rand::rng().random_range(LATER);
        later.headers_mut().insert(RETRY_AFTER, seconds.into());
        return Err(later);
    };
    let standing = standing
        .as_ref()
        .filter(|standing| keyring.is_device_token(id, standing.public_key, token));
    match standing.map(|standing| (standing.state, &standing.state_reason)) {
        None => Err(refuse(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the certificate and the device token do not belong to the same device",
        )),
        Some((DeviceState::Active, _)) => Ok(()),
        Some((DeviceState::Decommissioned, reason)) => {
            Err(refuse(StatusCode::FORBIDDEN, "decommissioned", reason))
        }
        Some((DeviceState::Pending | DeviceState::Rejected, reason)) => {
            Err(refuse(StatusCode::FORBIDDEN, "rejected", reason))
        }
    }
}

fn refuse(status: StatusCode, state: &str, reason: &str) -> ErrorResponse {
    // Without its length the agent could not tell the end of the body from a cut connection.
    let body = EnrollRejected {
        status: state.to_owned(),
        reason: reason.to_owned(),
    };
    let body = serde_json::to_string(&body).unwrap_or_default();
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Some(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
