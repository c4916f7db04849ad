//! The device's end: accepts what it can verify and keep, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Delta, Digest, Entry, Generation, ManifestSet, Object, ObjectKey,
    api::Facts,
    manifest,
    message::{
        self, ControlMessage, DeviceMessage, Held, Hello, LogEnd, LogRequest, MAX_DELTA_BODIES,
        MAX_OBJECT, MAX_OBJECTS, Part, Patch, RejectReason, StatusReport, StreamId,
    },
    session::{Holding, RESEND_AFTER_MS, logs::Supply},
};

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// A connection is there. The facts go into `Hello`, whose `ledger` the machine fills in.
    Connected(Hello),
    /// The connection is gone. What was received so far is kept.
    Disconnected,
    /// A message came from the controller.
    Message(ControlMessage),
    /// Answers [`Effect::Store`]: the holding is durable, or why not. The next event after that effect.
    Stored(Result<(), String>),
    /// The runtime has something to report.
    Report(StatusReport),
    /// The device has something new to say of itself.
    Facts(Facts),
    /// The certificate is to be renewed with this request, in DER form.
    Renew(Vec<u8>),
    /// A log that was asked for is there.
    LogsOpened {
        /// The stream.
        stream: StreamId,
    },
    /// Answers [`Effect::ReadLogs`].
    LogsRead {
        /// The stream.
        stream: StreamId,
        /// No more than was asked for.
        data: Vec<u8>,
    },
    /// A log has ended, or is not to be had.
    LogsEnded {
        /// The stream.
        stream: StreamId,
        /// Why.
        end: LogEnd,
    },
    /// Time passed.
    Tick,
}

/// What the driver does for the machine.
#[derive(Debug)]
pub enum Effect {
    /// Send this.
    Send(DeviceMessage),
    /// Make the holding durable in the ledger, then hand in `Stored`.
    Store(Arc<Holding>),
    /// Make the runtime match the holding.
    Apply(Arc<Holding>),
    /// The session is open: ping this often, in milliseconds; the controller's clock says this.
    Welcomed {
        /// Between two pings.
        heartbeat_ms: u64,
        /// Since the Unix epoch.
        server_time_ms: u64,
    },
    /// A new certificate came (DER, leaf first), or why none did.
    Certificate(Result<Vec<Vec<u8>>, String>),
    /// Remove what was applied and forget the identity.
    Decommission {
        /// Why, for people.
        reason: String,
    },
    /// Open this log, and hand in `LogsOpened` or `LogsEnded` when that is done. All logs are closed when the connection is.
    OpenLogs {
        /// The stream.
        stream: StreamId,
        /// Which log, and how much of it.
        request: LogRequest,
    },
    /// Read of an open log, and hand in `LogsRead` or `LogsEnded` when there is something.
    ReadLogs {
        /// The stream.
        stream: StreamId,
        /// No more than so many bytes.
        most: usize,
    },
    /// Close a log; nobody wants more of it.
    CloseLogs {
        /// The stream.
        stream: StreamId,
    },
    /// Close the connection and come back after this long, or after the usual backoff.
    Reconnect {
        /// Milliseconds, where the controller said so.
        after_ms: Option<u64>,
    },
}

/// An offered set that is on its way.
#[derive(Debug)]
struct Incoming {
    generation: Generation,
    revision: String,
    set: Arc<ManifestSet>,
    asked_at: u64,
}

/// The machine. One per agent, across connections.
#[derive(Debug)]
pub struct DeviceSession {
    holding: Option<Arc<Holding>>,
    storing: Option<Arc<Holding>>,
    incoming: Option<Incoming>,
    /// Objects of the incoming set that came already, and pieces of one.
    staged: BTreeMap<Digest, Object>,
    pieces: BTreeMap<Digest, Vec<u8>>,
    report: Option<StatusReport>,
    /// Facts that came between `Hello` and `Welcome`.
    facts: Option<Facts>,
    link: Link,
    logs: Supply,
}

/// What a delta carries.
struct Changes {
    upserts: Vec<Object>,
    patches: Vec<Patch>,
    removals: Vec<ObjectKey>,
}

#[derive(Debug)]
enum Link {
    Down,
    Greeting { hello: Hello, said_at: u64 },
    Open,
}

impl DeviceSession {
    /// A machine that starts with what the ledger holds.
    pub fn new(holding: Option<Arc<Holding>>) -> Self {
        Self {
            holding,
            storing: None,
            incoming: None,
            staged: BTreeMap::new(),
            pieces: BTreeMap::new(),
            report: None,
            facts: None,
            link: Link::Down,
            logs: Supply::default(),
        }
    }

