//! Every GitHub call against GitHub's own description of its API, of github.com and of one Enterprise Server.
//!
//! ```text
//! GitHub (forge) ─▶ relay ─▶ prism: does the call fit the description?
//!                     └ notes violations, and hands back GitHub's own example of the answer
//! ```
//!
//! The answers are thus GitHub's examples, so that reading them is tested, too. Some of those do not fit GitHub's own
//! description, so prism is not told to refuse them (`--errors`); calls that do not fit it refuses all the same.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::Response,
};
use longshore_controller::forge::{
    Forge, ForgeError,
    client::{Client, Http},
    github::GitHub,
};
use longshore_protocol::api::connection::{ForgeCredential, ForgeKind};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    process::{Child, Command},
};

use super::{COMMIT, app, settings, status, text, token};

const NPM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/npm/node_modules");
/// Where the Enterprise Server has its API.
const ENTERPRISE: &str = "/api/v3";

#[tokio::test]
async fn github_accepts_every_call() {
    every_call_is_accepted("api.github.com.json", "").await;
}

#[tokio::test]
async fn github_enterprise_server_accepts_every_call() {
    every_call_is_accepted("ghes-3.19.json", ENTERPRISE).await;
}

async fn every_call_is_accepted(description: &str, base: &'static str) {
    let relay = Relay::start(description, base).await;
    for credential in [token(), app(None), app(Some(7))] {
        let is_app = matches!(credential, ForgeCredential::App { .. });
        let github = relay.github(credential);
        make_every_call(&github, is_app).await;
        assert_eq!(relay.violations(), Vec::<String>::new());
    }
    let made = relay.made();
    for call in [
        "GET /app",
        "GET /app/installations/7",
        "GET /repos/acme/kiosks",
        "GET /repos/acme/kiosks/installation",
        "GET /repos/acme/kiosks/issues/7/comments",
        "GET /repos/acme/kiosks/pulls",
        "GET /repos/acme/kiosks/pulls/7",
        "GET /user",
        "PATCH /repos/acme/kiosks/issues/comments/1",
        "PATCH /repos/acme/kiosks/pulls/7",
        "POST /app/installations/7/access_tokens",
        "POST /repos/acme/kiosks/issues/7/comments",
        "POST /repos/acme/kiosks/issues/7/labels",
        "POST /repos/acme/kiosks/pulls",
        "POST /repos/acme/kiosks/pulls/7/requested_reviewers",
    ] {
        assert!(
            made.iter().any(|it| it == call),
            "{call} was not made: {made:#?}"
        );
    }
    assert!(made.contains(&format!("POST /repos/acme/kiosks/statuses/{COMMIT}")));

    // What GitHub would not accept is noticed, or the above says nothing.
    let path = "/repos/acme/kiosks/pulls";
    for (route, body) in [
        (
            path.to_owned(),
            serde_json::json!({"title": "no head and no base"}),
        ),
        (
            format!("{path}/7/labels"),
            serde_json::json!({"labels": ["there is no such route"]}),
        ),
    ] {
        let call = reqwest::Client::new()
            .post(format!("{}{route}", relay.url))
            .json(&body);
        let answer = call.send().await.unwrap();
        assert!(answer.status().is_client_error(), "{route}");
        assert_eq!(relay.violations().len(), 1, "{route}");
    }
}

