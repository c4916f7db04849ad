//! The whole system on one machine: real processes, real Git, real kustomize.
//!
//! ```text
//! World ── Controller (process) ◀── HTTPS ── Api, Cli, Candidate (a device that enrolls by hand)
//!   │          ▲        ▲
//!   │          │        └── mutual TLS ───── Agent (process), edge::connect (a device by hand)
//!   │       fetch, push
//!   └────── FleetRepo (bare) ◀── git push ── WorkingCopy
//! ```
//!
//! Everything lives in one temporary directory and ends with the [`World`]. Nothing waits for a fixed time:
//! [`eventually`] looks until a condition holds, or gives up with what it saw last. What the processes said
//! goes to stderr when they are dropped; a test runner shows it when the test failed.
#![warn(missing_docs)]
// The shapes of the Git hosts' objects are long.
#![recursion_limit = "256"]

pub mod agent;
pub mod api;
pub mod balancer;
pub mod cli;
pub mod controller;
pub mod edge;
pub mod enroll;
pub mod forge;
pub mod kubernetes;
pub mod metrics;
pub mod pki;
pub mod podman;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod replicas;
pub mod repo;
pub mod simulated;
pub mod wait;
pub mod webhook;
pub mod world;

pub use agent::Agent;
pub use api::Api;
pub use balancer::Balancer;
pub use controller::{Controller, ControllerOptions};
pub use enroll::Candidate;
pub use forge::Forge;
pub use metrics::Metrics;
pub use process::Process;
pub use replicas::Replicas;
pub use repo::{FleetRepo, WorkingCopy};
pub use wait::eventually;
pub use world::{World, WorldOptions};
