//! No statement of the store reads a whole table that grows, whatever it looks up: the databases' own plans say so.
//!
//! SQLite explains the statements that were run. PostgreSQL's `auto_explain` tells the plans that it really used, those
//! of its checks of foreign keys, too.

mod seed;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, LazyLock, Mutex},
};

use longshore_controller::replica::ReplicaId;
use longshore_controller::store::{
    Engine, Store, content,
    devices::{self, Assignment, Description, Device, Waiting},
    fleets::{self, FleetStatus, Revision},
    proposals, replicas,
    tenants::{self, Operator},
    tokens,
};
use longshore_fleet::InputKey;
use longshore_protocol::{
    Condition, Digest, Generation, ManifestSet,
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

/// The tables that grow.
const GROWS: [&str; 14] = [
    "devices",
    "desired",
    "connections",
    "observed",
    "proposals",
    "previews",
    "tokens",
    "api_tokens",
    "renders",
    "objects",
    "sets",
    "revisions",
    "fleets",
    "tenants",
];
/// What is asked for as a whole.
const AS_A_WHOLE: [&str; 3] = [
    "SELECT name, created_at FROM tenants",
    "SELECT tenant, name, created_at, connection FROM fleets",
    "DELETE FROM replicas",
];

/// What asks for a fleet's changes, which are few however large it is.
const CHANGES: &str = "devices.changed > $3";

/// What `sqlx` says: the statements that it ran, and what PostgreSQL told while it did.
#[derive(Clone, Debug, Default)]
struct Heard {
    statements: Arc<Mutex<BTreeSet<String>>>,
    notices: Arc<Mutex<BTreeSet<String>>>,
}

/// For the whole process: SQLite works on threads of its own.
static HEARD: LazyLock<Heard> = LazyLock::new(|| {
    let heard = Heard::default();
    let filter =
        tracing_subscriber::EnvFilter::new("sqlx::query=debug,sqlx::postgres::notice=info");
    tracing_subscriber::registry()
        .with(heard.clone().with_filter(filter))
        .init();
    heard
});

impl<S: tracing::Subscriber> Layer<S> for Heard {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        match event.metadata().target() {
            "sqlx::query" => {
                event.record(&mut Text(&["db.statement", "summary"], &self.statements));
            }
            "sqlx::postgres::notice" => event.record(&mut Text(&["message"], &self.notices)),
            _ => {}
        }
    }
}

/// Keeps the fields of these names.
struct Text<'a>(&'a [&'a str], &'a Mutex<BTreeSet<String>>);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // Short statements stand in the summary only.
        if self.0.contains(&field.name()) && !value.contains('\u{2026}') {
            self.1.lock().unwrap().insert(value.trim().to_owned());
        }
    }
}

fn is_as_a_whole(sql: &str) -> bool {
    AS_A_WHOLE.iter().any(|known| sql.starts_with(known))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lookup_uses_an_index_on_sqlite() {
    database::with(Engine::Sqlite, async |database: Database| {
        let heard = &*HEARD;
        two_tenants(&database).await;
        heard.statements.lock().unwrap().clear();
        use_everything(&database.store).await;
        let statements = heard.statements.lock().unwrap().clone();
        let mut explained = 0;
        let mut db = database.read().await;
        for sql in statements {
            let verb = sql.split_whitespace().next().unwrap_or_default();
            if !["SELECT", "INSERT", "UPDATE", "DELETE"].contains(&verb) || is_as_a_whole(&sql) {
                continue;
            }
            explained += 1;
            let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let plan: Vec<(i64, i64, i64, String)> =
                sqlx::query_as(explain).fetch_all(&mut *db).await.unwrap();
            for (_, _, _, step) in plan {
                // The values of a bulk statement are scanned.
                if let Some(problem) = problem_on_sqlite(&step, &sql) {
                    panic!("{problem}: {step}\n{sql}");
                }
            }
        }
        assert!(explained >= 55, "only {explained} statements were seen");
    })
    .await;
}

/// What is wrong with a step of a plan.
fn problem_on_sqlite(step: &str, sql: &str) -> Option<&'static str> {
    let mut words = step.split_whitespace();
    let (how, table) = (words.next()?, words.next()?);
    if !GROWS.contains(&table) {
        return None;
    }
    if how == "SCAN" {
        return Some("a whole table is read");
    }
    let is_by = |columns: &[&str]| columns.iter().any(|it| step.contains(&format!("{it}=?")));
    match table {
        "devices" if sql.contains(CHANGES) && !step.contains("changed>?") => {
            Some("devices that did not change are read")
        }
        // The tenant's fleets are counted together, all others ask for one fleet's devices or for some.
        "devices" if !sql.contains("GROUP BY") && !is_by(&["fleet", "id", "rowid"]) => {
            Some("other fleets' devices are read")
        }
        // What a replica has, only the replica asks for.
        "connections"
            if sql.contains("FROM connections") && sql.contains("connections.replica = $1") =>
        {
            None
        }
        "desired" | "observed" | "connections" if !is_by(&["device", "rowid"]) => {
            Some("other devices' states are read")
        }
        _ => None,
    }
}

