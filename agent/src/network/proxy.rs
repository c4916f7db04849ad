//! Which proxy, if any, stands before an address.
//!
//! The rules are curl's: a comma or a space between exceptions; a name stands for its subdomains too, with a dot
//! in front or without; addresses may be networks (`10.0.0.0/8`); each may be for one port only
//! (`example.com:8443`); `*` is everything.

use std::fmt;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use secrecy::{ExposeSecret as _, SecretString};

/// The setting that means no proxy, whatever the environment says.
pub const NONE: &str = "none";

/// The proxy of this device, and what it does not stand before.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    url: Option<SecretString>,
    /// What names it, for people.
    from: String,
    exceptions: Vec<Exception>,
    /// A variable of the environment that is of no use, and why.
    passed_over: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    pattern: String,
    port: Option<u16>,
}

/// A proxy for one connection.
#[derive(Clone)]
pub(crate) struct Proxy {
    intercept: Intercept,
    pub(super) from: String,
}

/// An address that is no proxy's. It does not say which, because there may be a password in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxy {
    /// It does not parse.
    #[error(
        "{0} is no address of a proxy: it must be http://[USER:PASSWORD@]HOST:PORT or https://…, with %-escapes for \
         special characters in user and password, or `none`"
    )]
    Address(String),
    /// Another kind of proxy.
    #[error("{0} names a proxy of the kind `{1}`: only http:// and https:// proxies can be used")]
    Scheme(String, String),
}

impl Proxies {
    /// The proxy at `url` before everything but what `no_proxy` lists. `from` is what names it, for people.
    pub fn new(url: SecretString, from: &str, no_proxy: &str) -> Result<Self, InvalidProxy> {
        let proxies = Self {
            url: Some(url),
            from: from.to_owned(),
            exceptions: exceptions(no_proxy),
            passed_over: None,
        };
        let anywhere = Uri::from_static("https://longshore.invalid/");
        let intercept = proxies
            .intercept(&anywhere, "")
            .ok_or_else(|| InvalidProxy::Address(from.to_owned()))?;
        match intercept.uri().scheme_str() {
            Some("http" | "https") if !proxies.is_whole(&intercept) => {
                Err(InvalidProxy::Address(from.to_owned()))
            }
            Some("http" | "https") => Ok(proxies),
            other => {
                let scheme = other.unwrap_or_default().to_owned();
                Err(InvalidProxy::Scheme(from.to_owned(), scheme))
            }
        }
    }

    /// Whether nothing of the address was cut off, as happens at a `#` in a password.
    fn is_whole(&self, intercept: &Intercept) -> bool {
        let has_user = |url: &SecretString| url.expose_secret().contains('@');
        let is_port = |authority: &http::uri::Authority| {
            authority.port().is_some() || authority.as_str() == authority.host()
        };
        intercept.uri().authority().is_some_and(is_port)
            && self.url.as_ref().is_some_and(has_user) == intercept.basic_auth().is_some()
    }

    /// No proxy, because the one that the environment names is of no use.
    pub fn passed_over(why: &InvalidProxy) -> Self {
        Self {
            passed_over: Some(why.to_string()),
            ..Self::default()
        }
    }

    /// Why the environment's proxy is not used, where it is not.
    pub fn complaint(&self) -> Option<&str> {
        self.passed_over.as_deref()
    }

    /// The proxy without what is secret, where there is one.
    pub fn shown(&self) -> Option<String> {
        let anywhere = Uri::from_static("https://longshore.invalid/");
        let intercept = self.intercept(&anywhere, "")?;
        let user = intercept.basic_auth().map_or("", |_| "(redacted)@");
        let (scheme, authority) = (intercept.uri().scheme_str()?, intercept.uri().authority()?);
        Some(format!("{scheme}://{user}{authority}"))
    }

    /// The proxy before this address.
    pub(crate) fn before(&self, uri: &Uri) -> Option<Proxy> {
        let port = uri.port_u16().unwrap_or(443);
        let exceptions: Vec<_> = self
            .exceptions
            .iter()
            .filter(|exception| exception.port.is_none_or(|only| only == port))
            .map(|exception| exception.pattern.as_str())
            .collect();
        if exceptions.contains(&"*") {
            return None;
        }
        let intercept = self.intercept(uri, &exceptions.join(","))?;
        let from = self.from.clone();
        Some(Proxy { intercept, from })
    }

    fn intercept(&self, uri: &Uri, exceptions: &str) -> Option<Intercept> {
        let url = self.url.as_ref()?.expose_secret();
        let matcher = Matcher::builder().all(url).no(exceptions).build();
        matcher.intercept(uri)
    }
}

impl Proxy {
    pub(super) fn host(&self) -> &str {
        self.intercept.uri().host().unwrap_or_default()
    }

