//! What wears devices out: full disks, torn files, targets that are away for long, and thousands of generations.

use std::{
    ffi::CString,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use longshore_agent::{
    backoff::Backoff,
    clock,
    files::Folder,
    ledger::Ledger,
    link,
    reconcile::{Reconciler, Timing},
    report::Reporter,
    runtime::{ApplyError, Changes, Runtime, directory::Directory},
    update::Updates,
};
use longshore_protocol::{
    ConditionStatus, DeviceId,
    message::{Phase, RejectReason, StatusReport},
    session::Holding,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount},
    process::Signal,
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use crate::{
    holding, object,
    pki::Pki,
    process::{Device, controller, ended, signal},
    until, until_true,
};

/// A file system of 1 MiB.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(path: &'a Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let options = CString::new("size=1m,mode=0700").unwrap();
        mount(
            "tmpfs",
            path,
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .expect("these tests mount file systems: run them as root");
        Self(path)
    }

    fn grow(&self) {
        mount_remount(self.0, MountFlags::empty(), "size=64m").unwrap();
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        unmount(self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// Text of so many bytes that does not compress well.
fn noise(random: &mut StdRng, bytes: usize) -> String {
    let words: Vec<_> = (0..bytes / 16)
        .map(|_| format!("{:016x}", random.random::<u64>()))
        .collect();
    words.concat()
}

fn is_not_writable(report: &StatusReport) -> bool {
    let mut conditions = report.conditions.iter();
    conditions.any(|it| it.kind == "LedgerWritable" && it.status == ConditionStatus::False)
}

#[tokio::test]
async fn a_full_disk_keeps_the_last_good_set_and_the_identity_and_is_got_over() {
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let state = device.state();
    let disk = Disk::mount(&state);
    let manifests = device.path().join("manifests");
    let mut command = device.join(&server, &pki, "lst_one");
    let child = command.arg("--directory").arg(&manifests).spawn().unwrap();
    let mut seen = edge.seen.clone();
    let small = edge.desire(1, &[object("a", "1")]);
    until(&mut seen, "a set that fits", |seen| {
        let last = seen.reports.last();
        last.is_some_and(|it| it.held == small && it.phase == Phase::Applied)
    })
    .await;
    let identity = std::fs::read(state.join("identity.json")).unwrap();

    let mut random = StdRng::seed_from_u64(1);
    let objects: Vec<_> = (0..4)
        .map(|n| object(&format!("o{n}"), &noise(&mut random, 700_000)))
        .collect();
    let large = edge.desire(2, &objects);
    until(&mut seen, "it says that it cannot keep the set", |seen| {
        seen.rejected.contains(&RejectReason::Storage) && seen.reports.iter().any(is_not_writable)
    })
    .await;
    assert!(!seen.borrow().accepted.contains(&large));
    let file = manifests.join("v1.configmap.a.yaml");
    assert!(file.exists(), "what runs is not to be touched");
    assert_eq!(
        std::fs::read(state.join("identity.json")).unwrap(),
        identity
    );

    disk.grow();
    until(&mut seen, "there is room again", |seen| {
        seen.accepted.contains(&large)
    })
    .await;
    until_true("it is applied", || {
        manifests.join("v1.configmap.o3.yaml").exists()
    })
    .await;
    assert_eq!(
        std::fs::read(state.join("identity.json")).unwrap(),
        identity
    );
    signal(&child, Signal::TERM);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
}

#[tokio::test]
async fn a_power_cut_may_tear_any_file_but_the_identity() {
    let chosen = rand::random();
    println!("seed {chosen}");
    let mut random = StdRng::seed_from_u64(chosen);
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let mut seen = edge.seen.clone();
    let mut generation = 0;
    for round in 0..12 {
        generation += 1;
        let wanted = edge.desire(generation, &[object("a", &generation.to_string())]);
        let child = device.join(&server, &pki, "lst_one").spawn().unwrap();
        until(&mut seen, "the set, whatever the disk lost", |seen| {
            let last = seen.reports.last();
            last.is_some_and(|it| it.held == wanted && it.phase == Phase::Applied)
        })
        .await;
        signal(&child, Signal::KILL);
        ended(child).await;
        // What was not synced may be anything: shorter, empty, gone, or full of zeros.
        for entry in std::fs::read_dir(device.state()).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let is_ours =
                entry.path().is_file() && !["identity.json", "lock"].contains(&name.as_str());
            if !is_ours || random.random_bool(0.3) {
                continue;
            }
            let mut content = std::fs::read(entry.path()).unwrap();
            match random.random_range(0..4) {
                0 => std::fs::remove_file(entry.path()).unwrap(),
                1 => std::fs::write(entry.path(), "").unwrap(),
                2 => {
                    content.truncate(random.random_range(0..=content.len()));
                    std::fs::write(entry.path(), content).unwrap();
                }
                _ => std::fs::write(entry.path(), vec![0; content.len()]).unwrap(),
            }
            println!("round {round}: tore {name}");
        }
        std::fs::write(device.state().join(".longshore-new"), "half").unwrap();
    }
    let left: Vec<_> = std::fs::read_dir(device.state())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(left.len() < 16, "{left:?}");

    // A torn identity is told, and not replaced by a new one of its own accord.
    let identity = device.state().join("identity.json");
    let content = std::fs::read(&identity).unwrap();
    std::fs::write(&identity, &content[..content.len() / 2]).unwrap();
    let (code, said) = ended(device.join(&server, &pki, "lst_one").spawn().unwrap()).await;
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("is damaged"), "{said}");
}

/// A target that is away until it is not.
struct Away {
    until: time::Instant,
    tries: Arc<AtomicUsize>,
}

#[async_trait]
impl Runtime for Away {
    fn name(&self) -> &'static str {
        "away"
    }

    async fn apply(&mut self, _holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        self.tries.fetch_add(1, SeqCst);
        if time::Instant::now() < self.until {
            return Err(ApplyError::Unavailable("connection refused".into()));
        }
        Ok(Changes::default())
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        Ok(Changes::default())
    }

    async fn disturbed(&mut self) {
        std::future::pending::<()>().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_gone_for_an_hour_is_asked_rarely_and_found_soon() {
    const HOUR: Duration = Duration::from_hours(1);
    let tries = Arc::new(AtomicUsize::new(0));
    let begun = time::Instant::now();
    let runtime = Away {
        until: begun + HOUR,
        tries: tries.clone(),
    };
    let target = watch::Sender::new(Some(Arc::new(holding(1, [object("a", "1")]))));
    let reporter = Reporter::new(None, clock::system);
    let timing = link::Timing::default();
    let reconciler = Reconciler::new(
        Box::new(runtime),
        target.subscribe(),
        reporter.clone(),
        Timing::default(),
        Backoff::new(
            timing.first_retry,
            timing.last_retry,
            StdRng::seed_from_u64(5),
        ),
    );
    let stop = CancellationToken::new();
    let task = tokio::spawn(reconciler.run(stop.clone()));
    let mut report = reporter.follow();
    let applied = report.wait_for(|report| report.phase == Phase::Applied);
    time::timeout(HOUR * 2, applied)
        .await
        .expect("found again")
        .unwrap();
    assert!(
        begun.elapsed() <= HOUR + timing.last_retry,
        "{:?}",
        begun.elapsed()
    );
    let count = tries.load(SeqCst);
    assert!((60..240).contains(&count), "{count} tries within an hour");
    stop.cancel();
    task.await.unwrap();
}

fn resident_kibibytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

fn bytes_below(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test]
async fn a_thousand_generations_leave_no_trace_in_memory_or_on_disk() {
    const GENERATIONS: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    // In memory, for a disk would be synced ten thousand times.
    let disk = Disk::mount(dir.path());
    disk.grow();
    let ledger = Arc::new(Ledger::new(Folder::open(dir.path()).unwrap()));
    let target = watch::Sender::new(None);
    let reporter = Reporter::new(None, clock::system);
    let moment = Duration::from_millis(1);
    let reconciler = Reconciler::new(
        Box::new(Directory::new(
            dir.path().join("manifests"),
            DeviceId::from_random([1; 16]),
        )),
        target.subscribe(),
        reporter.clone(),
        Timing {
            settle: moment,
            ..Timing::default()
        },
        Backoff::new(moment, moment, StdRng::seed_from_u64(1)),
    )
    .carefully(Updates::default(), ledger.clone());
    let stop = CancellationToken::new();
    let task = tokio::spawn(reconciler.run(stop.clone()));
    let mut report = reporter.follow();
    let mut random = StdRng::seed_from_u64(2);
    let mut usual = (0, 0);
    for generation in 1..=GENERATIONS {
        // Objects that come and go under names of their own, as releases do.
        let release = generation / 3;
        let objects = (0..4).map(|n| {
            let text = noise(&mut random, 4000);
            object(&format!("r{}-{n}", release + n), &text)
        });
        let next = Arc::new(holding(generation, objects));
        ledger.store(&next).unwrap();
        target.send_replace(Some(next));
        until(&mut report, "applied", |report| {
            report.held.generation.number() == generation && report.phase == Phase::Applied
        })
        .await;
        if generation == GENERATIONS / 4 {
            usual = (resident_kibibytes(), bytes_below(dir.path()));
        }
    }
    stop.cancel();
    task.await.unwrap();
    let (memory, disk) = (resident_kibibytes(), bytes_below(dir.path()));
    println!("{usual:?} KiB and bytes after a quarter, {memory} KiB and {disk} bytes at the end");
    assert!(
        memory < usual.0 + 4 * 1024,
        "memory grew from {} to {memory} KiB",
        usual.0
    );
    assert!(
        disk < usual.1 * 2,
        "the disk's use grew from {} to {disk} bytes",
        usual.1
    );
    assert!(disk < 256 * 1024, "{disk} bytes for 16 KiB of objects");
}