/// The plans that PostgreSQL made for everything that the store does, in a database with 20,000 devices. `settings`
/// are of its planner.
async fn plans_on_postgres(settings: &[(&str, &str)], look: impl Fn(&[Plan])) {
    database::with(Engine::Postgres, async |database: Database| {
        let heard = &*HEARD;
        two_tenants(&database).await;
        seed::plenty(&database).await;
        let mut url = url::Url::parse(&database.url).unwrap();
        let explain = [
            ("session_preload_libraries", "auto_explain"),
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_level", "notice"),
            ("auto_explain.log_nested_statements", "on"),
        ];
        for (name, value) in explain.iter().chain(settings) {
            url.query_pairs_mut()
                .append_pair(&format!("options[{name}]"), value);
        }
        let store = Store::open(url.as_str()).await.unwrap();
        heard.notices.lock().unwrap().clear();
        use_everything(&store).await;
        store.close().await;
        let notices = heard.notices.lock().unwrap().clone();
        let plans: Vec<_> = notices
            .iter()
            .filter_map(|notice| Plan::of(notice))
            .filter(|plan| !is_as_a_whole(&plan.sql))
            .collect();
        let kinds: BTreeSet<_> = plans.iter().map(|plan| &plan.sql).collect();
        assert!(kinds.len() >= 60, "only {} plans were seen", kinds.len());
        look(&plans);
    })
    .await;
}

/// A plan, as PostgreSQL told it.
struct Plan {
    sql: String,
    nodes: Vec<Node>,
    text: String,
}

/// A node of a plan with what is said of it.
struct Node {
    kind: String,
    details: Vec<String>,
}

