//! Which of the public listener's connections keep it waiting: those of which no request is being answered.
//!
//! Where there are as many connections as there may be, such a one has to go for a new one: of the network that has
//! most of these. So connections that are only kept open, or whose request never becomes whole, keep nobody out.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    crowd::{Crowd, Member, room},
    rate::network,
};

/// How long a connection may keep another one of its own network waiting.
const GRACE: Duration = Duration::from_secs(2);

/// All connections.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    places: Arc<Semaphore>,
    idle: Crowd<IpAddr>,
}

/// One connection. It counts as idle until a request comes.
#[derive(Clone, Debug)]
pub(super) struct Presence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    idle: Crowd<IpAddr>,
    network: IpAddr,
    go: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    requests: usize,
    member: Option<Member<IpAddr>>,
}

/// A request that is being answered, until this is dropped.
#[derive(Debug)]
struct Answering(Presence);

impl Connections {
    /// Room for so many.
    pub(super) fn of(most: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(most)),
            idle: Crowd::default(),
        }
    }

    /// Waits for a place for a connection from `address`.
    pub(super) async fn place(&self, address: IpAddr) -> Option<OwnedSemaphorePermit> {
        let network = network(address);
        room(self.places.clone(), 1, || {
            self.idle.send_away(&network, GRACE, Duration::ZERO);
        })
        .await
    }

    /// A connection from `address` that has a place.
    pub(super) fn enter(&self, address: IpAddr) -> Presence {
        let presence = Presence(Arc::new(Inner {
            idle: self.idle.clone(),
            network: network(address),
            go: CancellationToken::new(),
            state: Mutex::new(State {
                requests: 0,
                member: None,
            }),
        }));
        presence.state().member = Some(presence.idle());
        presence
    }
}

impl Presence {
    /// Until the connection has to go.
    pub(super) async fn over(&self) {
        self.0.go.cancelled().await;
    }

    /// Answers a request; until the answer is out, the connection is not idle.
    pub(super) async fn answer<E>(
        self,
        answer: impl Future<Output = Result<Response, E>>,
    ) -> Result<Response, E> {
        let answering = self.begin();
        Ok(answer.await?.map(|body| {
            Body::new(Kept {
                body,
                _answering: answering,
            })
        }))
    }

    fn begin(self) -> Answering {
        {
            let mut state = self.state();
            state.requests += 1;
            state.member = None;
        }
        Answering(self)
    }

    fn idle(&self) -> Member<IpAddr> {
        let inner = &self.0;
        inner
            .idle
            .enter(inner.network, Duration::ZERO, inner.go.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        if state.requests == 0 {
            state.member = Some(self.0.idle());
        }
    }
}

/// A body that remembers whose answer it is.
struct Kept {
    body: Body,
    _answering: Answering,
}

impl hyper::body::Body for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use futures_util::FutureExt as _;

    use super::*;

    fn is_over(presence: &Presence) -> bool {
        presence.over().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_makes_room_and_one_that_is_answered_stays() {
        let connections = Connections::of(2);
        let [here, there] = [[192, 0, 2, 1], [198, 51, 100, 1]].map(IpAddr::from);
        let places = [connections.place(here).await, connections.place(here).await];
        let [answered, idle] = [connections.enter(here), connections.enter(here)];
        let answer = Response::new(Body::from("an answer"));
        let answer = answered.clone().answer(ready(Ok::<_, Infallible>(answer)));
        let answer = answer.await.unwrap();
        assert!(
            connections.place(there).now_or_never().is_none(),
            "both are still there"
        );
        assert!(is_over(&idle) && !is_over(&answered));
        drop(answer);
        assert!(connections.place(there).now_or_never().is_none());
        assert!(is_over(&answered), "its answer is out");
        drop(places);
        assert!(connections.place(there).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_one_network_have_a_while() {
        let connections = Connections::of(1);
        let here = IpAddr::from([192, 0, 2, 1]);
        let place = connections.place(here).await;
        let only = connections.enter(here);
        let another = connections.place(here);
        tokio::select! {
            _ = another => unreachable!("the place is never given back"),
            () = only.over() => {}
        }
        drop(place);
    }
}
