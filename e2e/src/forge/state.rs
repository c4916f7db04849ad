//! What the forge knows, and what can be done to it: the same for all hosts.

use std::{collections::BTreeMap, mem};

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use super::{
    Host,
    fault::Fault,
    repo::{Bare, Branches},
};

/// The repo that the forge hosts.
pub const REPO: &str = "acme/kiosks";
/// Its owner.
pub const OWNER: &str = "acme";
/// Its name.
pub const NAME: &str = "kiosks";
/// The controller's own user.
pub const BOT: &str = "longshore-bot";
/// A person who may write to the repo.
pub const PERSON: &str = "olivia";
/// Another, who reviews.
pub const REVIEWER: &str = "noor";
/// A person who may only read, and has a fork.
pub const STRANGER: &str = "mallory";
/// The users, whose ids are their places counted from 1, and whether they may write to the repo.
pub const USERS: [(&str, bool); 5] = [
    (BOT, true),
    (PERSON, true),
    (REVIEWER, true),
    (STRANGER, false),
    ("longshore[bot]", true),
];
/// A team with access to the repo.
pub const TEAM: &str = "field-ops";

/// Everything.
#[derive(Debug)]
pub struct State {
    /// Whom it plays.
    pub host: Host,
    /// `https://host:port`.
    pub base_url: String,
    /// The repo.
    pub repo: Bare,
    /// Its forks, by owner.
    pub forks: BTreeMap<String, Bare>,
    /// Who may call, by token.
    pub tokens: BTreeMap<String, Token>,
    /// The pull requests, whose numbers are their places counted from 1.
    pub pulls: Vec<Pull>,
    /// The comments.
    pub comments: Vec<Comment>,
    /// The labels of the repo.
    pub labels: Vec<Label>,
    /// The commit statuses, oldest first.
    pub statuses: Vec<Status>,
    /// What the webhooks are to tell.
    pub outbox: Vec<Event>,
    /// What is to go wrong.
    pub faults: Vec<Fault>,
    /// The calls so far.
    pub calls: Vec<String>,
    /// Those that no careful client makes, and why.
    pub complaints: Vec<String>,
    /// How long new tokens of the app live, in seconds.
    pub app_token_life: i64,
    refs: Branches,
    last_id: u64,
}

/// A credential.
#[derive(Clone, Debug)]
pub struct Token {
    /// Whose.
    pub login: String,
    /// Until when.
    pub expires: Option<Timestamp>,
}

/// A pull request.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Its number.
    pub number: u64,
    /// Its title.
    pub title: String,
    /// Its text.
    pub body: String,
    /// Who opened it.
    pub author: String,
    /// How it stands.
    pub state: PullState,
    /// The owner of the repo that it comes from.
    pub head_owner: String,
    /// The branch there.
    pub head_branch: String,
    /// What it points to, or pointed to when it was decided.
    pub head_commit: String,
    /// Whether somebody who may only read pushed it to `refs/for/main`, as Gitea allows: it is from no branch then,
    /// and Gitea shows the repo itself as its origin.
    pub is_agit: bool,
    /// The branch that it is for.
    pub base_branch: String,
    /// The merge.
    pub merge_commit: Option<String>,
    /// Names of labels.
    pub labels: Vec<String>,
    /// Who is asked for a review.
    pub reviewers: Vec<String>,
    /// Which teams are.
    pub teams: Vec<String>,
    /// When it was opened.
    pub created: Timestamp,
    /// When it changed last.
    pub updated: Timestamp,
    /// When it was decided.
    pub closed: Option<Timestamp>,
}

/// How a pull request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullState {
    /// It waits.
    Open,
    /// It was closed without a merge.
    Closed,
    /// It was merged.
    Merged,
}

/// A comment on a pull request.
#[derive(Clone, Debug)]
pub struct Comment {
    /// Its id.
    pub id: u64,
    /// The pull request.
    pub pull: u64,
    /// Who wrote it.
    pub author: String,
    /// The text.
    pub body: String,
    /// When it was written.
    pub created: Timestamp,
    /// When it was changed last.
    pub updated: Timestamp,
}

/// A label.
#[derive(Clone, Debug)]
pub struct Label {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Six hex digits.
    pub color: String,
    /// What it is for.
    pub description: String,
}

/// A commit status.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its id.
    pub id: u64,
    /// The commit.
    pub commit: String,
    /// `pending`, `success`, … in the host's words.
    pub state: String,
    /// What it is about.
    pub context: String,
    /// One line.
    pub description: String,
    /// Where to read more.
    pub url: Option<String>,
    /// When it was set.
    pub created: Timestamp,
}

/// Something that a webhook tells.
#[derive(Clone, Debug)]
pub enum Event {
    /// A branch moved.
    Push {
        /// Its name.
        branch: String,
        /// From where; none where it is new.
        before: Option<String>,
        /// To where; none where it is gone.
        after: Option<String>,
        /// Who did.
        by: String,
    },
    /// A pull request changed.
    Pull {
        /// Its number.
        number: u64,
        /// How.
        action: Action,
        /// Who did.
        by: String,
    },
}

