//! Full and read-only disks: file systems of their own, mounted by the tests, which therefore run as root.

use std::{ffi::CString, path::Path, sync::Arc};

use longshore_agent::{
    files::Folder,
    identity::StateDir,
    ledger::Ledger,
    runtime::{Runtime as _, directory::Directory},
};
use longshore_protocol::{DeviceId, Digest};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::{holding, object};

/// A file system of 256 KiB.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = CString::new("size=256k").unwrap();
        mount(
            "tmpfs",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .expect("these tests mount file systems: run them as root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no room.
    fn fill(&self) {
        let full = std::fs::write(self.path().join("filler"), vec![0; 1024 * 1024]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }

    fn read_only(&self, yes: bool) {
        let flags = if yes {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        mount_remount(self.path(), flags, "").unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }
}

/// Text that does not compress, of about this many bytes.
fn noise(bytes: usize) -> String {
    (0..bytes / 64)
        .map(|n| Digest::of(&n.to_le_bytes()).to_hex())
        .collect()
}

#[test]
fn a_full_disk_under_the_ledger() {
    let disk = Disk::new();
    let ledger = Ledger::new(Folder::open(disk.path()).unwrap());
    ledger.store(&holding(1, [object("a", "1")])).unwrap();
    disk.fill();
    let error = ledger
        .store(&holding(2, [object("a", &noise(20_000))]))
        .unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::StorageFull);
    let loaded = ledger.load().unwrap();
    assert_eq!(*loaded.current.unwrap(), holding(1, [object("a", "1")]));
    assert!(loaded.set_aside.is_empty());
    disk.make_room();
    ledger
        .store(&holding(2, [object("a", &noise(20_000))]))
        .unwrap();
    assert_eq!(
        ledger
            .load()
            .unwrap()
            .current
            .unwrap()
            .generation()
            .number(),
        2
    );
}

#[test]
fn a_read_only_disk_under_the_ledger() {
    let disk = Disk::new();
    let ledger = Ledger::new(Folder::open(disk.path()).unwrap());
    ledger.store(&holding(1, [object("a", "1")])).unwrap();
    disk.read_only(true);
    let error = ledger.store(&holding(2, [object("a", "2")])).unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(
        ledger
            .load()
            .unwrap()
            .current
            .unwrap()
            .generation()
            .number(),
        1
    );
    disk.read_only(false);
    ledger.store(&holding(2, [object("a", "2")])).unwrap();
}

#[test]
fn a_disk_that_became_read_only_is_still_started_from() {
    let disk = Disk::new();
    let path = disk.path().join("state");
    let state = StateDir::open(&path).unwrap();
    let ledger = Ledger::new(state.folder().unwrap());
    for generation in 1..=2 {
        ledger
            .store(&holding(generation, [object("a", "1")]))
            .unwrap();
    }
    drop(state);
    disk.read_only(true);
    let state = StateDir::open(&path).unwrap();
    let ledger = Ledger::new(state.folder().unwrap());
    assert_eq!(
        ledger
            .load()
            .unwrap()
            .current
            .unwrap()
            .generation()
            .number(),
        2
    );
    // Damage that cannot be set aside is still not used, nor is what is older.
    disk.read_only(false);
    std::fs::write(path.join(format!("ledger.{:020}", 2)), "x").unwrap();
    disk.read_only(true);
    for _ in 0..2 {
        assert!(ledger.load().unwrap().current.is_none());
    }
    disk.read_only(false);
}

#[tokio::test]
async fn a_full_disk_under_the_manifests() {
    let disk = Disk::new();
    let path = disk.path().join("out");
    let mut runtime = Directory::new(path.clone(), DeviceId::from_random([1; 16]));
    let old = holding(1, [object("a", "old"), object("b", "old")]);
    runtime.apply(Arc::new(old)).await.unwrap();
    disk.fill();
    let new = Arc::new(holding(
        2,
        [object("a", &noise(20_000)), object("c", "new")],
    ));
    let error = runtime.apply(new.clone()).await.unwrap_err();
    assert_eq!(error.reason(), "DiskFull", "{error}");
    for (name, text) in [("a", "text: old"), ("b", "text: old")] {
        let file = std::fs::read_to_string(path.join(format!("v1.configmap.{name}.yaml"))).unwrap();
        assert!(file.contains(text), "{file}");
    }
    disk.make_room();
    runtime.apply(new).await.unwrap();
    assert!(!path.join("v1.configmap.b.yaml").exists());

    disk.read_only(true);
    let error = runtime
        .apply(Arc::new(holding(3, [object("a", "3")])))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "ReadOnly", "{error}");
    disk.read_only(false);
}
