//! The two listeners' TLS: a certificate that renews itself, and the verification of devices.
//!
//! Connections are in a [`lobby`] until their handshake is over; those that stall there push out each other.
//!
//! Both may share one address. The name that a client asks for in its first message (SNI, RFC 6066) then says which
//! one it gets: the edge has a name of its own, and everything else is public. From there on each has its own
//! certificate, verification and sessions.
//!
//! Devices resume their sessions with tickets, which this process alone can read. A resumed handshake brings the
//! certificate that the first one verified; it is verified again, now, before the connection goes on.

mod inbound;
mod lobby;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use self::lobby::Lobby;
pub use self::{inbound::Inbound, lobby::Bounds};
use crate::{
    ca::{Ca, ServerIdentity},
    clock,
    metrics::Metrics,
    rate::Rate,
    tasks::Tasks,
};

/// How many bytes the kernel takes beyond what is on its way to the peer.
const UNSENT: u32 = 16 * 1024;
/// How many bytes it takes that are not read yet; it doubles that.
const UNREAD: usize = 32 * 1024;
/// When the kernel finds out that a client of the API has vanished: within three minutes.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(30))
    .with_retries(4);
/// How many bytes a device is read: the largest messages come in some seconds, and a flood does not.
const DEVICE_PACE: Rate = Rate {
    burst: 256.0 * 1024.0,
    per_second: 32.0 * 1024.0,
};

/// How many connections are kept ready for whoever takes them.
const READY: usize = 64;

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
    /// How many bytes a peer is read once it is through, where that has a bound.
    pace: Option<Rate>,
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
        pace: None,
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
        pace: Some(DEVICE_PACE),
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

/// A connection whose handshake is done.
pub type Stream = TlsStream<Inbound>;

/// Accepted connections whose handshake is done.
#[derive(Debug)]
pub struct TlsListener {
    ready: mpsc::Receiver<(Stream, SocketAddr)>,
}