    pub(super) fn port(&self) -> u16 {
        let default = if self.is_tls() { 443 } else { 80 };
        self.intercept.uri().port_u16().unwrap_or(default)
    }

    pub(super) fn is_tls(&self) -> bool {
        self.intercept.uri().scheme_str() == Some("https")
    }

    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.intercept.basic_auth()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls() { "https" } else { "http" };
        let (host, port) = (self.host(), self.port());
        write!(f, "{scheme}://{host}:{port} (from {})", self.from)
    }
}

fn exceptions(list: &str) -> Vec<Exception> {
    list.split(|it: char| it == ',' || it.is_whitespace())
        .filter(|entry| !entry.is_empty())
        .map(exception)
        .collect()
}

fn exception(entry: &str) -> Exception {
    let (pattern, port) = match entry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        // More than one colon is IPv6 without a port.
        None => match entry.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (entry, None),
        },
    };
    // As Go reads it.
    let pattern = pattern
        .strip_prefix('*')
        .filter(|rest| rest.starts_with('.'))
        .unwrap_or(pattern);
    Exception {
        pattern: pattern.to_owned(),
        port: port.and_then(|port| port.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(url: &str, no_proxy: &str) -> Result<Proxies, InvalidProxy> {
        Proxies::new(url.into(), "--proxy", no_proxy)
    }

    #[test]
    fn exceptions_are_read_as_curl_and_go_read_them() {
        let cases = [
            ("", "a.example.com:443", true),
            ("*", "a.example.com:443", false),
            ("*", "10.1.2.3:443", false),
            ("*", "[::1]:443", false),
            ("example.com", "example.com:443", false),
            ("example.com", "a.EXAMPLE.com:443", false),
            ("example.com", "notexample.com:443", true),
            (".example.com", "a.example.com:443", false),
            ("*.example.com", "a.example.com:443", false),
            ("*.example.com", "anexample.com:443", true),
            ("x.org, example.com", "example.com:443", false),
            ("x.org example.com", "example.com:443", false),
            ("example.com:8443", "example.com:8443", false),
            ("example.com:8443", "example.com:443", true),
            ("10.0.0.0/8", "10.1.2.3:443", false),
            ("10.0.0.0/8", "11.1.2.3:443", true),
            ("10.1.2.3", "10.1.2.3:443", false),
            ("10.1.2.3:8443", "10.1.2.3:443", true),
            ("fd00::/8", "[fd00::1]:443", false),
            ("::1", "[::1]:443", false),
            ("[::1]:8443", "[::1]:8443", false),
            ("[::1]:8443", "[::1]:443", true),
            ("[::1]", "[::1]:9", false),
        ];
        for (list, at, proxied) in cases {
            let uri = format!("https://{at}/").parse().unwrap();
            let proxy = proxies("http://proxy:3128", list).unwrap().before(&uri);
            assert_eq!(proxy.is_some(), proxied, "`{list}` and {at}");
        }
    }

    #[test]
    fn addresses_of_proxies() {
        let uri = Uri::from_static("https://longshore.example/");
        let cases = [
            ("http://proxy:3128", "http", "proxy", 3128),
            ("proxy:3128", "http", "proxy", 3128),
            ("https://proxy", "https", "proxy", 443),
            ("http://[fd00::1]:8080/", "http", "[fd00::1]", 8080),
        ];
        for (url, scheme, host, port) in cases {
            let proxy = proxies(url, "").unwrap().before(&uri).unwrap();
            let is_tls = scheme == "https";
            assert_eq!(
                (proxy.is_tls(), proxy.host(), proxy.port()),
                (is_tls, host, port),
                "{url}"
            );
        }
        for wrong in [
            "",
            "http://",
            "ftp://proxy:1",
            "http://a b",
            "http://u:p#@x:1",
            "http://u:1#2@x:1",
            "http://u:p/q@x:1",
            "http://proxy:port",
        ] {
            let error = proxies(wrong, "").unwrap_err().to_string();
            assert!(error.contains("--proxy is no address"), "{wrong}: {error}");
        }
        let error = proxies("socks5://u:secret@proxy:1080", "").unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("`socks5`") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn passwords_are_sent_and_never_shown() {
        let proxies = proxies("http://till:hush%40me@proxy:3128", "").unwrap();
        let proxy = proxies
            .before(&Uri::from_static("https://longshore.example/"))
            .unwrap();
        // Base64 of `till:hush@me`.
        assert_eq!(proxy.authorization().unwrap(), "Basic dGlsbDpodXNoQG1l");
        assert_eq!(proxies.shown().unwrap(), "http://(redacted)@proxy:3128");
        for said in [proxy.to_string(), format!("{proxies:?}")] {
            assert!(!said.contains("hush") && !said.contains("till"), "{said}");
        }
        assert_eq!(Proxies::default().shown(), None);
    }
}
