//! Answers the hooks: says what a push does, and whether it is accepted.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    hook::{Answer, MAX_QUESTION, Question},
    pushes::{Push, Pushes},
    rules,
};
use crate::tasks::Tasks;

/// How long a question may take to come; it comes from this machine.
const QUESTION_DEADLINE: Duration = Duration::from_secs(10);

/// Who looks at pushes.
#[derive(Clone, Debug)]
pub(super) struct Reviewer {
    pub(super) pushes: Arc<Pushes>,
}

impl Reviewer {
    /// Answers every hook that connects, until the shutdown.
    pub(super) async fn run(self, listener: UnixListener, tasks: Tasks) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = tasks.shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (this, shutdown) = (self.clone(), tasks.shutdown.clone());
                    tasks.tracker.spawn(async move {
                        let answered = tokio::select! {
                            answered = this.answer(stream) => answered,
                            () = shutdown.cancelled() => return,
                        };
                        if let Err(error) = answered {
                            debug!(%error, "a hook was not answered");
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "a hook could not be heard");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut text = Vec::new();
        let (reading, mut writing) = stream.split();
        timeout(
            QUESTION_DEADLINE,
            reading.take(MAX_QUESTION).read_to_end(&mut text),
        )
        .await??;
        let question: Question = serde_json::from_slice(&text)?;
        let Some(push) = self.pushes.claim(&question.secret) else {
            return Err(io::Error::other("nobody pushes with this secret"));
        };
        let refusals = rules::refusals(&question.updates, &push.branch);
        for line in &refusals {
            say(&mut writing, Answer::Say(line.clone())).await?;
        }
        let accepted = refusals.is_empty();
        let Push { fleet, .. } = &push;
        info!(tenant = %fleet.tenant, fleet = %fleet.name, accepted, "push");
        say(&mut writing, Answer::Verdict(accepted)).await
    }
}

async fn say(writing: &mut (impl AsyncWrite + Unpin), answer: Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    writing.write_all(&line).await
}
