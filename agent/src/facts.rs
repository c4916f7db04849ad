//! What the device says of itself, for the approver, the inventory and, where `fleet.yaml` allows it, as labels. All of
//! it is best effort.
//!
//! A [`Watcher`] looks every few minutes. What changes all the time, such as the temperature, is told in steps,
//! and only when it has moved by one: a device that stands still says nothing.

mod local;
mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use longshore_protocol::{DeviceName, api::Facts};
use tokio::{sync::watch, time};

use crate::watchdog;

/// Between two looks.
const LOOK: Duration = Duration::from_mins(3);
/// Temperatures are told in steps of so many degrees.
const DEGREES: u64 = 5;
/// Room on the disk is told in steps of so many percent.
const PERCENT: u64 = 5;

/// Looks at the device again and again.
#[derive(Debug)]
pub struct Watcher {
    /// Where the device's owner puts facts.
    local: PathBuf,
    /// Which disk matters.
    disk: PathBuf,
    temperature: Step,
    room: Step,
    /// What was wrong with the owner's facts at the last look.
    wrong: Vec<String>,
}

/// A number that is told coarsely, and again only when it has moved.
#[derive(Clone, Copy, Debug)]
struct Step {
    size: u64,
    told: Option<u64>,
}

impl Step {
    fn of(size: u64) -> Self {
        Self { size, told: None }
    }

    fn tell(&mut self, now: u64) -> u64 {
        let near = self.told.filter(|told| told.abs_diff(now) < self.size);
        let rounded = (now + self.size / 2) / self.size * self.size;
        *self.told.insert(near.unwrap_or(rounded))
    }
}

impl Watcher {
    /// Adds the facts in the directory `local` to those of the machine and of the disk that `disk` is on.
    pub fn new(local: PathBuf, disk: PathBuf) -> Self {
        Self {
            local,
            disk,
            temperature: Step::of(DEGREES),
            room: Step::of(PERCENT),
            wrong: Vec::new(),
        }
    }

    /// The facts now.
    pub fn look(&mut self) -> Facts {
        let (mut facts, wrong) = local::read(&self.local);
        if wrong != self.wrong {
            for wrong in &wrong {
                tracing::warn!(wrong, "a fact is left out");
            }
            self.wrong = wrong;
        }
        facts.extend(gather(Path::new("/")));
        if let Some((total, free)) = machine::disk(&self.disk) {
            facts.insert("disk".to_owned(), machine::bytes(total));
            let percent = self.room.tell(free.saturating_mul(100) / total.max(1));
            facts.insert("disk-free".to_owned(), format!("{percent} %"));
        }
        if let Some(degrees) = machine::temperature(Path::new("/sys/class/thermal")) {
            let degrees = self.temperature.tell(degrees);
            facts.insert("temperature".to_owned(), format!("{degrees} C"));
        }
        facts
    }

    /// Keeps the facts of `told` up to date, with the runtime's version as `runtime` has it.
    pub async fn run(mut self, told: watch::Sender<Facts>, mut runtime: watch::Receiver<String>) {
        loop {
            watchdog::beat(watchdog::FILES);
            let looked = tokio::task::spawn_blocking(move || (self.look(), self)).await;
            let Ok((mut facts, watcher)) = looked else {
                return;
            };
            self = watcher;
            let version = runtime.borrow_and_update().clone();
            if !version.is_empty() {
                facts.insert("runtime".to_owned(), version);
            }
            told.send_if_modified(|told| {
                let is_news = *told != facts;
                *told = facts;
                is_news
            });
            watchdog::beat(LOOK);
            tokio::select! {
                () = time::sleep(LOOK) => {}
                Ok(()) = runtime.changed() => {}
            }
        }
    }
}

