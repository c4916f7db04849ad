//! GitLab's answers, in the shapes that its documentation has.

use longshore_controller::forge::{Forge, PullRequest, PullRequestState, gitlab::GitLab};
use longshore_protocol::api::connection::ForgeKind;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{
    COMMIT, TOKEN, kind,
    server::{Answer, Server},
    settings, status, text, token,
};

const LIST: &str = "GET /projects/acme%2Fkiosks/merge_requests?";
const ONE: &str = "GET /projects/acme%2Fkiosks/merge_requests/7";
const UPDATE: &str = "PUT /projects/acme%2Fkiosks/merge_requests/7";
const NOTES: &str = "GET /projects/acme%2Fkiosks/merge_requests/7/notes";

fn gitlab(server: &Server) -> GitLab {
    let settings = settings(ForgeKind::GitLab, &server.url, token());
    GitLab::new(server.client(), &settings).unwrap()
}

fn merge_request(iid: u64) -> Value {
    json!({
        "id": 900 + iid,
        "iid": iid,
        "web_url": format!("https://git.example/acme/kiosks/-/merge_requests/{iid}"),
        "state": "opened",
        "source_branch": "longshore/enroll/store-0001",
        "target_branch": "main",
        "source_project_id": 5,
        "target_project_id": 5,
        "sha": COMMIT,
        "reviewers": [{"id": 4}],
    })
}

fn note(id: u64, author: u64, body: &str) -> Value {
    json!({"id": id, "body": body, "author": {"id": author}, "system": false})
}

fn next() -> &'static str {
    "<https://elsewhere.example/x?page=2>; rel=\"next\", <https://elsewhere.example/x>; rel=\"first\""
}

#[tokio::test]
async fn merge_requests_are_read_from_all_pages() {
    let server = Server::start().await;
    let gitlab = gitlab(&server);
    let mut from_fork = merge_request(8);
    from_fork["source_project_id"] = json!(6);
    let mut without_commit = merge_request(9);
    without_commit["sha"] = Value::Null;
    server.on(
        LIST,
        Answer::new(200, json!([without_commit, from_fork])).header("link", next()),
    );
    server.on(LIST, Answer::new(200, json!([merge_request(7)])));
    let open = gitlab.open_pull_requests("main").await.unwrap();
    let expected = PullRequest {
        number: 7,
        url: "https://git.example/acme/kiosks/-/merge_requests/7".to_owned(),
        state: PullRequestState::Open,
        head_branch: "longshore/enroll/store-0001".to_owned(),
        head_commit: COMMIT.to_owned(),
        base_branch: "main".to_owned(),
        is_from_fork: false,
    };
    assert_eq!(open[0], expected);
    assert_eq!(
        (open.len(), open[1].number, open[1].is_from_fork),
        (2, 8, true)
    );
    let heard = server.last();
    assert_eq!(
        heard.line,
        "GET /projects/acme%2Fkiosks/merge_requests?state=opened&target_branch=main&per_page=100&page=2"
    );
    assert_eq!(heard.headers["private-token"], TOKEN);

    for (state, expected) in [
        ("merged", PullRequestState::Merged),
        ("closed", PullRequestState::Closed),
        ("locked", PullRequestState::Open),
    ] {
        let mut one = merge_request(7);
        one["state"] = json!(state);
        server.on(ONE, Answer::new(200, one));
        assert_eq!(gitlab.pull_request(7).await.unwrap().state, expected);
    }
    assert_eq!(gitlab.head_ref(7), "refs/merge-requests/7/head");
    let login = gitlab.git_login().await.unwrap();
    assert_eq!(
        (&*login.username, login.password.expose_secret()),
        ("oauth2", TOKEN)
    );
    assert!(!format!("{gitlab:?}").contains(TOKEN));
}

#[tokio::test]
async fn the_newest_merge_request_of_the_own_branch_is_found() {
    let server = Server::start().await;
    let mut from_fork = merge_request(12);
    from_fork["source_project_id"] = json!(6);
    let all = json!([merge_request(9), from_fork, merge_request(10)]);
    server.on(LIST, Answer::new(200, all));
    let head = "longshore/enroll/store-0001";
    let found = gitlab(&server)
        .find_pull_request(head, "main")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.number, 10);
    let line = server.last().line;
    assert!(
        line.contains("source_branch=longshore%2Fenroll%2Fstore-0001"),
        "{line}"
    );
}

#[tokio::test]
async fn a_merge_request_is_opened_once() {
    let server = Server::start().await;
    let gitlab = gitlab(&server);
    let create = "POST /projects/acme%2Fkiosks/merge_requests";
    // GitLab finds the commits in the background.
    let mut fresh = merge_request(7);
    fresh["sha"] = Value::Null;
    server
        .on(create, Answer::new(201, fresh))
        .on(ONE, Answer::new(200, merge_request(7)));
    let made = gitlab
        .create_pull_request("b", "main", &text())
        .await
        .unwrap();
    assert_eq!((made.number, &*made.head_commit), (7, COMMIT));
    let body = json!({
        "source_branch": "b",
        "target_branch": "main",
        "title": text().title,
        "description": text().body,
    });
    assert_eq!(server.heard()[0].body, body);
    let exists =
        r#"{"message":["Another open merge request already exists for this source branch: !7"]}"#;
    server.on(create, Answer::new(409, exists));
    let error = gitlab
        .create_pull_request("b", "main", &text())
        .await
        .unwrap_err();
    assert_eq!(kind(&error), "exists");
}

