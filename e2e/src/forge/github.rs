//! GitHub's REST API and webhooks, by <https://docs.github.com/en/enterprise-server/rest>.

mod shapes;

use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    App,
    call::{Answer, Call, Page, put},
    state::{
        Action, Event, NAME, OWNER, PullState, REPO, Refusal, State, Status, TEAM, Token, USERS,
    },
};

/// The longest text of a pull request or a comment, in characters.
const MAX_TEXT: usize = 65_536;
/// The longest description of a status, in characters.
const MAX_DESCRIPTION: usize = 140;
/// The longest life of an app's JWT, in seconds.
const MAX_JWT_LIFE: i64 = 600;

type Answered = Result<Answer, Answer>;

/// Whether a path wants a JWT of the app in place of a token.
pub(super) fn is_for_apps(path: &[String]) -> bool {
    let path: Vec<_> = path.iter().map(String::as_str).collect();
    matches!(
        path.as_slice(),
        ["app", ..] | ["repos", _, _, "installation"]
    )
}

#[derive(Deserialize)]
struct Claims {
    iat: i64,
    exp: i64,
    iss: Value,
}

/// Checks an app's JWT by
/// <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app>.
pub(super) fn verify_app(app: &App, jwt: &str) -> Option<String> {
    let key = DecodingKey::from_rsa_pem(app.public_key.as_bytes()).ok()?;
    let claims = decode::<Claims>(jwt, &key, &Validation::new(Algorithm::RS256))
        .ok()?
        .claims;
    let issuer = claims.iss.as_str().map(str::to_owned);
    let issuer = issuer.unwrap_or_else(|| claims.iss.to_string());
    let now = Timestamp::now().as_second();
    let is_right =
        issuer == app.id.to_string() && claims.iat <= now && claims.exp - now <= MAX_JWT_LIFE;
    is_right.then(|| "app".to_owned())
}

pub(super) fn answer(state: &mut State, call: &Call) -> Answered {
    let path: Vec<_> = call.path.iter().map(String::as_str).collect();
    let repo = match path.as_slice() {
        ["repos", owner, name, rest @ ..] => {
            if (*owner, *name) != (OWNER, NAME) {
                return Err(not_found());
            }
            rest
        }
        _ => return beside_repo(state, call, &path),
    };
    match (&call.method, repo) {
        (&Method::GET, []) => Ok(Answer::ok(shapes::repo(state, OWNER, Some(&call.login)))),
        (&Method::GET, ["installation"]) => Ok(Answer::ok(shapes::installation(state))),
        (&Method::GET, ["branches", branch @ ..]) => branch_of(state, &branch.join("/")),
        (&Method::GET, ["pulls"]) => list_pulls(state, call),
        (&Method::POST, ["pulls"]) => create_pull(state, call),
        (&Method::GET, ["pulls", number]) => {
            let number = existing(state, number)?;
            Ok(Answer::ok(shapes::pull(state, number, true)))
        }
        (&Method::PATCH, ["pulls", number]) => {
            let number = existing(state, number)?;
            edit_pull(state, call, number)
        }
        (&Method::POST, ["pulls", number, "requested_reviewers"]) => {
            let number = existing(state, number)?;
            request_reviews(state, call, number)
        }
        (&Method::GET, ["issues", number, "comments"]) => {
            let number = existing(state, number)?;
            let page: CommentsQuery = call.query()?;
            let all = state.comments.iter().filter(|it| it.pull == number);
            let all = all.map(|it| shapes::comment(state, it)).collect();
            Ok(call.page(&state.base_url, page.into(), all))
        }
        (&Method::POST, ["issues", number, "comments"]) => {
            let number = existing(state, number)?;
            let body = checked_text(call.json::<CommentBody>()?.body, "IssueComment")?;
            let comment = state.add_comment(number, &call.login, body);
            Ok(Answer::created(shapes::comment(state, &comment)))
        }
        (&Method::PATCH, ["issues", "comments", id]) => {
            let body = checked_text(call.json::<CommentBody>()?.body, "IssueComment")?;
            let id = id.parse().map_err(|_error| not_found())?;
            let comment = state.edit_comment(id, body).ok_or_else(not_found)?;
            Ok(Answer::ok(shapes::comment(state, &comment)))
        }
        (&Method::POST, ["issues", number, "labels"]) => {
            let number = existing(state, number)?;
            let names = match call.json::<LabelsBody>()? {
                LabelsBody::Named { labels } | LabelsBody::Plain(labels) => labels,
            };
            check_labels(&names)?;
            state.add_labels(number, &names, &call.login);
            let labels = shapes::labels_of(state, number);
            Ok(Answer::ok(Value::Array(labels)))
        }
        (&Method::GET, ["labels"]) => {
            let all = state
                .labels
                .iter()
                .map(|it| shapes::label(state, it))
                .collect();
            Ok(call.page(&state.base_url, call.query()?, all))
        }
        (&Method::GET, ["labels", name]) => {
            let label = state.labels.iter().find(|label| label.name == *name);
            let label = label.ok_or_else(not_found)?;
            Ok(Answer::ok(shapes::label(state, label)))
        }
        (&Method::POST, ["labels"]) => create_label(state, call),
        (&Method::POST, ["statuses", commit]) => set_status(state, call, commit),
        (&Method::GET, ["commits", commit, "statuses"]) => {
            let page = call.query()?;
            let all = state
                .statuses
                .iter()
                .rev()
                .filter(|it| it.commit == *commit);
            let all = all.map(|it| shapes::status(state, it)).collect();
            Ok(call.page(&state.base_url, page, all))
        }
        _ => Err(unknown(call)),
    }
}