    /// What the device holds durably.
    pub fn holding(&self) -> Option<&Arc<Holding>> {
        self.holding.as_ref()
    }

    /// Whether `Welcome` came on this connection.
    pub fn is_open(&self) -> bool {
        matches!(self.link, Link::Open)
    }

    /// Handles one event.
    pub fn handle(&mut self, event: Event, now: u64) -> Vec<Effect> {
        match event {
            Event::Connected(hello) => self.greet(hello, now),
            Event::Disconnected => {
                self.link = Link::Down;
                self.logs.clear();
                Vec::new()
            }
            Event::Message(message) => self.message(message, now),
            Event::Stored(result) => self.stored(result),
            Event::Report(report) => {
                self.report = Some(report.clone());
                self.send(DeviceMessage::Status(report))
            }
            Event::Facts(facts) if self.is_open() => self.send(DeviceMessage::Facts(facts)),
            Event::Facts(facts) => {
                // `Hello` has said others already, or will say these.
                self.facts = Some(facts);
                Vec::new()
            }
            Event::Renew(csr) => self.send(DeviceMessage::Renew { csr }),
            Event::LogsOpened { stream } => self.logs.opened(stream),
            Event::LogsRead { stream, data } => self.logs.read(stream, data),
            Event::LogsEnded { stream, end } => self.logs.ended(stream, end),
            Event::Tick => self.tick(now),
        }
    }

    fn send(&self, message: DeviceMessage) -> Vec<Effect> {
        if self.is_open() {
            vec![Effect::Send(message)]
        } else {
            Vec::new()
        }
    }

    fn greet(&mut self, mut hello: Hello, now: u64) -> Vec<Effect> {
        hello.ledger = self.held();
        self.facts = None;
        self.link = Link::Greeting {
            hello: hello.clone(),
            said_at: now,
        };
        vec![Effect::Send(DeviceMessage::Hello(hello))]
    }

    fn held(&self) -> Option<Held> {
        self.holding.as_ref().map(|holding| holding.held())
    }

    fn message(&mut self, message: ControlMessage, now: u64) -> Vec<Effect> {
        match message {
            ControlMessage::Welcome {
                heartbeat_ms,
                server_time_ms,
            } => {
                self.link = Link::Open;
                let mut effects = vec![Effect::Welcomed {
                    heartbeat_ms,
                    server_time_ms,
                }];
                if let Some(report) = self.report.clone() {
                    effects.extend(self.send(DeviceMessage::Status(report)));
                }
                if let Some(facts) = self.facts.take() {
                    effects.extend(self.send(DeviceMessage::Facts(facts)));
                }
                effects
            }
            ControlMessage::Delta {
                generation,
                revision,
                base,
                target,
                upserts,
                patches,
                removals,
            } => {
                let changes = Changes {
                    upserts,
                    patches,
                    removals,
                };
                self.refusal(generation, target)
                    .unwrap_or_else(|| self.delta(generation, revision, base, target, changes))
            }
            ControlMessage::Offer {
                generation,
                revision,
                target,
                entries,
            } => match self.refusal(generation, target) {
                Some(effects) => effects,
                None => self.offer(generation, revision, target, entries, now),
            },
            ControlMessage::Objects { target, parts } => self.objects(target, parts, now),
            ControlMessage::Certificate(result) => vec![Effect::Certificate(result)],
            ControlMessage::Decommission { reason } => vec![Effect::Decommission { reason }],
            ControlMessage::Reconnect { after_ms } => {
                vec![Effect::Reconnect {
                    after_ms: Some(after_ms),
                }]
            }
            ControlMessage::OpenLogs {
                stream,
                request,
                credit,
            } => self.logs.open(stream, request, credit),
            ControlMessage::GrantLogs { stream, credit } => self.logs.grant(stream, credit),
            ControlMessage::CloseLogs { stream } => self.logs.close(stream),
        }
    }

    /// What generations alone decide: old ones are ignored, the present one is confirmed or in conflict.
    fn refusal(&self, generation: Generation, target: Digest) -> Option<Vec<Effect>> {
        let held = self.held()?;
        if generation < held.generation {
            return Some(Vec::new());
        }
        if generation > held.generation {
            return None;
        }
        Some(vec![Effect::Send(if held.digest == target {
            DeviceMessage::Accepted(held)
        } else {
            reject(
                generation,
                RejectReason::GenerationConflict,
                format!("generation {generation} is {} here", held.digest),
            )
        })])
    }

