//! The edge listener: one WebSocket per device, driven by [`ControlSession`].
//!
//! ```text
//! TLS handshake (certificate of our authority) ─▶ device by certificate ─▶ upgrade (device token) ─▶ session
//! ```
//!
//! Who a device is comes from its certificate alone. The certificate and the token must belong to the same,
//! active device; that is looked up at every connect, and a poke looks it up again, so a cut-off takes effect at
//! once. One task per connection; a peer that does not read is cut off when its frame does not get through.

pub mod admission;
mod gather;
mod incoming;
mod lookups;
pub mod outgoing;
mod places;
mod recorder;
mod session;

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use http::{
    HeaderValue, Response, StatusCode,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER,
        SEC_WEBSOCKET_PROTOCOL,
    },
};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use longshore_protocol::{
    DeviceId, TenantName,
    api::{DeviceState, EDGE_PATH, EnrollRejected, SUBPROTOCOL},
    message::MAX_DEVICE_FRAME,
};
use rand::RngExt as _;
use tokio::time::{MissedTickBehavior, interval, timeout};
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
use self::{
    admission::{Admission, Seat},
    incoming::Counted,
    outgoing::Outgoing,
    session::{Session, TENANT_PACE},
};
pub use self::{incoming::Incoming, lookups::Lookups, places::Places, recorder::Recorder};

use crate::{
    ca::{Ca, DeviceIdentity, identity_of},
    clock,
    error::chain,
    hub::Hub,
    metrics::Metrics,
    rate::Buckets,
    secret::Keyring,
    store::{Store, devices::Standing},
    tls::{Stream, TlsListener},
};

const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// The WebSocket library's default of 128 KiB per connection would be 1.3 GB for 10,000 devices.
const BUFFER: usize = 512;

/// How long a device may be here and, as far as the store knows, elsewhere.
const STRAY: Duration = Duration::from_secs(10);
/// How often the hub looks at all sessions, at most.
const SWEEP: Duration = Duration::from_secs(5);
/// A device that is silent for this many heartbeats is gone.
const MISSED_HEARTBEATS: u32 = 3;

/// After how many seconds a device comes back that could not be let in.
const LATER: RangeInclusive<u64> = 2..=10;