/// What is asked of the host itself.
fn beside_repo(state: &mut State, call: &Call, path: &[&str]) -> Answered {
    match (&call.method, path) {
        (&Method::GET, ["user"]) => Ok(Answer::ok(shapes::user(state, &call.login))),
        (&Method::GET, ["app"]) => Ok(Answer::ok(shapes::app(state))),
        (&Method::GET, ["app", "installations", "7"]) => {
            Ok(Answer::ok(shapes::installation(state)))
        }
        (&Method::POST, ["app", "installations", "7", "access_tokens"]) => app_token(state, call),
        (&Method::GET, ["installation", "repositories"]) => {
            let _page: Page = call.query()?;
            let repo = shapes::repo(state, OWNER, Some(&call.login));
            Ok(Answer::ok(
                json!({"total_count": 1, "repositories": [repo]}),
            ))
        }
        (&Method::POST, ["app", "installations", _, "access_tokens"]) => Err(not_found()),
        _ => Err(unknown(call)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppTokenBody {
    repositories: Option<Vec<String>>,
    #[serde(rename = "repository_ids")]
    _repository_ids: Option<Vec<u64>>,
    permissions: Option<Value>,
}

/// A token of the installation, good for an hour unless the test says otherwise.
fn app_token(state: &mut State, call: &Call) -> Answered {
    if !call.body.is_empty() {
        let body: AppTokenBody = call.json()?;
        let others = body.repositories.unwrap_or_default();
        if others.iter().any(|name| name != NAME) {
            let message = "There is at least one repository that does not exist or is not accessible to the parent installation.";
            return Err(Answer::mistake(StatusCode::UNPROCESSABLE_ENTITY, message));
        }
        let granted = shapes::permissions();
        let asked = body.permissions.unwrap_or(json!({}));
        for (name, level) in asked.as_object().into_iter().flatten() {
            let has = granted.get(name);
            if has != Some(level) && has != Some(&json!("write")) {
                let message = "The permissions requested are not granted to this installation.";
                return Err(Answer::mistake(StatusCode::UNPROCESSABLE_ENTITY, message));
            }
        }
    }
    let token = format!("ghs_{:036}", state.id());
    let expires = Timestamp::now() + SignedDuration::from_secs(state.app_token_life);
    let login = "longshore[bot]".to_owned();
    let expires_at = shapes::time(expires);
    let expires = Some(expires);
    state.tokens.insert(token.clone(), Token { login, expires });
    Ok(Answer::created(json!({
        "token": token,
        "expires_at": expires_at,
        "permissions": shapes::permissions(),
        "repository_selection": "selected",
    })))
}

fn branch_of(state: &State, name: &str) -> Answered {
    let commit = state
        .branch(name)
        .ok_or_else(|| Answer::error(StatusCode::NOT_FOUND, "Branch not found"))?;
    Ok(Answer::ok(shapes::branch(state, name, commit)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PullsQuery {
    state: Option<String>,
    head: Option<String>,
    base: Option<String>,
    sort: Option<String>,
    direction: Option<String>,
    page: Option<usize>,
    per_page: Option<usize>,
}

fn list_pulls(state: &State, call: &Call) -> Answered {
    let query: PullsQuery = call.query()?;
    let wanted = query.state.as_deref().unwrap_or("open");
    one_of("state", wanted, &["open", "closed", "all"])?;
    let sort = query.sort.as_deref().unwrap_or("created");
    one_of(
        "sort",
        sort,
        &["created", "updated", "popularity", "long-running"],
    )?;
    let usual = if sort == "created" { "desc" } else { "asc" };
    let direction = query.direction.as_deref().unwrap_or(usual);
    one_of("direction", direction, &["asc", "desc"])?;
    if query.head.as_ref().is_some_and(|head| !head.contains(':')) {
        let message = "`head` is not in the format user:ref-name, and so would filter nothing";
        return Err(Answer::mistake(StatusCode::UNPROCESSABLE_ENTITY, message));
    }
    let mut pulls: Vec<_> = state
        .pulls
        .iter()
        .filter(|pull| wanted == "all" || (wanted == "open") == (pull.state == PullState::Open))
        .filter(|pull| {
            query
                .base
                .as_ref()
                .is_none_or(|base| *base == pull.base_branch)
        })
        .filter(|pull| {
            let label = format!("{}:{}", pull.head_owner, pull.head_branch);
            query.head.as_ref().is_none_or(|head| *head == label)
        })
        .collect();
    if sort == "updated" {
        pulls.sort_by_key(|pull| pull.updated);
    }
    if direction == "desc" {
        pulls.reverse();
    }
    let all = pulls
        .iter()
        .map(|pull| shapes::pull(state, pull.number, false))
        .collect();
    let page = Page {
        page: query.page,
        per_page: query.per_page,
        limit: None,
    };
    Ok(call.page(&state.base_url, page, all))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreatePull {
    title: String,
    head: String,
    base: String,
    #[serde(default)]
    body: String,
    #[serde(rename = "head_repo")]
    _head_repo: Option<String>,
    #[serde(rename = "maintainer_can_modify")]
    _maintainer_can_modify: Option<bool>,
    #[serde(rename = "draft")]
    _draft: Option<bool>,
}

fn create_pull(state: &mut State, call: &Call) -> Answered {
    let wanted: CreatePull = call.json()?;
    let title = checked_title(wanted.title)?;
    let body = checked_body(wanted.body)?;
    let (owner, head) = wanted.head.split_once(':').unwrap_or((OWNER, &wanted.head));
    let made = state.open_pull(&call.login, (owner, head), &wanted.base, title, body);
    let number = made.map_err(|refusal| match refusal {
        Refusal::NoHead => invalid("PullRequest", json!({"field": "head", "code": "invalid"})),
        Refusal::NoBase => invalid("PullRequest", json!({"field": "base", "code": "invalid"})),
        Refusal::NoCommits => {
            let message = format!("No commits between {} and {head}", wanted.base);
            invalid("PullRequest", json!({"code": "custom", "message": message}))
        }
        Refusal::Exists(_) => {
            let message = format!("A pull request already exists for {owner}:{head}.");
            invalid("PullRequest", json!({"code": "custom", "message": message}))
        }
        Refusal::Git(message) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, &message),
    })?;
    Ok(Answer::created(shapes::pull(state, number, true)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EditPull {
    title: Option<String>,
    body: Option<String>,
    state: Option<String>,
    #[serde(rename = "maintainer_can_modify")]
    _maintainer_can_modify: Option<bool>,
}

fn edit_pull(state: &mut State, call: &Call, number: u64) -> Answered {
    let wanted: EditPull = call.json()?;
    let title = wanted.title.map(checked_title).transpose()?;
    let body = wanted.body.map(checked_body).transpose()?;
    if title.is_some() || body.is_some() {
        state.change(number, Action::Edited, &call.login, |pull| {
            pull.title = title.unwrap_or_else(|| pull.title.clone());
            pull.body = body.unwrap_or_else(|| pull.body.clone());
        });
    }
    let now = state.pull(number).map(|pull| pull.state);
    match wanted.state.as_deref() {
        Some("closed") if now == Some(PullState::Open) => {
            state.close(number, &call.login);
        }
        None | Some("closed") => {}
        Some("open") if now == Some(PullState::Open) => {}
        Some(other) => {
            let message = format!("this forge does not set a pull request's state to {other}");
            return Err(Answer::mistake(StatusCode::UNPROCESSABLE_ENTITY, &message));
        }
    }
    Ok(Answer::ok(shapes::pull(state, number, true)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReviewersBody {
    #[serde(default)]
    reviewers: Vec<String>,
    #[serde(default)]
    team_reviewers: Vec<String>,
}

fn request_reviews(state: &mut State, call: &Call, number: u64) -> Answered {
    let wanted: ReviewersBody = call.json()?;
    let knows = |login: &String| USERS.contains(&(&**login, true));
    if !wanted.reviewers.iter().all(knows) || wanted.team_reviewers.iter().any(|it| it != TEAM) {
        let message = format!(
            "Reviews may only be requested from collaborators. One or more of the users or teams you specified is not a collaborator of the {REPO} repository."
        );
        return Err(Answer::error(StatusCode::UNPROCESSABLE_ENTITY, &message));
    }
    let author = state.pull(number).map(|pull| pull.author.clone());
    if wanted
        .reviewers
        .iter()
        .any(|login| Some(login) == author.as_ref())
    {
        let message = "Review cannot be requested from pull request author.";
        return Err(Answer::error(StatusCode::UNPROCESSABLE_ENTITY, message));
    }
    state.change(number, Action::ReviewRequested, &call.login, |pull| {
        pull.reviewers.extend(wanted.reviewers);
        pull.reviewers.sort();
        pull.reviewers.dedup();
        pull.teams.extend(wanted.team_reviewers);
        pull.teams.dedup();
    });
    Ok(Answer::created(shapes::pull(state, number, false)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommentsQuery {
    page: Option<usize>,
    per_page: Option<usize>,
    #[serde(rename = "since")]
    _since: Option<String>,
}

impl From<CommentsQuery> for Page {
    fn from(query: CommentsQuery) -> Self {
        Self {
            page: query.page,
            per_page: query.per_page,
            limit: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommentBody {
    body: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum LabelsBody {
    Named { labels: Vec<String> },
    Plain(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelBody {
    name: String,
    color: Option<String>,
    description: Option<String>,
}

fn create_label(state: &mut State, call: &Call) -> Answered {
    let wanted: LabelBody = call.json()?;
    check_labels(std::slice::from_ref(&wanted.name))?;
    let color = wanted.color.unwrap_or_else(|| "ededed".to_owned());
    let is_color = color.len() == 6 && color.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_color
        || wanted
            .description
            .is_some_and(|text| text.chars().count() > 100)
    {
        return Err(mistaken(
            "Label",
            json!({"field": "color", "code": "invalid"}),
        ));
    }
    if state.labels.iter().any(|label| label.name == wanted.name) {
        let error = json!({"field": "name", "code": "already_exists"});
        return Err(invalid("Label", error));
    }
    let label = state.label(&wanted.name, &color);
    Ok(Answer::created(shapes::label(state, &label)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusBody {
    state: String,
    target_url: Option<String>,
    #[serde(default)]
    description: String,
    context: Option<String>,
}

fn set_status(state: &mut State, call: &Call, commit: &str) -> Answered {
    let wanted: StatusBody = call.json()?;
    one_of(
        "state",
        &wanted.state,
        &["error", "failure", "pending", "success"],
    )?;
    if wanted.description.chars().count() > MAX_DESCRIPTION {
        let message = "description is too long (maximum is 140 characters)";
        return Err(mistaken(
            "Status",
            json!({"code": "custom", "message": message}),
        ));
    }
    let is_url = |url: &String| url.starts_with("https://") || url.starts_with("http://");
    if wanted.target_url.as_ref().is_some_and(|url| !is_url(url)) {
        let message = "target_url must use http(s) scheme";
        return Err(mistaken(
            "Status",
            json!({"code": "custom", "message": message}),
        ));
    }
    if !state.repo.has_commit(commit) {
        let message = format!("No commit found for SHA: {commit}");
        return Err(Answer::mistake(StatusCode::UNPROCESSABLE_ENTITY, &message));
    }
    let status = Status {
        id: state.id(),
        commit: commit.to_owned(),
        state: wanted.state,
        context: wanted.context.unwrap_or_else(|| "default".to_owned()),
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
    Ok(pull.ok_or_else(not_found)?.number)
}

fn checked_title(title: String) -> Result<String, Answer> {
    if title.trim().is_empty() || title.chars().count() > 256 {
        let error = json!({"field": "title", "code": "missing_field"});
        return Err(mistaken("PullRequest", error));
    }
    Ok(title)
}

fn checked_body(body: String) -> Result<String, Answer> {
    if body.chars().count() > MAX_TEXT {
        let message = "body is too long (maximum is 65536 characters)";
        return Err(mistaken(
            "PullRequest",
            json!({"code": "custom", "message": message}),
        ));
    }
    Ok(body)
}

fn checked_text(body: String, resource: &str) -> Result<String, Answer> {
    if body.trim().is_empty() || body.chars().count() > MAX_TEXT {
        let message = "Body is blank or too long (maximum is 65536 characters)";
        let error = json!({"code": "unprocessable", "field": "data", "message": message});
        return Err(mistaken(resource, error));
    }
    Ok(body)
}

fn check_labels(names: &[String]) -> Result<(), Answer> {
    let is_good = |name: &String| !name.trim().is_empty() && name.chars().count() <= 50;
    if names.is_empty() || !names.iter().all(is_good) {
        return Err(mistaken(
            "Label",
            json!({"field": "name", "code": "invalid"}),
        ));
    }
    Ok(())
}

fn one_of(name: &str, value: &str, allowed: &[&str]) -> Result<(), Answer> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let message = format!("{name} `{value}` is none of {allowed:?}");
    Err(Answer::mistake(StatusCode::UNPROCESSABLE_ENTITY, &message))
}

fn invalid(resource: &str, mut error: Value) -> Answer {
    put(&mut error, "resource", json!(resource));
    Answer::with(
        StatusCode::UNPROCESSABLE_ENTITY,
        json!({
            "message": "Validation Failed",
            "errors": [error],
            "documentation_url": "https://docs.github.com/rest",
            "status": "422",
        }),
    )
}

fn mistaken(resource: &str, error: Value) -> Answer {
    Answer {
        complaint: Some(error.to_string()),
        ..invalid(resource, error)
    }
}

fn not_found() -> Answer {
    Answer::error(StatusCode::NOT_FOUND, "Not Found")
}

fn unknown(call: &Call) -> Answer {
    let message = format!("there is no {} {}", call.method, call.path.join("/"));
    Answer::mistake(StatusCode::NOT_FOUND, &message)
}

/// What the webhook tells of an event, by
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads>.
pub(super) fn payload(state: &State, event: &Event) -> (&'static str, Value) {
    let repository = shapes::repo(state, OWNER, None);
    match event {
        Event::Push {
            branch,
            before,
            after,
            by,
        } => {
            let zeros = "0".repeat(40);
            let forced = matches!((before, after), (Some(before), Some(after))
                if !state.repo.is_ancestor(before, after));
            let payload = json!({
                "ref": format!("refs/heads/{branch}"),
                "before": before.as_ref().unwrap_or(&zeros),
                "after": after.as_ref().unwrap_or(&zeros),
                "created": before.is_none(),
                "deleted": after.is_none(),
                "forced": forced,
                "base_ref": null,
                "compare": format!("{}/{REPO}/compare", state.base_url),
                "commits": [],
                "head_commit": after.as_ref().map(|id| shapes::head_commit(state, id)),
                "repository": repository,
                "pusher": {"name": by, "email": format!("{by}@example.com")},
                "sender": shapes::user(state, by),
            });
            ("push", payload)
        }
        Event::Pull { number, action, by } => {
            let action = match action {
                Action::Opened => "opened",
                Action::Edited => "edited",
                Action::Synchronized => "synchronize",
                Action::Labeled => "labeled",
                Action::ReviewRequested => "review_requested",
                Action::Closed => "closed",
            };
            let payload = json!({
                "action": action,
                "number": number,
                "pull_request": shapes::pull(state, *number, true),
                "repository": repository,
                "sender": shapes::user(state, by),
            });
            ("pull_request", payload)
        }
    }
}
