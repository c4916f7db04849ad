//! The two listeners' TLS: a certificate that renews itself, and the verification of devices.
//!
//! ```text
//! accepted ─▶ says something (many may be silent, for a while) ─▶ handshake (some, each step in turn) ─▶ ready
//! ```
//!
//! Handshakes run in tasks of their own, and what they compute is done in turns, few at a time: thousands of
//! devices that come back at once stand in a line of their own, and those that are connected do not wait behind
//! them. No turn is held while a peer is waited for, so slow and silent peers take no part in it.
//!
//! Devices resume their sessions with tickets, which this process alone can read. A resumed handshake brings the
//! certificate that the first one verified; it is verified again, now, before the connection goes on.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    task::ready,
    time::Duration,
};

use rustls::{
    HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::PollSemaphore;

use crate::{
    ca::{Ca, ServerIdentity},
    clock,
    metrics::Metrics,
    tasks::Tasks,
};

/// How many connections may be accepted and not be through their handshake. Silent ones must not keep others
/// waiting, and one costs little.
const MAX_ACCEPTED: usize = 4096;
/// How many of them may have said something.
const MAX_HANDSHAKES: usize = 1024;
/// How many handshakes compute at a time: as many more as are waiting are in nobody's way.
const TURNS: usize = 4;
/// How long a peer may be silent at first.
const SILENCE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a peer that spoke waits to begin. Then it is hung up on, and comes back after a pause of its own
/// choice.
const LINE_DEADLINE: Duration = Duration::from_secs(10);
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

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

/// How a listener speaks TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// Who verifies peers, where they have to show who they are.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl Tls {
    /// Verifies the peer of a resumed session: the library trusts what the ticket says, and certificates end.
    fn still_trusts(&self, connection: &ServerConnection) -> Result<(), rustls::Error> {
        let Some(verifier) = &self.verifier else {
            return Ok(());
        };
        if connection.handshake_kind() != Some(HandshakeKind::Resumed) {
            return Ok(());
        }
        let Some([leaf, intermediates @ ..]) = connection.peer_certificates() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let now = UnixTime::since_unix_epoch(Duration::from_millis(clock::now_ms()));
        verifier.verify_client_cert(leaf, intermediates, now)?;
        Ok(())
    }
}

/// TLS for the public listener: everybody may come, HTTP/2 or HTTP/1.1.
pub fn public(certificate: Arc<ServerCertificate>) -> Result<Tls, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Settings)?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Tls {
        config: Arc::new(config),
        verifier: None,
    })
}

/// TLS for the edge listener: only who presents a certificate of our authority gets in.
///
/// Sessions are resumed with tickets and not from memory: what is kept of ten thousand devices would be tens of
/// megabytes.
pub fn edge(certificate: Arc<ServerCertificate>, ca: &Ca) -> Result<Tls, TlsError> {
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
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Settings)?;
    config.send_tls13_tickets = 1;
    Ok(Tls {
        config: Arc::new(config),
        verifier: Some(verifier),
    })
}

/// TLS that can be replaced between two handshakes.
#[derive(Debug)]
pub struct Reloadable(RwLock<Tls>);

impl Reloadable {
    /// Uses `tls`.
    pub fn new(tls: Tls) -> Arc<Self> {
        Arc::new(Self(RwLock::new(tls)))
    }

    /// Uses `tls` from the next handshake on.
    pub fn replace(&self, tls: Tls) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    fn tls(&self) -> Tls {
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
    pub fn spawn(
        listener: TcpListener,
        tls: Arc<Reloadable>,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Self {
        let (done, ready) = mpsc::channel(64);
        let (handshakes, shutdown) = (tasks.tracker.clone(), tasks.shutdown.clone());
        let lobby = Arc::new(Lobby {
            tls,
            metrics,
            room: Semaphore::new(MAX_HANDSHAKES),
            turns: Arc::new(Semaphore::new(TURNS)),
        });
        tasks.vital("a listener", async move {
            let room = Arc::new(Semaphore::new(MAX_ACCEPTED));
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
                let (lobby, done) = (lobby.clone(), done.clone());
                handshakes.spawn(async move {
                    lobby.metrics.handshakes_waiting.inc();
                    let stream = lobby.receive(stream, peer).await;
                    lobby.metrics.handshakes_waiting.dec();
                    if let Some(stream) = stream {
                        // A full channel holds the permit, and so slows the accepting down.
                        drop(done.send((stream, peer)).await);
                    }
                    drop(permit);
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

/// Where connections are until their handshake is over.
struct Lobby {
    tls: Arc<Reloadable>,
    metrics: Arc<Metrics>,
    room: Semaphore,
    turns: Arc<Semaphore>,
}

impl Lobby {
    async fn receive(&self, stream: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "TCP_NODELAY could not be set");
        }
        // Until it says something, a connection costs a descriptor and no more.
        let Ok(Ok(())) = timeout(SILENCE_DEADLINE, stream.readable()).await else {
            tracing::debug!(%peer, "the peer says nothing");
            return None;
        };
        let Ok(Ok(_place)) = timeout(LINE_DEADLINE, self.room.acquire()).await else {
            tracing::debug!(%peer, "too many handshakes; the peer has to come back");
            self.metrics.handshakes_refused.inc();
            return None;
        };
        let tls = self.tls.tls();
        let handshake = TlsAcceptor::from(tls.config.clone()).accept(stream);
        let handshake = in_turns(handshake, self.turns.clone());
        match timeout(HANDSHAKE_DEADLINE, handshake).await {
            Ok(Ok(stream)) => match tls.still_trusts(stream.get_ref().1) {
                Ok(()) => Some(stream),
                Err(error) => {
                    tracing::debug!(%peer, %error, "the resumed session's certificate holds no longer");
                    None
                }
            },
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "TLS handshake failed");
                None
            }
            Err(_elapsed) => {
                tracing::debug!(%peer, "TLS handshake took too long");
                None
            }
        }
    }
}

/// Polls `future` with one of `turns` in hand, and holds none in between.
async fn in_turns<F: Future>(future: F, turns: Arc<Semaphore>) -> F::Output {
    let mut future = Box::pin(future);
    let mut turns = PollSemaphore::new(turns);
    poll_fn(move |cx| {
        let turn = ready!(turns.poll_acquire(cx));
        let polled = future.as_mut().poll(cx);
        drop(turn);
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn a_turn_is_not_held_while_somebody_is_waited_for() {
        let turns = Arc::new(Semaphore::new(1));
        let (started, go) = (AtomicUsize::new(0), Semaphore::new(0));
        let waits = || async {
            started.fetch_add(1, Ordering::Relaxed);
            drop(go.acquire().await.unwrap());
        };
        let all = join_all((0..10).map(|_| in_turns(waits(), turns.clone())));
        let watch = async {
            while started.load(Ordering::Relaxed) < 10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(turns.available_permits(), 1, "all wait, and none holds it");
            go.add_permits(1);
        };
        tokio::join!(all, watch);
    }
}
