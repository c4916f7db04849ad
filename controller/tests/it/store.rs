//! What the store promises, written once and run on SQLite and on PostgreSQL.

mod content;
mod counts;
pub mod database;
mod devices;
mod fleets;
mod locks;
mod plans;
mod previews;
mod proposals;
mod replicas;
mod roster;
pub mod samples;
mod schema;
mod states;
mod tenants;
mod tokens;
mod writers;

/// Makes a test of each of these contracts for each engine.
macro_rules! contracts {
    ($($contract:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $contract() {
                    let engine = longshore_controller::store::Engine::Sqlite;
                    crate::store::database::with(engine, super::$contract).await;
                }
            )+
        }
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $contract() {
                    let engine = longshore_controller::store::Engine::Postgres;
                    crate::store::database::with(engine, super::$contract).await;
                }
            )+
        }
    };
}
pub(crate) use contracts;
