//! The deliveries that were answered, so that one that comes twice is answered twice and acted on once.
//!
//! Hosts deliver again what they believe lost, and who has seen a delivery can send it again. Both only ever poke, so
//! it does no harm to forget: after an hour, past the newest [`KEPT`] of a fleet, and at a restart.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use longshore_protocol::Digest;
use longshore_webhooks::Delivery;
use tokio::time::Instant;

use crate::store::fleets::FleetId;

/// How many deliveries of one fleet are remembered.
const KEPT: usize = 256;
/// For how long.
const LIFE: Duration = Duration::from_hours(1);

/// The deliveries that were answered lately.
#[derive(Debug, Default)]
pub(super) struct Deliveries(Mutex<HashMap<FleetId, Answered>>);

/// Those of one fleet, oldest first.
type Answered = VecDeque<(Instant, Digest)>;

impl Deliveries {
    /// Remembers a delivery. Returns whether it is the first of its id; one without an id always is.
    pub(super) fn is_first(&self, fleet: &FleetId, delivery: &Delivery) -> bool {
        if delivery.id.is_empty() {
            return true;
        }
        let now = Instant::now();
        let id = Digest::of_parts([delivery.host.name().as_bytes(), delivery.id.as_bytes()]);
        let mut fleets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !fleets.contains_key(fleet) {
            fleets.retain(|_, answered| is_fresh(answered.back(), now));
        }
        let answered = fleets.entry(fleet.clone()).or_default();
        while answered.len() >= KEPT
            || answered.front().is_some() && !is_fresh(answered.front(), now)
        {
            answered.pop_front();
        }
        if answered.iter().any(|(_, known)| *known == id) {
            return false;
        }
        answered.push_back((now, id));
        true
    }
}

fn is_fresh(answered: Option<&(Instant, Digest)>, now: Instant) -> bool {
    answered.is_some_and(|(at, _)| now.duration_since(*at) < LIFE)
}

#[cfg(test)]
mod tests {
    use longshore_webhooks::{Event, Host};

    use super::*;

    fn fleet(name: &str) -> FleetId {
        FleetId {
            tenant: "default".parse().unwrap(),
            name: name.parse().unwrap(),
        }
    }

    fn delivery(host: Host, id: &str) -> Delivery {
        Delivery {
            host,
            id: id.to_owned(),
            event: Event::Ping,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_counts_once_per_fleet_and_host_for_an_hour() {
        let deliveries = Deliveries::default();
        let first = |name, host, id| deliveries.is_first(&fleet(name), &delivery(host, id));
        assert!(first("shops", Host::GitHub, "1"));
        assert!(!first("shops", Host::GitHub, "1"));
        assert!(first("shops", Host::GitHub, "2"));
        assert!(first("shops", Host::GitLab, "1"));
        assert!(first("depots", Host::GitHub, "1"));
        for _ in 0..2 {
            assert!(first("shops", Host::Generic, ""), "nothing to know it by");
        }
        tokio::time::advance(LIFE).await;
        assert!(first("shops", Host::GitHub, "1"));
        assert!(!first("shops", Host::GitHub, "1"));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let deliveries = Deliveries::default();
        for n in 0..3 * KEPT {
            assert!(deliveries.is_first(&fleet("shops"), &delivery(Host::GitHub, &n.to_string())));
        }
        let kept = |name| {
            let fleets = deliveries.0.lock().unwrap();
            fleets.get(&fleet(name)).map(VecDeque::len)
        };
        assert_eq!(kept("shops"), Some(KEPT));
        let newest = delivery(Host::GitHub, &(3 * KEPT - 1).to_string());
        assert!(!deliveries.is_first(&fleet("shops"), &newest));
        // A fleet that nobody delivers to any more leaves nothing behind.
        tokio::time::advance(LIFE).await;
        assert!(deliveries.is_first(&fleet("depots"), &newest));
        assert_eq!((kept("shops"), kept("depots")), (None, Some(1)));
    }
}
