//! From a commit in a real repo to desired states in a real store. Only the builds are not kustomize's: they
//! are counted, and can be made to hang or fail.

mod devices;
mod labels;
mod random;
pub mod render;
mod revisions;
pub mod world;