/// How a pull request changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Opened,
    /// Its text.
    Edited,
    /// Its commits.
    Synchronized,
    /// Its labels.
    Labeled,
    /// Its reviewers.
    ReviewRequested,
    /// It was closed or merged.
    Closed,
}

/// Why a deed cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such branch to merge from.
    NoHead,
    /// There is no such branch to merge into.
    NoBase,
    /// Both are the same.
    NoCommits,
    /// There is an open one from that branch into that branch.
    Exists(u64),
    /// Git fails.
    Git(String),
}

impl State {
    /// A forge with one repo and nothing on it.
    pub fn new(host: Host, base_url: String, repo: Bare) -> Result<Self> {
        let refs = repo.branches()?;
        Ok(Self {
            host,
            base_url,
            repo,
            forks: BTreeMap::new(),
            tokens: BTreeMap::new(),
            pulls: Vec::new(),
            comments: Vec::new(),
            labels: Vec::new(),
            statuses: Vec::new(),
            outbox: Vec::new(),
            faults: Vec::new(),
            calls: Vec::new(),
            complaints: Vec::new(),
            app_token_life: 3600,
            refs,
            last_id: 1000,
        })
    }

    /// An id that nothing has.
    pub fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Whose token this is, while it lives.
    pub fn login(&self, token: &str) -> Option<String> {
        let token = self.tokens.get(token)?;
        let lives = token.expires.is_none_or(|end| Timestamp::now() < end);
        lives.then(|| token.login.clone())
    }

    /// The pull request of this number.
    pub fn pull(&self, number: u64) -> Option<&Pull> {
        self.pulls.iter().find(|pull| pull.number == number)
    }

    /// What a branch points to.
    pub fn branch(&self, name: &str) -> Option<&String> {
        self.refs.get(name)
    }

    /// Opens a pull request from the branch `head` of `owner`'s repo.
    pub fn open_pull(
        &mut self,
        by: &str,
        (owner, head): (&str, &str),
        base: &str,
        title: String,
        body: String,
    ) -> Result<u64, Refusal> {
        let head_commit = self.head(owner, head).ok_or(Refusal::NoHead)?;
        let base_commit = self.branch(base).cloned().ok_or(Refusal::NoBase)?;
        let same = |pull: &&Pull| {
            pull.state == PullState::Open
                && (&*pull.head_owner, &*pull.head_branch, &*pull.base_branch)
                    == (owner, head, base)
        };
        if let Some(older) = self.pulls.iter().find(same) {
            return Err(Refusal::Exists(older.number));
        }
        let number = u64::try_from(self.pulls.len()).unwrap_or_default() + 1;
        self.keep_head(number, owner, &head_commit)
            .map_err(|error| Refusal::Git(format!("{error:#}")))?;
        if self.repo.is_ancestor(&head_commit, &base_commit) {
            return Err(Refusal::NoCommits);
        }
        let now = Timestamp::now();
        self.pulls.push(Pull {
            number,
            title,
            body,
            author: by.to_owned(),
            state: PullState::Open,
            head_owner: owner.to_owned(),
            head_branch: head.to_owned(),
            head_commit,
            is_agit: false,
            base_branch: base.to_owned(),
            merge_commit: None,
            labels: Vec::new(),
            reviewers: Vec::new(),
            teams: Vec::new(),
            created: now,
            updated: now,
            closed: None,
        });
        self.tell(number, Action::Opened, by);
        Ok(number)
    }

    /// Changes a pull request, and tells of it.
    pub fn change(
        &mut self,
        number: u64,
        action: Action,
        by: &str,
        change: impl FnOnce(&mut Pull),
    ) {
        if let Some(pull) = self.pulls.iter_mut().find(|pull| pull.number == number) {
            change(pull);
            pull.updated = Timestamp::now();
            if pull.state != PullState::Open && pull.closed.is_none() {
                pull.closed = Some(pull.updated);
            }
            self.tell(number, action, by);
        }
    }

    /// Closes a pull request without a merge.
    pub fn close(&mut self, number: u64, by: &str) {
        self.change(number, Action::Closed, by, |pull| {
            pull.state = PullState::Closed;
        });
    }

    /// Adds labels, which are made where there are none of these names.
    pub fn add_labels(&mut self, number: u64, names: &[String], by: &str) {
        for name in names {
            self.label(name, "ededed");
        }
        self.change(number, Action::Labeled, by, |pull| {
            for name in names {
                if !pull.labels.contains(name) {
                    pull.labels.push(name.clone());
                }
            }
        });
    }

    /// The label of this name, which is made where there is none.
    pub fn label(&mut self, name: &str, color: &str) -> Label {
        if let Some(label) = self.labels.iter().find(|label| label.name == name) {
            return label.clone();
        }
        let label = Label {
            id: self.id(),
            name: name.to_owned(),
            color: color.trim_start_matches('#').to_owned(),
            description: String::new(),
        };
        self.labels.push(label.clone());
        label
    }

