//! The promises that Longshore makes to its users, each kept by real processes.
//!
//! Run it with `scripts/test`, which builds the programs and starts the PostgreSQL that some tests need.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a helper of a test fails as loudly as the test, and tables are long"
)]

mod chaos;
mod connecting;
mod demo;
mod doctor;
mod edge;
mod enrolling;
mod fleet_faults;
mod forge;
mod hosting;
mod journey;
mod kubernetes;
mod logs;
mod one_port;
mod previews;
mod removals;
mod renewing;
mod replicas;
mod repo_faults;
mod restarts;
mod runtimes;
mod settings;
mod sources;
mod tenants;
mod webhooks;
