//! The podman runtime with real containers, on a Podman of the test's own: no image, container, volume or secret of
//! the machine's Podman is seen or touched.
//!
//! Images come from no registry: a static busybox is packed and imported. Containers use the host's network, so
//! tests that run side by side do not meet in a bridge's name. `LONGSHORE_TEST_PODMAN` names another `podman`.

mod drifting;
mod faring;
mod faults;
mod logging;
mod process;
mod pulling;
mod rebooting;
mod refusing;
mod registry;
mod returning;
mod running;
mod tidying;

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use longshore_agent::runtime::{ApplyError, Changes, Runtime as _, Unapplied, podman::Podman};
use longshore_protocol::{DeviceId, Object, session::Holding};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};
use tokio::time;

use crate::{DEADLINE, holding};

const IMAGE: &str = "localhost/box:1";
/// What busybox is asked to be.
const APPLETS: [&str; 7] = ["sh", "sleep", "cat", "ls", "touch", "stat", "mkdir"];

/// A Podman with nothing in it but one image.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        // Limits that a container's manager may set where it has not got every capability; a runtime that works
        // with either version of cgroups; and nothing that needs systemd.
        let containers = format!(
            "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\ntmp_dir = \"{}\"\n\
             [containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n",
            at("tmp")
        );
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            at("root"),
            at("run")
        );
        std::fs::create_dir(at("scratch")).unwrap();
        std::fs::write(at("containers.conf"), containers).unwrap();
        std::fs::write(at("storage.conf"), storage).unwrap();
        std::fs::write(
            at("registries.conf"),
            "unqualified-search-registries = []\n",
        )
        .unwrap();
        std::fs::write(at("calls"), "").unwrap();
        let real = std::env::var("LONGSHORE_TEST_PODMAN").unwrap_or_else(|_| "podman".to_owned());
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> {0}/calls\nexport CONTAINERS_CONF={0}/containers.conf \
             CONTAINERS_STORAGE_CONF={0}/storage.conf CONTAINERS_REGISTRIES_CONF={0}/registries.conf \
             TMPDIR={0}/scratch PODMAN_IGNORE_CGROUPSV1_WARNING=1\nexec {real} \"$@\"\n",
            dir.path().display()
        );
        std::fs::write(at("podman"), script).unwrap();
        std::fs::set_permissions(at("podman"), PermissionsExt::from_mode(0o755)).unwrap();
        let machine = Self { dir };
        machine.import_image();
        machine
    }

    fn import_image(&self) {
        let root = self.dir.path().join("image");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|it| Path::new(it).exists());
        let busybox = busybox.expect("busybox is needed: run scripts/bootstrap");
        std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let archive = self.dir.path().join("image.tar");
        let mut builder = tar::Builder::new(std::fs::File::create(&archive).unwrap());
        builder.follow_symlinks(false);
        builder.append_dir_all(".", &root).unwrap();
        builder.into_inner().unwrap().sync_all().unwrap();
        let archive = archive.to_str().unwrap();
        self.podman(&[
            "import",
            "--quiet",
            "--change",
            "ENV PATH=/bin",
            archive,
            IMAGE,
        ]);
    }

    /// Lets podman pull from this registry, without TLS.
    fn trust_registry(&self, address: &str) {
        let text = format!(
            "unqualified-search-registries = []\n[[registry]]\nlocation = \"{address}\"\ninsecure = true\n"
        );
        std::fs::write(self.dir.path().join("registries.conf"), text).unwrap();
    }

    /// The layout of an image like the first one, which says of itself that it is this one. Nothing of it stays.
    fn packed(&self, what: &str) -> PathBuf {
        let [archive, layout] = ["image.tar", what].map(|name| self.dir.path().join(name));
        let name = format!("localhost/packed:{what}");
        let change = format!("ENV WHAT={what}");
        let words = ["import", "--quiet", "--change", "ENV PATH=/bin", "--change"];
        let archive = archive.to_str().unwrap();
        self.podman(&[&words[..], &[&change, archive, &name]].concat());
        let to = layout.to_str().unwrap();
        self.podman(&["save", "--format", "oci-dir", "--output", to, &name]);
        self.podman(&["image", "rm", &name]);
        layout
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("podman")
    }

    fn runtime(&self) -> Podman {
        Podman::new(self.program(), device())
    }

    /// What podman prints, as a person at the machine calls it.
    fn podman(&self, words: &[&str]) -> String {
        let (ok, text) = self.try_podman(words);
        assert!(ok, "podman {words:?}: {text}");
        text
    }

    fn try_podman(&self, words: &[&str]) -> (bool, String) {
        let output = Command::new(self.program()).args(words).output();
        let output = output.expect("podman is needed: run scripts/bootstrap");
        let text = if output.status.success() {
            output.stdout
        } else {
            output.stderr
        };
        (
            output.status.success(),
            String::from_utf8_lossy(&text).trim().to_owned(),
        )
    }

    /// The names and ids of all containers but those that hold pods together.
    fn containers(&self) -> Vec<(String, String)> {
        let listed = self.podman(&["ps", "--all", "--format", "{{.Names}} {{.ID}} {{.IsInfra}}"]);
        let mut containers: Vec<_> = listed
            .lines()
            .filter_map(|line| line.strip_suffix(" false")?.split_once(' '))
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .collect();
        containers.sort();
        containers
    }

    fn names(&self) -> Vec<String> {
        self.containers()
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }

    fn id(&self, name: &str) -> String {
        let containers = self.containers();
        let found = containers.iter().find(|(it, _)| it == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {containers:?}"))
            .1
            .clone()
    }

    fn status(&self, name: &str) -> String {
        self.podman(&[
            "container",
            "inspect",
            "--format",
            "{{.State.Status}}",
            name,
        ])
    }

    /// What a command in a container prints.
    fn inside(&self, container: &str, words: &[&str]) -> String {
        let mut command = vec!["exec", container];
        command.extend(words);
        self.podman(&command)
    }

    /// Takes away the mounts that Podman left where a test killed it; deeper ones are listed later.
    fn unmount(&self) {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let listed = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let mut ours: Vec<_> = listed
            .filter(|it| Path::new(it).starts_with(self.dir.path()))
            .collect();
        ours.reverse();
        for mount in ours {
            // One below another goes with it.
            unmount(mount, UnmountFlags::DETACH).unwrap_or_default();
        }
    }

    /// How often podman was called by anybody.
    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.dir.path().join("calls")).unwrap();
        calls.lines().map(str::to_owned).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for words in [["pod", "rm"].as_slice(), &["rm"]] {
            let rest = ["--all", "--force", "--time", "0"];
            let command: Vec<_> = words.iter().chain(&rest).copied().collect();
            self.try_podman(&command);
        }
        self.unmount();
    }
}

