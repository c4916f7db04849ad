//! From a fleet repo's tree to per-device objects: the pure part of the way of the data.
//!
//! ```text
//! Tree ──fleet──▶ Fleet (devices, problems)
//!   │                │ overlay of each device
//!   └──closure──▶ Closure (input key, files) ──render──▶ objects ──variables──▶ a device's objects
//! ```
//!
//! * [`tree`]: what a commit looks like to us, and [`WorkTree`], a directory on disk seen that way.
//! * [`fleet`]: `fleet.yaml` and `devices/*/device.yaml`, parsed strictly.
//! * [`closure`]: everything that an overlay's build reads, as one [`InputKey`].
//! * [`render`]: the build itself, in a confined kustomize process that sees the closure and nothing else.
//! * [`variables`]: `${NAME}` references, replaced per device.
//! * [`difference`]: what changed between two lists of objects, as people read it.
//!
//! The controller and the command line (`longshore render`) both stand on this crate. Except for [`render`]
//! and [`WorkTree`], nothing here does I/O, knows a clock or is async.
#![warn(missing_docs)]

pub mod closure;
pub mod difference;
pub mod fleet;
pub mod problem;
pub mod render;
pub mod tree;
pub mod variables;
mod yaml;

pub use closure::{
    Closure, ClosureCache, ClosureError, ClosureFile, Closures, InputKey, OverlayClosures,
};
pub use fleet::{
    DeviceSpec, EnrollmentSettings, Fleet, FleetError, FleetSettings, MaxDecommission, Reader,
    device_yaml, labels_with_facts,
};
pub use problem::Problem;
pub use render::{DetectError, Kustomize, Render, RenderError, RenderFuture, RenderSettings};
pub use tree::{
    Changes, ContentId, EntryKind, InvalidPath, Listed, Listing, RepoPath, Tree, TreeEntry,
    TreeError, WorkTree,
};
pub use variables::{SubstituteError, Variables};
