//! The agent of one device.
//!
//! ```text
//!            ┌────────── link ──────────┐  Apply   ┌───────────┐  pass   ┌─────────┐
//! controller │ WebSocket ─ DeviceSession ├────────▶│ reconcile ├────────▶│ runtime │
//!            └───────────┬──────────────┘  watch   └─────┬─────┘         └─────────┘
//!                  Store │        ▲ report               │ conditions
//!                        ▼        └──────────────────────┘
//!                     ledger
//! ```
//!
//! [`run`] wires it; [`enroll`] comes before it, once. What runs is decided by the [`ledger`] alone, so a
//! device without a network starts, runs and repairs what it accepted last.
#![warn(missing_docs)]

pub mod backoff;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod enroll;
pub mod facts;
pub mod files;
mod http_client;
pub mod identity;
pub mod journal;
pub mod ledger;
pub mod link;
pub mod logs;
pub mod network;
pub mod process;
pub mod reconcile;
mod renew;
pub mod report;
pub mod run;
pub mod runtime;
pub mod sim;
pub mod tls;
pub mod update;
pub mod watchdog;

/// An error and its causes in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
