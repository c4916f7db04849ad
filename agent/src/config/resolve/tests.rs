use clap::{CommandFactory as _, Parser as _};

use super::*;
use crate::{
    config::{Cli, Task},
    tls,
};

const PIN: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn task(args: &[&str]) -> Result<Task, ConfigError> {
    Cli::parse_from(["longshore-agent"].iter().chain(args)).resolve()
}

fn settings(args: &[&str]) -> Settings {
    match task(args).unwrap() {
        Task::Run(settings) => *settings,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains("Exit codes:"), "{help}");
}

#[test]
fn flags_stand_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(
        &file,
        format!(
            "server = 'https://a:1'\nca-fingerprint = '{PIN}'\ntoken = 'secret'\nname = 'file'\n"
        ),
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let all = settings(&["--config", file, "--name", "flag", "--state-dir", "/s"]);
    assert_eq!(all.name.unwrap().as_str(), "flag");
    assert_eq!(all.server.unwrap().as_str(), "https://a:1/");
    let RuntimeSettings::Directory(directory) = all.runtime else {
        panic!("{:?}", all.runtime)
    };
    assert_eq!(directory, Path::new("/s/manifests"));
    let both = settings(&["--config", file, "--token-file", "/t"]);
    assert!(matches!(both.token, Some(TokenSource::File(_))));
    let Task::Print(shown) = task(&["config", "--config", file]).unwrap() else {
        panic!()
    };
    assert!(
        !shown.contains("secret") && shown.contains("(redacted)"),
        "{shown}"
    );
    toml::from_str::<Given>(&shown).unwrap();
}

fn given(args: &[&str]) -> Given {
    Cli::parse_from(["longshore-agent"].iter().chain(args)).given
}

#[test]
fn a_proxy_is_the_settings_before_the_environments() {
    let environment = |name: &str| match name {
        "HTTPS_PROXY" => Some("http://e:secret@environment:1".to_owned()),
        "all_proxy" => Some("http://all:1".to_owned()),
        _ => None,
    };
    let shown = |args: &[&str]| given(args).proxies(environment).unwrap().shown();
    assert_eq!(shown(&[]).unwrap(), "http://(redacted)@environment:1");
    assert_eq!(shown(&["--proxy", "https://own"]).unwrap(), "https://own");
    assert_eq!(shown(&["--proxy", "none"]), None);
    assert_eq!(given(&[]).proxies(|_| None).unwrap().shown(), None);
    let useless = |name: &str| (name == "ALL_PROXY").then(|| "socks5://x:1".to_owned());
    let proxies = given(&[]).proxies(useless).unwrap();
    assert_eq!(proxies.shown(), None);
    let complaint = proxies.complaint().unwrap();
    assert!(
        complaint.contains("ALL_PROXY") && complaint.contains("socks5"),
        "{complaint}"
    );
    let Task::Print(shown) = task(&["config", "--proxy", "http://u:secret@p:1"]).unwrap() else {
        panic!()
    };
    assert!(!shown.contains("secret"), "{shown}");
    toml::from_str::<Given>(&shown).unwrap();
}

