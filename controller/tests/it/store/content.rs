//! Builds, objects and sets by their digest.

use std::collections::BTreeMap;

use longshore_controller::store::{
    StoreError,
    content::{self, Build},
};
use longshore_fleet::InputKey;
use longshore_protocol::{Digest, ManifestSet, Object};

use super::{
    contracts,
    database::Database,
    samples::{object, tenant, two_tenants},
};

contracts!(
    a_build_comes_back_with_its_objects,
    a_failed_build_comes_back_with_its_message,
    builds_and_objects_belong_to_their_tenant,
    much_content_passes_the_chunk_limit,
    a_set_comes_back_in_order,
    a_damaged_object_is_never_handed_out,
    a_damaged_set_is_never_handed_out,
    what_is_damaged_is_mended_by_writing_it_again,
);

fn key(n: u32) -> InputKey {
    InputKey(Digest::of(&n.to_be_bytes()))
}

async fn put_build(database: &Database, key: InputKey, build: Result<Vec<Object>, String>) {
    let mut db = database.write().await;
    content::put_builds(&mut db, &tenant("one"), &BTreeMap::from([(key, &build)]), 1)
        .await
        .unwrap();
    db.commit().await.unwrap();
}

async fn objects(database: &Database, digests: &[Digest]) -> BTreeMap<Digest, Object> {
    let mut db = database.read().await;
    content::objects(&mut db, &tenant("one"), digests.iter().copied())
        .await
        .unwrap()
}

async fn a_build_comes_back_with_its_objects(database: Database) {
    two_tenants(&database).await;
    // Not in the order of their digests or names, and one twice.
    let built = ["c", "a", "b", "a"].map(|name| object(name, "1"));
    let digests: Vec<_> = built.iter().map(Object::digest).collect();
    put_build(&database, key(1), Ok(built.to_vec())).await;
    put_build(&database, key(2), Ok(Vec::new())).await;
    // Somebody built it as well: what was there first stays.
    put_build(&database, key(1), Ok(vec![object("z", "9")])).await;

    let mut db = database.read().await;
    let asked = [key(1), key(2), key(3)];
    let found = content::builds(&mut db, &tenant("one"), &asked)
        .await
        .unwrap();
    let expected = BTreeMap::from([
        (key(1), Build::Objects(digests.clone())),
        (key(2), Build::Objects(Vec::new())),
    ]);
    assert_eq!(found, expected);
    let none = content::builds(&mut db, &tenant("one"), &[]).await.unwrap();
    assert!(none.is_empty());
    drop(db);
    let found = objects(&database, &digests).await;
    let expected: BTreeMap<_, _> = built.into_iter().map(|it| (it.digest(), it)).collect();
    assert_eq!(found, expected);
    assert!(
        objects(&database, &[Digest::of(b"unknown")])
            .await
            .is_empty()
    );
}

async fn a_failed_build_comes_back_with_its_message(database: Database) {
    two_tenants(&database).await;
    let message = "kustomize: 'patch' \u{2014} no such file \\0";
    put_build(&database, key(1), Err(message.to_owned())).await;
    let mut db = database.read().await;
    let found = content::builds(&mut db, &tenant("one"), &[key(1)])
        .await
        .unwrap();
    assert_eq!(found[&key(1)], Build::Failed(message.to_owned()));
}

async fn builds_and_objects_belong_to_their_tenant(database: Database) {
    two_tenants(&database).await;
    let ours = object("a", "1");
    let set = ManifestSet::of([&ours]).unwrap();
    put_build(&database, key(1), Ok(vec![ours.clone()])).await;
    let mut db = database.write().await;
    content::put_sets(&mut db, &tenant("one"), [&set])
        .await
        .unwrap();
    db.commit().await.unwrap();

    let mut db = database.write().await;
    let theirs = tenant("two");
    let builds = content::builds(&mut db, &theirs, &[key(1)]).await.unwrap();
    assert!(builds.is_empty());
    let objects = content::objects(&mut db, &theirs, [ours.digest()])
        .await
        .unwrap();
    assert!(objects.is_empty());
    let found = content::set(&mut db, &theirs, set.digest()).await.unwrap();
    assert!(found.is_none());
    // They may build the same, and it may fail for them.
    let failed = Err("not here".to_owned());
    content::put_builds(&mut db, &theirs, &BTreeMap::from([(key(1), &failed)]), 1)
        .await
        .unwrap();
    let builds = content::builds(&mut db, &tenant("one"), &[key(1)])
        .await
        .unwrap();
    assert_eq!(builds[&key(1)], Build::Objects(vec![ours.digest()]));
}

