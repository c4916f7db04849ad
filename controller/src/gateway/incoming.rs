//! Memory for messages of which only a part has come, of all sessions together.
//!
//! The WebSocket library keeps a message until it is whole, and a device may never send its end. So what has come of
//! one is counted, and past a little it takes room out of one amount for all. Where there is none, the connection
//! ends.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use longshore_protocol::TenantName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{shares::Shares, tls::Stream};

/// Of all sessions, in bytes.
const ALL: usize = 64 * 1024 * 1024;
/// Of one tenant's.
const OF_TENANT: usize = 24 * 1024 * 1024;
/// How much of a message may have come without being counted, in bytes.
const LITTLE: usize = 16 * 1024;
/// In what steps the rest is, in bytes.
const STEP: u32 = 16 * 1024;
/// What a frame has beside its payload, at least (RFC 6455, section 5.2): that of a masked control frame, exactly.
const HEADER: usize = 6;

/// The room of all sessions.
#[derive(Debug)]
pub struct Incoming {
    all: Arc<Semaphore>,
    tenants: Shares,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL)),
            tenants: Shares::of(OF_TENANT),
        }
    }
}

impl Incoming {
    /// Counts what comes of the messages of one of the tenant's devices.
    pub(super) fn count(&self, tenant: &TenantName, stream: Stream) -> Counted {
        Counted {
            stream,
            unfinished: Unfinished::new(self.tenants.get(tenant), self.all.clone()),
        }
    }
}

/// A connection whose messages are counted until they are whole.
#[derive(Debug)]
pub(super) struct Counted {
    stream: Stream,
    unfinished: Unfinished,
}

impl Counted {
    /// This came whole. Messages may stand between the parts of another one, if they are of the library's own.
    pub(super) fn came(&mut self, message: &Message) {
        self.unfinished.came(message);
    }

    /// So many of the bytes that came had been asked for.
    pub(super) fn asked_for(&mut self, bytes: usize) {
        self.stream.get_mut().0.asked_for(bytes);
    }
}

#[derive(Debug)]
struct Unfinished {
    of_tenant: Arc<Semaphore>,
    of_all: Arc<Semaphore>,
    bytes: usize,
    taken: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Unfinished {
    /// Out of these, in bytes.
    fn new(of_tenant: Arc<Semaphore>, of_all: Arc<Semaphore>) -> Self {
        Self {
            of_tenant,
            of_all,
            bytes: 0,
            taken: None,
        }
    }

    /// More came. Says whether there is room for that.
    fn grows(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        loop {
            let taken = self.taken.as_ref();
            let room = LITTLE + taken.map_or(0, |(permit, _)| permit.num_permits());
            if self.bytes <= room {
                return true;
            }
            let of_tenant = self.of_tenant.clone().try_acquire_many_owned(STEP);
            let of_all = self.of_all.clone().try_acquire_many_owned(STEP);
            let (Ok(of_tenant), Ok(of_all)) = (of_tenant, of_all) else {
                return false;
            };
            match &mut self.taken {
                Some(taken) => {
                    taken.0.merge(of_tenant);
                    taken.1.merge(of_all);
                }
                None => self.taken = Some((of_tenant, of_all)),
            }
        }
    }

    fn came(&mut self, message: &Message) {
        match message {
            Message::Ping(_) | Message::Pong(_) => {
                self.bytes = self.bytes.saturating_sub(HEADER + message.len());
            }
            _ => {
                self.bytes = 0;
                self.taken = None;
            }
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if self.unfinished.grows(buffer.filled().len() - before) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(io::Error::other(
            "too many messages have come in part; this one has to come again",
        )))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::Bytes;

    use super::*;

    const SIZE: usize = 100 * 1024;

    fn room(bytes: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(bytes))
    }

    #[test]
    fn messages_in_parts_have_a_bound_together() {
        let (of_tenant, of_all) = (room(2 * SIZE), room(10 * SIZE));
        let new = || Unfinished::new(of_tenant.clone(), of_all.clone());
        let mut messages = [new(), new(), new(), new()];
        let fits = messages.iter_mut().map(|it| it.grows(SIZE));
        assert_eq!(fits.collect::<Vec<_>>(), [true, true, false, false]);
        let [first, _, third, _] = &mut messages;
        first.came(&Message::binary(Bytes::new()));
        assert!(third.grows(0), "there is room again");
        assert!(first.grows(LITTLE), "a little needs none");
        for message in &mut messages {
            message.came(&Message::binary(Bytes::new()));
        }
        assert_eq!(of_tenant.available_permits(), 2 * SIZE);
        assert_eq!(of_all.available_permits(), 10 * SIZE);
    }

    /// A device that only pings has nothing unfinished, however long that goes on; and one that pings between parts has
    /// as much as before.
    #[test]
    fn pings_are_whole_and_finish_nothing() {
        let mut idle = Unfinished::new(room(0), room(0));
        let ping = Message::Ping(Bytes::from_static(b"here"));
        for _ in 0..100_000 {
            assert!(idle.grows(HEADER + 4));
            idle.came(&ping);
        }
        let mut partly = idle;
        assert!(partly.grows(LITTLE - 100));
        for _ in 0..1000 {
            assert!(partly.grows(HEADER));
            partly.came(&Message::Ping(Bytes::new()));
        }
        assert!(partly.grows(100) && !partly.grows(1));
    }
}
