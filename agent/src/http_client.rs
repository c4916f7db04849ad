//! One HTTP/1.1 request on one TLS connection: a call, or the upgrade to a WebSocket.
//!
//! No pool and no redirects: an agent makes one kind of call in its life and holds one connection. Where that
//! goes, and through which proxy, is [`Network`]'s. Answers are read up to a bound, and every step has a deadline
//! of the caller's.
//!
//! On the way there may be others who answer: captive portals, proxies that look into TLS. Errors name that.

use std::{error::Error, io, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
    upgrade::{self, Upgraded},
};
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, ClientConfig};
use tokio_rustls::{TlsConnector, client::TlsStream};
use url::Url;

use crate::{
    network::{Connection, Network, ProxyError, Target, Unreachable},
    tls,
};

/// The most bytes of an answer that are read.
const MOST_BYTES: usize = 256 * 1024;
/// HTTP's own buffer; the WebSocket has its own.
const BUFFER: usize = 8 * 1024;

/// What an answer that cannot be the controller's may mean.
pub(crate) const IN_BETWEEN: &str = "something between this device and the controller may answer in its place, such as a captive portal";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is not usable.
    #[error("`{0}` names no host and port")]
    Address(String),
    /// No connection.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] Box<dyn Error + Send + Sync>),
    /// The proxy does not connect us.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The server could not prove that it is the right one.
    #[error(
        "{0} is not the server that was asked for: {IN_BETWEEN}, or a proxy that looks into TLS, whose root --ca would \
         have to name"
    )]
    Untrusted(String, #[source] rustls::Error),
    /// The server's certificate is not in force at what is taken for the present.
    #[error(
        "the certificate of {at} {wrong}, if it is {now}, as this device believes: if that is not the time, set the \
         clock or start NTP; if it is, the controller needs a new certificate"
    )]
    Clock {
        /// The server.
        at: String,
        /// What is wrong.
        wrong: &'static str,
        /// The time that was used.
        now: String,
    },
    /// What answers does not speak TLS.
    #[error("{0} does not speak TLS: {IN_BETWEEN}, or it is another port")]
    NotTls(String),
    /// The server did not take our certificate.
    #[error("{at} does not accept this device's certificate: {why} ({alert:?})")]
    Certificate {
        /// The server.
        at: String,
        /// What that means.
        why: &'static str,
        /// What it said.
        alert: AlertDescription,
    },
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
        let expired = AlertDescription::CertificateExpired;
        matches!(self, Self::Certificate { alert, .. } if *alert == expired)
    }
}

/// What an upgrade was answered with.
pub enum Answer {
    /// The connection is a WebSocket's now.
    Switched(HeaderMap, TokioIo<Upgraded>),
    /// It is not, and this is why.
    Plain(Response<Bytes>),
}

/// A TLS connection, directly or through a proxy.
pub type Stream = TlsStream<Box<dyn Connection>>;

/// Connects to the host of `url`.
pub async fn connect(
    network: &Network,
    url: &Url,
    tls: Arc<ClientConfig>,
) -> Result<Stream, HttpError> {
    let at = authority(url)?;
    let address = || HttpError::Address(url.to_string());
    let target = Target::of(url).ok_or_else(address)?;
    let stream = network
        .reach(&target)
        .await
        .map_err(|unreachable| match unreachable {
            Unreachable::Address => address(),
            Unreachable::Connect(error) => HttpError::Connect(at.clone(), error),
            Unreachable::Proxy(error) => error.into(),
        })?;
    TlsConnector::from(tls)
        .connect(target.name, stream)
        .await
        .map_err(|error| no_tls(network, at, error))
}

/// What a failed handshake means.
fn no_tls(network: &Network, at: String, error: io::Error) -> HttpError {
    let rustls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match rustls {
        Some(wrong @ rustls::Error::InvalidCertificate(certificate)) => {
            match tls::out_of_time(certificate) {
                Some(wrong) => HttpError::Clock {
                    at,
                    wrong,
                    now: network.clock.shown(),
                },
                None => HttpError::Untrusted(at, wrong.clone()),
            }
        }
        // What an HTTP server answers to a handshake.
        Some(rustls::Error::InvalidMessage(_)) => HttpError::NotTls(at),
        // An alert so early may come from anybody on the way, and is never about our certificate: in TLS 1.3, the only
        // version in which we show it, we have shown it when the handshake is over.
        _ => HttpError::Tls(at, error),
    }
}

