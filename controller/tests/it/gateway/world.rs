//! A gateway on its own: a listener with real TLS, a store, and devices that the tests write by hand.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, header};
use longshore_controller::{
    ca::{self, Ca, Signer as _},
    certificates::Certificates,
    clock,
    gateway::{
        Gateway, Incoming, Lookups, Paces, Places, Recorder,
        admission::{self, Admission},
        outgoing::{self, Outgoing},
    },
    hub::Hub,
    metrics::Metrics,
    replica::ReplicaId,
    secret::Keyring,
    store::{
        content,
        devices::{self, Desired},
        replicas,
    },
    tasks::Tasks,
    tls::{self, TlsListener},
};
use longshore_protocol::{
    DeviceId, Digest, Generation, ManifestSet, Object,
    api::{DeviceState, EDGE_PATH, SUBPROTOCOL},
    message::{ControlMessage, DeviceMessage, Held, Hello},
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, handshake::client::generate_key},
};
use tokio_util::sync::CancellationToken;

use crate::store::{
    database::Database,
    samples::{device, fleet_id, insert_devices, two_tenants},
};

/// For what is to happen soon.
pub const PATIENCE: Duration = Duration::from_mins(1);

pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// A running gateway.
pub struct World {
    pub database: Database,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
    pub address: SocketAddr,
    ca: Arc<Ca>,
    keyring: Arc<Keyring>,
    roots: Arc<RootCertStore>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
    _directory: TempDir,
}

/// A device that may connect.
#[derive(Clone)]
pub struct Member {
    pub id: DeviceId,
    pub tenant: &'static str,
    address: SocketAddr,
    tls: TlsConnector,
    token: String,
}

/// How much of what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    pub admission: admission::Bounds,
    pub outgoing: outgoing::Bounds,
    pub tls: tls::Bounds,
}

