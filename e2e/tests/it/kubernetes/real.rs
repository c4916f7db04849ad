//! The `kube` runtime against a real cluster: the one that `LONGSHORE_TEST_KUBECONFIG` names, as its administrator.
//!
//! Other hands are `kubectl`'s. Each test has a namespace and kinds of its own, and removes them. One runs at a time,
//! for some count the API server's requests. No node is needed: pods carry a selector that no node has, and the
//! tests say of them what a kubelet would.

mod applying;
mod faring;
mod identity;
mod leaving;
mod process;
mod replacing;
mod restarting;
mod rights;
mod scripting;
mod sharing;

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use longshore_agent::{
    config::KubeSettings,
    runtime::{ApplyError, Changes, Runtime as _, health::Health, kube::Kube},
};
use longshore_protocol::DeviceId;
use serde_json::{Value, json};
use tokio::time;

use super::{failure, holding};

/// A cluster with controllers takes its time: a namespace's end alone may take half a minute.
const PATIENCE: Duration = Duration::from_mins(2);

/// What other hands than the agent's do to the cluster.
#[derive(Clone)]
struct Kubectl {
    kubeconfig: PathBuf,
}

impl Kubectl {
    fn administrator() -> Self {
        let kubeconfig = env::var_os("LONGSHORE_TEST_KUBECONFIG")
            .expect("LONGSHORE_TEST_KUBECONFIG names the kubeconfig of a cluster's administrator");
        Self {
            kubeconfig: kubeconfig.into(),
        }
    }

