//! One device's session: carries out what [`ControlSession`] decides.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use longshore_protocol::{
    Digest, Entry, Generation,
    api::DeviceState,
    message::{
        ControlMessage, DeviceMessage, Held, Phase, RejectReason, StatusReport, objects_in_parts,
    },
    session::{
        ControlSession,
        control::{self, Effect, Event},
    },
};
use rand::RngExt as _;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tracing::{debug, info, warn};

use super::Gateway;
use crate::{
    ca::{Request, Signer as _},
    clock,
    enrollment::bounded,
    error::chain,
    hub,
    store::{
        StoreError, content,
        devices::{self, Device},
    },
};

/// How often the machine is told that time passed.
const TICK: Duration = Duration::from_secs(5);
/// A frame that does not get through in this time ends the session: the device does not read.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// A device that is silent for this many heartbeats is gone.
const MISSED_HEARTBEATS: u32 = 3;
const MAX_CONDITIONS: usize = 32;
const MAX_CONDITION_TEXT: usize = 2000;
/// Reports of one device are stored at most this often; the last one always is.
const STATUS_INTERVAL: Duration = Duration::from_millis(20);

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the device went away")]
    Gone,
    #[error("the device went silent")]
    Silent,
    #[error("the device does not read")]
    Stuck,
    #[error("a newer connection of the device is there")]
    Replaced,
    #[error("the controller stops")]
    Shutdown,
    #[error("the device is no longer active")]
    Inactive,
    #[error("the device broke the protocol: {0}")]
    Protocol(String),
    #[error("the connection broke")]
    Socket(#[source] Box<tokio_tungstenite::tungstenite::Error>),
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl From<tokio_tungstenite::tungstenite::Error> for End {
    fn from(error: tokio_tungstenite::tungstenite::Error) -> Self {
        use tokio_tungstenite::tungstenite::Error;
        match error {
            Error::ConnectionClosed | Error::AlreadyClosed => Self::Gone,
            Error::Capacity(_) | Error::Protocol(_) | Error::Utf8(_) => {
                Self::Protocol(error.to_string())
            }
            other => Self::Socket(Box::new(other)),
        }
    }
}

pub(super) struct Session<'g> {
    gateway: &'g Gateway,
    device: Device,
    socket: WebSocketStream<TlsStream<TcpStream>>,
    machine: ControlSession,
    started: Instant,
    heard: Instant,
    /// A report that is not stored yet.
    report: Option<StatusReport>,
    reported: Instant,
}

