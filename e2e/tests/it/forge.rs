//! The Git host as the operator's console: enrollment pull requests, previews, statuses, webhooks.
//!
//! The forge is of the test's own process and plays all three hosts over real repos; controller and agents are
//! processes. The controller polls once in an hour, so that webhooks bring all news, except where they are lost.
//! At the end of each test the forge must have nothing to complain about.

mod batches;
mod enrolling;
mod fake;
mod faults;
mod journey;
mod previews;
mod statuses;
mod webhooks;

/// The enrollment branch of a device that has one of its own.
fn branch_of(device: &str) -> String {
    format!("longshore/enroll/{device}")
}
