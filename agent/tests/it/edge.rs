//! The edge endpoint: mutual TLS, a WebSocket, and the protocol's own `ControlSession` behind it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use http::header;
use longshore_protocol::{
    DeviceId, Digest, Generation, ManifestSet, Object,
    api::Facts,
    message::{
        ControlMessage, DeviceMessage, Held, Hello, LogEnd, RejectReason, StatusReport, StreamId,
        objects_in_parts, patched,
    },
    session::{
        ControlSession,
        control::{Desired, Effect, Event},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{broadcast, watch},
    time::{self, Instant},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
    },
};
use url::Url;

use crate::pki::{Life, Pki};

pub const TOKEN: &str = "device-token";

/// What the endpoint saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When each connection came that got through TLS, and with which certificate.
    pub connections: Vec<(Instant, Digest)>,
    pub hellos: Vec<Hello>,
    pub needs: Vec<Vec<Digest>>,
    pub accepted: Vec<Held>,
    pub rejected: Vec<RejectReason>,
    pub reports: Vec<StatusReport>,
    pub facts: Vec<Facts>,
    pub pings: usize,
    pub deltas: usize,
    pub renewals: usize,
    /// What came of each log, and how it ended.
    pub logs: BTreeMap<StreamId, (Vec<u8>, Option<LogEnd>)>,
}

/// How the endpoint behaves.
#[derive(Default)]
pub struct Behavior {
    /// Upgrades to refuse, with status, headers and body, before one is granted.
    pub refusals: VecDeque<(u16, &'static str, String)>,
    /// After how many `Objects` messages the connection is cut, once.
    pub cut_after: Option<usize>,
    /// Whether `Hello` is left unanswered, and pings too.
    pub silent: bool,
    /// The name in its certificate, where that is not its address.
    pub name: Option<&'static str>,
    /// How long certificates live that renewals get.
    pub life: Option<Life>,
}

pub struct Edge {
    pub url: Url,
    pub seen: watch::Receiver<Seen>,
    world: Arc<World>,
}

struct World {
    pki: Arc<Pki>,
    device: DeviceId,
    heartbeat_ms: u64,
    seen: watch::Sender<Seen>,
    desired: watch::Sender<Option<(u64, Arc<ManifestSet>)>>,
    sets: Mutex<BTreeMap<Digest, Arc<ManifestSet>>>,
    objects: Mutex<BTreeMap<Digest, Object>>,
    behavior: Mutex<Behavior>,
    push: broadcast::Sender<ControlMessage>,
}

impl Edge {
    pub async fn start(
        pki: Arc<Pki>,
        device: DeviceId,
        heartbeat_ms: u64,
        behavior: Behavior,
    ) -> Self {
        Self::start_at("127.0.0.1", pki, device, heartbeat_ms, behavior).await
    }

    /// At another address of this machine.
    pub async fn start_at(
        address: &str,
        pki: Arc<Pki>,
        device: DeviceId,
        heartbeat_ms: u64,
        behavior: Behavior,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let url = format!("wss://{}/v1/edge", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let (seen, watching) = watch::channel(Seen::default());
        let acceptor = TlsAcceptor::from(Arc::new(pki.edge(behavior.name.unwrap_or(address))));
        let world = Arc::new(World {
            pki,
            device,
            heartbeat_ms,
            seen,
            desired: watch::Sender::new(None),
            sets: Mutex::default(),
            objects: Mutex::default(),
            behavior: Mutex::new(behavior),
            push: broadcast::Sender::new(8),
        });
        let serving = world.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, world) = (acceptor.clone(), serving.clone());
                tokio::spawn(async move {
                    // A connection that breaks is what many of the tests are about.
                    let _broken = connection(acceptor, stream, &world).await;
                });
            }
        });
        Self {
            url,
            seen: watching,
            world,
        }
    }

    /// What the device should run from now on.
    pub fn desire(&self, generation: u64, objects: &[Object]) -> Held {
        let set = Arc::new(ManifestSet::of(objects).unwrap());
        let digest = set.digest();
        self.world.sets.lock().unwrap().insert(digest, set.clone());
        let bodies = objects
            .iter()
            .map(|object| (object.digest(), object.clone()));
        self.world.objects.lock().unwrap().extend(bodies);
        self.world.desired.send_replace(Some((generation, set)));
        Held {
            generation: Generation::from(generation),
            digest,
        }
    }

    /// Sends something that the session would not send now.
    pub fn push(&self, message: ControlMessage) {
        self.world.push.send(message).unwrap();
    }

    pub fn behave(&self, change: impl FnOnce(&mut Behavior)) {
        change(&mut self.world.behavior.lock().unwrap());
    }
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;
type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn connection(acceptor: TlsAcceptor, stream: TcpStream, world: &World) -> Result<(), Broken> {
    let stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    world.seen.send_modify(|seen| {
        seen.connections
            .push((Instant::now(), Digest::of(&certificate)));
    });
    #[allow(clippy::result_large_err, reason = "the library's type")]
    let admit = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        if let Some((status, header, body)) = world.behavior.lock().unwrap().refusals.pop_front() {
            let mut refusal = http::Response::builder().status(status);
            if let Some((name, value)) = header.split_once(':') {
                refusal = refusal.header(name, value);
            }
            refusal = refusal.header(header::CONTENT_LENGTH, body.len());
            return Err(refusal.body(Some(body)).unwrap());
        }
        assert_eq!(request.uri().path(), "/v1/edge");
        assert_eq!(
            request.headers()[header::AUTHORIZATION],
            format!("Bearer {TOKEN}")
        );
        let protocol = request.headers()[header::SEC_WEBSOCKET_PROTOCOL].clone();
        assert_eq!(protocol, "longshore.v1");
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        Ok(response)
    };
    let socket = accept_hdr_async(stream, admit).await?;
    serve(socket, world).await
}

