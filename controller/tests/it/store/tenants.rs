//! Tenants and operators' tokens.

use longshore_controller::store::{
    StoreError,
    tenants::{self, Operator},
};
use longshore_protocol::Digest;

use super::{contracts, database::Database, samples::tenant};

contracts!(
    a_tenant_is_found_by_its_name,
    a_name_is_taken_once,
    an_operators_token_says_whose_it_is,
    a_token_given_twice_keeps_its_first_holder,
    what_is_not_committed_is_not_there,
);

async fn a_tenant_is_found_by_its_name(database: Database) {
    let mut db = database.write().await;
    tenants::insert(&mut db, &tenant("zebra"), 20)
        .await
        .unwrap();
    tenants::insert(&mut db, &tenant("ape"), 10).await.unwrap();
    db.commit().await.unwrap();

    let mut db = database.read().await;
    let all = tenants::list(&mut db).await.unwrap();
    let all: Vec<_> = all
        .iter()
        .map(|tenant| (tenant.name.as_str(), tenant.created_at))
        .collect();
    assert_eq!(all, [("ape", 10), ("zebra", 20)]);
    assert!(tenants::exists(&mut db, &tenant("ape")).await.unwrap());
    assert!(!tenants::exists(&mut db, &tenant("cow")).await.unwrap());
}

async fn a_name_is_taken_once(database: Database) {
    let mut db = database.write().await;
    tenants::insert(&mut db, &tenant("ape"), 10).await.unwrap();
    db.commit().await.unwrap();

    let mut db = database.write().await;
    let error = tenants::insert(&mut db, &tenant("ape"), 20)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Duplicate(_)), "{error:?}");
}

async fn an_operators_token_says_whose_it_is(database: Database) {
    let (all, one) = (Digest::of(b"all"), Digest::of(b"one"));
    let holder = Operator::Tenant(tenant("ape"));
    let mut db = database.write().await;
    tenants::insert(&mut db, &tenant("ape"), 10).await.unwrap();
    tenants::insert_api_token(&mut db, all, &Operator::Administrator, "bootstrap", 1)
        .await
        .unwrap();
    tenants::insert_api_token(&mut db, one, &holder, "ape's", 1)
        .await
        .unwrap();
    db.commit().await.unwrap();

    let mut db = database.read().await;
    let found = tenants::operator(&mut db, all).await.unwrap();
    assert_eq!(found, Some(Operator::Administrator));
    assert_eq!(tenants::operator(&mut db, one).await.unwrap(), Some(holder));
    let unknown = Digest::of(b"unknown");
    assert_eq!(tenants::operator(&mut db, unknown).await.unwrap(), None);
}

async fn a_token_given_twice_keeps_its_first_holder(database: Database) {
    let hash = Digest::of(b"secret");
    let holder = Operator::Tenant(tenant("ape"));
    let mut db = database.write().await;
    tenants::insert(&mut db, &tenant("ape"), 10).await.unwrap();
    for operator in [&holder, &Operator::Administrator] {
        tenants::insert_api_token(&mut db, hash, operator, "", 1)
            .await
            .unwrap();
    }
    db.commit().await.unwrap();
    let mut db = database.read().await;
    assert_eq!(
        tenants::operator(&mut db, hash).await.unwrap(),
        Some(holder)
    );
}

async fn what_is_not_committed_is_not_there(database: Database) {
    let mut db = database.write().await;
    tenants::insert(&mut db, &tenant("ape"), 10).await.unwrap();
    drop(db);
    // The writer's place is free again as well.
    let mut db = database.write().await;
    assert!(!tenants::exists(&mut db, &tenant("ape")).await.unwrap());
}
