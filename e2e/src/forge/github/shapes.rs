//! The objects of GitHub's API, with every member that its description calls required.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::call::put;
use super::super::state::{Comment, Label, NAME, OWNER, PullState, REPO, State, Status, USERS};

/// What the app may do: what docs/GITHUB.md tells people to grant.
pub(super) fn permissions() -> Value {
    json!({
        "contents": "write",
        "metadata": "read",
        "pull_requests": "write",
        "issues": "write",
        "statuses": "write",
        "members": "read",
    })
}

pub(super) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn api(state: &State, path: &str) -> String {
    format!("{}/api/v3/{path}", state.base_url)
}

pub(super) fn user(state: &State, login: &str) -> Value {
    let place = USERS.iter().position(|(name, _)| *name == login);
    let url = |path: &str| api(state, &format!("users/{login}{path}"));
    let kind = if login.ends_with("[bot]") {
        "Bot"
    } else {
        "User"
    };
    json!({
        "login": login,
        "id": place.map_or(900, |place| place + 1),
        "node_id": "MDQ6VXNlcjE=",
        "avatar_url": format!("{}/avatars/{login}", state.base_url),
        "gravatar_id": "",
        "url": url(""),
        "html_url": format!("{}/{login}", state.base_url),
        "followers_url": url("/followers"),
        "following_url": url("/following{/other_user}"),
        "gists_url": url("/gists{/gist_id}"),
        "starred_url": url("/starred{/owner}{/repo}"),
        "subscriptions_url": url("/subscriptions"),
        "organizations_url": url("/orgs"),
        "repos_url": url("/repos"),
        "events_url": url("/events{/privacy}"),
        "received_events_url": url("/received_events"),
        "type": kind,
        "site_admin": false,
    })
}

pub(super) fn repo(state: &State, owner: &str, reader: Option<&str>) -> Value {
    let path = format!("repos/{owner}/{NAME}");
    let mut repo = json!({
        "id": if owner == OWNER { 1_296_269 } else { 1_296_270 },
        "node_id": "MDEwOlJlcG9zaXRvcnkxMjk2MjY5",
        "name": NAME,
        "full_name": format!("{owner}/{NAME}"),
        "private": true,
        "owner": user(state, owner),
        "html_url": format!("{}/{owner}/{NAME}", state.base_url),
        "description": null,
        "fork": owner != OWNER,
        "url": api(state, &path),
        "git_url": format!("git://host/{owner}/{NAME}.git"),
        "ssh_url": format!("git@host:{owner}/{NAME}.git"),
        "clone_url": format!("{}/{owner}/{NAME}.git", state.base_url),
        "default_branch": "main",
        "archived": false,
        "disabled": false,
        "visibility": "private",
        "has_issues": true,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "pushed_at": "2026-01-01T00:00:00Z",
    });
    if let Some(reader) = reader {
        let push = USERS.contains(&(reader, true));
        let permissions = json!({
            "admin": false, "maintain": false, "push": push, "triage": push, "pull": true,
        });
        put(&mut repo, "permissions", permissions);
    }
    repo
}

pub(super) fn app(state: &State) -> Value {
    json!({
        "id": 4711,
        "slug": "longshore",
        "node_id": "MDExOkludGVncmF0aW9uMQ==",
        "owner": user(state, OWNER),
        "name": "Longshore",
        "description": "",
        "external_url": "https://longshore.example",
        "html_url": format!("{}/apps/longshore", state.base_url),
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "permissions": permissions(),
        "events": ["push", "pull_request"],
    })
}

pub(super) fn installation(state: &State) -> Value {
    json!({
        "id": 7,
        "app_id": 4711,
        "app_slug": "longshore",
        "account": user(state, OWNER),
        "target_id": 1,
        "target_type": "Organization",
        "single_file_name": null,
        "repository_selection": "selected",
        "access_tokens_url": api(state, "app/installations/7/access_tokens"),
        "repositories_url": api(state, "installation/repositories"),
        "html_url": format!("{}/organizations/{OWNER}/settings/installations/7", state.base_url),
        "permissions": permissions(),
        "events": ["push", "pull_request"],
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "suspended_by": null,
        "suspended_at": null,
    })
}

