//! The `kube` runtime against the API server double.

mod applying;
mod away;
mod drifting;
mod faults;
mod identity;
mod logging;
mod process;
mod pruning;
mod real;
mod scope;

use std::{path::PathBuf, sync::Arc, time::Duration};

use longshore_agent::{
    config::KubeSettings,
    runtime::{
        ApplyError, Changes, Runtime as _,
        health::{Health, ObjectHealth},
        kube::Kube,
    },
};
use longshore_e2e::{
    kubernetes::{ApiServer, Call},
    wait::PATIENCE,
};
use longshore_protocol::{DeviceId, Generation, Object, session::Holding};
use serde_json::{Value, json};
use tokio::time;

/// An agent's runtime, its state directory and its API server.
struct Site {
    server: ApiServer,
    kube: Kube,
    settings: KubeSettings,
    device: DeviceId,
    generation: u64,
    dir: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        Self::confined_to(None).await
    }

    async fn confined_to(namespace: Option<&str>) -> Self {
        let server = ApiServer::start().await;
        let dir = tempfile::tempdir().unwrap();
        let settings = KubeSettings {
            kubeconfig: Some(server.kubeconfig(dir.path())),
            context: None,
            namespace: namespace.map(str::to_owned),
            state: dir.path().join("state"),
        };
        std::fs::create_dir(&settings.state).unwrap();
        let device = DeviceId::from_random([7; 16]);
        Self {
            kube: Kube::new(settings.clone(), device.clone()),
            server,
            settings,
            device,
            generation: 0,
            dir,
        }
    }

    /// Another process takes over, after the present one was killed.
    fn restart(&mut self) {
        self.kube = Kube::new(self.settings.clone(), self.device.clone());
    }

    /// Passes over a new set.
    async fn apply(&mut self, objects: &[Value]) -> Result<Changes, ApplyError> {
        self.generation += 1;
        self.pass(objects).await
    }

    /// Passes over a set that was there before.
    async fn pass(&mut self, objects: &[Value]) -> Result<Changes, ApplyError> {
        let holding = holding(self.generation, objects);
        time::timeout(PATIENCE, self.kube.apply(holding))
            .await
            .expect("a pass ends")
    }

    /// Passes again and again, whenever the runtime says that there is something to look at, until `is` holds.
    async fn pass_until(
        &mut self,
        what: &str,
        objects: &[Value],
        mut is: impl FnMut(&Self, &Result<Changes, ApplyError>) -> bool,
    ) -> Result<Changes, ApplyError> {
        let end = time::Instant::now() + PATIENCE;
        loop {
            let passed = self.pass(objects).await;
            if is(self, &passed) {
                return passed;
            }
            // What failed is tried again also where nothing happens, as the reconciler does.
            let retry = time::Instant::now() + Duration::from_millis(50);
            let until = if passed.is_err() { retry } else { end };
            let disturbed = time::timeout_at(until, self.kube.disturbed()).await;
            let over = time::Instant::now() >= end;
            assert!(!over, "never: {what}; last: {passed:?} {disturbed:?}");
        }
    }

    /// Waits until there is something to look at.
    async fn disturbed(&mut self) {
        time::timeout(PATIENCE, self.kube.disturbed())
            .await
            .expect("something happens");
    }

    async fn unhealthy(&mut self) -> Vec<(String, Health, String)> {
        let objects = self.kube.health().await.unwrap();
        let told = |it: ObjectHealth| (it.object.to_string(), it.health, it.message);
        objects.into_iter().map(told).collect()
    }

    fn text(&self, name: &str) -> Option<String> {
        let object = self.server.object("configmaps", "shop", name)?;
        object["data"]["text"].as_str().map(str::to_owned)
    }

    fn inventory(&self) -> PathBuf {
        self.settings.state.join("kube/inventory.json")
    }
}

fn holding(generation: u64, objects: &[Value]) -> Arc<Holding> {
    let objects = objects
        .iter()
        .map(|value| Object::from_value(value).unwrap());
    Arc::new(Holding::new(Generation::from(generation), "c0ffee".into(), objects).unwrap())
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn config_map(name: &str, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"},
           "data": {"text": text}})
}

fn deployment(name: &str, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}},
                    "template": {"metadata": {"labels": {"app": name}},
                                 "spec": {"containers": [{"name": "till", "image": image}]}}}})
}

fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
           "metadata": {"name": "tills.example.com"},
           "spec": {"group": "example.com", "scope": "Namespaced", "names": {"kind": "Till", "plural": "tills"},
                    "versions": [{"name": "v1", "served": true, "storage": true}]}})
}

fn till(name: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Till", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"drawers": 1}})
}

fn annotated(mut object: Value, annotation: &str, value: &str) -> Value {
    object["metadata"]["annotations"][annotation] = value.into();
    object
}

/// What was written, in order.
fn writes(calls: &[Call]) -> Vec<String> {
    calls
        .iter()
        .filter(|call| call.writes())
        .map(|call| format!("{} {} {}", call.verb, call.resource, call.name))
        .collect()
}

/// The reason and the whole message of a failure.
fn failure(passed: &Result<Changes, ApplyError>) -> (&'static str, String) {
    let error = passed.as_ref().expect_err("it fails");
    (error.reason(), error.explanation())
}

/// No wait for something that must not happen is longer than this.
const A_MOMENT: Duration = Duration::from_millis(300);
