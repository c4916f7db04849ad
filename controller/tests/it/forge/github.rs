//! GitHub's answers, good and bad.

use std::time::Duration;

use longshore_controller::forge::{
    Forge, ForgeError, PullRequest, PullRequestState,
    client::{Client, Http},
    github::GitHub,
};
use longshore_protocol::api::connection::{ForgeCredential, ForgeKind};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{
    COMMIT, TOKEN, app, kind,
    server::{Answer, Server},
    settings, status, text, token,
};

const PULLS: &str = "GET /repos/acme/kiosks/pulls?";
const PULL: &str = "GET /repos/acme/kiosks/pulls/7";

fn github(server: &Server) -> GitHub {
    with(server, token())
}

fn with(server: &Server, credential: ForgeCredential) -> GitHub {
    let settings = settings(ForgeKind::GitHub, &server.url, credential);
    GitHub::new(server.client(), &settings).unwrap()
}

fn pull(number: u64) -> Value {
    json!({
        "number": number,
        "html_url": format!("https://github.com/acme/kiosks/pull/{number}"),
        "state": "open",
        "merged_at": null,
        "head": {"ref": "longshore/enroll/store-0001", "sha": COMMIT, "repo": {"id": 5}},
        "base": {"ref": "main", "sha": COMMIT, "repo": {"id": 5}},
    })
}

fn comment(id: u64, login: &str, body: &str) -> Value {
    json!({"id": id, "body": body, "user": {"login": login}})
}

fn next(page: u32) -> String {
    format!("<https://elsewhere.example/x?page={page}>; rel=\"next\"")
}

#[tokio::test]
async fn a_pull_request_is_read() {
    let server = Server::start().await;
    let github = github(&server);
    let mut merged = pull(7);
    merged["state"] = json!("closed");
    merged["merged_at"] = json!("2026-11-21T12:00:00Z");
    let mut of_deleted_fork = pull(7);
    of_deleted_fork["state"] = json!("closed");
    of_deleted_fork["head"]["repo"] = Value::Null;
    server.on(PULL, Answer::new(200, pull(7)));
    server.on(PULL, Answer::new(200, merged));
    server.on(PULL, Answer::new(200, of_deleted_fork));
    let expected = PullRequest {
        number: 7,
        url: "https://github.com/acme/kiosks/pull/7".to_owned(),
        state: PullRequestState::Open,
        head_branch: "longshore/enroll/store-0001".to_owned(),
        head_commit: COMMIT.to_owned(),
        base_branch: "main".to_owned(),
        is_from_fork: false,
    };
    assert_eq!(github.pull_request(7).await.unwrap(), expected);
    let merged = github.pull_request(7).await.unwrap();
    assert_eq!(merged.state, PullRequestState::Merged);
    let closed = github.pull_request(7).await.unwrap();
    assert_eq!(
        (closed.state, closed.is_from_fork),
        (PullRequestState::Closed, true)
    );
    let heard = server.last();
    assert_eq!(heard.headers["authorization"], format!("Bearer {TOKEN}"));
    assert_eq!(heard.headers["accept"], "application/vnd.github+json");
    assert_eq!(heard.headers["x-github-api-version"], "2022-11-28");
}