pub(super) fn branch(state: &State, name: &str, commit: &str) -> Value {
    let path = format!("repos/{REPO}/branches/{name}");
    json!({
        "name": name,
        "commit": {"sha": commit, "url": api(state, &format!("repos/{REPO}/commits/{commit}"))},
        "_links": {"self": api(state, &path), "html": format!("{}/{REPO}/tree/{name}", state.base_url)},
        "protected": state.repo.is_protected(name),
        "protection": {"enabled": state.repo.is_protected(name)},
        "protection_url": api(state, &format!("{path}/protection")),
    })
}

/// A pull request; `whole` is what a list leaves out.
pub(super) fn pull(state: &State, number: u64, whole: bool) -> Value {
    let Some(pull) = state.pull(number) else {
        return Value::Null;
    };
    let path = format!("repos/{REPO}/pulls/{number}");
    let issue = format!("repos/{REPO}/issues/{number}");
    let html = format!("{}/{REPO}/pull/{number}", state.base_url);
    let end = |owner: &str, branch: &str, commit: Option<&String>| {
        let user = user(state, owner);
        let label = format!("{owner}:{branch}");
        json!({"label": label, "ref": branch, "sha": commit, "user": user, "repo": repo(state, owner, None)})
    };
    let base = state.branch(&pull.base_branch);
    let is_open = pull.state == PullState::Open;
    let is_merged = pull.state == PullState::Merged;
    let people: Vec<_> = pull.reviewers.iter().map(|it| user(state, it)).collect();
    let teams: Vec<_> = pull.teams.iter().map(|slug| team(state, slug)).collect();
    let links = json!({
        "self": {"href": api(state, &path)},
        "html": {"href": html},
        "issue": {"href": api(state, &issue)},
        "comments": {"href": api(state, &format!("{issue}/comments"))},
        "review_comments": {"href": api(state, &format!("{path}/comments"))},
        "review_comment": {"href": api(state, &format!("repos/{REPO}/pulls/comments{{/number}}"))},
        "commits": {"href": api(state, &format!("{path}/commits"))},
        "statuses": {"href": api(state, &format!("repos/{REPO}/statuses/{}", pull.head_commit))},
    });
    let mut shape = json!({
        "url": api(state, &path),
        "id": 500_000 + number,
        "node_id": "MDExOlB1bGxSZXF1ZXN0MQ==",
        "html_url": html,
        "diff_url": format!("{html}.diff"),
        "patch_url": format!("{html}.patch"),
        "issue_url": api(state, &issue),
        "commits_url": api(state, &format!("{path}/commits")),
        "review_comments_url": api(state, &format!("{path}/comments")),
        "review_comment_url": api(state, &format!("repos/{REPO}/pulls/comments{{/number}}")),
        "comments_url": api(state, &format!("{issue}/comments")),
        "statuses_url": api(state, &format!("repos/{REPO}/statuses/{}", pull.head_commit)),
        "number": number,
        "state": if is_open { "open" } else { "closed" },
        "locked": false,
        "title": pull.title,
        "user": user(state, &pull.author),
        "body": pull.body,
        "labels": labels_of(state, number),
        "milestone": null,
        "created_at": time(pull.created),
        "updated_at": time(pull.updated),
        "closed_at": pull.closed.map(time),
        "merged_at": pull.closed.filter(|_| is_merged).map(time),
        "merge_commit_sha": pull.merge_commit,
        "assignee": null,
        "assignees": [],
        "requested_reviewers": people,
        "requested_teams": teams,
        "head": end(&pull.head_owner, &pull.head_branch, Some(&pull.head_commit)),
        "base": end(OWNER, &pull.base_branch, base),
        "_links": links,
        "author_association": "COLLABORATOR",
        "auto_merge": null,
        "draft": false,
    });
    if whole {
        let merges =
            base.is_some_and(|base| state.repo.merged_tree(base, &pull.head_commit).is_some());
        let comments = state.comments.iter().filter(|it| it.pull == number).count();
        for (name, value) in [
            ("merged", json!(is_merged)),
            ("mergeable", json!(is_open.then_some(merges))),
            ("rebaseable", json!(is_open.then_some(merges))),
            (
                "mergeable_state",
                json!(if merges { "clean" } else { "dirty" }),
            ),
            ("merged_by", Value::Null),
            ("comments", json!(comments)),
            ("review_comments", json!(0)),
            ("maintainer_can_modify", json!(false)),
            ("commits", json!(1)),
            ("additions", json!(1)),
            ("deletions", json!(0)),
            ("changed_files", json!(1)),
        ] {
            put(&mut shape, name, value);
        }
    }
    shape
}

