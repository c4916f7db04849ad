//! A process that ends with its owner.

use std::{
    env,
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// How much of a log is shown at the end, in bytes.
pub const SHOWN: usize = 16 * 1024;

/// A running program whose output goes to a file. It stays in our process group, so that whoever ends us by
/// group ends it too.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    quiet: bool,
}

/// Processor time of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Its own.
    pub own: Duration,
    /// That of its children that ended.
    pub children: Duration,
}

impl Process {
    /// Starts `command`; what it prints is appended to the file `log`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors: File = out.try_clone().context("share the log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            quiet: false,
        })
    }

    /// Whether to keep the log to itself at the end.
    pub fn be_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// What the program printed so far, in all its lives.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("look at a process")
    }

    /// Fails where the program ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended ({status}): {}",
                self.name,
                tail(&self.log(), 2048)
            ),
        }
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// Where it does not in time.
    pub async fn exit(&mut self) -> Result<ExitStatus> {
        let name = self.name.clone();
        eventually("the end of a process", async || {
            self.ended()?.with_context(|| format!("{name} still runs"))
        })
        .await
    }

    /// Asks the program to end (SIGTERM), and waits for it.
    ///
    /// # Errors
    /// Where it does not end in time; it is killed then.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let ended = self.exit().await;
        if ended.is_err() {
            self.kill();
        }
        ended
    }

    /// Kills the program (SIGKILL), and reaps it.
    pub fn kill(&mut self) {
        // Both fail only where it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Resident memory, in bytes (proc(5): `VmRSS` in kibibytes).
    ///
    /// # Errors
    /// Where the program is gone.
    pub fn resident_memory(&self) -> Result<u64> {
        resident_memory(self.id()).with_context(|| format!("{} is gone", self.name))
    }

    /// The processor time that it took so far, itself and the children that it waited for (proc(5): `utime`, `stime`,
    /// `cutime`, `cstime`).
    ///
    /// # Errors
    /// Where the program is gone.
    pub fn cpu_time(&self) -> Result<CpuTime> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()))
            .with_context(|| format!("{} is gone", self.name))?;
        // The name of the program may have spaces and parentheses in it.
        let (_, fields) = stat.rsplit_once(')').context("the kernel tells no times")?;
        let ticks = |field: usize| -> Result<u64> {
            let text = fields.split_whitespace().nth(field);
            Ok(text.context("the kernel tells no times")?.parse()?)
        };
        let of = |ticks: u64| {
            Duration::from_secs(ticks)
                / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100)
        };
        Ok(CpuTime {
            own: of(ticks(11)? + ticks(12)?),
            children: of(ticks(13)? + ticks(14)?),
        })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where the program is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, signal)
            .with_context(|| format!("signal {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if !self.quiet {
            eprintln!("---- {}\n{}", self.name, tail(&self.log(), SHOWN));
        }
    }
}

/// Resident memory of the process with this id, in bytes (proc(5): `VmRSS` in kibibytes).
///
/// # Errors
/// Where there is no such process.
pub fn resident_memory(id: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .context("the kernel does not tell VmRSS")?;
    Ok(kibibytes * 1024)
}

/// What a program logs: what the environment says, or else `usual`.
pub fn log_filter(variable: &str, usual: &str) -> String {
    env::var(variable).unwrap_or_else(|_| usual.to_owned())
}

/// The last lines of `text`, at most `most` bytes.
pub fn tail(text: &str, most: usize) -> &str {
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default()
}