    fn delta(
        &mut self,
        generation: Generation,
        revision: String,
        base: Digest,
        target: Digest,
        changes: Changes,
    ) -> Vec<Effect> {
        let Some(holding) = self
            .holding
            .as_ref()
            .filter(|holding| holding.set.digest() == base)
        else {
            return vec![Effect::Send(reject(
                generation,
                RejectReason::BaseMismatch,
                format!("the device does not hold {base}"),
            ))];
        };
        let Changes {
            mut upserts,
            patches,
            removals,
        } = changes;
        match unpack(&patches, holding) {
            Ok(objects) => upserts.extend(objects),
            Err(message) => {
                let reason = RejectReason::DigestMismatch;
                return vec![Effect::Send(reject(generation, reason, message))];
            }
        }
        let delta = Delta {
            upserts: upserts.iter().map(Entry::from).collect(),
            removals,
        };
        let set = manifest::apply(&holding.set, &delta);
        if set.digest() != target {
            return vec![Effect::Send(reject(
                generation,
                RejectReason::DigestMismatch,
                format!("the delta gives {}, not {target}", set.digest()),
            ))];
        }
        let mut objects = holding.objects.clone();
        objects.extend(upserts.into_iter().map(|object| (object.digest(), object)));
        self.store(generation, revision, Arc::new(set), objects)
    }

    fn offer(
        &mut self,
        generation: Generation,
        revision: String,
        target: Digest,
        entries: Vec<Entry>,
        now: u64,
    ) -> Vec<Effect> {
        let too_large =
            entries.len() > MAX_OBJECTS || entries.iter().any(|entry| entry.size > MAX_OBJECT);
        let set = match ManifestSet::new(entries) {
            Ok(set) if set.digest() == target && !too_large => Arc::new(set),
            _ => {
                let message = format!("the offered entries are not the set {target}");
                return vec![Effect::Send(reject(
                    generation,
                    RejectReason::DigestMismatch,
                    message,
                ))];
            }
        };
        if self
            .incoming
            .as_ref()
            .is_some_and(|incoming| incoming.generation > generation)
        {
            return Vec::new();
        }
        let wanted: BTreeSet<_> = set.entries().iter().map(|entry| entry.digest).collect();
        self.staged.retain(|digest, _| wanted.contains(digest));
        self.pieces.clear();
        self.incoming = Some(Incoming {
            generation,
            revision,
            set,
            asked_at: now,
        });
        self.advance(now)
    }

    fn objects(&mut self, target: Digest, parts: Vec<Part>, now: u64) -> Vec<Effect> {
        let Some(incoming) = self
            .incoming
            .as_mut()
            .filter(|it| it.set.digest() == target)
        else {
            return Vec::new();
        };
        incoming.asked_at = now;
        let generation = incoming.generation;
        let sizes: BTreeMap<_, _> = incoming
            .set
            .entries()
            .iter()
            .map(|entry| (entry.digest, entry.size))
            .collect();
        for part in parts {
            let Some(&size) = sizes.get(&part.digest) else {
                continue;
            };
            if self.has(part.digest) || part.compressed > message::compressed_bound(size) {
                continue;
            }
            let piece = self.pieces.entry(part.digest).or_default();
            if piece.len() as u64 != part.offset {
                continue;
            }
            piece.extend_from_slice(&part.data);
            if (piece.len() as u64) < part.compressed {
                continue;
            }
            let compressed = std::mem::take(piece);
            self.pieces.remove(&part.digest);
            match open(&compressed, size, part.digest) {
                Ok(object) => {
                    self.staged.insert(part.digest, object);
                }
                Err(message) => {
                    self.incoming = None;
                    return vec![Effect::Send(reject(
                        generation,
                        RejectReason::DigestMismatch,
                        message,
                    ))];
                }
            }
        }
        if self.lacking().is_empty() {
            self.advance(now)
        } else {
            Vec::new()
        }
    }

    fn has(&self, digest: Digest) -> bool {
        self.staged.contains_key(&digest)
            || self
                .holding
                .as_ref()
                .is_some_and(|holding| holding.objects.contains_key(&digest))
    }

    fn lacking(&self) -> BTreeSet<Digest> {
        self.incoming
            .iter()
            .flat_map(|incoming| incoming.set.entries())
            .map(|entry| entry.digest)
            .filter(|digest| !self.has(*digest))
            .collect()
    }

