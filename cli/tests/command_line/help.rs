//! What the program says of itself. The snapshots are the interface: a change of one is a change of it.

use insta::assert_snapshot;

use crate::harness::Place;

#[track_caller]
fn help(line: &str) -> String {
    Place::new().run(line).code(0).stdout
}

/// The global options are the same everywhere, and stand in the snapshot of `longshore --help`.
fn without_global_options(help: &str) -> String {
    let (own, rest) = help.split_once("\nGlobal options:\n").unwrap();
    let after = rest
        .lines()
        .skip_while(|line| line.is_empty() || line.starts_with(' '));
    [own]
        .into_iter()
        .chain(after)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn of_everything() {
    assert_snapshot!("longshore", help("--help"));
}

#[test]
fn of_each_command() {
    for line in [
        "init",
        "render",
        "diff",
        "preview",
        "fleets",
        "fleets add",
        "fleets connect",
        "fleets connect github",
        "fleets connect git",
        "fleets confirm-removals",
        "tokens create",
        "devices",
        "devices approve",
        "devices decommission",
        "logs",
        "revisions",
        "tenants create",
        "completions",
    ] {
        let help = help(&format!("{line} --help"));
        assert_snapshot!(line.replace(' ', "-"), without_global_options(&help));
    }
}

#[test]
fn nothing_to_do_is_a_wrong_use() {
    Place::new().run("").code(2).says("Usage: longshore");
    Place::new()
        .run("devices")
        .code(2)
        .says("Usage: longshore devices");
    Place::new()
        .run("launch")
        .code(2)
        .says("unrecognized subcommand");
}

#[test]
fn help_shows_no_token_of_the_environment() {
    let place = Place::new();
    for help in ["-h", "--help"] {
        let mut command = place.command([help]);
        command.env("LONGSHORE_TOKEN", "hunter2");
        crate::harness::Outcome::of(&mut command)
            .code(0)
            .hides("hunter2");
    }
}

#[test]
fn completions_of_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        Place::new()
            .run(&format!("completions {shell}"))
            .code(0)
            .prints("confirm-removals");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let place = Place::new();
    let mut command = place.command(["completions", "bash"]);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
