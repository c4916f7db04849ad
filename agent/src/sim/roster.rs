//! The keys and identities of a simulated fleet, in one file that only grows: one JSON object per line, and for
//! each name the last line counts.
//!
//! The file has private keys and tokens in the open. It is for simulated devices only.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use longshore_protocol::{DeviceName, Digest};
use serde::{Deserialize, Serialize};

use crate::{
    files::FileError,
    identity::{CertificateError, DeviceKey, Enrollment, Identity, StateError, record},
};

/// What is known of a fleet from earlier, and where to keep what comes.
#[derive(Debug, Default)]
pub struct Roster {
    known: Mutex<HashMap<DeviceName, Known>>,
    file: Option<(PathBuf, Mutex<File>)>,
}

/// Why a roster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line makes no sense.
    #[error("{path}:{line}: {why}; remove the line, or the file to begin anew", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: serde_json::Error,
    },
    /// A key is of no use.
    #[error(transparent)]
    Key(#[from] CertificateError),
}

/// What is known of one device.
#[derive(Debug)]
pub(super) enum Known {
    Enrolling(Enrollment),
    Enrolled(Box<Identity>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Enrollment(record::Enrollment),
    Identity(Box<record::Identity>),
}

impl Roster {
    /// The roster in this file, which is made where it is missing.
    ///
    /// # Errors
    /// Where it cannot be opened, or a line makes no sense.
    pub fn open(path: &Path) -> Result<Self, RosterError> {
        let failed = |operation| {
            move |source| FileError {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let mut known = HashMap::new();
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(failed("read"))?,
        };
        for (at, line) in text.lines().enumerate() {
            let line = serde_json::from_str(line).map_err(|why| RosterError::Line {
                path: path.to_owned(),
                line: at + 1,
                why,
            })?;
            match line {
                Line::Enrollment(record) => {
                    let enrollment = Enrollment::from(record);
                    known.insert(enrollment.name.clone(), Known::Enrolling(enrollment));
                }
                Line::Identity(record) => {
                    let identity = Identity::from(*record);
                    known.insert(identity.name.clone(), Known::Enrolled(Box::new(identity)));
                }
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(failed("open"))?;
        Ok(Self {
            known: Mutex::new(known),
            file: Some((path.to_owned(), Mutex::new(file))),
        })
    }

    /// The roster of these devices, in memory.
    pub fn of(identities: impl IntoIterator<Item = Identity>) -> Self {
        let known = identities
            .into_iter()
            .map(|identity| (identity.name.clone(), Known::Enrolled(Box::new(identity))));
        Self {
            known: Mutex::new(known.collect()),
            file: None,
        }
    }

    /// The fingerprint of the key that this device enrolls with, which is made where there is none.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn key_of(&self, name: &DeviceName) -> Result<Digest, RosterError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let pem = match known.get(name) {
            Some(Known::Enrolled(identity)) => &identity.key,
            Some(Known::Enrolling(enrollment)) => &enrollment.key,
            None => {
                let key = DeviceKey::generate()?;
                let enrollment = Enrollment {
                    name: name.clone(),
                    key: key.pem(),
                    registered: None,
                };
                self.append(&Line::Enrollment((&enrollment).into()))?;
                known.insert(name.clone(), Known::Enrolling(enrollment));
                return Ok(key.fingerprint());
            }
        };
        Ok(DeviceKey::from_pem(pem)?.fingerprint())
    }

    pub(super) fn take(&self, name: &DeviceName) -> Option<Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(name)
    }

    pub(super) fn keep_enrollment(&self, enrollment: &Enrollment) -> Result<(), StateError> {
        Ok(self.append(&Line::Enrollment(enrollment.into()))?)
    }

    pub(super) fn keep_identity(&self, identity: &Identity) -> Result<(), StateError> {
        Ok(self.append(&Line::Identity(Box::new(identity.into())))?)
    }

    fn append(&self, line: &Line) -> Result<(), FileError> {
        let Some((path, file)) = &self.file else {
            return Ok(());
        };
        // Structs of strings always serialize.
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&text).map_err(|source| FileError {
            operation: "write",
            path: path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_key_and_the_last_line_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.jsonl");
        let (one, two) = ("sim-1".parse().unwrap(), "sim-2".parse().unwrap());
        let roster = Roster::open(&path).unwrap();
        let key = roster.key_of(&one).unwrap();
        assert_eq!(roster.key_of(&one).unwrap(), key);
        assert_ne!(roster.key_of(&two).unwrap(), key);
        let Some(Known::Enrolling(mut enrollment)) = roster.take(&one) else {
            panic!("it is not enrolled");
        };
        enrollment.registered = Some((
            longshore_protocol::DeviceId::from_random([1; 16]),
            "t".into(),
        ));
        roster.keep_enrollment(&enrollment).unwrap();

        let roster = Roster::open(&path).unwrap();
        assert_eq!(roster.key_of(&one).unwrap(), key);
        let Some(Known::Enrolling(again)) = roster.take(&one) else {
            panic!("it is not enrolled");
        };
        assert_eq!(
            again.registered.unwrap().0,
            enrollment.registered.unwrap().0
        );
        assert!(roster.take(&one).is_none());

        std::fs::write(&path, "{\"enrollment\": 7}\n").unwrap();
        let error = Roster::open(&path).unwrap_err().to_string();
        assert!(error.contains("fleet.jsonl:1: "), "{error}");
    }
}
