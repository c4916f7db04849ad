//! A Git host of the tests' own: pull requests over a real bare repo, with what a host makes of them by itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use git2::{Oid, Signature};
use longshore_controller::forge::{
    CommitStatus, Forge, ForgeError, GitLogin, PullRequest, PullRequestState, PullRequestText,
};

use crate::repo::Repo;

/// A pull request, as its page shows it.
#[derive(Clone, Debug)]
pub struct Page {
    pub number: u64,
    pub head: String,
    pub title: String,
    pub body: String,
    pub state: PullRequestState,
    pub head_commit: Oid,
    pub labels: Vec<String>,
    pub reviewers: Vec<String>,
}

/// What is wrong with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It does not answer.
    Down,
    /// It wants no calls for a while.
    RateLimited(Duration),
    /// It opens a pull request, but its answer is lost.
    LosesCreated,
    /// It opens none.
    Refuses,
}

#[derive(Debug, Default)]
struct State {
    pages: Vec<Page>,
    trouble: Option<Trouble>,
    calls: BTreeMap<&'static str, usize>,
}

/// How a pull request is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    Commit,
    Squash,
    Rebase,
}

#[derive(Debug)]
pub struct Host {
    repo: Arc<Repo>,
    state: Mutex<State>,
}

const NAME: &str = "git.example/shops";

fn page_url(number: u64) -> String {
    format!("https://{NAME}/pulls/{number}")
}

