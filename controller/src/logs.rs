//! Logs on demand: between an operator's call and a device's session.
//!
//! ```text
//! call ─▶ Logs::open ─▶ the session's openings ─▶ OpenLogs ─▶ device
//! call ◀─ Reader ◀─ at most a window of chunks ◀─ LogChunk ─ device
//!          └─ what was taken ─▶ GrantLogs ─▶ device
//! ```
//!
//! A chunk that the reader has not taken stays in memory, and the device may send no more than a window of them
//! ([`LOG_WINDOW`](longshore_protocol::message::LOG_WINDOW)), so a reader that is slow slows its log down and nothing
//! else. How many logs are read at a time has a bound, for each device, each tenant and the whole controller. Where
//! nobody asks, there is nothing.

mod named;

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::body::Bytes;
use longshore_protocol::{
    DeviceId, TenantName,
    message::{LOG_WINDOW, LogEnd, LogRequest, StreamId, log_cost},
    session::control::Event,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

pub use self::named::{NotNamed, named};
use crate::{
    hub::{Hub, Session},
    metrics::Metrics,
    shares::Shares,
};

/// How many logs are read at a time.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// By all together.
    pub all: usize,
    /// By one tenant.
    pub tenant: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            all: 256,
            tenant: 64,
        }
    }
}

/// Lets operators read devices' logs.
#[derive(Debug)]
pub struct Logs {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    all: Arc<Semaphore>,
    tenants: Shares,
    next: AtomicU64,
}

/// Why a log cannot be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// The device is not connected to this replica.
    NotHere,
    /// As many logs are being read as may be.
    TooMany,
}

impl Logs {
    /// For the devices of this hub.
    pub fn new(hub: Arc<Hub>, bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        Self {
            hub,
            metrics,
            all: Arc::new(Semaphore::new(bounds.all)),
            tenants: Shares::of(bounds.tenant),
            next: AtomicU64::new(1),
        }
    }

    /// Asks a connected device of this tenant for a log.
    ///
    /// # Errors
    /// Where the device is not here, or too many logs are being read.
    pub fn open(
        &self,
        tenant: &TenantName,
        device: &DeviceId,
        request: LogRequest,
    ) -> Result<Reader, NotOpened> {
        let of_tenant = self.tenants.get(tenant).try_acquire_owned();
        let of_all = self.all.clone().try_acquire_owned();
        let (Ok(of_tenant), Ok(of_all)) = (of_tenant, of_all) else {
            return Err(NotOpened::TooMany);
        };
        // What costs least makes most chunks of a window; the one more is for the end.
        let most = usize::try_from(LOG_WINDOW / log_cost(0)).unwrap_or(usize::MAX) + 1;
        let (sender, pieces) = mpsc::channel(most);
        let taken = Arc::<Taken>::default();
        let opening = Opening {
            stream: self.next.fetch_add(1, Ordering::Relaxed),
            request,
            writer: Writer {
                pieces: sender,
                taken: taken.clone(),
            },
        };
        let session = self.hub.ask(device, opening).ok_or(NotOpened::NotHere)?;
        self.metrics.log_streams.inc();
        Ok(Reader {
            pieces,
            taken,
            session,
            metrics: self.metrics.clone(),
            _of_tenant: of_tenant,
            _of_all: of_all,
        })
    }
}

/// A log that a session is asked for.
#[derive(Debug)]
pub struct Opening {
    /// How it is called.
    pub stream: StreamId,
    /// Which one, and how much of it.
    pub request: LogRequest,
    /// Where it goes.
    pub writer: Writer,
}

/// What comes of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Some of it. The first one says that it is open, and may be empty.
    Data(Bytes),
    /// It is over.
    End(LogEnd),
}

/// What the reader did since the session looked last.
#[derive(Debug, Default)]
struct Taken {
    cost: AtomicU64,
    gone: AtomicBool,
}

/// The session's end of a log.
#[derive(Debug)]
pub struct Writer {
    pieces: mpsc::Sender<Piece>,
    taken: Arc<Taken>,
}

impl Writer {
    /// Hands on what came. Says whether there was room, which there is for a device that keeps to its credit.
    pub fn put(&self, piece: Piece) -> bool {
        !matches!(
            self.pieces.try_send(piece),
            Err(mpsc::error::TrySendError::Full(_))
        )
    }

    /// Whether nobody reads any more.
    pub fn is_gone(&self) -> bool {
        self.taken.gone.load(Ordering::Acquire)
    }

    /// What the reader did since this was asked last, for the session's machine.
    pub fn news(&self, stream: StreamId) -> Option<Event> {
        if self.is_gone() {
            return Some(Event::CloseLogs { stream });
        }
        let cost = self.taken.cost.swap(0, Ordering::AcqRel);
        (cost > 0).then_some(Event::LogsTaken { stream, cost })
    }
}

/// The operator's end of a log. The device is told when it is dropped.
#[derive(Debug)]
pub struct Reader {
    pieces: mpsc::Receiver<Piece>,
    taken: Arc<Taken>,
    session: Weak<Session>,
    metrics: Arc<Metrics>,
    _of_tenant: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Reader {
    /// What comes next; `None` where the device has disconnected.
    pub async fn next(&mut self) -> Option<Piece> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same, to be polled. Whatever is returned counts as taken, and the device may send as much again.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        let piece = ready!(self.pieces.poll_recv(cx));
        if let Some(Piece::Data(data)) = &piece {
            self.metrics.log_bytes.inc_by(data.len() as u64);
            let cost = log_cost(data.len());
            let before = self.taken.cost.fetch_add(cost, Ordering::AcqRel);
            // The session is woken for much, not for each line.
            if before + cost >= LOG_WINDOW / 2 {
                self.tell();
            }
        }
        Poll::Ready(piece)
    }

    fn tell(&self) {
        if let Some(session) = self.session.upgrade() {
            session.tend_logs();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.metrics.log_streams.dec();
        self.taken.gone.store(true, Ordering::Release);
        self.tell();
    }
}

/// What a session is asked for and has not looked at.
#[derive(Debug, Default)]
pub struct Openings(Mutex<Vec<Opening>>);

impl Openings {
    /// One more.
    pub fn add(&self, opening: Opening) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(opening);
    }

    /// All of them.
    pub fn take(&self) -> Vec<Opening> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
