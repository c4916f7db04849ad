use super::*;

fn settings(arguments: &[&str]) -> Settings {
    let program = std::iter::once("longshore-controller");
    CommandLine::try_parse_from(program.chain(arguments.iter().copied()))
        .unwrap()
        .settings
}

#[test]
fn no_settings_at_all_work() {
    let config = Config::resolve(Settings::default(), None).unwrap();
    assert_eq!(config.data_dir, Path::new("longshore-data"));
    assert_eq!(config.public_listen.port(), 8443);
}

#[test]
fn a_flag_wins_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("longshore.toml");
    fs::write(&file, "heartbeat = \"10s\"\npoll-interval = \"5m\"\n").unwrap();
    let config = Config::resolve(settings(&["--heartbeat", "7s"]), Some(&file)).unwrap();
    assert_eq!(config.heartbeat, Duration::from_secs(7));
    assert_eq!(config.poll_interval, Duration::from_mins(5));
    fs::write(&file, "hartbeat = \"10s\"\n").unwrap();
    let error = Config::resolve(Settings::default(), Some(&file))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("longshore.toml:1: ") && error.contains("hartbeat"),
        "{error}"
    );
    for text in [
        "secret-key = \"hush\"hush\"\n",
        "database-url = [\"hush\"]\n",
    ] {
        fs::write(&file, format!("\n{text}")).unwrap();
        let error = Config::resolve(Settings::default(), Some(&file)).unwrap_err();
        let said = crate::error::chain(&error);
        assert!(said.contains("longshore.toml:2: "), "{said}");
        assert!(!said.contains("hush"), "{said}");
    }
}

#[test]
fn contradictions_are_refused() {
    let plain = Config::resolve(settings(&["--plain-http"]), None).unwrap_err();
    assert!(plain.to_string().contains("loopback"));
    assert!(
        Config::resolve(
            settings(&["--plain-http", "--public-listen", "127.0.0.1:0"]),
            None
        )
        .is_ok()
    );
    let half = Config::resolve(settings(&["--ca-key", "x"]), None).unwrap_err();
    assert!(half.to_string().contains("go together"));
}

#[test]
fn one_address_needs_two_names() {
    let one = |rest: &[&str]| {
        let both = [
            "--public-listen",
            "0.0.0.0:443",
            "--edge-listen",
            "0.0.0.0:443",
        ];
        Config::resolve(settings(&[&both, rest].concat()), None)
            .map(|config| config.edge_name)
            .map_err(|error| error.to_string())
    };
    let edge = ["--edge-url", "wss://edge.example.com"];
    let public = ["--public-url", "https://longshore.example.com"];
    let found = one(&[edge, public].concat()).unwrap();
    assert_eq!(found.as_deref(), Some("edge.example.com"));
    assert_eq!(one(&edge).unwrap().as_deref(), Some("edge.example.com"));
    for (rest, wrong) in [
        (&[][..], "name it in edge-url"),
        (&["--edge-url", "wss://192.0.2.1"], "name it in edge-url"),
        (
            &[
                &edge[..],
                &["--public-url", "https://EDGE.example.com:8443"],
            ]
            .concat(),
            "the same host",
        ),
        (
            &[&edge[..], &["--plain-http", "--behind-proxy"]].concat(),
            "plain-http needs an address of its own",
        ),
    ] {
        let error = one(rest).unwrap_err();
        assert!(error.contains(wrong), "{rest:?}: {error}");
    }
    // Two addresses, or two ports to be chosen, are told apart by themselves.
    let any = ["--public-listen", "[::]:0", "--edge-listen", "[::]:0"];
    let any = Config::resolve(settings(&any), None).unwrap();
    assert_eq!(any.edge_name, None);
}

#[test]
fn secrets_are_not_shown() {
    let config = Config::resolve(
        settings(&[
            "--secret-key",
            "5ec2e7",
            "--database-url",
            "postgres://me:hunter2@db/longshore",
        ]),
        None,
    )
    .unwrap();
    let shown = config.describe();
    assert!(
        !shown.contains("hunter2") && !shown.contains("5ec2e7"),
        "{shown}"
    );
    assert!(
        shown.contains("postgres://me:redacted@db/longshore"),
        "{shown}"
    );
    assert!(!format!("{config:?}").contains("hunter2"));
    let again: Settings = toml::from_str(&shown).unwrap();
    assert_eq!(again.log.as_deref(), Some("info,sqlx=warn"));
}