#[test]
fn a_bundle_may_hold_several_roots_and_must_hold_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.self_signed(&key).unwrap().pem()
    };
    let file = dir.path().join("roots.pem");
    let resolve = |text: &str| {
        std::fs::write(&file, text).unwrap();
        task(&["--ca", file.to_str().unwrap()])
    };
    let Task::Run(settings) = resolve(&format!("# ours\n{}\n{}", root("a"), root("b"))).unwrap()
    else {
        panic!()
    };
    let Some(Trust::Bundle(pem)) = settings.trust else {
        panic!()
    };
    assert_eq!(tls::count_roots(&pem).unwrap(), 2);
    let cut = root("a").replace("-----END", "-----");
    let noise = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cases = [
        ("", "holds no certificate"),
        ("not PEM", "holds no certificate"),
        (&cut, "roots.pem cannot be used"),
        (noise, "roots.pem cannot be used"),
    ];
    for (text, expected) in cases {
        let error = resolve(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_secret_may_keep_the_identity_whatever_the_runtime() {
    let args = ["--kubeconfig", "/k", "--identity-secret", "till-7.identity"];
    let kept = settings(&args).identity_secret.unwrap();
    assert_eq!(kept.name, "till-7.identity");
    assert_eq!(kept.cluster.kubeconfig.as_deref(), Some(Path::new("/k")));
    assert!(settings(&[]).identity_secret.is_none());
    for wrong in ["", "a/b", "../secrets", "A", "-a", "a?b", "a..b"] {
        let given = format!("--identity-secret={wrong}");
        let error = Cli::try_parse_from(["longshore-agent", &given]).unwrap_err();
        assert!(error.to_string().contains("no name of a Secret"), "{error}");
    }
}

#[test]
fn the_kube_runtime_has_settings_of_its_own() {
    let args = [
        "--runtime",
        "kube",
        "--state-dir",
        "/s",
        "--namespace",
        "shop",
    ];
    let RuntimeSettings::Kube(kube) = settings(&args).runtime else {
        panic!()
    };
    assert_eq!(kube.state, Path::new("/s"));
    assert_eq!(kube.namespace.as_deref(), Some("shop"));
    assert!(kube.kubeconfig.is_none() && kube.context.is_none());
    let Task::Print(shown) = task(&[&["config"], &args[..]].concat()).unwrap() else {
        panic!()
    };
    assert!(
        shown.contains("runtime = \"kube\"") && shown.contains("namespace = \"shop\""),
        "{shown}"
    );
}

#[test]
fn a_runtimes_settings_are_its_own() {
    let args = [
        "--runtime",
        "command",
        "--command",
        "oc apply -f -",
        "--state-dir",
        "/s",
    ];
    let all = [&args[..], &["--command-interval", "1h"]].concat();
    let RuntimeSettings::Command(command) = settings(&all).runtime else {
        panic!()
    };
    assert_eq!(command.line, ["oc", "apply", "-f", "-"]);
    assert_eq!(
        (
            command.timeout.as_secs(),
            command.interval.unwrap().as_secs()
        ),
        (300, 3600)
    );
    assert_eq!(command.folder, Path::new("/s/command"));
    let Task::Print(shown) = task(&[&["config"], &all[..]].concat()).unwrap() else {
        panic!()
    };
    let read: Given = toml::from_str(&shown).unwrap();
    assert_eq!(read.command.unwrap().words, command.line);
    let RuntimeSettings::MicroShift(path) =
        settings(&["--layout", "microshift", "--directory", "/m/longshore"]).runtime
    else {
        panic!()
    };
    assert_eq!(path, Path::new("/m/longshore"));
    let RuntimeSettings::Podman(podman) = settings(&["--runtime", "podman"]).runtime else {
        panic!()
    };
    assert_eq!(podman.program, Path::new("podman"));
    let error = task(&["--runtime", "command"]).unwrap_err().to_string();
    assert!(error.contains("needs --command"), "{error}");
}

#[test]
fn wrong_settings_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "sever = 'x'").unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["--proxy", "socks4://p"], "only http:// and https://"),
        (&["--update-window", "at night"], "is no update window"),
        (&["--progress-deadline", "soon"], "`soon` is no time"),
        (&["--server", "http://a"], "--server must be https"),
        (&["--token", "a", "--token-file", "b"], "not both"),
        (&["--log", "a=b=c"], "is no filter"),
        (
            &["--config", file.to_str().unwrap()],
            "unknown field `sever`",
        ),
    ];
    for (args, expected) in cases {
        let error = task(args).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_is_of_no_use_gives_way_to_the_one_that_connected_last() {
    let dir = tempfile::tempdir().unwrap();
    let (file, state) = (dir.path().join("agent.toml"), dir.path().join("state"));
    std::fs::create_dir(&state).unwrap();
    let args = [
        "--config",
        file.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
    ];
    let last_good = LastGood::open(&state).unwrap();
    let standing = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let settings = settings(&args);
        (settings.name.unwrap().to_string(), settings.origin)
    };
    // Nothing to come back to: what is wrong is wrong, and what is new holds.
    std::fs::write(&file, "name =").unwrap();
    assert!(matches!(task(&args), Err(ConfigError::Toml { .. })));
    let (name, origin) = standing("name = 'one'\ntoken = 'lst_a'");
    let Standing::Holds(essence) = origin.standing else {
        panic!("{:?}", origin.standing)
    };
    assert_eq!((name.as_str(), essence.contains("lst_a")), ("one", false));
    last_good.keep(&essence).unwrap();

    for wrong in [
        "name =",
        "nane = 'two'",
        "name = 'two'\nruntime = 'command'",
        "progress-deadline = 'x'",
    ] {
        let (name, origin) = standing(wrong);
        assert_eq!(name, "one", "{wrong}");
        assert!(
            matches!(origin.standing, Standing::Refused(Refused::Invalid(_))),
            "{origin:?}"
        );
        assert!(!origin.has_changed());
        // Whoever asks for the settings hears what is wrong with them.
        task(&[&["config"], &args[..]].concat()).unwrap_err();
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(settings(&args).name.unwrap().as_str(), "one");

    let (name, origin) = standing("name = 'two'\nconnect-deadline = '3m'");
    assert_eq!(name, "two");
    let Standing::OnTrial(_, Some(deadline)) = origin.standing else {
        panic!("{origin:?}")
    };
    assert_eq!(deadline, Duration::from_mins(3));
    last_good.refuse(origin.digest.unwrap()).unwrap();
    let (name, origin) = standing("name = 'two'\nconnect-deadline = '3m'");
    assert_eq!(name, "one");
    assert!(matches!(
        origin.standing,
        Standing::Refused(Refused::NoConnection { .. })
    ));
    std::fs::write(&file, "name = 'three'").unwrap();
    assert!(origin.has_changed());
    assert_eq!(settings(&args).name.unwrap().as_str(), "three");
    // A flag stands over both.
    std::fs::write(&file, "name =").unwrap();
    assert_eq!(
        settings(&[&args[..], &["--name", "flag"]].concat())
            .name
            .unwrap()
            .as_str(),
        "flag"
    );
}
