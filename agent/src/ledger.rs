//! The agent's durable record of the manifest sets that it accepted.
//!
//! Each generation is a file of its own in the state directory, `ledger.<generation>`, complete or not there
//! at all ([`Folder::write`]). Storing a generation writes its file, makes that durable, and only then
//! removes all but the one before it: at most two generations, and for a moment three, are on disk. At every
//! instant the file with the highest number is the last accepted set.
//!
//! Loading trusts nothing: the file's checksum, the canonical form of every object, the set's digest and the
//! generation in the name must agree. What does not agree is renamed to `ledger.corrupt-<n>` for people to
//! look at, and the last three of those are kept. Where that happens to the newest generation, the ledger
//! counts as empty rather than falling back to the one before it, which becomes `ledger.superseded` and is
//! for people only: what runs stays as it is, and the controller offers the whole set again. A generation
//! never falls because of a bad sector.
//!
//! Beside them are `ledger.good`, the last set that was applied and healthy, or the last that was begun before there
//! was one, and `ledger.way`, what was decided on the way to the next ([`crate::update`]).

mod format;

use std::sync::Arc;

use longshore_protocol::session::Holding;

use crate::{
    files::{FileError, Folder, Found},
    update::{Record, Way},
    watchdog,
};

pub use format::InvalidLedger;

const PREFIX: &str = "ledger.";
const CORRUPT: &str = "ledger.corrupt-";
const SUPERSEDED: &str = "ledger.superseded";
const GOOD: &str = "ledger.good";
const WAY: &str = "ledger.way";
const GENERATIONS_KEPT: usize = 2;
const CORRUPT_KEPT: usize = 3;
/// Far beyond what a device runs; a file beyond it is not read into memory.
const MOST_BYTES: u64 = 512 * 1024 * 1024;

/// Keeps accepted sets. [`Ledger`] keeps them for good; a simulated device's are in memory.
pub trait Keep: Send + Sync + 'static {
    /// Makes the holding as durable as it gets here, or says why not.
    fn keep(
        self: Arc<Self>,
        holding: Arc<Holding>,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// The ledger of one state directory.
#[derive(Debug)]
pub struct Ledger {
    folder: Folder,
}

/// What a ledger held when it was opened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The last accepted set.
    pub current: Option<Arc<Holding>>,
    /// The set accepted before it.
    pub previous: Option<Arc<Holding>>,
    /// What was set aside: the name it has now, and what was wrong with it.
    pub set_aside: Vec<(String, String)>,
}

impl Ledger {
    /// The ledger in this folder, which nobody else writes to.
    pub fn new(folder: Folder) -> Self {
        Self { folder }
    }

    /// Reads, verifies and sets aside. A disk that cannot be written keeps nothing from being read: what should
    /// be set aside is then not used, and stays where it is.
    ///
    /// # Errors
    /// Where the folder cannot be listed. A file that cannot be read is treated like one that is wrong.
    pub fn load(&self) -> Result<Loaded, FileError> {
        let mut loaded = Loaded::default();
        for (place, (generation, name)) in self.generations()?.into_iter().enumerate() {
            let tidied = match self.read(generation, &name) {
                Ok(holding) if place == 0 => {
                    loaded.current = Some(Arc::new(holding));
                    Ok(())
                }
                Ok(holding) if loaded.current.is_some() && loaded.previous.is_none() => {
                    loaded.previous = Some(Arc::new(holding));
                    Ok(())
                }
                // What a crash kept `store` from removing.
                Ok(_) if loaded.current.is_some() => self.folder.remove(&name).map(drop),
                // The next start must not take it for the newest.
                Ok(_) => self.folder.rename(&name, SUPERSEDED),
                Err(wrong) => {
                    loaded.set_aside.push((name, wrong));
                    Ok(())
                }
            };
            if let Err(error) = tidied {
                tracing::warn!(
                    error = crate::causes(&error),
                    "the ledger cannot be tidied up"
                );
                // Nor may the wrong file that is newer be moved out of its way.
                return Ok(loaded);
            }
        }
        // Last, so that a crash before it finds the same wrong file at the same place again.
        for (name, _) in &mut loaded.set_aside {
            match self.set_aside(name) {
                Ok(aside) => *name = aside,
                Err(error) => {
                    tracing::warn!(
                        error = crate::causes(&error),
                        "the ledger cannot be set aside"
                    );
                }
            }
        }
        Ok(loaded)
    }