#[tokio::test]
async fn a_merge_request_is_changed() {
    let server = Server::start().await;
    let gitlab = gitlab(&server);
    for _ in 0..3 {
        server.on(UPDATE, Answer::new(200, merge_request(7)));
    }
    gitlab.edit_pull_request(7, &text()).await.unwrap();
    let body = json!({"title": text().title, "description": text().body});
    assert_eq!(server.last().body, body);
    gitlab
        .add_labels(7, &["one".to_owned(), "two".to_owned()])
        .await
        .unwrap();
    assert_eq!(server.last().body, json!({"add_labels": "one,two"}));
    gitlab.close_pull_request(7).await.unwrap();
    assert_eq!(server.last().body, json!({"state_event": "close"}));
}

#[tokio::test]
async fn reviewers_are_added_to_those_that_are_there() {
    let server = Server::start().await;
    server.on(
        "GET /users?username=ann",
        Answer::new(200, json!([{"id": 3}])),
    );
    server.on("GET /users?username=bob", Answer::new(200, json!([])));
    server.on(ONE, Answer::new(200, merge_request(7)));
    server.on(UPDATE, Answer::new(200, merge_request(7)));
    let reviewers = ["ann", "bob", "team:shops"].map(str::to_owned);
    let error = gitlab(&server)
        .request_reviews(7, &reviewers)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("there is no user team:shops, bob"),
        "{error}"
    );
    assert_eq!(server.last().body, json!({"reviewer_ids": [3, 4]}));
}

#[tokio::test]
async fn the_one_note_of_ours_is_kept_up_to_date() {
    let server = Server::start().await;
    let gitlab = gitlab(&server);
    let me = Answer::new(200, json!({"id": 1}));
    let old = json!([
        note(1, 2, "<!-- m -->"),
        note(2, 1, "hello"),
        note(3, 1, "<!-- m --> old")
    ]);
    server
        .on("GET /user", me.clone())
        .on(NOTES, Answer::new(200, old));
    server.on(&format!("{UPDATE}/notes/3"), Answer::new(200, json!({})));
    gitlab
        .put_comment(7, "<!-- m -->", "<!-- m --> new")
        .await
        .unwrap();
    assert_eq!(server.last().body, json!({"body": "<!-- m --> new"}));

    server.on("GET /user", me.clone());
    server.on(
        NOTES,
        Answer::new(200, json!([note(3, 1, "<!-- m --> new")])),
    );
    gitlab
        .put_comment(7, "<!-- m -->", "<!-- m --> new")
        .await
        .unwrap();

    server
        .on("GET /user", me)
        .on(NOTES, Answer::new(200, json!([])));
    server.on(
        "POST /projects/acme%2Fkiosks/merge_requests/7/notes",
        Answer::new(201, json!({})),
    );
    gitlab
        .put_comment(7, "<!-- m -->", "<!-- m --> new")
        .await
        .unwrap();
    assert_eq!(server.heard().len(), 8);
}

#[tokio::test]
async fn a_status_that_is_pending_already_stays_so() {
    let set = format!("POST /projects/acme%2Fkiosks/statuses/{COMMIT}");
    let server = Server::start().await;
    let gitlab = gitlab(&server);
    server.on(&set, Answer::new(201, json!({})));
    gitlab
        .set_status(COMMIT, &status("3 of 4 devices"))
        .await
        .unwrap();
    let body = json!({
        "state": "pending",
        "name": "longshore/sync",
        "description": "3 of 4 devices",
        "target_url": "https://longshore.example/fleets/kiosks",
    });
    assert_eq!(server.last().body, body);
    let again = r#"{"message":"Cannot transition status via :enqueue from :pending (Reason(s): Status cannot transition via \"enqueue\")"}"#;
    server.on(&set, Answer::new(400, again));
    gitlab
        .set_status(COMMIT, &status("4 of 4 devices"))
        .await
        .unwrap();
    server.on(&set, Answer::new(400, r#"{"message":"name is too long"}"#));
    let error = gitlab.set_status(COMMIT, &status("")).await.unwrap_err();
    assert_eq!(kind(&error), "refused");
}

#[tokio::test]
async fn what_is_missing_is_said_before_it_is_needed() {
    let project = "GET /projects/acme%2Fkiosks";
    let server = Server::start().await;
    let gitlab = gitlab(&server);
    let role = |level: u32| {
        let access = json!({"access_level": level});
        Answer::new(
            200,
            json!({"permissions": {"project_access": access, "group_access": null}}),
        )
    };
    server.on(project, role(20));
    let error = gitlab.check().await.unwrap_err().to_string();
    assert!(error.contains("give it the role Developer"), "{error}");
    server.on(
        project,
        Answer::new(401, r#"{"message":"401 Unauthorized"}"#),
    );
    assert_eq!(kind(&gitlab.check().await.unwrap_err()), "unauthorized");
    let scope = r#"{"error":"insufficient_scope","error_description":"The request requires higher privileges"}"#;
    server.on(project, Answer::new(403, scope));
    let error = gitlab.check().await.unwrap_err().to_string();
    assert!(error.contains("requires higher privileges"), "{error}");
    server
        .on(project, role(30))
        .on(LIST, Answer::new(200, json!([])));
    gitlab.check().await.unwrap();
}
