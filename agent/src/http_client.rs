//! One HTTP/1.1 request on one TLS connection: a call, or the upgrade to a WebSocket.
//!
//! No pool, no redirects, no proxies: an agent makes one kind of call in its life and holds one connection.
//! Answers are read up to a bound, and every step has a deadline of the caller's.

use std::{error::Error, io, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::Bytes,
    client::conn::http1,
    upgrade::{self, Upgraded},
};
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use url::Url;

/// The most bytes of an answer that are read.
const MOST_BYTES: usize = 256 * 1024;
/// HTTP's own buffer; the WebSocket has its own.
const BUFFER: usize = 8 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is not usable.
    #[error("`{0}` names no host and port")]
    Address(String),
    /// No connection.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// The server could not prove that it is the right one.
    #[error("{0} is not the server that was asked for")]
    Untrusted(String, #[source] rustls::Error),
    /// The TLS handshake failed otherwise.
    #[error("no TLS with {0}")]
    Tls(String, #[source] io::Error),
    /// The HTTP exchange failed.
    #[error("the HTTP exchange with {0} failed")]
    Exchange(String, #[source] hyper::Error),
    /// The answer could not be read, or is too large.
    #[error("the answer of {0} cannot be read: {1}")]
    Body(String, String),
    /// It took too long.
    #[error("{0} did not answer in time")]
    Timeout(String),
}

impl HttpError {
    /// Whether the server said over TLS that our certificate has ended. With TLS 1.3 it says so where its answer
    /// would be.
    pub fn is_certificate_expired(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let inner = error
                .downcast_ref::<io::Error>()
                .and_then(|it| it.get_ref());
            let rustls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if let Some(rustls::Error::AlertReceived(alert)) = rustls {
                return *alert == AlertDescription::CertificateExpired;
            }
            cause = error.source();
        }
        false
    }
}

/// What an upgrade was answered with.
pub enum Answer {
    /// The connection is a WebSocket's now.
    Switched(HeaderMap, TokioIo<Upgraded>),
    /// It is not, and this is why.
    Plain(Response<Bytes>),
}

/// Connects to the host of `url`.
pub async fn connect(url: &Url, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, HttpError> {
    let at = authority(url)?;
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(HttpError::Address(url.to_string()));
    };
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let name = ServerName::try_from(host.clone())
        .map_err(|_invalid| HttpError::Address(url.to_string()))?;
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
        .map_err(|error| HttpError::Connect(at.clone(), error))?;
    TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(|error| {
            let rustls = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match rustls {
                Some(wrong @ rustls::Error::InvalidCertificate(_)) => {
                    HttpError::Untrusted(at, wrong.clone())
                }
                _ => HttpError::Tls(at, error),
            }
        })
}

/// Sends a request whose `Host` is that of `url`, and reads the answer. An answer of `101` switches.
pub async fn exchange(
    stream: TlsStream<TcpStream>,
    url: &Url,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer, HttpError> {
    let at = authority(url)?;
    if let Ok(host) = at.parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    let failed = |error| HttpError::Exchange(at.clone(), error);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            let headers = response.headers().clone();
            let upgraded = upgrade::on(response).await.map_err(failed)?;
            return Ok(Answer::Switched(headers, TokioIo::new(upgraded)));
        }
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MOST_BYTES)
            .collect()
            .await
            .map_err(|error| HttpError::Body(at.clone(), error.to_string()))?;
        Ok(Answer::Plain(Response::from_parts(parts, body.to_bytes())))
    };
    // The connection has to be driven for the answer to come, and may end just before the answer is read.
    match select(pin!(answer), pin!(connection.with_upgrades())).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, answer)) => answer.await,
    }
}

/// The `Retry-After` of an answer in its form with seconds, bounded to an hour.
pub fn retry_after<T>(response: &Response<T>) -> Option<Duration> {
    let seconds: u64 = response
        .headers()
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds.min(3600)))
}

/// Host and port, as `Host` says them.
fn authority(url: &Url) -> Result<String, HttpError> {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        (Some(host), None) => Ok(host.to_owned()),
        (None, _) => Err(HttpError::Address(url.to_string())),
    }
}
