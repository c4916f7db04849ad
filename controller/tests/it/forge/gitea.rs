//! Gitea's and Forgejo's answers, in the shapes that their API descriptions have.

use longshore_controller::forge::{Forge, PullRequest, PullRequestState, gitea::Gitea};
use longshore_protocol::api::connection::ForgeKind;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{
    COMMIT, TOKEN, kind,
    server::{Answer, Server},
    settings, status, text, token,
};

const REPO: &str = "/repos/acme/kiosks";

fn gitea(server: &Server) -> Gitea {
    let settings = settings(ForgeKind::Gitea, &server.url, token());
    Gitea::new(server.client(), &settings).unwrap()
}

fn pull(number: u64) -> Value {
    json!({
        "id": 900 + number,
        "number": number,
        "html_url": format!("https://git.example/acme/kiosks/pulls/{number}"),
        "state": "open",
        "merged": false,
        "head": {"label": "longshore/enroll/store-0001", "ref": "longshore/enroll/store-0001", "sha": COMMIT, "repo_id": 5},
        "base": {"label": "main", "ref": "main", "sha": COMMIT, "repo_id": 5},
    })
}

fn comment(id: u64, user: u64, body: &str) -> Value {
    json!({"id": id, "body": body, "user": {"id": user, "login": "someone"}})
}

#[tokio::test]
async fn pull_requests_are_read_from_all_pages() {
    let list = format!("GET {REPO}/pulls?");
    let server = Server::start().await;
    let gitea = gitea(&server);
    let mut for_other_branch = pull(9);
    for_other_branch["base"]["label"] = json!("live");
    let mut of_deleted_fork = pull(8);
    of_deleted_fork["head"]["repo_id"] = json!(0);
    let link = "<https://elsewhere.example/x?page=2>; rel=\"next\",<https://elsewhere.example/x?page=2>; rel=\"last\"";
    server.on(
        &list,
        Answer::new(200, json!([for_other_branch, of_deleted_fork])).header("link", link),
    );
    server.on(&list, Answer::new(200, json!([pull(7)])));
    let open = gitea.open_pull_requests("main").await.unwrap();
    let expected = PullRequest {
        number: 7,
        url: "https://git.example/acme/kiosks/pulls/7".to_owned(),
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
    assert_eq!(heard.line, format!("{list}state=open&limit=50&page=2"));
    assert_eq!(heard.headers["authorization"], format!("token {TOKEN}"));

    for (state, merged, expected) in [
        ("closed", true, PullRequestState::Merged),
        ("closed", false, PullRequestState::Closed),
        ("open", false, PullRequestState::Open),
    ] {
        let mut one = pull(7);
        one["state"] = json!(state);
        one["merged"] = json!(merged);
        server.on(&format!("GET {REPO}/pulls/7"), Answer::new(200, one));
        assert_eq!(gitea.pull_request(7).await.unwrap().state, expected);
    }
    let login = gitea.git_login().await.unwrap();
    assert_eq!(login.password.expose_secret(), TOKEN);
    assert!(!format!("{gitea:?} {login:?}").contains(TOKEN));
}

#[tokio::test]
async fn the_newest_pull_request_of_the_own_branch_is_found() {
    let server = Server::start().await;
    let mut from_fork = pull(12);
    from_fork["head"]["repo_id"] = json!(6);
    let mut from_other_branch = pull(11);
    from_other_branch["head"]["label"] = json!("other");
    let mut from_no_branch = pull(13);
    from_no_branch["head"]["label"] = json!("");
    let all = json!([
        from_no_branch,
        from_fork,
        from_other_branch,
        pull(9),
        pull(10)
    ]);
    server.on(
        &format!("GET {REPO}/pulls?state=all"),
        Answer::new(200, all),
    );
    let head = "longshore/enroll/store-0001";
    let found = gitea(&server)
        .find_pull_request(head, "main")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.number, 10);
}

