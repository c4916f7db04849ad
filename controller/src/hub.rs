//! Which devices are connected here, and how to make their sessions look.
//!
//! The hub carries signals, nothing else: a session that is poked reads the store. A device has one session; a
//! newer connection of the same device ends the older one.
//!
//! What all sessions have in common is done here for all of them at once: one [`Hub::sweep`] looks for devices
//! that fell silent and lets time pass for those that owe an answer. An idle session has no timer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use longshore_protocol::DeviceId;
use tokio::{sync::Notify, time::Instant};

use crate::{
    logs::{Opening, Openings},
    replica::{Notice, Notices},
};

/// What a session is told, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The controller stops.
    Stop,
    /// A newer connection of the device is there.
    Replaced,
    /// The device was not heard for too long.
    Silent,
    /// The store says that the device is elsewhere: it has to come again.
    Again,
    /// Look into the store.
    Look,
    /// Time passed, and the device owes an answer.
    Tick,
    /// Somebody asks for a log, or has read some of one.
    Logs,
}

impl Signal {
    const ALL: [Self; 7] = [
        Self::Stop,
        Self::Replaced,
        Self::Silent,
        Self::Again,
        Self::Look,
        Self::Tick,
        Self::Logs,
    ];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// One session, as the hub sees it.
#[derive(Debug)]
pub struct Session {
    started: Instant,
    signals: AtomicU8,
    wake: Notify,
    /// When the device was heard last, in milliseconds since the start.
    heard: AtomicU64,
    owed: AtomicBool,
    openings: Openings,
}

impl Session {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            signals: AtomicU8::new(0),
            wake: Notify::new(),
            heard: AtomicU64::new(0),
            owed: AtomicBool::new(false),
            openings: Openings::default(),
        }
    }

    /// The next signal. Those that come while one is handled are kept, each once.
    pub async fn signal(&self) -> Signal {
        loop {
            let set = self.signals.load(Ordering::Acquire);
            let first = Signal::ALL
                .into_iter()
                .find(|signal| set & signal.bit() != 0);
            if let Some(signal) = first {
                self.signals.fetch_and(!signal.bit(), Ordering::AcqRel);
                return signal;
            }
            self.wake.notified().await;
        }
    }

    /// Milliseconds since the session began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Remembers that the device was heard.
    pub fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// Remembers whether the device owes an answer.
    pub fn owes(&self, owed: bool) {
        self.owed.store(owed, Ordering::Relaxed);
    }

    /// The logs that the session was asked for since this was asked last.
    pub fn openings(&self) -> Vec<Opening> {
        self.openings.take()
    }

    /// Somebody asked for a log, or has read some of one.
    pub fn tend_logs(&self) {
        self.tell(Signal::Logs);
    }

    fn tell(&self, signal: Signal) {
        self.signals.fetch_or(signal.bit(), Ordering::AcqRel);
        self.wake.notify_one();
    }

    fn sweep(&self, silence: Duration) {
        let silent = self
            .now()
            .saturating_sub(self.heard.load(Ordering::Relaxed));
        if u128::from(silent) > silence.as_millis() {
            self.tell(Signal::Silent);
        } else if self.owed.load(Ordering::Relaxed) {
            self.tell(Signal::Tick);
        }
    }
}

/// How many pokes there were; see [`Hub::connect`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pokes(u64);

#[derive(Debug, Default)]
struct Sessions {
    by_device: HashMap<DeviceId, Arc<Session>>,
    pokes: Pokes,
    stopped: bool,
}

/// The connected devices.
#[derive(Debug, Default)]
pub struct Hub {
    sessions: Mutex<Sessions>,
    notices: Notices,
}

impl Hub {
    /// No devices yet, at one of several replicas.
    pub fn among(notices: Notices) -> Self {
        Self {
            sessions: Mutex::default(),
            notices,
        }
    }

    /// How many pokes there were so far: to be asked before a device that connects is looked up.
    pub fn pokes(&self) -> Pokes {
        self.sessions().pokes
    }

    /// Registers a session of `device`; an older one is told to end, at whatever replica. Where there were pokes since `looked_up`,
    /// one may have been meant for this device, and the session is told to look.
    pub fn connect(&self, device: &DeviceId, looked_up: Pokes) -> Arc<Session> {
        let session = Arc::new(Session::new());
        let mut sessions = self.sessions();
        if sessions.pokes != looked_up {
            session.tell(Signal::Look);
        }
        if sessions.stopped {
            session.tell(Signal::Stop);
        }
        let older = sessions.by_device.insert(device.clone(), session.clone());
        drop(sessions);
        if let Some(older) = older {
            older.tell(Signal::Replaced);
        }
        self.notices.tell([Notice::Here(device.clone())]);
        session
    }

    /// Ends the session of a device that is connected to another replica by now.
    pub fn moved_away(&self, device: &DeviceId) {
        if let Some(session) = self.sessions().by_device.get(device) {
            session.tell(Signal::Replaced);
        }
    }

    /// Forgets a session, unless a newer one of the device is there.
    pub fn disconnect(&self, device: &DeviceId, session: &Arc<Session>) {
        let mut sessions = self.sessions();
        let current = sessions.by_device.get(device);
        if current.is_some_and(|current| Arc::ptr_eq(current, session)) {
            sessions.by_device.remove(device);
        }
    }

