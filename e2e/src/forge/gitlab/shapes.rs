//! The objects of GitLab's API and of its webhooks.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::call::put;
use super::super::state::{
    Action, Comment, Label, NAME, OWNER, Pull, PullState, REPO, State, Status, USERS,
};

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string()
}

/// What GitLab calls the state of a merge request.
pub(super) fn state_of(pull: &Pull) -> &'static str {
    match pull.state {
        PullState::Open => "opened",
        PullState::Closed => "closed",
        PullState::Merged => "merged",
    }
}

fn project_id(owner: &str) -> u64 {
    if owner == OWNER { 1 } else { 2 }
}

pub(super) fn user(state: &State, login: &str) -> Value {
    let place = USERS.iter().position(|(name, _)| *name == login);
    json!({
        "id": place.map_or(900, |place| place + 1),
        "username": login,
        "name": login,
        "state": "active",
        "locked": false,
        "avatar_url": null,
        "web_url": format!("{}/{login}", state.base_url),
    })
}

pub(super) fn project(state: &State, reader: &str) -> Value {
    let writes = USERS.contains(&(reader, true));
    let access = json!({"access_level": if writes { 40 } else { 10 }, "notification_level": 3});
    json!({
        "id": 1,
        "name": NAME,
        "path": NAME,
        "path_with_namespace": REPO,
        "name_with_namespace": format!("{OWNER} / {NAME}"),
        "description": null,
        "default_branch": "main",
        "visibility": "private",
        "archived": false,
        "ssh_url_to_repo": format!("git@host:{REPO}.git"),
        "http_url_to_repo": format!("{}/{REPO}.git", state.base_url),
        "web_url": format!("{}/{REPO}", state.base_url),
        "namespace": {"id": 3, "name": OWNER, "path": OWNER, "kind": "group", "full_path": OWNER},
        "merge_requests_enabled": true,
        "merge_method": "merge",
        "permissions": {"project_access": access, "group_access": null},
    })
}

pub(super) fn branch(state: &State, name: &str, commit: &str) -> Value {
    json!({
        "name": name,
        "commit": {"id": commit, "short_id": commit.get(..8), "message": "", "title": ""},
        "merged": false,
        "protected": state.repo.is_protected(name),
        "developers_can_push": false,
        "developers_can_merge": false,
        "can_push": !state.repo.is_protected(name),
        "default": name == "main",
        "web_url": format!("{}/{REPO}/-/tree/{name}", state.base_url),
    })
}

pub(super) fn merge_request(state: &State, number: u64) -> Value {
    let Some(pull) = state.pull(number) else {
        return Value::Null;
    };
    let is_open = pull.state == PullState::Open;
    let is_merged = pull.state == PullState::Merged;
    let base = state.branch(&pull.base_branch);
    let conflicts = is_open
        && base.is_some_and(|base| state.repo.merged_tree(base, &pull.head_commit).is_none());
    let reviewers: Vec<_> = pull.reviewers.iter().map(|it| user(state, it)).collect();
    let closed = pull.closed.map(time);
    let short = format!("!{number}");
    json!({
        "id": 500_000 + number,
        "iid": number,
        "project_id": 1,
        "title": pull.title,
        "description": pull.body,
        "state": state_of(pull),
        "created_at": time(pull.created),
        "updated_at": time(pull.updated),
        "merged_by": null,
        "merge_user": null,
        "merged_at": closed.clone().filter(|_| is_merged),
        "closed_by": null,
        "closed_at": closed.filter(|_| !is_merged),
        "target_branch": pull.base_branch,
        "source_branch": pull.head_branch,
        "user_notes_count": state.comments.iter().filter(|it| it.pull == number).count(),
        "upvotes": 0,
        "downvotes": 0,
        "author": user(state, &pull.author),
        "assignees": [],
        "assignee": null,
        "reviewers": reviewers,
        "source_project_id": project_id(&pull.head_owner),
        "target_project_id": 1,
        "labels": pull.labels,
        "draft": false,
        "work_in_progress": false,
        "milestone": null,
        "merge_when_pipeline_succeeds": false,
        "merge_status": if conflicts { "cannot_be_merged" } else { "can_be_merged" },
        "detailed_merge_status": if conflicts { "conflict" } else { "mergeable" },
        "sha": pull.head_commit,
        "merge_commit_sha": pull.merge_commit,
        "squash_commit_sha": null,
        "discussion_locked": null,
        "should_remove_source_branch": null,
        "force_remove_source_branch": false,
        "reference": short,
        "references": {"short": short, "relative": short, "full": format!("{REPO}{short}")},
        "web_url": format!("{}/{REPO}/-/merge_requests/{number}", state.base_url),
        "squash": false,
        "has_conflicts": conflicts,
        "blocking_discussions_resolved": true,
    })
}

