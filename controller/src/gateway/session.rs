//! One device's session: carries out what [`ControlSession`] decides.

mod bounds;
mod logs;

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _, future::OptionFuture};
use longshore_protocol::{
    DeviceId, DeviceName, Digest, Entry, Generation, Object,
    api::{DeviceState, Facts},
    message::{ControlMessage, DeviceMessage, Held, RejectReason, objects_in_parts, patched},
    session::{
        ControlSession,
        control::{self, Effect, Event},
    },
};
use rand::RngExt as _;
use tokio::time::Instant;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Bytes, Message, Utf8Bytes,
        protocol::{
            CloseFrame,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};
use tracing::{Span, debug, info, info_span, warn};

pub(super) use self::bounds::TENANT_PACE;
use self::bounds::{
    PACE, PORTION, bound_report, cost, first_few, of_delta, of_list, of_portions, price,
};
use self::logs::LogWriters;
use super::{Gateway, gather::AskError, incoming::Counted, outgoing::Room};
use crate::{
    ca::{Request, Signer as _},
    clock,
    enrollment::bounded,
    error::chain,
    hub::{self, Pokes, Signal},
    rate::Bucket,
    store::{
        StoreError,
        devices::{self, Desired, Standing},
        fleets::FleetId,
    },
};

/// A frame that does not get through in this time ends the session: the device does not read.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// Longer messages are sent in several WebSocket frames: what the socket's buffer has once held, it keeps.
const FRAGMENT: usize = 8 * 1024;

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
    #[error("the store says that the device is elsewhere; it has to come again")]
    Stray,
    #[error("the device is no longer active")]
    Inactive,
    #[error("the device broke the protocol: {0}")]
    Protocol(String),
    #[error("the connection broke")]
    Socket(#[source] Box<tokio_tungstenite::tungstenite::Error>),
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("what the device needs cannot be read")]
    Read(#[from] AskError),
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

/// What a device should run, as it was found.
struct LookedUp(Option<Desired>);

/// One connection of one device. There are many and most are idle, so it holds little.
pub(super) struct Session {
    gateway: Arc<Gateway>,
    id: DeviceId,
    fleet: FleetId,
    name: DeviceName,
    entry: Arc<hub::Session>,
    socket: WebSocketStream<Counted>,
    machine: ControlSession,
    pace: Bucket,
    /// Until when nothing more is read, because its tenant's devices say too much together.
    not_before: Option<Instant>,
    /// What the device should run, where that was not used yet.
    looked_up: Option<LookedUp>,
    /// Logs that are being read.
    logs: Option<Box<LogWriters>>,
}

impl Session {
    /// The session of a device that stood like this after `pokes`.
    pub(super) fn new(
        gateway: Arc<Gateway>,
        id: DeviceId,
        standing: Standing,
        pokes: Pokes,
        socket: WebSocketStream<Counted>,
    ) -> Self {
        let entry = gateway.hub.connect(&id, pokes);
        Self {
            gateway,
            id,
            fleet: standing.fleet,
            name: standing.name,
            entry,
            socket,
            machine: ControlSession::new(),
            pace: Bucket::full(PACE),
            not_before: None,
            looked_up: Some(LookedUp(standing.desired)),
            logs: None,
        }
    }

    pub(super) async fn run(&mut self) {
        let gateway = self.gateway.clone();
        gateway.recorder.moved(&self.fleet, &self.id);
        gateway.metrics.sessions.inc();
        self.span().in_scope(|| debug!("connected"));
        let end = match self.serve().await {
            Ok(end) | Err(end) => end,
        };
        gateway.hub.disconnect(&self.id, &self.entry);
        self.end_logs(&end);
        gateway.recorder.moved(&self.fleet, &self.id);
        gateway.metrics.sessions.dec();
        self.span().in_scope(|| match &end {
            End::Gone
            | End::Silent
            | End::Replaced
            | End::Shutdown
            | End::Inactive
            | End::Socket(_) => debug!(reason = %end, "disconnected"),
            End::Stray | End::Stuck | End::Protocol(_) | End::Store(_) | End::Read(_) => {
                warn!(error = %chain(&end), "the session was ended");
            }
        });
        Box::pin(self.say_goodbye(&end)).await;
    }

    /// Under which log lines stand. It is made when it is needed: ten thousand of them would be megabytes.
    fn span(&self) -> Span {
        info_span!("session", tenant = %self.fleet.tenant, fleet = %self.fleet.name, device = %self.name, id = %self.id)
    }

    async fn serve(&mut self) -> Result<End, End> {
        loop {
            let pause = self.pause();
            let next = async {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                self.socket.next().await
            };
            // What a busy session needs is in boxes, and an idle one holds nothing of it.
            tokio::select! {
                frame = next => {
                    let Some(frame) = frame else { return Ok(End::Gone) };
                    let frame = frame?;
                    self.entry.heard();
                    self.gateway.metrics.device_frames.inc();
                    self.socket.get_mut().came(&frame);
                    match frame {
                        Message::Binary(bytes) => Box::pin(self.receive(bytes)).await?,
                        Message::Close(_) => return Ok(End::Gone),
                        // The library answers pings; text is nothing that we know.
                        other => self.spend(cost(other.len())),
                    }
                }
                signal = self.entry.signal() => match signal {
                    Signal::Stop => return Ok(End::Shutdown),
                    Signal::Replaced => return Ok(End::Replaced),
                    Signal::Silent => return Ok(End::Silent),
                    Signal::Again => return Ok(End::Stray),
                    Signal::Look => Box::pin(self.look()).await?,
                    Signal::Tick => Box::pin(self.handle(Event::Tick)).await?,
                    Signal::Logs => Box::pin(self.tend_logs()).await?,
                },
            }
        }
    }

    async fn receive(&mut self, frame: Bytes) -> Result<(), End> {
        let message =
            DeviceMessage::decode(&frame).map_err(|error| End::Protocol(error.to_string()))?;
        let Some(message) = message else {
            self.spend(cost(frame.len()));
            return Ok(());
        };
        self.spend(price(&message, frame.len()));
        self.handle(Event::Message(message)).await
    }

    /// Charges the device and its tenant.
    fn spend(&mut self, cost: f64) {
        self.pace.spend(PACE, cost);
        let wait = self.gateway.paces.spend(&self.fleet.tenant, cost);
        if let Some(wait) = wait {
            self.not_before = Some(Instant::now() + wait);
        }
    }

    /// How long nothing more is read.
    fn pause(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.not_before = self.not_before.filter(|at| *at > now);
        let of_tenant = self.not_before.map(|at| at - now);
        self.pace.debt(PACE).max(of_tenant)
    }

    /// Hands an event to the machine and carries out what it says, until nothing is left.
    async fn handle(&mut self, event: Event) -> Result<(), End> {
        let gateway = self.gateway.clone();
        let mut room = None;
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = self.entry.now();
            for effect in self.machine.handle(event, now) {
                if let Some(next) = self.carry_out(&gateway, effect, &mut room).await? {
                    events.push(next);
                }
                if events.len() > 1 {
                    // Each effect leads to at most one event, and `LoadDesired` to one of another kind.
                    return Err(End::Protocol("events piled up".to_owned()));
                }
            }
        }
        self.entry.owes(self.machine.owes());
        Ok(())
    }

    async fn carry_out<'a>(
        &mut self,
        gateway: &'a Gateway,
        effect: Effect,
        room: &mut Option<Box<Room<'a>>>,
    ) -> Result<Option<Event>, End> {
        match effect {
            Effect::Welcome => {
                let heartbeat = self.gateway.heartbeat.as_millis();
                self.send(&ControlMessage::Welcome {
                    heartbeat_ms: u64::try_from(heartbeat).unwrap_or(u64::MAX),
                    server_time_ms: clock::now_ms(),
                })
                .await?;
            }
            Effect::LoadDesired => {
                let desired = self.load_desired(gateway, room).await?;
                return Ok(Some(Event::Desired(desired)));
            }
            Effect::Send(message) => {
                if matches!(message, ControlMessage::Offer { .. }) {
                    self.gateway.metrics.offers.inc();
                }
                self.send_manifests(message.encode(), room).await?;
            }
            Effect::SendDelta {
                generation,
                revision,
                base,
                target,
                delta,
                previous,
            } => {
                *room = None;
                let size = of_delta(&delta, &previous);
                *room = gateway.outgoing.take(&self.fleet.tenant, size).await;
                let frame = {
                    let _place = self.gateway.places.take(&self.fleet.tenant).await;
                    let objects = self.objects(&delta.upserts).await?;
                    let previous = self.objects(&previous).await?;
                    let (upserts, patches) = patched(objects, &previous);
                    ControlMessage::Delta {
                        generation,
                        revision,
                        base,
                        target,
                        upserts,
                        patches,
                        removals: delta.removals,
                    }
                    .encode()
                };
                self.gateway.metrics.deltas.inc();
                if let Some(room) = room {
                    room.shrink_to(frame.len());
                }
                self.send_manifests(frame, room).await?;
            }
            Effect::SendObjects { target, entries } => {
                self.send_objects(gateway, target, &entries, room).await?;
            }
            Effect::RecordHello(hello) => self.record_facts(hello.facts)?,
            Effect::RecordFacts(facts) => self.record_facts(facts)?,
            Effect::RecordAccepted(held) => self.record_accepted(held),
            Effect::RecordReject {
                generation,
                reason,
                message,
            } => {
                self.record_reject(generation, reason, &message);
            }
            Effect::RecordStatus(report) => {
                let report = bound_report(report);
                self.gateway.recorder.report(&self.fleet, &self.id, report);
            }
            Effect::RaiseGeneration { above } => {
                self.span()
                    .in_scope(|| warn!(%above, "the device is ahead; raising the generation"));
                let mut db = self.gateway.store.write().await?;
                devices::raise_generation(&mut db, &self.fleet, &self.id, above).await?;
                db.commit().await.map_err(StoreError::from)?;
                self.looked_up = None;
                return Ok(Some(Event::Poked));
            }
            Effect::IssueCertificate { csr } => {
                let result = self.issue(&csr);
                self.send(&ControlMessage::Certificate(result)).await?;
            }
            Effect::LogData { stream, data } => self.log_data(stream, data)?,
            Effect::LogsEnd { stream, end } => self.logs_end(stream, end),
            Effect::Break(what) => return Err(End::Protocol(what)),
        }
        Ok(None)
    }

    /// Notes what the device says of itself, unless it says nothing.
    fn record_facts(&self, facts: Facts) -> Result<(), End> {
        let facts = bounded(facts).map_err(|error| End::Protocol(error.to_string()))?;
        if !facts.is_empty() {
            self.gateway.recorder.facts(&self.fleet, &self.id, facts);
        }
        Ok(())
    }

    /// Sends these objects of an offered set in portions.
    async fn send_objects<'a>(
        &mut self,
        gateway: &'a Gateway,
        target: Digest,
        mut entries: &[Entry],
        room: &mut Option<Box<Room<'a>>>,
    ) -> Result<(), End> {
        *room = None;
        let size = of_portions(entries);
        *room = gateway.outgoing.take(&self.fleet.tenant, size).await;
        while !entries.is_empty() {
            let (some, rest) = entries.split_at(first_few(entries));
            entries = rest;
            let messages = {
                let _place = gateway.places.take(&self.fleet.tenant).await;
                objects_in_parts(target, &self.objects(some).await?)
            };
            for message in messages {
                self.send_manifests(message.encode(), room).await?;
            }
            self.spend(PORTION);
        }
        Ok(())
    }

    /// What the device should run. What was looked up before serves once: whoever changes it pokes.
    async fn load_desired<'a>(
        &mut self,
        gateway: &'a Gateway,
        room: &mut Option<Box<Room<'a>>>,
    ) -> Result<Option<control::Desired>, End> {
        let desired = match self.looked_up.take() {
            Some(LookedUp(desired)) => desired,
            None => self
                .gateway
                .lookups
                .standing(&self.id)
                .await?
                .and_then(|standing| standing.desired),
        };
        let Some(desired) = desired else {
            return Ok(None);
        };
        let held = self.machine.held();
        if held == Some(desired.target) {
            // The most frequent case by far, and the machine needs no entries to do nothing.
            return Ok(None);
        }
        let target = desired.target.digest;
        let wanted = [Some(target), held.map(|held| held.digest)];
        let tenant = &self.fleet.tenant;
        *room = None;
        *room = gateway
            .outgoing
            .take(tenant, of_list(desired.objects))
            .await;
        let sets = {
            let _place = self.gateway.places.take(tenant).await;
            let digests = wanted.into_iter().flatten();
            self.gateway.lookups.sets(tenant, digests).await?
        };
        let Some(set) = sets.get(&target) else {
            self.span()
                .in_scope(|| warn!("the store lost the desired set"));
            return Ok(None);
        };
        Ok(Some(control::Desired {
            generation: desired.target.generation,
            revision: desired.revision,
            set: set.clone(),
            base: held.and_then(|held| sets.get(&held.digest).cloned()),
        }))
    }

    /// These objects, without those that the store lost.
    async fn objects(&self, entries: &[Entry]) -> Result<Vec<Object>, AskError> {
        let digests = entries.iter().map(|entry| entry.digest);
        let tenant = &self.fleet.tenant;
        let mut found = self.gateway.lookups.objects(tenant, digests).await?;
        Ok(entries
            .iter()
            .filter_map(|entry| found.remove(&entry.digest))
            .collect())
    }

    fn record_accepted(&self, held: Held) {
        self.span()
            .in_scope(|| debug!(generation = %held.generation, "accepted"));
    }

    fn record_reject(&self, generation: Generation, reason: RejectReason, message: &str) {
        let message: String = message.chars().take(bounds::MAX_CONDITION_TEXT).collect();
        self.span()
            .in_scope(|| info!(%generation, ?reason, message, "the device refuses"));
    }

    /// Looks the device up again, and ends the session of one that was cut off.
    async fn look(&mut self) -> Result<(), End> {
        match self.gateway.lookups.standing(&self.id).await? {
            Some(standing) if standing.state == DeviceState::Active => {
                (self.fleet, self.name) = (standing.fleet, standing.name);
                self.looked_up = Some(LookedUp(standing.desired));
                self.handle(Event::Poked).await
            }
            Some(standing) if standing.state == DeviceState::Decommissioned => {
                self.send(&ControlMessage::Decommission {
                    reason: standing.state_reason,
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
        let _span = self.span().entered();
        let request = Request::from_der(csr).map_err(|error| error.to_string())?;
        let (tenant, id) = (&self.fleet.tenant, &self.id);
        let signed = self
            .gateway
            .ca
            .sign_device(&request, tenant, id, clock::now_ms());
        match signed {
            Ok(chain) => {
                info!("certificate renewed");
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

    async fn send_manifests(
        &mut self,
        message: Vec<u8>,
        room: &mut Option<Box<Room<'_>>>,
    ) -> Result<(), End> {
        self.gateway
            .metrics
            .manifest_bytes
            .inc_by(message.len() as u64);
        self.send_bytes(message, room).await
    }

    async fn send(&mut self, message: &ControlMessage) -> Result<(), End> {
        self.send_bytes(message.encode(), &mut None).await
    }

    async fn send_bytes(
        &mut self,
        message: Vec<u8>,
        room: &mut Option<Box<Room<'_>>>,
    ) -> Result<(), End> {
        let needed = OptionFuture::from(room.as_ref().map(|room| room.over()));
        let send = async {
            let mut rest = Bytes::from(message);
            let mut opcode = Data::Binary;
            loop {
                let piece = rest.split_to(rest.len().min(FRAGMENT));
                let frame = Frame::message(piece, OpCode::Data(opcode), rest.is_empty());
                self.socket.send(Message::Frame(frame)).await?;
                if let Some(room) = room {
                    room.progressed();
                }
                if rest.is_empty() {
                    return Ok(());
                }
                opcode = Data::Continue;
            }
        };
        tokio::select! {
            done = tokio::time::timeout(SEND_DEADLINE, send) => done.map_err(|_elapsed| End::Stuck)?,
            // Others wait for the memory.
            Some(()) = needed => Err(End::Stuck),
        }
    }

    async fn say_goodbye(&mut self, end: &End) {
        let code = match end {
            End::Gone | End::Silent | End::Stuck | End::Socket(_) => return,
            End::Protocol(_) => CloseCode::Protocol,
            End::Inactive | End::Replaced => CloseCode::Policy,
            End::Shutdown => CloseCode::Restart,
            End::Stray | End::Store(_) | End::Read(_) => CloseCode::Again,
        };
        let goodbye = async {
            if matches!(end, End::Shutdown | End::Stray) {
                // Jitter, so that a fleet does not come back in one moment.
                let after_ms = rand::rng().random_range(100..2000);
                self.send(&ControlMessage::Reconnect { after_ms }).await?;
            }
            let reason = Utf8Bytes::from(end.to_string().chars().take(100).collect::<String>());
            self.socket.close(Some(CloseFrame { code, reason })).await?;
            Ok::<_, End>(())
        };
        // Whether it arrives does not matter.
        drop(tokio::time::timeout(Duration::from_secs(2), goodbye).await);
    }
}
