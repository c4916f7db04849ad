//! What is wrong with a fleet repo, said so that its owner can mend it.

use std::fmt;

use longshore_protocol::DeviceName;

use crate::{tree::RepoPath, yaml::YamlError};

/// One thing wrong with the repo's content, at one place.
///
/// Prints as `path:line: message`. The same content always gives the same problems.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The device that is held back by it, where there is one.
    pub device: Option<DeviceName>,
    /// The file or folder that is to be mended.
    pub path: RepoPath,
    /// The line in the file, from 1.
    pub line: Option<u32>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Problem {
    /// A problem with the whole of `path`.
    pub fn at(path: &RepoPath, message: impl Into<String>) -> Self {
        Self {
            device: None,
            path: path.clone(),
            line: None,
            message: message.into(),
        }
    }

    /// A problem with line `line` of `path`.
    pub fn at_line(path: &RepoPath, line: u32, message: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            ..Self::at(path, message)
        }
    }

    /// The same problem, holding back `device`.
    #[must_use]
    pub fn for_device(self, device: &DeviceName) -> Self {
        Self {
            device: Some(device.clone()),
            ..self
        }
    }

    pub(crate) fn yaml(path: &RepoPath, error: &YamlError) -> Self {
        Self {
            line: error.line,
            ..Self::at(path, error.message.clone())
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.message),
            None => write!(f, "{}: {}", self.path, self.message),
        }
    }
}