impl TlsListener {
    /// Accepts on `listener` until the shutdown.
    pub fn spawn(
        listener: TcpListener,
        tls: Arc<Reloadable>,
        bounds: Bounds,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Self {
        // Nobody else needs the room.
        let (others, ready) = Door::new(tls, bounds.room);
        let doors = Doors {
            named: None,
            others,
        };
        receive(listener, doors, bounds, metrics, tasks);
        Self { ready }
    }

    /// Accepts on `listener` for two until the shutdown: `named` gets those that ask for the server `name`, and
    /// `others` everybody else. Returns them in this order.
    pub fn spawn_both(
        listener: TcpListener,
        (name, named): (String, Arc<Reloadable>),
        others: Arc<Reloadable>,
        bounds: Bounds,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> (Self, Self) {
        // Where the one side is not accepted any more, there is room for the other one.
        let (named, for_named) = Door::new(named, bounds.room / 2);
        let (others, for_others) = Door::new(others, bounds.room / 2);
        let doors = Doors {
            named: Some((name, named)),
            others,
        };
        receive(listener, doors, bounds, metrics, tasks);
        (Self { ready: for_named }, Self { ready: for_others })
    }

    /// The next connection; `None` after the shutdown.
    pub async fn next(&mut self) -> Option<(Stream, SocketAddr)> {
        self.ready.recv().await
    }
}

/// Where connections go to.
#[derive(Debug)]
struct Door {
    tls: Arc<Reloadable>,
    ready: mpsc::Sender<(Stream, SocketAddr)>,
    /// For those whose handshake is done and that are not taken yet.
    backlog: Semaphore,
}

impl Door {
    fn new(tls: Arc<Reloadable>, backlog: usize) -> (Self, mpsc::Receiver<(Stream, SocketAddr)>) {
        let (ready, receiver) = mpsc::channel(READY);
        let backlog = Semaphore::new(backlog);
        let door = Self {
            tls,
            ready,
            backlog,
        };
        (door, receiver)
    }

    /// Waits until the connection is taken. Returns whether there was room for that.
    async fn pass(&self, stream: Stream, peer: SocketAddr) -> bool {
        let Ok(_place) = self.backlog.try_acquire() else {
            return false;
        };
        drop(self.ready.send((stream, peer)).await);
        true
    }
}

/// A listener's doors.
#[derive(Debug)]
struct Doors {
    /// For those who ask for this server name.
    named: Option<(String, Door)>,
    others: Door,
}

impl Doors {
    fn door(&self, asked: Option<&str>) -> &Door {
        match (&self.named, asked) {
            (Some((name, door)), Some(asked)) if asked.eq_ignore_ascii_case(name) => door,
            _ => &self.others,
        }
    }
}

fn receive(
    listener: TcpListener,
    doors: Doors,
    bounds: Bounds,
    metrics: Arc<Metrics>,
    tasks: &Tasks,
) {
    let (handshakes, shutdown) = (tasks.tracker.clone(), tasks.shutdown.clone());
    let lobby = Arc::new(Lobby::new(bounds, metrics.clone()));
    let doors = Arc::new(doors);
    tasks.vital("a listener", async move {
        loop {
            let accepted = async {
                let (stream, peer) = accept(&listener).await;
                (stream, peer, lobby.room_for(peer.ip()).await)
            };
            let (stream, peer, place) = tokio::select! {
                accepted = accepted => accepted,
                () = shutdown.cancelled() => return,
            };
            let (lobby, doors, metrics) = (lobby.clone(), doors.clone(), metrics.clone());
            handshakes.spawn(async move {
                let received = lobby.receive(peer.ip(), handshake(&doors, stream)).await;
                match received {
                    // A full channel holds the place, and so slows the accepting down.
                    Ok(Ok((stream, door))) => {
                        if !door.pass(stream, peer).await {
                            metrics.handshakes_refused.inc();
                        }
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                    Err(error) => tracing::debug!(%peer, %error, "no TLS handshake"),
                }
                drop(place);
            });
        }
    });
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Most often no file descriptors are left; connections that end will free some.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn handshake(doors: &Doors, stream: TcpStream) -> io::Result<(Stream, &Door)> {
    stream.set_nodelay(true)?;
    // What a peer does not read stays with us: in the kernel little, beyond what is on its way.
    SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT)?;
    // Until it says something, a connection costs a descriptor and no more.
    stream.readable().await?;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), Inbound::new(stream)).await?;
    let door = doors.door(hello.client_hello().server_name());
    let tls = door.tls.tls();
    let socket = SockRef::from(hello.io.socket());
    if tls.pace.is_some() {
        // And of what a paced peer sends, it takes little that is not read yet.
        socket.set_recv_buffer_size(UNREAD)?;
    } else {
        // Devices have heartbeats; others may vanish while they wait for something that does not come.
        socket.set_tcp_keepalive(&KEEPALIVE)?;
    }
    let mut stream = hello.into_stream(tls.config.clone()).await?;
    let (inbound, connection) = stream.get_mut();
    // Of a resumed session, the certificate may hold no longer.
    tls.still_trusts(connection).map_err(io::Error::other)?;
    match tls.pace {
        Some(rate) => inbound.pace(rate),
        None => inbound.free(),
    }
    Ok((stream, door))
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, ClientConnection};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn listener_and_client() -> (Arc<Reloadable>, ClientConnection) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let certificate = ServerCertificate::new((vec![made.cert.der().clone()], key)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        (Reloadable::new(public(certificate).unwrap()), client)
    }

