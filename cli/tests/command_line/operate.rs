//! Operating fleets, tokens and devices of a controller.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use insta::assert_snapshot;
use longshore_protocol::{
    Digest,
    api::{Fleet, List},
};
use serde_json::{Value, json};

use crate::{
    controller::{Controller, answer},
    fixtures::{REVISION, controller, fleet, list, token},
};

/// The rows of a table, each as its words.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect()
}

/// What people see, once each.
#[test]
fn tables() {
    let controller = controller();
    for line in [
        "fleets list",
        "fleets show shops",
        "tokens list",
        "devices list",
        "devices show store-0002",
        "revisions",
        "tenants list",
    ] {
        assert_snapshot!(line.replace(' ', "-"), controller.run(line).code(0).stdout);
    }
}

#[test]
fn fleets() {
    let controller = controller();
    let listed = controller.run("fleets list").code(0);
    assert_eq!(
        rows(&listed.stdout)[0][..3],
        ["NAME", "REVISION", "DEVICES"]
    );
    assert_eq!(rows(&listed.stdout)[1][..3], ["shops", "76ae82c7b1a1", "3"]);
    assert!(
        rows(&listed.stdout)[1].contains(&"Problems"),
        "why it is not ready"
    );
    controller
        .run("fleets show shops")
        .code(0)
        .prints("store-0003/device.yaml:7: unknown field `spec.oops`\\u{1b}[2J")
        .prints(&format!(
            "longshore fleets confirm-removals shops --revision {REVISION}"
        ));
    controller
        .run("fleets sync shops")
        .code(0)
        .says("looks at the repo");
    controller
        .run(&format!(
            "fleets confirm-removals shops --revision {REVISION}"
        ))
        .code(0);
    assert_eq!(controller.last_change().body, json!({"revision": REVISION}));
}

#[test]
fn a_hosted_fleet_needs_no_repo_and_tells_how_to_fill_it() {
    let controller = controller();
    controller
        .run("fleets add shops --hosted --branch live")
        .code(0)
        .says("git remote add origin")
        .says("the API token, with any user name");
    assert_eq!(
        controller.last_change().body,
        json!({"name": "shops", "repo": "", "hosted": true, "branch": "live", "path": ""})
    );
    controller.run("fleets add shops").code(2).says("--repo");
    controller
        .run("fleets add shops --hosted --repo /srv/shops.git")
        .code(2)
        .says("cannot be used with");
}

#[test]
fn adding_a_fleet_prints_the_webhook_once() {
    let controller = controller();
    controller
        .run("fleets add shops --repo https://git.example/acme/shops.git --path edge")
        .code(0)
        .prints(&format!(
            "https://{}/webhooks/default/shops",
            controller.address
        ))
        .prints("whs-a-secret");
    assert_eq!(
        controller.last_change().body,
        json!({"name": "shops", "repo": "https://git.example/acme/shops.git", "hosted": false, "branch": "main", "path": "edge"})
    );
    controller.run("fleets add shops --repo shops.git").code(0);
    let repo = controller
        .place
        .path()
        .canonicalize()
        .unwrap()
        .join("shops.git");
    assert_eq!(controller.last_change().body["repo"], json!(repo));
    controller
        .run("fleets add shops --repo git@git.example:a.git")
        .code(2)
        .says("ssh://git@git.example/a.git");
}

#[test]
fn a_new_webhook_secret_is_printed_once() {
    let controller = controller();
    let url = format!("https://{}/webhooks/default/shops", controller.address);
    controller
        .run("fleets rotate-webhook-secret shops")
        .code(0)
        .prints(&url)
        .prints("whs-the-next")
        .says("give it to the Git host");
    assert_eq!(
        controller.last_change().body,
        json!({"overlapSeconds": 86_400})
    );
    controller
        .run("fleets rotate-webhook-secret shops --overlap 90m")
        .code(0);
    assert_eq!(
        controller.last_change().body,
        json!({"overlapSeconds": 5400})
    );
    controller
        .run("fleets rotate-webhook-secret shops --overlap soon")
        .code(2);
}