async fn much_content_passes_the_chunk_limit(database: Database) {
    const MANY: u32 = 2_500;
    two_tenants(&database).await;
    let all: Vec<_> = (0..MANY).map(|n| object("a", &n.to_string())).collect();
    let sets: Vec<_> = all
        .iter()
        .map(|it| ManifestSet::of([it]).unwrap())
        .collect();
    let one = tenant("one");
    let mut db = database.write().await;
    content::put_objects(&mut db, &one, &all).await.unwrap();
    content::put_objects(&mut db, &one, &all).await.unwrap();
    content::put_objects(&mut db, &one, []).await.unwrap();
    content::put_sets(&mut db, &one, &sets).await.unwrap();
    content::put_sets(&mut db, &one, []).await.unwrap();
    for n in 0..MANY {
        let build = Ok(vec![all[n as usize].clone()]);
        content::put_builds(&mut db, &one, &BTreeMap::from([(key(n), &build)]), 1)
            .await
            .unwrap();
    }
    db.commit().await.unwrap();

    let digests: Vec<_> = all.iter().map(Object::digest).collect();
    // Asked for twice each: still one answer each.
    let twice: Vec<_> = digests.iter().chain(&digests).copied().collect();
    assert_eq!(objects(&database, &twice).await.len(), all.len());
    let mut db = database.read().await;
    let keys: Vec<_> = (0..MANY).map(key).collect();
    let builds = content::builds(&mut db, &one, &keys).await.unwrap();
    assert_eq!(builds.len(), keys.len());
    for (key, digest) in keys.iter().zip(&digests) {
        assert_eq!(builds[key], Build::Objects(vec![*digest]));
    }
    for set in sets.iter().step_by(499) {
        let found = content::set(&mut db, &one, set.digest()).await.unwrap();
        assert_eq!(found.as_ref(), Some(set));
    }
}

async fn a_set_comes_back_in_order(database: Database) {
    two_tenants(&database).await;
    let objects: Vec<_> = (0..40)
        .rev()
        .map(|n| object(&format!("o{n}"), "1"))
        .collect();
    let set = ManifestSet::of(&objects).unwrap();
    let empty = ManifestSet::empty();
    let mut db = database.write().await;
    let one = tenant("one");
    content::put_sets(&mut db, &one, [&set, &empty, &set])
        .await
        .unwrap();
    for set in [set, empty] {
        let found = content::set(&mut db, &one, set.digest())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(found.entries(), set.entries());
    }
    let none = content::set(&mut db, &one, Digest::of(b"unknown"))
        .await
        .unwrap();
    assert!(none.is_none());
}

/// Puts the body of `a` where that of `b` belongs, and cuts that of `c`.
async fn damage_objects(database: &Database, [a, b, c]: [&Object; 3]) {
    let (a, b, c) = (a.digest(), b.digest(), c.digest());
    let swap = format!("UPDATE objects SET digest = '{b}' WHERE digest = '{a}'");
    database.damage(&swap).await;
    let cut = format!("UPDATE objects SET body = substr(body, 1, 5) WHERE digest = '{c}'");
    database.damage(&cut).await;
}

async fn a_damaged_object_is_never_handed_out(database: Database) {
    two_tenants(&database).await;
    let (good, wrong, cut) = (
        object("good", "1"),
        object("wrong", "1"),
        object("cut", "1"),
    );
    let absent = object("absent", "1");
    put_build(
        &database,
        key(1),
        Ok(vec![good.clone(), wrong.clone(), cut.clone()]),
    )
    .await;
    damage_objects(&database, [&wrong, &absent, &cut]).await;

    let mut db = database.read().await;
    let one = tenant("one");
    for damaged in [&wrong, &absent, &cut] {
        let asked = [good.digest(), damaged.digest()];
        let found = content::objects(&mut db, &one, asked).await.unwrap();
        assert!(found.into_values().eq([good.clone()]));
    }
}

async fn a_damaged_set_is_never_handed_out(database: Database) {
    two_tenants(&database).await;
    let [a, b, c] = ["a", "b", "c"].map(|name| ManifestSet::of([&object(name, "1")]).unwrap());
    let mut db = database.write().await;
    let one = tenant("one");
    content::put_sets(&mut db, &one, [&a, &c]).await.unwrap();
    db.commit().await.unwrap();
    let (from, to) = (a.digest(), b.digest());
    let swap = format!("UPDATE sets SET digest = '{to}' WHERE digest = '{from}'");
    database.damage(&swap).await;
    let cut = c.digest();
    let cut = format!("UPDATE sets SET entries = substr(entries, 1, 5) WHERE digest = '{cut}'");
    database.damage(&cut).await;

    let mut db = database.read().await;
    for damaged in [&b, &c] {
        let error = content::set(&mut db, &one, damaged.digest())
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    }
}

async fn what_is_damaged_is_mended_by_writing_it_again(database: Database) {
    two_tenants(&database).await;
    let all = ["good", "cut", "wrong", "absent"].map(|name| object(name, "1"));
    let [_, cut, wrong, absent] = &all;
    let set = ManifestSet::of(&all).unwrap();
    let one = tenant("one");
    let put = async || {
        let mut db = database.write().await;
        let build = Ok(all.to_vec());
        content::put_builds(&mut db, &one, &BTreeMap::from([(key(1), &build)]), 1)
            .await
            .unwrap();
        content::put_sets(&mut db, &one, [&set]).await.unwrap();
        db.commit().await.unwrap();
    };
    put().await;
    let gone = format!("DELETE FROM objects WHERE digest = '{}'", absent.digest());
    database.damage(&gone).await;
    damage_objects(&database, [wrong, absent, cut]).await;
    database
        .damage("UPDATE sets SET entries = substr(entries, 1, 5)")
        .await;
    put().await;

    let digests = all.each_ref().map(Object::digest);
    assert_eq!(objects(&database, &digests).await.len(), all.len());
    let mut db = database.read().await;
    let found = content::set(&mut db, &one, set.digest()).await.unwrap();
    assert_eq!(found, Some(set));
}
