//! Requests' bodies: bounded in size, in the time that they may take to come, and in what all of them take together.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody as _, to_bytes},
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{ApiError, Peer};
use crate::{
    crowd::{Crowd, room},
    rate::network,
};

/// The largest body of a call, in bytes.
const MAX_BODY: usize = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);
/// What bodies that are on their way may take together, in bytes.
const ALL: usize = 32 * 1024 * 1024;
/// How long a body may keep another one of its own network waiting.
const GRACE: Duration = Duration::from_secs(1);

/// The room for bodies that are on their way. Where there is none, one that comes slowly has to go: of the network
/// that has most of them.
#[derive(Debug)]
pub(super) struct Bodies {
    room: Arc<Semaphore>,
    coming: Crowd<IpAddr>,
}

impl Default for Bodies {
    fn default() -> Self {
        Self::of(ALL)
    }
}

impl Bodies {
    fn of(bytes: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(bytes)),
            coming: Crowd::default(),
        }
    }

    /// Reads a body whole that comes from `network`.
    async fn read(&self, network: IpAddr, body: Body) -> Result<Bytes, ApiError> {
        let bytes = body.size_hint().upper().unwrap_or(u64::MAX);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bytes = bytes.min(u32::try_from(MAX_BODY).unwrap_or(u32::MAX));
        let _room = room(self.room.clone(), bytes, || {
            self.coming.send_away(&network, GRACE, Duration::ZERO);
        })
        .await;
        let go = CancellationToken::new();
        let _coming = self.coming.enter(network, Duration::ZERO, go.clone());
        let read = go.run_until_cancelled(read(body, MAX_BODY));
        read.await.unwrap_or_else(|| {
            Err(ApiError::refused(
                StatusCode::REQUEST_TIMEOUT,
                "the body came slowly while others waited",
            ))
        })
    }
}

/// Reads a body whole.
///
/// # Errors
/// `413` where it is larger than `limit` bytes, `408` where it takes too long.
pub(super) async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(DEADLINE, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(ApiError::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body could not be read whole, or is larger than {limit} bytes"),
        )),
        Err(_elapsed) => Err(ApiError::refused(
            StatusCode::REQUEST_TIMEOUT,
            "the body took too long to come",
        )),
    }
}

/// Lets a request pass when its body is there.
pub(super) async fn bounded(
    State(bodies): State<Arc<Bodies>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>();
    let address = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |Peer(peer)| peer.ip());
    match bodies.read(network(address), body).await {
        Ok(bytes) => {
            next.run(Request::from_parts(parts, Body::from(bytes)))
                .await
        }
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, future::join_all, stream};

    use super::*;

    /// A body of unknown length whose end does not come.
    fn stalls() -> Body {
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{"))]);
        Body::from_stream(first.chain(stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_stall_keep_no_other_ones_out() {
        let bodies = Bodies::of(4 * MAX_BODY);
        let [here, there] = [[192, 0, 2, 1], [198, 51, 100, 1]].map(IpAddr::from);
        let stalled = join_all((0..4).map(|_| bodies.read(here, stalls())));
        let others = async {
            tokio::task::yield_now().await;
            let begun = tokio::time::Instant::now();
            let whole = bodies.read(there, Body::from("x".repeat(MAX_BODY))).await;
            assert_eq!(whole.unwrap().len(), MAX_BODY);
            assert!(begun.elapsed() < GRACE, "{:?}", begun.elapsed());
            let whole = bodies.read(here, Body::from("{}")).await;
            assert_eq!(whole.unwrap().len(), 2);
            assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
        };
        let (stalled, ()) = tokio::join!(stalled, others);
        assert!(stalled.iter().all(Result::is_err));
    }
}
