//! Where two trees differ.

use std::collections::{BTreeMap, HashSet};

use super::{ContentId, EntryKind, Listed, RepoPath, Tree, TreeEntry, TreeError};

/// The paths at which one tree differs from an earlier one.
///
/// A path stands here where something came, went, or became something else: then everything below it counts as
/// changed. What changed below a directory that is in both trees stands here by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    before: ContentId,
    after: ContentId,
    paths: HashSet<String>,
}

impl Changes {
    /// What leads from `before` to `after`; `None` where that is more than `limit` paths, so that reading everything
    /// again is as good.
    ///
    /// # Errors
    /// Where one of the trees cannot be read.
    pub fn between(
        before: &dyn Tree,
        after: &dyn Tree,
        limit: usize,
    ) -> Result<Option<Self>, TreeError> {
        let root = RepoPath::root();
        let (Some(old), Some(new)) = (before.entry(&root)?, after.entry(&root)?) else {
            return Ok(None);
        };
        let mut paths = HashSet::new();
        let mut ahead = if old == new { vec![] } else { vec![root] };
        // A repo may have any number of folders without a file that differs.
        let mut folders = 0;
        while let Some(dir) = ahead.pop() {
            folders += 1;
            for (name, is_in_both) in differing(before.list(&dir)?, after.list(&dir)?) {
                match String::from_utf8(name).map(|name| dir.join(&name)) {
                    Ok(path) if is_in_both => ahead.push(path),
                    Ok(path) => {
                        paths.insert(path.as_str().to_owned());
                    }
                    // What no path names changes its folder.
                    Err(_) => {
                        paths.insert(dir.as_str().to_owned());
                    }
                }
            }
            if paths.len() > limit || folders + ahead.len() > limit {
                return Ok(None);
            }
        }
        Ok(Some(Self {
            before: old.id,
            after: new.id,
            paths,
        }))
    }

    /// The id of the earlier tree's root.
    pub(crate) fn before(&self) -> ContentId {
        self.before
    }

    /// The id of the later tree's root.
    pub(crate) fn after(&self) -> ContentId {
        self.after
    }

    /// Whether something else may stand at `path` now. What stands below it does not matter.
    pub fn concern(&self, path: &RepoPath) -> bool {
        let mut path = path.as_str();
        loop {
            if self.paths.contains(path) {
                return true;
            }
            match path.rsplit_once('/') {
                Some((parent, _name)) => path = parent,
                None => return !path.is_empty() && self.paths.contains(""),
            }
        }
    }

    /// Whether something changed at or below `path`.
    pub fn reach_into(&self, path: &RepoPath) -> bool {
        let below = |changed: &String| {
            changed
                .strip_prefix(path.as_str())
                .is_some_and(|rest| path.is_root() || rest.starts_with('/'))
        };
        self.concern(path) || self.paths.iter().any(below)
    }
}

/// The names whose entries differ, and whether both are directories.
fn differing(before: Vec<Listed>, after: Vec<Listed>) -> Vec<(Vec<u8>, bool)> {
    let mut names = Vec::new();
    let mut old: BTreeMap<Vec<u8>, TreeEntry> = before
        .into_iter()
        .map(|listed| (listed.name, listed.entry))
        .collect();
    for Listed { name, entry } in after {
        match old.remove(&name) {
            Some(was) if was == entry => {}
            Some(was) => {
                let both = was.kind == EntryKind::Directory && entry.kind == EntryKind::Directory;
                names.push((name, both));
            }
            None => names.push((name, false)),
        }
    }
    names.extend(old.into_keys().map(|name| (name, false)));
    names
}