/// The facts that do not change while the machine runs, and its addresses. What files say is read below `root`.
fn gather(root: &Path) -> Facts {
    let system = rustix::system::uname();
    let kernel = format!("{} {}", text(system.sysname()), text(system.release()));
    let mut facts = Facts::from([
        ("agent".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
        ("hostname".to_owned(), text(system.nodename())),
        ("kernel".to_owned(), kernel),
    ]);
    let addresses = machine::addresses();
    let found = [
        ("addresses", Some(addresses).filter(|it| !it.is_empty())),
        (
            "os",
            first_line(root.join("etc/os-release"), "PRETTY_NAME="),
        ),
        ("memory", first_line(root.join("proc/meminfo"), "MemTotal:")),
        (
            "model",
            first_line(root.join("proc/device-tree/model"), "")
                .or_else(|| first_line(root.join("sys/class/dmi/id/product_name"), "")),
        ),
        (
            "cpus",
            std::thread::available_parallelism()
                .ok()
                .map(|count| count.to_string()),
        ),
    ];
    facts.extend(
        found
            .into_iter()
            .filter_map(|(name, fact)| Some((name.to_owned(), fact?))),
    );
    facts
}

/// A device name made of the host's name: its first label, in lower case, without what a name cannot hold.
pub fn host_name() -> Option<DeviceName> {
    name_of(&text(rustix::system::uname().nodename()))
}

fn name_of(host: &str) -> Option<DeviceName> {
    let label = host.split('.').next()?.to_ascii_lowercase();
    let safe: String = label
        .chars()
        .map(|it| if it.is_ascii_alphanumeric() { it } else { '-' })
        .take(63)
        .collect();
    safe.trim_matches('-').parse().ok()
}

fn text(name: &std::ffi::CStr) -> String {
    name.to_string_lossy().into_owned()
}

/// What follows `prefix` on the first line that starts with it, without quotes and padding.
fn first_line(path: impl AsRef<Path>, prefix: &str) -> Option<String> {
    let content = fs::read(path).ok()?;
    let content = String::from_utf8_lossy(&content);
    let line = content.lines().find_map(|line| line.strip_prefix(prefix))?;
    let fact: String = line
        .trim_matches(|it: char| it.is_whitespace() || it == '"' || it == '\0')
        .chars()
        .filter(|it| !it.is_control())
        .take(200)
        .collect();
    (!fact.is_empty()).then_some(fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_device_names() {
        for (host, name) in [
            ("till-7.shop.example", "till-7"),
            ("RaspberryPi", "raspberrypi"),
            ("_a_b_", "a-b"),
        ] {
            assert_eq!(name_of(host).unwrap().as_str(), name);
        }
        assert!(name_of("").is_none());
        assert!(name_of("___").is_none());
    }

    #[test]
    fn what_moves_is_told_in_steps() {
        let mut step = Step::of(5);
        let told: Vec<_> = [41, 44, 45, 43, 47, 50, 39]
            .map(|now| step.tell(now))
            .into();
        assert_eq!(told, [40, 40, 45, 45, 45, 50, 40]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_changes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = watch::Sender::new(Facts::new());
        let mut following = told.subscribe();
        let version = watch::Sender::new(String::new());
        let watcher = Watcher::new(dir.path().to_owned(), dir.path().to_owned());
        let running = tokio::spawn(watcher.run(told, version.subscribe()));
        let has = |name: &'static str| move |facts: &Facts| facts.contains_key(name);
        following.wait_for(has("arch")).await.unwrap();
        fs::write(dir.path().join("site"), "site = madrid\narch = fake\n").unwrap();
        let facts = following.wait_for(has("site")).await.unwrap().clone();
        assert_eq!(facts["site"], "madrid");
        assert_eq!(
            facts["arch"],
            std::env::consts::ARCH,
            "the machine's own facts are not to be replaced"
        );
        version.send_replace("podman version 5".into());
        following.wait_for(has("runtime")).await.unwrap();
        running.abort();
    }

    /// What a program prints.
    fn said(script: &str) -> String {
        let output = std::process::Command::new("sh")
            .args(["-c", script])
            .output();
        let output = String::from_utf8(output.unwrap().stdout).unwrap();
        output.trim().to_owned()
    }

    #[test]
    fn what_the_machine_says_of_itself_is_told() {
        let facts = gather(Path::new("/"));
        assert_eq!(facts["agent"], env!("CARGO_PKG_VERSION"));
        assert_eq!(facts["arch"], std::env::consts::ARCH);
        assert_eq!(facts["hostname"], said("uname -n"));
        assert_eq!(facts["kernel"], said("uname -sr"));
        assert_eq!(
            facts["os"],
            said(". /etc/os-release; echo \"$PRETTY_NAME\"")
        );
        let memory = rustix::system::sysinfo();
        let memory = memory.totalram as u64 * u64::from(memory.mem_unit) / 1024;
        assert_eq!(facts["memory"], format!("{memory} kB"));
        // A share of the processors may be all that the process gets.
        let cpus: usize = facts["cpus"].parse().unwrap();
        let all = said("getconf _NPROCESSORS_ONLN").parse().unwrap();
        assert!((1..=all).contains(&cpus), "{cpus} of {all}");
        assert_eq!(
            facts.get("addresses").map_or("", String::as_str),
            machine::addresses()
        );
    }

    #[test]
    fn the_model_is_that_of_the_board_or_the_box() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let model = || gather(dir.path()).get("model").cloned();
        assert_eq!(model(), None);
        put("sys/class/dmi/id/product_name", "NUC11TNKi5\n");
        assert_eq!(model().unwrap(), "NUC11TNKi5");
        put("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0");
        assert_eq!(model().unwrap(), "Raspberry Pi 4 Model B Rev 1.4");
        put(
            "etc/os-release",
            "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n",
        );
        put(
            "proc/meminfo",
            "MemTotal:         947036 kB\nMemFree: 1 kB\n",
        );
        let facts = gather(dir.path());
        assert_eq!(facts["os"], "Debian GNU/Linux 12");
        assert_eq!(facts["memory"], "947036 kB");
    }

    #[test]
    fn there_is_something_to_say() {
        let dir = Path::new("/");
        let facts = Watcher::new(dir.join("no-such-directory"), dir.to_owned()).look();
        assert!(facts.contains_key("disk"), "{facts:?}");
        assert!(
            facts.contains_key("arch") && facts.contains_key("kernel"),
            "{facts:?}"
        );
    }
}
