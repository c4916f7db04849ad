//! What time it is, also on a device whose own clock does not know.
//!
//! Many devices have no battery behind their clock: after a power cut it stands at 1970, or where it stood when
//! they were switched off, until somebody tells it. A [`Clock`] is the system's clock as long as that is not
//! known to be wrong, and otherwise counts on from the latest time that is known:
//!
//! - *At least* so late it is, because a certificate of ours or of the controller's begins then, or because it was
//!   so late when the agent ran last. A system clock that is behind that is wrong.
//! - *Told* by the controller, over a verified connection. A system clock that is far from that is wrong, on
//!   either side.
//!
//! What is known is kept in the state directory, at most once an hour. It is never taken from the system's clock,
//! so a clock that was wrong for a while leaves nothing behind.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

use crate::files::{Folder, Found};

const FILE: &str = "clock";
const MOST_BYTES: u64 = 64;
/// No clock of a device that has this program is before this: 2026-11-01.
const RELEASED: u64 = 1_793_491_200_000;
/// A clock that is off by less is nobody's problem.
const SLACK: u64 = 60_000;
/// A clock that is further ahead of what the controller says is wrong.
const AHEAD: u64 = 24 * HOUR;
const HOUR: u64 = 3_600_000;

/// Milliseconds since the Unix epoch. A parameter, so that tests can bring their own time.
pub type Wall = fn() -> u64;

/// The system's wall clock.
pub fn system() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Time that passes, also while the machine sleeps.
fn uptime() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000
}

/// The device's time, in milliseconds since the Unix epoch. Clones tell the same.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    wall: Box<dyn Fn() -> u64 + Send + Sync>,
    uptime: Box<dyn Fn() -> u64 + Send + Sync>,
    folder: Option<Folder>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    known: Option<Known>,
    /// What is on disk.
    kept: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    time: u64,
    uptime: u64,
    /// Whether it is that late, or at least that late.
    told: bool,
}

impl Default for Clock {
    fn default() -> Self {
        Self::from(system)
    }
}

impl<F: Fn() -> u64 + Send + Sync + 'static> From<F> for Clock {
    fn from(wall: F) -> Self {
        Self::new(wall, uptime, None, State::default())
    }
}

impl Clock {
    fn new(
        wall: impl Fn() -> u64 + Send + Sync + 'static,
        uptime: impl Fn() -> u64 + Send + Sync + 'static,
        folder: Option<Folder>,
        state: State,
    ) -> Self {
        Self(Arc::new(Inner {
            wall: Box::new(wall),
            uptime: Box::new(uptime),
            folder,
            state: Mutex::new(state),
        }))
    }

    /// The system's clock, which is not before what the last run knew.
    pub fn kept_in(folder: Folder) -> Self {
        Self::keeping(system, uptime, folder)
    }

    fn keeping(
        wall: impl Fn() -> u64 + Send + Sync + 'static,
        uptime: impl Fn() -> u64 + Send + Sync + 'static,
        folder: Folder,
    ) -> Self {
        let kept = read(&folder);
        let state = State { known: None, kept };
        let clock = Self::new(wall, uptime, Some(folder), state);
        clock.not_before(kept.unwrap_or_default().max(RELEASED));
        clock
    }

    /// The time.
    pub fn now(&self) -> u64 {
        let system = self.system();
        match self.known() {
            Some((time, told)) if is_wrong(system, time, told) => time,
            _ => system,
        }
    }

    /// What the system's clock says, which may be wrong.
    pub fn system(&self) -> u64 {
        (self.0.wall)()
    }

    /// The time, for people.
    pub fn shown(&self) -> String {
        shown(self.now())
    }

    /// Why the system's clock is not to be believed, where it is not, and what to do.
    pub fn complaint(&self) -> Option<String> {
        let system = self.system();
        let (time, told) = self.known()?;
        is_wrong(system, time, told).then(|| {
            format!(
                "this device's clock says {}, and it is {}{}: set the clock, or start NTP",
                shown(system),
                if told { "" } else { "at least " },
                shown(time)
            )
        })
    }

