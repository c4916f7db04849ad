//! Provisioning tokens.

use std::{collections::BTreeMap, sync::Arc};

use longshore_controller::store::{StoreError, fleets, tokens};
use longshore_protocol::{Digest, TokenId, api::Approval};
use sqlx::AnyConnection;
use tokio::{sync::Barrier, task::JoinSet};

use super::{
    contracts,
    database::Database,
    samples::{fleet_id, tenant, token, two_tenants},
};

contracts!(
    a_token_comes_back_as_it_was,
    a_secret_belongs_to_one_token,
    tenants_tokens_do_not_mix,
    uses_are_exact_however_many_come_at_once,
    an_expired_or_revoked_token_has_no_uses,
    a_use_that_is_not_committed_does_not_count,
    only_its_own_fleet_revokes_a_token,
    tokens_go_with_their_fleet,
);

async fn insert(database: &Database, token: &tokens::Token, secret: &str) {
    let mut db = database.write().await;
    tokens::insert(&mut db, token, Digest::of(secret.as_bytes()))
        .await
        .unwrap();
    db.commit().await.unwrap();
}

async fn with_secret(db: &mut AnyConnection, secret: &str) -> Option<tokens::Token> {
    let hash = Digest::of(secret.as_bytes());
    let mut found = tokens::by_hashes(db, &[hash]).await.unwrap();
    found.remove(&hash).map(Result::unwrap)
}

async fn take(database: &Database, token: &tokens::Token, now: u64) -> bool {
    let mut db = database.write().await;
    let counted = tokens::take_use(&mut db, token, now).await.unwrap();
    db.commit().await.unwrap();
    counted
}

async fn a_token_comes_back_as_it_was(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let full = tokens::Token {
        label: "straße \u{1f6a2} 'quoted' $1".to_owned(),
        approval: Approval::Automatic,
        uses: 3,
        max_uses: Some(u32::MAX),
        expires_at: Some(1_700_000_000_000),
        revoked: true,
        overlay: Some("groups/kiosk".to_owned()),
        labels: BTreeMap::from([("a/b".to_owned(), String::new())]),
        created_at: 9,
        ..token(&shops, 2)
    };
    insert(&database, &full, "full").await;
    insert(&database, &token(&shops, 1), "plain").await;

    let mut db = database.read().await;
    let all = tokens::list(&mut db, &shops).await.unwrap();
    let ids: Vec<_> = all.iter().map(|token| token.id.clone()).collect();
    let expected = [[1; 16], [2; 16]].map(TokenId::from_random);
    assert_eq!(ids, expected, "oldest first");
    let tenant = tenant("one");
    let by_hash = with_secret(&mut db, "full").await;
    let by_id = tokens::find(&mut db, &tenant, &full.id).await.unwrap();
    for found in [&all[1], &by_hash.unwrap(), &by_id.unwrap()] {
        assert_eq!(format!("{found:?}"), format!("{full:?}"));
    }
    let hashes = ["full", "no", "plain"].map(|secret| Digest::of(secret.as_bytes()));
    let found = tokens::by_hashes(&mut db, &hashes).await.unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    for (hash, n) in [(hashes[0], 2), (hashes[2], 1)] {
        let token = found[&hash].as_ref().unwrap();
        assert_eq!(token.id, TokenId::from_random([n; 16]));
    }
}

async fn a_secret_belongs_to_one_token(database: Database) {
    two_tenants(&database).await;
    insert(&database, &token(&fleet_id("one", "shops"), 1), "same").await;
    let other = token(&fleet_id("two", "shops"), 2);
    let mut db = database.write().await;
    let error = tokens::insert(&mut db, &other, Digest::of(b"same"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Duplicate(_)), "{error:?}");
}

async fn tenants_tokens_do_not_mix(database: Database) {
    two_tenants(&database).await;
    let (ours, theirs) = (fleet_id("one", "shops"), fleet_id("two", "shops"));
    // The same public id in both, and one that only the other has.
    insert(&database, &token(&ours, 1), "ours").await;
    insert(&database, &token(&theirs, 1), "theirs").await;
    insert(&database, &token(&theirs, 2), "only theirs").await;

    let only_theirs = TokenId::from_random([2; 16]);
    let mut db = database.write().await;
    let found = tokens::find(&mut db, &ours.tenant, &only_theirs)
        .await
        .unwrap();
    assert!(found.is_none());
    assert_eq!(tokens::list(&mut db, &ours).await.unwrap().len(), 1);
    assert!(!tokens::revoke(&mut db, &ours, &only_theirs).await.unwrap());
    let same = TokenId::from_random([1; 16]);
    assert!(tokens::revoke(&mut db, &ours, &same).await.unwrap());
    db.commit().await.unwrap();

    assert!(!take(&database, &token(&ours, 1), 0).await);
    assert!(take(&database, &token(&theirs, 1), 0).await);
    let mut db = database.read().await;
    let theirs = with_secret(&mut db, "theirs").await;
    let theirs = theirs.unwrap();
    assert_eq!((theirs.uses, theirs.revoked), (1, false));
}