    /// The devices that are connected here for so long or longer.
    pub fn here_for(&self, duration: Duration) -> Vec<DeviceId> {
        let sessions = self.sessions();
        let here = sessions.by_device.iter();
        here.filter(|(_, session)| session.started.elapsed() >= duration)
            .map(|(device, _)| device.clone())
            .collect()
    }

    /// Lets these devices come again, where they are connected here.
    pub fn come_again<'a>(&self, devices: impl IntoIterator<Item = &'a DeviceId>) {
        let sessions = self.sessions();
        for device in devices {
            if let Some(session) = sessions.by_device.get(device) {
                session.tell(Signal::Again);
            }
        }
    }

    /// Whether a device is connected here.
    pub fn has(&self, device: &DeviceId) -> bool {
        self.sessions().by_device.contains_key(device)
    }

    /// Asks a device's session for a log, where the device is connected here. The session is not kept by whoever asked,
    /// so that its end is noticed.
    pub fn ask(&self, device: &DeviceId, opening: Opening) -> Option<Weak<Session>> {
        let session = self.sessions().by_device.get(device)?.clone();
        session.openings.add(opening);
        session.tend_logs();
        Some(Arc::downgrade(&session))
    }

    /// Makes these devices' sessions look, where they are connected, at whatever replica.
    pub fn poke<'a>(&self, devices: impl IntoIterator<Item = &'a DeviceId>) {
        let elsewhere = self.poke_here(devices);
        let notices = elsewhere.into_iter().cloned().map(Notice::Device);
        self.notices.tell(notices);
    }

    /// Makes these devices' sessions look, where they are connected here. Returns those that are not.
    pub fn poke_here<'a>(
        &self,
        devices: impl IntoIterator<Item = &'a DeviceId>,
    ) -> Vec<&'a DeviceId> {
        let mut sessions = self.sessions();
        sessions.pokes.0 += 1;
        let is_elsewhere = |device: &&DeviceId| match sessions.by_device.get(*device) {
            Some(session) => {
                session.tell(Signal::Look);
                false
            }
            None => true,
        };
        devices.into_iter().filter(is_elsewhere).collect()
    }

    /// Ends the sessions of devices that were not heard for `silence`, and lets time pass for those that owe an
    /// answer.
    pub fn sweep(&self, silence: Duration) {
        for session in self.sessions().by_device.values() {
            session.sweep(silence);
        }
    }

    /// Ends all sessions, also those that are still to come.
    pub fn stop(&self) {
        let mut sessions = self.sessions();
        sessions.stopped = true;
        for session in sessions.by_device.values() {
            session.tell(Signal::Stop);
        }
    }

    /// How many devices are connected.
    pub fn len(&self) -> usize {
        self.sessions().by_device.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn device(n: u8) -> DeviceId {
        DeviceId::from_random([n; 16])
    }

    fn signals(session: &Session) -> Vec<Signal> {
        std::iter::from_fn(|| session.signal().now_or_never()).collect()
    }

    #[test]
    fn a_newer_connection_replaces_the_older_one() {
        let hub = Hub::default();
        let old = hub.connect(&device(1), hub.pokes());
        let new = hub.connect(&device(1), hub.pokes());
        assert_eq!(signals(&old), [Signal::Replaced]);
        assert_eq!(signals(&new), []);
        hub.disconnect(&device(1), &old);
        assert!(hub.has(&device(1)), "the newer session is still there");
        hub.disconnect(&device(1), &new);
        assert!(hub.is_empty());
    }

    #[test]
    fn a_poke_between_look_up_and_entry_is_not_lost() {
        let hub = Hub::default();
        let looked_up = hub.pokes();
        hub.poke([&device(1)]);
        let session = hub.connect(&device(1), looked_up);
        assert_eq!(signals(&session), [Signal::Look]);
        let session = hub.connect(&device(1), hub.pokes());
        assert_eq!(signals(&session), []);
        hub.poke([&device(2)]);
        assert_eq!(signals(&session), [], "another device's poke");
        hub.poke([&device(1)]);
        hub.poke([&device(1)]);
        assert_eq!(signals(&session), [Signal::Look], "two pokes are one look");
    }

    #[test]
    fn the_end_comes_before_the_rest() {
        let hub = Hub::default();
        let session = hub.connect(&device(1), hub.pokes());
        hub.poke([&device(1)]);
        hub.stop();
        assert_eq!(signals(&session), [Signal::Stop, Signal::Look]);
        let late = hub.connect(&device(2), hub.pokes());
        assert_eq!(signals(&late), [Signal::Stop]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_debts_are_noticed() {
        let hub = Hub::default();
        let [silent, owing, idle] = [1, 2, 3].map(|n| hub.connect(&device(n), hub.pokes()));
        tokio::time::advance(Duration::from_secs(100)).await;
        for session in [&owing, &idle] {
            session.heard();
        }
        owing.owes(true);
        hub.sweep(Duration::from_secs(90));
        assert_eq!(signals(&silent), [Signal::Silent]);
        assert_eq!(signals(&owing), [Signal::Tick]);
        assert_eq!(signals(&idle), []);
    }
}