    /// It is at least this late.
    pub fn not_before(&self, time: u64) {
        let uptime = (self.0.uptime)();
        self.change(|state| {
            if state.known.is_none_or(|known| known.at(uptime) < time) {
                let told = false;
                state.known = Some(Known { time, uptime, told });
            }
        });
    }

    /// The controller says that it is this late.
    pub fn told(&self, time: u64) {
        let (uptime, told) = ((self.0.uptime)(), true);
        self.change(|state| state.known = Some(Known { time, uptime, told }));
    }

    /// Keeps what is known for the next start, unless that is on disk but for less than an hour. A disk that
    /// refuses stops nobody.
    pub fn keep(&self) {
        let (Some((time, _)), Some(folder)) = (self.known(), &self.0.folder) else {
            return;
        };
        let mut is_due = false;
        self.change(|state| {
            is_due = state.kept.is_none_or(|kept| kept.abs_diff(time) >= HOUR);
            if is_due {
                state.kept = Some(time);
            }
        });
        if !is_due {
            return;
        }
        let text = format!("{}\n", shown(time));
        let written = folder
            .write(FILE, text.as_bytes())
            .and_then(|()| folder.sync());
        if let Err(error) = written {
            tracing::warn!(error = crate::causes(&error), "the time is not kept");
        }
    }

    fn known(&self) -> Option<(u64, bool)> {
        let uptime = (self.0.uptime)();
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.known.map(|known| (known.at(uptime), known.told))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Known {
    fn at(&self, uptime: u64) -> u64 {
        self.time.saturating_add(uptime.saturating_sub(self.uptime))
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = Duration::from_millis(self.now());
        Some(UnixTime::since_unix_epoch(since))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.known()).finish()
    }
}

fn is_wrong(system: u64, time: u64, told: bool) -> bool {
    system.saturating_add(SLACK) < time || (told && system > time.saturating_add(AHEAD))
}

fn read(folder: &Folder) -> Option<u64> {
    let why = match folder.read(FILE, MOST_BYTES) {
        Ok(Found::Nothing) => return None,
        Ok(Found::File { content, .. }) => {
            let text = String::from_utf8_lossy(&content);
            match text.trim().parse::<Timestamp>() {
                Ok(time) => return u64::try_from(time.as_millisecond()).ok(),
                Err(error) => error.to_string(),
            }
        }
        Ok(Found::Other) => "it is no readable file".to_owned(),
        Err(error) => crate::causes(&error),
    };
    tracing::warn!(why, "the last known time cannot be read");
    None
}

/// A time as people write it, in UTC.
pub fn shown(time: u64) -> String {
    let time = i64::try_from(time).ok();
    time.and_then(|time| Timestamp::from_second(time / 1000).ok())
        .unwrap_or(Timestamp::MAX)
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const YEAR: u64 = 365 * 24 * HOUR;
    const NOW: u64 = RELEASED + YEAR;

    /// A device with a clock and an uptime that the test moves.
    struct Device {
        dir: tempfile::TempDir,
        wall: Arc<AtomicU64>,
        uptime: Arc<AtomicU64>,
    }

    impl Device {
        fn new(wall: u64) -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
                wall: Arc::new(wall.into()),
                uptime: Arc::default(),
            }
        }

        fn boot(&self) -> Clock {
            self.uptime.store(7, Ordering::Relaxed);
            let (wall, uptime) = (self.wall.clone(), self.uptime.clone());
            Clock::keeping(
                move || wall.load(Ordering::Relaxed),
                move || uptime.load(Ordering::Relaxed),
                Folder::open(self.dir.path()).unwrap(),
            )
        }

        fn set(&self, wall: u64) {
            self.wall.store(wall, Ordering::Relaxed);
        }

        fn pass(&self, time: u64) {
            self.wall.fetch_add(time, Ordering::Relaxed);
            self.uptime.fetch_add(time, Ordering::Relaxed);
        }

