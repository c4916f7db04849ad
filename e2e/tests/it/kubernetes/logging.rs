//! Logs of pods, read through the API server.

use longshore_agent::runtime::logs::LogStream;
use longshore_protocol::{
    ObjectKey,
    message::{LogEnd, LogRequest},
};

use super::*;

fn pod(name: &str, app: &str, containers: &[&str]) -> Value {
    let containers: Vec<_> = containers
        .iter()
        .map(|name| json!({"name": name, "image": "till:1"}))
        .collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": {"containers": containers}})
}

fn of(api_version: &str, kind: &str, name: &str) -> LogRequest {
    LogRequest {
        object: Some(ObjectKey {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }),
        ..LogRequest::default()
    }
}

async fn read(log: &mut LogStream) -> Option<String> {
    let chunk = time::timeout(PATIENCE, log.read(8000))
        .await
        .expect("something is read");
    chunk
        .unwrap()
        .map(|chunk| String::from_utf8(chunk).unwrap())
}

async fn all(mut log: LogStream) -> String {
    let mut text = String::new();
    while let Some(chunk) = read(&mut log).await {
        text.push_str(&chunk);
    }
    text
}

/// A Deployment with two pods, and another one's pod beside them.
async fn site() -> Site {
    let mut site = Site::start().await;
    site.apply(&[namespace("shop"), deployment("till", "till:1")])
        .await
        .unwrap();
    for pod in [
        pod("till-1", "till", &["till"]),
        pod("till-2", "till", &["till"]),
        pod("other-1", "other", &["web", "log"]),
    ] {
        site.server.apply_as("replicaset", &pod, false);
    }
    site.server.say(("shop", "till-1", "till"), "one\ntwo\n");
    site.server.say(("shop", "till-2", "till"), "three\n");
    site.server.say(("shop", "other-1", "web"), "web\n");
    site.server.say(("shop", "other-1", "log"), "log\n");
    site
}

#[tokio::test]
async fn the_pods_of_a_workload_are_read_and_followed() {
    let site = site().await;
    let logs = site.kube.logs();
    let till = of("apps/v1", "Deployment", "till");
    let text = all(logs.open(&till).await.unwrap()).await;
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    let expected = [
        "[till-1/till] one",
        "[till-1/till] two",
        "[till-2/till] three",
    ];
    assert_eq!(lines, expected);
    // A pod with one container, by its name: lines as they are.
    let one = LogRequest {
        follow: true,
        tail: Some(1),
        ..of("v1", "Pod", "till-1")
    };
    let mut log = logs.open(&one).await.unwrap();
    assert_eq!(read(&mut log).await.as_deref(), Some("two\n"));
    site.server.say(("shop", "till-1", "till"), "later\n");
    assert_eq!(read(&mut log).await.as_deref(), Some("later\n"));
    assert_eq!(site.server.readers(), 1);
    // Nobody reads any more: the API server is let go.
    drop(log);
    let gone = async {
        while site.server.readers() > 0 {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(PATIENCE, gone)
        .await
        .expect("the log is still being read");
}

#[tokio::test]
async fn containers_are_told_apart() {
    let site = site().await;
    let logs = site.kube.logs();
    let other = of("v1", "Pod", "other-1");
    let text = all(logs.open(&other).await.unwrap()).await;
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[log] log", "[web] web"]);
    let web = LogRequest {
        container: Some("web".to_owned()),
        ..other.clone()
    };
    assert_eq!(all(logs.open(&web).await.unwrap()).await, "web\n");
    let none = LogRequest {
        container: Some("till".to_owned()),
        ..other
    };
    let end = logs.open(&none).await.unwrap_err();
    let why = "there is no container `till`; the containers are: log, web";
    assert_eq!(end, LogEnd::Refused(why.to_owned()));
}

#[tokio::test]
async fn what_cannot_be_read_says_why() {
    let mut site = site().await;
    let logs = site.kube.logs();
    let end = logs
        .open(&of("apps/v1", "Deployment", "gone"))
        .await
        .unwrap_err();
    let LogEnd::Refused(why) = end else {
        panic!("{end:?}")
    };
    assert!(why.contains("not found"), "{why}");
    let end = logs.open(&of("v1", "ConfigMap", "page")).await.unwrap_err();
    assert!(matches!(end, LogEnd::Refused(_)), "{end:?}");
    site.server.deny("get", "pods/log");
    let end = logs.open(&of("v1", "Pod", "till-1")).await.unwrap_err();
    let LogEnd::Refused(why) = end else {
        panic!("{end:?}")
    };
    assert!(why.contains("pods/log"), "{why}");
    site.server.stop().await;
    let end = logs.open(&of("v1", "Pod", "till-1")).await.unwrap_err();
    assert!(matches!(end, LogEnd::Failed(_)), "{end:?}");
}
