//! What the engine says of changes.

use longshore_controller::store::{devices, fleets, tokens};
use longshore_protocol::Digest;

use super::world::{World, device, groups, map, names, said};
use crate::{
    reconcile::world::{FLEET, active, delete, file, overlay, shops, write},
    store::samples,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_devices_on_twelve_overlays_are_twelve_builds() {
    let overlays: Vec<_> = (0..12).map(|n| format!("g{n}")).collect();
    let overlays: Vec<_> = overlays.iter().map(String::as_str).collect();
    let mut files = groups(&overlays);
    files.extend((0..1000).map(|n| device(&format!("store-{n:04}"), overlays[n % 12], "")));
    let world = World::new(&files).await;

    let preview = world
        .propose(&[map("base/shared.yaml", "shared", "2")])
        .await;
    assert_eq!(world.builds(), 24, "the base was never built");
    assert_eq!(preview.devices, 1000);
    let [group] = &preview.groups[..] else {
        panic!("one change is one group: {:?}", preview.groups.len());
    };
    assert_eq!(group.devices.len(), 1000);
    assert_eq!(group.overlays.len(), 12);
    assert_eq!(said(&group.changes), ["changed ConfigMap shared"]);
    assert!(
        group.changes[0]
            .diff
            .contains("-  value: \"1\"\n+  value: \"2\"\n")
    );
    assert!(preview.problems.lines.is_empty());

    world
        .propose(&[map("base/shared.yaml", "shared", "3")])
        .await;
    assert_eq!(world.builds(), 36, "the base was built before");
    world
        .propose(&[map("base/shared.yaml", "shared", "3")])
        .await;
    world.propose(&[write("README.md", "hello")]).await;
    assert_eq!(world.builds(), 36, "nothing is built twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_grouped_by_what_changes_for_them() {
    let mut files = groups(&["kiosk", "till"]);
    files.extend([
        map(
            "groups/kiosk/own.yaml",
            "kiosk",
            "store ${STORE}, ${NOTE:=plain}",
        ),
        device("k1", "kiosk", "STORE: one"),
        device("k2", "kiosk", "STORE: two, NOTE: loud"),
        device("t1", "till", ""),
    ]);
    let world = World::new(&files).await;

    let shop = map(
        "groups/kiosk/own.yaml",
        "kiosk",
        "shop ${STORE}, ${NOTE:=plain}",
    );
    let preview = world.propose(&[shop]).await;
    let [group] = &preview.groups[..] else {
        panic!("{:#?}", preview.groups);
    };
    assert_eq!(names(&group.devices), ["k1", "k2"]);
    assert_eq!(group.overlays, ["groups/kiosk"]);
    assert!(
        group.changes[0]
            .diff
            .contains("+  value: shop ${STORE}, ${NOTE:=plain}\n")
    );

    let default = map(
        "groups/kiosk/own.yaml",
        "kiosk",
        "store ${STORE}, ${NOTE:=quiet}",
    );
    let preview = world.propose(&[default]).await;
    assert_eq!(preview.groups.len(), 1);
    assert_eq!(
        names(&preview.groups[0].devices),
        ["k1"],
        "the other one's variable stands for the default"
    );

    let moved = [
        device("k1", "kiosk", "STORE: two, NOTE: loud"),
        device("k2", "till", ""),
    ];
    let preview = world.propose(&moved).await;
    let [k1, k2] = &preview.groups[..] else {
        panic!("{:#?}", preview.groups);
    };
    assert!(
        k1.changes[0]
            .diff
            .contains("-  value: store one, plain\n+  value: store two, loud\n")
    );
    assert_eq!(
        said(&k2.changes),
        ["removed ConfigMap kiosk", "added ConfigMap till"]
    );

    let unused = [device("t1", "till", "NEW: variable")];
    assert!(world.propose(&unused).await.is_nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_newly_wrong_is_a_problem_of_the_change() {
    let mut files = groups(&["kiosk", "till", "broken"]);
    files.extend([
        overlay("groups/broken", &["missing.yaml"]),
        device("b1", "broken", ""),
        device("k1", "kiosk", "STORE: one"),
        device("k2", "kiosk", ""),
        device("t1", "till", ""),
        write("devices/odd/device.yaml", "nonsense: true\n"),
    ]);
    let world = World::new(&files).await;

    let preview = world.propose(&[write("README.md", "hello")]).await;
    assert_eq!(preview.problems.count, 0);
    assert_eq!(preview.old_problems.count, 2, "{:?}", preview.old_problems);
    assert_eq!(
        preview.old_problems.lines[1],
        "groups/broken/kustomization.yaml:4: `missing.yaml` does not exist"
    );

    let undefined = map("groups/kiosk/own.yaml", "kiosk", "${STORE}");
    let gone = delete("groups/till/own.yaml");
    let preview = world.propose(&[undefined, gone]).await;
    assert_eq!(
        preview.problems.lines,
        [
            "devices/k2/device.yaml: v1/ConfigMap/kiosk: `data.value` refers to the variable `STORE`, which is not defined",
            "groups/till/kustomization.yaml:5: `own.yaml` does not exist",
        ]
    );
    let [group] = &preview.groups[..] else {
        panic!("{:#?}", preview.groups);
    };
    assert_eq!(
        names(&group.devices),
        ["k1"],
        "what is broken stays as it is"
    );

    let mended = overlay("groups/broken", &["../../base"]);
    let preview = world.propose(&[mended]).await;
    assert!(preview.groups[0].unknown_before);
    assert_eq!(said(&preview.groups[0].changes), ["added ConfigMap shared"]);
    assert_eq!(preview.old_problems.count, 1);

    let preview = world
        .propose(&[write("fleet.yaml", "kind: Nothing\n")])
        .await;
    assert_eq!(preview.problems.count, 1, "{:?}", preview.problems);
    assert!(preview.groups.is_empty() && preview.decommissioned.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_come_and_go_and_the_guard_counts() {
    let mut files = groups(&["kiosk", "till"]);
    files.extend((0..6).map(|n| device(&format!("k{n}"), "kiosk", "")));
    files.push(device("t1", "till", ""));
    let world = World::new(&files).await;

    let preview = world
        .propose(&[device("new-1", "kiosk", ""), delete("devices/t1")])
        .await;
    assert_eq!(preview.enrolling(), 1);
    assert_eq!(preview.enrolled[0].overlay, "groups/kiosk");
    let objects = preview.enrolled[0].objects.iter();
    let objects: Vec<_> = objects.map(|object| object.name.as_str()).collect();
    assert_eq!(objects, ["kiosk", "shared"]);
    assert_eq!(names(&preview.decommissioned), ["t1"]);
    assert!(!preview.guard.exceeded);

    let preview = world.propose(&[overlay("groups/kiosk", &[])]).await;
    assert_eq!(preview.emptied.len(), 6);
    assert_eq!(preview.guard.allowed, 5);
    assert!(preview.guard.exceeded && preview.guard.holds);

    let loosened = format!("{FLEET}spec: {{safety: {{maxDecommission: 100%}}}}\n");
    let preview = world
        .propose(&[overlay("groups/kiosk", &[]), write("fleet.yaml", loosened)])
        .await;
    assert!(preview.guard.exceeded && !preview.guard.holds);

    let unreadable = [delete("devices/t1"), write("devices/t2/device.yaml", "?")];
    let preview = world.propose(&unreadable).await;
    assert!(
        preview.decommissioned.is_empty(),
        "it may be in the folder that cannot be read"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_fails_names_file_and_line_and_no_secret() {
    let mut files = groups(&["kiosk", "till"]);
    files.extend([device("k1", "kiosk", ""), device("t1", "till", "")]);
    let world = World::new(&files).await;
    let broken = write(
        "groups/kiosk/own.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: s\nstringData:\n  pin: hunter2 : x\n",
    );
    let literal = write(
        "groups/till/kustomization.yaml",
        "resources: [../../base]\nsecretGenerator:\n- name: s\n  literals: [hunter2hunter2]\n",
    );
    let preview = world.propose(&[broken, literal]).await;
    let [kiosk, till] = &preview.problems.lines[..] else {
        panic!("{:?}", preview.problems);
    };
    assert!(
        kiosk.starts_with("groups/kiosk/own.yaml:6: kustomize: "),
        "{kiosk}"
    );
    assert!(till.starts_with("groups/till: kustomize: "), "{till}");
    assert!(!till.contains("hunter2"), "{till}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_shows_that_it_changes_and_not_to_what() {
    let secret = |value: &str| {
        write(
            "groups/kiosk/own.yaml",
            format!(
                "apiVersion: v1\nkind: Secret\nmetadata:\n  name: s\n  annotations:\n    \
                 kubectl.kubernetes.io/last-applied-configuration: '{value}'\n\
                 stringData:\n  pin: {value}-${{STORE}}\n"
            ),
        )
    };
    let mut files = groups(&["kiosk"]);
    files.extend([secret("hunter2"), device("k1", "kiosk", "STORE: one")]);
    let world = World::new(&files).await;
    for edits in [
        vec![secret("hunter3")],
        vec![device("k1", "kiosk", "STORE: hunter4")],
        vec![secret("hunter3"), device("k1", "kiosk", "STORE: hunter4")],
    ] {
        let preview = world.propose(&edits).await;
        assert_eq!(said(&preview.groups[0].changes), ["changed Secret s"]);
        let told = serde_json::to_string(&preview).unwrap() + &preview.report();
        assert!(!told.contains("hunter"), "{told}");
        assert!(told.contains("(redacted, "), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_from_facts_are_there_before_a_device_enrolls_and_gone_where_they_are_not_allowed() {
    let allowed = format!("{FLEET}spec:\n  labelsFromFacts: [arch]\n");
    let mut files = groups(&["kiosk"]);
    files.extend([
        write("fleet.yaml", allowed),
        map("groups/kiosk/own.yaml", "kiosk", "on ${LABEL_arch}"),
        file(1, "device-1", Some("kiosk")),
        file(2, "device-2", Some("kiosk")),
    ]);
    let world = World::new(&files).await;
    // One of them has said what it is.
    let mut db = world.store.write().await.unwrap();
    fleets::insert(&mut db, &samples::fleet("default", "shops"))
        .await
        .unwrap();
    tokens::insert(&mut db, &samples::token(&shops(), 1), Digest::of(b"secret"))
        .await
        .unwrap();
    devices::insert(&mut db, &active(&shops(), 1))
        .await
        .unwrap();
    db.commit().await.unwrap();

    let edit = map("groups/kiosk/own.yaml", "kiosk", "for ${LABEL_arch}");
    let preview = world.propose(&[edit]).await;
    assert_eq!(preview.problems.lines, [""; 0]);
    let [group] = &preview.groups[..] else {
        panic!("{:#?}", preview.groups);
    };
    assert_eq!(names(&group.devices), ["device-1", "device-2"]);

    let preview = world.propose(&[write("fleet.yaml", FLEET)]).await;
    let problems = &preview.problems.lines;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems.iter().all(|line| line.contains("`LABEL_arch`")),
        "{problems:?}"
    );
}
