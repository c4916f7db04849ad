//! Notices when somebody touches the directory.
//!
//! Only a hint: the reconciler's timer finds whatever is missed here. The agent's own writes wake it too, and
//! the pass that follows finds nothing to do.

use std::{path::Path, sync::Arc};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use crate::files::Folder;

#[derive(Debug, Default)]
pub(super) struct Watch {
    woken: Arc<Notify>,
    following: Option<Following>,
}

#[derive(Debug)]
struct Following {
    inode: (u64, u64),
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches the directory that is at `path` now.
    pub(super) fn follow(&mut self, path: &Path) {
        let inode = Folder::open(path).and_then(|folder| folder.inode());
        let Ok(inode) = inode else {
            self.following = None;
            return;
        };
        if self
            .following
            .as_ref()
            .is_some_and(|following| following.inode == inode)
        {
            return;
        }
        self.following = None;
        let woken = self.woken.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                woken.notify_one();
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => {
                self.following = Some(Following {
                    inode,
                    _watcher: watcher,
                });
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the directory is not watched; drift is found by the timer only");
            }
        }
    }

    /// Returns when something happened since the last call.
    pub(super) async fn disturbed(&self) {
        self.woken.notified().await;
    }
}
