//! The two ends of a session as state machines without I/O.
//!
//! ```text
//! device                                   control
//!   │ ── Hello{ledger} ──────────────────────▶ │  LoadDesired
//!   │ ◀─────────────────────────── Welcome ──  │
//!   │ ◀──────── Delta{base, target, upserts} ─ │  the device holds `base`
//!   │ ── Accepted ───────────────────────────▶ │  after verify and fsync
//!   │ ◀───────────── Offer{target, entries} ── │  otherwise
//!   │ ── Need{what it lacks} ────────────────▶ │
//!   │ ◀──────────────────── Objects{parts} ──  │
//!   │ ── Accepted ───────────────────────────▶ │
//! ```
//!
//! Beside that, logs that somebody asks for: see `logs`.
//!
//! Each machine is a function `(state, event, now) -> (state, effects)`. `now` is milliseconds of any
//! monotonic clock. The driver carries out the effects of one event, in order, before it hands in the next.
//!
//! Both machines survive loss, duplication, delay and reordering of messages: generations decide what is
//! old, digests decide what is right, and [`RESEND_AFTER_MS`] decides when to say it again.

pub mod control;
pub mod device;
mod holding;
mod logs;

pub use control::ControlSession;
pub use device::DeviceSession;
pub use holding::Holding;

/// After how long without an answer a machine repeats itself on `Tick`, in milliseconds.
pub const RESEND_AFTER_MS: u64 = 10_000;
