//! Previews of real commits, built by the real kustomize and counted.

mod engine;
mod world;
