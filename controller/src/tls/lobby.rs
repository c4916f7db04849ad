//! Where connections are until their handshake is over.
//!
//! ```text
//! accepted ─▶ ┌ waits for its turn, computes ┐ ─▶ ready
//!             └ waits for its peer           ┘
//! ```
//!
//! There is room for so many. What a handshake computes is done in turns, few at a time: thousands of devices that
//! come back at once stand in a line here and not in the runtime's, where they would stand before the sessions that
//! are there. No turn is held while a peer is waited for.
//!
//! Where the room is full, somebody goes who keeps us waiting: of the network that has most of these, whoever does so
//! longest. So connections that stall push out each other, wherever in the handshake they stall. Nobody goes for our
//! being slow: where all wait for their turns, none more are accepted.

use std::{future::poll_fn, net::IpAddr, sync::Arc, task::ready, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, PollSemaphore};

use crate::{
    crowd::{Crowd, Member, room},
    metrics::Metrics,
    rate::network,
};

/// How much there is of what.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many connections may be in their handshake.
    pub room: usize,
    /// How many handshakes compute at a time: as many more as are waiting are in nobody's way.
    pub turns: usize,
    /// How long a peer may keep us waiting when there is no room for another one of its own network.
    pub grace: Duration,
    /// How long a handshake may take.
    pub deadline: Duration,
}

impl Default for Bounds {
    /// Each connection in its handshake has some ten kilobytes.
    fn default() -> Self {
        Self {
            room: 4096,
            turns: 4,
            grace: Duration::from_secs(3),
            deadline: Duration::from_secs(20),
        }
    }
}

/// The room.
#[derive(Debug)]
pub(super) struct Lobby {
    bounds: Bounds,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    waiting: Crowd<IpAddr>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Left {
    #[error("the handshake took too long")]
    Late,
    #[error("the peer kept others waiting, and has to come back")]
    SentAway,
}

impl Lobby {
    pub(super) fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        Self {
            bounds,
            metrics,
            room: Arc::new(Semaphore::new(bounds.room)),
            turns: Arc::new(Semaphore::new(bounds.turns)),
            waiting: Crowd::default(),
        }
    }

    /// Waits for room for a connection from `address`; sends somebody away for it where it can.
    pub(super) async fn room_for(&self, address: IpAddr) -> Option<OwnedSemaphorePermit> {
        let network = network(address);
        room(self.room.clone(), 1, || {
            let sent_away = self
                .waiting
                .send_away(&network, self.bounds.grace, Duration::ZERO);
            if sent_away {
                self.metrics.handshakes_refused.inc();
            }
        })
        .await
    }

    /// Carries out a handshake with a peer at `address`, in turns.
    pub(super) async fn receive<F: Future>(
        &self,
        address: IpAddr,
        handshake: F,
    ) -> Result<F::Output, Left> {
        let go = CancellationToken::new();
        self.metrics.handshakes_waiting.inc();
        let handshake = self.in_turns(network(address), &go, handshake);
        let outcome = tokio::select! {
            done = timeout(self.bounds.deadline, handshake) => done.map_err(|_elapsed| Left::Late),
            () = go.cancelled() => Err(Left::SentAway),
        };
        self.metrics.handshakes_waiting.dec();
        outcome
    }

