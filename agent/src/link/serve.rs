//! One open connection: the session's effects carried out, the clocks looked at.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use longshore_protocol::{
    Generation,
    message::{ControlMessage, Hello, LOGS, PATCHES},
    session::{
        DeviceSession, Holding,
        device::{Effect, Event},
    },
};
use tokio::time::{self, Instant, Interval, MissedTickBehavior};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_util::sync::CancellationToken;

use super::{Closed, Link, LinkError, STABLE, dial::Socket, logs::OpenLogs, renewal::Renewal};
use crate::{
    identity, ledger,
    report::{LEDGER_WRITABLE, OFFLINE},
    watchdog,
};

/// Before the controller says how often to ping.
const FIRST_HEARTBEAT: Duration = Duration::from_secs(8);
const GOODBYE: Duration = Duration::from_secs(1);

struct Served<'a, S, L> {
    link: &'a mut Link<S, L>,
    socket: Socket,
    session: &'a mut DeviceSession,
    renewal: &'a mut Renewal,
    /// The zero of the session's clock, the same for all connections.
    started: Instant,
    /// When this connection began.
    since: Instant,
    heard: Instant,
    heartbeat: Interval,
    logs: OpenLogs,
}

/// Serves the connection until it ends. It is closed when this returns.
pub(super) async fn serve<S: identity::Keep, L: ledger::Keep>(
    link: &mut Link<S, L>,
    socket: Socket,
    session: &mut DeviceSession,
    renewal: &mut Renewal,
    started: Instant,
    stop: &CancellationToken,
) -> Result<Closed, LinkError> {
    let now = Instant::now();
    let heartbeat = interval(FIRST_HEARTBEAT);
    let logs = OpenLogs::of(link.logs.clone());
    let mut served = Served {
        link,
        socket,
        session,
        renewal,
        started,
        since: now,
        heard: now,
        heartbeat,
        logs,
    };
    let closed = served.run(stop).await;
    served.link.connected.send_replace(false);
    let Link {
        reporter, network, ..
    } = &*served.link;
    reporter.journal().disconnected(network.clock.now());
    served.session.handle(Event::Disconnected, served.now());
    // Whether the goodbye arrives does not matter.
    drop(time::timeout(GOODBYE, served.socket.close(None)).await);
    closed
}

