//! What is let in, what is kept out, and that nothing makes the crate panic, host by host.
//!
//! The bodies below `tests/<host>/` are written for these tests, with the members that the hosts document. GitHub's
//! are also its own recorded ones, from npm's `@octokit/webhooks-examples` (`octokit.rs`).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers fail by panicking"
)]

mod bitbucket;
mod generic;
mod gitea;
mod github;
mod gitlab;
mod hosts;
mod octokit;
mod sample;