pub(super) fn note(state: &State, note: &Comment) -> Value {
    json!({
        "id": note.id,
        "type": null,
        "body": note.body,
        "author": user(state, &note.author),
        "created_at": time(note.created),
        "updated_at": time(note.updated),
        "system": false,
        "noteable_id": 500_000 + note.pull,
        "noteable_type": "MergeRequest",
        "noteable_iid": note.pull,
        "project_id": 1,
        "resolvable": false,
        "confidential": false,
        "internal": false,
    })
}

pub(super) fn label(label: &Label) -> Value {
    json!({
        "id": label.id,
        "name": label.name,
        "color": format!("#{}", label.color),
        "text_color": "#FFFFFF",
        "description": label.description,
        "priority": null,
        "is_project_label": true,
    })
}

pub(super) fn status(state: &State, status: &Status) -> Value {
    json!({
        "id": status.id,
        "sha": status.commit,
        "ref": "main",
        "status": status.state,
        "name": status.context,
        "target_url": status.url,
        "description": status.description,
        "created_at": time(status.created),
        "started_at": null,
        "finished_at": null,
        "allow_failure": false,
        "coverage": null,
        "pipeline_id": 1,
        "author": user(state, super::super::state::BOT),
    })
}

/// A project, as webhooks show it.
pub(super) fn hook_project(state: &State, owner: &str) -> Value {
    let web = format!("{}/{owner}/{NAME}", state.base_url);
    let (http, ssh) = (format!("{web}.git"), format!("git@host:{owner}/{NAME}.git"));
    json!({
        "id": project_id(owner),
        "name": NAME,
        "description": "",
        "web_url": web,
        "avatar_url": null,
        "git_ssh_url": ssh,
        "git_http_url": http,
        "namespace": owner,
        "visibility_level": 0,
        "path_with_namespace": format!("{owner}/{NAME}"),
        "default_branch": "main",
        "ci_config_path": null,
        "homepage": web,
        "url": http,
        "ssh_url": ssh,
        "http_url": http,
    })
}

pub(super) fn hook_repository(state: &State) -> Value {
    let web = format!("{}/{REPO}", state.base_url);
    json!({
        "name": NAME,
        "url": format!("git@host:{REPO}.git"),
        "description": "",
        "homepage": web,
        "git_http_url": format!("{web}.git"),
        "git_ssh_url": format!("git@host:{REPO}.git"),
        "visibility_level": 0,
    })
}

pub(super) fn hook_merge_request(state: &State, number: u64, action: Action, by: &str) -> Value {
    let Some(pull) = state.pull(number) else {
        return Value::Null;
    };
    let word = match action {
        Action::Opened => "open",
        Action::Closed if pull.state == PullState::Merged => "merge",
        Action::Closed => "close",
        Action::Edited | Action::Synchronized | Action::Labeled | Action::ReviewRequested => {
            "update"
        }
    };
    let mut attributes = json!({
        "id": 500_000 + number,
        "iid": number,
        "target_branch": pull.base_branch,
        "source_branch": pull.head_branch,
        "source_project_id": project_id(&pull.head_owner),
        "target_project_id": 1,
        "author_id": 1,
        "assignee_ids": [],
        "reviewer_ids": [],
        "title": pull.title,
        "description": pull.body,
        "created_at": time(pull.created),
        "updated_at": time(pull.updated),
        "state": state_of(pull),
        "state_id": 1,
        "merge_status": "unchecked",
        "detailed_merge_status": "unchecked",
        "merge_commit_sha": pull.merge_commit,
        "url": format!("{}/{REPO}/-/merge_requests/{number}", state.base_url),
        "source": hook_project(state, &pull.head_owner),
        "target": hook_project(state, OWNER),
        "last_commit": {
            "id": pull.head_commit,
            "message": "",
            "title": "",
            "timestamp": time(pull.updated),
            "url": format!("{}/{REPO}/-/commit/{}", state.base_url, pull.head_commit),
            "author": {"name": by, "email": "[REDACTED]"},
        },
        "work_in_progress": false,
        "draft": false,
        "action": word,
    });
    if action == Action::Synchronized {
        put(
            &mut attributes,
            "oldrev",
            json!(state.branch(&pull.base_branch)),
        );
    }
    json!({
        "object_kind": "merge_request",
        "event_type": "merge_request",
        "user": user(state, by),
        "project": hook_project(state, OWNER),
        "repository": hook_repository(state),
        "object_attributes": attributes,
        "labels": [],
        "changes": {},
        "assignees": [],
        "reviewers": [],
    })
}
