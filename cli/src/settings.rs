//! Which controller to talk to, and as whom.
//!
//! Settings come from four sources: the arguments (with the environment behind them), a data directory that
//! was named, the config file, and the data directory `./longshore-data`. The first source that names a
//! server wins.
//!
//! **Guarantee.** A token or a CA that stands in a file is only used for the server that the same file names
//! (or for any, where the config file names none). So pointing `--server` somewhere else never sends that
//! place another controller's token.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use longshore_protocol::{FleetName, TenantName};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::{Host, Url};

use crate::{Error, Globals};

const DEFAULT_DATA_DIR: &str = "longshore-data";

/// Everything that a call of the API needs.
#[derive(Debug)]
pub struct Settings {
    /// The controller's base URL.
    pub server: Url,
    /// The API token.
    pub token: SecretString,
    /// The only certificates to trust, in PEM; the system's where absent.
    pub ca: Option<Vec<u8>>,
    /// The tenant.
    pub tenant: TenantName,
    /// The fleet, where one is set.
    pub fleet: Option<FleetName>,
    /// Where the server, the token and the CA come from, for people.
    pub origins: Vec<String>,
}

/// What one source says.
#[derive(Debug, Default)]
struct Source {
    name: String,
    server: Option<Url>,
    token: Option<TokenAt>,
    ca: Option<PathBuf>,
}

/// A token, or the file to read it from once it is chosen.
#[derive(Clone, Debug)]
enum TokenAt {
    Hand(SecretString),
    File(PathBuf),
}

impl TokenAt {
    fn read(self) -> Result<SecretString, Error> {
        match self {
            Self::Hand(token) => Ok(token),
            Self::File(path) => read_token(&path),
        }
    }
}

/// The config file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    server: Option<Url>,
    token: Option<SecretText>,
    ca: Option<PathBuf>,
    tenant: Option<TenantName>,
    fleet: Option<FleetName>,
}

#[derive(Debug, Deserialize)]
#[serde(from = "String")]
struct SecretText(SecretString);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Settings {
    /// Resolves the settings; `config_home` is `$XDG_CONFIG_HOME`, or what stands for it.
    ///
    /// # Errors
    /// Where a named file cannot be read, or server or token are missing.
    pub fn resolve(globals: &Globals, config_home: Option<&Path>) -> Result<Self, Error> {
        let arguments = arguments(globals);
        let (config_source, config) = config(globals, config_home)?;
        let mut sources = Vec::new();
        match &globals.data_dir {
            Some(directory) => sources.extend([data_dir(directory, true)?, config_source]),
            None => {
                sources.extend([config_source, data_dir(Path::new(DEFAULT_DATA_DIR), false)?]);
            }
        }

        let (server, server_origin) =
            pick(&arguments, &sources, |source| source.server.clone()).ok_or_else(no_server)?;
        let of_server: Vec<Source> = sources
            .into_iter()
            .filter(|source| {
                source
                    .server
                    .as_ref()
                    .is_none_or(|named| same(named, &server))
            })
            .collect();
        let (token, token_origin) = pick(&arguments, &of_server, |source| source.token.clone())
            .ok_or_else(|| no_token(&server))?;
        let ca = pick(&arguments, &of_server, |source| source.ca.clone());

        let token = token.read()?;
        refuse_plain_text(&server)?;
        let mut origins = vec![
            format!("server {server} from {server_origin}"),
            format!("token from {token_origin}"),
        ];
        let ca = match ca {
            Some((path, origin)) => {
                origins.push(format!("CA {} from {origin}", path.display()));
                Some(read(&path, "the CA certificates")?)
            }
            None => None,
        };
        let tenant = globals.tenant.clone().or(config.tenant);
        Ok(Self {
            server,
            token,
            ca,
            tenant: tenant.unwrap_or_else(TenantName::default_tenant),
            fleet: globals.fleet.clone().or(config.fleet),
            origins,
        })
    }
}

/// `$XDG_CONFIG_HOME`, else `~/.config`, as the XDG base directory specification says.
pub fn config_home() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))
}

/// The first that has it, and that one's name.
fn pick<T>(
    arguments: &Source,
    rest: &[Source],
    part: impl Fn(&Source) -> Option<T>,
) -> Option<(T, String)> {
    std::iter::once(arguments)
        .chain(rest)
        .find_map(|source| Some((part(source)?, source.name.clone())))
}

