//! The controller's parts at their borders: the store on both engines, sources against real Git repos, and the
//! way from a commit to desired states with a builder that the tests hold in their hands.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a helper of a test fails as loudly as the test"
)]

mod authority;
mod enrollment;
mod forge;
mod gateway;
mod preview;
mod readme;
mod reconcile;
mod repo;
mod source;
mod store;
