//! Connecting to the edge endpoint by hand.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use http::{Request, header};
use longshore_protocol::api::{EDGE_PATH, SUBPROTOCOL};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, handshake::client::generate_key},
};

/// An open session.
pub type Session = WebSocketStream<TlsStream<TcpStream>>;

/// What came of a try to connect.
#[derive(Debug)]
pub enum Attempt {
    /// A session is open.
    Open(Box<Session>),
    /// The TLS handshake failed, or the server hung up on what it saw in it.
    Tls(String),
    /// The server answered with this status.
    Refused(u16),
}

impl Attempt {
    /// Whether there is no session.
    pub fn is_refused(&self) -> bool {
        !matches!(self, Self::Open(_))
    }
}

/// Who to be.
#[derive(Debug)]
pub struct Identity<'a> {
    /// The certificate chain, leaf first; none at all where empty.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key, PKCS#8 in DER form.
    pub key: Vec<u8>,
    /// The device token; none where absent.
    pub token: Option<&'a str>,
}

/// The certificates of a PEM text.
///
/// # Errors
/// Where it is no PEM.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("certificates in PEM")
}

/// Tries to open a session at `edge`, whose certificate the roots in `ca` must verify.
///
/// # Errors
/// Where nobody listens there, or the identity makes no sense.
pub async fn connect(edge: SocketAddr, ca: &[u8], identity: Identity<'_>) -> Result<Attempt> {
    let (attempt, _) = Client::new(ca, identity)?.connect(edge).await?;
    Ok(attempt)
}

/// A device that connects again and again, and resumes its TLS sessions where it can.
#[derive(Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    token: Option<String>,
}

impl Client {
    /// One that trusts the roots in `ca`.
    ///
    /// # Errors
    /// Where the identity makes no sense.
    pub fn new(ca: &[u8], identity: Identity<'_>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(ca) {
            roots.add(root.context("a root in PEM")?)?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = if identity.chain.is_empty() {
            builder.with_no_client_auth()
        } else {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key));
            builder.with_client_auth_cert(identity.chain, key)?
        };
        Ok(Self {
            config: Arc::new(config),
            token: identity.token.map(str::to_owned),
        })
    }

    /// Tries to open a session, and says how the handshake went where there was one.
    ///
    /// # Errors
    /// Where nobody listens there.
    pub async fn connect(&self, edge: SocketAddr) -> Result<(Attempt, Option<HandshakeKind>)> {
        let tcp = TcpStream::connect(edge).await.context("nobody listens")?;
        let server = ServerName::IpAddress(edge.ip().into());
        let connector = TlsConnector::from(self.config.clone());
        let tls = match connector.connect(server, tcp).await {
            Ok(tls) => tls,
            Err(error) => return Ok((Attempt::Tls(error.to_string()), None)),
        };
        let kind = tls.get_ref().1.handshake_kind();
        let mut request = Request::builder()
            .uri(format!("wss://{edge}{EDGE_PATH}"))
            .header(header::HOST, edge.to_string())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key())
            .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let handshake = client_async(request.body(())?, tls);
        let attempt = match timeout(Duration::from_secs(20), handshake).await? {
            Ok((session, _)) => Attempt::Open(Box::new(session)),
            Err(Error::Http(response)) => Attempt::Refused(response.status().as_u16()),
            // In TLS 1.3 the client's certificate is judged after the handshake is over for the client.
            Err(error) => Attempt::Tls(error.to_string()),
        };
        Ok((attempt, kind))
    }
}

/// Waits until the other side closes the session.
///
/// # Errors
/// Where it does not in time.
pub async fn closed(session: &mut Session) -> Result<()> {
    let closed = async {
        while let Some(Ok(message)) = session.next().await {
            if message.is_close() {
                break;
            }
        }
    };
    timeout(crate::wait::PATIENCE, closed)
        .await
        .context("the session stays open")
}
