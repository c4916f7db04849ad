//! The settings' file, and the files that settings name.

use std::path::{Path, PathBuf};

use longshore_protocol::text::without_values;
use secrecy::{ExposeSecret as _, SecretString};

use super::{ConfigError, Given, TokenSource, last_good::read_file};
use crate::tls;

const DEFAULT_FILE: &str = "/etc/longshore/agent.toml";

/// Where the settings' file is.
pub(super) fn path_of(given: &Given) -> PathBuf {
    let default = || DEFAULT_FILE.into();
    given.config.clone().unwrap_or_else(default)
}

/// The text of the file. One that nobody named need not be there.
pub(super) fn file(named: Option<&Path>) -> Result<String, ConfigError> {
    let path = named.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    if named.is_none() && !path.exists() {
        return Ok(String::new());
    }
    read(path)
}

/// What the text of a file says.
pub(super) fn parse(path: &Path, text: &str) -> Result<Given, ConfigError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        ConfigError::Toml {
            path: path.to_owned(),
            line: before.map(|before| before.split('\n').count()),
            message: without_values(error.message()),
        }
    })
}

/// Root certificates, one or several.
pub(super) fn bundle(path: &Path) -> Result<String, ConfigError> {
    let pem = read(path)?;
    tls::count_roots(&pem).map_err(|error| ConfigError::Roots(path.to_owned(), error))?;
    Ok(pem)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    read_file(path).map_err(|error| ConfigError::Read(path.to_owned(), error))
}

impl TokenSource {
    /// The token.
    pub fn read(&self) -> Result<SecretString, ConfigError> {
        match self {
            Self::Inline(token) => Ok(token.expose_secret().trim().into()),
            Self::File(path) => {
                let token = SecretString::from(read(path)?);
                let trimmed = token.expose_secret().trim();
                if trimmed.is_empty() {
                    return Err(ConfigError::EmptyToken(path.clone()));
                }
                Ok(trimmed.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_a_file_is_told_without_what_stands_there() {
        for (text, line, told) in [
            (
                "log = 'info'\nproxi = 'http://till:hush@proxy'\n",
                2,
                "unknown field `proxi`",
            ),
            ("proxy = 'http://till:hush@proxy\n", 1, ""),
            ("token = \"hush\"hush\"\n", 1, ""),
            ("\n\nupdate-window = \"hush\"\n", 3, "invalid type: string"),
            ("server = \"hush\"\n", 1, ""),
        ] {
            let error = parse(Path::new("agent.toml"), text).unwrap_err();
            let said = crate::causes(&error);
            assert!(said.starts_with(&format!("agent.toml:{line}: ")), "{said}");
            assert!(said.contains(told) && !said.contains("hush"), "{said}");
        }
    }
}
