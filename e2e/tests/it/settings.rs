//! Starting with nothing, with little, and with nonsense.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{ControllerOptions, Process, World, WorldOptions, eventually, programs, repo};
use longshore_protocol::{Digest, api::Approval};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

fn controller(directory: &Path) -> Result<Command> {
    let mut command = Command::new(programs::find("longshore-controller")?);
    repo::isolate(&mut command);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LONGSHORE_") {
            command.env_remove(name);
        }
    }
    command.current_dir(directory);
    Ok(command)
}

fn mode(path: &Path) -> Result<u32> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.permissions().mode() & 0o777)
}

/// Ports are the only thing that a test has to set.
#[tokio::test]
async fn no_settings_make_a_working_controller() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut command = controller(directory.path())?;
    command
        .env("LONGSHORE_PUBLIC_LISTEN", "127.0.0.1:0")
        .env("LONGSHORE_EDGE_LISTEN", "127.0.0.1:0");
    let log = directory.path().join("log");
    let mut process = Process::start("longshore-controller", &mut command, &log)?;
    let data = directory.path().join("longshore-data");
    eventually("a ready controller", async || {
        process.check()?;
        ensure!(data.join("address").exists() && data.join("edge-address").exists());
        Ok(())
    })
    .await?;
    ensure!(mode(&data)? == 0o700, "{:o}", mode(&data)?);
    for secret in [
        "admin-token",
        "secret.key",
        "ca/intermediate-key.pem",
        "ca/root-key.pem",
    ] {
        ensure!(
            mode(&data.join(secret))? == 0o600,
            "{secret}: {:o}",
            mode(&data.join(secret))?
        );
    }
    // `longshore` finds it in the working directory, without a word about where.
    let output = Command::new(programs::find("longshore")?)
        .args(["status", "--output", "json"])
        .current_dir(directory.path())
        .env("XDG_CONFIG_HOME", directory.path())
        .env_remove("LONGSHORE_DATA_DIR")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("\"sqlite\""),
        "{output:?}"
    );

    let status = process.stop().await?;
    ensure!(status.success(), "{status}");
    // Nobody reads this log at a terminal, so each line is JSON, and no line has a secret.
    let token = fs::read_to_string(data.join("admin-token"))?;
    let lines = process.log();
    ensure!(
        lines.lines().count() >= 2 && !lines.contains(token.trim()),
        "{lines}"
    );
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).with_context(|| line.to_owned())?;
    }
    Ok(())
}

fn run(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Output> {
    let mut command = controller(directory)?;
    command.args(arguments).envs(environment.iter().copied());
    command.output().context("start the controller")
}

#[test]
fn flags_win_over_the_environment_over_the_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let here = directory.path();
    fs::write(
        here.join("controller.toml"),
        "poll-interval = \"11s\"\nheartbeat = \"12s\"\ntrust-domain = \"fleet.example\"\n",
    )?;
    let output = run(
        here,
        &[
            "config",
            "--config",
            "controller.toml",
            "--poll-interval",
            "31s",
        ],
        &[
            ("LONGSHORE_POLL_INTERVAL", "21s"),
            ("LONGSHORE_HEARTBEAT", "22s"),
            (
                "LONGSHORE_DATABASE_URL",
                "postgres://longshore:hunter2@localhost/longshore",
            ),
        ],
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{output:?}");
    for part in ["31s", "22s", "fleet.example", "8443", "8444"] {
        ensure!(text.contains(part), "no {part} in:\n{text}");
    }
    ensure!(!text.contains("hunter2"), "a secret is shown:\n{text}");
    ensure!(
        !here.join("longshore-data").exists(),
        "printing settings makes nothing"
    );
    Ok(())
}

#[test]
fn nonsense_settings_are_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let here = directory.path();
    fs::write(here.join("unknown.toml"), "poll-intervall = \"11s\"\n")?;
    for (arguments, words) in [
        (&["--poll-interval", "soon"][..], "soon"),
        (&["--public-listen", "nowhere"], "nowhere"),
        (&["--config", "missing.toml"], "missing.toml"),
        (&["--config", "unknown.toml"], "poll-intervall"),
        (&["--plain-http", "--public-listen", "0.0.0.0:0"], "plain"),
        (&["--colour", "blue"], "--colour"),
    ] {
        let output = run(here, arguments, &[])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{arguments:?}: {output:?}");
        ensure!(
            errors.contains(words),
            "{arguments:?}: no `{words}` in:\n{errors}"
        );
    }
    Ok(())
}

/// What is not there is said at the start, not at the first push.
#[test]
fn a_controller_without_kustomize_does_not_start() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let empty = directory.path().join("bin");
    fs::create_dir(&empty)?;
    let path = empty.to_string_lossy().into_owned();
    let listen = [
        "--public-listen",
        "127.0.0.1:0",
        "--edge-listen",
        "127.0.0.1:0",
    ];
    let output = run(directory.path(), &listen, &[("PATH", &path)])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(errors.contains("kustomize"), "{errors}");
    Ok(())
}

/// Two controllers must not share a data directory and an address.
#[tokio::test]
async fn a_taken_address_is_told() -> Result<()> {
    let world = World::start().await?;
    let directory = tempfile::tempdir()?;
    let taken = world.controller.public()?.to_string();
    let output = run(
        directory.path(),
        &["--public-listen", &taken, "--edge-listen", "127.0.0.1:0"],
        &[],
    )?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains(&taken),
        "{output:?}"
    );
    Ok(())
}

/// An operator's own certificates, of an authority that the controller does not know, serve both listeners.
#[tokio::test]
async fn supplied_certificates_serve_both_listeners() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(DnType::CommonName, "An operator's authority");
    let root = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);
    let mut arguments = Vec::new();
    for listener in ["public", "edge"] {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(["127.0.0.1".to_owned()])?;
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = leaf.signed_by(&key, &issuer)?;
        let file = |kind: &str| directory.path().join(format!("{listener}-{kind}.pem"));
        fs::write(file("cert"), leaf.pem() + &root.pem())?;
        fs::write(file("key"), key.serialize_pem())?;
        for kind in ["cert", "key"] {
            arguments.push(format!("--{listener}-{kind}").into());
            arguments.push(file(kind).into());
        }
    }
    let controller = ControllerOptions {
        arguments,
        ..ControllerOptions::default()
    };
    let options = WorldOptions {
        controller,
        ..WorldOptions::default()
    };
    // The command line, the enrolling agent and the connected one all have to trust what they meet.
    let world = World::with(options).await?;
    let token = world.api.create_token(Approval::Automatic).await?;
    ensure!(
        token.ca_fingerprint == Digest::of(root.der()),
        "{}",
        token.ca_fingerprint
    );
    world.enrolled_with("store-0001", &token).await?;
    Ok(())
}
