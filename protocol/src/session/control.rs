//! The controller's end: brings one device to its desired manifest set.

use std::sync::Arc;

use crate::{
    Delta, Digest, Entry, Generation, ManifestSet,
    api::Facts,
    manifest,
    message::{
        ControlMessage, DeviceMessage, Held, Hello, LOGS, LogEnd, LogRequest, MAX_DELTA_BODIES,
        PATCHES, RejectReason, StatusReport, StreamId,
    },
    session::{RESEND_AFTER_MS, logs::Demand},
};

/// What a device should run.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Its generation.
    pub generation: Generation,
    /// The commit that it comes from.
    pub revision: String,
    /// The set.
    pub set: Arc<ManifestSet>,
    /// The set that [`ControlSession::held`] names, where the store still knows it.
    pub base: Option<Arc<ManifestSet>>,
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// A message came from the device.
    Message(DeviceMessage),
    /// The desired state may have changed: look again.
    Poked,
    /// Answers [`Effect::LoadDesired`]; `None` where the device has no desired state yet.
    Desired(Option<Desired>),
    /// Somebody asks for a log. The driver names the stream; no name is ever used again.
    OpenLogs {
        /// The stream.
        stream: StreamId,
        /// Which log, and how much of it.
        request: LogRequest,
    },
    /// Whoever asked took chunks that cost so much together.
    LogsTaken {
        /// The stream.
        stream: StreamId,
        /// [Their cost](crate::message::log_cost).
        cost: u64,
    },
    /// Whoever asked is gone. Nothing more is heard of the stream.
    CloseLogs {
        /// The stream.
        stream: StreamId,
    },
    /// Time passed.
    Tick,
}

