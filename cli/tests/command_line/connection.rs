//! Which controller, as whom, trusted how; and how each failure ends.

use longshore_protocol::api::Status;
use serde_json::json;

use crate::{
    controller::{Controller, TOKEN, answer},
    harness::{Outcome, Place},
};

fn controller() -> Controller {
    let status = Status {
        version: "0.1.0".into(),
        renderer: "kustomize v5.8.1".into(),
        store: "sqlite".into(),
        fleets: Vec::new(),
    };
    Controller::start([
        answer("GET status", 200, &status),
        answer("GET /api/v1/tenants/acme/status", 200, &status),
        answer(
            "GET fleets",
            500,
            &json!({"title": "Internal", "status": 500, "detail": "disk full"}),
        ),
        answer(
            "GET /api/v1/tenants",
            200,
            &json!(["not what was promised"]),
        ),
    ])
}

#[test]
fn a_local_controllers_data_directory_is_enough() {
    let controller = controller();
    controller.run("status").code(0).prints("kustomize v5.8.1");
    // Beside the directory `longshore-data`, not even that has to be named.
    let data = controller.place.path().join("longshore-data");
    std::fs::rename(controller.data(), data).unwrap();
    controller.place.run("status").code(0).prints("sqlite");
}

#[test]
fn the_config_file_names_another() {
    let controller = controller();
    let ca = controller.data().join("ca.pem");
    let config = format!(
        "server = 'https://{}'\ntoken = '{TOKEN}'\nca = '{}'\ntenant = 'acme'\n",
        controller.address,
        ca.display()
    );
    controller
        .place
        .write("home/.config/longshore/config.toml", &config);
    controller.place.run("status").code(0).prints("acme");
    controller
        .place
        .write("xdg/longshore/config.toml", config.replace("acme", "other"));
    let mut command = controller.place.command(["status", "--tenant", "acme"]);
    command.env("XDG_CONFIG_HOME", controller.place.path().join("xdg"));
    Outcome::of(&mut command).code(0).prints("acme");
}

#[test]
fn arguments_and_environment() {
    let controller = controller();
    let mut command = controller.place.command(["status", "--ca", "data/ca.pem"]);
    command
        .env(
            "LONGSHORE_SERVER",
            format!("https://{}/", controller.address),
        )
        .env("LONGSHORE_TOKEN", TOKEN);
    Outcome::of(&mut command).code(0);
    command.arg("--server").arg("https://127.0.0.1:1");
    Outcome::of(&mut command)
        .code(4)
        .says("https://127.0.0.1:1/ cannot be reached");
}

#[test]
fn verbose_says_where_settings_come_from_and_never_the_token() {
    let controller = controller();
    controller
        .run("status --verbose")
        .code(0)
        .says("token from the data directory")
        .says("/api/v1/tenants/default/status -> 200 OK")
        .hides(TOKEN);
    let address = format!("https://{}", controller.address);
    let words = [
        "status",
        "-v",
        "--server",
        &address,
        "--token",
        "hunter2",
        "--ca",
        "data/ca.pem",
    ];
    controller
        .run_words(&words)
        .code(3)
        .says("-> 401 Unauthorized")
        .hides("hunter2");
    controller
        .run_words(&["status", "-v", "--token", "hunter2\u{7f}\n"])
        .code(2)
        .hides("hunter2");
}

#[test]
fn an_untrusted_certificate_ends_before_the_token_is_sent() {
    let controller = controller();
    let other = Controller::start([]);
    controller.place.write("other.pem", other.ca());
    let system = format!(
        "status --server https://{} --token {TOKEN}",
        controller.address
    );
    controller.place.run(&system).code(4).says("--ca FILE");
    controller
        .place
        .run(&format!("{system} --ca other.pem"))
        .code(4)
        .says("certificate");
    assert_eq!(controller.heard(), []);
}

#[test]
fn a_token_of_the_data_directory_stays_with_its_server() {
    let controller = controller();
    let other = Controller::start([]);
    let elsewhere = format!("status --server https://{}", other.address);
    controller
        .run(&elsewhere)
        .code(2)
        .says("there is no API token for");
    assert_eq!(other.heard(), []);
}

#[test]
fn plain_text_over_a_network_is_refused() {
    let place = Place::new();
    place
        .run("status --server http://longshore.example --token hunter2")
        .code(2)
        .says("in plain text")
        .hides("hunter2");
}

#[test]
fn exit_codes() {
    let controller = controller();
    controller
        .run("status --tenant nobody")
        .code(3)
        .says("refused (404)")
        .says("hint: ");
    controller
        .run("fleets list")
        .code(5)
        .says("the controller failed (500): disk full");
    controller
        .run("tenants list")
        .code(5)
        .says("not what this version understands");
    controller
        .place
        .run("status")
        .code(2)
        .says("no controller is named")
        .says("longshore-controller");
    controller
        .place
        .run("status --tenant Bad_Name")
        .code(2)
        .says("tenant name");
    controller.place.write("empty.pem", "");
    controller
        .run("status --ca empty.pem")
        .code(2)
        .says("no certificate");
}

#[test]
fn nobody_listens() {
    let place = Place::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    place
        .run(&format!(
            "status --server https://127.0.0.1:{port} --token t"
        ))
        .code(4)
        .says("cannot be reached")
        .says("look whether the controller runs");
}
