//! Paths inside a repo.

use std::{fmt, sync::Arc};

/// A path inside a repo: relative, `/`-separated, without empty, `.` or `..` components. The root is empty.
///
/// Cheap to clone. Ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath(Arc<str>);

/// Why a text is no path inside the repo.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// It starts with `/`.
    #[error("the path `{0}` is absolute; paths in a fleet repo are relative")]
    Absolute(String),
    /// Its `..` components lead above the root.
    #[error("the path `{0}` leaves the repo")]
    Escapes(String),
    /// It holds a NUL character.
    #[error("the path `{0}` holds a NUL character")]
    Nul(String),
}

impl RepoPath {
    /// The repo's root.
    pub fn root() -> Self {
        Self(Arc::from(""))
    }

    /// The path that `text` names from the root; `.` and empty components vanish, `..` goes up.
    ///
    /// # Errors
    /// Where `text` is absolute, or leaves the repo.
    pub fn new(text: &str) -> Result<Self, InvalidPath> {
        Self::root().resolve(text)
    }

    /// The path that `relative` names from this directory, by text alone: symlinks are not looked at.
    ///
    /// # Errors
    /// Where `relative` is absolute, or leaves the repo.
    pub fn resolve(&self, relative: &str) -> Result<Self, InvalidPath> {
        let quoted = || relative.escape_debug().to_string();
        if relative.starts_with('/') {
            return Err(InvalidPath::Absolute(quoted()));
        }
        if relative.contains('\0') {
            return Err(InvalidPath::Nul(quoted()));
        }
        let mut components: Vec<&str> = self.components().collect();
        for component in relative.split('/') {
            match component {
                "" | "." => {}
                ".." => {
                    components
                        .pop()
                        .ok_or_else(|| InvalidPath::Escapes(quoted()))?;
                }
                name => components.push(name),
            }
        }
        Ok(Self(components.join("/").into()))
    }

    /// The entry `name` of this directory. A `/` in `name` separates components; nothing can lead upwards.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        let below = name
            .split('/')
            .filter(|part| !matches!(*part, "" | "." | ".."));
        let components: Vec<&str> = self.components().chain(below).collect();
        Self(components.join("/").into())
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        Some(Self(
            self.0
                .rsplit_once('/')
                .map_or("", |(parent, _name)| parent)
                .into(),
        ))
    }

    /// The last component; `None` for the root.
    pub fn name(&self) -> Option<&str> {
        self.components().last()
    }

    /// Its components, from the root down.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|component| !component.is_empty())
    }

    /// Whether it is inside of `dir`, at any depth.
    pub fn is_below(&self, dir: &Self) -> bool {
        match self.0.strip_prefix(dir.as_str()) {
            Some(rest) => rest.starts_with('/') || dir.is_root() && !rest.is_empty(),
            None => false,
        }
    }

    /// Whether it is the repo's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The text, empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for RepoPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoPath {
    /// The text, `.` for the root; characters that would disturb a line of text are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        self.0.chars().try_for_each(|char| {
            if char.is_control() {
                write!(f, "{}", char.escape_default())
            } else {
                write!(f, "{char}")
            }
        })
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn resolves_by_text() {
        let dir = RepoPath::new("devices/a").unwrap();
        for (relative, expected) in [
            ("b", "devices/a/b"),
            ("./b//c/.", "devices/a/b/c"),
            ("../../groups/kiosk", "groups/kiosk"),
            ("../..", ""),
            ("", "devices/a"),
        ] {
            assert_eq!(
                dir.resolve(relative).unwrap().as_str(),
                expected,
                "{relative}"
            );
        }
        assert!(matches!(
            dir.resolve("../../.."),
            Err(InvalidPath::Escapes(_))
        ));
        assert!(matches!(
            dir.resolve("../../../devices/a"),
            Err(InvalidPath::Escapes(_))
        ));
        assert!(matches!(dir.resolve("/etc"), Err(InvalidPath::Absolute(_))));
        assert!(matches!(dir.resolve("a\0b"), Err(InvalidPath::Nul(_))));
        assert_eq!(dir.join("../x").as_str(), "devices/a/x");
        assert_eq!(dir.parent().unwrap().as_str(), "devices");
        assert_eq!(RepoPath::root().parent(), None);
        assert_eq!(RepoPath::root().to_string(), ".");
    }

    proptest! {
        #[test]
        fn stays_normal(dir in "[a-c/.]{0,12}", relative in "\\PC{0,24}") {
            if let Ok(path) = RepoPath::new(&dir).and_then(|dir| dir.resolve(&relative)) {
                prop_assert!(path.as_str().split('/').all(|part| part != ".." && part != "."));
                prop_assert_eq!(RepoPath::new(path.as_str()).unwrap(), path);
            }
        }
    }
}