fn arguments(globals: &Globals) -> Source {
    let in_hand = || {
        let token = globals
            .token
            .clone()
            .filter(|token| !token.expose_secret().is_empty());
        token.map(TokenAt::Hand)
    };
    Source {
        name: "the arguments or the environment".to_owned(),
        server: globals.server.clone(),
        token: globals
            .token_file
            .clone()
            .map(TokenAt::File)
            .or_else(in_hand),
        ca: globals.ca.clone(),
    }
}

/// What a local controller writes: `address`, `admin-token`, `ca.pem`.
///
/// The directory that nobody named may be missing, or be somebody else's.
fn data_dir(directory: &Path, named: bool) -> Result<Source, Error> {
    let name = format!("the data directory {}", directory.display());
    let address = directory.join("address");
    let address = match fs::read_to_string(&address) {
        Ok(text) => text.trim().to_owned(),
        Err(_unreadable) if !named => return Ok(Source::default()),
        Err(error) => {
            return Err(Error::usage(format!("{name} holds no readable `address`"))
                .because(error)
                .hint("name the directory that the controller runs with, and start the controller once"));
        }
    };
    let server = Url::parse(&address).map_err(|error| {
        Error::usage(format!("{name} names no URL in `address`")).because(error)
    })?;
    let token = Some(directory.join("admin-token"))
        .filter(|path| path.exists())
        .map(TokenAt::File);
    let ca = Some(directory.join("ca.pem")).filter(|path| path.exists());
    Ok(Source {
        name,
        server: Some(server),
        token,
        ca,
    })
}

fn config(globals: &Globals, home: Option<&Path>) -> Result<(Source, Config), Error> {
    let standard = home.map(|home| home.join("longshore/config.toml"));
    let Some(path) = globals.config.clone().or(standard) else {
        return Ok(Default::default());
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if globals.config.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Ok(Default::default());
        }
        Err(error) => {
            let message = format!("the config file {} cannot be read", path.display());
            return Err(Error::usage(message).because(error));
        }
    };
    let mut config: Config = toml::from_str(&text).map_err(|error| {
        // The whole error of `toml` quotes the line, and the line may be the one with the token.
        Error::usage(format!(
            "the config file {} is wrong: {}",
            path.display(),
            error.message()
        ))
        .hint("it may have `server`, `token`, `ca`, `tenant` and `fleet`, each a text")
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let source = Source {
        name: format!("the config file {}", path.display()),
        server: config.server.take(),
        token: config.token.take().map(|text| TokenAt::Hand(text.0)),
        ca: config.ca.take().map(|ca| folder.join(ca)),
    };
    Ok((source, config))
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| {
        Error::usage(format!("{what} in {} cannot be read", path.display())).because(error)
    })
}

fn read_token(path: &Path) -> Result<SecretString, Error> {
    let what = "the API token";
    let bytes = read(path, what)?;
    let text = str::from_utf8(&bytes).map(str::trim).unwrap_or_default();
    if text.is_empty() {
        return Err(Error::usage(format!(
            "{what} in {} is empty or no text",
            path.display()
        )));
    }
    Ok(SecretString::from(text))
}

fn same(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// A token in plain text is for loopback only.
fn refuse_plain_text(server: &Url) -> Result<(), Error> {
    match server.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(server) => Ok(()),
        "http" => Err(
            Error::usage(format!("{server} would carry the API token in plain text"))
                .hint("use https; plain http works with a loopback address only"),
        ),
        other => Err(
            Error::usage(format!("the server's URL starts with `{other}:`"))
                .hint("use a URL such as https://longshore.example:8443"),
        ),
    }
}

/// Whether the URL leads to this machine without asking anybody for an address.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn no_server() -> Error {
    Error::usage("no controller is named")
        .hint("run this beside a controller's data directory, or name one with `--data-dir DIR`")
        .hint("or give `--server URL` and `--token-file FILE` (LONGSHORE_SERVER, LONGSHORE_TOKEN)")
        .hint("to start one here, run `longshore-controller`")
}

fn no_token(server: &Url) -> Error {
    Error::usage(format!("there is no API token for {server}"))
        .hint("give `--token-file FILE` or LONGSHORE_TOKEN")
        .hint("tokens in files are only used with the server that the same file names")
}

impl Settings {
    /// The value of the `Authorization` header.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.token.expose_secret())
    }
}

#[cfg(test)]
mod tests;
