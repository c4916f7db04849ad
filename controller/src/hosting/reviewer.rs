//! Answers the hooks: says what a push does, and whether it is accepted.

use std::{io, pin::pin, sync::Arc, time::Duration};

use longshore_protocol::text::printable;

use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::{
    hook::{Answer, MAX_QUESTION, Question, Update},
    pushes::{Push, Pushes},
    review::{Review, review},
    rules,
};
use crate::{error::chain, fleets::Fleets, tasks::Tasks};

/// How long a question may take to come; it comes from this machine.
const QUESTION_DEADLINE: Duration = Duration::from_secs(10);
/// How long a push may be looked at. Then it is accepted: devices keep their last good state anyway.
const REVIEW_DEADLINE: Duration = Duration::from_mins(1);
/// What takes longer than this is told to take a while.
const QUICK: Duration = Duration::from_secs(1);
/// How many branches of one push are reviewed.
const MAX_REVIEWED: usize = 5;

/// Who looks at pushes.
#[derive(Clone, Debug)]
pub(super) struct Reviewer {
    pub(super) pushes: Arc<Pushes>,
    pub(super) fleets: Arc<Fleets>,
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
        let Push { fleet, .. } = &push;
        let span = info_span!("push", tenant = %fleet.tenant, fleet = %fleet.name);
        async {
            let accepted = tokio::select! {
                accepted = self.judge(&push, &question, &mut writing) => accepted?,
                // So that Git takes back by itself what it holds of the push.
                () = push.gone.cancelled() => false,
            };
            info!(accepted, "push");
            let metrics = &self.fleets.metrics;
            if accepted {
                metrics.pushes.inc();
            } else {
                metrics.pushes_refused.inc();
            }
            say(&mut writing, Answer::Verdict(accepted)).await
        }
        .instrument(span)
        .await
    }

    /// Says what there is to say of a push, and whether it is accepted.
    async fn judge(
        &self,
        push: &Push,
        question: &Question,
        writing: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<bool> {
        let refusals = rules::refusals(&question.updates, &push.branch);
        if !refusals.is_empty() {
            tell(writing, refusals).await?;
            return Ok(false);
        }
        let mut review = pin!(timeout(REVIEW_DEADLINE, self.review(push, question)));
        let reviewed = match timeout(QUICK, &mut review).await {
            Ok(reviewed) => reviewed,
            Err(_elapsed) => {
                let patience = "Rendering what the push changes…".to_owned();
                tell(writing, vec![patience]).await?;
                review.await
            }
        };
        let review = reviewed.unwrap_or_else(|_elapsed| Review {
            lines: vec![format!(
                "What the push changes could not be told within {} seconds, so it is accepted as \
                 it is. Devices whose overlays fail keep their last good state.",
                REVIEW_DEADLINE.as_secs()
            )],
            refused: false,
        });
        tell(writing, review.lines).await?;
        Ok(!review.refused)
    }

    /// Reviews the branches of a push, the tracked one first.
    async fn review(&self, push: &Push, question: &Question) -> Review {
        let mut all = Review::default();
        let Some(engine) = self.fleets.preview(&push.fleet) else {
            // The fleet was removed a moment ago.
            return all;
        };
        let updates = reviewable(push, question);
        let several = updates.len() > 1;
        for update in updates.iter().take(MAX_REVIEWED) {
            let review = review(&engine, push, question, update).await;
            let review = review.unwrap_or_else(|error| {
                warn!(error = %chain(&error), "a push was not reviewed");
                let line = format!(
                    "What the push changes could not be told ({error}), so it is accepted as it \
                     is. Devices whose overlays fail keep their last good state."
                );
                Review {
                    lines: vec![line],
                    refused: false,
                }
            });
            if several {
                all.lines.push(format!("{}:", update.name));
            }
            all.lines.extend(review.lines);
            all.refused |= review.refused;
        }
        if let Some(rest) = updates.len().checked_sub(MAX_REVIEWED).filter(|it| *it > 0) {
            all.lines.push(format!("(and {rest} more branches)"));
        }
        all
    }
}

/// The branches that get new commits, the tracked one first.
fn reviewable<'a>(push: &Push, question: &'a Question) -> Vec<&'a Update> {
    let mut updates: Vec<_> = question
        .updates
        .iter()
        .filter(|update| rules::branch(&update.name).is_some() && !rules::is_none(&update.new))
        .collect();
    updates.sort_by_key(|update| rules::branch(&update.name) != Some(&*push.branch));
    updates
}

/// Passes lines on, without anything that a terminal would obey.
async fn tell(writing: &mut (impl AsyncWrite + Unpin), lines: Vec<String>) -> io::Result<()> {
    for line in lines {
        say(writing, Answer::Say(printable(&line))).await?;
    }
    Ok(())
}

async fn say(writing: &mut (impl AsyncWrite + Unpin), answer: Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    writing.write_all(&line).await
}
