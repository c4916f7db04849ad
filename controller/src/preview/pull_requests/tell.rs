//! Telling a host what was found of a pull request: each thing once, and again only where it says something new.

use git2::Oid;
use longshore_protocol::{Digest, api::preview::Preview};

use super::{Previews, UpdateError};
use crate::{
    clock,
    forge::{CommitStatus, PullRequest, StatusState},
    preview::markdown::{Frame, comment, marker},
    store::{
        StoreError,
        previews::{self, Reported, Told},
    },
};

/// What there is to tell.
#[derive(Debug)]
pub(super) enum Finding {
    /// It is being found out.
    Pending,
    /// It is from a fork, and the fleet does not allow that.
    Fork,
    /// It is more than is built for one preview.
    TooLarge(String),
    /// What it does.
    Preview(Box<Preview>),
}

impl Finding {
    fn status(&self) -> (StatusState, String) {
        match self {
            Self::Pending => (
                StatusState::Pending,
                "finding out what changes".to_owned(),
            ),
            Self::Fork => (
                StatusState::Failure,
                "not rendered: it is from a fork, and fleet.yaml does not say `previews: {forks: true}`"
                    .to_owned(),
            ),
            Self::TooLarge(why) => (StatusState::Failure, format!("not rendered: {why}")),
            Self::Preview(preview) => match preview.first_problem() {
                Some(problem) => (StatusState::Failure, problem),
                None => (StatusState::Success, preview.headline()),
            },
        }
    }
}

impl Reported {
    /// What is to be found out of a pull request, with what was told of it so far.
    pub(super) fn carried_on(known: Option<Self>, pull: &PullRequest, base: Oid) -> Self {
        let (head, base) = (pull.head_commit.clone(), base.to_string());
        let told = known.map_or_else(Told::default, |known| Told {
            // A status belongs to its commit, the comment to the pull request.
            status: known.told.status.filter(|_| known.head == head),
            comment: known.told.comment,
            ..Told::default()
        });
        Self {
            number: pull.number,
            base,
            head,
            told,
            at: clock::now_ms(),
        }
    }

    /// Whether everything about this head was told, and will not turn out otherwise by itself.
    pub(super) fn is_final_of(&self, head: &str) -> bool {
        self.head == head && self.told.done && !self.told.may_pass
    }
}

impl Previews {
    /// Tells what was found, as far as the host does not know it, and remembers it.
    ///
    /// # Errors
    /// Where the host, or the store, fails. What it was told until then is remembered.
    pub(super) async fn tell(
        &self,
        pull: &PullRequest,
        reported: &mut Reported,
        finding: Finding,
    ) -> Result<(), UpdateError> {
        let report = match &finding {
            Finding::Preview(preview) => Some(&**preview),
            Finding::Pending | Finding::Fork | Finding::TooLarge(_) => None,
        };
        // The whole report is there before anything leads to it.
        let mut db = self.lease.write(&self.store).await?;
        previews::put(&mut db, &self.fleet, reported, report).await?;
        db.commit().await.map_err(StoreError::from)?;
        let told = &mut reported.told;
        let status = self.status(pull, told, &finding).await;
        self.remember(pull, told).await?;
        // A host that takes no status may well take a comment.
        let comment = self.comment(pull, told, &finding).await;
        if status.is_ok() && comment.is_ok() {
            told.done = !matches!(finding, Finding::Pending);
        }
        self.remember(pull, told).await?;
        status.and(comment)
    }

    async fn status(
        &self,
        pull: &PullRequest,
        told: &mut Told,
        finding: &Finding,
    ) -> Result<(), UpdateError> {
        let (state, description) = finding.status();
        let status = CommitStatus {
            context: self.context.clone(),
            state,
            description,
            url: matches!(finding, Finding::Preview(_)).then(|| self.link_to(pull)),
        };
        let digest = digest(&[&format!("{state:?}"), &status.description]);
        if told.status.as_ref() != Some(&digest) {
            self.forge.set_status(&pull.head_commit, &status).await?;
            told.status = Some(digest);
        }
        Ok(())
    }

    async fn comment(
        &self,
        pull: &PullRequest,
        told: &mut Told,
        finding: &Finding,
    ) -> Result<(), UpdateError> {
        let was_written = told.comment.is_some();
        let link = self.link_to(pull);
        let text = match finding {
            Finding::Preview(preview) if was_written || !preview.is_nothing() => {
                let frame = Frame {
                    fleet: &self.fleet,
                    limit: self.forge.text_limit(),
                    link: Some(&link),
                };
                comment(preview, frame)
            }
            // What it said before is not true any more.
            Finding::TooLarge(why) if was_written => {
                format!("{}\nNot rendered: {why}\n", marker(&self.fleet))
            }
            _ => return Ok(()),
        };
        let digest = digest(&[&text]);
        if told.comment.as_ref() != Some(&digest) {
            let marker = marker(&self.fleet);
            self.forge.put_comment(pull.number, &marker, &text).await?;
            told.comment = Some(digest);
        }
        Ok(())
    }

    fn link_to(&self, pull: &PullRequest) -> String {
        self.link.to(&self.fleet, pull.number, &pull.head_commit)
    }

    async fn remember(&self, pull: &PullRequest, told: &Told) -> Result<(), UpdateError> {
        let mut db = self.lease.write(&self.store).await?;
        previews::set_told(&mut db, &self.fleet, pull.number, told).await?;
        db.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}

fn digest(parts: &[&str]) -> String {
    Digest::of_parts(parts.iter().map(|part| part.as_bytes())).to_string()
}
