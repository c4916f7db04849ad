//! Fleet repos for simulated fleets.
//!
//! ```text
//! fleet.yaml
//! base/layer-00, layer-01, …      each builds on the one before; the objects are spread over them
//! groups/group-00, …              shared overlays: the last layer and an object of their own, with variables
//! devices/<name>/device.yaml      with the device's key, so that it is approved as soon as it enrolls
//! devices/<name>/kustomization.yaml, own.yaml       where each device has an overlay of its own
//! ```
//!
//! Every overlay has an object `own` with a text that is there to be changed: [`own_object`].

use std::{fs, path::Path};

use longshore_protocol::{DeviceName, Digest};

use crate::files::FileError;

/// What a repo looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whether devices share overlays.
    pub overlays: Overlays,
    /// How many objects each device has, at least two.
    pub objects: usize,
    /// How many layers of bases there are, at least one. Layers beyond the number of objects only pass on.
    pub layers: usize,
    /// The size of one more object that does not compress, in bytes; there is none where it is 0.
    pub ballast: usize,
}

/// Who has which overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlays {
    /// This many overlays, which the devices share evenly; each device fills in variables of its own.
    Shared(usize),
    /// Each device has its own.
    Unique,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            overlays: Overlays::Shared(12),
            objects: 20,
            layers: 2,
            ballast: 0,
        }
    }
}

impl Shape {
    /// Writes everything but the devices.
    ///
    /// # Errors
    /// Where the file system fails.
    pub fn write_base(&self, directory: &Path) -> Result<(), FileError> {
        write(
            &directory.join("fleet.yaml"),
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata:\n  name: simulated\n",
        )?;
        let layers = self.layers.max(1);
        // The object `own` belongs to the overlay.
        let parts = self.objects.saturating_sub(1).max(1);
        for layer in 0..layers {
            let folder = directory.join(format!("base/layer-{layer:02}"));
            let mut kustomization = HEADER.to_owned();
            if let Some(below) = layer.checked_sub(1) {
                line(&mut kustomization, &format!("  - ../layer-{below:02}"));
            }
            for part in (layer..parts).step_by(layers) {
                let file = format!("part-{part:03}.yaml");
                line(&mut kustomization, &format!("  - {file}"));
                write(&folder.join(&file), &part_object(part))?;
            }
            if layer == 0 && self.ballast > 0 {
                line(&mut kustomization, "  - ballast.yaml");
                write(&folder.join("ballast.yaml"), &ballast_object(self.ballast))?;
            }
            write(&folder.join("kustomization.yaml"), &kustomization)?;
        }
        if let Overlays::Shared(count) = self.overlays {
            for group in 0..count.max(1) {
                let folder = directory.join(group_folder(group));
                write(&folder.join("kustomization.yaml"), &self.overlay())?;
                write(&folder.join("own.yaml"), &own_object("start"))?;
            }
        }
        Ok(())
    }

    /// Writes the folder of one device, with the key that it will enroll with.
    ///
    /// # Errors
    /// Where the file system fails.
    pub fn write_device(
        &self,
        directory: &Path,
        index: usize,
        name: &DeviceName,
        key: Digest,
    ) -> Result<(), FileError> {
        let folder = directory.join("devices").join(name.as_str());
        let mut device = format!(
            "apiVersion: longshore.dev/v1alpha1\nkind: Device\nmetadata:\n  name: {name}\n  labels:\n    \
             site: site-{:03}\nspec:\n  publicKey: {key}\n",
            index % 100
        );
        match self.overlays {
            Overlays::Shared(count) => {
                let group = group_folder(index % count.max(1));
                line(&mut device, &format!("  overlay: ../../{group}"));
            }
            Overlays::Unique => {
                write(&folder.join("kustomization.yaml"), &self.overlay())?;
                write(&folder.join("own.yaml"), &own_object("start"))?;
            }
        }
        line(
            &mut device,
            &format!("  variables:\n    STORE: \"{index:05}\""),
        );
        write(&folder.join("device.yaml"), &device)
    }