/// What an alert says of our certificate.
fn refused(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::CertificateExpired => Some("it has expired, by the controller's clock"),
        AlertDescription::CertificateRevoked => Some("it was revoked"),
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => Some("it does not know who issued it, or refuses it"),
        _ => None,
    }
}

/// Sends a request whose `Host` is that of `url`, and reads the answer. An answer of `101` switches.
pub async fn exchange(
    stream: Stream,
    url: &Url,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer, HttpError> {
    let at = authority(url)?;
    if let Ok(host) = at.parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    match converse(stream, request).await {
        Ok(Conversation::Switched(headers, upgraded)) => {
            Ok(Answer::Switched(headers, TokioIo::new(upgraded)))
        }
        Ok(Conversation::Answered(response)) => {
            let (parts, body) = response.into_parts();
            let body = body.map_err(|error| HttpError::Body(at, error))?;
            Ok(Answer::Plain(Response::from_parts(parts, body)))
        }
        Err(error) => Err(interrupted(at, error)),
    }
}

/// How a request on a connection of its own ended.
pub(crate) enum Conversation {
    /// The connection belongs to another protocol now.
    Switched(HeaderMap, Upgraded),
    /// It was answered. The body may have been cut off, or be too large.
    Answered(Response<Result<Bytes, String>>),
}

/// Sends one request and reads the answer.
pub(crate) async fn converse(
    stream: impl Connection + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Conversation, hyper::Error> {
    let is_connect = request.method() == Method::CONNECT;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && status.is_success()) {
            let headers = response.headers().clone();
            return Ok(Conversation::Switched(
                headers,
                upgrade::on(response).await?,
            ));
        }
        let (parts, body) = response.into_parts();
        let body = whole(body).await;
        Ok(Conversation::Answered(Response::from_parts(parts, body)))
    };
    // The connection has to be driven for the answer to come, and may end just before the answer is read.
    match select(pin!(answer), pin!(connection.with_upgrades())).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, answer)) => answer.await,
    }
}

async fn whole(body: Incoming) -> Result<Bytes, String> {
    let body = Limited::new(body, MOST_BYTES).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| error.to_string())
}

/// In TLS 1.3 a server refuses our certificate when we have begun to talk.
fn interrupted(at: String, error: hyper::Error) -> HttpError {
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if let Some(rustls::Error::AlertReceived(alert)) =
            inner.and_then(|inner| inner.downcast_ref::<rustls::Error>())
            && let Some(why) = refused(*alert)
        {
            let alert = *alert;
            return HttpError::Certificate { at, why, alert };
        }
        cause = error.source();
    }
    HttpError::Exchange(at, error)
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::tls::Trust;

    #[tokio::test]
    async fn an_alert_that_anybody_could_have_sent_says_nothing_of_our_certificate() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let meddler = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 16];
            stream.read_exact(&mut hello).await.unwrap();
            // A record of type 21, version 3.3, with two bytes: fatal, certificate_expired.
            stream.write_all(&[21, 3, 3, 0, 2, 2, 45]).await.unwrap();
            stream.shutdown().await.unwrap();
            tokio::io::copy(&mut stream, &mut tokio::io::sink())
                .await
                .ok();
        });
        let network = Network::default();
        let pin = longshore_protocol::Digest::of(b"root");
        let tls = tls::enrollment(&Trust::Fingerprint(pin), &network).unwrap();
        let error = connect(&network, &url.parse().unwrap(), tls).await.err();
        let error = error.unwrap();
        assert!(matches!(error, HttpError::Tls(..)), "{error:?}");
        assert!(!error.is_certificate_expired());
        assert!(crate::causes(&error).contains("CertificateExpired"));
        meddler.await.unwrap();
    }
}