fn interval(every: Duration) -> Interval {
    let mut interval = time::interval(every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

impl<S: identity::Keep, L: ledger::Keep> Served<'_, S, L> {
    async fn run(&mut self, stop: &CancellationToken) -> Result<Closed, LinkError> {
        let mut reports = self.link.reporter.follow();
        let mut facts = self.link.facts.clone();
        let mut tick = interval(self.link.timing.tick);
        reports.mark_changed();
        let hello = Hello {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: vec![PATCHES.to_owned(), LOGS.to_owned()],
            runtime: self.link.runtime.to_owned(),
            ledger: None,
            facts: facts.borrow_and_update().clone(),
        };
        let mut closed = self.handle(Event::Connected(hello)).await?;
        while closed.is_none() {
            watchdog::beat(self.link.timing.tick);
            let silence = self.heard + self.heartbeat.period().mul_f32(2.5);
            // In this order: whatever else there is to say comes before logs.
            closed = tokio::select! {
                biased;
                () = stop.cancelled() => Some(Closed::Stopped),
                _ = self.heartbeat.tick() => self.send(Message::Ping(Bytes::new())).await,
                _ = tick.tick() => self.tick().await?,
                Ok(()) = reports.changed() => {
                    let report = reports.borrow_and_update().clone();
                    // Before anything was ever held, a report without conditions says nothing.
                    if report.held.generation == Generation::default() && report.conditions.is_empty() {
                        None
                    } else {
                        self.handle(Event::Report(report)).await?
                    }
                }
                Ok(()) = facts.changed() => {
                    let facts = facts.borrow_and_update().clone();
                    self.handle(Event::Facts(facts)).await?
                }
                frame = self.socket.next() => self.receive(frame).await?,
                news = self.logs.news() => self.handle(news).await?,
                () = time::sleep_until(silence) => Some(Closed::Broken("the controller fell silent".to_owned())),
            };
        }
        Ok(closed.unwrap_or(Closed::Stopped))
    }

    /// Milliseconds of the session's monotonic clock.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn receive(
        &mut self,
        frame: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>,
    ) -> Result<Option<Closed>, LinkError> {
        let message = match frame {
            None => return Ok(Some(Closed::Broken("the controller hung up".to_owned()))),
            Some(Err(error)) => return Ok(Some(Closed::Broken(error.to_string()))),
            Some(Ok(message)) => message,
        };
        self.heard = Instant::now();
        match message {
            Message::Binary(frame) => match ControlMessage::decode(&frame) {
                Ok(Some(message)) => self.handle(Event::Message(message)).await,
                Ok(None) => {
                    tracing::debug!("a message of an unknown kind is ignored");
                    Ok(None)
                }
                Err(error) => Ok(Some(Closed::Broken(format!(
                    "the controller broke the protocol: {error}"
                )))),
            },
            Message::Close(_) => Ok(Some(Closed::Broken(
                "the controller closed the link".to_owned(),
            ))),
            // The library answers pings itself, with the next flush.
            _ => Ok(None),
        }
    }

    async fn tick(&mut self) -> Result<Option<Closed>, LinkError> {
        if self.session.is_open() {
            if self.since.elapsed() >= STABLE {
                self.link.reporter.journal().delivered();
            }
            let clock = &self.link.network.clock;
            clock.keep();
            let now = clock.now();
            if let Some(csr) = self.renewal.request(&self.link.identity, now)? {
                tracing::info!("asking for a new certificate");
                if let Some(closed) = self.handle(Event::Renew(csr)).await? {
                    return Ok(Some(closed));
                }
            }
        }
        self.handle(Event::Tick).await
    }

    /// Hands in one event and carries out what follows from it, in order.
    async fn handle(&mut self, event: Event) -> Result<Option<Closed>, LinkError> {
        let mut effects = VecDeque::from(self.session.handle(event, self.now()));
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Send(message) => {
                    if let Some(closed) = self.send(Message::Binary(message.encode().into())).await
                    {
                        return Ok(Some(closed));
                    }
                }
                Effect::Store(holding) => {
                    let stored = self.store(holding).await;
                    effects.extend(self.session.handle(Event::Stored(stored), self.now()));
                }
                Effect::Apply(holding) => {
                    self.link.target.send_replace(Some(holding));
                }
                Effect::Welcomed {
                    heartbeat_ms,
                    server_time_ms,
                } => {
                    let every = Duration::from_millis(heartbeat_ms.clamp(50, 300_000));
                    self.heartbeat = interval(every);
                    self.link.connected.send_replace(true);
                    let clock = &self.link.network.clock;
                    clock.told(server_time_ms);
                    clock.keep();
                    let told = self.link.reporter.journal().connected(clock.now());
                    if let Some(told) = told {
                        self.link.reporter.fails(OFFLINE, "Back", told);
                    }
                    let ahead = server_time_ms.checked_signed_diff(clock.system());
                    if ahead.is_none_or(|ahead| ahead.unsigned_abs() > 60_000) {
                        tracing::warn!(
                            ahead_ms = ahead,
                            "the controller's clock and this device's differ: set the clock, or start NTP"
                        );
                    }
                }
                Effect::Certificate(answer) => {
                    let now = self.link.network.clock.now();
                    let Link {
                        state, identity, ..
                    } = &*self.link;
                    if let Some(renewed) =
                        self.renewal.switch(&**state, identity, answer, now).await?
                    {
                        self.link.identity = renewed;
                        return Ok(Some(Closed::Renewed));
                    }
                }
                Effect::Decommission { reason } => return Ok(Some(Closed::Decommissioned(reason))),
                Effect::OpenLogs { stream, request } => self.logs.open(stream, request),
                Effect::ReadLogs { stream, most } => self.logs.read(stream, most),
                Effect::CloseLogs { stream } => self.logs.close(stream),
                Effect::Reconnect {
                    after_ms: Some(after),
                } => {
                    return Ok(Some(Closed::Asked(Duration::from_millis(after))));
                }
                Effect::Reconnect { after_ms: None } => {
                    return Ok(Some(Closed::Broken(
                        "the ledger cannot keep what was sent".to_owned(),
                    )));
                }
            }
        }
        Ok(None)
    }

    async fn store(&mut self, holding: Arc<Holding>) -> Result<(), String> {
        let stored = self.link.ledger.clone().keep(holding.clone()).await;
        match &stored {
            Ok(()) => {
                self.link.network.clock.keep();
                tracing::info!(generation = %holding.generation(), revision = holding.revision(), objects = holding.set().len(), "accepted");
                self.link.reporter.holds(LEDGER_WRITABLE, "Written", "");
            }
            Err(why) => {
                tracing::error!(generation = %holding.generation(), why, "the ledger cannot be written; the last good state stays in force");
                self.link
                    .reporter
                    .fails(LEDGER_WRITABLE, "StoreFailed", why.clone());
            }
        }
        stored
    }

    async fn send(&mut self, message: Message) -> Option<Closed> {
        let patience = self.heartbeat.period().mul_f32(2.5);
        watchdog::allow(patience);
        match time::timeout(patience, self.socket.send(message)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Closed::Broken(error.to_string())),
            Err(_elapsed) => Some(Closed::Broken("the controller does not read".to_owned())),
        }
    }
}