#[tokio::test]
async fn a_pull_request_is_opened_once_and_changed() {
    let server = Server::start().await;
    let gitea = gitea(&server);
    let create = format!("POST {REPO}/pulls");
    server.on(&create, Answer::new(201, pull(7)));
    let made = gitea
        .create_pull_request("b", "main", &text())
        .await
        .unwrap();
    assert_eq!(made.number, 7);
    let body = json!({"title": text().title, "body": text().body, "head": "b", "base": "main"});
    assert_eq!(server.last().body, body);
    let exists =
        r#"{"message":"pull request already exists for these targets [id: 3, issue_id: 3]"}"#;
    server.on(&create, Answer::new(409, exists));
    let error = gitea
        .create_pull_request("b", "main", &text())
        .await
        .unwrap_err();
    assert_eq!(kind(&error), "exists");

    let edit = format!("PATCH {REPO}/pulls/7");
    server
        .on(&edit, Answer::new(201, pull(7)))
        .on(&edit, Answer::new(201, pull(7)));
    gitea.edit_pull_request(7, &text()).await.unwrap();
    assert_eq!(
        server.last().body,
        json!({"title": text().title, "body": text().body})
    );
    gitea.close_pull_request(7).await.unwrap();
    assert_eq!(server.last().body, json!({"state": "closed"}));

    server.on(
        &format!("{create}/7/requested_reviewers"),
        Answer::new(201, json!([])),
    );
    let reviewers = ["ann".to_owned(), "team:shops".to_owned()];
    gitea.request_reviews(7, &reviewers).await.unwrap();
    let body = json!({"reviewers": ["ann"], "team_reviewers": ["shops"]});
    assert_eq!(server.last().body, body);
}

#[tokio::test]
async fn labels_are_made_where_they_are_missing() {
    let server = Server::start().await;
    let there = json!([{"id": 3, "name": "longshore"}]);
    server.on(&format!("GET {REPO}/labels?"), Answer::new(200, there));
    server.on(
        &format!("POST {REPO}/labels"),
        Answer::new(201, json!({"id": 4, "name": "new"})),
    );
    server.on(
        &format!("POST {REPO}/issues/7/labels"),
        Answer::new(200, json!([])),
    );
    let labels = ["new".to_owned(), "longshore".to_owned()];
    gitea(&server).add_labels(7, &labels).await.unwrap();
    assert_eq!(server.heard()[1].body["name"], "new");
    assert_eq!(server.last().body, json!({"labels": [4, 3]}));
}

#[tokio::test]
async fn the_one_comment_of_ours_is_kept_up_to_date() {
    let comments = format!("GET {REPO}/issues/7/comments");
    let server = Server::start().await;
    let gitea = gitea(&server);
    let me = Answer::new(200, json!({"id": 1, "login": "longshore"}));
    let old = json!([comment(1, 2, "<!-- m -->"), comment(3, 1, "<!-- m --> old")]);
    server
        .on("GET /user", me.clone())
        .on(&comments, Answer::new(200, old));
    server.on(
        &format!("PATCH {REPO}/issues/comments/3"),
        Answer::new(200, json!({})),
    );
    gitea
        .put_comment(7, "<!-- m -->", "<!-- m --> new")
        .await
        .unwrap();
    assert_eq!(server.last().body, json!({"body": "<!-- m --> new"}));
    server
        .on("GET /user", me)
        .on(&comments, Answer::new(200, json!([])));
    server.on(
        &format!("POST {REPO}/issues/7/comments"),
        Answer::new(201, json!({})),
    );
    gitea
        .put_comment(7, "<!-- m -->", "<!-- m --> new")
        .await
        .unwrap();
    assert_eq!(server.heard().len(), 6);
}

#[tokio::test]
async fn a_status_is_set() {
    let server = Server::start().await;
    server.on(
        &format!("POST {REPO}/statuses/{COMMIT}"),
        Answer::new(201, json!({})),
    );
    gitea(&server)
        .set_status(COMMIT, &status(&"ü".repeat(300)))
        .await
        .unwrap();
    let body = json!({
        "state": "pending",
        "context": "longshore/sync",
        "description": "ü".repeat(255),
        "target_url": "https://longshore.example/fleets/kiosks",
    });
    assert_eq!(server.last().body, body);
}

#[tokio::test]
async fn what_is_missing_is_said_before_it_is_needed() {
    let repo = format!("GET {REPO}");
    let server = Server::start().await;
    let gitea = gitea(&server);
    server.on(
        &repo,
        Answer::new(200, json!({"permissions": {"push": false}})),
    );
    assert_eq!(kind(&gitea.check().await.unwrap_err()), "forbidden");
    server.on(&repo, Answer::new(200, json!({"archived": true})));
    assert_eq!(kind(&gitea.check().await.unwrap_err()), "refused");
    server.on(&repo, Answer::new(429, "").header("retry-after", 30));
    assert_eq!(kind(&gitea.check().await.unwrap_err()), "rate limited");
    assert_eq!(
        kind(&gitea.pull_request(7).await.unwrap_err()),
        "rate limited"
    );
    assert_eq!(server.heard().len(), 3, "the last call was not made");
}