/// What the driver does for the machine.
#[derive(Debug)]
pub enum Effect {
    /// Send a `Welcome` with the driver's heartbeat and clock.
    Welcome,
    /// Read the desired state and the base that [`ControlSession::held`] names, and hand in `Desired`.
    LoadDesired,
    /// Send this.
    Send(ControlMessage),
    /// Send a delta; the driver reads the bodies.
    SendDelta {
        /// The target's generation.
        generation: Generation,
        /// The commit that the target comes from.
        revision: String,
        /// The base's digest.
        base: Digest,
        /// The target's digest.
        target: Digest,
        /// What changes.
        delta: Delta,
        /// Entries of the base that the delta replaces: the driver makes [patches](crate::message::patched) of those
        /// whose bodies it has. Empty where the device takes none.
        previous: Vec<Entry>,
    },
    /// Send these objects of an offered set; the driver reads the bodies.
    SendObjects {
        /// The offered set.
        target: Digest,
        /// The objects.
        entries: Vec<Entry>,
    },
    /// Remember what the device said of itself and what it holds.
    RecordHello(Hello),
    /// Remember what the device says of itself.
    RecordFacts(Facts),
    /// Remember that the device holds this.
    RecordAccepted(Held),
    /// Remember that the device refused this.
    RecordReject {
        /// The generation that it refused.
        generation: Generation,
        /// Why, for programs.
        reason: RejectReason,
        /// Why, for people.
        message: String,
    },
    /// Remember the device's report.
    RecordStatus(StatusReport),
    /// The device holds a generation that the store does not have in this form (the store was restored from
    /// a backup, say): give the desired state a generation above this one, then poke.
    RaiseGeneration {
        /// What the device holds.
        above: Generation,
    },
    /// Issue a certificate for this request and send it.
    IssueCertificate {
        /// The request in DER form.
        csr: Vec<u8>,
    },
    /// This came of a log. It is never more than [`LOG_WINDOW`](crate::message::LOG_WINDOW) beyond what was taken.
    LogData {
        /// The stream.
        stream: StreamId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A log stream is over.
    LogsEnd {
        /// The stream.
        stream: StreamId,
        /// Why.
        end: LogEnd,
    },
    /// End the session: the device broke the protocol by sending this.
    Break(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Delta,
    Offer,
}

#[derive(Debug)]
struct InFlight {
    generation: Generation,
    revision: String,
    set: Arc<ManifestSet>,
    way: Way,
    since: u64,
}

/// What the agent can do beyond the first version of the protocol.
#[derive(Clone, Copy, Debug, Default)]
struct Capabilities {
    patches: bool,
    logs: bool,
}

/// The machine. One per connection.
#[derive(Debug, Default)]
pub struct ControlSession {
    greeted: bool,
    can: Capabilities,
    held: Option<Held>,
    in_flight: Option<InFlight>,
    poked_in_flight: bool,
    /// Log streams. There are many sessions, and hardly any has some.
    logs: Option<Box<Demand>>,
}

impl ControlSession {
    /// A machine that waits for `Hello`.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the device is known to hold.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// Whether the device owes an answer: without one, `Tick` is of no use.
    pub fn owes(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Handles one event.
    pub fn handle(&mut self, event: Event, now: u64) -> Vec<Effect> {
        match event {
            Event::Message(message) => self.message(message, now),
            Event::Poked => self.poked(),
            Event::Desired(Some(desired)) => self.desired(desired, now),
            Event::Desired(None) => Vec::new(),
            Event::OpenLogs { stream, request } => self.open_logs(stream, request),
            Event::LogsTaken { stream, cost } => self.logs(|logs| logs.taken(stream, cost)),
            Event::CloseLogs { stream } => self.logs(|logs| logs.close(stream)),
            Event::Tick => self.tick(now),
        }
    }

    fn open_logs(&mut self, stream: StreamId, request: LogRequest) -> Vec<Effect> {
        if self.can.logs {
            return self.logs(|logs| logs.open(stream, request));
        }
        let why = if self.greeted {
            "the device's agent is too old to be asked for logs; update it"
        } else {
            "the device has just connected; try again"
        };
        let end = LogEnd::Refused(why.to_owned());
        vec![Effect::LogsEnd { stream, end }]
    }

    /// Where the last stream has ended, nothing is left of it.
    fn logs(&mut self, change: impl FnOnce(&mut Demand) -> Vec<Effect>) -> Vec<Effect> {
        let mut logs = self.logs.take().unwrap_or_default();
        let effects = change(&mut logs);
        self.logs = (!logs.is_empty()).then_some(logs);
        effects
    }

    fn message(&mut self, message: DeviceMessage, now: u64) -> Vec<Effect> {
        match message {
            DeviceMessage::Hello(hello) => {
                self.greeted = true;
                let can = |what| hello.capabilities.iter().any(|it| it == what);
                self.can = Capabilities {
                    patches: can(PATCHES),
                    logs: can(LOGS),
                };
                self.held = hello.ledger;
                self.in_flight = None;
                vec![
                    Effect::Welcome,
                    Effect::RecordHello(hello),
                    Effect::LoadDesired,
                ]
            }
            _ if !self.greeted => Vec::new(),
            DeviceMessage::Need { target, digests } => self.need(target, &digests, now),
            DeviceMessage::Accepted(held) => self.accepted(held),
            DeviceMessage::Reject {
                generation,
                reason,
                message,
            } => self.rejected(generation, reason, message, now),
            DeviceMessage::Status(report) => vec![Effect::RecordStatus(report)],
            DeviceMessage::Facts(facts) => vec![Effect::RecordFacts(facts)],
            DeviceMessage::Renew { csr } => vec![Effect::IssueCertificate { csr }],
            DeviceMessage::LogChunk { stream, data } => self.logs(|logs| logs.chunk(stream, data)),
            DeviceMessage::LogEnd { stream, end } => self.logs(|logs| logs.ended(stream, end)),
        }
    }

    fn poked(&mut self) -> Vec<Effect> {
        match &self.in_flight {
            _ if !self.greeted => Vec::new(),
            // A delta is answered soon, and the answer decides what the next base is.
            Some(InFlight {
                way: Way::Delta, ..
            }) => {
                self.poked_in_flight = true;
                Vec::new()
            }
            _ => vec![Effect::LoadDesired],
        }
    }

    fn desired(&mut self, desired: Desired, now: u64) -> Vec<Effect> {
        if !self.greeted {
            return Vec::new();
        }
        let target = Held {
            generation: desired.generation,
            digest: desired.set.digest(),
        };
        if let Some(held) = self.held {
            if held == target {
                self.in_flight = None;
                return Vec::new();
            }
            if held.generation >= target.generation {
                self.in_flight = None;
                return vec![Effect::RaiseGeneration {
                    above: held.generation,
                }];
            }
        }
        if self.in_flight.as_ref().is_some_and(|flight| {
            flight.generation == target.generation && flight.set.digest() == target.digest
        }) {
            return Vec::new();
        }
        let base = desired
            .base
            .filter(|base| self.held.is_some_and(|held| held.digest == base.digest()));
        let delta = base.map(|base| (manifest::diff(&base, &desired.set), base));
        let fits = |delta: &Delta| {
            delta.upserts.iter().map(|entry| entry.size).sum::<u64>() <= MAX_DELTA_BODIES
        };
        let mut flight = InFlight {
            generation: desired.generation,
            revision: desired.revision,
            set: desired.set,
            way: Way::Offer,
            since: now,
        };
        let effect = match delta {
            Some((delta, base)) if fits(&delta) => {
                flight.way = Way::Delta;
                let replaced = delta.upserts.iter().filter_map(|it| base.entry(&it.key));
                let previous = replaced.filter(|_| self.can.patches).cloned().collect();
                Effect::SendDelta {
                    generation: flight.generation,
                    revision: flight.revision.clone(),
                    base: base.digest(),
                    target: target.digest,
                    delta,
                    previous,
                }
            }
            _ => flight.offer(),
        };
        self.in_flight = Some(flight);
        vec![effect]
    }

    fn need(&mut self, target: Digest, digests: &[Digest], now: u64) -> Vec<Effect> {
        let Some(flight) = &mut self.in_flight else {
            return Vec::new();
        };
        if flight.set.digest() != target {
            return Vec::new();
        }
        flight.since = now;
        let wanted: std::collections::BTreeSet<_> = digests.iter().collect();
        let mut sent = std::collections::BTreeSet::new();
        // Only what belongs to this device's own set is ever sent, whatever it asks for.
        let entries = flight
            .set
            .entries()
            .iter()
            .filter(|entry| wanted.contains(&entry.digest) && sent.insert(entry.digest))
            .cloned()
            .collect();
        vec![Effect::SendObjects { target, entries }]
    }

    fn accepted(&mut self, held: Held) -> Vec<Effect> {
        if self
            .held
            .is_some_and(|known| known.generation > held.generation)
        {
            return Vec::new();
        }
        self.held = Some(held);
        let mut effects = vec![Effect::RecordAccepted(held)];
        if self
            .in_flight
            .as_ref()
            .is_some_and(|flight| flight.generation <= held.generation)
        {
            self.in_flight = None;
            effects.extend(self.look_again());
        }
        effects
    }

    fn rejected(
        &mut self,
        generation: Generation,
        reason: RejectReason,
        message: String,
        now: u64,
    ) -> Vec<Effect> {
        let mut effects = vec![Effect::RecordReject {
            generation,
            reason,
            message,
        }];
        let Some(flight) = self
            .in_flight
            .as_mut()
            .filter(|flight| flight.generation == generation)
        else {
            return effects;
        };
        match reason {
            RejectReason::BaseMismatch | RejectReason::DigestMismatch
                if flight.way == Way::Delta =>
            {
                flight.way = Way::Offer;
                flight.since = now;
                effects.push(flight.offer());
            }
            RejectReason::GenerationConflict => {
                self.in_flight = None;
                effects.push(Effect::RaiseGeneration { above: generation });
            }
            // Said again when `Tick` finds that nothing came of it, not at once: that would be a loop.
            RejectReason::BaseMismatch
            | RejectReason::DigestMismatch
            | RejectReason::Storage
            | RejectReason::Unspecified => {}
        }
        effects
    }

    fn tick(&mut self, now: u64) -> Vec<Effect> {
        let Some(flight) = &mut self.in_flight else {
            return Vec::new();
        };
        if now.saturating_sub(flight.since) < RESEND_AFTER_MS {
            return Vec::new();
        }
        flight.way = Way::Offer;
        flight.since = now;
        let offer = flight.offer();
        std::iter::once(offer).chain(self.look_again()).collect()
    }

    fn look_again(&mut self) -> Option<Effect> {
        std::mem::take(&mut self.poked_in_flight).then_some(Effect::LoadDesired)
    }
}

impl InFlight {
    fn offer(&self) -> Effect {
        Effect::Send(ControlMessage::Offer {
            generation: self.generation,
            revision: self.revision.clone(),
            target: self.set.digest(),
            entries: self.set.entries().to_vec(),
        })
    }
}