#[test]
fn a_token_prints_the_whole_command() {
    let controller = controller();
    let fingerprint = Digest::of(b"root");
    let belongs = format!(
        "--server https://longshore.example:8443 --ca-fingerprint {fingerprint} --name store-0001"
    );
    let command = format!(
        "printf %s lsp-a-secret | sudo sh install.sh --platform generic {belongs} --token-file -"
    );
    let words = "tokens create --auto --max-uses 50 --expires 7d --overlay groups/kiosk \
                 --set-label site=madrid --set-label hw=rpi4 --label rollout --device store-0001";
    let created = controller.run(words).code(0).says("shown this once");
    assert_eq!(created.stdout, format!("{command}\n"));
    assert_eq!(
        controller.last_change().body,
        json!({"label": "rollout", "approval": "automatic", "maxUses": 50, "expiresIn": 604_800,
               "overlay": "groups/kiosk", "labels": {"site": "madrid", "hw": "rpi4"}})
    );
    created.says(&format!(
        ": longshore-agent {belongs} --token-file /dev/stdin --runtime directory\n"
    ));
    let created = controller.run("tokens create -o json").code(0).json();
    assert_eq!(created["secret"], "lsp-a-secret");
    assert_eq!(created["token"]["approval"], "manual");
    assert!(
        created["command"]
            .as_str()
            .unwrap()
            .contains(" --name '<device name>' ")
    );
    let body = controller.last_change().body;
    assert_eq!(
        (&body["approval"], &body["maxUses"]),
        (&json!("manual"), &Value::Null)
    );
}

#[test]
fn a_token_s_commands_suit_the_platform() {
    let controller = controller();
    for (platform, settings) in [
        ("generic", "--runtime directory"),
        ("podman", "--runtime podman"),
        ("microshift", "--runtime kube"),
        ("k3s", "--runtime kube"),
        (
            "microshift-manifests",
            "--runtime directory --layout microshift --directory /etc/microshift/manifests.d/longshore",
        ),
    ] {
        let words = format!("tokens create -o json --platform {platform}");
        let created = controller.run(&words).code(0).json();
        let word = |name: &str| created[name].as_str().unwrap().to_owned();
        let install = format!("| sudo sh install.sh --platform {platform} --server ");
        assert!(word("command").contains(&install), "{created}");
        let by_hand = word("byHand");
        let end = format!(" --token-file /dev/stdin {settings}");
        assert!(by_hand.ends_with(&end), "{created}");
        assert!(!by_hand.contains("lsp-a-secret"), "{created}");
    }
}

#[test]
fn tokens_are_listed_without_secrets_and_revoked() {
    let controller = controller();
    let listed = controller
        .run("tokens list")
        .code(0)
        .prints("3/50")
        .prints("revoked")
        .prints("valid");
    assert!(!listed.stdout.contains("lsp-"));
    controller
        .run(&format!("tokens revoke {}", token().id))
        .code(0)
        .says("enrolls no more devices");
    for (words, problem) in [
        ("tokens create --auto --manual", "cannot be used with"),
        ("tokens create --expires soon", "such as `90m`"),
        ("tokens create --set-label site", "KEY=VALUE"),
        ("tokens create --max-uses 0", "0 is not in 1.."),
        ("tokens revoke tok_1", "token id"),
    ] {
        controller.run(words).code(2).says(problem);
    }
}

#[test]
fn devices() {
    let controller = controller();
    let listed = controller.run("devices list").code(0);
    assert_eq!(
        rows(&listed.stdout)[1][..5],
        ["store-0001", "active", "yes", "Behind", "3/4"]
    );
    let pending = controller
        .run("devices list --state pending -o json")
        .code(0)
        .json();
    assert_eq!(pending["items"].as_array().unwrap().len(), 1);
    assert_eq!(pending["items"][0]["name"], "store-0002");
    let shown = controller.run("devices show store-0002").code(0);
    let shown = shown
        .prints(&Digest::of(b"key").to_string())
        .prints("longshore/enroll/store-0002");
    let forged = shown
        .stdout
        .lines()
        .filter(|line| line.starts_with("Name:"))
        .count();
    assert_eq!(forged, 1, "a fact cannot forge a line:\n{}", shown.stdout);
    let shown = shown.hides("\u{1b}");
    assert!(
        shown
            .stdout
            .contains("model\\u{1b}[2J: rpi4\\nName: forged"),
        "{}",
        shown.stdout
    );
    controller
        .run("devices show store-0002 -o yaml")
        .code(0)
        .prints("publicKey: ");
    controller
        .run("devices approve store-0002")
        .code(0)
        .prints("active");
    controller
        .run("devices show store-0404")
        .code(3)
        .says("refused (404)");
    controller
        .run("devices show Store")
        .code(2)
        .says("device name `Store` must be");
}

