//! What replicas tell each other: "look", as pokes within one process do.
//!
//! ```text
//! anybody ─▶ Notices (a set: what is said twice before it is sent, is sent once) ─▶ one NOTIFY ─▶ the others
//! ```
//!
//! A notice is sent after the transaction that it is about, not within it: PostgreSQL commits transactions that notify one
//! after the other, and a set of notices takes one round trip, however large the commit was. What a crash loses in
//! between, the receivers' timers find.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_protocol::DeviceId;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::ReplicaId;
use crate::{
    error::chain,
    store::{fleets::FleetId, peers::Peers},
};

/// The pause between two sendings, in which notices gather.
const PACE: Duration = Duration::from_millis(10);
/// What fits into one notification of PostgreSQL, with room for what is around it.
/// <https://www.postgresql.org/docs/current/sql-notify.html>
const CAPACITY: usize = 7500;

/// What one replica tells the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notice {
    /// Look at the fleet's repo.
    Look(FleetId),
    /// The fleet's reconciler and enrollment are to look at the store.
    Poke(FleetId),
    /// A device of the fleet reported something new.
    Progressed(FleetId),
    /// Devices of the fleet were approved, rejected or decommissioned.
    Changed(FleetId),
    /// The device's session is to look at the store.
    Device(DeviceId),
    /// The device is connected here now.
    Here(DeviceId),
    /// Fleets were made, changed or deleted.
    Fleets,
    /// Leases are free.
    Leases,
}

/// What goes over the wire: notices, and whose they are.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    from: String,
    said: Vec<Notice>,
}

/// The texts of notifications that carry these notices.
pub fn texts(from: &ReplicaId, notices: &[Notice]) -> Vec<String> {
    let (mut texts, mut said, mut size) = (Vec::new(), Vec::new(), 0);
    let text = |said: &mut Vec<Notice>| {
        let message = Message {
            from: from.as_str().to_owned(),
            said: std::mem::take(said),
        };
        // Our own types: that cannot fail.
        serde_json::to_string(&message).unwrap_or_default()
    };
    for notice in notices {
        let length = serde_json::to_string(notice).unwrap_or_default().len() + 1;
        if size + length > CAPACITY {
            texts.push(text(&mut said));
            size = 0;
        }
        said.push(notice.clone());
        size += length;
    }
    if !said.is_empty() {
        texts.push(text(&mut said));
    }
    texts
}

/// The notices in a notification's text, unless they are `own`. What a newer version says, and this one does not
/// know, is nothing.
pub fn heard(own: &ReplicaId, text: &str) -> Vec<Notice> {
    #[derive(Deserialize)]
    struct Lenient {
        from: String,
        said: Vec<serde_json::Value>,
    }
    match serde_json::from_str::<Lenient>(text) {
        Ok(message) if message.from != own.as_str() => message
            .said
            .into_iter()
            .filter_map(|notice| serde_json::from_value(notice).ok())
            .collect(),
        _ => Vec::new(),
    }
}

/// Takes what the other replicas are to be told; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Notices(Option<Arc<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    notices: Mutex<HashSet<Notice>>,
    wake: Notify,
}

impl Waiting {
    fn notices(&self) -> std::sync::MutexGuard<'_, HashSet<Notice>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notices {
    /// For the only replica: there is nobody to tell.
    pub fn nobody() -> Self {
        Self(None)
    }

    pub(super) fn to(id: ReplicaId, peers: Arc<Peers>) -> (Self, Outbox) {
        let waiting = Arc::<Waiting>::default();
        let outbox = Outbox {
            id,
            peers,
            waiting: waiting.clone(),
        };
        (Self(Some(waiting)), outbox)
    }

    /// Tells the other replicas, soon.
    pub fn tell(&self, notices: impl IntoIterator<Item = Notice>) {
        if let Some(waiting) = &self.0 {
            waiting.notices().extend(notices);
            waiting.wake.notify_one();
        }
    }
}

/// Sends what was said.
#[derive(Debug)]
pub(super) struct Outbox {
    id: ReplicaId,
    peers: Arc<Peers>,
    waiting: Arc<Waiting>,
}

impl Outbox {
    pub(super) async fn run(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.waiting.wake.notified() => {}
            }
            let notices: Vec<_> = std::mem::take(&mut *self.waiting.notices())
                .into_iter()
                .collect();
            if !notices.is_empty()
                && let Err(error) = self.peers.tell(&self.id, &notices).await
            {
                warn!(error = %chain(&error), "other replicas were not told; their timers will find it");
            }
            sleep(PACE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_arrive_at_others_whatever_their_number() {
        let (me, you) = (ReplicaId::random(), ReplicaId::random());
        let devices = (0..10_000u32).map(|n| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            Notice::Device(DeviceId::from_random(id))
        });
        let notices: Vec<_> = devices.chain([Notice::Leases, Notice::Fleets]).collect();
        let texts = texts(&me, &notices);
        assert!(texts.iter().all(|text| text.len() < 8000));
        let arrived: Vec<_> = texts.iter().flat_map(|text| heard(&you, text)).collect();
        assert_eq!(arrived, notices);
        assert!(texts.iter().all(|text| heard(&me, text).is_empty()));
    }

    #[test]
    fn what_is_not_known_is_nothing() {
        let me = ReplicaId::random();
        let text = r#"{"from":"rep_1","said":["fleets",{"later":1},"leases"],"more":2}"#;
        assert_eq!(heard(&me, text), [Notice::Fleets, Notice::Leases]);
        assert!(heard(&me, "anything").is_empty());
    }
}
