//! The settings' file that connected last, for when the present one does not.
//!
//! ```text
//! file reads? ── no ─▶ the copy, until the file changes
//!     │ yes, and differs from the copy
//!     ▼
//! on trial ── connects ─▶ it becomes the copy
//!     │ not in time
//!     ▼
//! the copy ── connects: so it was not the network ─▶ on trial once more, then the copy until the file changes
//!     │ does not either, for a while: so nobody knows
//!     ▼
//! on trial as if for the first time
//! ```
//!
//! The copy is in the state directory, without the provisioning token. No file at all is a file that says
//! nothing. Flags and variables stand over whichever of the two holds.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use longshore_protocol::Digest;
use serde::{Deserialize, Serialize};

use crate::files::{FileError, Folder, Found};

const COPY: &str = "settings.good";
const REFUSED: &str = "settings.refused";
const MOST_BYTES: u64 = 1024 * 1024;
/// So often a file may fail to connect; in between, the copy has connected.
const TRIALS: u8 = 2;

/// Where the settings come from, and what is known of that.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The file, which need not be there.
    pub path: PathBuf,
    /// What it said when it was read.
    pub digest: Option<Digest>,
    /// How far it can be relied on.
    pub standing: Standing,
}

/// How far the settings' file can be relied on.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It holds. This is what to keep once it has connected.
    Holds(String),
    /// It holds, and has this long to connect before the copy comes back; for ever, where that is `None`.
    OnTrial(String, Option<Duration>),
    /// The copy holds, because of this.
    Refused(Refused),
}

impl Default for Standing {
    fn default() -> Self {
        Self::Holds(String::new())
    }
}

/// Why the file does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It cannot be read, or says what cannot be.
    Invalid(String),
    /// No connection came about with it; perhaps for other reasons, where it was tried once.
    NoConnection {
        /// Whether it will be tried again when the copy connects.
        tried_again: bool,
    },
}

impl Refused {
    /// One `CamelCase` word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "Invalid",
            Self::NoConnection { .. } => "NoConnection",
        }
    }

    /// What is wrong, and what to do.
    pub fn explanation(&self, path: &Path) -> String {
        let path = path.display();
        let held = "the settings that connected last hold";
        match self {
            Self::Invalid(why) => format!("{why}; {held} until {path} changes"),
            Self::NoConnection { tried_again: false } => format!(
                "no connection came about with {path}; {held}, and it is tried again when they have connected, or have not either"
            ),
            Self::NoConnection { tried_again: true } => format!(
                "no connection came about with {path}, twice, while there was one before; {held} until it changes"
            ),
        }
    }
}

/// A file that did not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    digest: Digest,
    trials: u8,
    /// Whether the copy has connected since the last of them.
    connected: bool,
}

impl Record {
    fn refusal(&self) -> Option<Refused> {
        let tried_again = self.trials >= TRIALS;
        (tried_again || !self.connected).then_some(Refused::NoConnection { tried_again })
    }
}

/// What a file says, in a form that does not depend on comments and order, and without the token.
pub(super) fn essence(text: &str) -> Result<String, toml::de::Error> {
    let mut table: toml::Table = text.parse()?;
    table.remove("token");
    Ok(table.to_string())
}

/// The copy and the record, in the state directory.
#[derive(Debug)]
pub struct LastGood {
    folder: Folder,
}

impl LastGood {
    /// Those of this state directory; an error where it cannot be opened.
    pub fn open(state_dir: &Path) -> Result<Self, FileError> {
        let folder = Folder::open(state_dir)?;
        Ok(Self { folder })
    }

    /// The copy. What cannot be read is not there.
    pub(crate) fn copy(&self) -> Option<String> {
        self.read(COPY)
            .and_then(|copy| String::from_utf8(copy).ok())
    }

    /// Why this file is not to be used, although it reads.
    pub(crate) fn refusal(&self, digest: Digest) -> Option<Refused> {
        self.record(digest)?.refusal()
    }

    /// The file connected: what it says is what to come back to.
    pub fn keep(&self, essence: &str) -> Result<(), FileError> {
        if self.copy().as_deref() != Some(essence) {
            self.folder.write(COPY, essence.as_bytes())?;
        }
        self.folder.remove(REFUSED)?;
        self.folder.sync()
    }

    /// The file did not connect in time.
    pub fn refuse(&self, digest: Digest) -> Result<(), FileError> {
        let trials = self.record(digest).map_or(0, |record| record.trials);
        self.note(Record {
            digest,
            trials: trials.saturating_add(1),
            connected: false,
        })
    }

    /// The copy does not connect either, so that the file did not says nothing.
    pub fn forgive(&self) -> Result<(), FileError> {
        self.folder.remove(REFUSED)?;
        self.folder.sync()
    }

    /// The copy connected, so the file may be tried once more.
    pub fn try_again(&self, digest: Digest) -> Result<(), FileError> {
        match self.record(digest) {
            Some(record) => self.note(Record {
                connected: true,
                ..record
            }),
            None => Ok(()),
        }
    }

    /// Forgets both.
    pub fn forget(&self) -> Result<(), FileError> {
        self.folder.remove(COPY)?;
        self.folder.remove(REFUSED)?;
        self.folder.sync()
    }

    fn record(&self, digest: Digest) -> Option<Record> {
        let record: Record = serde_json::from_slice(&self.read(REFUSED)?).ok()?;
        (record.digest == digest).then_some(record)
    }

    fn note(&self, record: Record) -> Result<(), FileError> {
        // A struct of a digest and a number always serializes.
        let content = serde_json::to_vec(&record).unwrap_or_default();
        self.folder.write(REFUSED, &content)?;
        self.folder.sync()
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        match self.folder.read(name, MOST_BYTES) {
            Ok(Found::File { content, .. }) => Some(content),
            _ => None,
        }
    }
}

impl Origin {
    /// Whether the file says something else by now.
    pub fn has_changed(&self) -> bool {
        digest_of(&self.path) != self.digest
    }
}

/// The digest of what stands there; `None` where nothing can be read.
pub(super) fn digest_of(path: &Path) -> Option<Digest> {
    read_file(path).ok().map(|text| Digest::of(text.as_bytes()))
}

pub(super) fn read_file(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_tried_twice_and_only_after_the_copy_has_connected() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::open(dir.path()).unwrap();
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(last_good.refusal(one), None);
        last_good.refuse(one).unwrap();
        let first = Refused::NoConnection { tried_again: false };
        assert_eq!(last_good.refusal(one), Some(first));
        assert_eq!(last_good.refusal(other), None);
        last_good.try_again(one).unwrap();
        assert_eq!(last_good.refusal(one), None);
        last_good.refuse(one).unwrap();
        let twice = Refused::NoConnection { tried_again: true };
        assert_eq!(last_good.refusal(one), Some(twice.clone()));
        last_good.try_again(one).unwrap();
        assert_eq!(last_good.refusal(one), Some(twice));
        last_good.keep("a = 1\n").unwrap();
        assert_eq!(last_good.refusal(one), None);
        assert_eq!(last_good.copy().unwrap(), "a = 1\n");
        last_good.forget().unwrap();
        assert_eq!(last_good.copy(), None);
    }

    #[test]
    fn what_is_kept_is_what_a_file_says_without_its_token() {
        let one = essence("# words\nname = 'a'\ntoken = 'lst_secret'\nlog = 'debug'\n").unwrap();
        let other = essence("log = \"debug\"\nname = \"a\"").unwrap();
        assert_eq!(one, other);
        assert!(!one.contains("secret"));
        assert_eq!(essence("").unwrap(), "");
        essence("a =").unwrap_err();
    }
}