async fn uses_are_exact_however_many_come_at_once(database: Database) {
    two_tenants(&database).await;
    let limited = tokens::Token {
        max_uses: Some(10),
        ..token(&fleet_id("one", "shops"), 1)
    };
    insert(&database, &limited, "limited").await;

    let start = Arc::new(Barrier::new(50));
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let (database, limited, start) = (database.clone(), limited.clone(), start.clone());
        tasks.spawn(async move {
            start.wait().await;
            take(&database, &limited, 0).await
        });
    }
    let taken = tasks.join_all().await;
    assert_eq!(taken.iter().filter(|taken| **taken).count(), 10);
    let mut db = database.read().await;
    let now = tokens::list(&mut db, &limited.fleet).await.unwrap();
    assert_eq!(now[0].uses, 10);
}

async fn an_expired_or_revoked_token_has_no_uses(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let expiring = tokens::Token {
        expires_at: Some(100),
        ..token(&shops, 1)
    };
    let revoked = tokens::Token {
        revoked: true,
        ..token(&shops, 2)
    };
    let used_up = tokens::Token {
        max_uses: Some(0),
        ..token(&shops, 3)
    };
    for (token, secret) in [(&expiring, "a"), (&revoked, "b"), (&used_up, "c")] {
        insert(&database, token, secret).await;
    }
    assert!(take(&database, &expiring, 99).await);
    assert!(
        !take(&database, &expiring, 100).await,
        "expired at that very moment"
    );
    assert!(!take(&database, &revoked, 0).await);
    assert!(!take(&database, &used_up, 0).await);
    assert!(!take(&database, &token(&shops, 4), 0).await, "unknown");

    let mut db = database.write().await;
    assert!(tokens::revoke(&mut db, &shops, &expiring.id).await.unwrap());
    assert!(
        tokens::revoke(&mut db, &shops, &expiring.id).await.unwrap(),
        "twice is fine"
    );
    db.commit().await.unwrap();
    assert!(!take(&database, &expiring, 0).await);
}

async fn a_use_that_is_not_committed_does_not_count(database: Database) {
    two_tenants(&database).await;
    let once = tokens::Token {
        max_uses: Some(1),
        ..token(&fleet_id("one", "shops"), 1)
    };
    insert(&database, &once, "once").await;
    let mut db = database.write().await;
    assert!(tokens::take_use(&mut db, &once, 0).await.unwrap());
    drop(db);
    assert!(take(&database, &once, 0).await);
    assert!(!take(&database, &once, 0).await);
}

async fn only_its_own_fleet_revokes_a_token(database: Database) {
    two_tenants(&database).await;
    let token = token(&fleet_id("one", "shops"), 1);
    insert(&database, &token, "a").await;
    let mut db = database.write().await;
    let boats = fleet_id("one", "boats");
    assert!(!tokens::revoke(&mut db, &boats, &token.id).await.unwrap());
    assert!(tokens::list(&mut db, &boats).await.unwrap().is_empty());
    assert!(!tokens::list(&mut db, &token.fleet).await.unwrap()[0].revoked);
}

async fn tokens_go_with_their_fleet(database: Database) {
    two_tenants(&database).await;
    let (ours, theirs) = (fleet_id("one", "shops"), fleet_id("two", "shops"));
    insert(&database, &token(&ours, 1), "ours").await;
    insert(&database, &token(&theirs, 1), "theirs").await;
    let mut db = database.write().await;
    assert!(fleets::delete(&mut db, &ours).await.unwrap());
    db.commit().await.unwrap();
    let mut db = database.read().await;
    let gone = with_secret(&mut db, "ours").await;
    assert!(gone.is_none());
    let kept = with_secret(&mut db, "theirs").await;
    assert!(kept.is_some());
}
