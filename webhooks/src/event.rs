//! What a webhook says, in words that all hosts share.

/// One delivery of a webhook, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The host's id of the delivery, for logs: printable ASCII, at most 100 characters. Empty where the host
    /// sent none. It stands outside of the signed body, so it is nothing to decide by.
    pub id: String,
    /// What happened.
    pub event: Event,
}

/// What happened on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A branch or a tag moved, came or went.
    Push(Push),
    /// The host tries whether anybody listens.
    Ping,
    /// Something else, by the host's name for it. To be answered with success, so that the host does not
    /// call the webhook broken.
    Ignored(String),
}

/// A branch or a tag that moved, came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// The repo by its full name, `owner/name`.
    pub repository: String,
    /// Every URL that the host names for the repo, to match a fleet's own against.
    pub clone_urls: Vec<String>,
    /// The full ref: `refs/heads/main`, `refs/tags/v1`.
    pub git_ref: String,
    /// The commit before, 40 or 64 hex digits; all zeros where the ref is new.
    pub before: String,
    /// The commit after, 40 or 64 hex digits; all zeros where the ref was deleted.
    pub after: String,
    /// Whether the ref was deleted.
    pub deleted: bool,
    /// Whether commits were taken away from the ref.
    pub forced: bool,
}

impl Push {
    /// The branch, where the ref is one: `main` of `refs/heads/main`.
    pub fn branch(&self) -> Option<&str> {
        self.git_ref.strip_prefix("refs/heads/")
    }
}
