//! Previews of real commits, built by the real kustomize and counted.

mod engine;
mod host;
mod pull_requests;
mod random;
mod world;
