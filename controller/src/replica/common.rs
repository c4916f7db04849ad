//! What replicas must have in common: the master key, and the certificate authority.
//!
//! The key is given to each (`LONGSHORE_SECRET_KEY`, or `secret.key` in its data directory); the database only knows
//! how to tell whether it is the right one. The authority that the first replica made is kept in the database,
//! encrypted with that key, and the others' data directories get a copy. So a second replica takes the database's URL
//! and the key, and nothing else.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    ca::{Ca, CaError},
    files::{self, FileError},
    secret::{Keyring, SecretError},
    store::{Store, StoreError, shared},
};

const KEY: &str = "key";
const AUTHORITY: &str = "authority";
/// The files of an authority, the one by which two are told apart first.
const FILES: [(&str, u32); 4] = [
    (ROOT, 0o644),
    (ROOT_KEY, 0o600),
    ("intermediate-key.pem", 0o600),
    ("intermediate.pem", 0o644),
];
const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root-key.pem";

/// Why a controller cannot be one of those that share a database.
#[derive(Debug, thiserror::Error)]
pub enum CommonError {
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The data directory failed.
    #[error("the data directory failed")]
    File(#[from] FileError),
    /// Nothing can be encrypted.
    #[error("the certificate authority cannot be encrypted")]
    Secret(#[from] SecretError),
    /// The authority failed.
    #[error("the certificate authority cannot be used")]
    Ca(#[from] CaError),
    /// The key is another one.
    #[error(
        "the database belongs to controllers with another secret key; give this one theirs as LONGSHORE_SECRET_KEY, \
         or copy `secret.key` from a data directory of theirs"
    )]
    OtherKey,
    /// The authority is another one.
    #[error(
        "{} is another certificate authority than the one in the database; if no device has a certificate of it, move \
         that directory away and start again",
        .0.display()
    )]
    OtherAuthority(PathBuf),
}

/// Checks that the master key is the one that this database was first used with.
pub async fn check_key(store: &Store, keyring: &Keyring) -> Result<(), CommonError> {
    let mut db = store.write().await?;
    let mut sealed = shared::find(&mut db, KEY).await?;
    if sealed.is_none() {
        let value = keyring.encrypt(KEY, &SecretString::from("longshore"))?;
        shared::put(&mut db, KEY, &value, None).await?;
        // Another one may have been faster.
        sealed = shared::find(&mut db, KEY).await?;
    }
    db.commit().await.map_err(StoreError::from)?;
    match keyring.decrypt(KEY, &sealed.unwrap_or_default()) {
        Ok(_) => Ok(()),
        Err(_) => Err(CommonError::OtherKey),
    }
}

/// Opens the authority that all replicas have: the database's, else the one of the data directory, which is then the
/// database's, too.
///
/// # Errors
/// Where the data directory has another one.
pub async fn authority(
    store: &Store,
    keyring: &Keyring,
    data_dir: &Path,
    open: impl Fn() -> Result<Ca, CaError>,
) -> Result<Ca, CommonError> {
    let directory = data_dir.join("ca");
    let was_here = files::read(&directory.join(ROOT))?.is_some();
    let known = find(store, keyring).await?;
    if let Some((_, files)) = &known {
        write(&directory, files, !was_here)?;
    }
    // This may have made it, or renewed it.
    let ca = open()?;
    let mut ours = read(&directory)?;
    if let Some((_, files)) = &known
        && ours.get(ROOT) == files.get(ROOT)
        && let Some(key) = files.get(ROOT_KEY)
    {
        // It may have been taken away from here.
        ours.insert(ROOT_KEY.to_owned(), key.clone());
    }
    if known.as_ref().is_some_and(|(_, files)| *files == ours) {
        return Ok(ca);
    }
    let text = serde_json::to_string(&ours).unwrap_or_default();
    let value = keyring.encrypt(AUTHORITY, &text.into())?;
    let mut db = store.write().await?;
    let before = known.as_ref().map(|(sealed, _)| sealed.as_slice());
    shared::put(&mut db, AUTHORITY, &value, before).await?;
    db.commit().await.map_err(StoreError::from)?;
    match find(store, keyring).await? {
        Some((_, theirs)) if theirs != ours => {
            // Another one was faster.
            write(&directory, &theirs, !was_here)?;
            Ok(open()?)
        }
        _ => Ok(ca),
    }
}

type Files = BTreeMap<String, String>;

async fn find(store: &Store, keyring: &Keyring) -> Result<Option<(Vec<u8>, Files)>, CommonError> {
    let mut db = store.read().await?;
    let Some(sealed) = shared::find(&mut db, AUTHORITY).await? else {
        return Ok(None);
    };
    let text = keyring.decrypt(AUTHORITY, &sealed)?;
    let files =
        serde_json::from_str(text.expose_secret()).map_err(|_detail| SecretError::Undecryptable)?;
    Ok(Some((sealed, files)))
}

fn read(directory: &Path) -> Result<Files, FileError> {
    let mut all = Files::new();
    for (name, _) in FILES {
        if let Some(text) = files::read(&directory.join(name))? {
            all.insert(name.to_owned(), text);
        }
    }
    Ok(all)
}

/// Writes an authority's files. Another authority is only overwritten where it `may_replace` it.
fn write(directory: &Path, all: &Files, may_replace: bool) -> Result<(), CommonError> {
    let here = read(directory)?;
    if here
        .get(ROOT)
        .is_some_and(|root| Some(root) != all.get(ROOT))
        && !may_replace
    {
        return Err(CommonError::OtherAuthority(directory.to_owned()));
    }
    files::create_private_directory(directory)?;
    // The root's key may have been taken away from here, and is not brought back by itself. Another root's key goes.
    let is_same = here.contains_key(ROOT) && here.get(ROOT) == all.get(ROOT);
    if !is_same && !all.contains_key(ROOT_KEY) && here.contains_key(ROOT_KEY) {
        return Err(CommonError::OtherAuthority(directory.to_owned()));
    }
    for (name, mode) in FILES {
        if let Some(text) = all.get(name)
            && here.get(name) != Some(text)
            && (name != ROOT_KEY || !is_same)
        {
            files::write(&directory.join(name), text.as_bytes(), mode)?;
        }
    }
    Ok(())
}
