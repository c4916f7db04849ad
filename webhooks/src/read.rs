//! Reading headers and bodies: what all hosts' modules need.

use http::{HeaderMap, header::CONTENT_TYPE};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{Error, Event, error::InvalidBody};

/// How much of a name or an id that the host made up is kept.
const NAME_LIMIT: usize = 100;

/// The header `name`, which says what the delivery is about.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Error> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .ok_or(Error::BadHeader(name))
}

/// The first of these headers that is there, cut to a length; empty where none is.
pub(crate) fn id(headers: &HeaderMap, names: &[&str]) -> String {
    let present = |name: &&str| headers.get(*name)?.to_str().ok();
    cut(names.iter().find_map(present).unwrap_or_default())
}

/// An event that nobody asked for.
pub(crate) fn ignored(name: &str) -> Event {
    Event::Ignored(cut(name))
}

fn cut(text: &str) -> String {
    text.chars().take(NAME_LIMIT).collect()
}

/// The body of one event, and how to refuse it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    event: &'a str,
}

impl<'a> Reader<'a> {
    pub(crate) fn of(event: &'a str) -> Self {
        Self { event }
    }

    /// The body as `T`.
    pub(crate) fn json<T: DeserializeOwned>(
        self,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<T, Error> {
        let form = b"application/x-www-form-urlencoded";
        let kind = headers.get(CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(form)) {
            return Err(self.refuse(".", InvalidBody::Form));
        }
        let mut reader = serde_json::Deserializer::from_slice(body);
        let value = serde_path_to_error::deserialize(&mut reader)
            .map_err(|error| self.refuse(&error.path().to_string(), error.into_inner().into()))?;
        reader
            .end()
            .map_err(|error| self.refuse(".", error.into()))?;
        Ok(value)
    }

    /// A full ref.
    pub(crate) fn git_ref(self, at: &str, text: String) -> Result<String, Error> {
        if text.starts_with("refs/") {
            Ok(text)
        } else {
            Err(self.refuse(at, InvalidBody::Ref))
        }
    }

    /// A commit; none where it is all zeros, which stands for a ref that is not there.
    pub(crate) fn commit(self, at: &str, text: String) -> Result<Option<String>, Error> {
        // 40 digits in SHA-1 repos, 64 in SHA-256 repos.
        if !matches!(text.len(), 40 | 64) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(self.refuse(at, InvalidBody::Commit));
        }
        Ok(text.bytes().any(|digit| digit != b'0').then_some(text))
    }

    fn refuse(self, at: &str, source: InvalidBody) -> Error {
        Error::BadBody {
            event: self.event.to_owned(),
            at: at.to_owned(),
            source,
        }
    }
}

/// A link, as Bitbucket writes it.
#[derive(Deserialize)]
pub(crate) struct Link {
    pub(crate) href: String,
}
