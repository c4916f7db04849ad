//! Which devices are connected here, and how to make their sessions look.
//!
//! The hub carries pokes, nothing else: a session that is poked reads the store. A device has one session; a
//! newer connection of the same device ends the older one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use longshore_protocol::DeviceId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// One session, as the hub sees it.
#[derive(Clone, Debug)]
pub struct Session {
    number: u64,
    /// Says "look".
    pub poke: Arc<Notify>,
    /// Says "end": a newer connection of the device is there.
    pub replaced: CancellationToken,
}

/// The connected devices.
#[derive(Debug, Default)]
pub struct Hub {
    next: AtomicU64,
    sessions: Mutex<HashMap<DeviceId, Session>>,
}

impl Hub {
    /// Registers a session of `device`; an older one is told to end.
    pub fn connect(&self, device: &DeviceId) -> Session {
        let session = Session {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            poke: Arc::default(),
            replaced: CancellationToken::new(),
        };
        let older = self.sessions().insert(device.clone(), session.clone());
        if let Some(older) = older {
            older.replaced.cancel();
        }
        session
    }

    /// Forgets a session. Returns whether the device is now gone, which it is not when a newer session came.
    pub fn disconnect(&self, device: &DeviceId, session: &Session) -> bool {
        let mut sessions = self.sessions();
        let current = sessions
            .get(device)
            .is_some_and(|it| it.number == session.number);
        if current {
            sessions.remove(device);
        }
        current
    }

    /// Makes these devices' sessions look, where they are connected.
    pub fn poke<'a>(&self, devices: impl IntoIterator<Item = &'a DeviceId>) {
        let sessions = self.sessions();
        for device in devices {
            if let Some(session) = sessions.get(device) {
                session.poke.notify_one();
            }
        }
    }

    /// How many devices are connected.
    pub fn len(&self) -> usize {
        self.sessions().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<DeviceId, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_connection_replaces_the_older_one() {
        let hub = Hub::default();
        let device = DeviceId::from_random([1; 16]);
        let old = hub.connect(&device);
        let new = hub.connect(&device);
        assert!(old.replaced.is_cancelled() && !new.replaced.is_cancelled());
        assert!(
            !hub.disconnect(&device, &old),
            "the newer session is still there"
        );
        assert!(hub.disconnect(&device, &new));
        assert!(hub.is_empty());
    }
}