/// The device cannot be let in now, for this reason.
#[derive(Clone, Copy, Debug)]
struct Later(&'static str);

impl Later {
    fn refusal(&self) -> ErrorResponse {
        let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable", self.0);
        // Each device gets another number, so that they do not come back together.
        let seconds = rand::rng().random_range(LATER);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
        response
    }
}

/// How much each tenant's devices may say together.
#[derive(Debug)]
pub struct Paces(Buckets<TenantName>);

impl Default for Paces {
    fn default() -> Self {
        Self(Buckets::new(TENANT_PACE))
    }
}

impl Paces {
    /// Takes what was said, and says how long to wait before anything more is read.
    fn spend(&self, tenant: &TenantName, cost: f64) -> Option<Duration> {
        self.0.spend(tenant, cost)
    }
}

/// Serves devices.
#[derive(Debug)]
pub struct Gateway {
    /// Remembers.
    pub store: Store,
    /// Knows who is connected.
    pub hub: Arc<Hub>,
    /// Says how devices stand.
    pub lookups: Arc<Lookups>,
    /// Says who may come in.
    pub admission: Admission,
    /// How much tenants' devices say.
    pub paces: Paces,
    /// Where sessions read and encode.
    pub places: Places,
    /// Memory for messages that come in parts.
    pub incoming: Incoming,
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
            self.call_strays(&ended),
            self.lookups.run(ended.clone()),
            self.recorder.run(ended.clone()),
        );
    }

    async fn accept(self: &Arc<Self>, mut listener: TlsListener) {
        let sessions = TaskTracker::new();
        while let Some((stream, peer)) = listener.next().await {
            let Some(identity) = self.identity(&stream) else {
                debug!(%peer, "a certificate of ours that is no device's");
                continue;
            };
            if !self.admission.may_come(&identity.device) {
                debug!(%peer, device = %identity.device, "the device comes too often");
                continue;
            }
            let Some(place) = self.admission.place(&identity.tenant).await else {
                break;
            };
            let gateway = self.clone();
            sessions.spawn(async move {
                // What it takes to get in is forgotten before the session begins, which lasts.
                let admitted = Box::pin(gateway.admit(stream, identity)).await;
                drop(place);
                if let Some((mut session, seat)) = admitted {
                    session.run().await;
                    drop(seat);
                }
            });
        }
        self.hub.stop();
        sessions.close();
        sessions.wait().await;
    }

    fn identity(&self, stream: &Stream) -> Option<DeviceIdentity> {
        let chain = stream.get_ref().1.peer_certificates()?;
        identity_of(chain.first()?, self.ca.trust_domain())
    }

    /// Lets devices come again that the store has elsewhere, every now and then. Only other replicas can bring that
    /// about.
    async fn call_strays(&self, ended: &CancellationToken) {
        if self.store.peers().is_none() {
            return ended.cancelled().await;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(STRAY) => {}
                () = ended.cancelled() => return,
            }
            match self.recorder.strays(STRAY).await {
                Ok(strays) => self.hub.come_again(&strays),
                Err(error) => debug!(error = %chain(&error), "strays cannot be looked for"),
            }
        }
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

    async fn admit(
        self: Arc<Self>,
        stream: Stream,
        identity: DeviceIdentity,
    ) -> Option<(Box<Session>, Seat)> {
        let (tenant, id) = (identity.tenant, identity.device);
        let pokes = self.hub.pokes();
        let standing = match self.lookups.standing(&id).await {
            Ok(standing) => Ok(standing.filter(|standing| standing.fleet.tenant == tenant)),
            Err(error) => {
                warn!(%tenant, %id, error = %chain(&error), "the device cannot be looked up; it has to come back");
                Err(Later("the controller cannot look the device up now"))
            }
        };
        let seat = self.admission.seat(&tenant);
        let seat = seat.ok_or(Later("there are too many devices"));
        let stream = self.incoming.count(&tenant, stream);
        let go = CancellationToken::new();
        let socket = {
            let _waiting = self.admission.wait_for(&tenant, go.clone());
            let upgrade = Box::pin(self.upgrade(stream, &id, &standing, &seat));
            go.run_until_cancelled(upgrade).await??
        };
        let (standing, seat) = (standing.ok()??, seat.ok()?);
        let session = Session::new(self, id, standing, pokes, socket);
        Some((Box::new(session), seat))
    }

    async fn upgrade(
        &self,
        stream: Counted,
        id: &DeviceId,
        standing: &Result<Option<Standing>, Later>,
        seat: &Result<Seat, Later>,
    ) -> Option<WebSocketStream<Counted>> {
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
            if let Err(later) = seat {
                return Err(later.refusal());
            }
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
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default();
    let standing = standing.as_ref().map_err(Later::refusal)?;
    let standing = standing
        .as_ref()
        .filter(|standing| keyring.is_device_token(id, standing.public_key, token));
    match standing.map(|standing| (standing.state, &standing.state_reason)) {
        None => Err(refuse(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the certificate and the device token do not belong to the same device",
        )),
        // Last, so that a device can ask how it stands without a session: `longshore-agent doctor` does.
        Some((DeviceState::Active, _)) => speaks(request),
        Some((DeviceState::Decommissioned, reason)) => {
            Err(refuse(StatusCode::FORBIDDEN, "decommissioned", reason))
        }
        Some((DeviceState::Pending | DeviceState::Rejected, reason)) => {
            Err(refuse(StatusCode::FORBIDDEN, "rejected", reason))
        }
    }
}

#[expect(
    clippy::result_large_err,
    reason = "the error type is the WebSocket library's"
)]
fn speaks(request: &Request) -> Result<(), ErrorResponse> {
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    let speaks = offered.iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|list| list.split(',').any(|name| name.trim() == SUBPROTOCOL))
    });
    if speaks {
        return Ok(());
    }
    Err(refuse(
        StatusCode::BAD_REQUEST,
        "unknown",
        "the subprotocol is not offered",
    ))
}

/// Now, as RFC 9110 section 5.6.7 writes it: a device that is refused may be so because its clock is wrong.
fn date() -> Option<HeaderValue> {
    let now = i64::try_from(clock::now_ms()).ok()?;
    let now = Timestamp::from_millisecond(now).ok()?;
    let now = DateTimePrinter::new().timestamp_to_rfc9110_string(&now);
    HeaderValue::try_from(now.ok()?).ok()
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
    if let Some(now) = date() {
        headers.insert(DATE, now);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
