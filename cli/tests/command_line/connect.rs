//! Connecting a fleet to its Git host.

use longshore_protocol::api::connection::{
    ConnectedCredential, ConnectedForge, ConnectedGit, Connection, ForgeKind,
};
use serde_json::{Value, json};

use crate::controller::{Controller, answer};

/// A controller that shows what was connected.
fn controller(connected: &Connection) -> Controller {
    let controller = Controller::start([
        answer("PUT fleets/shops/connection", 200, connected),
        answer("GET fleets/shops/connection", 200, connected),
        answer("DELETE fleets/shops/connection", 204, &Value::Null),
    ]);
    controller.place.write("token", "ghp_hush\n");
    controller
        .place
        .write("app.pem", "-----BEGIN RSA PRIVATE KEY-----\n");
    controller
        .place
        .write("key", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
    controller
        .place
        .write("hosts", "# git.example\ngit.example ssh-ed25519 AAAA\n");
    controller.place.write("empty", "\n");
    controller
}

fn forge(credential: ConnectedCredential, git: Option<ConnectedGit>) -> Connection {
    Connection {
        forge: Some(ConnectedForge {
            kind: ForgeKind::GitHub,
            url: "https://api.github.com/".to_owned(),
            repository: "acme/shops".to_owned(),
            credential,
        }),
        git,
    }
}

#[test]
fn a_forge_is_connected_with_a_token_from_a_file() {
    let controller = controller(&forge(ConnectedCredential::Token, None));
    controller
        .run(
            "fleets connect shops github --access-token-file token --repository acme/shops --force",
        )
        .code(0)
        .prints("Forge:        GitHub")
        .prints("Git:          with the forge's credential")
        .says("from now on")
        .hides("ghp_hush");
    let expected = json!({
        "forge": {"kind": "github", "repository": "acme/shops", "credential": {"token": "ghp_hush"}},
        "force": true,
    });
    assert_eq!(controller.last_change().body, expected);
    controller
        .run("fleets connect shops gitlab --access-token-file token --url https://git.example/api/v4")
        .code(0);
    let expected = json!({
        "forge": {
            "kind": "gitlab",
            "url": "https://git.example/api/v4",
            "credential": {"token": "ghp_hush"},
        },
        "force": false,
    });
    assert_eq!(controller.last_change().body, expected);
}

#[test]
fn an_app_is_connected_with_its_key_and_git_with_another() {
    let app = ConnectedCredential::App {
        id: 17,
        installation: Some(4),
    };
    let ssh = ConnectedGit::Ssh {
        known_hosts: "# git.example\ngit.example ssh-ed25519 AAAA\n".to_owned(),
    };
    let controller = controller(&forge(app, Some(ssh)));
    let app = "fleets connect shops github --app-id 17 --installation 4 --app-key-file app.pem";
    controller
        .run(&format!(
            "{app} --ssh-key-file key --known-hosts-file hosts"
        ))
        .code(0)
        .prints("Credential:   App 17, installation 4")
        .prints("Git:          SSH key, 1 pinned host key")
        .hides("PRIVATE KEY");
    let body = controller.last_change().body;
    let expected = json!({
        "app": {"id": 17, "installation": 4, "privateKey": "-----BEGIN RSA PRIVATE KEY-----"},
    });
    assert_eq!(body["forge"]["credential"], expected);
    let expected = json!({
        "ssh": {
            "privateKey": "-----BEGIN OPENSSH PRIVATE KEY-----\n",
            "knownHosts": "# git.example\ngit.example ssh-ed25519 AAAA\n",
        },
    });
    assert_eq!(body["git"], expected);
}

#[test]
fn git_alone_is_connected() {
    let password = ConnectedGit::Password {
        username: "deploy".to_owned(),
    };
    let controller = controller(&Connection {
        forge: None,
        git: Some(password),
    });
    controller
        .run("fleets connect shops git --username deploy --password-file token")
        .code(0)
        .prints("Git:   password of deploy");
    let expected = json!({
        "git": {"password": {"username": "deploy", "password": "ghp_hush"}},
        "force": false,
    });
    assert_eq!(controller.last_change().body, expected);
    controller
        .run("fleets connection shops")
        .code(0)
        .prints("password of deploy");
    controller.run("fleets disconnect shops --yes").code(0);
    let asked = controller.last_change().asked;
    assert_eq!(
        asked,
        "DELETE /api/v1/tenants/default/fleets/shops/connection"
    );
}

#[test]
fn what_is_missing_or_does_not_go_together_is_said() {
    let controller = controller(&forge(ConnectedCredential::Token, None));
    for (line, expected) in [
        ("github", "--access-token-file"),
        ("github --app-id 17", "--app-key-file"),
        (
            "github --access-token-file token --app-id 17 --app-key-file app.pem",
            "cannot be used with",
        ),
        (
            "github --access-token-file token --ssh-key-file key",
            "--known-hosts-file",
        ),
        ("git --username deploy", "--password-file"),
        ("git", "--username"),
        (
            "gitea --access-token-file nowhere",
            "nowhere cannot be read",
        ),
        ("gitea --access-token-file empty", "empty is empty"),
    ] {
        controller
            .run(&format!("fleets connect shops {line}"))
            .code(2)
            .says(expected);
    }
    assert_eq!(controller.heard(), []);
}
