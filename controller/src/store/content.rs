//! Content by its digest: builds, objects and manifest sets. Written once, never changed.

use std::collections::{BTreeMap, BTreeSet};

use longshore_fleet::closure::InputKey;
use longshore_protocol::{Digest, Entry, ManifestSet, Object, TenantName};
use sqlx::{AnyConnection, FromRow, any::AnyRow};
use tracing::warn;

use super::{
    StoreError, corrupt, from_json, in_chunks, is_common, json, parse, placeholders, signed,
};

const COMPRESSION: i32 = 3;

/// What building an input key gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Build {
    /// The objects that came out.
    Objects(Vec<Digest>),
    /// It fails, and will always fail, with this message.
    Failed(String),
}

/// Remembers what building each key gave, and the objects.
pub async fn put_builds(
    db: &mut AnyConnection,
    tenant: &TenantName,
    builds: &BTreeMap<InputKey, &Result<Vec<Object>, String>>,
    now: u64,
) -> Result<(), StoreError> {
    let objects = builds.values().flat_map(|build| build.iter().flatten());
    put_objects(&mut *db, tenant, objects).await?;
    let rows: Vec<_> = builds.iter().collect();
    in_chunks(
        db,
        &rows,
        5,
        |rows| {
            format!(
                "INSERT INTO renders (tenant, input_key, objects, error, created_at) VALUES {rows}
                 ON CONFLICT (tenant, input_key) DO NOTHING"
            )
        },
        |query, (key, build)| {
            let digests = |objects: &Vec<Object>| {
                json(&objects.iter().map(Object::digest).collect::<Vec<_>>())
            };
            query
                .bind(tenant.to_string())
                .bind(key.0.to_string())
                .bind(build.as_ref().ok().map(digests))
                .bind(build.as_ref().err().cloned())
                .bind(signed(now))
        },
    )
    .await?;
    Ok(())
}

/// What building `keys` gave, where it was built before.
pub async fn builds(
    db: &mut AnyConnection,
    tenant: &TenantName,
    keys: &[InputKey],
) -> Result<BTreeMap<InputKey, Build>, StoreError> {
    let keys: Vec<_> = keys.iter().map(|key| key.0).collect();
    let select = "SELECT input_key, objects, error FROM renders WHERE input_key";
    let rows: Vec<(String, Option<String>, Option<String>)> =
        rows_of(db, tenant, select, &keys).await?;
    rows.into_iter()
        .map(|(key, objects, error)| {
            let build = match objects {
                Some(objects) => Build::Objects(from_json(&objects, "renders.objects")?),
                None => Build::Failed(error.unwrap_or_default()),
            };
            Ok((InputKey(parse(&key, "renders.input_key")?), build))
        })
        .collect()
}

/// Remembers objects. A row that was damaged is mended.
pub async fn put_objects<'a>(
    db: &mut AnyConnection,
    tenant: &TenantName,
    objects: impl IntoIterator<Item = &'a Object>,
) -> Result<(), StoreError> {
    let unique: BTreeMap<_, _> = objects
        .into_iter()
        .map(|object| (object.digest(), object))
        .collect();
    let encode = |object: &&Object| compress(object.body());
    put(db, tenant, unique, encode, |rows| {
        format!(
            "INSERT INTO objects (tenant, digest, body) VALUES {rows}
             ON CONFLICT (tenant, digest) DO UPDATE SET body = excluded.body
             WHERE objects.body <> excluded.body"
        )
    })
    .await
}

/// The objects with these digests. Those that the store does not have, or that are damaged, are left out.
pub async fn objects(
    db: &mut AnyConnection,
    tenant: &TenantName,
    digests: impl IntoIterator<Item = Digest>,
) -> Result<BTreeMap<Digest, Object>, StoreError> {
    let unique: Vec<_> = digests
        .into_iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let select = "SELECT digest, body FROM objects WHERE digest";
    let rows: Vec<(String, Vec<u8>)> = rows_of(db, tenant, select, &unique).await?;
    let mut found = BTreeMap::new();
    for (digest, body) in rows {
        match intact(&digest, &body) {
            Ok(object) => {
                found.insert(object.digest(), object);
            }
            // Building it again mends it; an error here would hold up the whole fleet.
            Err(error) => warn!(%tenant, digest, %error, "an object is damaged"),
        }
    }
    Ok(found)
}

fn intact(digest: &str, body: &[u8]) -> Result<Object, StoreError> {
    let object = Object::from_canonical(decompress(body, "objects.body")?)
        .map_err(|error| corrupt("objects.body", &error.to_string()))?;
    if object.digest() != parse(digest, "objects.digest")? {
        return Err(corrupt("objects.body", "an object with another digest"));
    }
    Ok(object)
}