fn device() -> DeviceId {
    DeviceId::from_random([7; 16])
}

fn object(value: &Value) -> Object {
    Object::from_value(value).unwrap()
}

/// A spec of one container that sleeps and ends at once when it is told to.
fn sleeper() -> Value {
    running("trap 'exit 0' TERM; sleep 10000 & wait")
}

fn running(script: &str) -> Value {
    json!({"hostNetwork": true, "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": IMAGE, "command": ["sh", "-c", script]}]})
}

fn pod(name: &str, spec: &Value) -> Object {
    object(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}))
}

fn workload(api_version: &str, kind: &str, name: &str, spec: &Value) -> Object {
    object(
        &json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name},
        "spec": {"template": {"metadata": {"labels": {"app": name}}, "spec": spec}}}),
    )
}

fn deployment(name: &str, spec: &Value) -> Object {
    workload("apps/v1", "Deployment", name, spec)
}

fn config_map(name: &str, data: &Value) -> Object {
    object(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}),
    )
}

fn set(generation: u64, objects: impl IntoIterator<Item = Object>) -> Arc<Holding> {
    Arc::new(holding(generation, objects))
}

/// Passes until everything is in place; what the first one that succeeded changed.
async fn settle(podman: &mut Podman, wanted: &Arc<Holding>) -> Changes {
    let mut last = String::new();
    let trying = async {
        loop {
            match podman.apply(wanted.clone()).await {
                Ok(changes) => return changes,
                Err(error) => last = error.explanation(),
            }
            time::sleep(time::Duration::from_millis(100)).await;
        }
    };
    let settled = time::timeout(DEADLINE * 3, trying).await;
    settled.unwrap_or_else(|_| panic!("never applied: {last}"))
}

/// The objects that a pass could not apply.
async fn unapplied(podman: &mut Podman, wanted: &Arc<Holding>) -> Vec<Unapplied> {
    match podman.apply(wanted.clone()).await {
        Err(ApplyError::Objects(objects)) => objects,
        other => panic!("{other:?}"),
    }
}
