//! GitLab's REST API and webhooks, by <https://docs.gitlab.com/api/api_resources/>.

mod shapes;

use http::{Method, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    call::{Answer, Call, Page, put},
    state::{Action, Event, OWNER, Pull, PullState, REPO, Refusal, State, Status, USERS},
};

/// The longest text of a note, in characters.
const MAX_NOTE: usize = 1_000_000;
/// The longest text of a merge request, in characters.
const MAX_DESCRIPTION: usize = 1_048_576;
/// The longest title, name, description or URL of a status, in characters.
const MAX_LINE: usize = 255;

type Answered = Result<Answer, Answer>;

pub(super) fn answer(state: &mut State, call: &Call) -> Answered {
    let path: Vec<_> = call.path.iter().map(String::as_str).collect();
    let project = match path.as_slice() {
        ["projects", id, rest @ ..] => {
            if !["1", REPO].contains(id) {
                return Err(not_found("Project"));
            }
            rest
        }
        ["user"] if call.method == Method::GET => {
            return Ok(Answer::ok(shapes::user(state, &call.login)));
        }
        ["users"] if call.method == Method::GET => return users(state, call),
        ["version" | "metadata"] if call.method == Method::GET => {
            return Ok(Answer::ok(
                json!({"version": "18.5.0-ee", "revision": "4e963fe"}),
            ));
        }
        _ => return Err(unknown(call)),
    };
    match (&call.method, project) {
        (&Method::GET, []) => Ok(Answer::ok(shapes::project(state, &call.login))),
        (&Method::GET, ["merge_requests"]) => list(state, call),
        (&Method::POST, ["merge_requests"]) => create(state, call),
        (&Method::GET, ["merge_requests", iid]) => {
            let number = existing(state, iid)?;
            Ok(Answer::ok(shapes::merge_request(state, number)))
        }
        (&Method::PUT, ["merge_requests", iid]) => {
            let number = existing(state, iid)?;
            edit(state, call, number)
        }
        (&Method::GET, ["merge_requests", iid, "notes"]) => {
            let number = existing(state, iid)?;
            let query: ListQuery = call.query()?;
            let mut all: Vec<_> = state
                .comments
                .iter()
                .filter(|it| it.pull == number)
                .collect();
            if query.sort.as_deref() != Some("asc") {
                all.reverse();
            }
            let all = all.into_iter().map(|it| shapes::note(state, it)).collect();
            Ok(call.page(&state.base_url, query.page(), all))
        }
        (&Method::POST, ["merge_requests", iid, "notes"]) => {
            let number = existing(state, iid)?;
            let body = checked_note(call)?;
            let note = state.add_comment(number, &call.login, body);
            Ok(Answer::created(shapes::note(state, &note)))
        }
        (&Method::PUT, ["merge_requests", iid, "notes", id]) => {
            existing(state, iid)?;
            let body = checked_note(call)?;
            let id = id.parse().map_err(|_error| not_found("Note"))?;
            let note = state
                .edit_comment(id, body)
                .ok_or_else(|| not_found("Note"))?;
            Ok(Answer::ok(shapes::note(state, &note)))
        }
        (&Method::GET, ["labels"]) => {
            let query: ListQuery = call.query()?;
            let all = state.labels.iter().map(shapes::label).collect();
            Ok(call.page(&state.base_url, query.page(), all))
        }
        (&Method::POST, ["labels"]) => create_label(state, call),
        (&Method::GET, ["repository", "branches", branch]) => {
            let commit = state.branch(branch).ok_or_else(|| not_found("Branch"))?;
            Ok(Answer::ok(shapes::branch(state, branch, commit)))
        }
        (&Method::GET, ["repository", "commits", commit, "statuses"]) => {
            list_statuses(state, call, commit)
        }
        (&Method::POST, ["statuses", commit]) => set_status(state, call, commit),
        (&Method::GET, ["members", "all", id]) => member(state, id),
        _ => Err(unknown(call)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsersQuery {
    username: String,
}

fn users(state: &State, call: &Call) -> Answered {
    let query: UsersQuery = call.query()?;
    let found = USERS.iter().filter(|(login, _)| *login == query.username);
    let found = found.map(|(login, _)| shapes::user(state, login)).collect();
    Ok(call.page(&state.base_url, Page::default(), found))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<String>,
    source_branch: Option<String>,
    target_branch: Option<String>,
    #[serde(rename = "scope")]
    _scope: Option<String>,
    #[serde(rename = "view")]
    _view: Option<String>,
    #[serde(rename = "search")]
    _search: Option<String>,
    order_by: Option<String>,
    sort: Option<String>,
    page: Option<usize>,
    per_page: Option<usize>,
}

impl ListQuery {
    fn page(&self) -> Page {
        Page {
            page: self.page,
            per_page: self.per_page,
            limit: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusesQuery {
    name: Option<String>,
    #[serde(rename = "ref")]
    _ref: Option<String>,
    #[serde(rename = "all")]
    _all: Option<bool>,
    #[serde(rename = "order_by")]
    _order_by: Option<String>,
    #[serde(rename = "sort")]
    _sort: Option<String>,
    page: Option<usize>,
    per_page: Option<usize>,
}

fn list_statuses(state: &State, call: &Call, commit: &str) -> Answered {
    let query: StatusesQuery = call.query()?;
    let name = query.name.as_ref();
    let all = state
        .statuses
        .iter()
        .rev()
        .filter(|it| it.commit == commit && name.is_none_or(|name| *name == it.context))
        .map(|it| shapes::status(state, it))
        .collect();
    let page = Page {
        page: query.page,
        per_page: query.per_page,
        limit: None,
    };
    Ok(call.page(&state.base_url, page, all))
}

fn member(state: &State, id: &str) -> Answered {
    let place: usize = id.parse().map_err(|_error| not_found("Member"))?;
    let user = place.checked_sub(1).and_then(|place| USERS.get(place));
    let (login, writes) = user.ok_or_else(|| not_found("Member"))?;
    let mut user = shapes::user(state, login);
    let level = if *writes { 40 } else { 10 };
    put(&mut user, "access_level", json!(level));
    Ok(Answer::ok(user))
}

fn list(state: &State, call: &Call) -> Answered {
    let query: ListQuery = call.query()?;
    let wanted = query.state.as_deref().unwrap_or("all");
    one_of(
        "state",
        wanted,
        &["opened", "closed", "locked", "merged", "all"],
    )?;
    let sort = query.sort.as_deref().unwrap_or("desc");
    one_of("sort", sort, &["asc", "desc"])?;
    let order = query.order_by.as_deref().unwrap_or("created_at");
    let orders = [
        "created_at",
        "label_priority",
        "milestone_due",
        "popularity",
        "priority",
        "title",
        "updated_at",
        "merged_at",
    ];
    one_of("order_by", order, &orders)?;
    let mut found: Vec<&Pull> = state
        .pulls
        .iter()
        .filter(|pull| wanted == "all" || wanted == shapes::state_of(pull))
        .filter(|pull| {
            query
                .source_branch
                .as_ref()
                .is_none_or(|it| *it == pull.head_branch)
        })
        .filter(|pull| {
            query
                .target_branch
                .as_ref()
                .is_none_or(|it| *it == pull.base_branch)
        })
        .collect();
    if order == "updated_at" {
        found.sort_by_key(|pull| pull.updated);
    }
    if sort == "desc" {
        found.reverse();
    }
    let all = found
        .iter()
        .map(|pull| shapes::merge_request(state, pull.number))
        .collect();
    Ok(call.page(&state.base_url, query.page(), all))
}

/// Labels are a list, or one text with commas.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    Text(String),
    List(Vec<String>),
}

impl Names {
    fn list(self) -> Vec<String> {
        match self {
            Self::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
            Self::List(names) => names,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    source_branch: String,
    target_branch: String,
    title: String,
    description: Option<String>,
    labels: Option<Names>,
    reviewer_ids: Option<Vec<usize>>,
    #[serde(rename = "remove_source_branch")]
    _remove_source_branch: Option<bool>,
    #[serde(rename = "squash")]
    _squash: Option<bool>,
    #[serde(rename = "target_project_id")]
    _target_project_id: Option<u64>,
}

fn create(state: &mut State, call: &Call) -> Answered {
    let wanted: Create = call.json()?;
    let title = checked_title(wanted.title)?;
    let description = checked_description(wanted.description.unwrap_or_default())?;
    let (source, target) = (&*wanted.source_branch, &*wanted.target_branch);
    let made = state.open_pull(&call.login, (OWNER, source), target, title, description);
    let number = made.map_err(|refusal| match refusal {
        Refusal::NoHead => invalid("source_branch", "does not exist"),
        Refusal::NoBase => invalid("target_branch", "does not exist"),
        Refusal::NoCommits => invalid("base", "no commits between the branches"),
        Refusal::Exists(number) => Answer::with(
            StatusCode::CONFLICT,
            json!({"message": [format!(
                "Another open merge request already exists for this source branch: !{number}"
            )]}),
        ),
        Refusal::Git(message) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, &message),
    })?;
    let labels = wanted.labels.map(Names::list).unwrap_or_default();
    if !labels.is_empty() {
        state.add_labels(number, &labels, &call.login);
    }
    review(state, number, wanted.reviewer_ids, &call.login);
    Ok(Answer::created(shapes::merge_request(state, number)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    title: Option<String>,
    description: Option<String>,
    state_event: Option<String>,
    labels: Option<Names>,
    add_labels: Option<Names>,
    reviewer_ids: Option<Vec<usize>>,
}

fn edit(state: &mut State, call: &Call, number: u64) -> Answered {
    let wanted: Edit = call.json()?;
    let title = wanted.title.map(checked_title).transpose()?;
    let description = wanted.description.map(checked_description).transpose()?;
    if title.is_some() || description.is_some() {
        state.change(number, Action::Edited, &call.login, |pull| {
            pull.title = title.unwrap_or_else(|| pull.title.clone());
            pull.body = description.unwrap_or_else(|| pull.body.clone());
        });
    }
    if let Some(labels) = wanted.labels {
        state.change(number, Action::Labeled, &call.login, |pull| {
            pull.labels.clear();
        });
        state.add_labels(number, &labels.list(), &call.login);
    }
    if let Some(labels) = wanted.add_labels {
        state.add_labels(number, &labels.list(), &call.login);
    }
    review(state, number, wanted.reviewer_ids, &call.login);
    let now = state.pull(number).map(|pull| pull.state);
    match wanted.state_event.as_deref() {
        Some("close") if now == Some(PullState::Open) => {
            state.close(number, &call.login);
        }
        None | Some("close") => {}
        Some(other) => one_of("state_event", other, &["close"])?,
    }
    Ok(Answer::ok(shapes::merge_request(state, number)))
}

/// Sets the reviewers; those whom nobody knows are left out without a word.
fn review(state: &mut State, number: u64, ids: Option<Vec<usize>>, by: &str) {
    let Some(ids) = ids else { return };
    let known = ids
        .into_iter()
        .filter_map(|id| USERS.get(id.checked_sub(1)?));
    let reviewers: Vec<_> = known
        .filter(|(_, may_review)| *may_review)
        .map(|(login, _)| (*login).to_owned())
        .collect();
    state.change(number, Action::ReviewRequested, by, |pull| {
        pull.reviewers = reviewers;
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    body: String,
}

fn checked_note(call: &Call) -> Result<String, Answer> {
    let body = call.json::<Note>()?.body;
    if body.trim().is_empty() || body.chars().count() > MAX_NOTE {
        return Err(mistaken("note", "is blank or too long"));
    }
    Ok(body)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelBody {
    name: String,
    color: String,
    #[serde(rename = "description")]
    _description: Option<String>,
}

fn create_label(state: &mut State, call: &Call) -> Answered {
    let wanted: LabelBody = call.json()?;
    if !wanted.color.starts_with('#') || wanted.name.trim().is_empty() {
        return Err(mistaken("color", "must be a valid color code"));
    }
    if state.labels.iter().any(|label| label.name == wanted.name) {
        return Err(Answer::error(StatusCode::CONFLICT, "Label already exists"));
    }
    let label = state.label(&wanted.name, &wanted.color);
    Ok(Answer::created(shapes::label(&label)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusBody {
    state: String,
    name: Option<String>,
    context: Option<String>,
    description: Option<String>,
    target_url: Option<String>,
    #[serde(rename = "ref")]
    _ref: Option<String>,
    #[serde(rename = "coverage")]
    _coverage: Option<f64>,
    #[serde(rename = "pipeline_id")]
    _pipeline_id: Option<u64>,
}

/// One that waits or runs is moved on, and only to another state; one that ended is followed by a new one.
fn set_status(state: &mut State, call: &Call, commit: &str) -> Answered {
    let wanted: StatusBody = call.json()?;
    let allowed = [
        "pending", "running", "success", "failed", "canceled", "skipped",
    ];
    one_of("state", &wanted.state, &allowed)?;
    let is_long = |text: &Option<String>| {
        text.as_ref()
            .is_some_and(|text| text.chars().count() > MAX_LINE)
    };
    if is_long(&wanted.description) || is_long(&wanted.target_url) || is_long(&wanted.name) {
        return Err(mistaken(
            "description",
            "is too long (maximum is 255 characters)",
        ));
    }
    if !state.repo.has_commit(commit) {
        let missing = not_found("Commit");
        let complaint = Some(format!("no commit {commit}"));
        return Err(Answer {
            complaint,
            ..missing
        });
    }
    let name = wanted
        .name
        .or(wanted.context)
        .unwrap_or_else(|| "default".to_owned());
    let lives = |it: &&mut Status| {
        it.commit == commit && it.context == name && ["pending", "running"].contains(&&*it.state)
    };
    let now = Timestamp::now();
    let id = state.id();
    let status = if let Some(old) = state.statuses.iter_mut().rev().find(lives) {
        let event = match (&*wanted.state, &*old.state) {
            ("pending", _) => Some("enqueue"),
            ("running", "running") => Some("run"),
            _ => None,
        };
        if let Some(event) = event {
            let message = format!(
                "Cannot transition status via :{event} from :{} (Reason(s): Status cannot transition via \"{event}\")",
                old.state
            );
            return Err(Answer::error(StatusCode::BAD_REQUEST, &message));
        }
        old.state = wanted.state;
        old.description = wanted.description.unwrap_or_default();
        old.url = wanted.target_url;
        old.clone()
    } else {
        let status = Status {
            id,
            commit: commit.to_owned(),
            state: wanted.state,
            context: name,
            description: wanted.description.unwrap_or_default(),
            url: wanted.target_url,
            created: now,
        };
        state.statuses.push(status.clone());
        status
    };
    Ok(Answer::created(shapes::status(state, &status)))
}

fn existing(state: &State, iid: &str) -> Result<u64, Answer> {
    let pull = iid.parse().ok().and_then(|number| state.pull(number));
    Ok(pull.ok_or_else(|| not_found("Merge Request"))?.number)
}

fn checked_title(title: String) -> Result<String, Answer> {
    if title.trim().is_empty() || title.chars().count() > MAX_LINE {
        return Err(mistaken(
            "title",
            "is blank or too long (maximum is 255 characters)",
        ));
    }
    Ok(title)
}

fn checked_description(text: String) -> Result<String, Answer> {
    if text.chars().count() > MAX_DESCRIPTION {
        return Err(mistaken("description", "is too long"));
    }
    Ok(text)
}

fn one_of(name: &str, value: &str, allowed: &[&str]) -> Result<(), Answer> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let message = format!("{name} `{value}` does not have a valid value, one of {allowed:?}");
    Err(Answer::mistake(StatusCode::BAD_REQUEST, &message))
}

fn invalid(name: &str, message: &str) -> Answer {
    let body = json!({"message": {name: [message]}});
    Answer::with(StatusCode::BAD_REQUEST, body)
}

fn mistaken(name: &str, message: &str) -> Answer {
    Answer {
        complaint: Some(format!("{name} {message}")),
        ..invalid(name, message)
    }
}

fn not_found(what: &str) -> Answer {
    Answer::error(StatusCode::NOT_FOUND, &format!("404 {what} Not Found"))
}

fn unknown(call: &Call) -> Answer {
    let message = format!("there is no {} {}", call.method, call.path.join("/"));
    Answer::mistake(StatusCode::NOT_FOUND, &message)
}

/// What the webhook tells of an event, by
/// <https://docs.gitlab.com/user/project/integrations/webhook_events/>.
pub(super) fn payload(state: &State, event: &Event) -> (&'static str, Value) {
    match event {
        Event::Push {
            branch,
            before,
            after,
            by,
        } => {
            let zeros = "0".repeat(40);
            let payload = json!({
                "object_kind": "push",
                "event_name": "push",
                "before": before.as_ref().unwrap_or(&zeros),
                "after": after.as_ref().unwrap_or(&zeros),
                "ref": format!("refs/heads/{branch}"),
                "ref_protected": state.repo.is_protected(branch),
                "checkout_sha": after,
                "message": null,
                "user_id": 2,
                "user_name": by,
                "user_username": by,
                "user_email": null,
                "user_avatar": null,
                "project_id": 1,
                "project": shapes::hook_project(state, OWNER),
                "commits": [],
                "total_commits_count": 1,
                "push_options": {},
                "repository": shapes::hook_repository(state),
            });
            ("Push Hook", payload)
        }
        Event::Pull { number, action, by } => (
            "Merge Request Hook",
            shapes::hook_merge_request(state, *number, *action, by),
        ),
    }
}
