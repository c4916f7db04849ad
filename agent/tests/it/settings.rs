//! The settings' file that connected last, and what happens without it.

use std::sync::Arc;

use longshore_protocol::{Condition, ConditionStatus};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::{
    DEADLINE, object,
    pki::Pki,
    process::{Device, controller, ended, run, signal},
    until, until_true,
};

fn is_refused(conditions: &[Condition], reason: &str) -> bool {
    conditions.iter().any(|it| {
        it.kind == "ConfigInvalid" && it.status == ConditionStatus::True && it.reason == reason
    })
}

#[tokio::test]
async fn a_file_that_is_of_no_use_strands_no_device() {
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let file = device.path().join("agent.toml");
    let good = format!(
        "server = '{}'\nca-fingerprint = '{}'\nname = 'till'\ntoken = 'lst_one'\n",
        server.url,
        pki.fingerprint()
    );

    // Before anything ever connected, what is wrong is told and nothing else.
    std::fs::write(&file, "server =").unwrap();
    let (code, said) = run(device.configured(&[], &file)).await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("agent.toml"), "{said}");

    std::fs::write(&file, &good).unwrap();
    let child = device.configured(&[], &file).spawn().unwrap();
    let copy = device.state().join("settings.good");
    until_true("what connected is kept", || copy.exists()).await;
    let kept = std::fs::read_to_string(&copy).unwrap();
    assert!(kept.contains("till") && !kept.contains("lst_one"), "{kept}");
    signal(&child, Signal::TERM);
    ended(child).await;

    // A typo. The device goes on as before, and says so.
    std::fs::write(&file, good.replace("name =", "nane =")).unwrap();
    let child = device.configured(&[], &file).spawn().unwrap();
    let wanted = edge.desire(1, &[object("a", "1")]);
    let mut seen = edge.seen.clone();
    until(&mut seen, "it works with the copy", |seen| {
        let told = seen
            .reports
            .iter()
            .any(|it| is_refused(&it.conditions, "Invalid"));
        told && seen.accepted.contains(&wanted)
    })
    .await;
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), kept);
    signal(&child, Signal::TERM);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("unknown field `nane`"), "{said}");
    let (code, said) = run({
        let mut command = device.configured(&[], &file);
        command.arg("config");
        command
    })
    .await;
    assert_eq!(
        code, 2,
        "whoever asks for the settings hears what is wrong: {said}"
    );

    // Settings that read and do not connect: the same process goes back to those that did.
    std::fs::write(
        &file,
        format!("{good}connect-deadline = '1s'\nlog = 'info'\n"),
    )
    .unwrap();
    let cut_off = ["unshare", "--net"];
    let mut child = device.configured(&cut_off, &file).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let coming_back = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("\"NoConnection\"") {
                return;
            }
        }
        panic!("it ended");
    };
    tokio::time::timeout(DEADLINE, coming_back).await.unwrap();
    assert!(device.state().join("settings.refused").exists());
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), kept);
    signal(&child, Signal::TERM);
    let status = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap();
    assert!(status.unwrap().success());
}
