//! The real program, run as people and scripts run it, against real kustomize, real git and a real TLS server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers fail by panicking"
)]

#[path = "command_line/connection.rs"]
mod connection;
#[path = "command_line/controller.rs"]
mod controller;
#[path = "command_line/fleet_repo.rs"]
mod fleet_repo;
#[path = "command_line/harness.rs"]
mod harness;
#[path = "command_line/help.rs"]
mod help;
#[path = "command_line/operate.rs"]
mod operate;