        fn kept(&self) -> Option<String> {
            std::fs::read_to_string(self.dir.path().join(FILE)).ok()
        }
    }

    #[test]
    fn a_clock_that_starts_at_1970_goes_on_from_the_last_known_time() {
        let device = Device::new(NOW);
        let clock = device.boot();
        assert_eq!(clock.now(), NOW);
        assert_eq!(clock.complaint(), None);
        clock.told(NOW);
        clock.keep();
        device.set(0);
        let clock = device.boot();
        assert_eq!(clock.now(), NOW);
        device.pass(5 * HOUR);
        assert_eq!(clock.now(), NOW + 5 * HOUR);
        let complaint = clock.complaint().unwrap();
        assert!(complaint.contains("1970-01-01T05:00:00Z"), "{complaint}");
        assert!(complaint.contains("start NTP"), "{complaint}");
        // Offline, it is kept as time passes; power cuts then cost at most an hour each.
        clock.keep();
        device.set(0);
        assert_eq!(device.boot().now(), NOW + 5 * HOUR);
        // Somebody sets it.
        device.set(NOW + YEAR);
        assert_eq!(device.boot().now(), NOW + YEAR);
    }

    #[test]
    fn a_new_device_at_1970_knows_at_least_how_old_the_program_is() {
        let device = Device::new(0);
        let clock = device.boot();
        assert_eq!(clock.now(), RELEASED);
        clock.not_before(NOW);
        assert_eq!(clock.now(), NOW);
        clock.not_before(RELEASED);
        assert_eq!(clock.now(), NOW);
    }

    #[test]
    fn jumps_of_years_while_it_runs_change_nothing_once_the_controller_spoke() {
        let device = Device::new(NOW);
        let clock = device.boot();
        clock.told(NOW);
        for wrong in [0, NOW - 10 * YEAR, NOW + 10 * YEAR, u64::MAX] {
            device.set(wrong);
            assert_eq!(clock.now(), NOW, "{wrong}");
            assert!(clock.complaint().is_some());
        }
        // What is near is the system's: NTP knows better than a message that was on its way.
        device.set(NOW + 2000);
        assert_eq!(clock.now(), NOW + 2000);
    }

    #[test]
    fn a_clock_that_was_ahead_leaves_nothing_behind() {
        let device = Device::new(NOW + 50 * YEAR);
        let clock = device.boot();
        clock.keep();
        clock.told(NOW);
        clock.keep();
        device.set(NOW);
        assert_eq!(device.boot().now(), NOW);
        // And so does a controller whose clock was ahead, once it is right again.
        let clock = device.boot();
        clock.told(NOW + 50 * YEAR);
        clock.keep();
        clock.told(NOW);
        clock.keep();
        assert_eq!(device.boot().now(), NOW);
    }

    #[test]
    fn it_is_written_at_most_once_an_hour() {
        let device = Device::new(NOW);
        let clock = device.boot();
        clock.keep();
        assert_eq!(device.kept().unwrap(), format!("{}\n", shown(RELEASED)));
        clock.told(NOW);
        clock.keep();
        let first = device.kept();
        for _ in 0..59 {
            device.pass(60_000);
            clock.told(clock.now());
            clock.keep();
            assert_eq!(device.kept(), first);
        }
        device.pass(60_000);
        clock.keep();
        assert_eq!(device.kept().unwrap(), format!("{}\n", shown(NOW + HOUR)));
    }

    #[test]
    fn a_damaged_file_or_a_full_disk_stops_nobody() {
        let device = Device::new(NOW);
        std::fs::write(device.dir.path().join(FILE), "yesterday").unwrap();
        assert_eq!(device.boot().now(), NOW);
        std::fs::remove_file(device.dir.path().join(FILE)).unwrap();
        std::fs::create_dir(device.dir.path().join(FILE)).unwrap();
        let clock = device.boot();
        clock.told(NOW);
        clock.keep();
        assert_eq!(clock.now(), NOW);
    }
}
