//! A Podman of the test's own, with one image that was packed here: nothing of the machine's Podman is seen or touched.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::world::new_directory;

/// The image: a static busybox.
pub const IMAGE: &str = "localhost/box:1";
const APPLETS: [&str; 7] = ["sh", "sleep", "cat", "echo", "seq", "touch", "yes"];

/// Podman, with everything that it keeps below one directory.
#[derive(Debug)]
pub struct Podman {
    directory: TempDir,
}

impl Podman {
    /// One without containers.
    ///
    /// # Errors
    /// Where podman or busybox are missing.
    pub fn new() -> Result<Self> {
        let directory = new_directory()?;
        let podman = Self { directory };
        podman.configure()?;
        podman.import_image()?;
        Ok(podman)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as that of the agent's own tests: cgroups of either version, and no systemd.
    fn configure(&self) -> Result<()> {
        let at = |name: &str| self.at(name).display().to_string();
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
        fs::create_dir(self.at("scratch"))?;
        fs::write(self.at("containers.conf"), containers)?;
        fs::write(self.at("storage.conf"), storage)?;
        fs::write(
            self.at("registries.conf"),
            "unqualified-search-registries = []\n",
        )?;
        let script = format!(
            "#!/bin/sh\nexport CONTAINERS_CONF={0}/containers.conf CONTAINERS_STORAGE_CONF={0}/storage.conf \
             CONTAINERS_REGISTRIES_CONF={0}/registries.conf TMPDIR={0}/scratch PODMAN_IGNORE_CGROUPSV1_WARNING=1\n\
             exec podman \"$@\"\n",
            self.directory.path().display()
        );
        fs::write(self.program(), script)?;
        fs::set_permissions(self.program(), PermissionsExt::from_mode(0o755))?;
        Ok(())
    }

    fn import_image(&self) -> Result<()> {
        let root = self.at("image");
        fs::create_dir_all(root.join("bin"))?;
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|it| Path::new(it).exists());
        let busybox = busybox.context("busybox is needed: run scripts/bootstrap")?;
        fs::copy(busybox, root.join("bin/busybox"))?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        let archive = self.at("image.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .args([&archive, Path::new(".")])
            .status()?;
        ensure!(packed.success(), "the image is not packed: {packed}");
        let archive = archive.display().to_string();
        let change = ["--change", "ENV PATH=/bin"];
        self.call(&[&["import", "--quiet"], &change[..], &[&archive, IMAGE]].concat())?;
        Ok(())
    }

    /// The program, for agents.
    pub fn program(&self) -> PathBuf {
        self.at("podman")
    }

    /// What podman prints, as a person at the machine calls it.
    ///
    /// # Errors
    /// Where it fails.
    pub fn call(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(self.program()).args(words).output();
        let output = output.context("podman is needed: run scripts/bootstrap")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "podman {words:?}: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The names and ids of the containers that run, without those that hold pods together.
    ///
    /// # Errors
    /// Where podman fails.
    pub fn running(&self) -> Result<Vec<(String, String)>> {
        let listed = self.call(&["ps", "--format", "{{.Names}} {{.ID}} {{.IsInfra}}"])?;
        let containers = listed
            .lines()
            .filter_map(|line| line.strip_suffix(" false")?.split_once(' '));
        Ok(containers
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .collect())
    }

    /// The processes of this podman that read containers' logs.
    pub fn log_readers(&self) -> Vec<u32> {
        let ours = self.directory.path().display().to_string();
        processes(|line, environment| line.contains(" logs ") && environment.contains(&ours))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // An agent that was killed leaves the podman that follows events behind.
        let ours = self.directory.path().display().to_string();
        let left = processes(|line, environment| {
            line.contains("podman") && line.contains(" events ") && environment.contains(&ours)
        });
        for id in left
            .into_iter()
            .filter_map(|id| Pid::from_raw(id.cast_signed()))
        {
            kill_process(id, Signal::KILL).unwrap_or_default();
        }
        for words in [["pod", "rm"].as_slice(), &["rm"]] {
            let all = [words, &["--all", "--force", "--time", "0"]].concat();
            drop(self.call(&all));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let listed = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let ours = listed.filter(|it| Path::new(it).starts_with(self.directory.path()));
        let mut ours: Vec<_> = ours.collect();
        ours.reverse();
        for mount in ours {
            drop(Command::new("umount").args(["--lazy", mount]).output());
        }
    }
}

/// The processes whose command line and environment are such.
fn processes(is: impl Fn(&str, &str) -> bool) -> Vec<u32> {
    let read = |path: PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|it| Some((it.file_name().to_str()?.parse().ok()?, it.path())))
        .filter(|(_, path)| is(&read(path.join("cmdline")), &read(path.join("environ"))))
        .map(|(id, _)| id)
        .collect()
}