    /// Asks for what the incoming set lacks, or stores it when it lacks nothing.
    fn advance(&mut self, now: u64) -> Vec<Effect> {
        let lacking = self.lacking();
        let Some(incoming) = &mut self.incoming else {
            return Vec::new();
        };
        incoming.asked_at = now;
        if !lacking.is_empty() {
            self.pieces.clear();
            return vec![Effect::Send(DeviceMessage::Need {
                target: incoming.set.digest(),
                digests: lacking.into_iter().collect(),
            })];
        }
        let Some(Incoming {
            generation,
            revision,
            set,
            ..
        }) = self.incoming.take()
        else {
            return Vec::new();
        };
        let mut objects = std::mem::take(&mut self.staged);
        if let Some(holding) = &self.holding {
            objects.extend(holding.objects.clone());
        }
        self.store(generation, revision, set, objects)
    }

    fn store(
        &mut self,
        generation: Generation,
        revision: String,
        set: Arc<ManifestSet>,
        mut objects: BTreeMap<Digest, Object>,
    ) -> Vec<Effect> {
        let wanted: BTreeSet<_> = set.entries().iter().map(|entry| entry.digest).collect();
        objects.retain(|digest, _| wanted.contains(digest));
        // Digests alone do not say that each body carries the key under which the set lists it.
        let honest = set.entries().iter().all(|entry| {
            objects
                .get(&entry.digest)
                .is_some_and(|object| Entry::from(object) == *entry)
        });
        if !honest {
            return vec![Effect::Send(reject(
                generation,
                RejectReason::DigestMismatch,
                "an object does not carry the key or size that the set lists".to_owned(),
            ))];
        }
        let holding = Arc::new(Holding {
            generation,
            revision,
            set,
            objects,
        });
        self.storing = Some(holding.clone());
        vec![Effect::Store(holding)]
    }

    fn stored(&mut self, result: Result<(), String>) -> Vec<Effect> {
        let Some(holding) = self.storing.take() else {
            return Vec::new();
        };
        match result {
            Ok(()) => {
                self.holding = Some(holding.clone());
                if self
                    .incoming
                    .as_ref()
                    .is_some_and(|it| it.generation <= holding.generation)
                {
                    self.incoming = None;
                    self.staged.clear();
                    self.pieces.clear();
                }
                vec![
                    Effect::Send(DeviceMessage::Accepted(holding.held())),
                    Effect::Apply(holding),
                ]
            }
            // The last good state stays in force. A new connection, after a backoff, tries again.
            Err(message) => vec![
                Effect::Send(reject(holding.generation, RejectReason::Storage, message)),
                Effect::Reconnect { after_ms: None },
            ],
        }
    }

    fn tick(&mut self, now: u64) -> Vec<Effect> {
        let late = |since: u64| now.saturating_sub(since) >= RESEND_AFTER_MS;
        match &self.link {
            Link::Greeting { hello, said_at } if late(*said_at) => {
                let hello = hello.clone();
                return self.greet(hello, now);
            }
            Link::Open => {}
            Link::Greeting { .. } | Link::Down => return Vec::new(),
        }
        if self
            .incoming
            .as_ref()
            .is_some_and(|incoming| late(incoming.asked_at))
        {
            return self.advance(now);
        }
        Vec::new()
    }
}

fn reject(generation: Generation, reason: RejectReason, message: String) -> DeviceMessage {
    DeviceMessage::Reject {
        generation,
        reason,
        message,
    }
}

/// What the patches make of what is held.
fn unpack(patches: &[Patch], holding: &Holding) -> Result<Vec<Object>, String> {
    let announced = patches
        .iter()
        .fold(0_u64, |sum, patch| sum.saturating_add(patch.size));
    if announced > MAX_DELTA_BODIES {
        return Err(format!("patches announce {announced} bytes"));
    }
    patches
        .iter()
        .map(|patch| {
            let previous = holding
                .objects
                .get(&patch.previous)
                .ok_or_else(|| format!("a patch is for {}, which is not held", patch.previous))?;
            patch.apply(previous).map_err(|error| error.to_string())
        })
        .collect()
}

fn open(compressed: &[u8], size: u64, digest: Digest) -> Result<Object, String> {
    let body = message::decompress(compressed, size).map_err(|error| error.to_string())?;
    let object = Object::from_canonical(body).map_err(|error| error.to_string())?;
    if object.digest() == digest {
        Ok(object)
    } else {
        Err(format!(
            "{} came where {digest} was asked for",
            object.digest()
        ))
    }
}
