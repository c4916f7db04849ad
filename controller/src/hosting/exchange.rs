//! What moves between a git client and Git, while both live.
//!
//! ```text
//! request body ─▶ stdin ─▶ git http-backend ─▶ stdout ─▶ head, then a bounded channel ─▶ response body
//! ```
//!
//! Nothing is held but a few chunks, so a slow client slows Git down. It is over when the client is gone, when
//! nothing moves for [`IDLE`], after [`DEADLINE`], and at the shutdown. Then Git sees its input end: it gives up, and
//! removes what it put into quarantine, which it would not do on a signal. What is left of the process group after
//! [`GRACE`] is killed.

use std::{io, pin::pin, process::ExitStatus, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout},
    sync::{Notify, mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::cgi;
use crate::process_group::Group;

/// How long nothing may move. Git sends a sign of life every five seconds while a push is being looked at.
const IDLE: Duration = Duration::from_mins(2);
/// How long a request may take at most.
pub(super) const DEADLINE: Duration = Duration::from_hours(1);
/// How long Git may take to clean up when it is to end.
const GRACE: Duration = Duration::from_secs(5);
/// How long a client may go on to send what Git does not want.
const LEFTOVER: Duration = Duration::from_mins(1);
/// How much is read at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// How much of what Git says to us is logged, in bytes.
const MAX_ERRORS: u64 = 4 * 1024;

/// Why a request was ended before Git was done.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the client is gone")]
    Gone,
    #[error("nothing moved for {} seconds", IDLE.as_secs())]
    Idle,
    #[error("it took longer than {} minutes", DEADLINE.as_secs() / 60)]
    Late,
    #[error("the controller stops")]
    Shutdown,
    #[error("git's output broke")]
    Output(#[source] io::Error),
    #[error("git's answer has no head")]
    NoHead,
}

/// A running `git http-backend`, and where its answer goes.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) child: Child,
    pub(super) group: Group,
    pub(super) chunks: mpsc::Sender<io::Result<Bytes>>,
    /// Told when it is over before Git is done.
    pub(super) broken: Option<CancellationToken>,
}

impl Exchange {
    /// Moves everything until Git ends, and returns when its process group is gone.
    pub(super) async fn run(
        self,
        body: Body,
        head: oneshot::Sender<cgi::Head>,
        shutdown: CancellationToken,
    ) {
        let Self {
            mut child,
            mut group,
            chunks,
            broken,
        } = self;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ending = async {
            let Some(mut stdout) = stdout else { return };
            let moving = exchange(body, stdin, &mut stdout, head, &chunks, &shutdown);
            if let Err(reason) = moving.await {
                info!(%reason, "a git request was cut off");
                // The client must not take what it got for a whole answer.
                let cut = io::Error::other("the answer was cut off");
                drop(chunks.try_send(Err(cut)));
                if let Some(broken) = broken {
                    broken.cancel();
                }
            }
            drop(chunks);
            match timeout(GRACE, end(&mut child, stdout)).await {
                Ok(Ok(status)) => {
                    group.release();
                    debug!(%status, "git ended");
                }
                Ok(Err(error)) => debug!(%error, "git's end was not heard of"),
                Err(_elapsed) => debug!("git had to be killed"),
            }
            // Its errors may be held open by what it started; with the group, that goes.
            drop(group);
        };
        tokio::join!(ending, log(stderr));
    }
}

/// Moves what there is in both directions, until Git closes its output.
async fn exchange(
    body: Body,
    stdin: Option<ChildStdin>,
    stdout: &mut ChildStdout,
    head: oneshot::Sender<cgi::Head>,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
    shutdown: &CancellationToken,
) -> Result<(), Broken> {
    let moved = Notify::new();
    let mut feeding = pin!(feed(body, stdin, &moved));
    let mut draining = pin!(drain(stdout, head, chunks, &moved));
    let mut idle = pin!(idle(&moved));
    let mut late = pin!(sleep(DEADLINE));
    let mut is_fed = false;
    loop {
        tokio::select! {
            drained = &mut draining => {
                drained?;
                break;
            }
            done = &mut feeding, if !is_fed => {
                done?;
                is_fed = true;
            }
            () = chunks.closed() => return Err(Broken::Gone),
            () = &mut idle => return Err(Broken::Idle),
            () = &mut late => return Err(Broken::Late),
            () = shutdown.cancelled() => return Err(Broken::Shutdown),
        }
    }
    // A client that still sends when the answer ends takes it for a broken connection (over HTTP/2, curl does).
    if !is_fed {
        tokio::select! {
            _done = &mut feeding => {}
            () = chunks.closed() => {}
            () = sleep(LEFTOVER) => {}
            () = shutdown.cancelled() => {}
        }
    }
    Ok(())
}

/// Lets Git come to its end; nobody needs what it says.
async fn end(child: &mut Child, mut stdout: ChildStdout) -> io::Result<ExitStatus> {
    tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await?;
    child.wait().await
}

/// Moves the request's body to Git. What Git does not want to read is taken from the client all the same, so that
/// the client gets to read the answer.
async fn feed(body: Body, stdin: Option<ChildStdin>, moved: &Notify) -> Result<(), Broken> {
    let (mut body, mut stdin) = (body.into_data_stream(), stdin);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_broken| Broken::Gone)?;
        moved.notify_one();
        if let Some(pipe) = &mut stdin
            && let Err(error) = pipe.write_all(&chunk).await
        {
            debug!(%error, "git stopped reading");
            stdin = None;
        }
    }
    Ok(())
}

/// Moves Git's answer to the client.
async fn drain(
    stdout: &mut ChildStdout,
    head: oneshot::Sender<cgi::Head>,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
    moved: &Notify,
) -> Result<(), Broken> {
    let mut begun = Vec::new();
    let (found, mut chunk) = loop {
        if stdout.read_buf(&mut begun).await.map_err(Broken::Output)? == 0
            || begun.len() > cgi::MAX_HEAD + CHUNK
        {
            return Err(Broken::NoHead);
        }
        moved.notify_one();
        if let Some(found) = cgi::head(&begun) {
            let rest = Bytes::from(begun).split_off(found.length);
            break (found, rest);
        }
    };
    head.send(found).map_err(|_head| Broken::Gone)?;
    loop {
        if !chunk.is_empty() {
            chunks.send(Ok(chunk)).await.map_err(|_gone| Broken::Gone)?;
            moved.notify_one();
        }
        let mut buffer = Vec::with_capacity(CHUNK);
        if stdout.read_buf(&mut buffer).await.map_err(Broken::Output)? == 0 {
            return Ok(());
        }
        chunk = buffer.into();
    }
}

/// Ends when nothing moved for a while.
async fn idle(moved: &Notify) {
    while timeout(IDLE, moved.notified()).await.is_ok() {}
}

/// Logs the beginning of what Git says to us, and reads the rest, or Git would wait.
async fn log(stderr: Option<impl AsyncRead + Unpin>) {
    let Some(stderr) = stderr else { return };
    let mut text = Vec::new();
    let mut bounded = stderr.take(MAX_ERRORS);
    let read = bounded.read_to_end(&mut text).await;
    let rest = tokio::io::copy(&mut bounded.into_inner(), &mut tokio::io::sink()).await;
    if let Err(error) = read.and(rest.map(|_| 0)) {
        debug!(%error, "git's errors could not be read");
    }
    let text = String::from_utf8_lossy(&text);
    if !text.trim().is_empty() {
        info!(said = text.trim(), "git");
    }
}
