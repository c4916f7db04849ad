//! The Git host as the operator's console: enrollment pull requests, previews, statuses, webhooks.
//!
//! The forge is of the test's own process and plays all three hosts over real repos; controller and agents are
//! processes. At the end of each test the forge must have nothing to complain about.

mod fake;
