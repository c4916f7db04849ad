//! No statement of the store reads a whole table that grows, whatever it looks up: SQLite's own plan says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex},
};

use longshore_controller::replica::ReplicaId;
use longshore_controller::store::{
    Engine, content,
    devices::{self, Description},
    fleets::{self, FleetStatus, Revision},
    replicas,
    tenants::{self, Operator},
    tokens,
};
use longshore_fleet::InputKey;
use longshore_protocol::{
    Digest, Generation, ManifestSet,
    api::DeviceState,
    message::{Held, Phase, StatusReport},
};
use sqlx::AssertSqlSafe;
use tracing::field::{Field, Visit};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

use super::{
    database::{self, Database},
    samples::{
        coming, desired, device, device_id, fleet_id, object, observed, reported, token,
        two_tenants,
    },
};

/// The statements that `sqlx` says it ran.
#[derive(Clone, Debug, Default)]
struct Statements(Arc<Mutex<BTreeSet<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            event.record(&mut Text(self));
        }
    }
}

struct Text<'a>(&'a Statements);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // Short ones stand in the summary only.
        if ["db.statement", "summary"].contains(&field.name()) && !value.contains('…') {
            self.0.0.lock().unwrap().insert(value.trim().to_owned());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lookup_uses_an_index() {
    let statements = Statements::default();
    let filter = tracing_subscriber::EnvFilter::new("sqlx::query=debug");
    // For the whole process: SQLite works on threads of its own.
    tracing_subscriber::registry()
        .with(statements.clone().with_filter(filter))
        .init();
    database::with(Engine::Sqlite, async move |database: Database| {
        two_tenants(&database).await;
        statements.0.lock().unwrap().clear();
        use_everything(&database).await;
        let statements = statements.0.lock().unwrap().clone();
        let mut explained = 0;
        let mut db = database.read().await;
        for sql in statements {
            let verb = sql.split_whitespace().next().unwrap_or_default();
            if !["SELECT", "INSERT", "UPDATE", "DELETE"].contains(&verb) {
                continue;
            }
            explained += 1;
            let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let plan: Vec<(i64, i64, i64, String)> =
                sqlx::query_as(explain).fetch_all(&mut *db).await.unwrap();
            for (_, _, _, step) in plan {
                let table = step.strip_prefix("SCAN ").map(|rest| {
                    let name = rest.split_whitespace().next().unwrap_or_default();
                    name.to_owned()
                });
                // The values of a bulk statement are scanned, and these are asked for as a whole.
                let as_a_whole = sql.starts_with("SELECT name, created_at FROM tenants")
                    || sql.starts_with("SELECT * FROM fleets ORDER BY")
                    || sql.starts_with("SELECT tenant, name, created_at, connection FROM fleets")
                    || sql.starts_with("DELETE FROM replicas");
                let grows = [
                    "devices",
                    "desired",
                    "connections",
                    "observed",
                    "tokens",
                    "api_tokens",
                    "renders",
                    "objects",
                    "sets",
                    "revisions",
                    "fleets",
                    "tenants",
                    "other",
                ];
                let scanned = table.filter(|table| grows.contains(&&**table));
                assert!(scanned.is_none() || as_a_whole, "{step}\n{sql}");
            }
        }
        assert!(explained >= 38, "only {explained} statements were seen");
    })
    .await;
}

async fn use_everything(database: &Database) {
    let shops = fleet_id("one", "shops");
    let tenant = &shops.tenant;
    let hash = Digest::of(b"secret");
    let first = device(&shops, 1);
    let token = token(&shops, 1);
    let object = object("a", "1");
    let set = ManifestSet::of([&object]).unwrap();
    let key = InputKey(hash);
    let revision = Revision {
        commit: "abc".to_owned(),
        summary: String::new(),
        author: String::new(),
        observed_at: 1,
        devices_changed: 1,
        problems: 0,
    };
    let report = StatusReport {
        held: Held {
            generation: Generation::FIRST,
            digest: hash,
        },
        phase: Phase::Applied,
        conditions: Vec::new(),
    };
    let description = Description {
        id: first.id.clone(),
        name: "other".parse().unwrap(),
        labels: BTreeMap::new(),
        conditions: Vec::new(),
    };
    let ids = [first.id.clone()];
    let mut db = database.write().await;
    let db = &mut *db;

    tenants::list(db).await.unwrap();
    tenants::exists(db, tenant).await.unwrap();
    tenants::insert_api_token(db, hash, &Operator::Administrator, "", 1)
        .await
        .unwrap();
    tenants::operator(db, hash).await.unwrap();

    fleets::links(db).await.unwrap();
    fleets::list(db, tenant).await.unwrap();
    fleets::find(db, &shops).await.unwrap();
    fleets::set_status(db, &shops, &FleetStatus::default())
        .await
        .unwrap();
    fleets::confirm_removals(db, &shops, "abc").await.unwrap();
    fleets::record_revision(db, &shops, &revision)
        .await
        .unwrap();
    fleets::revisions(db, &shops, 5).await.unwrap();

    tokens::insert(db, &token, hash).await.unwrap();
    tokens::list(db, &shops).await.unwrap();
    tokens::by_hashes(db, &[hash]).await.unwrap();
    tokens::find(db, tenant, &token.id).await.unwrap();
    tokens::take_use(db, &token, 1).await.unwrap();
    tokens::revoke(db, &shops, &token.id).await.unwrap();

    devices::insert(db, &first).await.unwrap();
    devices::by_key(db, &shops, first.public_key).await.unwrap();
    devices::by_id(db, &first.id).await.unwrap();
    devices::find(db, &shops, &first.name).await.unwrap();
    devices::put_desired(db, &shops, &[(device_id(1), desired(1, "a"))])
        .await
        .unwrap();
    devices::desired(db, tenant, &first.id).await.unwrap();
    devices::raise_generation(db, &shops, &first.id, Generation::FIRST)
        .await
        .unwrap();
    devices::put_observed(
        db,
        &ReplicaId::random(),
        &[reported(&first, &observed(report, 1))],
    )
    .await
    .unwrap();
    devices::standings(db, &ids).await.unwrap();
    devices::list(db, &shops).await.unwrap();
    devices::view(db, first.clone()).await.unwrap();
    devices::set_state(db, &shops, &ids, DeviceState::Active, "")
        .await
        .unwrap();
    devices::describe(db, &shops, &[description]).await.unwrap();
    devices::set_branch_pushed(db, &shops, std::slice::from_ref(&first.id))
        .await
        .unwrap();
    devices::set_folder_to_delete(db, &shops, &first.id, false)
        .await
        .unwrap();
    let replica = ReplicaId::random();
    for came in [true, false] {
        devices::put_connections(db, &replica, &[coming(&first, came, 1)])
            .await
            .unwrap();
    }
    devices::set_facts(
        db,
        &[(
            &shops,
            &first.id,
            &BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        )],
    )
    .await
    .unwrap();
    devices::lagging_at(db, &replica, 1).await.unwrap();
    replicas::alone(db, &replica).await.unwrap();

    let build = Ok(vec![object.clone()]);
    content::put_build(db, tenant, key, &build, 1)
        .await
        .unwrap();
    content::builds(db, tenant, &[key]).await.unwrap();
    content::objects(db, tenant, [object.digest()])
        .await
        .unwrap();
    content::put_sets(db, tenant, [&set]).await.unwrap();
    content::sets(db, tenant, &[set.digest()]).await.unwrap();

    fleets::delete(db, &shops).await.unwrap();
}
