//! What stands in one directory.

use std::{cmp::Ordering, iter};

use super::TreeEntry;

/// One entry of a directory, with its name as the tree has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name's bytes; Git does not promise UTF-8.
    pub name: Box<[u8]>,
    /// What stands there.
    pub entry: TreeEntry,
}

/// The entries of a directory, in the order of their names' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing(Box<[Listed]>);

impl FromIterator<Listed> for Listing {
    /// Takes entries in any order. No name stands there twice.
    fn from_iter<T: IntoIterator<Item = Listed>>(entries: T) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Self(entries.into())
    }
}

impl Listing {
    /// The entries, by name.
    pub fn iter(&self) -> std::slice::Iter<'_, Listed> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What stands under this name.
    pub fn get(&self, name: &[u8]) -> Option<TreeEntry> {
        let found = self.0.binary_search_by(|listed| (*listed.name).cmp(name));
        Some(self.0.get(found.ok()?)?.entry)
    }

    /// The names under which something else stands in `later`, with what stood and what stands there.
    pub(super) fn differences<'a>(
        &'a self,
        later: &'a Self,
    ) -> impl Iterator<Item = (&'a [u8], Option<TreeEntry>, Option<TreeEntry>)> {
        let (mut before, mut after) = (self.iter().peekable(), later.iter().peekable());
        iter::from_fn(move || {
            loop {
                let order = match (before.peek(), after.peek()) {
                    (None, None) => return None,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some(old), Some(new)) => old.name.cmp(&new.name),
                };
                let old = order.is_le().then(|| before.next()).flatten();
                let new = order.is_ge().then(|| after.next()).flatten();
                if old.map(|it| it.entry) != new.map(|it| it.entry) {
                    let name = &*old.or(new)?.name;
                    return Some((name, old.map(|it| it.entry), new.map(|it| it.entry)));
                }
            }
        })
    }
}

impl<'a> IntoIterator for &'a Listing {
    type Item = &'a Listed;
    type IntoIter = std::slice::Iter<'a, Listed>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