    /// The kustomization file of an overlay.
    pub fn overlay(&self) -> String {
        let top = self.layers.max(1) - 1;
        format!("{HEADER}  - ../../base/layer-{top:02}\n  - own.yaml\n")
    }
}

const HEADER: &str =
    "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n";

/// The folder of a shared overlay, relative to the repo's root.
pub fn group_folder(group: usize) -> String {
    format!("groups/group-{group:02}")
}

/// The file `own.yaml` of an overlay, with this text in it and references to the device's variables.
pub fn own_object(text: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: own\n  namespace: shop\ndata:\n  text: \"{text}\"\n  \
         device: ${{DEVICE_NAME}}\n  store: ${{STORE:=none}}\n  site: ${{LABEL_site:=unknown}}\n"
    )
}

/// An object as devices have them, of some 600 bytes.
fn part_object(part: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: part-{part:03}\n  namespace: shop\n  labels:\n    \
         app: part-{part:03}\nspec:\n  replicas: 1\n  selector:\n    matchLabels:\n      app: part-{part:03}\n  template:\n    \
         metadata:\n      labels:\n        app: part-{part:03}\n    spec:\n      containers:\n        - name: main\n          \
         image: registry.example/part-{part:03}:1.0.0\n          env:\n            - name: MODE\n              value: production\n          \
         resources:\n            requests:\n              cpu: 10m\n              memory: 16Mi\n            limits:\n              \
         memory: 64Mi\n"
    )
}

/// An object whose text is this long, and digests: nothing that compresses.
fn ballast_object(size: usize) -> String {
    let mut text = String::with_capacity(size + 64);
    for count in 0_u64.. {
        if text.len() >= size {
            break;
        }
        let digest = Digest::of(&count.to_be_bytes()).to_string();
        text.push_str(digest.trim_start_matches("sha256:"));
    }
    text.truncate(size);
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: ballast\n  namespace: shop\ndata:\n  text: t{text}\n"
    )
}

fn line(text: &mut String, line: &str) {
    text.extend([line, "\n"]);
}

fn write(path: &Path, text: &str) -> Result<(), FileError> {
    let failed = |operation| {
        move |source| FileError {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(above) = path.parent() {
        fs::create_dir_all(above).map_err(failed("make the folder of"))?;
    }
    fs::write(path, text).map_err(failed("write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(shape: Shape) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        shape.write_base(dir.path()).unwrap();
        for index in 0..3 {
            let name = format!("sim-{index}").parse().unwrap();
            let key = Digest::of(&[0]);
            shape.write_device(dir.path(), index, &name, key).unwrap();
        }
        dir
    }

    #[test]
    fn devices_share_groups_or_have_overlays_of_their_own() {
        let shape = Shape {
            overlays: Overlays::Shared(2),
            objects: 4,
            layers: 2,
            ballast: 100,
        };
        let dir = written(shape);
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert!(read("devices/sim-2/device.yaml").contains("overlay: ../../groups/group-00\n"));
        assert!(read("devices/sim-1/device.yaml").contains("overlay: ../../groups/group-01\n"));
        assert!(!dir.path().join("devices/sim-1/kustomization.yaml").exists());
        // Three objects in the layers, and the overlay's own.
        assert!(read("groups/group-01/kustomization.yaml").contains("base/layer-01"));
        assert!(
            read("base/layer-01/kustomization.yaml").contains("../layer-00\n  - part-001.yaml")
        );
        assert!(read("base/layer-00/kustomization.yaml").contains("part-002.yaml"));
        assert!(!dir.path().join("base/layer-01/part-003.yaml").exists());
        assert!(read("base/layer-00/ballast.yaml").len() > 100);

        let dir = written(Shape {
            overlays: Overlays::Unique,
            ..shape
        });
        assert!(dir.path().join("devices/sim-1/own.yaml").exists());
        assert!(!dir.path().join("groups").exists());
    }
}