impl Host {
    pub fn new(repo: Arc<Repo>) -> Self {
        Self {
            repo,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What the host notices by itself: pushes, merges by push, deleted branches.
    fn notice(&self, state: &mut State) {
        let repo = self.repo.open();
        let base = self.repo.tip("main").unwrap();
        for page in &mut state.pages {
            if page.state != PullRequestState::Open {
                continue;
            }
            match self.repo.tip(&page.head) {
                None => page.state = PullRequestState::Closed,
                Some(tip) => {
                    page.head_commit = tip;
                    let reference = format!("refs/pull/{}/head", page.number);
                    repo.reference(&reference, tip, true, "").unwrap();
                    if base == tip || repo.graph_descendant_of(base, tip).unwrap() {
                        page.state = PullRequestState::Merged;
                    }
                }
            }
        }
    }

    /// All pull requests, oldest first.
    pub fn pages(&self) -> Vec<Page> {
        let mut state = self.state();
        self.notice(&mut state);
        state.pages.clone()
    }

    pub fn page(&self, number: u64) -> Page {
        let page = self.pages().into_iter().find(|it| it.number == number);
        page.unwrap()
    }

    /// How often an operation was asked for.
    pub fn calls(&self, operation: &str) -> usize {
        self.state().calls.get(operation).copied().unwrap_or(0)
    }

    pub fn trouble(&self, trouble: Option<Trouble>) {
        self.state().trouble = trouble;
    }

    /// Presses the button.
    pub fn merge(&self, number: u64, how: Merge) {
        let page = self.page(number);
        let repo = self.repo.open();
        let base = repo.find_commit(self.repo.tip("main").unwrap()).unwrap();
        let head = repo.find_commit(page.head_commit).unwrap();
        let mut index = repo.merge_commits(&base, &head, None).unwrap();
        assert!(!index.has_conflicts(), "the button is gray");
        let tree = repo.find_tree(index.write_tree_to(&repo).unwrap()).unwrap();
        let who = Signature::now("A Person", "person@example.com").unwrap();
        let parents = match how {
            Merge::Commit => vec![&base, &head],
            // A rebase of one commit is what a squash is, with the commit's own message.
            Merge::Squash | Merge::Rebase => vec![&base],
        };
        let message = match how {
            Merge::Commit => "Merge pull request",
            Merge::Squash => &page.title,
            Merge::Rebase => head.message().unwrap(),
        };
        let merged = repo
            .commit(None, &who, &who, message, &tree, &parents)
            .unwrap();
        self.repo.point("main", merged);
        self.decide(number, PullRequestState::Merged);
    }

    pub fn close(&self, number: u64) {
        self.decide(number, PullRequestState::Closed);
    }

    pub fn reopen(&self, number: u64) {
        self.decide(number, PullRequestState::Open);
    }

    fn decide(&self, number: u64, decision: PullRequestState) {
        let mut state = self.state();
        self.notice(&mut state);
        let page = state.pages.iter_mut().find(|it| it.number == number);
        page.unwrap().state = decision;
    }

    /// Counts a call, and fails where there is trouble.
    fn call(&self, operation: &'static str) -> Result<MutexGuard<'_, State>, ForgeError> {
        let mut state = self.state();
        *state.calls.entry(operation).or_default() += 1;
        let forge = NAME.to_owned();
        match state.trouble {
            Some(Trouble::Down) => Err(ForgeError::Unavailable {
                forge,
                operation,
                source: "connection refused".into(),
            }),
            Some(Trouble::RateLimited(retry_after)) => {
                Err(ForgeError::RateLimited { forge, retry_after })
            }
            Some(Trouble::Refuses) if operation == "open a pull request" => {
                Err(ForgeError::Refused {
                    forge,
                    operation,
                    message: "pull requests are switched off".to_owned(),
                })
            }
            _ => {
                self.notice(&mut state);
                Ok(state)
            }
        }
    }
}

fn of(page: &Page) -> PullRequest {
    PullRequest {
        number: page.number,
        url: page_url(page.number),
        state: page.state,
        head_branch: page.head.clone(),
        head_commit: page.head_commit.to_string(),
        base_branch: "main".to_owned(),
        is_from_fork: false,
    }
}

fn find(state: &mut State, number: u64) -> Result<&mut Page, ForgeError> {
    let page = state.pages.iter_mut().find(|it| it.number == number);
    page.ok_or_else(|| ForgeError::NotFound {
        forge: NAME.to_owned(),
        operation: "find a pull request",
    })
}

#[async_trait]
impl Forge for Host {
    fn name(&self) -> &str {
        NAME
    }

    fn noun(&self) -> &'static str {
        "pull request"
    }

    fn head_ref(&self, number: u64) -> String {
        format!("refs/pull/{number}/head")
    }

    fn text_limit(&self) -> usize {
        65_536
    }

    async fn git_login(&self) -> Result<GitLogin, ForgeError> {
        Err(ForgeError::NotFound {
            forge: NAME.to_owned(),
            operation: "log in to a local path",
        })
    }

    async fn check(&self) -> Result<(), ForgeError> {
        Ok(())
    }

    async fn open_pull_requests(&self, base: &str) -> Result<Vec<PullRequest>, ForgeError> {
        assert_eq!(base, "main");
        let state = self.call("list pull requests")?;
        let open = state.pages.iter().map(of);
        Ok(open
            .filter(|it| it.state == PullRequestState::Open)
            .collect())
    }

    async fn pull_request(&self, number: u64) -> Result<PullRequest, ForgeError> {
        Ok(of(find(&mut *self.call("read a pull request")?, number)?))
    }

    async fn find_pull_request(
        &self,
        head: &str,
        base: &str,
    ) -> Result<Option<PullRequest>, ForgeError> {
        assert_eq!(base, "main");
        let state = self.call("find a pull request")?;
        let newest = state.pages.iter().rev().find(|page| page.head == head);
        Ok(newest.map(of))
    }

    async fn create_pull_request(
        &self,
        head: &str,
        base: &str,
        text: &PullRequestText,
    ) -> Result<PullRequest, ForgeError> {
        assert_eq!(base, "main");
        let mut state = self.call("open a pull request")?;
        let forge = NAME.to_owned();
        let is_open = |page: &&Page| page.head == head && page.state == PullRequestState::Open;
        if state.pages.iter().any(|page| is_open(&page)) {
            return Err(ForgeError::Exists {
                forge,
                message: "a pull request already exists".to_owned(),
            });
        }
        let Some(head_commit) = self.repo.tip(head) else {
            return Err(ForgeError::Refused {
                forge,
                operation: "open a pull request",
                message: "there is no such branch".to_owned(),
            });
        };
        let page = Page {
            number: state.pages.len() as u64 + 1,
            head: head.to_owned(),
            title: text.title.clone(),
            body: text.body.clone(),
            state: PullRequestState::Open,
            head_commit,
            labels: Vec::new(),
            reviewers: Vec::new(),
        };
        state.pages.push(page.clone());
        self.notice(&mut state);
        if state.trouble == Some(Trouble::LosesCreated) {
            return Err(ForgeError::Unavailable {
                forge,
                operation: "open a pull request",
                source: "the connection broke".into(),
            });
        }
        Ok(of(&page))
    }

    async fn edit_pull_request(
        &self,
        number: u64,
        text: &PullRequestText,
    ) -> Result<(), ForgeError> {
        let mut state = self.call("edit a pull request")?;
        let page = find(&mut state, number)?;
        page.title.clone_from(&text.title);
        page.body.clone_from(&text.body);
        Ok(())
    }

    async fn add_labels(&self, number: u64, labels: &[String]) -> Result<(), ForgeError> {
        let mut state = self.call("add labels")?;
        find(&mut state, number)?.labels.extend_from_slice(labels);
        Ok(())
    }

    async fn request_reviews(&self, number: u64, reviewers: &[String]) -> Result<(), ForgeError> {
        let mut state = self.call("ask for reviews")?;
        if reviewers.iter().any(|it| it == "nobody") {
            return Err(ForgeError::Refused {
                forge: NAME.to_owned(),
                operation: "ask for reviews",
                message: "`nobody` is not a collaborator".to_owned(),
            });
        }
        find(&mut state, number)?
            .reviewers
            .extend_from_slice(reviewers);
        Ok(())
    }

    async fn close_pull_request(&self, number: u64) -> Result<(), ForgeError> {
        let mut state = self.call("close a pull request")?;
        find(&mut state, number)?.state = PullRequestState::Closed;
        Ok(())
    }

    async fn put_comment(&self, _: u64, _: &str, _: &str) -> Result<(), ForgeError> {
        panic!("enrollments write no comments");
    }

    async fn set_status(&self, _: &str, _: &CommitStatus) -> Result<(), ForgeError> {
        panic!("enrollments set no statuses");
    }
}