impl<'g> Session<'g> {
    pub(super) fn new(
        gateway: &'g Gateway,
        device: Device,
        socket: WebSocketStream<TlsStream<TcpStream>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            gateway,
            device,
            socket,
            machine: ControlSession::new(),
            started: now,
            heard: now,
            report: None,
            reported: now,
        }
    }

    pub(super) async fn run(mut self) {
        let entry = self.gateway.hub.connect(&self.device.id);
        self.gateway.metrics.sessions.inc();
        debug!(device = %self.device.name, "connected");
        let end = match self.serve(&entry).await {
            Ok(end) | Err(end) => end,
        };
        if let Err(error) = self.flush_report(true).await {
            warn!(
                error = %chain(&error),
                "the last report is lost"
            );
        }
        if self.gateway.hub.disconnect(&self.device.id, &entry)
            && let Err(error) = self.record_connected(false).await
        {
            warn!(
                error = %chain(&error),
                "the end of the session is not stored"
            );
        }
        self.gateway.metrics.sessions.dec();
        match &end {
            End::Gone
            | End::Silent
            | End::Replaced
            | End::Shutdown
            | End::Inactive
            | End::Socket(_) => {
                debug!(device = %self.device.name, reason = %end, "disconnected");
            }
            End::Stuck | End::Protocol(_) | End::Store(_) => {
                warn!(
                    device = %self.device.name,
                    error = %chain(&end),
                    "the session was ended"
                );
            }
        }
        self.say_goodbye(&end).await;
    }

    async fn serve(&mut self, entry: &hub::Session) -> Result<End, End> {
        // Whoever was cut off between the look-up and the hub's entry got no poke.
        self.check_active().await?;
        self.record_connected(true).await?;
        let silence = self.gateway.heartbeat * MISSED_HEARTBEATS;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = self.socket.next() => {
                    let Some(frame) = frame else { return Ok(End::Gone) };
                    self.heard = Instant::now();
                    match frame? {
                        Message::Binary(bytes) => {
                            let message = DeviceMessage::decode(&bytes)
                                .map_err(|error| End::Protocol(error.to_string()))?;
                            if let Some(message) = message {
                                self.handle(Event::Message(message)).await?;
                            }
                        }
                        Message::Close(_) => return Ok(End::Gone),
                        // The library answers pings; text is nothing that we know.
                        _ => {}
                    }
                }
                () = entry.poke.notified() => {
                    self.check_active().await?;
                    self.handle(Event::Poked).await?;
                }
                () = tokio::time::sleep_until(self.reported + STATUS_INTERVAL),
                    if self.report.is_some() => self.flush_report(false).await?,
                _ = tick.tick() => {
                    if self.heard.elapsed() > silence {
                        return Ok(End::Silent);
                    }
                    self.handle(Event::Tick).await?;
                }
                () = entry.replaced.cancelled() => return Ok(End::Replaced),
                () = self.gateway.shutdown.cancelled() => return Ok(End::Shutdown),
            }
        }
    }

    /// Hands an event to the machine and carries out what it says, until nothing is left.
    async fn handle(&mut self, event: Event) -> Result<(), End> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            for effect in self.machine.handle(event, now) {
                if let Some(next) = self.carry_out(effect).await? {
                    events.push(next);
                }
                if events.len() > 1 {
                    // Each effect leads to at most one event, and `LoadDesired` to one of another kind.
                    return Err(End::Protocol("events piled up".to_owned()));
                }
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, effect: Effect) -> Result<Option<Event>, End> {
        match effect {
            Effect::Welcome => {
                let heartbeat = self.gateway.heartbeat.as_millis();
                self.send(&ControlMessage::Welcome {
                    heartbeat_ms: u64::try_from(heartbeat).unwrap_or(u64::MAX),
                    server_time_ms: clock::now_ms(),
                })
                .await?;
            }
            Effect::LoadDesired => return Ok(Some(Event::Desired(self.load_desired().await?))),
            Effect::Send(message) => {
                if matches!(message, ControlMessage::Offer { .. }) {
                    self.gateway.metrics.offers.inc();
                }
                self.send_manifests(&message).await?;
            }
            Effect::SendDelta {
                generation,
                revision,
                base,
                target,
                delta,
            } => {
                let objects = self.objects(&delta.upserts).await?;
                let upserts = delta
                    .upserts
                    .iter()
                    .filter_map(|entry| objects.get(&entry.digest).cloned())
                    .collect();
                let removals = delta.removals;
                self.gateway.metrics.deltas.inc();
                self.send_manifests(&ControlMessage::Delta {
                    generation,
                    revision,
                    base,
                    target,
                    upserts,
                    removals,
                })
                .await?;
            }
            Effect::SendObjects { target, entries } => {
                let objects = self.objects(&entries).await?;
                for message in objects_in_parts(target, objects.values()) {
                    self.send_manifests(&message).await?;
                }
            }
            Effect::RecordHello(hello) => {
                let facts =
                    bounded(hello.facts).map_err(|error| End::Protocol(error.to_string()))?;
                if facts != self.device.facts && !facts.is_empty() {
                    let tenant = &self.device.fleet.tenant;
                    let mut db = self.gateway.store.write().await?;
                    devices::set_facts(&mut db, tenant, &self.device.id, &facts).await?;
                    db.commit().await.map_err(StoreError::from)?;
                    self.device.facts = facts;
                }
            }
            Effect::RecordAccepted(held) => self.record_accepted(held),
            Effect::RecordReject {
                generation,
                reason,
                message,
            } => {
                self.record_reject(generation, reason, &message);
            }
            Effect::RecordStatus(report) => {
                self.report = Some(bound_report(report));
                self.flush_report(false).await?;
            }
            Effect::RaiseGeneration { above } => {
                warn!(device = %self.device.name, %above, "the device is ahead; raising the generation");
                let fleet = &self.device.fleet;
                let mut db = self.gateway.store.write().await?;
                devices::raise_generation(&mut db, fleet, &self.device.id, above).await?;
                db.commit().await.map_err(StoreError::from)?;
                return Ok(Some(Event::Poked));
            }
            Effect::IssueCertificate { csr } => {
                let result = self.issue(&csr);
                self.send(&ControlMessage::Certificate(result)).await?;
            }
        }
        Ok(None)
    }

    async fn load_desired(&self) -> Result<Option<control::Desired>, StoreError> {
        let tenant = &self.device.fleet.tenant;
        let mut db = self.gateway.store.read().await?;
        let Some(desired) = devices::desired(&mut db, tenant, &self.device.id).await? else {
            return Ok(None);
        };
        let held = self.machine.held();
        if held == Some(desired.target) {
            // The most frequent case by far, and the machine needs no entries to do nothing.
            return Ok(None);
        }
        let Some(set) = content::set(&mut db, tenant, desired.target.digest).await? else {
            warn!(device = %self.device.name, "the store lost the desired set");
            return Ok(None);
        };
        let base = match held {
            Some(held) if held.digest == desired.target.digest => Some(set.clone()),
            Some(held) => content::set(&mut db, tenant, held.digest).await?,
            None => None,
        };
        Ok(Some(control::Desired {
            generation: desired.target.generation,
            revision: desired.revision,
            set: Arc::new(set),
            base: base.map(Arc::new),
        }))
    }

    async fn objects(
        &self,
        entries: &[Entry],
    ) -> Result<BTreeMap<Digest, longshore_protocol::Object>, StoreError> {
        let mut db = self.gateway.store.read().await?;
        let digests = entries.iter().map(|entry| entry.digest);
        content::objects(&mut db, &self.device.fleet.tenant, digests).await
    }

    /// A device that accepted something has not applied it yet.
    fn record_accepted(&mut self, held: Held) {
        let known = self
            .report
            .as_ref()
            .is_some_and(|report| report.held == held);
        if !known {
            debug!(device = %self.device.name, generation = %held.generation, "accepted");
        }
    }

    fn record_reject(&self, generation: Generation, reason: RejectReason, message: &str) {
        let message: String = message.chars().take(MAX_CONDITION_TEXT).collect();
        info!(device = %self.device.name, %generation, ?reason, message, "the device refuses");
    }

    /// Stores the report that waits, if its time has come or `now` says so.
    async fn flush_report(&mut self, now: bool) -> Result<(), StoreError> {
        // The end of a rollout is worth a write at once; steps on the way there can wait.
        let is_final = self
            .report
            .as_ref()
            .is_some_and(|report| matches!(report.phase, Phase::Applied | Phase::Failed));
        if !now && !is_final && self.reported.elapsed() < STATUS_INTERVAL {
            return Ok(());
        }
        let Some(report) = self.report.take() else {
            return Ok(());
        };
        let tenant = &self.device.fleet.tenant;
        let mut db = self.gateway.store.write().await?;
        devices::put_observed(&mut db, tenant, &self.device.id, &report, clock::now_ms()).await?;
        db.commit().await.map_err(StoreError::from)?;
        self.gateway.fleets.progressed(&self.device.fleet);
        self.reported = Instant::now();
        Ok(())
    }

    async fn record_connected(&self, connected: bool) -> Result<(), StoreError> {
        let tenant = &self.device.fleet.tenant;
        let mut db = self.gateway.store.write().await?;
        let coming = devices::Coming {
            tenant: tenant.clone(),
            device: self.device.id.clone(),
            came: connected,
            at: clock::now_ms(),
        };
        devices::put_connections(&mut db, &self.gateway.replica, &[coming]).await?;
        db.commit().await.map_err(StoreError::from)
    }

    /// Ends the session of a device that was cut off since it connected.
    async fn check_active(&mut self) -> Result<(), End> {
        let mut db = self.gateway.store.read().await?;
        let device = devices::by_id(&mut db, &self.device.id).await?;
        drop(db);
        match device {
            Some(device) if device.state == DeviceState::Active => {
                self.device = device;
                Ok(())
            }
            Some(device) if device.state == DeviceState::Decommissioned => {
                self.send(&ControlMessage::Decommission {
                    reason: device.state_reason,
                })
                .await?;
                Err(End::Inactive)
            }
            _ => Err(End::Inactive),
        }
    }

    fn issue(&self, csr: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        // The new key stands in for the old one in this certificate only: the device stays known by the key
        // that was approved, so the certificate names the device, not the key.
        let request = Request::from_der(csr).map_err(|error| error.to_string())?;
        let (tenant, id) = (&self.device.fleet.tenant, &self.device.id);
        match self
            .gateway
            .ca
            .sign_device(&request, tenant, id, clock::now_ms())
        {
            Ok(chain) => {
                info!(device = %self.device.name, "certificate renewed");
                Ok(chain
                    .into_iter()
                    .map(|certificate| certificate.to_vec())
                    .collect())
            }
            Err(error) => {
                warn!(
                    error = %chain(&error),
                    "a certificate cannot be issued"
                );
                Err("the certificate could not be made".to_owned())
            }
        }
    }

    async fn send_manifests(&mut self, message: &ControlMessage) -> Result<(), End> {
        let frame = message.encode();
        self.gateway
            .metrics
            .manifest_bytes
            .inc_by(frame.len() as u64);
        self.send_frame(frame).await
    }

    async fn send(&mut self, message: &ControlMessage) -> Result<(), End> {
        self.send_frame(message.encode()).await
    }

    async fn send_frame(&mut self, frame: Vec<u8>) -> Result<(), End> {
        let send = self.socket.send(Message::Binary(frame.into()));
        tokio::time::timeout(SEND_DEADLINE, send)
            .await
            .map_err(|_elapsed| End::Stuck)??;
        Ok(())
    }

    async fn say_goodbye(&mut self, end: &End) {
        let code = match end {
            End::Gone | End::Silent | End::Stuck | End::Socket(_) => return,
            End::Protocol(_) => CloseCode::Protocol,
            End::Inactive | End::Replaced => CloseCode::Policy,
            End::Shutdown => CloseCode::Restart,
            End::Store(_) => CloseCode::Again,
        };
        let goodbye = async {
            if matches!(end, End::Shutdown) {
                // Jitter, so that a fleet does not come back in one moment.
                let after_ms = rand::rng().random_range(100..2000);
                self.send(&ControlMessage::Reconnect { after_ms }).await?;
            }
            let reason = Utf8Bytes::from(end.to_string().chars().take(100).collect::<String>());
            self.socket.close(Some(CloseFrame { code, reason })).await?;
            Ok::<_, End>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(2), goodbye).await {
            debug!(error = %chain(&error), "no goodbye");
        }
    }
}

/// A device's words are stored; keep them short.
fn bound_report(mut report: StatusReport) -> StatusReport {
    report.conditions.truncate(MAX_CONDITIONS);
    for condition in &mut report.conditions {
        for text in [&mut condition.kind, &mut condition.reason] {
            *text = text.chars().take(64).collect();
        }
        if condition.message.len() > MAX_CONDITION_TEXT {
            condition.message = condition.message.chars().take(MAX_CONDITION_TEXT).collect();
        }
    }
    report
}
