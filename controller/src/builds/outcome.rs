//! What builds gave, brought back from the store, and what a device takes of it.

use std::collections::BTreeMap;

use longshore_fleet::{DeviceSpec, InputKey, Variables};
use longshore_protocol::{
    ManifestSet, Object, TenantName,
    message::{MAX_OBJECT, MAX_OBJECTS},
};
use sqlx::AnyConnection;

use crate::store::{
    StoreError,
    content::{self, Build},
};

/// The objects that came out, or the message with which the build fails.
pub type Outcome = Result<Vec<Object>, String>;

/// The outcomes of `keys`, as far as the store has them. A build whose objects are gone has none: it is built again.
pub async fn load(
    db: &mut AnyConnection,
    tenant: &TenantName,
    keys: &[InputKey],
) -> Result<BTreeMap<InputKey, Outcome>, StoreError> {
    let builds = content::builds(db, tenant, keys).await?;
    let digests = builds.values().flat_map(|build| match build {
        Build::Objects(digests) => digests.as_slice(),
        Build::Failed(_) => &[],
    });
    let objects = content::objects(db, tenant, digests.copied()).await?;
    let outcome = |build| match build {
        Build::Failed(message) => Some(Err(message)),
        Build::Objects(digests) => {
            let bodies = digests.iter().map(|digest| objects.get(digest).cloned());
            bodies.collect::<Option<Vec<_>>>().map(Ok)
        }
    };
    Ok(builds
        .into_iter()
        .filter_map(|(key, build)| Some((key, outcome(build)?)))
        .collect())
}

/// Whether some object may have `${…}` references, so that devices do not share what it becomes.
pub fn has_references(objects: &[Object]) -> bool {
    objects
        .iter()
        .any(|object| object.body().windows(2).any(|pair| pair == b"${"))
}

/// What one device is to run of a build: the objects with its variables, and their set.
///
/// # Errors
/// Why it cannot be, with object and field.
pub fn of_device(
    spec: &DeviceSpec,
    objects: &[Object],
) -> Result<(Vec<Object>, ManifestSet), String> {
    let objects = Variables::of(spec)
        .substitute(objects)
        .map_err(|error| error.to_string())?;
    let set = set_of(&objects)?;
    Ok((objects, set))
}

/// The set of these objects, if a device would take it.
pub fn set_of(objects: &[Object]) -> Result<ManifestSet, String> {
    if objects.len() > MAX_OBJECTS {
        return Err(format!(
            "{} objects are more than {MAX_OBJECTS}",
            objects.len()
        ));
    }
    if let Some(large) = objects
        .iter()
        .find(|object| object.body().len() as u64 > MAX_OBJECT)
    {
        return Err(format!(
            "{} is larger than {} MiB",
            large.key(),
            MAX_OBJECT / (1024 * 1024)
        ));
    }
    ManifestSet::of(objects).map_err(|error| error.to_string())
}
