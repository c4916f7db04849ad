//! A branch, previewed when somebody asks.

use std::sync::Arc;

use git2::{Oid, Reference};
use tokio::sync::{Mutex, watch};

use super::{Engine, PreviewError, Report};
use crate::source::{Observation, mirror::Mirror};

/// Previews branches of one fleet's repo.
#[derive(Clone, Debug)]
pub struct BranchPreviews {
    /// Previews.
    pub engine: Engine,
    /// Where the branches are fetched to.
    pub mirror: Mirror,
    /// What the source sees.
    pub observation: watch::Receiver<Observation>,
    /// One fetch at a time: whoever asks again and again waits for himself.
    pub fetching: Arc<Mutex<()>>,
}

impl BranchPreviews {
    /// What merging the branch, as the repo has it now, into the tracked one would do.
    ///
    /// # Errors
    /// Where the branch is not there, or it cannot be told; see [`PreviewError`].
    pub async fn branch(&self, branch: &str) -> Result<Report, PreviewError> {
        let remote = format!("refs/heads/{branch}");
        if !Reference::is_valid_name(&remote) {
            return Err(PreviewError::NoBranch(branch.to_owned()));
        }
        // The ref is needed no longer than until it is read: objects that were fetched stay.
        let turn = self.fetching.lock().await;
        let head = self
            .mirror
            .fetch_proposal("branch", &remote)
            .await
            .map_err(|error| {
                if error.is_missing_branch() {
                    PreviewError::NoBranch(branch.to_owned())
                } else {
                    error.into()
                }
            })?;
        drop(turn);
        self.engine
            .propose(&self.mirror, self.tracked(), head)
            .await
    }

    fn tracked(&self) -> Option<Oid> {
        let observation = self.observation.borrow();
        Some(observation.refs.as_ref()?.tracked.as_ref()?.id)
    }
}
