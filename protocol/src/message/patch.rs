//! A changed object as its difference from the version that the device holds: a zstd frame whose dictionary is the
//! previous version's canonical form.
//!
//! A patch is only a shorter way to say an object. What comes out is verified as if it had come whole, so a patch
//! that is wrong, or made against something else, is refused like a wrong body.

use std::collections::BTreeMap;

use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::CParameter,
};

use super::{DecodeError, MAX_OBJECT};
use crate::{Digest, Object};

/// What an agent says in [`Hello::capabilities`](super::Hello::capabilities) that takes patches in deltas.
pub const PATCHES: &str = "patches";

/// Higher levels gain nothing for a few changed bytes.
const COMPRESSION: i32 = 3;
/// What a patch costs in its message besides its data, about.
const OVERHEAD: usize = 40;
/// The least and the most that zstd must look back: a previous and a new version of the largest object.
const WINDOW: (u32, u32) = (10, 23);

/// One object by its difference from another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The object that the device holds.
    pub previous: Digest,
    /// The size of the new object's canonical form in bytes.
    pub size: u64,
    /// The new object's canonical form: zstd, with the previous one's as the dictionary.
    pub data: Vec<u8>,
}

/// Makes patches of those objects whose previous version, the one with the same key, is among `previous`, where
/// that is shorter. The others are returned as they are.
pub fn patched<'a>(
    objects: Vec<Object>,
    previous: impl IntoIterator<Item = &'a Object>,
) -> (Vec<Object>, Vec<Patch>) {
    let previous: BTreeMap<_, _> = previous
        .into_iter()
        .map(|object| (object.key(), object))
        .collect();
    let mut patches = Vec::new();
    let mut whole = Vec::new();
    for object in objects {
        let patch = previous
            .get(object.key())
            .and_then(|previous| Patch::between(previous, &object));
        match patch {
            Some(patch) => patches.push(patch),
            None => whole.push(object),
        }
    }
    (whole, patches)
}

impl Patch {
    /// The patch that makes `object` of `previous`, where it is shorter than the object alone.
    fn between(previous: &Object, object: &Object) -> Option<Self> {
        let compress = |dictionary: &[u8]| {
            let mut compressor = Compressor::with_dictionary(COMPRESSION, dictionary)?;
            let reach = (dictionary.len() + object.body().len())
                .next_power_of_two()
                .ilog2();
            compressor.set_parameter(CParameter::WindowLog(reach.clamp(WINDOW.0, WINDOW.1)))?;
            compressor.compress(object.body())
        };
        // In-memory compression fails only when memory runs out; the object can always be sent whole.
        let data = compress(previous.body()).ok()?;
        let alone = compress(&[]).ok()?;
        (data.len() + OVERHEAD < alone.len()).then(|| Self {
            previous: previous.digest(),
            size: object.body().len() as u64,
            data,
        })
    }

    /// The object that the patch makes of `previous`. Needs no more memory than the announced size.
    ///
    /// # Errors
    /// Where the patch is not for this object, is damaged, or announces more than an object may have.
    pub fn apply(&self, previous: &Object) -> Result<Object, DecodeError> {
        let refused = || DecodeError::Compression(self.size);
        if self.size > MAX_OBJECT || self.previous != previous.digest() {
            return Err(refused());
        }
        let size = usize::try_from(self.size).map_err(|_overflow| refused())?;
        let body = Decompressor::with_dictionary(previous.body())
            .and_then(|mut decompressor| decompressor.decompress(&self.data, size))
            .map_err(|_detail| refused())?;
        Ok(Object::from_canonical(body)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    use super::*;

    fn config(name: &str, data: &[String]) -> Object {
        Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}, "data": {"lines": data}}))
        .unwrap()
    }

    fn noise(lines: usize) -> Vec<String> {
        (0..lines)
            .map(|n| Digest::of(&n.to_le_bytes()).to_hex())
            .collect()
    }

    #[test]
    fn one_changed_field_is_a_few_bytes_however_large_the_object_is() {
        for lines in [5, 500, 15_000] {
            let mut data = noise(lines);
            let before = config("a", &data);
            for line in [0, lines / 2, lines - 1] {
                data[line] = "changed".to_owned();
            }
            let after = config("a", &data);
            let (whole, patches) = patched(vec![after.clone()], [&before]);
            assert_eq!(whole, []);
            let [patch] = patches.as_slice() else {
                panic!("one patch")
            };
            // Each block of 128 KiB costs a few.
            let most = 100 + after.body().len() / 8192;
            assert!(patch.data.len() < most, "{lines}: {}", patch.data.len());
            assert_eq!(patch.apply(&before).unwrap(), after);
        }
    }

    #[test]
    fn what_has_no_previous_version_is_sent_whole() {
        let before = config("a", &noise(100));
        let other = config("b", &noise(100));
        let (whole, patches) = patched(vec![other.clone()], [&before]);
        assert_eq!((whole, patches), (vec![other], vec![]));
    }

    #[test]
    fn a_bomb_is_refused() {
        let before = config("a", &noise(10));
        let mut compressor = Compressor::with_dictionary(COMPRESSION, before.body()).unwrap();
        let data = compressor.compress(&vec![b' '; 64 * 1024 * 1024]).unwrap();
        for size in [0, 1000, MAX_OBJECT, MAX_OBJECT + 1, u64::MAX] {
            let patch = Patch {
                previous: before.digest(),
                size,
                data: data.clone(),
            };
            assert!(matches!(
                patch.apply(&before),
                Err(DecodeError::Compression(_))
            ));
        }
    }

    proptest! {
        #[test]
        fn a_patch_gives_the_object(
            before in vec("[a-z${} ]{0,40}", 0..40),
            after in vec("[a-z${} ]{0,40}", 0..40),
            shared in 0_usize..60,
        ) {
            let lines = noise(shared);
            let before = config("a", &[&lines[..], &before[..]].concat());
            let after = config("a", &[&after[..], &lines[..]].concat());
            let (whole, patches) = patched(vec![after.clone()], [&before]);
            if let Some(patch) = patches.first() {
                prop_assert_eq!(patch.apply(&before).unwrap(), after);
            } else {
                prop_assert_eq!(whole, vec![after]);
            }
        }

        #[test]
        fn a_damaged_patch_gives_no_other_object(
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut data = noise(30);
            let before = config("a", &data);
            data[7] = "changed".to_owned();
            let after = config("a", &data);
            let (_, mut patches) = patched(vec![after.clone()], [&before]);
            let mut patch = patches.remove(0);
            let at = at.index(patch.data.len());
            patch.data[at] = byte;
            // What comes out, if anything, is an object; whether it is the one that was promised, its digest says.
            if let Ok(object) = patch.apply(&before) {
                prop_assert!(object.body().len() as u64 <= patch.size);
            }
            patch.data.truncate(cut.index(patch.data.len()));
            prop_assert!(patch.apply(&before).is_err());
            prop_assert!(patch.apply(&after).is_err());
        }
    }
}