#[test]
fn what_cannot_be_undone_is_asked_for() {
    let controller = controller();
    for words in [
        "devices reject store-0002",
        "devices decommission store-0001",
        "fleets remove shops",
    ] {
        controller
            .run(words)
            .code(2)
            .says("There is no terminal to ask at")
            .says("`--yes`");
        let changes = controller.heard();
        assert!(
            changes.iter().all(|heard| heard.asked.starts_with("GET")),
            "{changes:?}"
        );
    }
    controller
        .run("devices reject store-0002 --yes")
        .code(0)
        .prints("rejected");
    controller
        .run("devices decommission store-0001 -y")
        .code(0)
        .prints("decommissioned");
    controller
        .run("fleets remove shops --yes")
        .code(0)
        .says("removed the fleet `shops`");
    assert_eq!(
        controller.last_change().asked,
        "DELETE /api/v1/tenants/default/fleets/shops"
    );
}

/// On a terminal (made by script(1)), the answer decides.
#[test]
fn a_terminal_is_asked() {
    let controller = controller();
    for (answer, code, end) in [
        ("n\n", 1, "nothing was changed"),
        ("y\n", 0, "decommissioned"),
    ] {
        let mut script = Command::new("script")
            .args([
                "-qec",
                &format!(
                    "{} devices decommission store-0001",
                    env!("CARGO_BIN_EXE_longshore")
                ),
            ])
            .arg("/dev/null")
            .env("LONGSHORE_DATA_DIR", controller.data())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = script.stdin.take().unwrap();
        stdin.write_all(answer.as_bytes()).unwrap();
        // Kept open until the end: script(1) would hand the end of its input on.
        let output = script.wait_with_output().unwrap();
        drop(stdin);
        let shown = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{shown}");
        assert!(
            shown.contains("Decommission the device `store-0001`?"),
            "{shown}"
        );
        assert!(shown.contains(end), "{shown}");
        let decided = controller
            .heard()
            .iter()
            .any(|heard| heard.asked.starts_with("POST"));
        assert_eq!(decided, code == 0);
    }
}

#[test]
fn the_first_refusal_ends_a_list_of_decisions() {
    let controller = controller();
    controller
        .run("devices approve store-0002 store-0404 store-0002")
        .code(3)
        .says("store-0002 is active")
        .says("`store-0404` and the devices after it are as they were");
}

#[test]
fn the_only_fleet_need_not_be_named() {
    let controller = controller();
    controller
        .run("revisions")
        .code(0)
        .prints("Raise the till's limit");
    assert_eq!(
        controller.run("revisions --limit 0 -o json").code(0).json(),
        json!({"items": []})
    );
    controller.run("revisions --fleet other").code(3);

    let several = Controller::start([answer(
        "GET fleets",
        200,
        &list([fleet("shops"), fleet("ships")]),
    )]);
    several
        .run("devices list")
        .code(2)
        .says("has 2 fleets")
        .says("`--fleet`: shops, ships");
    let none = Controller::start([answer(
        "GET fleets",
        200,
        &List::<Fleet> { items: Vec::new() },
    )]);
    none.run("devices list")
        .code(2)
        .says("longshore fleets add");
}

#[test]
fn tenants() {
    let controller = controller();
    controller.run("tenants list").code(0).prints("default");
    controller
        .run("tenants create acme")
        .code(0)
        .prints("lsa-of-acme")
        .says("shown this once");
    assert_eq!(controller.last_change().body, json!({"name": "acme"}));
    controller
        .run("tenants create Acme")
        .code(2)
        .says("tenant name");
}