    fn try_with(&self, arguments: &[&str], input: Option<&Value>) -> Result<String, String> {
        let mut child = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is installed");
        let mut stdin = child.stdin.take().unwrap();
        let input = input.map(Value::to_string).unwrap_or_default();
        let _unread = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn with(&self, arguments: &[&str], input: Option<&Value>) -> String {
        self.try_with(arguments, input)
            .unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.with(arguments, None)
    }

    /// Applies as another manager does.
    fn apply_as(&self, manager: &str, object: &Value, force: bool) {
        let force = format!("--force-conflicts={force}");
        let manager = format!("--field-manager={manager}");
        self.with(
            &["apply", "--server-side", &manager, &force, "-f", "-"],
            Some(object),
        );
    }

    /// The API server's minor version: 36 for Kubernetes 1.36.
    fn minor(&self) -> u32 {
        let version: Value =
            serde_json::from_str(&self.run(&["get", "--raw", "/version"])).unwrap();
        let minor = version["gitVersion"].as_str().unwrap().split('.').nth(1);
        minor.unwrap().parse().unwrap()
    }

    /// The requests so far that applied on the server's side, by resource.
    fn applies(&self, resource: &str) -> u64 {
        let metrics = self.run(&["get", "--raw", "/metrics"]);
        let of = |line: &&str| {
            line.starts_with("apiserver_request_total{")
                && (line.contains(r#"verb="APPLY""#) || line.contains(r#"verb="PATCH""#))
                && line.contains(&format!("resource={resource:?}"))
                && line.contains(r#"subresource="""#)
        };
        let lines = metrics.lines().filter(of);
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            // Large ones have an exponent.
            .map(|count| format!("{count:.0}").parse::<u64>().unwrap())
            .sum()
    }
}

/// An agent's runtime in a namespace of its own.
struct Real {
    kube: Kube,
    kubectl: Kubectl,
    settings: KubeSettings,
    device: DeviceId,
    generation: u64,
    /// The namespace; also part of the name of what belongs to the cluster.
    name: String,
    dir: tempfile::TempDir,
}

impl Real {
    /// An administrator's agent. The namespace is the test's to make.
    fn start() -> Self {
        let kubectl = Kubectl::administrator();
        let kubeconfig = kubectl.kubeconfig.clone();
        Self::with(kubectl, &kubeconfig, None)
    }

    /// One with the rights of this kubeconfig.
    fn with(kubectl: Kubectl, kubeconfig: &Path, name: Option<&str>) -> Self {
        let own = format!("longshore-{:08x}", rand::random::<u32>());
        let dir = tempfile::tempdir().unwrap();
        let settings = KubeSettings {
            kubeconfig: Some(kubeconfig.to_owned()),
            context: None,
            namespace: None,
            state: dir.path().join("state"),
        };
        std::fs::create_dir(&settings.state).unwrap();
        let device = DeviceId::from_random(rand::random());
        Self {
            kube: Kube::new(settings.clone(), device.clone()),
            kubectl,
            settings,
            device,
            generation: 0,
            name: name.map_or(own, str::to_owned),
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

    /// Passes again and again, as the agent does, until `is` holds.
    async fn pass_until(
        &mut self,
        what: &str,
        objects: &[Value],
        mut is: impl FnMut(&mut Self, &Result<Changes, ApplyError>) -> bool,
    ) -> Result<Changes, ApplyError> {
        let end = time::Instant::now() + PATIENCE;
        loop {
            let passed = self.pass(objects).await;
            if is(self, &passed) {
                return passed;
            }
            let unhealthy = self.unhealthy().await;
            assert!(
                time::Instant::now() < end,
                "never: {what}; last: {passed:?}; {unhealthy:?}"
            );
            let retry = if passed.is_err() { 100 } else { 10_000 };
            let _quiet = time::timeout(Duration::from_millis(retry), self.kube.disturbed()).await;
        }
    }

    /// Waits until there is something to look at.
    async fn disturbed(&mut self) {
        time::timeout(PATIENCE, self.kube.disturbed())
            .await
            .expect("something happens");
    }

    async fn unhealthy(&mut self) -> Vec<(String, Health, String)> {
        let objects = self.kube.health().await.unwrap_or_default();
        objects
            .into_iter()
            .map(|it| (it.object.to_string(), it.health, it.message))
            .collect()
    }

    /// `kubectl` in the namespace.
    fn inside(&self, arguments: &[&str]) -> String {
        self.kubectl
            .run(&[&["--namespace", &self.name], arguments].concat())
    }

    /// The object, as anybody sees it.
    fn object(&self, kind: &str, name: &str) -> Option<Value> {
        let json = self.inside(&[
            "get",
            kind,
            name,
            "--ignore-not-found",
            "--show-managed-fields",
            "-o",
            "json",
        ]);
        (!json.is_empty()).then(|| serde_json::from_str(&json).unwrap())
    }

    fn text(&self, name: &str) -> Option<String> {
        let object = self.object("configmap", name)?;
        object["data"]["text"].as_str().map(str::to_owned)
    }

    /// The names of the namespace's objects of a kind.
    fn names(&self, kind: &str) -> Vec<String> {
        let names = self.inside(&["get", kind, "-o", "name"]);
        names
            .lines()
            .filter_map(|line| line.rsplit('/').next())
            // Controllers put these into every namespace.
            .filter(|name| !["kube-root-ca.crt", "openshift-service-ca.crt"].contains(name))
            .map(str::to_owned)
            .collect()
    }

    /// Says of a pod what a kubelet would.
    fn report(&self, kind: &str, name: &str, status: &Value) {
        let patch = json!({ "status": status }).to_string();
        self.inside(&[
            "patch",
            kind,
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
    }

    fn namespace(&self) -> Value {
        super::namespace(&self.name)
    }

    fn placed(&self, mut object: Value) -> Value {
        object["metadata"]["namespace"] = self.name.clone().into();
        object
    }

    fn config_map(&self, name: &str, text: &str) -> Value {
        self.placed(super::config_map(name, text))
    }

    fn workload(&self, kind: &str, name: &str, image: &str) -> Value {
        let mut workload = self.placed(super::deployment(name, image));
        workload["kind"] = kind.into();
        workload["spec"]["template"]["spec"]["nodeSelector"] = nowhere();
        if kind == "StatefulSet" {
            workload["spec"]["serviceName"] = name.into();
        }
        workload
    }

    fn job(&self, name: &str, image: &str) -> Value {
        self.placed(
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "nodeSelector": nowhere(),
                "containers": [{"name": "it", "image": image}]}}}}),
        )
    }

    /// The group of the test's own kind.
    fn group(&self) -> String {
        format!("{}.example.com", self.name)
    }

    fn definition(&self) -> Value {
        let spec = json!({"type": "object", "properties": {"drawers": {"type": "integer"}}});
        let schema = json!({"type": "object", "properties": {"spec": spec, "status": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("tills.{}", self.group())},
            "spec": {"group": self.group(), "scope": "Namespaced", "names": {"kind": "Till", "plural": "tills"},
                "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema}}]}})
    }

    fn till(&self, name: &str) -> Value {
        let mut till = self.placed(super::till(name));
        till["apiVersion"] = format!("{}/v1", self.group()).into();
        till
    }

    /// The resource of the test's own kind, as `kubectl` knows it.
    fn tills(&self) -> String {
        format!("tills.{}", self.group())
    }
}

fn nowhere() -> Value {
    json!({"longshore.dev/nowhere": "true"})
}

impl Drop for Real {
    fn drop(&mut self) {
        let definition = self.tills();
        let all = self.kubectl.try_with(
            &[
                "get",
                "customresourcedefinitions",
                &definition,
                "--ignore-not-found",
                "-o",
                "name",
            ],
            None,
        );
        if all.is_ok_and(|found| !found.is_empty()) {
            let _gone = self.kubectl.try_with(
                &[
                    "delete",
                    "customresourcedefinition",
                    &definition,
                    "--wait=false",
                ],
                None,
            );
        }
        let _gone = self.kubectl.try_with(
            &[
                "delete",
                "namespace",
                &self.name,
                "--ignore-not-found",
                "--wait=false",
            ],
            None,
        );
    }
}
