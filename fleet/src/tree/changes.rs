//! Where two trees differ.

use std::collections::BTreeSet;

use super::{ContentId, EntryKind, RepoPath, Tree, TreeEntry, TreeError};

/// The paths at which one tree differs from an earlier one.
///
/// A path stands here where something came, went, or became something else: then everything below it counts as
/// changed. What changed below a directory that is in both trees stands here by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    before: ContentId,
    after: ContentId,
    paths: BTreeSet<String>,
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
        let mut paths = BTreeSet::new();
        let mut ahead = if old == new { vec![] } else { vec![root] };
        // A repo may have any number of folders without a file that differs.
        let mut folders = 0;
        while let Some(dir) = ahead.pop() {
            folders += 1;
            let (before, after) = (before.list(&dir)?, after.list(&dir)?);
            for (name, was, is) in before.differences(&after) {
                let is_directory = |entry: Option<TreeEntry>| {
                    entry.map(|it| it.kind) == Some(EntryKind::Directory)
                };
                match std::str::from_utf8(name).map(|name| dir.join(name)) {
                    Ok(path) if is_directory(was) && is_directory(is) => ahead.push(path),
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
        let path = path.as_str();
        let is_it = |changed: &str| {
            changed.is_empty()
                || path
                    .strip_prefix(changed)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // A commit changes a few paths, and is asked of very many.
        if self.paths.len() <= 16 {
            return self.paths.iter().any(|changed| is_it(changed));
        }
        let mut at = path;
        loop {
            if self.paths.contains(at) {
                return true;
            }
            match at.rsplit_once('/') {
                Some((parent, _name)) => at = parent,
                None => return self.paths.contains(""),
            }
        }
    }

    /// What follows `dir` in each of the paths that are below it.
    pub(crate) fn below(&self, dir: &RepoPath) -> impl Iterator<Item = &str> {
        let dir = if dir.is_root() {
            String::new()
        } else {
            format!("{dir}/")
        };
        let from = self.paths.range(dir.clone()..).map(String::as_str);
        from.map_while(move |path| path.strip_prefix(dir.as_str()))
    }
}