    /// Fast clients do not wait: the end of the handshake and a full record of a request may come at once.
    #[tokio::test]
    async fn what_follows_a_handshake_may_come_with_its_end() {
        let (tls, mut client) = listener_and_client();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let request = vec![b'x'; 16 * 1024];
        let sent = request.clone();
        let peer = tokio::spawn(async move {
            while client.is_handshaking() {
                let mut out = Vec::new();
                client.write_tls(&mut out).unwrap();
                peer.write_all(&out).await.unwrap();
                let mut bytes = vec![0; 4096];
                let read = peer.read(&mut bytes).await.unwrap();
                assert_ne!(read, 0, "the listener ended the handshake");
                client.read_tls(&mut &bytes[..read]).unwrap();
                client.process_new_packets().unwrap();
            }
            io::Write::write_all(&mut client.writer(), &sent).unwrap();
            let mut out = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut out).unwrap();
            }
            // The listener waits for the rest of the record, and has all before it.
            let (last, most) = out.split_last().unwrap();
            peer.write_all(most).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            peer.write_all(&[*last]).await.unwrap();
            peer
        });
        let doors = Doors {
            named: None,
            others: Door::new(tls, 1).0,
        };
        let (mut stream, _) = handshake(&doors, accepted).await.unwrap();
        let mut bytes = vec![0; request.len()];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, request);
        drop(peer.await.unwrap());
    }

    /// A listener that two share, and clients by the names that they ask for.
    struct Shared {
        address: SocketAddr,
        edge: TlsListener,
        public: TlsListener,
        roots: RootCertStore,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    }

    impl Shared {
        async fn start(room: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut roots = RootCertStore::empty();
            let mut presents = |name: &str| {
                let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
                let key = made.signing_key.serialize_der().try_into().unwrap();
                roots.add(made.cert.der().clone()).unwrap();
                let certificate = ServerCertificate::new((vec![made.cert.der().clone()], key));
                Reloadable::new(public(certificate.unwrap()).unwrap())
            };
            let named = ("edge.test".to_owned(), presents("edge.test"));
            let others = presents("public.test");
            let (metrics, shutdown) = (Arc::<Metrics>::default(), CancellationToken::new());
            let (tasks, _end) = Tasks::new(shutdown.clone());
            let bounds = Bounds {
                room,
                ..Bounds::default()
            };
            let (edge, public) =
                TlsListener::spawn_both(listener, named, others, bounds, metrics.clone(), &tasks);
            Self {
                address,
                edge,
                public,
                roots,
                metrics,
                shutdown,
            }
        }

        /// Asks for this server, and succeeds where its certificate comes.
        async fn ask(&self, name: &str) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
            let config = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(self.roots.clone())
                .with_no_client_auth();
            let stream = TcpStream::connect(self.address).await.unwrap();
            let name = name.to_owned().try_into().unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            connector.connect(name, stream).await
        }
    }

    #[tokio::test]
    async fn the_name_that_is_asked_for_leads_to_the_edge_and_all_else_does_not() {
        let mut shared = Shared::start(8).await;
        let _edge = shared.ask("EDGE.test").await.unwrap();
        let (_stream, peer) = shared.edge.next().await.unwrap();
        assert_eq!(peer.ip(), shared.address.ip());
        let _public = shared.ask("public.test").await.unwrap();
        shared.public.next().await.unwrap();
        // Without a name, or with one that nobody has, everybody is shown the public certificate.
        for name in ["127.0.0.1", "elsewhere.test"] {
            let error = shared.ask(name).await.unwrap_err();
            assert!(error.to_string().contains("public.test"), "{error}");
        }
        shared.shutdown.cancel();
        assert!(shared.edge.next().await.is_none());
    }

    /// The public side is full, and its connections wait to be taken. Devices get in all the same.
    #[tokio::test]
    async fn a_crowd_at_one_door_does_not_block_the_other() {
        let room = 8;
        let mut shared = Shared::start(room).await;
        let mut crowd = Vec::new();
        for _ in 0..READY + 2 * room {
            crowd.push(shared.ask("public.test").await);
        }
        let edge = tokio::time::timeout(Duration::from_secs(20), shared.ask("edge.test"));
        let _edge = edge.await.expect("there is room").unwrap();
        shared.edge.next().await.unwrap();
        assert!(shared.metrics.handshakes_refused.get() > 0);
        // Whoever was kept is served.
        for _ in 0..READY {
            shared.public.next().await.unwrap();
        }
        shared.shutdown.cancel();
    }
}
