//! How one accepted set is written down: lines of text, so that people can read it with any pager.
//!
//! ```text
//! longshore-ledger 1 sha256:<digest of everything after this line>
//! {"generation":7,"revision":"…","set":"sha256:…","objects":2}
//! {"apiVersion":"v1",…}          one object's canonical form per line, which never holds a line break
//! {"apiVersion":"v1",…}
//! ```

use longshore_protocol::{Digest, Generation, Object, session::Holding};
use serde::{Deserialize, Serialize};

const MAGIC: &str = "longshore-ledger 1 ";

/// Why bytes are not a ledger.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLedger {
    /// The first line is not that of a ledger that this version knows.
    #[error("it does not start as a ledger does")]
    NotALedger,
    /// The bytes are not those that were written.
    #[error("its checksum does not match")]
    Checksum,
    /// The bytes are those that were written, and still make no set: a bug, or somebody's edit.
    #[error("its content is not a set: {0}")]
    Content(String),
}

#[derive(Serialize, Deserialize)]
struct Head {
    generation: Generation,
    revision: String,
    set: Digest,
    objects: usize,
}

/// The bytes of a holding.
pub(super) fn encode(holding: &Holding) -> Vec<u8> {
    let head = Head {
        generation: holding.generation(),
        revision: holding.revision().to_owned(),
        set: holding.set().digest(),
        objects: holding.set().len(),
    };
    // A struct of numbers and strings always serializes.
    let mut content = serde_json::to_vec(&head).unwrap_or_default();
    content.push(b'\n');
    for object in holding.objects() {
        content.extend_from_slice(object.body());
        content.push(b'\n');
    }
    let mut bytes = format!("{MAGIC}{}\n", Digest::of(&content)).into_bytes();
    bytes.extend(content);
    bytes
}

/// The holding that these bytes are, verified.
pub(super) fn decode(bytes: &[u8]) -> Result<Holding, InvalidLedger> {
    let (first, content) = line(bytes).ok_or(InvalidLedger::NotALedger)?;
    let checksum: Digest = std::str::from_utf8(first)
        .ok()
        .and_then(|first| first.strip_prefix(MAGIC)?.parse().ok())
        .ok_or(InvalidLedger::NotALedger)?;
    if Digest::of(content) != checksum {
        return Err(InvalidLedger::Checksum);
    }
    // `parse` takes upper-case digits too; only what was written is accepted.
    if first != format!("{MAGIC}{checksum}").as_bytes() {
        return Err(InvalidLedger::NotALedger);
    }
    let wrong = |what: &str| InvalidLedger::Content(what.to_owned());
    let (head, mut rest) = line(content).ok_or_else(|| wrong("it is empty"))?;
    let head: Head =
        serde_json::from_slice(head).map_err(|error| InvalidLedger::Content(error.to_string()))?;
    let mut objects = Vec::new();
    while let Some((body, after)) = line(rest) {
        rest = after;
        let object = Object::from_canonical(body.to_vec())
            .map_err(|error| InvalidLedger::Content(error.to_string()))?;
        objects.push(object);
    }
    if !rest.is_empty() || objects.len() != head.objects {
        return Err(wrong("objects are missing"));
    }
    let holding = Holding::new(head.generation, head.revision, objects)
        .map_err(|error| InvalidLedger::Content(error.to_string()))?;
    if holding.set().digest() != head.set {
        return Err(wrong("the set's digest does not match"));
    }
    Ok(holding)
}

/// The first line, without its end, and what follows.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at(end);
    Some((line, rest.get(1..)?))
}
