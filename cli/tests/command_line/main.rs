//! The real program, run as people and scripts run it, against real kustomize, real git and a real TLS server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers fail by panicking"
)]

mod connect;
mod connection;
mod controller;
mod fixtures;
mod fleet_repo;
mod harness;
mod help;
mod operate;
mod preview;
