//! Wiring, and the way out.
//!
//! Everything runs under one [`TaskTracker`] and one [`CancellationToken`]. A signal ends the accepting first,
//! then the sessions (devices are told when to come back), then the rest, within a bounded grace.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use longshore_fleet::Kustomize;
use longshore_protocol::{TenantName, api::EDGE_PATH};
use rustix::process::{Resource, getrlimit, setrlimit};
use secrecy::ExposeSecret as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{self, Accepting, Api},
    builds::Builds,
    ca::Ca,
    certificates::{CertificateError, Certificates},
    clock,
    config::Config,
    enrollment::{Enrollment, limits::Limits},
    files,
    fleets::Fleets,
    gateway::{
        Gateway, Incoming, Lookups, Paces, Places, Recorder,
        admission::{self, Admission},
        outgoing::{self, Outgoing},
    },
    hosting::Hosting,
    hub::Hub,
    logs::{self, Logs},
    metrics::Metrics,
    replica::{
        Replica,
        common::{self, CommonError},
    },
    secret::{self, Keyring},
    store::{Store, StoreError, tenants},
    tasks::Tasks,
    tls::{self, TlsListener},
};

/// The label of the administrator's token in the data directory.
const BOOTSTRAP: &str = "bootstrap";
/// How long the way out may take.
const GRACE: Duration = Duration::from_secs(10);