impl World {
    pub async fn start(database: Database, bounds: Bounds) -> Self {
        two_tenants(&database).await;
        let directory = tempfile::tempdir().unwrap();
        let replica = ReplicaId::random();
        let mut db = database.write().await;
        replicas::alone(&mut db, &replica).await.unwrap();
        db.commit().await.unwrap();
        let store = database.store.clone();
        let ca = Ca::open(directory.path(), None, "longshore.test", clock::now_ms()).unwrap();
        let ca = Arc::new(ca);
        let names = vec!["127.0.0.1".to_owned()];
        let certificates = Certificates::open(ca.clone(), names, None, None).unwrap();
        let keyring = Arc::new(Keyring::open(directory.path(), None).unwrap());
        let (hub, metrics) = (Arc::new(Hub::default()), Arc::new(Metrics::default()));
        let gateway = Arc::new(Gateway {
            store: store.clone(),
            hub: hub.clone(),
            lookups: Arc::new(Lookups::new(store.clone(), metrics.clone())),
            paces: Paces::default(),
            places: Places::default(),
            admission: Admission::new(bounds.admission, metrics.clone()),
            incoming: Incoming::default(),
            outgoing: Outgoing::new(bounds.outgoing, metrics.clone()),
            recorder: Recorder::new(replica, store, hub.clone(), metrics.clone(), |_| (), |_| ()),
            keyring: keyring.clone(),
            ca: ca.clone(),
            metrics: metrics.clone(),
            heartbeat: Duration::from_mins(1),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (tasks, _ended) = Tasks::new(shutdown.clone());
        let tls = certificates.edge_tls();
        let listener = TlsListener::spawn(listener, tls, bounds.tls, metrics.clone(), &tasks);
        let mut roots = RootCertStore::empty();
        for root in ca.authority().roots() {
            roots.add(root.clone()).unwrap();
        }
        Self {
            database,
            hub,
            metrics,
            address,
            ca,
            keyring,
            roots: Arc::new(roots),
            shutdown,
            running: tokio::spawn(gateway.run(listener)),
            _directory: directory,
        }
    }

    /// Active devices of a tenant's fleet `shops`, from the `first` on.
    pub async fn devices(&self, tenant: &'static str, first: u32, count: u32) -> Vec<Member> {
        let fleet = fleet_id(tenant, "shops");
        let mut rows = Vec::new();
        let mut members = Vec::new();
        for n in first..first + count {
            let key = KeyPair::generate().unwrap();
            let mut row = device(&fleet, n);
            row.state = DeviceState::Active;
            row.public_key = Digest::of(&key.subject_public_key_info());
            members.push(self.member(tenant, &row.id, row.public_key, &key));
            rows.push(row);
        }
        insert_devices(&self.database, &rows).await;
        members
    }

    fn member(
        &self,
        tenant: &'static str,
        id: &DeviceId,
        public_key: Digest,
        key: &KeyPair,
    ) -> Member {
        let request = CertificateParams::default().serialize_request(key).unwrap();
        let request = ca::Request::from_pem(&request.pem().unwrap()).unwrap();
        let chain = self
            .ca
            .sign_device(&request, &tenant.parse().unwrap(), id, clock::now_ms())
            .unwrap();
        let token = self.keyring.device_token(id, public_key);
        Member {
            id: id.clone(),
            tenant,
            address: self.address,
            tls: self.connector(chain, key),
            token: token.expose_secret().to_owned(),
        }
    }

    fn connector(&self, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> TlsConnector {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(chain, key)
            .unwrap();
        TlsConnector::from(Arc::new(config))
    }

    /// Lets these devices have these objects as their generation, and pokes them.
    pub async fn desire(&self, members: &[Member], generation: u64, objects: &[Object]) {
        self.store_desired(members, generation, objects).await;
        self.poke(members);
    }

    pub fn poke(&self, members: &[Member]) {
        self.hub.poke(members.iter().map(|member| &member.id));
    }

    /// Lets these devices have these objects as their generation, and tells nobody.
    pub async fn store_desired(&self, members: &[Member], generation: u64, objects: &[Object]) {
        let Some(Member { tenant, .. }) = members.first() else {
            return;
        };
        let set = ManifestSet::of(objects).unwrap();
        let desired = Desired {
            target: Held {
                generation: Generation::from(generation),
                digest: set.digest(),
            },
            revision: format!("commit {generation}"),
            objects: objects.len() as u64,
            since: 1,
        };
        let moves: Vec<_> = members
            .iter()
            .map(|member| (member.id.clone(), desired.clone()))
            .collect();
        let fleet = fleet_id(tenant, "shops");
        let mut db = self.database.write().await;
        content::put_objects(&mut db, &fleet.tenant, objects)
            .await
            .unwrap();
        content::put_sets(&mut db, &fleet.tenant, [&set])
            .await
            .unwrap();
        devices::put_desired(&mut db, &fleet, &moves).await.unwrap();
        db.commit().await.unwrap();
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.running).await.unwrap().unwrap();
    }
}

impl Member {
    /// Opens a session.
    ///
    /// # Errors
    /// Where there is none; the answer, where there is one.
    pub async fn connect(&self) -> Result<Socket, Error> {
        let tls = self.secure().await?;
        let request = Request::builder()
            .uri(format!("wss://{}{EDGE_PATH}", self.address))
            .header(header::HOST, self.address.to_string())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key())
            .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(())
            .unwrap();
        Ok(client_async(request, tls).await?.0)
    }

    /// Opens a connection that asks for nothing yet.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn secure(&self) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address).await?;
        let server = ServerName::IpAddress(self.address.ip().into());
        self.tls.connect(server, tcp).await
    }

    /// Opens a session and says hello.
    pub async fn greet(&self, ledger: Option<Held>) -> Socket {
        let mut socket = timeout(PATIENCE, self.connect()).await.unwrap().unwrap();
        let hello = Hello {
            ledger,
            ..Hello::default()
        };
        say(&mut socket, &DeviceMessage::Hello(hello))
            .await
            .unwrap();
        socket
    }
}

pub async fn say(socket: &mut Socket, message: &DeviceMessage) -> Result<(), Error> {
    socket.send(Message::binary(message.encode())).await
}

/// Reads until `wanted` picks something.
pub async fn hear<T>(
    socket: &mut Socket,
    mut wanted: impl FnMut(ControlMessage) -> Option<T>,
) -> T {
    let heard = async {
        loop {
            let frame = socket.next().await.expect("the session ended").unwrap();
            if let Message::Binary(frame) = frame
                && let Some(message) = ControlMessage::decode(&frame).unwrap()
                && let Some(heard) = wanted(message)
            {
                return heard;
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("nothing is heard")
}

/// The offered set, and the message that asks for all of it.
pub async fn everything_offered(socket: &mut Socket) -> (Held, DeviceMessage) {
    hear(socket, |message| match message {
        ControlMessage::Offer {
            generation,
            target,
            entries,
            ..
        } => {
            let digests = entries.iter().map(|entry| entry.digest).collect();
            let held = Held {
                generation,
                digest: target,
            };
            Some((held, DeviceMessage::Need { target, digests }))
        }
        _ => None,
    })
    .await
}

/// Waits for a condition.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}
