//! The order of resolution, and which token goes where.

use super::*;

/// A directory with a data directory `data` for `https://data:1` and a config for `https://config:2`.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(place.data()).unwrap();
        fs::write(place.data().join("address"), "https://data:1\n").unwrap();
        fs::write(place.data().join("admin-token"), "of-data\n").unwrap();
        fs::write(place.data().join("ca.pem"), "PEM of data").unwrap();
        place.config("server = 'https://config:2'\ntoken = 'of-config'\ntenant = 'acme'\n");
        place
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn config(&self, text: &str) {
        let folder = self.0.path().join("longshore");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.toml"), text).unwrap();
    }

    fn resolve(&self, globals: &Globals) -> Result<Settings, Error> {
        Settings::resolve(globals, Some(self.0.path()))
    }
}

fn server(url: &str) -> Globals {
    Globals {
        server: Some(url.parse().unwrap()),
        ..Globals::default()
    }
}

fn token(settings: &Settings) -> &str {
    settings.token.expose_secret()
}

#[test]
fn arguments_come_before_all() {
    let place = Place::new();
    let globals = Globals {
        token: Some("of-arguments".into()),
        data_dir: Some(place.data()),
        ..server("https://arguments:3")
    };
    let settings = place.resolve(&globals).unwrap();
    assert_eq!(settings.server.as_str(), "https://arguments:3/");
    assert_eq!(token(&settings), "of-arguments");
    assert!(
        settings.ca.is_none(),
        "the CA of another server is not this one's"
    );
}

#[test]
fn a_named_data_directory_comes_before_the_config_file() {
    let place = Place::new();
    let globals = Globals {
        data_dir: Some(place.data()),
        ..Globals::default()
    };
    let settings = place.resolve(&globals).unwrap();
    assert_eq!(settings.server.as_str(), "https://data:1/");
    assert_eq!(token(&settings), "of-data");
    assert_eq!(settings.ca.as_deref(), Some(b"PEM of data".as_slice()));
    assert_eq!(
        settings.tenant.as_str(),
        "acme",
        "the tenant is no secret and belongs to the person"
    );
}

#[test]
fn then_the_config_file() {
    let settings = Place::new().resolve(&Globals::default()).unwrap();
    assert_eq!(settings.server.as_str(), "https://config:2/");
    assert_eq!(token(&settings), "of-config");
    assert!(settings.ca.is_none());
}

#[test]
fn a_token_of_a_file_goes_to_that_files_server_only() {
    let place = Place::new();
    let error = place.resolve(&server("https://elsewhere:4")).unwrap_err();
    assert_eq!(error.exit(), crate::Exit::Usage);
    assert!(
        error
            .to_string()
            .contains("no API token for https://elsewhere:4/"),
        "{error}"
    );
    assert_eq!(
        token(&place.resolve(&server("https://config:2/")).unwrap()),
        "of-config"
    );
    let both = Globals {
        data_dir: Some(place.data()),
        ..server("https://data:1")
    };
    assert_eq!(token(&place.resolve(&both).unwrap()), "of-data");
}

#[test]
fn a_config_without_server_serves_every_server() {
    let place = Place::new();
    place.config("token = 'of-config'\nca = 'root.pem'\n");
    fs::write(place.0.path().join("longshore/root.pem"), "PEM").unwrap();
    let settings = place.resolve(&server("https://elsewhere:4")).unwrap();
    assert_eq!(token(&settings), "of-config");
    assert_eq!(
        settings.ca.as_deref(),
        Some(b"PEM".as_slice()),
        "relative to the config file"
    );
    assert_eq!(settings.tenant.as_str(), "default");
}

#[test]
fn a_token_file_comes_before_the_token() {
    let place = Place::new();
    let globals = Globals {
        token: Some("of-environment".into()),
        token_file: Some(place.data().join("admin-token")),
        ..server("https://arguments:3")
    };
    assert_eq!(token(&place.resolve(&globals).unwrap()), "of-data");
}

#[test]
fn plain_text_is_for_loopback() {
    let place = Place::new();
    for (url, good) in [
        ("http://127.0.0.1:1", true),
        ("http://[::1]:1", true),
        ("http://localhost:1", true),
        ("http://longshore.example", false),
        ("http://10.0.0.1", false),
        ("ftp://127.0.0.1", false),
    ] {
        let globals = Globals {
            token: Some("t".into()),
            ..server(url)
        };
        assert_eq!(place.resolve(&globals).is_ok(), good, "{url}");
    }
}

#[test]
fn nothing_named_says_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let error = Settings::resolve(&Globals::default(), Some(empty.path())).unwrap_err();
    assert!(
        error.report().contains("run `longshore-controller`"),
        "{}",
        error.report()
    );
}

#[test]
fn named_files_must_be_there() {
    let place = Place::new();
    let missing = place.0.path().join("missing");
    let cases = [
        Globals {
            data_dir: Some(missing.clone()),
            ..Globals::default()
        },
        Globals {
            config: Some(missing.clone()),
            ..Globals::default()
        },
        Globals {
            token_file: Some(missing.clone()),
            ..Globals::default()
        },
        Globals {
            ca: Some(missing),
            ..Globals::default()
        },
    ];
    for globals in cases {
        let error = place.resolve(&globals).unwrap_err();
        assert_eq!(error.exit(), crate::Exit::Usage);
        assert!(error.report().contains("missing"), "{}", error.report());
    }
}

#[test]
fn no_error_and_no_debug_shows_a_token() {
    let place = Place::new();
    assert!(!format!("{:?}", place.resolve(&Globals::default()).unwrap()).contains("of-config"));
    for text in [
        "token = 'of-config",
        "token = ['of-config']",
        "tokens = 'of-config'",
    ] {
        place.config(text);
        let error = place.resolve(&Globals::default()).unwrap_err();
        assert!(
            !format!("{} {error:?}", error.report()).contains("of-config"),
            "{}",
            error.report()
        );
        assert!(error.report().contains("config.toml"));
    }
}
