//! Gitea's REST API and webhooks, by <https://docs.gitea.com/api/>; Forgejo has the same.

mod shapes;

use http::{Method, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    call::{Answer, Call, Page},
    state::{
        Action, BOT, Event, NAME, OWNER, PullState, REPO, Refusal, State, Status, TEAM, USERS,
    },
};

type Answered = Result<Answer, Answer>;

pub(super) fn answer(state: &mut State, call: &Call) -> Answered {
    let path: Vec<_> = call.path.iter().map(String::as_str).collect();
    let repo = match path.as_slice() {
        ["repos", owner, name, rest @ ..] => {
            if (*owner, *name) != (OWNER, NAME) {
                return Err(not_found(state));
            }
            rest
        }
        ["user"] if call.method == Method::GET => {
            return Ok(Answer::ok(shapes::user(state, &call.login)));
        }
        ["version"] if call.method == Method::GET => {
            return Ok(Answer::ok(json!({"version": "1.25.1"})));
        }
        _ => return Err(unknown(call)),
    };
    match (&call.method, repo) {
        (&Method::GET, []) => Ok(Answer::ok(shapes::repo(state, OWNER, &call.login))),
        (&Method::GET, ["branches", branch @ ..]) => {
            let name = branch.join("/");
            let commit = state.branch(&name).ok_or_else(|| not_found(state))?;
            Ok(Answer::ok(shapes::branch(state, &name, commit)))
        }
        (&Method::GET, ["pulls"]) => list(state, call),
        (&Method::POST, ["pulls"]) => create(state, call),
        (&Method::GET, ["pulls", number]) => {
            let number = existing(state, number)?;
            Ok(Answer::ok(shapes::pull(state, number)))
        }
        (&Method::GET, ["pulls", base, head @ ..]) => {
            let head = head.join("/");
            let found = state.pulls.iter().rev().find(|pull| {
                pull.state == PullState::Open
                    && (&*pull.base_branch, &pull.head_branch) == (*base, &head)
            });
            let number = found.ok_or_else(|| not_found(state))?.number;
            Ok(Answer::ok(shapes::pull(state, number)))
        }
        (&Method::PATCH, ["pulls", number]) => {
            let number = existing(state, number)?;
            edit(state, call, number)
        }
        (&Method::POST, ["pulls", number, "requested_reviewers"]) => {
            let number = existing(state, number)?;
            request_reviews(state, call, number)
        }
        (&Method::GET, ["issues", number, "comments"]) => {
            let number = existing(state, number)?;
            let _query: CommentsQuery = call.query()?;
            let all = state.comments.iter().filter(|it| it.pull == number);
            // Gitea gives all of them at once.
            let all = all.map(|it| shapes::comment(state, it)).collect();
            Ok(Answer::ok(Value::Array(all)))
        }
        (&Method::POST, ["issues", number, "comments"]) => {
            let number = existing(state, number)?;
            let body = checked_comment(call)?;
            let comment = state.add_comment(number, &call.login, body);
            Ok(Answer::created(shapes::comment(state, &comment)))
        }
        (&Method::PATCH, ["issues", "comments", id]) => {
            let body = checked_comment(call)?;
            let id = id.parse().map_err(|_error| not_found(state))?;
            let comment = state.edit_comment(id, body);
            let comment = comment.ok_or_else(|| not_found(state))?;
            Ok(Answer::ok(shapes::comment(state, &comment)))
        }
        (&Method::POST, ["issues", number, "labels"]) => {
            let number = existing(state, number)?;
            add_labels(state, call, number)
        }
        (&Method::GET, ["labels"]) => {
            let all = state
                .labels
                .iter()
                .map(|it| shapes::label(state, it))
                .collect();
            Ok(call.page(&state.base_url, call.query()?, all))
        }
        (&Method::POST, ["labels"]) => create_label(state, call),
        (&Method::POST, ["statuses", commit]) => set_status(state, call, commit),
        (&Method::GET, ["statuses", commit] | ["commits", commit, "statuses"]) => {
            let query: StatusesQuery = call.query()?;
            let all = state
                .statuses
                .iter()
                .rev()
                .filter(|it| it.commit == *commit);
            let all = all.map(|it| shapes::status(state, it)).collect();
            let page = Page {
                page: query.page,
                limit: query.limit,
                per_page: None,
            };
            Ok(call.page(&state.base_url, page, all))
        }
        _ => Err(unknown(call)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    base_branch: Option<String>,
    state: Option<String>,
    sort: Option<String>,
    page: Option<usize>,
    limit: Option<usize>,
}

fn list(state: &State, call: &Call) -> Answered {
    let query: ListQuery = call.query()?;
    let wanted = query.state.as_deref().unwrap_or("open");
    one_of("state", wanted, &["open", "closed", "all"])?;
    let sort = query.sort.as_deref().unwrap_or("newest");
    let sorts = [
        "newest",
        "oldest",
        "recentupdate",
        "recentclose",
        "leastupdate",
        "mostcomment",
        "leastcomment",
        "priority",
    ];
    one_of("sort", sort, &sorts)?;
    let mut pulls: Vec<_> = state
        .pulls
        .iter()
        .filter(|pull| wanted == "all" || (wanted == "open") == (pull.state == PullState::Open))
        .filter(|pull| {
            query
                .base_branch
                .as_ref()
                .is_none_or(|it| *it == pull.base_branch)
        })
        .collect();
    if sort == "recentupdate" || sort == "leastupdate" {
        pulls.sort_by_key(|pull| pull.updated);
    }
    if sort != "oldest" && sort != "leastupdate" {
        pulls.reverse();
    }
    let all = pulls
        .iter()
        .map(|pull| shapes::pull(state, pull.number))
        .collect();
    let page = Page {
        page: query.page,
        limit: query.limit,
        per_page: None,
    };
    Ok(call.page(&state.base_url, page, all))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    title: String,
    head: String,
    base: String,
    #[serde(default)]
    body: String,
    labels: Option<Vec<u64>>,
    reviewers: Option<Vec<String>>,
    team_reviewers: Option<Vec<String>>,
}

fn create(state: &mut State, call: &Call) -> Answered {
    let wanted: Create = call.json()?;
    let title = checked_title(wanted.title)?;
    let (owner, head) = wanted.head.split_once(':').unwrap_or((OWNER, &wanted.head));
    let labels = labels_by_id(state, &wanted.labels.unwrap_or_default())?;
    let reviewers = wanted.reviewers.unwrap_or_default();
    let teams = wanted.team_reviewers.unwrap_or_default();
    check_reviewers(&reviewers, &teams, &call.login)?;
    let made = state.open_pull(&call.login, (owner, head), &wanted.base, title, wanted.body);
    let number = made.map_err(|refusal| match refusal {
        Refusal::NoHead | Refusal::NoBase => not_found(state),
        Refusal::NoCommits => unprocessable("there are no changes between the head and the base"),
        Refusal::Exists(number) => {
            let message = format!(
                "pull request already exists for these targets [id: {number}, issue_id: {number}, head_repo_id: 1, base_repo_id: 1, head_branch: {head}, base_branch: {}]",
                wanted.base
            );
            Answer::error(StatusCode::CONFLICT, &message)
        }
        Refusal::Git(message) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, &message),
    })?;
    if !labels.is_empty() {
        state.add_labels(number, &labels, &call.login);
    }
    if !reviewers.is_empty() || !teams.is_empty() {
        review(state, number, reviewers, teams, &call.login);
    }
    Ok(Answer::created(shapes::pull(state, number)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    title: Option<String>,
    body: Option<String>,
    state: Option<String>,
}

fn edit(state: &mut State, call: &Call, number: u64) -> Answered {
    let wanted: Edit = call.json()?;
    let title = wanted.title.map(checked_title).transpose()?;
    if title.is_some() || wanted.body.is_some() {
        state.change(number, Action::Edited, &call.login, |pull| {
            pull.title = title.unwrap_or_else(|| pull.title.clone());
            pull.body = wanted.body.unwrap_or_else(|| pull.body.clone());
        });
    }
    let now = state.pull(number).map(|pull| pull.state);
    match wanted.state.as_deref() {
        Some("closed") if now == Some(PullState::Open) => {
            state.close(number, &call.login);
        }
        Some("closed") if now == Some(PullState::Merged) => {
            let message = "cannot change state of this pull request, it was already merged";
            return Err(Answer::error(StatusCode::PRECONDITION_FAILED, message));
        }
        None | Some("closed") => {}
        Some("open") if now == Some(PullState::Open) => {}
        Some(other) => one_of("state", other, &["closed"])?,
    }
    Ok(Answer::created(shapes::pull(state, number)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reviewers {
    #[serde(default)]
    reviewers: Vec<String>,
    #[serde(default)]
    team_reviewers: Vec<String>,
}

fn request_reviews(state: &mut State, call: &Call, number: u64) -> Answered {
    let wanted: Reviewers = call.json()?;
    let author = state.pull(number).map(|pull| pull.author.clone());
    let author = author.unwrap_or_default();
    check_reviewers(&wanted.reviewers, &wanted.team_reviewers, &author)?;
    review(
        state,
        number,
        wanted.reviewers,
        wanted.team_reviewers,
        &call.login,
    );
    let pull = state.pull(number);
    let asked = pull.map(|pull| pull.reviewers.clone()).unwrap_or_default();
    let reviews = asked
        .iter()
        .map(|login| shapes::review(state, number, login));
    Ok(Answer::created(reviews.collect()))
}

fn check_reviewers(logins: &[String], teams: &[String], author: &str) -> Result<(), Answer> {
    for login in logins {
        match USERS.iter().find(|(name, _)| name == login) {
            None => {
                let message = format!("user does not exist [uid: 0, name: {login}]");
                return Err(Answer::error(StatusCode::NOT_FOUND, &message));
            }
            Some((_, false)) => return Err(unprocessable("Reviewer can't read")),
            Some(_) if login == author => {
                return Err(unprocessable("poster of pr can't be reviewer"));
            }
            Some(_) => {}
        }
    }
    if teams.iter().any(|team| team != TEAM) {
        let message = "team does not exist";
        return Err(Answer::error(StatusCode::NOT_FOUND, message));
    }
    Ok(())
}

fn review(state: &mut State, number: u64, logins: Vec<String>, teams: Vec<String>, by: &str) {
    state.change(number, Action::ReviewRequested, by, |pull| {
        pull.reviewers.extend(logins);
        pull.reviewers.sort();
        pull.reviewers.dedup();
        pull.teams.extend(teams);
        pull.teams.dedup();
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommentsQuery {
    #[serde(rename = "since")]
    _since: Option<String>,
    #[serde(rename = "before")]
    _before: Option<String>,
    // Not documented here, but sent by clients that page everything, and left out of account.
    #[serde(rename = "page")]
    _page: Option<usize>,
    #[serde(rename = "limit")]
    _limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    body: String,
}

fn checked_comment(call: &Call) -> Result<String, Answer> {
    let body = call.json::<Body>()?.body;
    if body.trim().is_empty() {
        return Err(mistaken("[Body]: Required"));
    }
    Ok(body)
}

/// Labels by id, or by name since Gitea 1.22.
#[derive(Deserialize)]
#[serde(untagged)]
enum LabelName {
    Id(u64),
    Name(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    labels: Vec<LabelName>,
}

/// Names that no label has are left out without a word.
fn add_labels(state: &mut State, call: &Call, number: u64) -> Answered {
    let wanted: Labels = call.json()?;
    let mut names = Vec::new();
    for label in wanted.labels {
        match label {
            LabelName::Id(id) => names.extend(labels_by_id(state, &[id])?),
            LabelName::Name(name) => {
                let known = state.labels.iter().any(|label| label.name == name);
                names.extend(known.then_some(name));
            }
        }
    }
    state.add_labels(number, &names, &call.login);
    let labels = shapes::labels_of(state, number);
    Ok(Answer::ok(Value::Array(labels)))
}

fn labels_by_id(state: &State, ids: &[u64]) -> Result<Vec<String>, Answer> {
    ids.iter()
        .map(|id| {
            let label = state.labels.iter().find(|label| label.id == *id);
            label
                .map(|label| label.name.clone())
                .ok_or_else(|| not_found(state))
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelBody {
    name: String,
    color: String,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "exclusive")]
    _exclusive: Option<bool>,
}

fn create_label(state: &mut State, call: &Call) -> Answered {
    let wanted: LabelBody = call.json()?;
    let digits = wanted.color.trim_start_matches('#');
    let is_color = digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_color || wanted.name.trim().is_empty() {
        return Err(mistaken("bad color code"));
    }
    // Gitea would make a second label of the same name.
    if state.labels.iter().any(|label| label.name == wanted.name) {
        return Err(mistaken("the repo has a label of this name already"));
    }
    let label = state.label(&wanted.name, &wanted.color);
    Ok(Answer::created(shapes::label(state, &label)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusesQuery {
    #[serde(rename = "sort")]
    _sort: Option<String>,
    #[serde(rename = "state")]
    _state: Option<String>,
    page: Option<usize>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusBody {
    state: String,
    #[serde(default)]
    context: String,
    #[serde(default)]
    description: String,
    target_url: Option<String>,
}

fn set_status(state: &mut State, call: &Call, commit: &str) -> Answered {
    let wanted: StatusBody = call.json()?;
    let allowed = ["pending", "success", "error", "failure", "warning"];
    one_of("state", &wanted.state, &allowed)?;
    if !state.repo.has_commit(commit) {
        return Err(Answer {
            complaint: Some(format!("no commit {commit}")),
            ..not_found(state)
        });
    }
    let status = Status {
        id: state.id(),
        commit: commit.to_owned(),
        state: wanted.state,
        context: wanted.context,
        description: wanted.description,
        url: wanted.target_url,
        created: Timestamp::now(),
    };
    let shape = shapes::status(state, &status);
    state.statuses.push(status);
    Ok(Answer::created(shape))
}

fn existing(state: &State, number: &str) -> Result<u64, Answer> {
    let pull = number.parse().ok().and_then(|number| state.pull(number));
    Ok(pull.ok_or_else(|| not_found(state))?.number)
}

fn checked_title(title: String) -> Result<String, Answer> {
    if title.trim().is_empty() || title.chars().count() > 255 {
        return Err(mistaken("title is empty or too long"));
    }
    Ok(title)
}

fn one_of(name: &str, value: &str, allowed: &[&str]) -> Result<(), Answer> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(mistaken(&format!(
        "{name} `{value}` is none of {allowed:?}"
    )))
}

fn unprocessable(message: &str) -> Answer {
    Answer::error(StatusCode::UNPROCESSABLE_ENTITY, message)
}

fn mistaken(message: &str) -> Answer {
    Answer::mistake(StatusCode::UNPROCESSABLE_ENTITY, message)
}

fn not_found(state: &State) -> Answer {
    let body = json!({
        "errors": null,
        "message": "The target couldn't be found.",
        "url": format!("{}/api/swagger", state.base_url),
    });
    Answer::with(StatusCode::NOT_FOUND, body)
}

fn unknown(call: &Call) -> Answer {
    let message = format!("there is no {} {}", call.method, call.path.join("/"));
    Answer::mistake(StatusCode::NOT_FOUND, &message)
}

/// What the webhook tells of an event, by <https://docs.gitea.com/usage/webhooks>. A branch that is gone is a
/// `delete`, not a `push`.
pub(super) fn payload(state: &State, event: &Event) -> (&'static str, Value) {
    let repository = shapes::repo(state, OWNER, BOT);
    match event {
        Event::Push {
            branch,
            after: None,
            by,
            ..
        } => {
            let payload = json!({
                "ref": branch,
                "ref_type": "branch",
                "pusher_type": "user",
                "repository": repository,
                "sender": shapes::user(state, by),
            });
            ("delete", payload)
        }
        Event::Push {
            branch,
            before,
            after,
            by,
        } => {
            let zeros = "0".repeat(40);
            let payload = json!({
                "ref": format!("refs/heads/{branch}"),
                "before": before.as_ref().unwrap_or(&zeros),
                "after": after,
                "compare_url": format!("{}/{REPO}/compare", state.base_url),
                "commits": [],
                "total_commits": 0,
                "head_commit": null,
                "repository": repository,
                "pusher": shapes::user(state, by),
                "sender": shapes::user(state, by),
            });
            ("push", payload)
        }
        Event::Pull { number, action, by } => {
            let word = match action {
                Action::Opened => "opened",
                Action::Edited => "edited",
                Action::Synchronized => "synchronized",
                Action::Labeled => "label_updated",
                Action::ReviewRequested => "review_requested",
                Action::Closed => "closed",
            };
            let payload = json!({
                "action": word,
                "number": number,
                "pull_request": shapes::pull(state, *number),
                "requested_reviewer": null,
                "repository": repository,
                "sender": shapes::user(state, by),
                "commit_id": "",
                "review": null,
            });
            ("pull_request", payload)
        }
    }
}
