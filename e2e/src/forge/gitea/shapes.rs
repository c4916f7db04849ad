//! The objects of Gitea's API.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::state::{
    BOT, Comment, Label, NAME, OWNER, PullState, REPO, State, Status, USERS,
};

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn api(state: &State, path: &str) -> String {
    format!("{}/api/v1/{path}", state.base_url)
}

pub(super) fn user(state: &State, login: &str) -> Value {
    let place = USERS.iter().position(|(name, _)| *name == login);
    json!({
        "id": place.map_or(900, |place| place + 1),
        "login": login,
        "login_name": "",
        "source_id": 0,
        "full_name": "",
        "email": format!("{login}@noreply.example"),
        "avatar_url": format!("{}/avatars/{login}", state.base_url),
        "html_url": format!("{}/{login}", state.base_url),
        "language": "",
        "is_admin": false,
        "active": false,
        "restricted": false,
        "visibility": "public",
        "username": login,
    })
}

pub(super) fn repo(state: &State, owner: &str, reader: &str) -> Value {
    let web = format!("{}/{owner}/{NAME}", state.base_url);
    let push = USERS.contains(&(reader, true));
    json!({
        "id": if owner == OWNER { 1 } else { 2 },
        "owner": user(state, owner),
        "name": NAME,
        "full_name": format!("{owner}/{NAME}"),
        "description": "",
        "empty": false,
        "private": true,
        "fork": owner != OWNER,
        "template": false,
        "parent": null,
        "mirror": false,
        "url": api(state, &format!("repos/{owner}/{NAME}")),
        "html_url": web,
        "ssh_url": format!("git@host:{owner}/{NAME}.git"),
        "clone_url": format!("{web}.git"),
        "default_branch": "main",
        "archived": false,
        "permissions": {"admin": false, "push": push, "pull": true},
        "has_issues": true,
        "has_pull_requests": true,
        "allow_merge_commits": true,
        "allow_squash_merge": true,
    })
}

pub(super) fn branch(state: &State, name: &str, commit: &str) -> Value {
    let protected = state.repo.is_protected(name);
    json!({
        "name": name,
        "commit": {"id": commit, "message": "", "url": "", "timestamp": "2026-01-01T00:00:00Z"},
        "protected": protected,
        "required_approvals": 0,
        "enable_status_check": false,
        "status_check_contexts": [],
        "user_can_push": !protected,
        "user_can_merge": true,
        "effective_branch_protection_name": if protected { name } else { "" },
    })
}

/// A pull request. Where its branch is gone, `head.ref` is the ref of the pull request itself.
pub(super) fn pull(state: &State, number: u64) -> Value {
    let Some(pull) = state.pull(number) else {
        return Value::Null;
    };
    let is_merged = pull.state == PullState::Merged;
    let is_open = pull.state == PullState::Open;
    let base = state.branch(&pull.base_branch);
    let merges = is_open
        && base.is_some_and(|base| state.repo.merged_tree(base, &pull.head_commit).is_some());
    let is_gone = pull.head_owner == OWNER && state.branch(&pull.head_branch).is_none();
    let (label, origin) = if pull.is_agit {
        ("", OWNER)
    } else {
        (&*pull.head_branch, &*pull.head_owner)
    };
    let head_ref = if is_gone || pull.is_agit {
        format!("refs/pull/{number}/head")
    } else {
        pull.head_branch.clone()
    };
    let reviewers: Vec<_> = pull.reviewers.iter().map(|it| user(state, it)).collect();
    let html = format!("{}/{REPO}/pulls/{number}", state.base_url);
    json!({
        "id": 500_000 + number,
        "url": html,
        "number": number,
        "user": user(state, &pull.author),
        "title": pull.title,
        "body": pull.body,
        "labels": labels_of(state, number),
        "milestone": null,
        "assignee": null,
        "assignees": null,
        "requested_reviewers": reviewers,
        "requested_reviewers_teams": null,
        "state": if is_open { "open" } else { "closed" },
        "draft": false,
        "is_locked": false,
        "comments": state.comments.iter().filter(|it| it.pull == number).count(),
        "html_url": html,
        "diff_url": format!("{html}.diff"),
        "patch_url": format!("{html}.patch"),
        "mergeable": merges,
        "merged": is_merged,
        "merged_at": pull.closed.filter(|_| is_merged).map(time),
        "merge_commit_sha": pull.merge_commit,
        "merged_by": null,
        "allow_maintainer_edit": false,
        "base": {
            "label": pull.base_branch,
            "ref": pull.base_branch,
            "sha": base,
            "repo_id": 1,
            "repo": repo(state, OWNER, BOT),
        },
        "head": {
            "label": label,
            "ref": head_ref,
            "sha": pull.head_commit,
            "repo_id": if origin == OWNER { 1 } else { 2 },
            "repo": repo(state, origin, BOT),
        },
        "merge_base": base,
        "due_date": null,
        "created_at": time(pull.created),
        "updated_at": time(pull.updated),
        "closed_at": pull.closed.map(time),
        "pin_order": 0,
    })
}

pub(super) fn review(state: &State, number: u64, login: &str) -> Value {
    json!({
        "id": 1,
        "user": user(state, login),
        "team": null,
        "state": "REQUEST_REVIEW",
        "body": "",
        "commit_id": "",
        "stale": false,
        "official": true,
        "dismissed": false,
        "comments_count": 0,
        "html_url": format!("{}/{REPO}/pulls/{number}", state.base_url),
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
        "name": label.name,
        "exclusive": false,
        "is_archived": false,
        "color": label.color,
        "description": label.description,
        "url": api(state, &format!("repos/{REPO}/labels/{}", label.id)),
    })
}

pub(super) fn comment(state: &State, comment: &Comment) -> Value {
    let (id, pull) = (comment.id, comment.pull);
    json!({
        "id": id,
        "html_url": format!("{}/{REPO}/pulls/{pull}#issuecomment-{id}", state.base_url),
        "pull_request_url": format!("{}/{REPO}/pulls/{pull}", state.base_url),
        "issue_url": "",
        "user": user(state, &comment.author),
        "original_author": "",
        "original_author_id": 0,
        "body": comment.body,
        "assets": [],
        "created_at": time(comment.created),
        "updated_at": time(comment.updated),
    })
}

pub(super) fn status(state: &State, status: &Status) -> Value {
    json!({
        "id": status.id,
        "status": status.state,
        "target_url": status.url.clone().unwrap_or_default(),
        "description": status.description,
        "url": api(state, &format!("repos/{REPO}/statuses/{}", status.commit)),
        "context": status.context,
        "creator": user(state, BOT),
        "created_at": time(status.created),
        "updated_at": time(status.created),
    })
}
