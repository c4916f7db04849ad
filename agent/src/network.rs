//! How this device gets to the controller: through which proxy, trusting which roots, at what time.

pub mod proxy;
mod tunnel;

use std::{sync::Arc, time::Duration};

use http::Uri;
use hyper_util::{
    client::legacy::connect::{HttpConnector, dns::GaiResolver},
    rt::TokioIo,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tower::ServiceExt as _;
use url::Url;

use self::proxy::Proxies;
use crate::clock::Clock;

pub use tunnel::ProxyError;

/// To connect to all addresses of a host. Each has its share of that, and IPv4 is tried beside IPv6.
const PATIENCE: Duration = Duration::from_secs(10);

/// What all connections of an agent have in common.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// What time it is.
    pub clock: Clock,
    /// Which proxy stands before what.
    pub proxies: Arc<Proxies>,
    /// Roots that are trusted beside those that the controller gave, in PEM.
    pub roots: Option<Arc<str>>,
}

/// A connection, whatever it runs over.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Where a connection goes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Without the brackets of IPv6.
    host: String,
    port: u16,
    pub(crate) name: ServerName<'static>,
}

impl Target {
    pub(crate) fn of(url: &Url) -> Option<Self> {
        Self::new(url.host_str()?, url.port_or_known_default()?)
    }

    fn new(host: &str, port: u16) -> Option<Self> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).ok()?;
        let host = host.to_owned();
        Some(Self { host, port, name })
    }

    /// `host:port`, IPv6 in brackets.
    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    fn uri(&self) -> Option<Uri> {
        format!("https://{}/", self.authority()).parse().ok()
    }
}

/// Why there is no connection yet to do TLS over.
#[derive(Debug)]
pub(crate) enum Unreachable {
    Address,
    Connect(Box<dyn std::error::Error + Send + Sync>),
    Proxy(ProxyError),
}

impl Network {
    /// The proxy before this address, without what is secret, where there is one.
    pub(crate) fn stands_before(&self, url: &Url) -> Option<String> {
        let uri = Target::of(url)?.uri()?;
        self.proxies.before(&uri)?;
        self.proxies.shown()
    }

    /// Connects to the target, or has a proxy do so.
    pub(crate) async fn reach(&self, target: &Target) -> Result<Box<dyn Connection>, Unreachable> {
        let uri = target.uri().ok_or(Unreachable::Address)?;
        match self.proxies.before(&uri) {
            None => {
                let stream = tcp(uri).await.map_err(Unreachable::Connect)?;
                Ok(Box::new(stream))
            }
            Some(proxy) => tunnel::open(self, &proxy, target)
                .await
                .map_err(Unreachable::Proxy),
        }
    }
}

/// Connects to the first address of the host that answers.
async fn tcp(uri: Uri) -> Result<TcpStream, Box<dyn std::error::Error + Send + Sync>> {
    let mut connector = HttpConnector::new_with_resolver(GaiResolver::new());
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(PATIENCE));
    let stream = connector.oneshot(uri).await.map_err(Box::new)?;
    Ok(TokioIo::into_inner(stream))
}