    /// Makes the holding durable. When this returns `Ok` it survives a power cut. When it returns an error, the
    /// last good set is on disk, and so may the new one be, whole, for the next start to find.
    pub fn store(&self, holding: &Holding) -> Result<(), FileError> {
        let name = format!("{PREFIX}{:020}", holding.generation().number());
        self.folder.write(&name, &format::encode(holding))?;
        self.folder.sync()?;
        for (_, old) in self.generations()?.into_iter().skip(GENERATIONS_KEPT) {
            self.folder.remove(&old)?;
        }
        Ok(())
    }

    /// Remembers what updates move away from.
    pub fn store_base(&self, holding: &Holding) -> Result<(), FileError> {
        self.folder.write(GOOD, &format::encode(holding))?;
        self.folder.sync()
    }

    /// Remembers what was decided on the way to another.
    pub fn store_way(&self, way: &Way) -> Result<(), FileError> {
        // A struct of numbers and strings always serializes.
        let content = serde_json::to_vec(way).unwrap_or_default();
        self.folder.write(WAY, &content)?;
        self.folder.sync()
    }

    /// What [`Self::store_base`] and [`Self::store_way`] remembered. What cannot be read is as if it had not
    /// been: the set that was accepted last is then applied as if it were the first.
    pub fn record(&self) -> Record {
        let (good, way) = (self.file(GOOD), self.file(WAY));
        let was_there = good.is_some() || way.is_some();
        let base = good.and_then(|content| {
            format::decode(&content)
                .inspect_err(|wrong| tracing::warn!(%wrong, "the last good set is damaged"))
                .ok()
        });
        let way = way.and_then(|content| {
            serde_json::from_slice(&content)
                .inspect_err(|wrong| tracing::warn!(%wrong, "the record of updates is damaged"))
                .ok()
        });
        Record {
            lost: base.is_none() && was_there,
            base: base.map(Arc::new),
            way: way.unwrap_or_default(),
        }
    }

    fn file(&self, name: &str) -> Option<Vec<u8>> {
        match self.folder.read(name, MOST_BYTES) {
            Ok(Found::File { content, .. }) => Some(content),
            Ok(Found::Nothing | Found::Other) => None,
            Err(error) => {
                tracing::warn!(name, error = crate::causes(&error), "cannot be read");
                None
            }
        }
    }

    /// Forgets every set.
    pub fn clear(&self) -> Result<(), FileError> {
        for name in self.folder.names()? {
            if name.starts_with(PREFIX) {
                self.folder.remove(&name)?;
            }
        }
        self.folder.sync()
    }

    /// The generations on disk, newest first, with the names of their files.
    fn generations(&self) -> Result<Vec<(u64, String)>, FileError> {
        let mut found: Vec<_> = self
            .folder
            .names()?
            .into_iter()
            .filter_map(|name| Some((name.strip_prefix(PREFIX)?.parse().ok()?, name)))
            .collect();
        found.sort_unstable_by(|one, other| other.cmp(one));
        Ok(found)
    }

    fn read(&self, generation: u64, name: &str) -> Result<Holding, String> {
        match self.folder.read(name, MOST_BYTES) {
            Ok(Found::File { content, .. }) => {
                let holding = format::decode(&content).map_err(|wrong| wrong.to_string())?;
                if holding.generation().number() == generation {
                    Ok(holding)
                } else {
                    Err(format!("it holds generation {}", holding.generation()))
                }
            }
            Ok(Found::Nothing | Found::Other) => Err("it is no readable file".to_owned()),
            Err(error) => Err(format!("{error}: {}", error.source)),
        }
    }

    fn set_aside(&self, name: &str) -> Result<String, FileError> {
        let mut aside: Vec<u64> = self
            .folder
            .names()?
            .iter()
            .filter_map(|name| name.strip_prefix(CORRUPT)?.parse().ok())
            .collect();
        aside.sort_unstable_by(|one, other| other.cmp(one));
        let next = format!("{CORRUPT}{}", aside.first().map_or(1, |last| last + 1));
        self.folder.rename(name, &next)?;
        for old in aside.into_iter().skip(CORRUPT_KEPT - 1) {
            self.folder.remove(&format!("{CORRUPT}{old}"))?;
        }
        self.folder.sync()?;
        Ok(next)
    }
}

