//! A connection through an HTTP proxy: `CONNECT` (RFC 9110, section 9.3.6), with basic authentication.

use http::{Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;

use super::{Connection, Network, Target, proxy::Proxy};
use crate::{
    http_client::{self, Conversation},
    tls,
};

/// Why a proxy does not connect us. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It cannot be reached.
    #[error("cannot connect to the proxy {0}")]
    Connect(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// A proxy that is reached over TLS does not prove who it is.
    #[error(
        "no TLS with the proxy {0}: its certificate has to verify with the system's roots, or with those of --ca"
    )]
    Tls(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// 407, and no credentials were given.
    #[error(
        "the proxy {0} asks who is there (407): put user and password into its address, http://USER:PASSWORD@HOST:PORT"
    )]
    CredentialsMissing(String),
    /// 407, in spite of credentials.
    #[error("the proxy {0} does not take the user and password in its address (407): correct them")]
    CredentialsRefused(String),
    /// 403.
    #[error(
        "the proxy {proxy} refuses to connect to {to} (403): have it allow CONNECT to that host and port, or name the \
         host in --no-proxy if there is a way without the proxy"
    )]
    Forbidden {
        /// The proxy.
        proxy: String,
        /// Where it does not connect to.
        to: String,
    },
    /// 502, 503, 504.
    #[error(
        "the proxy {proxy} cannot reach {to} itself ({status}): its network or the controller is down, or it does not \
         know the name"
    )]
    Gateway {
        /// The proxy.
        proxy: String,
        /// Where it does not get.
        to: String,
        /// What it says.
        status: StatusCode,
    },
    /// Any other answer.
    #[error("{proxy} answers CONNECT to {to} with {status}: is it an HTTP proxy?")]
    Refused {
        /// The proxy.
        proxy: String,
        /// Where it does not connect to.
        to: String,
        /// What it says.
        status: StatusCode,
    },
    /// It hung up, or does not speak HTTP.
    #[error("the proxy {0} hung up instead of answering, or does not speak HTTP")]
    Broken(String, #[source] hyper::Error),
    /// It sent bytes of its own into the tunnel.
    #[error("the proxy {0} answers in the place of the server behind it")]
    Interferes(String),
}

/// Has the proxy connect to the target.
pub(super) async fn open(
    network: &Network,
    proxy: &Proxy,
    target: &Target,
) -> Result<Box<dyn Connection>, ProxyError> {
    let name = proxy.to_string();
    let stream = reach(network, proxy, &name).await?;
    let to = target.authority();
    let mut request = Request::connect(&to).header(header::HOST, &to);
    if let Some(authorization) = proxy.authorization() {
        request = request.header(header::PROXY_AUTHORIZATION, authorization);
    }
    let request = request
        .body(Full::new(Bytes::new()))
        .map_err(|invalid| ProxyError::Connect(name.clone(), invalid.into()))?;
    let answer = http_client::converse(stream, request)
        .await
        .map_err(|error| ProxyError::Broken(name.clone(), error))?;
    match answer {
        Conversation::Switched(_, upgraded) => {
            match upgraded.downcast::<TokioIo<Box<dyn Connection>>>() {
                Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
                _ => Err(ProxyError::Interferes(name)),
            }
        }
        Conversation::Answered(response) => {
            let has_credentials = proxy.authorization().is_some();
            Err(refusal(name, to, response.status(), has_credentials))
        }
    }
}

async fn reach(
    network: &Network,
    proxy: &Proxy,
    name: &str,
) -> Result<Box<dyn Connection>, ProxyError> {
    let connect = |error| ProxyError::Connect(name.to_owned(), error);
    let address = Target::new(proxy.host(), proxy.port());
    let address = address.ok_or_else(|| connect("that is no name of a host".into()))?;
    let uri = address.uri();
    let uri = uri.ok_or_else(|| connect("that is no name of a host".into()))?;
    let stream = super::tcp(uri).await.map_err(connect)?;
    if !proxy.is_tls() {
        return Ok(Box::new(stream));
    }
    let no_tls = |error| ProxyError::Tls(name.to_owned(), error);
    let config = tls::proxy(network).map_err(|error| no_tls(error.into()))?;
    let stream = TlsConnector::from(config)
        .connect(address.name, stream)
        .await
        .map_err(|error| no_tls(error.into()))?;
    Ok(Box::new(stream))
}

fn refusal(proxy: String, to: String, status: StatusCode, has_credentials: bool) -> ProxyError {
    match status.as_u16() {
        407 if has_credentials => ProxyError::CredentialsRefused(proxy),
        407 => ProxyError::CredentialsMissing(proxy),
        403 => ProxyError::Forbidden { proxy, to },
        502..=504 => ProxyError::Gateway { proxy, to, status },
        _ => ProxyError::Refused { proxy, to, status },
    }
}
