//! The agent against real parts: TLS servers, WebSockets, file systems, kustomize, and its own binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test's helpers fail by panicking"
)]

mod command;
mod disk;
mod doctor;
mod documents;
mod edge;
mod enduring;
mod enrolling;
mod kustomize;
mod linking;
mod namespaces;
mod offline;
mod pki;
mod podman;
mod process;
mod proxy;
mod public;
mod reconciling;
mod relay;
mod settings;
mod updating;
mod watching;

use std::time::Duration;

use longshore_protocol::{Generation, Object, session::Holding};
use serde_json::json;
use tokio::{sync::watch, time};

/// No wait of a test is longer than this.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `is` holds for what is watched.
pub async fn until<T>(watched: &mut watch::Receiver<T>, what: &str, is: impl FnMut(&T) -> bool) {
    time::timeout(DEADLINE, watched.wait_for(is))
        .await
        .unwrap_or_else(|_| panic!("never: {what}"))
        .unwrap();
}

/// Waits until `is` holds for what is not watchable: a file, say.
pub async fn until_true(what: &str, mut is: impl FnMut() -> bool) {
    let looking = async {
        let mut look = time::interval(Duration::from_millis(10));
        while !is() {
            look.tick().await;
        }
    };
    time::timeout(DEADLINE, looking)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

pub fn object(name: &str, text: &str) -> Object {
    Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name}, "data": {"text": text}}))
    .unwrap()
}

pub fn holding(generation: u64, objects: impl IntoIterator<Item = Object>) -> Holding {
    Holding::new(Generation::from(generation), "c0ffee".into(), objects).unwrap()
}