impl Keep for Ledger {
    async fn keep(self: Arc<Self>, holding: Arc<Holding>) -> Result<(), String> {
        watchdog::allow(watchdog::FILES);
        tokio::task::spawn_blocking(move || {
            self.store(&holding).map_err(|error| crate::causes(&error))
        })
        .await
        .unwrap_or_else(|_panicked| Err("the ledger's worker died".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use longshore_protocol::{Generation, Object};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn holding(generation: u64, text: &str) -> Holding {
        let objects = ["a", "b"].map(|name| {
            Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name}, "data": {"text": text}}))
            .unwrap()
        });
        Holding::new(Generation::from(generation), "c0ffee".into(), objects).unwrap()
    }

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(Folder::open(dir.path()).unwrap());
        (dir, ledger)
    }

    fn newest(dir: &tempfile::TempDir, generation: u64) -> std::path::PathBuf {
        dir.path().join(format!("ledger.{generation:020}"))
    }

    #[test]
    fn keeps_the_last_two() {
        let (dir, ledger) = ledger();
        assert!(ledger.load().unwrap().current.is_none());
        for generation in 1..=12 {
            ledger.store(&holding(generation, "x\ny")).unwrap();
        }
        let loaded = ledger.load().unwrap();
        assert_eq!(*loaded.current.unwrap(), holding(12, "x\ny"));
        assert_eq!(*loaded.previous.unwrap(), holding(11, "x\ny"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        ledger.clear().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_ledger_cut_at_any_byte_is_set_aside() {
        let (dir, ledger) = ledger();
        ledger.store(&holding(1, "old")).unwrap();
        ledger.store(&holding(2, "new")).unwrap();
        let whole = std::fs::read(newest(&dir, 2)).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(newest(&dir, 2), &whole[..cut]).unwrap();
            let loaded = ledger.load().unwrap();
            assert!(loaded.current.is_none(), "cut at {cut}");
            assert_eq!(loaded.set_aside.len(), 1, "cut at {cut}");
            assert!(dir.path().join(&loaded.set_aside[0].0).exists());
            // A second start does not take the older generation for the newest, and disk use is bounded.
            assert!(ledger.load().unwrap().current.is_none());
            assert!(dir.path().join(SUPERSEDED).exists());
            ledger.store(&holding(2, "new")).unwrap();
        }
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            2 + CORRUPT_KEPT
        );
        assert_eq!(*ledger.load().unwrap().current.unwrap(), holding(2, "new"));
    }

    #[test]
    fn a_bad_older_generation_leaves_the_newest_in_force() {
        let (dir, ledger) = ledger();
        ledger.store(&holding(1, "old")).unwrap();
        ledger.store(&holding(2, "new")).unwrap();
        std::fs::write(newest(&dir, 1), "x").unwrap();
        let loaded = ledger.load().unwrap();
        assert_eq!(loaded.current.unwrap().held(), holding(2, "new").held());
        assert!(loaded.previous.is_none());
        assert_eq!(loaded.set_aside.len(), 1);
    }

    #[test]
    fn a_generation_under_another_name_is_refused() {
        let (dir, ledger) = ledger();
        ledger.store(&holding(1, "old")).unwrap();
        std::fs::rename(newest(&dir, 1), newest(&dir, 9)).unwrap();
        assert!(ledger.load().unwrap().current.is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn killed_at_any_step_the_ledger_holds_one_of_the_two(steps in 0_usize..12) {
            let (dir, ledger) = ledger();
            for generation in 1..=2 {
                ledger.store(&holding(generation, "before")).unwrap();
            }
            let mut folder = Folder::open(dir.path()).unwrap();
            folder.fuse = Some(Arc::new(steps.into()));
            let stored = Ledger::new(folder).store(&holding(3, "after"));
            let loaded = ledger.load().unwrap();
            prop_assert!(loaded.set_aside.is_empty());
            let current = loaded.current.unwrap();
            prop_assert!(*current == holding(3, "after") || *current == holding(2, "before"));
            if stored.is_ok() {
                prop_assert_eq!(current.generation().number(), 3);
            }
            ledger.store(&holding(4, "later")).unwrap();
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        }

        #[test]
        fn any_flipped_bytes_are_noticed(at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let (dir, ledger) = ledger();
            ledger.store(&holding(1, "text")).unwrap();
            let mut bytes = std::fs::read(newest(&dir, 1)).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            std::fs::write(newest(&dir, 1), bytes).unwrap();
            let loaded = ledger.load().unwrap();
            prop_assert!(loaded.current.is_none());
            prop_assert_eq!(loaded.set_aside.len(), 1);
        }
    }
}
