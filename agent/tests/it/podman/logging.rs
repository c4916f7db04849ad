//! What containers say, through `podman logs`.

use std::{sync::Arc, time::Duration};

use longshore_agent::runtime::logs::{LogStream, Logs};
use longshore_protocol::message::{LogEnd, LogRequest};

use super::*;
use crate::until_true;

fn of(object: &Object) -> LogRequest {
    LogRequest {
        object: Some(object.key().clone()),
        ..LogRequest::default()
    }
}

/// Reads on until `enough`, or to the end.
async fn read_until(log: &mut LogStream, enough: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    let reading = async {
        while !enough(&text) {
            match log.read(8000).await.unwrap() {
                Some(chunk) => text.push_str(&String::from_utf8(chunk).unwrap()),
                None => break,
            }
        }
    };
    let read = time::timeout(DEADLINE, reading).await;
    assert!(read.is_ok(), "only: {text}");
    text
}

async fn all(logs: &Arc<dyn Logs>, request: &LogRequest) -> String {
    let mut log = logs.open(request).await.unwrap();
    read_until(&mut log, |_| false).await
}

/// The processes that read the logs of this machine's containers.
fn readers(machine: &Machine) -> Vec<String> {
    let conf = machine.dir.path().display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let read = |path: PathBuf| std::fs::read(path).unwrap_or_default();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ");
    processes
        .filter(|it| text(read(it.path().join("environ"))).contains(&conf))
        .map(|it| text(read(it.path().join("cmdline"))))
        .filter(|line| line.contains(" logs "))
        .collect()
}

async fn no_readers(machine: &Machine) {
    let gone = async {
        while !readers(machine).is_empty() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let gone = time::timeout(DEADLINE, gone).await;
    assert!(gone.is_ok(), "{:?}", readers(machine));
}

#[tokio::test]
async fn what_containers_say_is_read_and_followed_until_nobody_reads() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let script = "trap 'exit 0' TERM; echo one; echo two >&2; echo three; \
                  n=0; while [ ! -e /tmp/go ]; do sleep 0.1; done; \
                  while true; do n=$((n+1)); echo later $n; sleep 0.1 & wait $!; done";
    let mut spec = running(script);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "tmp", "mountPath": "/tmp"}]);
    spec["volumes"] = json!([{"name": "tmp", "emptyDir": {}}]);
    let talks = deployment("talks", &spec);
    settle(&mut podman, &set(1, [talks.clone()])).await;
    let logs = podman.logs();

    let three = |text: &str| text.lines().count() >= 3;
    let mut follows = LogRequest {
        follow: true,
        ..of(&talks)
    };
    let mut log = logs.open(&follows).await.unwrap();
    let text = read_until(&mut log, three).await;
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["one", "three", "two"], "stdout and stderr");
    let tail = LogRequest {
        tail: Some(1),
        ..of(&talks)
    };
    assert_eq!(all(&logs, &tail).await.lines().count(), 1);
    let late = LogRequest {
        since: Some(0),
        ..of(&talks)
    };
    assert_eq!(all(&logs, &late).await, "", "nothing is that new");

    machine.inside("talks-pod-c", &["touch", "/tmp/go"]);
    read_until(&mut log, |text| text.contains("later 3\n")).await;
    assert!(!readers(&machine).is_empty(), "a program reads");
    drop(log);
    no_readers(&machine).await;

    // Without anybody who reads, the program waits: nothing is gathered in the agent.
    follows.tail = Some(0);
    let unread = logs.open(&follows).await.unwrap();
    until_true("a program reads", || !readers(&machine).is_empty()).await;
    drop(unread);
    no_readers(&machine).await;
}

#[tokio::test]
async fn containers_are_told_apart_and_what_is_not_there_lists_what_is() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let mut spec = running("echo from c");
    spec["restartPolicy"] = json!("Never");
    spec["containers"].as_array_mut().unwrap().push(
        json!({"name": "side", "image": IMAGE, "command": ["sh", "-c", "echo from side; exit 3"]}),
    );
    let two = pod("two", &spec);
    settle(&mut podman, &set(1, [two.clone()])).await;
    let logs = podman.logs();
    let whole = async {
        loop {
            let text = all(&logs, &of(&two)).await;
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            if lines == ["[c] from c", "[side] from side"] {
                return;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(DEADLINE, whole)
        .await
        .expect("both have said their line, and ended");
    let only = LogRequest {
        container: Some("side".to_owned()),
        ..of(&two)
    };
    assert_eq!(all(&logs, &only).await, "from side\n");
    let none = LogRequest {
        container: Some("nobody".to_owned()),
        ..of(&two)
    };
    let end = logs.open(&none).await.unwrap_err();
    let why = "there is no container `nobody`; the containers are: c, side";
    assert_eq!(end, LogEnd::Refused(why.to_owned()));
    let end = logs.open(&of(&pod("gone", &sleeper()))).await.unwrap_err();
    assert!(matches!(end, LogEnd::Refused(_)), "{end:?}");
    // Another device's agent sees nothing of them.
    let other = Podman::new(machine.program(), DeviceId::from_random([8; 16]));
    let end = other.logs().open(&of(&two)).await.unwrap_err();
    assert!(matches!(end, LogEnd::Refused(_)), "{end:?}");
}
