//! After a reboot, without a network: the same containers run again, from what is on the device.

use longshore_agent::runtime::Runtime as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{Machine, deployment, running, set, settle, sleeper, workload};
use crate::until_true;

/// What a power cut and the start after it do to Podman: all processes and mounts are gone, and so is what is kept in
/// memory.
async fn reboot(machine: &Machine) {
    let listed = machine.podman(&["ps", "--all", "--no-trunc", "--format", "{{.ID}}"]);
    let mut processes = Vec::new();
    for id in listed.lines() {
        let format = "{{.State.ConmonPid}} {{.State.Pid}}";
        let ids = machine.podman(&["container", "inspect", "--format", format, id]);
        processes.extend(
            ids.split(' ')
                .filter_map(|id| Pid::from_raw(id.parse().ok()?)),
        );
    }
    // A monitor goes before what it watches, so that nobody notes an end.
    for process in &processes {
        // One that is gone already is as well.
        kill_process(*process, Signal::KILL).unwrap_or_default();
    }
    let gone = |process: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
        stat.map_or(true, |stat| stat.contains(") Z "))
    };
    until_true("all processes are gone", || processes.iter().all(gone)).await;
    machine.unmount();
    for volatile in ["run", "tmp"] {
        std::fs::remove_dir_all(machine.dir.path().join(volatile)).unwrap();
    }
}

#[tokio::test]
async fn the_same_containers_run_again_without_a_network() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let mut always = sleeper();
    // Not to be had from anywhere, and asked for every time.
    always["containers"][0]["imagePullPolicy"] = json!("Always");
    let wanted = set(
        1,
        [
            deployment("till", &sleeper()),
            deployment("always", &always),
            workload("batch/v1", "Job", "done", &running("exit 0")),
        ],
    );
    settle(&mut podman, &wanted).await;
    until_true("the job is done", || {
        machine.status("done-pod-c") == "exited"
    })
    .await;
    let before = machine.containers();
    drop(podman);
    reboot(&machine).await;
    assert_ne!(machine.status("till-pod-c"), "running");

    let mut podman = machine.runtime();
    settle(&mut podman, &wanted).await;
    assert_eq!(machine.containers(), before, "started, not made anew");
    assert_eq!(machine.status("till-pod-c"), "running");
    assert_eq!(machine.status("always-pod-c"), "running");
    assert_eq!(
        machine.status("done-pod-c"),
        "exited",
        "what is done is not done again"
    );
    assert!(podman.apply(wanted).await.unwrap().is_empty());
}
