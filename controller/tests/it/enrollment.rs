//! Enrollment by branches and pull requests: a real repo, a real store, and a host of the tests' own.

mod batches;
mod decisions;
mod edits;
mod host;
mod troubles;
mod world;
