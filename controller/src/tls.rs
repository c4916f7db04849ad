//! The two listeners' TLS: a certificate that renews itself, and the verification of devices.
//!
//! Handshakes run in tasks of their own, at most [`MAX_HANDSHAKES`] at a time and each with a deadline, so that
//! a slow or silent peer holds up nobody else.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    ca::{Ca, ServerIdentity},
    tasks::Tasks,
};

/// Silent connections must not keep others waiting, and one costs little.
const MAX_HANDSHAKES: usize = 4096;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Why a listener has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate and the key do not go together.
    #[error("the certificate cannot be used")]
    Certificate(#[source] rustls::Error),
    /// The roots cannot verify anybody.
    #[error("the root certificates cannot be used")]
    Roots(#[source] rustls::client::VerifierBuilderError),
    /// The settings contradict each other.
    #[error("TLS cannot be set up")]
    Settings(#[source] rustls::Error),
}

/// The TLS library's primitives.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The certificate that the listeners present; it can be replaced while they run.
#[derive(Debug)]
pub struct ServerCertificate(RwLock<Arc<CertifiedKey>>);

impl ServerCertificate {
    /// Presents `identity`.
    pub fn new(identity: ServerIdentity) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(RwLock::new(certified(identity)?))))
    }

    /// The last certificate of the chain: who trusts it trusts the listener.
    pub fn anchor(&self) -> Option<CertificateDer<'static>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .cert
            .last()
            .cloned()
    }

    /// Presents `identity` from now on.
    pub fn replace(&self, identity: ServerIdentity) -> Result<(), TlsError> {
        let certified = certified(identity)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }
}

fn certified((chain, key): ServerIdentity) -> Result<Arc<CertifiedKey>, TlsError> {
    CertifiedKey::from_der(chain, key, &provider())
        .map(Arc::new)
        .map_err(TlsError::Certificate)
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(
            self.0
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }
}

/// TLS for the public listener: everybody may come, HTTP/2 or HTTP/1.1.
pub fn public(certificate: Arc<ServerCertificate>) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Settings)?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// TLS for the edge listener: only who presents a certificate of our authority gets in.
pub fn edge(certificate: Arc<ServerCertificate>, ca: &Ca) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in ca.authority().roots() {
        roots.add(root.clone()).map_err(TlsError::Certificate)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(TlsError::Roots)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Settings)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A TLS configuration that can be replaced between two handshakes.
#[derive(Debug)]
pub struct Reloadable(RwLock<Arc<ServerConfig>>);

impl Reloadable {
    /// Uses `config`.
    pub fn new(config: Arc<ServerConfig>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(config)))
    }

    /// Uses `config` from the next handshake on.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn config(&self) -> Arc<ServerConfig> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Accepted connections whose handshake is done.
#[derive(Debug)]
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// Accepts on `listener` until the shutdown.
    pub fn spawn(listener: TcpListener, tls: Arc<Reloadable>, tasks: &Tasks) -> Self {
        let (done, ready) = mpsc::channel(64);
        let (handshakes, shutdown) = (tasks.tracker.clone(), tasks.shutdown.clone());
        tasks.vital("a listener", async move {
            let room = Arc::new(Semaphore::new(MAX_HANDSHAKES));
            loop {
                let Ok(permit) = room.clone().acquire_owned().await else {
                    return;
                };
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = shutdown.cancelled() => return,
                };
                let (stream, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Most often no file descriptors are left; connections that end will free some.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let acceptor = TlsAcceptor::from(tls.config());
                let done = done.clone();
                handshakes.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%peer, %error, "TCP_NODELAY could not be set");
                    }
                    match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
                        // A full channel holds the permit, and so slows the accepting down.
                        Ok(Ok(stream)) => drop(done.send((stream, peer)).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                        Err(_elapsed) => tracing::debug!(%peer, "TLS handshake took too long"),
                    }
                });
            }
        });
        Self { ready }
    }

    /// The next connection; `None` after the shutdown.
    pub async fn next(&mut self) -> Option<(TlsStream<TcpStream>, SocketAddr)> {
        self.ready.recv().await
    }
}