impl Plan {
    fn of(notice: &str) -> Option<Self> {
        let (_, text) = notice.split_once("Query Text: ")?;
        // The first node has its costs; nothing else of a statement looks like them.
        let at = text.find("  (cost=")?;
        let at = text[..at].rfind('\n')?;
        let (sql, plan) = text.split_at(at);
        let mut nodes: Vec<Node> = Vec::new();
        for line in plan.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line.contains("  (cost=") {
                nodes.push(Node {
                    kind: line.trim_start_matches("->").trim().to_owned(),
                    details: Vec::new(),
                });
            } else if let Some(node) = nodes.last_mut() {
                node.details.push(line.to_owned());
            }
        }
        Some(Self {
            sql: sql.to_owned(),
            nodes,
            text: text.to_owned(),
        })
    }

    /// The tables that grow and are read from one end to the other.
    fn whole_tables(&self) -> Vec<&str> {
        let scanned = |node: &Node| {
            let name = node.kind.strip_prefix("Seq Scan on ")?;
            let name = name.split_whitespace().next()?;
            GROWS.iter().find(|table| **table == name).copied()
        };
        self.nodes.iter().filter_map(scanned).collect()
    }

    /// Whether more of a fleet is read than what changed.
    fn reads_more_than_changes(&self) -> bool {
        let is_by_change = |node: &Node| {
            let by = |it: &String| it.starts_with("Index Cond") && it.contains("changed >");
            node.details.iter().any(by)
        };
        self.sql.contains(CHANGES) && !self.nodes.iter().any(is_by_change)
    }

    /// The looks into indexes that do not say what to look for.
    fn whole_indexes(&self) -> Vec<&str> {
        let is_whole = |node: &&Node| {
            node.kind.contains("Index")
                && !node.details.iter().any(|it| it.starts_with("Index Cond"))
        };
        self.nodes
            .iter()
            .filter(is_whole)
            .map(|node| &*node.kind)
            .filter(|kind| {
                GROWS
                    .iter()
                    .any(|table| kind.contains(&format!(" on {table} ")))
            })
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lookup_has_an_index_on_postgres() {
    // Where there is a way without reading a table, it is taken.
    plans_on_postgres(&[("enable_seqscan", "off")], |plans| {
        for plan in plans {
            assert!(plan.whole_tables().is_empty(), "{}", plan.text);
            assert!(plan.whole_indexes().is_empty(), "{}", plan.text);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_devices_postgres_reads_only_those_that_are_asked_for() {
    plans_on_postgres(&[], |plans| {
        for plan in plans {
            let read = plan.whole_tables();
            assert!(!read.contains(&"devices"), "{}", plan.text);
            assert!(!plan.reads_more_than_changes(), "{}", plan.text);
        }
    })
    .await;
}

async fn use_everything(store: &Store) {
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
    let mut db = store.write().await.unwrap();
    let db = &mut *db;

    tenants::list(db).await.unwrap();
    tenants::exists(db, tenant).await.unwrap();
    tenants::insert_api_token(db, hash, &Operator::Administrator, "", 1)
        .await
        .unwrap();
    tenants::operator(db, hash).await.unwrap();

    fleets::links(db).await.unwrap();
    fleets::keep(db, [&shops]).await.unwrap();
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
    let waiting = Waiting {
        id: first.id.clone(),
        reason: String::new(),
        conditions: Vec::new(),
    };
    devices::put_waiting(db, &shops, &[waiting]).await.unwrap();
    devices::reject(db, &shops, &[(first.id.clone(), String::new())])
        .await
        .unwrap();
    devices::assign(db, &shops, &[Assignment::none(first.id.clone())])
        .await
        .unwrap();
    devices::of_enrollment(db, &shops).await.unwrap();
    devices::ended(db, &shops).await.unwrap();
    devices::ids(db, &shops).await.unwrap();
    devices::changed_since(db, &shops, None, false)
        .await
        .unwrap();
    devices::changed_since(db, &shops, Some(3), true)
        .await
        .unwrap();
    devices::lagging_at(db, &replica, 1).await.unwrap();
    devices::count_at(db, &replica).await.unwrap();
    devices::connected_at(db, &replica).await.unwrap();
    devices::lagging(db, &shops).await.unwrap();
    devices::counts(db, &shops).await.unwrap();
    devices::counts_by_fleet(db, tenant).await.unwrap();
    devices::spread(db, &shops, 3).await.unwrap();
    // Its first device fails, so that the names of those that fail are asked for.
    let failing = Device {
        state: DeviceState::Active,
        conditions: vec![Condition::fails("Rendered", "BuildFailed", "", 1)],
        ..device(&shops, 2)
    };
    devices::insert(db, &failing).await.unwrap();
    devices::spread(db, &shops, 3).await.unwrap();
    replicas::alone(db, &replica).await.unwrap();
    proposals::list(db, &shops).await.unwrap();
    proposals::delete(db, &shops, "b").await.unwrap();

    let build = Ok(vec![object.clone()]);
    content::put_builds(db, tenant, &BTreeMap::from([(key, &build)]), 1)
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
