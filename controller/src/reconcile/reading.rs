//! What the repo says at one commit, read at the cost of what differs from the one before.

use std::sync::Arc;

use git2::Oid;
use longshore_fleet::{
    Changes, ClosureCache, DeviceSpec, Fleet, FleetError, Reader, RepoPath, Tree, TreeError,
};
use longshore_protocol::Digest;

use crate::store::devices::Member;

/// How many changed paths are followed. Beyond that, everything is read again.
const MAX_CHANGES: usize = 20_000;

/// What the repo says at one commit.
pub struct Reading {
    /// The commit.
    pub commit: Oid,
    /// The fleet, or why there is none.
    pub fleet: Result<Arc<Fleet>, String>,
    pub(super) tree: Arc<dyn Tree>,
}

/// What may be otherwise than at the commit before.
#[derive(Debug)]
pub(super) struct News {
    /// The keys of devices whose files changed, before and after.
    pub keys: Vec<Digest>,
    /// The overlays whose closures are not known any more.
    pub overlays: Vec<RepoPath>,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading")
            .field("commit", &self.commit)
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
}

impl Reading {
    /// What the repo says of this device.
    pub(super) fn spec(&self, member: &Member) -> Option<&Arc<DeviceSpec>> {
        self.fleet.as_ref().ok()?.with_key(&member.public_key)
    }

    /// Reads `commit`, whose tree is `tree`, with what is remembered of `last`. Returns what is news, unless anything may
    /// be.
    pub(super) fn take(
        commit: Oid,
        tree: Arc<dyn Tree>,
        root: &RepoPath,
        last: Option<&Self>,
        reader: &mut Reader,
        closures: &mut ClosureCache,
    ) -> Result<(Self, Option<News>), TreeError> {
        let changes = last.and_then(|last| {
            let changes = Changes::between(&*last.tree, &*tree, MAX_CHANGES);
            Some((last.fleet.as_ref().ok(), changes.ok()??))
        });
        let overlays = if let Some((_before, changes)) = &changes {
            closures.advance(changes)
        } else {
            closures.forget();
            None
        };
        // A reading that failed says nothing of where the next one has to look.
        if let Some((Some(before), changes)) = &changes
            && let Some((fleet, devices)) = reader.advance(&*tree, changes)?
        {
            let specs = devices.iter().flat_map(|name| {
                let fleets = [&before.devices, &fleet.devices];
                fleets.into_iter().filter_map(|devices| devices.get(name))
            });
            let keys = specs.filter_map(|spec| spec.public_key).collect();
            let news = overlays.map(|overlays| News { keys, overlays });
            let fleet = Ok(Arc::new(fleet));
            return Ok((
                Self {
                    commit,
                    fleet,
                    tree,
                },
                news,
            ));
        }
        let fleet = match reader.read(&*tree, root) {
            Err(FleetError::Tree(error)) => return Err(error),
            fleet => fleet.map(Arc::new).map_err(|error| error.to_string()),
        };
        let reading = Self {
            commit,
            fleet,
            tree,
        };
        Ok((reading, None))
    }
}