/// All that the trait has; the examples that come back decide what there is to be seen.
async fn make_every_call(github: &GitHub, is_app: bool) {
    match github.check().await {
        // GitHub's examples of an installation and a repo lack what the controller needs.
        Err(ForgeError::Forbidden { message, .. }) => {
            let missing = if is_app {
                "lacks write access to"
            } else {
                "its owner may only read"
            };
            assert!(message.contains(missing), "{message}");
        }
        other => panic!("{other:?}"),
    }
    github.git_login().await.unwrap();
    let open = github.open_pull_requests("master").await.unwrap();
    assert_eq!((open[0].number, &*open[0].base_branch), (1347, "master"));
    let one = github.pull_request(7).await.unwrap();
    assert_eq!((one.number, &*one.head_commit), (1347, COMMIT));
    github
        .find_pull_request("longshore/enroll/store-0001", "main")
        .await
        .unwrap();
    github
        .create_pull_request("longshore/enroll/store-0001", "main", &text())
        .await
        .unwrap();
    github.edit_pull_request(7, &text()).await.unwrap();
    github
        .add_labels(7, &["longshore".to_owned()])
        .await
        .unwrap();
    let reviewers = ["octocat".to_owned(), "team:shops".to_owned()];
    github.request_reviews(7, &reviewers).await.unwrap();
    github.close_pull_request(7).await.unwrap();
    // The example's comment says "Me too", and is octocat's.
    github
        .put_comment(7, "Me too", "Me too, and more")
        .await
        .unwrap();
    github
        .put_comment(7, "<!-- longshore -->", "new")
        .await
        .unwrap();
    github
        .set_status(COMMIT, &status("312 of 412 devices"))
        .await
        .unwrap();
}

/// Stands between the forge and prism.
struct Relay {
    url: String,
    shared: Arc<Shared>,
    _prism: Child,
}

struct Shared {
    prism: String,
    base: &'static str,
    made: Mutex<Vec<String>>,
    violations: Mutex<Vec<String>>,
}

impl Relay {
    async fn start(description: &str, base: &'static str) -> Self {
        let mut prism = Command::new("node")
            .arg(Path::new(NPM).join(".bin/prism"))
            .args(["mock", "--port", "0"])
            .arg(
                Path::new(NPM)
                    .join("@octokit/openapi/generated")
                    .join(description),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("scripts/bootstrap installs what this test needs");
        let mut lines = BufReader::new(prism.stdout.take().unwrap()).lines();
        let listening = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, url)) = line.split_once("Prism is listening on ") {
                    return url.trim().to_owned();
                }
            }
            panic!("prism ended");
        };
        let prism_url = tokio::time::timeout(Duration::from_mins(2), listening)
            .await
            .unwrap();
        // It logs every call, and would wait for somebody to read that.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let shared = Arc::new(Shared {
            prism: prism_url,
            base,
            made: Mutex::default(),
            violations: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{base}", listener.local_addr().unwrap());
        let app = Router::new().fallback(relay).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            url,
            shared,
            _prism: prism,
        }
    }

    fn github(&self, credential: ForgeCredential) -> GitHub {
        let settings = settings(ForgeKind::GitHub, &self.url, credential);
        GitHub::new(
            Client::new(&Http::default(), settings.url.clone()).unwrap(),
            &settings,
        )
        .unwrap()
    }

    fn made(&self) -> Vec<String> {
        self.shared.made.lock().unwrap().clone()
    }

    fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.violations.lock().unwrap())
    }
}

async fn relay(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().strip_prefix(shared.base).unwrap();
    let call = format!("{} {path}", parts.method);
    let query = parts
        .uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let mut headers = parts.headers;
    headers.remove("host");
    // GitHub's prose recommends its own media type; its description knows only `application/json`.
    headers.remove("accept");
    let answer = reqwest::Client::new()
        .request(parts.method, format!("{}{path}{query}", shared.prism))
        .headers(headers)
        .body(to_bytes(body, usize::MAX).await.unwrap())
        .send()
        .await
        .unwrap();
    shared.made.lock().unwrap().push(call.clone());
    if !answer.status().is_success() {
        let noted = answer.headers().get("sl-violations");
        let noted = noted.map(|noted| String::from_utf8_lossy(noted.as_bytes()));
        let violation = format!("{call}: {}: {noted:?}", answer.status());
        shared.violations.lock().unwrap().push(violation);
    }
    // The examples' links lead to pages that are not there.
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    *response.body_mut() = Body::from(answer.bytes().await.unwrap());
    response
}
