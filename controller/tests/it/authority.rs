//! Replicas that start at once on an empty database end with one key and one certificate authority.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use longshore_controller::{
    ca::Ca,
    replica::common::{self, CommonError},
    secret::Keyring,
    store::{Engine, Store},
};
use secrecy::SecretString;
use tokio::{sync::Barrier, task::JoinSet};

use crate::store::database::{self, Database};

const REPLICAS: usize = 12;
const NOW: u64 = 1_700_000_000_000;

async fn authority(store: &Store, keyring: &Keyring, data_dir: &Path) -> Result<Ca, CommonError> {
    let open = || Ca::open(data_dir, None, "longshore.test", NOW);
    common::authority(store, keyring, data_dir, open).await
}

/// The files of an authority, as they lie in a data directory.
fn files(data_dir: &Path) -> Vec<String> {
    let names = [
        "root.pem",
        "root-key.pem",
        "intermediate.pem",
        "intermediate-key.pem",
    ];
    names
        .map(|name| fs::read_to_string(data_dir.join("ca").join(name)).unwrap())
        .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_that_start_at_once_have_one_authority() {
    database::with(Engine::Postgres, async |database: Database| {
        let key = SecretString::from("ab".repeat(32));
        let start = Arc::new(Barrier::new(REPLICAS));
        let mut starting = JoinSet::new();
        for _ in 0..REPLICAS {
            let (store, start, key) = (database.store.clone(), start.clone(), key.clone());
            starting.spawn(async move {
                let directory = tempfile::tempdir().unwrap();
                let keyring = Keyring::open(directory.path(), Some(&key)).unwrap();
                start.wait().await;
                common::check_key(&store, &keyring).await.unwrap();
                let ca = authority(&store, &keyring, directory.path()).await.unwrap();
                (directory, keyring, ca)
            });
        }
        let replicas = starting.join_all().await;
        let roots: BTreeSet<_> = replicas.iter().map(|(_, _, ca)| ca.root_bundle()).collect();
        assert_eq!(roots.len(), 1, "{roots:#?}");
        let kept: BTreeSet<_> = replicas
            .iter()
            .map(|(directory, _, _)| files(directory.path()))
            .collect();
        assert_eq!(kept.len(), 1, "the keys are the same, too");
        let issuers: BTreeSet<_> = replicas
            .iter()
            .map(|(_, _, ca)| format!("{:?}", ca.authority().chain()))
            .collect();
        assert_eq!(issuers.len(), 1, "what is in force is what is kept");

        // A restart, and one that comes later, have the same.
        let (directory, keyring, ca) = &replicas[0];
        let again = authority(&database.store, keyring, directory.path())
            .await
            .unwrap();
        let late = tempfile::tempdir().unwrap();
        let late = authority(&database.store, keyring, late.path())
            .await
            .unwrap();
        for other in [again, late] {
            assert_eq!(other.fingerprint(), ca.fingerprint());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_replicas_with_different_keys_one_starts() {
    database::with(Engine::Postgres, async |database: Database| {
        let start = Arc::new(Barrier::new(REPLICAS));
        let mut starting = JoinSet::new();
        for n in 0..REPLICAS {
            let (store, start) = (database.store.clone(), start.clone());
            starting.spawn(async move {
                let directory = tempfile::tempdir().unwrap();
                let key = SecretString::from(format!("{n:02x}").repeat(32));
                let keyring = Keyring::open(directory.path(), Some(&key)).unwrap();
                start.wait().await;
                common::check_key(&store, &keyring).await
            });
        }
        let ends = starting.join_all().await;
        let (started, refused): (Vec<_>, Vec<_>) = ends.into_iter().partition(Result::is_ok);
        assert_eq!(started.len(), 1);
        for refusal in refused {
            let error = refusal.unwrap_err();
            assert!(matches!(error, CommonError::OtherKey), "{error:?}");
        }
    })
    .await;
}
