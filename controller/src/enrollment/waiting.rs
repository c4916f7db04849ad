//! What a pending device waits for, in words: for its console, and as the condition `Proposed`.

use longshore_protocol::{Condition, api::Approval, condition};

use super::{branches::BranchError, pass::Pass};
use crate::{
    forge::PullRequestState,
    store::{
        StoreError,
        devices::{self, Device, Waiting},
    },
};

/// The condition's type: whether the device is where people can decide on it.
const PROPOSED: &str = "Proposed";
/// The longest text, in characters: hosts may be long-winded.
const MAX_TEXT: usize = 600;

/// What keeps a device from being where people can decide.
#[derive(Clone, Debug)]
pub(super) enum Obstacle {
    /// The branch of an earlier device of that name is still there.
    Earlier(String),
    /// Somebody else has the branch.
    Taken(String),
    /// Something that is no folder is where the device's folder would be.
    Blocked(String),
    /// The branch could not be made or pushed.
    Branch(String),
    /// The tracked branch could not be pushed to.
    Tracked(String),
    /// The forge does not open the pull request.
    Forge(String),
}

impl Obstacle {
    /// Whether it goes away by itself.
    pub(super) fn is_earlier(&self) -> bool {
        matches!(self, Self::Earlier(_))
    }

    /// A word for programs, and the same for people.
    fn words(&self, noun: &str) -> (&'static str, String) {
        match self {
            Self::Earlier(branch) => (
                "BranchTaken",
                format!("waits until the branch `{branch}` of an earlier device is deleted"),
            ),
            Self::Taken(branch) => (
                "BranchTaken",
                format!(
                    "the branch `{branch}` is somebody else's; delete it, or enroll under another name"
                ),
            ),
            Self::Blocked(path) => (
                "FolderTaken",
                format!(
                    "the tracked branch has `{path}`, which is no folder; delete it, or enroll under another name"
                ),
            ),
            Self::Branch(problem) => (
                "BranchRefused",
                format!(
                    "its enrollment branch cannot be pushed, which will be tried again: {problem}"
                ),
            ),
            Self::Tracked(problem) => (
                "TrackedBranchUnreachable",
                format!(
                    "the tracked branch cannot be pushed to, which will be tried again: {problem}"
                ),
            ),
            Self::Forge(problem) => (
                "ForgeRefused",
                format!("its {noun} cannot be opened, which will be tried again: {problem}"),
            ),
        }
    }
}

impl Pass<'_> {
    /// Writes down what each device waits for, where that is news.
    pub(super) async fn say_what_is_awaited(&mut self) -> Result<(), BranchError> {
        let mut news = Vec::new();
        let silent = |device: &&Device| {
            self.on_their_way.contains(&device.id) && !self.obstacles.contains_key(&device.id)
        };
        for device in self.pending.iter().filter(|device| !silent(device)) {
            let (condition, reason) = self.awaited(device);
            news.extend(Self::news(device, condition, reason));
        }
        for device in &self.unusable {
            let text = "the tracked branch has its key, but in a file that cannot be used; \
                        `longshore fleets show` says why";
            let condition = Condition::holds(PROPOSED, "Unusable", text, self.now);
            news.extend(Self::news(device, condition, text.to_owned()));
        }
        if news.is_empty() {
            return Ok(());
        }
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        devices::put_waiting(&mut db, &self.parts.fleet, &news).await?;
        db.commit().await.map_err(StoreError::from)?;
        self.parts.changes.tell();
        Ok(())
    }

    fn news(device: &Device, condition: Condition, reason: String) -> Option<Waiting> {
        let mut conditions = device.conditions.clone();
        condition::set(&mut conditions, condition);
        (conditions != device.conditions || reason != device.state_reason).then(|| Waiting {
            id: device.id.clone(),
            reason,
            conditions,
        })
    }

    /// What a device waits for: with everything that people should know, and in short.
    fn awaited(&self, device: &Device) -> (Condition, String) {
        let noun = self.noun();
        let fails = |(word, text): (&str, String)| {
            let text = cut(&text);
            (
                Condition::fails(PROPOSED, word, text.clone(), self.now),
                text,
            )
        };
        if let Some(obstacle) = self.obstacles.get(&device.id) {
            return fails(obstacle.words(noun));
        }
        let proposal = device
            .enrollment_branch
            .as_ref()
            .and_then(|branch| self.proposals.get(branch));
        let Some(proposal) = proposal else {
            let text = "waits to be committed to the tracked branch";
            return fails(("Waiting", text.to_owned()));
        };
        let branch = &proposal.branch;
        let request = self.requests.get(branch);
        let is_merged = request.is_some_and(|it| it.state == PullRequestState::Merged);
        let (word, short) = match &proposal.url {
            Some(url) if is_merged => (
                "Merged",
                format!("{noun} {url} is merged; waits for the tracked branch to show it"),
            ),
            Some(url) => (
                "PullRequest",
                format!("waits for {noun} {url} to be merged"),
            ),
            None => (
                "Branch",
                format!("waits for branch `{branch}` to be merged"),
            ),
        };
        let mut text = short.clone();
        let token = self.tokens.get(&device.token);
        if token.is_some_and(|token| token.approval == Approval::Automatic) {
            text.push_str("; the controller could not commit it to the tracked branch itself");
        }
        if proposal.edited
            && !is_merged
            && let Some(tip) = self.refs.enrollment.get(branch)
            && self.memory.conflicts.get(&(*tip, self.tracked)) == Some(&true)
        {
            text.push_str(
                "; people edited the branch, and it conflicts with the tracked branch: merge that into it with git",
            );
        }
        if let Some(warning) = &proposal.warning {
            text.push_str("; ");
            text.push_str(warning);
        }
        (
            Condition::holds(PROPOSED, word, cut(&text), self.now),
            cut(&short),
        )
    }
}

/// A text in one line, of bounded length: much of it is from hosts.
fn cut(text: &str) -> String {
    let clean = text.chars().filter(|char| !char.is_control());
    let mut clean: Vec<_> = clean.take(MAX_TEXT + 1).collect();
    if clean.len() > MAX_TEXT {
        clean.truncate(MAX_TEXT - 1);
        clean.push('…');
    }
    clean.into_iter().collect()
}