async fn serve(mut socket: Socket, world: &World) -> Result<(), Broken> {
    let mut session = ControlSession::new();
    let mut desired = world.desired.subscribe();
    let mut push = world.push.subscribe();
    let started = Instant::now();
    loop {
        let silent = world.behavior.lock().unwrap().silent;
        let event = tokio::select! {
            message = push.recv() => {
                send(&mut socket, &message?).await?;
                continue;
            }
            changed = desired.changed() => {
                changed?;
                Event::Poked
            }
            // To look whether it is still to be silent.
            () = time::sleep(Duration::from_millis(20)), if silent => continue,
            frame = socket.next(), if !silent => match frame.ok_or("hung up")?? {
                Message::Binary(frame) => Event::Message(DeviceMessage::decode(&frame)?.ok_or("unknown")?),
                Message::Ping(_) => {
                    world.seen.send_modify(|seen| seen.pings += 1);
                    continue;
                }
                _ => continue,
            }
        };
        record(world, &event);
        let now = u64::try_from(started.elapsed().as_millis())?;
        let mut effects = VecDeque::from(session.handle(event, now));
        while let Some(effect) = effects.pop_front() {
            effects.extend(carry_out(effect, &mut socket, &mut session, world, now).await?);
        }
    }
}

fn record(world: &World, event: &Event) {
    let Event::Message(message) = event else {
        return;
    };
    world.seen.send_modify(|seen| match message.clone() {
        DeviceMessage::Hello(hello) => seen.hellos.push(hello),
        DeviceMessage::Need { digests, .. } => seen.needs.push(digests),
        DeviceMessage::Accepted(held) => seen.accepted.push(held),
        DeviceMessage::Reject { reason, .. } => seen.rejected.push(reason),
        DeviceMessage::Status(report) => seen.reports.push(report),
        DeviceMessage::Facts(facts) => seen.facts.push(facts),
        DeviceMessage::Renew { .. } => seen.renewals += 1,
        DeviceMessage::LogChunk { stream, data } => {
            seen.logs.entry(stream).or_default().0.extend(data);
        }
        DeviceMessage::LogEnd { stream, end } => seen.logs.entry(stream).or_default().1 = Some(end),
    });
}

async fn carry_out(
    effect: Effect,
    socket: &mut Socket,
    session: &mut ControlSession,
    world: &World,
    now: u64,
) -> Result<Vec<Effect>, Broken> {
    let message = match effect {
        Effect::Welcome => ControlMessage::Welcome {
            heartbeat_ms: world.heartbeat_ms,
            server_time_ms: longshore_agent::clock::system(),
        },
        Effect::LoadDesired => {
            let held = session.held().map(|held| held.digest);
            let base = held.and_then(|held| world.sets.lock().unwrap().get(&held).cloned());
            let desired = world
                .desired
                .borrow()
                .clone()
                .map(|(generation, set)| Desired {
                    generation: Generation::from(generation),
                    revision: "c0ffee".into(),
                    set,
                    base,
                });
            return Ok(session.handle(Event::Desired(desired), now));
        }
        Effect::Send(message) => message,
        Effect::SendDelta {
            generation,
            revision,
            base,
            target,
            delta,
            previous,
        } => {
            world.seen.send_modify(|seen| seen.deltas += 1);
            let objects = world.objects.lock().unwrap().clone();
            let upserts = delta
                .upserts
                .iter()
                .map(|entry| objects[&entry.digest].clone())
                .collect();
            let previous = previous.iter().map(|entry| &objects[&entry.digest]);
            let (upserts, patches) = patched(upserts, previous);
            ControlMessage::Delta {
                generation,
                revision,
                base,
                target,
                upserts,
                patches,
                removals: delta.removals,
            }
        }
        Effect::SendObjects { target, entries } => {
            let objects = world.objects.lock().unwrap().clone();
            let objects: Vec<_> = entries
                .iter()
                .map(|entry| &objects[&entry.digest])
                .collect();
            for message in objects_in_parts(target, objects) {
                let cut = {
                    let mut behavior = world.behavior.lock().unwrap();
                    let cut = behavior.cut_after == Some(0);
                    behavior.cut_after = if cut {
                        None
                    } else {
                        behavior.cut_after.map(|left| left - 1)
                    };
                    cut
                };
                if cut {
                    // What was sent has arrived once this is answered; a reset would take it along.
                    socket.send(Message::Ping(vec![1].into())).await?;
                    while !matches!(socket.next().await.ok_or("hung up")??, Message::Pong(_)) {}
                    return Err("cut".into());
                }
                send(socket, &message).await?;
            }
            return Ok(Vec::new());
        }
        Effect::IssueCertificate { csr } => {
            let life = world.behavior.lock().unwrap().life.unwrap_or(Life::USUAL);
            let chain = world.pki.device(&csr, &world.device, life);
            ControlMessage::Certificate(Ok(chain.iter().map(|it| it.der().to_vec()).collect()))
        }
        _ => return Ok(Vec::new()),
    };
    send(socket, &message).await?;
    Ok(Vec::new())
}

async fn send(socket: &mut Socket, message: &ControlMessage) -> Result<(), Broken> {
    Ok(socket
        .send(Message::Binary(message.encode().into()))
        .await?)
}