#[tokio::test]
async fn each_refusal_is_told_from_the_others() {
    let cases = [
        (
            Answer::new(401, r#"{"message":"Bad credentials"}"#),
            "unauthorized",
        ),
        (
            Answer::new(403, r#"{"message":"Resource not accessible"}"#),
            "forbidden",
        ),
        (Answer::new(404, r#"{"message":"Not Found"}"#), "not found"),
        (Answer::new(409, r#"{"message":"Conflict"}"#), "refused"),
        (
            Answer::new(422, r#"{"message":"Validation Failed"}"#),
            "refused",
        ),
        (
            Answer::new(301, "").header("location", "https://elsewhere.example/"),
            "refused",
        ),
        (Answer::new(500, "<html>"), "unavailable"),
        (Answer::new(503, ""), "unavailable"),
        (Answer::new(200, "[]"), "unavailable"),
        (Answer::new(200, pull(7)).half(), "unavailable"),
        (
            Answer::new(429, "").header("retry-after", 9),
            "rate limited",
        ),
    ];
    for (answer, expected) in cases {
        let server = Server::start().await;
        server.on(PULL, answer.clone());
        let error = github(&server).pull_request(7).await.unwrap_err();
        assert_eq!(kind(&error), expected, "{answer:?}: {error:?}");
        assert!(!format!("{error} {error:?}").contains(TOKEN));
        assert_eq!(
            server.heard().len(),
            1,
            "a forge does not try again by itself"
        );
    }
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_not_waited_for() {
    let server = Server::start().await;
    server.on(PULL, Answer::silence());
    let settings = settings(ForgeKind::GitHub, &server.url, token());
    let client = Client::new(&Http::default(), settings.url.clone())
        .unwrap()
        .with_timeout(Duration::from_millis(200));
    let error = GitHub::new(client, &settings)
        .unwrap()
        .pull_request(7)
        .await
        .unwrap_err();
    assert_eq!(kind(&error), "unavailable");
    drop(server);
    let settings = super::settings(ForgeKind::GitHub, "http://127.0.0.1:1", token());
    let client = Client::new(&Http::default(), settings.url.clone()).unwrap();
    let error = GitHub::new(client, &settings)
        .unwrap()
        .pull_request(7)
        .await
        .unwrap_err();
    assert_eq!(kind(&error), "unavailable");
}

#[tokio::test]
async fn a_host_that_wants_no_calls_gets_none_until_it_does() {
    let server = Server::start().await;
    let github = github(&server);
    let exhausted = Answer::new(403, r#"{"message":"API rate limit exceeded"}"#)
        .header("x-ratelimit-remaining", 0)
        .header("x-ratelimit-reset", 1);
    server
        .on(PULL, exhausted)
        .on(PULL, Answer::new(200, pull(7)));
    let error = github.pull_request(7).await.unwrap_err();
    assert!(
        error
            .retry_after()
            .is_some_and(|wait| wait <= Duration::from_secs(1)),
        "{error:?}"
    );
    let error = github.open_pull_requests("main").await.unwrap_err();
    assert_eq!(kind(&error), "rate limited");
    assert_eq!(server.heard().len(), 1, "the second call was not made");
    let again = async {
        while let Err(error) = github.pull_request(7).await {
            tokio::time::sleep(error.retry_after().unwrap()).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .unwrap();
    assert_eq!(server.heard().len(), 2);
}

#[tokio::test]
async fn all_pages_are_read_and_no_link_is_followed() {
    let server = Server::start().await;
    server.on(
        PULLS,
        Answer::new(200, json!([pull(9), pull(8)])).header("link", next(2)),
    );
    server.on(PULLS, Answer::new(200, json!([pull(8), pull(7)])));
    let open = github(&server).open_pull_requests("main").await.unwrap();
    let numbers: Vec<_> = open.iter().map(|pull| pull.number).collect();
    assert_eq!(numbers, [7, 8, 9]);
    assert_eq!(
        server.lines(),
        [
            "GET /repos/acme/kiosks/pulls?state=open&base=main&per_page=100&page=1",
            "GET /repos/acme/kiosks/pulls?state=open&base=main&per_page=100&page=2",
        ]
    );
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again() {
    let server = Server::start().await;
    let github = github(&server);
    server.on(
        PULLS,
        Answer::new(200, json!([pull(7)])).header("etag", "W/\"1\""),
    );
    server.on(PULLS, Answer::new(304, "").header("etag", "W/\"1\""));
    server.on(PULLS, Answer::new(200, json!([])).header("etag", "W/\"2\""));
    let first = github.open_pull_requests("main").await.unwrap();
    assert_eq!(github.open_pull_requests("main").await.unwrap(), first);
    assert_eq!(github.open_pull_requests("main").await.unwrap(), []);
    let asked = server.heard();
    assert_eq!(asked[0].headers.get("if-none-match"), None);
    assert_eq!(asked[1].headers["if-none-match"], "W/\"1\"");
    assert_eq!(asked[2].headers["if-none-match"], "W/\"1\"");
}

#[tokio::test]
async fn the_newest_pull_request_of_the_own_branch_is_found() {
    let server = Server::start().await;
    let github = github(&server);
    let mut from_fork = pull(12);
    from_fork["head"]["repo"]["id"] = json!(6);
    let mut from_other_branch = pull(11);
    from_other_branch["head"]["ref"] = json!("other");
    let all = json!([from_fork, from_other_branch, pull(9), pull(10)]);
    server
        .on(PULLS, Answer::new(200, all))
        .on(PULLS, Answer::new(200, json!([])));
    let head = "longshore/enroll/store-0001";
    let found = github
        .find_pull_request(head, "main")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.number, 10);
    assert_eq!(github.find_pull_request(head, "main").await.unwrap(), None);
    let line = server.last().line;
    assert!(
        line.contains("head=acme%3Alongshore%2Fenroll%2Fstore-0001"),
        "{line}"
    );
}

#[tokio::test]
async fn a_second_pull_request_exists_already() {
    let server = Server::start().await;
    let github = github(&server);
    let create = "POST /repos/acme/kiosks/pulls";
    let exists = json!({
        "message": "Validation Failed",
        "errors": [{"resource": "PullRequest", "message": "A pull request already exists for acme:b."}],
    });
    server
        .on(create, Answer::new(201, pull(7)))
        .on(create, Answer::new(422, exists));
    let made = github
        .create_pull_request("b", "main", &text())
        .await
        .unwrap();
    assert_eq!(made.number, 7);
    let body = json!({"title": text().title, "body": text().body, "head": "b", "base": "main"});
    assert_eq!(server.last().body, body);
    let error = github
        .create_pull_request("b", "main", &text())
        .await
        .unwrap_err();
    assert_eq!(kind(&error), "exists");
}

#[tokio::test]
async fn reviews_are_asked_of_users_and_teams() {
    let server = Server::start().await;
    let github = github(&server);
    server.on("POST", Answer::new(201, pull(7)));
    let reviewers = ["ann".to_owned(), "team:shops".to_owned()];
    github.request_reviews(7, &reviewers).await.unwrap();
    let body = json!({"reviewers": ["ann"], "team_reviewers": ["shops"]});
    assert_eq!(server.last().body, body);
    github.request_reviews(7, &[]).await.unwrap();
    github.add_labels(7, &[]).await.unwrap();
    assert_eq!(server.heard().len(), 1, "nothing to ask for is no call");
}

#[tokio::test]
async fn the_one_comment_of_ours_is_kept_up_to_date() {
    let comments = "GET /repos/acme/kiosks/issues/7/comments";
    let server = Server::start().await;
    let github = github(&server);
    server.on(
        "GET /user",
        Answer::new(200, json!({"login": "Longshore-App"})),
    );
    // Somebody quotes the marker; ours is on the second page.
    let first = json!([
        comment(1, "mallory", "<!-- m --> mine"),
        comment(2, "longshore-app", "hello")
    ]);
    let second = json!([comment(3, "longshore-app", "<!-- m --> old")]);
    server.on(
        comments,
        Answer::new(200, first.clone()).header("link", next(2)),
    );
    server.on(comments, Answer::new(200, second.clone()));
    server.on(
        "PATCH /repos/acme/kiosks/issues/comments/3",
        Answer::new(200, json!({})),
    );
    github
        .put_comment(7, "<!-- m -->", "<!-- m --> new")
        .await
        .unwrap();
    assert_eq!(server.last().body, json!({"body": "<!-- m --> new"}));

    server.on(comments, Answer::new(200, second));
    github
        .put_comment(7, "<!-- m -->", "<!-- m --> old")
        .await
        .unwrap();
    assert!(
        server.last().line.starts_with("GET"),
        "nothing to change is no change"
    );

    server.on(comments, Answer::new(200, first));
    server.on(
        "POST /repos/acme/kiosks/issues/7/comments",
        Answer::new(201, json!({})),
    );
    github
        .put_comment(7, "<!-- m -->", "<!-- m --> new")
        .await
        .unwrap();
    assert!(server.last().line.starts_with("POST"));
    let asked = server
        .lines()
        .iter()
        .filter(|line| *line == "GET /user")
        .count();
    assert_eq!(asked, 1, "who we are does not change");
}

#[tokio::test]
async fn a_status_is_one_short_line() {
    let server = Server::start().await;
    server.on(
        "POST /repos/acme/kiosks/statuses/",
        Answer::new(201, json!({})),
    );
    github(&server)
        .set_status(COMMIT, &status(&"ü".repeat(200)))
        .await
        .unwrap();
    let heard = server.last();
    assert_eq!(
        heard.line,
        format!("POST /repos/acme/kiosks/statuses/{COMMIT}")
    );
    assert_eq!(heard.body["description"], "ü".repeat(140));
    assert_eq!(heard.body["state"], "pending");
    assert_eq!(
        heard.body["target_url"],
        "https://longshore.example/fleets/kiosks"
    );
}

#[tokio::test]
async fn what_is_missing_is_said_before_it_is_needed() {
    let repo = "GET /repos/acme/kiosks";
    let server = Server::start().await;
    let github = github(&server);
    let may = |push: bool| json!({"permissions": {"push": push}});
    server.on(repo, Answer::new(200, may(false)));
    assert_eq!(kind(&github.check().await.unwrap_err()), "forbidden");
    server.on(repo, Answer::new(200, json!({"archived": true})));
    assert_eq!(kind(&github.check().await.unwrap_err()), "refused");
    server.on(repo, Answer::new(200, may(true)));
    server.on(
        PULLS,
        Answer::new(
            403,
            r#"{"message":"Resource not accessible by personal access token"}"#,
        ),
    );
    let error = github.check().await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not allow the credential to list pull requests")
    );
    server
        .on(repo, Answer::new(200, may(true)))
        .on(PULLS, Answer::new(200, json!([])));
    github.check().await.unwrap();

    let github = with(&server, app(None));
    let installation = "GET /repos/acme/kiosks/installation";
    let granted = json!({"id": 3, "permissions": {"contents": "write", "statuses": "read"}});
    server.on(installation, Answer::new(200, granted));
    let error = github.check().await.unwrap_err().to_string();
    assert!(
        error.contains("lacks write access to pull_requests, statuses;"),
        "{error}"
    );
    let suspended = json!({"id": 3, "suspended_at": "2026-11-21T12:00:00Z"});
    server.on(installation, Answer::new(200, suspended));
    let error = github.check().await.unwrap_err().to_string();
    assert!(error.contains("suspended"), "{error}");
}

const TOKENS: &str = "POST /app/installations/3/access_tokens";

/// An installation's token that ends in so many minutes.
fn installation_token(token: &str, minutes: i64) -> Answer {
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(minutes);
    Answer::new(
        201,
        json!({"token": token, "expires_at": end.to_string(), "permissions": {}}),
    )
}

#[tokio::test]
async fn an_apps_tokens_are_for_the_one_repo_and_renewed_in_time() {
    let server = Server::start().await;
    let github = with(&server, app(None));
    let installation = json!({"id": 3, "permissions": {}});
    server.on(
        "GET /repos/acme/kiosks/installation",
        Answer::new(200, installation),
    );
    // The first one would end during a long push.
    server.on(TOKENS, installation_token("ghs_hush_1", 4));
    server.on(TOKENS, installation_token("ghs_hush_2", 60));
    let login = github.git_login().await.unwrap();
    assert_eq!(
        (&*login.username, login.password.expose_secret()),
        ("x-access-token", "ghs_hush_1")
    );
    for _ in 0..2 {
        let login = github.git_login().await.unwrap();
        assert_eq!(login.password.expose_secret(), "ghs_hush_2");
    }
    server.on(PULL, Answer::new(200, pull(7)));
    github.pull_request(7).await.unwrap();
    assert_eq!(server.last().headers["authorization"], "Bearer ghs_hush_2");
    let heard = server.heard();
    assert_eq!(heard.len(), 4, "{:?}", server.lines());
    assert_eq!(heard[1].body, json!({"repositories": ["kiosks"]}));
    // As the App itself: a signed token of its own, never the key.
    assert!(heard[1].headers["authorization"].starts_with("Bearer ey"));
    let shown = format!("{github:?} {login:?}");
    assert!(
        !shown.contains("hush") && !shown.contains("PRIVATE"),
        "{shown}"
    );
}

#[tokio::test]
async fn an_app_that_is_installed_anew_is_found_again() {
    let server = Server::start().await;
    let github = with(&server, app(None));
    let find = "GET /repos/acme/kiosks/installation";
    let found = |id: u64| Answer::new(200, json!({"id": id, "permissions": {}}));
    server
        .on(find, found(2))
        .on("POST /app/installations/2/", Answer::new(404, "{}"));
    server
        .on(find, found(3))
        .on(TOKENS, installation_token("ghs_hush", 60));
    let error = github.pull_request(7).await.unwrap_err();
    assert!(matches!(error, ForgeError::NotFound { .. }), "{error:?}");
    server.on(PULL, Answer::new(200, pull(7)));
    github.pull_request(7).await.unwrap();
}

#[tokio::test]
async fn an_apps_comments_are_its_bots() {
    let server = Server::start().await;
    let github = with(&server, app(Some(3)));
    server.on(TOKENS, installation_token("ghs_hush", 60));
    server.on("GET /app", Answer::new(200, json!({"slug": "longshore"})));
    let comments = json!([
        comment(1, "longshore", "<!-- m -->"),
        comment(2, "longshore[bot]", "<!-- m -->")
    ]);
    server.on(
        "GET /repos/acme/kiosks/issues/7/comments",
        Answer::new(200, comments),
    );
    server.on(
        "PATCH /repos/acme/kiosks/issues/comments/2",
        Answer::new(200, json!({})),
    );
    github
        .put_comment(7, "<!-- m -->", "<!-- m --> new")
        .await
        .unwrap();
}

#[test]
fn a_key_that_is_none_is_refused_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let credential = ForgeCredential::App {
        id: 17,
        installation: None,
        private_key: super::secret("hush"),
    };
    let settings = settings(ForgeKind::GitHub, "https://api.github.com", credential);
    let client = Client::new(&Http::default(), settings.url.clone()).unwrap();
    let error = GitHub::new(client, &settings).unwrap_err().to_string();
    assert!(
        error.starts_with("the App's key is no RSA key in PEM"),
        "{error}"
    );
    assert!(!error.contains("hush"));
}