    /// Polls `future` with a turn in hand. In between it holds none, and counts among those that wait for their peer.
    async fn in_turns<F: Future>(
        &self,
        network: IpAddr,
        go: &CancellationToken,
        future: F,
    ) -> F::Output {
        let mut future = Box::pin(future);
        let mut turns = PollSemaphore::new(self.turns.clone());
        let mut waited = Duration::ZERO;
        let mut waiting: Option<Member<IpAddr>> = None;
        poll_fn(move |cx| {
            if let Some(waiting) = waiting.take() {
                waited = waiting.waited();
            }
            let turn = ready!(turns.poll_acquire(cx));
            let polled = future.as_mut().poll(cx);
            drop(turn);
            if polled.is_pending() {
                waiting = Some(self.waiting.enter(network, waited, go.clone()));
            }
            polled
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;
    use crate::crowd::LOOK_AGAIN;

    const BOUNDS: Bounds = Bounds {
        room: 4,
        turns: 1,
        grace: Duration::from_secs(3),
        deadline: Duration::from_mins(1),
    };

    fn lobby() -> Lobby {
        Lobby::new(BOUNDS, Arc::default())
    }

    #[tokio::test]
    async fn a_turn_is_not_held_while_somebody_is_waited_for() {
        let lobby = lobby();
        let (started, go) = (AtomicUsize::new(0), Semaphore::new(0));
        let waits = || async {
            started.fetch_add(1, Ordering::Relaxed);
            drop(go.acquire().await.unwrap());
        };
        let address = IpAddr::from([192, 0, 2, 1]);
        let all = join_all((0..10).map(|_| lobby.receive(address, waits())));
        let watch = async {
            while started.load(Ordering::Relaxed) < 10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(
                lobby.turns.available_permits(),
                1,
                "all wait, and none holds it"
            );
            assert_eq!(lobby.waiting.len(), 10);
            go.add_permits(1);
        };
        tokio::join!(all, watch);
        assert_eq!(lobby.waiting.len(), 0);
    }

    /// Fills the room with peers of one network that never say a word.
    async fn fill(lobby: &Arc<Lobby>, address: IpAddr) -> Vec<tokio::task::JoinHandle<Left>> {
        let mut stalled = Vec::new();
        for _ in 0..BOUNDS.room {
            let place = lobby.room_for(address).await.unwrap();
            let lobby = lobby.clone();
            stalled.push(tokio::spawn(async move {
                let never = std::future::pending::<()>();
                let left = lobby.receive(address, never).await.unwrap_err();
                drop(place);
                left
            }));
        }
        while lobby.waiting.len() < BOUNDS.room {
            tokio::task::yield_now().await;
        }
        stalled
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_makes_room_at_once_for_another_network() {
        let lobby = Arc::new(lobby());
        let mut stalled = fill(&lobby, [192, 0, 2, 1].into()).await;
        let begun = tokio::time::Instant::now();
        let place = lobby.room_for([198, 51, 100, 1].into()).await.unwrap();
        assert!(begun.elapsed() < LOOK_AGAIN, "{:?}", begun.elapsed());
        assert!(
            matches!(stalled.remove(0).await.unwrap(), Left::SentAway),
            "the oldest"
        );
        assert!(!stalled[0].is_finished());
        drop(place);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_makes_room_for_its_own_network_after_a_while() {
        let lobby = Arc::new(lobby());
        let address = [192, 0, 2, 1].into();
        let stalled = fill(&lobby, address).await;
        let begun = tokio::time::Instant::now();
        let place = lobby.room_for(address).await.unwrap();
        let took = begun.elapsed();
        assert!(
            (BOUNDS.grace..BOUNDS.grace + 2 * LOOK_AGAIN).contains(&took),
            "{took:?}"
        );
        assert_eq!(stalled.iter().filter(|it| it.is_finished()).count(), 1);
        drop(place);
    }

    /// Where we are what is slow, nobody is sent away: that would be work for nothing.
    #[tokio::test(start_paused = true)]
    async fn who_waits_for_us_stays() {
        let lobby = Arc::new(lobby());
        let address = [192, 0, 2, 1].into();
        let turn = lobby.turns.clone().acquire_owned().await.unwrap();
        let mut handshakes = Vec::new();
        for _ in 0..BOUNDS.room {
            let place = lobby.room_for(address).await.unwrap();
            let lobby = lobby.clone();
            handshakes.push(tokio::spawn(async move {
                let done = lobby.receive(address, std::future::ready(())).await;
                drop(place);
                done.is_ok()
            }));
        }
        let another = lobby.room_for([198, 51, 100, 1].into());
        assert!(
            timeout(2 * BOUNDS.grace, another).await.is_err(),
            "there is no room"
        );
        drop(turn);
        for done in handshakes {
            assert!(done.await.unwrap());
        }
        drop(lobby.room_for(address).await.unwrap());
    }
}
