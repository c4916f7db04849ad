//! Notices that a loop of the agent does not go on, and lets the process be started again.
//!
//! ```text
//! a loop: beat ─▶ a step ─▶ beat ─▶ …      Watchdog: all in time? ─▶ WATCHDOG=1 to systemd
//!                                                     └─ no ─▶ nothing to systemd, and the process ends
//! ```
//!
//! A loop says by [`beat`] and [`allow`] until when it will be heard of again; what may rightly take long (a hook,
//! a pull of an image) has a deadline of its own, and asks for that much. Nothing is said to systemd by a timer
//! alone: where a loop waits for ever, the process ends with an error, and where the whole process stands
//! still, systemd ends it.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    sync::watch,
    time::{self, Instant},
};

/// How long a loop may be silent, beside what it asked for, where systemd does not say.
const PATIENCE: Duration = Duration::from_mins(2);
/// For work on files: a slow card, and every file synced.
pub const FILES: Duration = Duration::from_mins(10);

/// Tells the service manager.
pub type Notify = fn(&[NotifyState<'_>]) -> io::Result<()>;

tokio::task_local! {
    static PULSE: Arc<Pulse>;
}

/// Tells systemd, where it listens: a datagram to `NOTIFY_SOCKET`, which starts with `@` where it is abstract (see
/// `sd_notify(3)`). A service manager that does not read must not hold up the agent, so what does not fit its queue
/// is lost, which the crate's own function does not do.
fn notify(state: &[NotifyState<'_>]) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let lines = state.iter().map(|state| format!("{state}\n"));
    socket
        .send_to_addr(lines.collect::<String>().as_bytes(), &address)
        .map(drop)
}

/// Watches over loops.
#[derive(Clone, Debug)]
pub struct Watchdog {
    pulses: Arc<Mutex<Vec<Weak<Pulse>>>>,
    patience: Duration,
    status: watch::Sender<String>,
    notify: Notify,
}

/// Until when a loop will be heard of.
#[derive(Debug)]
struct Pulse {
    name: &'static str,
    born: Instant,
    patience: Duration,
    /// In milliseconds since it was born.
    until: AtomicU64,
}

impl Pulse {
    fn in_time(&self, within: Duration) -> u64 {
        let until = self.born.elapsed() + self.patience;
        u64::try_from(until.saturating_add(within).as_millis()).unwrap_or(u64::MAX)
    }

    fn is_overdue(&self) -> bool {
        self.born.elapsed() > Duration::from_millis(self.until.load(SeqCst))
    }
}

/// The loop that runs this goes on, and its next step takes no longer than `within`.
pub fn beat(within: Duration) {
    with_pulse(|pulse| pulse.until.store(pulse.in_time(within), SeqCst));
}

/// A step of the loop that runs this may take this long. Steps side by side do not shorten each other's time.
pub fn allow(within: Duration) {
    with_pulse(|pulse| {
        pulse.until.fetch_max(pulse.in_time(within), SeqCst);
    });
}

fn with_pulse(act: impl FnOnce(&Pulse)) {
    // Who is not watched over has nobody to tell.
    PULSE.try_with(|pulse| act(pulse)).unwrap_or_default();
}

impl Watchdog {
    /// The one of this process: as patient as systemd is, where that watches over it.
    pub fn of_the_process() -> Self {
        let patience = sd_notify::watchdog_enabled().map_or(PATIENCE, |it| it.min(PATIENCE));
        Self::new(patience, notify)
    }

    /// One that takes a loop for stuck that is silent for longer than it asked for and `patience`.
    pub fn new(patience: Duration, notify: Notify) -> Self {
        Self {
            pulses: Arc::default(),
            patience,
            status: watch::Sender::default(),
            notify,
        }
    }

    /// The start is over: what can be told by an exit code alone has not happened.
    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// What the agent does, in a line for people.
    pub fn status(&self, line: &str) {
        self.status.send_if_modified(|status| {
            let is_news = status != line;
            line.clone_into(status);
            is_news
        });
    }

    /// Watches over this until it ends or is dropped.
    pub fn watch<F: Future>(
        &self,
        name: &'static str,
        work: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        let pulse = Arc::new(Pulse {
            name,
            born: Instant::now(),
            patience: self.patience,
            until: AtomicU64::default(),
        });
        pulse.until.store(pulse.in_time(Duration::ZERO), SeqCst);
        self.lock().push(Arc::downgrade(&pulse));
        PULSE.scope(pulse, work)
    }

    /// Returns the name of the first loop that is stuck.
    pub async fn run(&self) -> &'static str {
        let every = self.patience / 4;
        let mut status = self.status.subscribe();
        let mut looked = Instant::now();
        loop {
            let stood_still = looked.elapsed() > every * 2;
            looked = Instant::now();
            // Where the machine slept, the loops wake with us, and get the time to say so.
            if !stood_still && let Some(stuck) = self.overdue() {
                self.tell(&[NotifyState::Status(&format!(
                    "the {stuck} loop does not go on"
                ))]);
                return stuck;
            }
            self.tell(&[NotifyState::Watchdog]);
            let tick = time::sleep_until(looked + every);
            tokio::pin!(tick);
            loop {
                tokio::select! {
                    () = &mut tick => break,
                    Ok(()) = status.changed() => {
                        let line = status.borrow_and_update().clone();
                        self.tell(&[NotifyState::Status(&line)]);
                    }
                }
            }
        }
    }

    fn overdue(&self) -> Option<&'static str> {
        let mut pulses = self.lock();
        pulses.retain(|pulse| pulse.strong_count() > 0);
        let mut alive = pulses.iter().filter_map(Weak::upgrade);
        alive
            .find(|pulse| pulse.is_overdue())
            .map(|pulse| pulse.name)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Pulse>>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &[NotifyState<'_>]) {
        if let Err(error) = (self.notify)(state) {
            tracing::debug!(%error, "systemd cannot be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const PATIENT: Duration = Duration::from_mins(1);
    /// Longer than anybody waits.
    const LONG: Duration = Duration::from_hours(1);

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the signature is that of what it stands for"
    )]
    fn nobody(_: &[NotifyState<'_>]) -> io::Result<()> {
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_go_on_is_named() {
        let watchdog = Watchdog::new(PATIENT, nobody);
        let fine = tokio::spawn(watchdog.watch("fine", async {
            loop {
                beat(LONG);
                time::sleep(LONG).await;
            }
        }));
        let gone = tokio::spawn(watchdog.watch("gone", async {}));
        let stuck = tokio::spawn(watchdog.watch("stuck", async {
            beat(LONG);
            time::sleep(LONG).await;
            beat(Duration::ZERO);
            std::future::pending::<()>().await;
        }));
        let begun = Instant::now();
        assert_eq!(watchdog.run().await, "stuck");
        assert!(begun.elapsed() > LONG && begun.elapsed() <= LONG + PATIENT * 2);
        gone.await.unwrap();
        fine.abort();
        stuck.abort();
        // What was ended is not missed.
        assert!(stuck.await.is_err() && fine.await.is_err());
        assert!(time::timeout(LONG * 2, watchdog.run()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn steps_side_by_side_do_not_shorten_each_others_time() {
        let watchdog = Watchdog::new(PATIENT, nobody);
        let work = tokio::spawn(watchdog.watch("work", async {
            allow(LONG);
            allow(Duration::ZERO);
            time::sleep(LONG).await;
        }));
        tokio::select! {
            name = watchdog.run() => panic!("{name} was in time"),
            ended = work => ended.unwrap(),
        }
        beat(LONG);
        allow(LONG);
    }

    #[tokio::test(start_paused = true)]
    async fn systemd_hears_nothing_once_a_loop_is_stuck() {
        static SAID: AtomicUsize = AtomicUsize::new(0);
        #[expect(
            clippy::unnecessary_wraps,
            reason = "the signature is that of what it stands for"
        )]
        fn count(state: &[NotifyState<'_>]) -> io::Result<()> {
            let said = state
                .iter()
                .filter(|it| matches!(it, NotifyState::Watchdog));
            SAID.fetch_add(said.count(), SeqCst);
            Ok(())
        }
        let watchdog = Watchdog::new(PATIENT, count);
        let work = watchdog.watch("work", std::future::pending::<()>());
        assert_eq!(watchdog.run().await, "work");
        // Four in each minute, and the loop was given one.
        assert!((4..=6).contains(&SAID.load(SeqCst)), "{SAID:?}");
        drop(work);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_slept_is_not_stuck() {
        let watchdog = Watchdog::new(PATIENT, nobody);
        let work = tokio::spawn(watchdog.watch("work", async {
            loop {
                beat(Duration::ZERO);
                time::sleep(PATIENT / 2).await;
            }
        }));
        let watching = tokio::spawn({
            let watchdog = watchdog.clone();
            async move { watchdog.run().await }
        });
        for _ in 0..10 {
            time::sleep(PATIENT).await;
            // All timers are late at once, and which is looked at first is open.
            time::advance(LONG).await;
        }
        assert!(!watching.is_finished());
        watching.abort();
        work.abort();
    }
}