    /// Writes a comment.
    pub fn add_comment(&mut self, pull: u64, author: &str, body: String) -> Comment {
        let now = Timestamp::now();
        let comment = Comment {
            id: self.id(),
            pull,
            author: author.to_owned(),
            body,
            created: now,
            updated: now,
        };
        self.comments.push(comment.clone());
        comment
    }

    /// Replaces the text of a comment.
    pub fn edit_comment(&mut self, id: u64, body: String) -> Option<Comment> {
        let comment = self.comments.iter_mut().find(|comment| comment.id == id)?;
        comment.body = body;
        comment.updated = Timestamp::now();
        Some(comment.clone())
    }

    /// Merges a pull request: one commit where `squash`, else a merge commit.
    pub fn merge(&mut self, number: u64, squash: bool, by: &str) -> Result<()> {
        let pull = self.pull(number).context("no such pull request")?.clone();
        anyhow::ensure!(pull.state == PullState::Open, "it is {:?}", pull.state);
        let base = self.branch(&pull.base_branch).context("no base")?.clone();
        let tree = self
            .repo
            .merged_tree(&base, &pull.head_commit)
            .context("it conflicts with its base")?;
        let (parents, message) = if squash {
            (vec![&*base], format!("{} (#{number})", pull.title))
        } else {
            let from = format!("{}/{}", pull.head_owner, pull.head_branch);
            let message = format!("Merge pull request #{number} from {from}\n\n{}", pull.title);
            (vec![&*base, &*pull.head_commit], message)
        };
        let commit = self.repo.commit(&tree, &parents, &message)?;
        let name = format!("refs/heads/{}", pull.base_branch);
        self.repo.set_ref(&name, &commit)?;
        self.change(number, Action::Closed, by, |pull| {
            pull.state = PullState::Merged;
            pull.merge_commit = Some(commit);
        });
        self.refresh(by)
    }

    /// Notices where branches moved since, and does what the host does then.
    pub fn refresh(&mut self, by: &str) -> Result<()> {
        let now = self.repo.branches()?;
        let before = mem::replace(&mut self.refs, now.clone());
        let names: std::collections::BTreeSet<_> = before.keys().chain(now.keys()).collect();
        for branch in names {
            let (from, to) = (before.get(branch), now.get(branch));
            if from != to {
                self.outbox.push(Event::Push {
                    branch: branch.clone(),
                    before: from.cloned(),
                    after: to.cloned(),
                    by: by.to_owned(),
                });
            }
        }
        let open: Vec<_> = self
            .pulls
            .iter()
            .filter(|pull| pull.state == PullState::Open)
            .cloned()
            .collect();
        for pull in open {
            self.refresh_pull(&pull, &before, by)?;
        }
        Ok(())
    }

    fn refresh_pull(&mut self, pull: &Pull, before: &Branches, by: &str) -> Result<()> {
        let number = pull.number;
        let base = self.refs.get(&pull.base_branch).cloned();
        let base_moved = before.get(&pull.base_branch) != base.as_ref();
        let merged = base_moved
            && self.host.notices_merges()
            && base.is_some_and(|base| self.repo.is_ancestor(&pull.head_commit, &base));
        if merged {
            let commit = self.refs.get(&pull.base_branch).cloned();
            self.change(number, Action::Closed, by, |pull| {
                pull.state = PullState::Merged;
                pull.merge_commit = commit;
            });
            return Ok(());
        }
        match self.head(&pull.head_owner, &pull.head_branch) {
            Some(head) if head == pull.head_commit => {}
            Some(head) => {
                self.keep_head(number, &pull.head_owner, &head)?;
                self.change(number, Action::Synchronized, by, |pull| {
                    pull.head_commit = head;
                });
            }
            None if self.host.closes_without_branch() => {
                self.close(number, by);
            }
            None => {}
        }
        Ok(())
    }

    /// What a branch of the repo, or of a fork, points to.
    fn head(&self, owner: &str, branch: &str) -> Option<String> {
        if owner == OWNER {
            return self.refs.get(branch).cloned();
        }
        let branches = self.forks.get(owner)?.branches().ok()?;
        branches.get(branch).cloned()
    }

    /// Keeps the head of a pull request in the repo, those of forks too.
    fn keep_head(&self, number: u64, owner: &str, commit: &str) -> Result<()> {
        let name = format!("{}/{number}/head", self.host.pulls_namespace());
        match self.forks.get(owner) {
            Some(fork) => self.repo.fetch(fork, commit, &name),
            None => self.repo.set_ref(&name, commit),
        }
    }

    fn tell(&mut self, number: u64, action: Action, by: &str) {
        self.outbox.push(Event::Pull {
            number,
            action,
            by: by.to_owned(),
        });
    }
}