/// Remembers sets. A row that was damaged is mended.
pub async fn put_sets<'a>(
    db: &mut AnyConnection,
    tenant: &TenantName,
    sets: impl IntoIterator<Item = &'a ManifestSet>,
) -> Result<(), StoreError> {
    let unique: BTreeMap<_, _> = sets.into_iter().map(|set| (set.digest(), set)).collect();
    let encode = |set: &&ManifestSet| compress(json(set.entries()).as_bytes());
    put(db, tenant, unique, encode, |rows| {
        format!(
            "INSERT INTO sets (tenant, digest, entries) VALUES {rows}
             ON CONFLICT (tenant, digest) DO UPDATE SET entries = excluded.entries
             WHERE sets.entries <> excluded.entries"
        )
    })
    .await
}

/// The set with this digest.
pub async fn set(
    db: &mut AnyConnection,
    tenant: &TenantName,
    digest: Digest,
) -> Result<Option<ManifestSet>, StoreError> {
    sets(db, tenant, &[digest])
        .await?
        .remove(&digest)
        .transpose()
}

/// The sets with these digests. Those that the store does not have are left out; those that are damaged are errors
/// of their own.
pub async fn sets(
    db: &mut AnyConnection,
    tenant: &TenantName,
    digests: &[Digest],
) -> Result<BTreeMap<Digest, Result<ManifestSet, StoreError>>, StoreError> {
    let select = "SELECT digest, entries FROM sets WHERE digest";
    let rows: Vec<(String, Vec<u8>)> = rows_of(db, tenant, select, digests).await?;
    rows.iter()
        .map(|(digest, entries)| {
            let digest = parse(digest, "sets.digest")?;
            Ok((digest, intact_set(digest, entries)))
        })
        .collect()
}

fn intact_set(digest: Digest, entries: &[u8]) -> Result<ManifestSet, StoreError> {
    let entries: Vec<Entry> = serde_json::from_slice(&decompress(entries, "sets.entries")?)
        .map_err(|error| corrupt("sets.entries", &error.to_string()))?;
    let set =
        ManifestSet::new(entries).map_err(|error| corrupt("sets.entries", &error.to_string()))?;
    if set.digest() != digest {
        return Err(corrupt("sets.entries", "a set with another digest"));
    }
    Ok(set)
}

/// The tenant's rows of content with these digests; `select` ends in the column to compare.
async fn rows_of<T>(
    db: &mut AnyConnection,
    tenant: &TenantName,
    select: &str,
    digests: &[Digest],
) -> Result<Vec<T>, StoreError>
where
    T: for<'r> FromRow<'r, AnyRow> + Send + Unpin,
{
    let mut found = Vec::new();
    for chunk in digests.chunks(super::ROWS_PER_STATEMENT) {
        let sql = format!(
            "{select} IN {} AND tenant = ${}",
            placeholders(1, chunk.len()),
            chunk.len() + 1
        );
        let mut query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).persistent(is_common(chunk.len()));
        for digest in chunk {
            query = query.bind(digest.to_string());
        }
        found.extend(query.bind(tenant.as_str()).fetch_all(&mut *db).await?);
    }
    Ok(found)
}

/// Writes content by its digest, with the statement that `statement` makes of the rows' placeholders. What a statement
/// writes is encoded right before it, so that a transaction is never idle for long.
async fn put<T>(
    db: &mut AnyConnection,
    tenant: &TenantName,
    content: BTreeMap<Digest, T>,
    encode: impl Fn(&T) -> Vec<u8>,
    statement: impl Fn(&str) -> String,
) -> Result<(), StoreError> {
    let content: Vec<_> = content.into_iter().collect();
    for chunk in content.chunks(super::ROWS_PER_STATEMENT) {
        let rows: Vec<_> = chunk
            .iter()
            .map(|(digest, content)| (digest.to_string(), encode(content)))
            .collect();
        in_chunks(db, &rows, 3, &statement, |query, (digest, content)| {
            query
                .bind(tenant.to_string())
                .bind(digest)
                .bind(content.as_slice())
        })
        .await?;
    }
    Ok(())
}

pub(super) fn compress(bytes: &[u8]) -> Vec<u8> {
    // In-memory compression at a valid level fails only when memory runs out, and then Rust aborts.
    zstd::bulk::compress(bytes, COMPRESSION).unwrap_or_default()
}

pub(super) fn decompress(bytes: &[u8], column: &'static str) -> Result<Vec<u8>, StoreError> {
    zstd::stream::decode_all(bytes).map_err(|error| corrupt(column, &error.to_string()))
}
