//! Objects' bodies on the wire: compressed by zstd, and cut into parts.

use prost::Message as _;

use crate::{
    Digest, Object,
    message::{ControlMessage, DecodeError, MAX_DELTA_BODIES, MAX_PART, Part},
    wire,
};

const COMPRESSION: i32 = 3;

/// Cuts objects into messages of at most [`MAX_PART`] bytes of compressed bodies each.
pub fn objects_in_parts<'a>(
    target: Digest,
    objects: impl IntoIterator<Item = &'a Object>,
) -> Vec<ControlMessage> {
    let mut messages = Vec::new();
    let mut parts = Vec::new();
    let mut room = MAX_PART;
    for object in objects {
        let compressed = compress(object.body());
        let mut rest = compressed.as_slice();
        let mut offset = 0;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(rest.len().min(room));
            parts.push(Part {
                digest: object.digest(),
                offset,
                compressed: compressed.len() as u64,
                data: piece.to_vec(),
            });
            offset += piece.len() as u64;
            room -= piece.len();
            rest = tail;
            if room == 0 {
                messages.push(ControlMessage::Objects {
                    target,
                    parts: std::mem::take(&mut parts),
                });
                room = MAX_PART;
            }
        }
    }
    if !parts.is_empty() {
        messages.push(ControlMessage::Objects { target, parts });
    }
    messages
}

/// The largest compressed form that a body of `size` bytes can have.
pub(crate) fn compressed_bound(size: u64) -> u64 {
    size + size / 128 + 1024
}

/// Undoes the compression of one body whose size was announced.
pub(crate) fn decompress(compressed: &[u8], size: u64) -> Result<Vec<u8>, DecodeError> {
    let capacity = usize::try_from(size).map_err(|_overflow| DecodeError::Compression(size))?;
    zstd::bulk::decompress(compressed, capacity).map_err(|_detail| DecodeError::Compression(size))
}

pub(super) fn compress(bytes: &[u8]) -> Vec<u8> {
    // In-memory compression at a valid level fails only when memory runs out, and then Rust aborts.
    zstd::bulk::compress(bytes, COMPRESSION).unwrap_or_default()
}

pub(super) fn bodies_of(compressed: &[u8]) -> Result<Vec<Object>, DecodeError> {
    if compressed.is_empty() {
        return Ok(Vec::new());
    }
    let bodies = decompress(compressed, MAX_DELTA_BODIES + 64 * 1024)?;
    wire::Bodies::decode(bodies.as_slice())?
        .bodies
        .into_iter()
        .map(|body| Ok(Object::from_canonical(body)?))
        .collect()
}