/// Why the controller cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the data directory failed.
    #[error("the data directory failed")]
    Files(#[from] files::FileError),
    /// The store failed.
    #[error("the store cannot be opened")]
    Store(#[from] StoreError),
    /// The master key failed.
    #[error("the secret key cannot be used")]
    Secret(#[from] secret::SecretError),
    /// The database is not this controller's.
    #[error("the database cannot be shared")]
    Common(#[from] CommonError),
    /// The certificate authority failed.
    #[error("the certificate authority cannot be used")]
    Ca(#[from] crate::ca::CaError),
    /// A listener's certificate failed.
    #[error("a listener's certificate cannot be used")]
    Certificate(#[from] CertificateError),
    /// TLS failed.
    #[error("TLS cannot be set up")]
    Tls(#[from] tls::TlsError),
    /// There is nothing to render with.
    #[error("there is nothing to render with")]
    Render(#[from] longshore_fleet::DetectError),
    /// An address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signal(#[source] std::io::Error),
    /// A part ended that must not.
    #[error("{0} ended unexpectedly; the log says why")]
    Ended(&'static str),
}

/// Runs until a signal.
pub async fn run(config: Config) -> Result<(), RunError> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signal)?;
    let asked = shutdown.clone();
    let signals = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM: stopping"),
            _ = interrupt.recv() => info!("SIGINT: stopping"),
        }
        asked.cancel();
    });
    let result = serve(config, &shutdown).await;
    signals.abort();
    result
}

async fn serve(config: Config, shutdown: &CancellationToken) -> Result<(), RunError> {
    raise_descriptor_limit();
    let (tasks, mut end) = Tasks::new(shutdown.clone());
    let foundation = Foundation::lay(&config).await?;
    let public = listen(config.public_listen).await?;
    let edge = match &config.edge_name {
        Some(name) => Edge::Shared(name.clone()),
        None => Edge::Own(listen(config.edge_listen).await?),
    };
    let addresses = Addresses::of(&config, &public, &edge);
    let store = foundation.store.clone();
    let serving = Serving {
        foundation,
        addresses,
        tasks: tasks.clone(),
    };
    serving.start(&config, public, edge).await?;

    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        Some(part) = end.recv() => Err(RunError::Ended(part)),
    };
    // A listener that ends because of the shutdown is no surprise.
    let result = if shutdown.is_cancelled() {
        Ok(())
    } else {
        result
    };
    shutdown.cancel();
    tasks.tracker.close();
    if tokio::time::timeout(GRACE, tasks.tracker.wait())
        .await
        .is_err()
    {
        warn!(
            tasks = tasks.tracker.len(),
            "the grace is over; what is left is cut off"
        );
    }
    store.close().await;
    info!("stopped");
    result
}

/// Each connection is a descriptor; the usual soft limit is far below what the system allows.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

/// What must be there before anybody is served.
struct Foundation {
    data_dir: PathBuf,
    store: Store,
    keyring: Arc<Keyring>,
    ca: Arc<Ca>,
    renderer: Kustomize,
}

impl Foundation {
    async fn lay(config: &Config) -> Result<Self, RunError> {
        files::create_private_directory(&config.data_dir)?;
        let data_dir = std::path::absolute(&config.data_dir).unwrap_or(config.data_dir.clone());
        let store = match &config.database_url {
            Some(url) => Store::open(url.expose_secret()).await?,
            None => Store::embedded(&data_dir).await?,
        };
        let keyring = Arc::new(Keyring::open(&data_dir, config.secret_key.as_ref())?);
        let now = clock::now_ms();
        let ca = || Ca::open(&data_dir, config.ca.clone(), &config.trust_domain, now);
        let is_shared = store.peers().is_some();
        if is_shared {
            common::check_key(&store, &keyring).await?;
        }
        let ca = if is_shared && config.ca.is_none() {
            common::authority(&store, &keyring, &data_dir, ca).await?
        } else {
            ca()?
        };
        let renderer = Kustomize::detect(config.render.clone()).await?;
        info!(
            renderer = renderer.describe(),
            store = store.engine().name(),
            "starting"
        );
        prepare(&store, &data_dir, now).await?;
        Ok(Self {
            data_dir,
            store,
            keyring,
            ca: Arc::new(ca),
            renderer,
        })
    }
}

/// Where devices connect.
enum Edge {
    /// At an address of their own.
    Own(TcpListener),
    /// At the public address, by asking for this server name.
    Shared(String),
}

/// How others reach the listeners.
struct Addresses {
    public_url: String,
    edge_url: String,
    /// What the listeners' certificates are for.
    names: Vec<String>,
}

impl Addresses {
    fn of(config: &Config, public: &TcpListener, edge: &Edge) -> Self {
        let public = public.local_addr().unwrap_or(config.public_listen);
        let edge = match edge {
            Edge::Own(edge) => edge.local_addr().unwrap_or(config.edge_listen),
            Edge::Shared(_) => public,
        };
        let scheme = if config.plain_http { "http" } else { "https" };
        let url = |given: &Option<String>, scheme: &str, listener| {
            given
                .clone()
                .unwrap_or_else(|| format!("{scheme}://{}", reachable(listener)))
        };
        let public_url = url(&config.public_url, scheme, public);
        let edge_url = url(&config.edge_url, "wss", edge);
        let names = certificate_names(config, &public_url, &edge_url, [public, edge]);
        Self {
            public_url,
            edge_url,
            names,
        }
    }
}

/// All that runs.
struct Serving {
    foundation: Foundation,
    addresses: Addresses,
    tasks: Tasks,
}

impl Serving {
    #[expect(clippy::too_many_lines, reason = "each part is wired once")]
    async fn start(self, config: &Config, public: TcpListener, edge: Edge) -> Result<(), RunError> {
        let Foundation {
            data_dir,
            store,
            keyring,
            ca,
            renderer,
        } = self.foundation;
        let Addresses {
            public_url,
            edge_url,
            names,
        } = self.addresses;
        let tasks = self.tasks;
        let metrics = Arc::new(Metrics::default());
        let replica = Replica::join(&store, &metrics, &tasks).await?;
        let hub = Arc::new(Hub::among(replica.notices.clone()));
        let description = renderer.describe();
        let fleets = Arc::new(Fleets::new(
            data_dir.clone(),
            config.poll_interval,
            store.clone(),
            keyring.clone(),
            Builds::new(
                Arc::new(renderer),
                store.clone(),
                metrics.clone(),
                tasks.tracker.clone(),
            ),
            hub.clone(),
            metrics.clone(),
            tasks.clone(),
            public_url.clone(),
            replica.clone(),
        ));
        fleets.follow_all().await?;
        fleets.keep_up();

        let certificates = Arc::new(Certificates::open(
            ca.clone(),
            names,
            config.public_files.clone(),
            config.edge_files.clone(),
        )?);
        let (told, stirred) = (fleets.clone(), fleets.clone());
        let lookups = Arc::new(Lookups::new(store.clone(), metrics.clone()));
        let gateway = Arc::new(Gateway {
            store: store.clone(),
            hub: hub.clone(),
            lookups: lookups.clone(),
            admission: Admission::new(admission::Bounds::default(), metrics.clone()),
            paces: Paces::default(),
            places: Places::default(),
            incoming: Incoming::default(),
            outgoing: Outgoing::new(outgoing::Bounds::default(), metrics.clone()),
            recorder: Recorder::new(
                replica.id,
                store.clone(),
                hub.clone(),
                metrics.clone(),
                move |fleet| told.progressed(fleet),
                // Some facts may be labels.
                move |fleet| stirred.poke(fleet),
            ),
            keyring: keyring.clone(),
            ca: ca.clone(),
            metrics: metrics.clone(),
            heartbeat: config.heartbeat,
        });
        let (edge, public) = listeners(config, public, edge, &certificates, &metrics, &tasks)?;
        let gateway = gateway.run(edge);
        tasks.vital("the edge listener", gateway);

        let enrollment = Enrollment {
            store: store.clone(),
            ca,
            certificates: certificates.clone(),
            keyring: keyring.clone(),
            fleets: fleets.clone(),
            limits: Limits::default(),
            lookups,
            metrics: metrics.clone(),
            shutdown: tasks.shutdown.clone(),
            edge_url: format!("{edge_url}{EDGE_PATH}"),
            renewal_grace: config.renewal_grace,
        };
        let hosting = Hosting::start(&data_dir, config.hosting, fleets.clone(), tasks.clone())?;
        let app = api::router(Arc::new(Api {
            store,
            fleets,
            hosting,
            enrollment,
            logs: Logs::new(hub.clone(), logs::Bounds::default(), metrics.clone()),
            hub,
            keyring,
            certificates: certificates.clone(),
            metrics,
            webhooks: api::Webhooks::default(),
            public_url: public_url.clone(),
            renderer: description,
        }));
        let public = api::serve(public, app, tasks.clone());
        tasks.vital("the public listener", public);
        let keep = certificates.clone().keep(tasks.shutdown.clone());
        tasks.vital("the renewal of certificates", keep);

        publish(
            &data_dir,
            &certificates.public_bundle(),
            &public_url,
            &edge_url,
        )?;
        info!(public = public_url, edge = edge_url, data = %data_dir.display(), "ready");
        Ok(())
    }
}

/// The edge listener, and the public one, with TLS unless the settings say otherwise.
fn listeners(
    config: &Config,
    public: TcpListener,
    edge: Edge,
    certificates: &Certificates,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Result<(TlsListener, Accepting), tls::TlsError> {
    let (bounds, metrics) = (tls::Bounds::default(), || metrics.clone());
    let edge_tls = certificates.edge_tls();
    let edge = match edge {
        Edge::Own(edge) => TlsListener::spawn(edge, edge_tls, bounds, metrics(), tasks),
        Edge::Shared(name) => {
            let named = (name, edge_tls);
            let others = certificates.public_tls()?;
            let (edge, public) =
                TlsListener::spawn_both(public, named, others, bounds, metrics(), tasks);
            return Ok((edge, Accepting::Tls(public)));
        }
    };
    if config.plain_http {
        return Ok((edge, Accepting::Plain(public)));
    }
    let tls = certificates.public_tls()?;
    let public = TlsListener::spawn(public, tls, bounds, metrics(), tasks);
    Ok((edge, Accepting::Tls(public)))
}

/// Writes the files that tell the command line, on this machine, how to reach the controller.
fn publish(
    data_dir: &Path,
    bundle: &str,
    public_url: &str,
    edge_url: &str,
) -> Result<(), files::FileError> {
    files::write(&data_dir.join("ca.pem"), bundle.as_bytes(), 0o644)?;
    files::write(
        &data_dir.join("edge-address"),
        format!("{edge_url}\n").as_bytes(),
        0o644,
    )?;
    files::write(
        &data_dir.join("address"),
        format!("{public_url}\n").as_bytes(),
        0o644,
    )
}

/// Makes what must always exist: the tenant `default` and an administrator's token.
async fn prepare(store: &Store, data_dir: &Path, now: u64) -> Result<(), RunError> {
    let file = data_dir.join("admin-token");
    let token = files::read_or_create_secret(&file, || secret::generate("lsa_"))?;
    let mut db = store.write().await?;
    let tenant = TenantName::default_tenant();
    if !tenants::exists(&mut db, &tenant).await? {
        tenants::insert(&mut db, &tenant, now).await?;
    }
    let hash = secret::hash(token.expose_secret());
    let administrator = tenants::Operator::Administrator;
    // Each data directory has a token of its own; those of other replicas' directories hold, too.
    let label = if store.peers().is_some() {
        let make = || secret::generate("");
        let directory = files::read_or_create_secret(&data_dir.join("directory-id"), make)?;
        format!("{BOOTSTRAP} {}", directory.expose_secret())
    } else {
        BOOTSTRAP.to_owned()
    };
    tenants::insert_api_token(&mut db, hash, &administrator, &label, now).await?;
    // Deleting the file and starting again is how a leaked token is revoked.
    tenants::delete_other_api_tokens(&mut db, hash, &label).await?;
    db.commit().await.map_err(StoreError::from)?;
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen { address, source })
}

/// The address under which others reach a listener: where it listens on all, the one that this machine
/// would use to reach others.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    SocketAddr::new(
        outward_address().unwrap_or(Ipv4Addr::LOCALHOST.into()),
        address.port(),
    )
}

/// Connecting a datagram socket sends nothing; it only makes the kernel choose a source address. The target is
/// from TEST-NET-1 (RFC 5737), which nobody has.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_unspecified())
}

fn certificate_names(
    config: &Config,
    public_url: &str,
    edge_url: &str,
    listeners: [SocketAddr; 2],
) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    names.extend(config.hostnames.iter().cloned());
    if let Ok(hostname) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        names.push(hostname.trim().to_owned());
    }
    for url in [public_url, edge_url] {
        if let Ok(url) = url::Url::parse(url) {
            names.extend(
                url.host_str()
                    .map(|host| host.trim_matches(['[', ']']).to_owned()),
            );
        }
    }
    names.extend(
        listeners
            .iter()
            .map(|listener| reachable(*listener).ip().to_string()),
    );
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}
