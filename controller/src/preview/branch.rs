//! A branch, previewed when somebody asks.

use git2::{Oid, Reference};
use tokio::sync::watch;

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
        // Two who ask at once do not take it from each other.
        let name = format!("branch/{:016x}", rand::random::<u64>());
        let head = self
            .mirror
            .fetch_proposal(&name, &remote)
            .await
            .map_err(|error| {
                if error.is_missing_branch() {
                    PreviewError::NoBranch(branch.to_owned())
                } else {
                    error.into()
                }
            })?;
        let report = self
            .engine
            .propose(&self.mirror, self.tracked(), head)
            .await;
        self.mirror.forget_proposal(&name).await?;
        report
    }

    fn tracked(&self) -> Option<Oid> {
        let observation = self.observation.borrow();
        Some(observation.refs.as_ref()?.tracked.as_ref()?.id)
    }
}
