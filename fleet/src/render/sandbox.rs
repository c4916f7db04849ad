//! Confining a build: Landlock for files and TCP, an empty network namespace, resource limits.
//!
//! All of it is inherited by child processes, and Landlock and namespaces belong to a *thread*. So
//! [`spawn`] starts a thread that confines itself, starts the program, waits for its end and ends too. The rest
//! of our process stays as it was, and no code has to run between `fork` and `exec`.
//!
//! What the kernel leaves open: without the network namespace (which takes `CAP_SYS_ADMIN`) UDP packets can be
//! sent, and kernels before 6.7 have no Landlock rule for TCP. The program can still start no other program, so
//! this takes a flaw in kustomize itself.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, kill_process_group, prlimit, waitid,
};
use tokio::sync::oneshot;

/// Shared libraries: to be read, not executed.
const LIBRARIES: [&str; 5] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
];

/// What loads dynamically linked programs, on the machines that we know.
const LOADERS: [&str; 7] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-linux-armhf.so.3",
    "/lib/ld-linux-riscv64-lp64d.so.1",
    "/lib64/ld64.so.2",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

/// The confinement that all builds share.
#[derive(Debug)]
pub(super) struct Sandbox {
    /// Absent where the operator allows to go without and the kernel has none.
    landlock: bool,
    /// A network namespace with nothing in it, where we may make one.
    network: Option<File>,
    /// What besides the export and the libraries may be read and executed.
    programs: Vec<PathBuf>,
}

/// Bounds of one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) memory: u64,
    pub(super) cpu_seconds: u64,
}

/// What is to be run.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(&'static str, OsString)>,
    /// The working directory, and all of the tree that may be read.
    pub(super) directory: PathBuf,
    pub(super) limits: Limits,
}

/// Whether this kernel lets us confine ourselves with Landlock.
pub(super) fn landlock_works() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create)
        .is_ok()
}

/// Whether Landlock can deny TCP, as it can since Linux 6.7.
fn tcp_works() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessNet::from_all(ABI::V4))
        .and_then(Ruleset::create)
        .is_ok()
}

impl Sandbox {
    pub(super) fn new(landlock: bool, programs: Vec<PathBuf>) -> Self {
        Self {
            landlock,
            network: empty_network(),
            programs,
        }
    }

    /// What holds a build, for people.
    pub(super) fn describe(&self) -> &'static str {
        match (self.landlock, self.network.is_some()) {
            (true, true) => "Landlock and an empty network namespace",
            (true, false) if tcp_works() => "Landlock",
            (true, false) => "Landlock for files only, because this kernel has none for TCP",
            (false, true) => "an empty network namespace only, without Landlock",
            (false, false) => "no sandbox",
        }
    }

    fn confine(&self, directory: &Path) -> io::Result<()> {
        if let Some(network) = &self.network {
            setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        if self.landlock {
            self.restrict(directory).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn restrict(&self, directory: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let abi = ABI::V6;
        let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
        let execute: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::Execute;
        let null: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile;
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?
            .add_rules(path_beneath_rules([directory], read))?
            .add_rules(path_beneath_rules(LIBRARIES, read))?
            .add_rules(path_beneath_rules(LOADERS, execute))?
            .add_rules(path_beneath_rules(["/dev/null"], null))?
            .add_rules(path_beneath_rules(&self.programs, read | execute))?
            .restrict_self()?;
        if status.ruleset == RulesetStatus::NotEnforced {
            return Err("Landlock is not enforced".into());
        }
        Ok(())
    }
}

/// Makes a network namespace on a thread of its own; its open file keeps it.
fn empty_network() -> Option<File> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).ok()?;
        File::open("/proc/thread-self/ns/net").ok()
    };
    thread::Builder::new()
        .name("render-network".to_owned())
        .spawn(make)
        .ok()?
        .join()
        .ok()?
}

/// A running program and everything that it started. Dropping it kills them all.
#[derive(Debug)]
pub(super) struct Group {
    leader: Pid,
    /// While it is false, the leader's id cannot have passed to another process.
    reaped: Arc<Mutex<bool>>,
    pub(super) output: Option<OwnedFd>,
    pub(super) errors: Option<OwnedFd>,
    /// How the leader ended; by then the rest of the group has been killed.
    pub(super) ended: oneshot::Receiver<io::Result<ExitStatus>>,
}

impl Drop for Group {
    fn drop(&mut self) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            // Where there is nothing left to kill, all is well.
            let _gone = kill_process_group(self.leader, Signal::KILL);
        }
    }
}

/// Starts `launch` confined by `sandbox`, its output and errors to be read from pipes.
pub(super) async fn spawn(sandbox: Arc<Sandbox>, launch: Launch) -> io::Result<Group> {
    let (started, group) = oneshot::channel();
    thread::Builder::new()
        .name("render-build".to_owned())
        .spawn(move || {
            match sandbox
                .confine(&launch.directory)
                .and_then(|()| start(&launch))
            {
                Ok((child, group, reaped, ended)) => {
                    let leader = group.leader;
                    // Where nobody waits any more, the group comes back and is killed.
                    drop(started.send(Ok(group)));
                    // Where nobody waits for the end, it is reaped all the same.
                    drop(ended.send(wait(child, leader, &reaped)));
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
    group.await.map_err(io::Error::other)?
}

type Reaped = Arc<Mutex<bool>>;

fn start(
    launch: &Launch,
) -> io::Result<(
    Child,
    Group,
    Reaped,
    oneshot::Sender<io::Result<ExitStatus>>,
)> {
    let mut child = Command::new(&launch.program)
        .args(&launch.arguments)
        .env_clear()
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&launch.directory)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let leader = Pid::from_child(&child);
    if let Err(error) = limit(leader, launch.limits) {
        child.kill()?;
        child.wait()?;
        return Err(error);
    }
    let reaped = Reaped::default();
    let (ended, end) = oneshot::channel();
    let group = Group {
        leader,
        reaped: reaped.clone(),
        output: child.stdout.take().map(OwnedFd::from),
        errors: child.stderr.take().map(OwnedFd::from),
        ended: end,
    };
    Ok((child, group, reaped, ended))
}

fn limit(
    process: Pid,
    Limits {
        memory,
        cpu_seconds,
    }: Limits,
) -> io::Result<()> {
    for (resource, most) in [
        (Resource::Data, memory),
        (Resource::Cpu, cpu_seconds),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
        (Resource::Nofile, 256),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        match prlimit(Some(process), resource, limit) {
            Ok(_) => {}
            // It ended already.
            Err(rustix::io::Errno::SRCH) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until the leader is dead, kills what it left behind, and reaps it; in this order, because a dead process
/// keeps its id, and thereby its group's, until it is reaped.
fn wait(mut child: Child, leader: Pid, reaped: &Reaped) -> io::Result<ExitStatus> {
    let dead = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(
        waitid(WaitId::Pid(leader), dead),
        Err(rustix::io::Errno::INTR)
    ) {}
    let mut reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
    let _gone = kill_process_group(leader, Signal::KILL);
    let status = child.wait();
    *reaped = true;
    status
}
