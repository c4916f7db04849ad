//! What is written on everything that the agent makes in Podman. These labels are the inventory: they are where
//! the things are, so neither can be lost without the other.

/// For which device the agent made it. What has another one is somebody else's.
pub(super) const DEVICE: &str = "longshore.dev/device";
/// For which object, as its key prints.
pub(super) const OBJECT: &str = "longshore.dev/object";
/// From which content. What has another one is replaced.
pub(super) const REVISION: &str = "longshore.dev/revision";
/// How many seconds its processes get to end.
pub(super) const GRACE: &str = "longshore.dev/grace";
/// `disabled` where it stays when its object leaves the set; the name of the annotation, too.
pub(super) const PRUNE: &str = "longshore.dev/prune";