fn team(state: &State, slug: &str) -> Value {
    json!({
        "id": 1,
        "node_id": "MDQ6VGVhbTE=",
        "url": api(state, "teams/1"),
        "html_url": format!("{}/orgs/{OWNER}/teams/{slug}", state.base_url),
        "name": slug,
        "slug": slug,
        "description": "",
        "privacy": "closed",
        "notification_setting": "notifications_enabled",
        "permission": "push",
        "members_url": api(state, "teams/1/members{/member}"),
        "repositories_url": api(state, "teams/1/repos"),
        "parent": null,
    })
}

pub(super) fn labels_of(state: &State, number: u64) -> Vec<Value> {
    let names = state.pull(number).map(|pull| pull.labels.as_slice());
    let all = names.unwrap_or_default().iter();
    all.filter_map(|name| state.labels.iter().find(|label| label.name == *name))
        .map(|found| label(state, found))
        .collect()
}

pub(super) fn label(state: &State, label: &Label) -> Value {
    json!({
        "id": label.id,
        "node_id": "MDU6TGFiZWwx",
        "url": api(state, &format!("repos/{REPO}/labels/{}", label.name)),
        "name": label.name,
        "description": label.description,
        "color": label.color,
        "default": false,
    })
}

pub(super) fn comment(state: &State, comment: &Comment) -> Value {
    let (id, pull) = (comment.id, comment.pull);
    json!({
        "id": id,
        "node_id": "MDEyOklzc3VlQ29tbWVudDE=",
        "url": api(state, &format!("repos/{REPO}/issues/comments/{id}")),
        "html_url": format!("{}/{REPO}/pull/{pull}#issuecomment-{id}", state.base_url),
        "body": comment.body,
        "user": user(state, &comment.author),
        "created_at": time(comment.created),
        "updated_at": time(comment.updated),
        "issue_url": api(state, &format!("repos/{REPO}/issues/{pull}")),
        "author_association": "COLLABORATOR",
    })
}

pub(super) fn status(state: &State, status: &Status) -> Value {
    json!({
        "url": api(state, &format!("repos/{REPO}/statuses/{}", status.commit)),
        "avatar_url": format!("{}/avatars/longshore", state.base_url),
        "id": status.id,
        "node_id": "MDY6U3RhdHVzMQ==",
        "state": status.state,
        "description": status.description,
        "target_url": status.url,
        "context": status.context,
        "created_at": time(status.created),
        "updated_at": time(status.created),
        "creator": user(state, "longshore[bot]"),
    })
}

/// The newest commit of a push.
pub(super) fn head_commit(state: &State, id: &str) -> Value {
    let ask = |format: &str| {
        let format = format!("--format={format}");
        state
            .repo
            .git(["show", "-s", &format, id])
            .unwrap_or_default()
    };
    let person = json!({"name": ask("%an"), "email": ask("%ae")});
    json!({
        "id": id,
        "tree_id": ask("%T"),
        "distinct": true,
        "message": ask("%B"),
        "timestamp": ask("%cI"),
        "url": format!("{}/{REPO}/commit/{id}", state.base_url),
        "author": person,
        "committer": person,
        "added": [],
        "removed": [],
        "modified": [],
    })
}
