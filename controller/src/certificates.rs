//! What the two listeners present: certificates of our own authority, or an operator's, kept fresh.
//!
//! Our own are renewed daily, and when the authority changes; an operator's files are read again when they
//! change. A listener is trusted by the last certificate of its chain, which for our own is the root: agents pin
//! it when they enroll, and it is part of the bundles that agents and the command line get.

use std::{path::PathBuf, sync::Arc, time::Duration, time::SystemTime};

use longshore_protocol::Digest;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    ca::{Ca, CaError, ServerIdentity, pem},
    clock,
    error::chain,
    tls::{self, Reloadable, ServerCertificate, TlsError},
};

/// How often files are looked at.
const CHECK: Duration = Duration::from_secs(10);
/// How often our own certificates are renewed.
const RENEWAL: Duration = Duration::from_hours(24);

/// An operator's certificate for a listener.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain, leaf first, PEM.
    pub chain: PathBuf,
    /// The leaf's key, PEM.
    pub key: PathBuf,
}

/// Why a listener has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A supplied file is no good.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls_pki_types::pem::Error,
    },
    /// A supplied file holds nothing.
    #[error("{}: holds no certificate", .0.display())]
    Empty(PathBuf),
    /// Our own authority failed.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Certificate and key do not go together.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// One listener's certificate.
#[derive(Debug)]
struct Presented {
    files: Option<Files>,
    certificate: Arc<ServerCertificate>,
}

/// Both listeners' certificates.
#[derive(Debug)]
pub struct Certificates {
    ca: Arc<Ca>,
    names: Vec<String>,
    public: Presented,
    edge: Presented,
    edge_tls: Arc<Reloadable>,
}

impl Certificates {
    /// Reads or makes both. Our own are for `names`.
    pub fn open(
        ca: Arc<Ca>,
        names: Vec<String>,
        public: Option<Files>,
        edge: Option<Files>,
    ) -> Result<Self, CertificateError> {
        let present = |files: Option<Files>| -> Result<Presented, CertificateError> {
            let certificate = ServerCertificate::new(identity(&ca, &names, files.as_ref())?)?;
            Ok(Presented { files, certificate })
        };
        let (public, edge) = (present(public)?, present(edge)?);
        let edge_tls = Reloadable::new(tls::edge(edge.certificate.clone(), &ca)?);
        Ok(Self {
            ca,
            names,
            public,
            edge,
            edge_tls,
        })
    }

    /// TLS for the public listener.
    pub fn public_tls(&self) -> Result<Arc<Reloadable>, TlsError> {
        Ok(Reloadable::new(tls::public(
            self.public.certificate.clone(),
        )?))
    }

    /// TLS for the edge listener.
    pub fn edge_tls(&self) -> Arc<Reloadable> {
        self.edge_tls.clone()
    }

    /// The digest of the certificate by which agents trust the public listener when they enroll.
    pub fn pin(&self) -> Digest {
        self.public
            .certificate
            .anchor()
            .map_or_else(|| self.ca.fingerprint(), |it| Digest::of(&it))
    }

    /// What the public listener's certificate is to be verified with, PEM.
    pub fn public_bundle(&self) -> String {
        self.bundle(&self.public)
    }

    /// What the edge listener's certificate is to be verified with, PEM.
    pub fn edge_bundle(&self) -> String {
        self.bundle(&self.edge)
    }

    fn bundle(&self, presented: &Presented) -> String {
        let mut roots = self.ca.authority().roots().to_vec();
        roots.extend(
            presented
                .certificate
                .anchor()
                .filter(|anchor| !roots.contains(anchor)),
        );
        pem("CERTIFICATE", &roots)
    }

    /// Keeps both fresh until `shutdown`.
    pub async fn keep(self: Arc<Self>, shutdown: CancellationToken) {
        let mut renewed = Instant::now();
        let mut modified = self.modified();
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK) => {}
                () = shutdown.cancelled() => return,
            }
            let changed = self.ca.reload(clock::now_ms()).unwrap_or_else(|error| {
                error!(
                    error = %chain(&error),
                    "the new certificate authority is refused; the old one stays"
                );
                false
            });
            let now = self.modified();
            if !changed && now == modified && renewed.elapsed() < RENEWAL {
                continue;
            }
            modified = now;
            renewed = Instant::now();
            match self.renew() {
                Ok(()) => info!(
                    authority_changed = changed,
                    "the listeners have new certificates"
                ),
                Err(error) => error!(
                    error = %chain(&error),
                    "the listeners' certificates could not be renewed; the old ones stay"
                ),
            }
        }
    }

    fn renew(&self) -> Result<(), CertificateError> {
        for presented in [&self.public, &self.edge] {
            let identity = identity(&self.ca, &self.names, presented.files.as_ref())?;
            presented.certificate.replace(identity)?;
        }
        self.edge_tls
            .replace(tls::edge(self.edge.certificate.clone(), &self.ca)?);
        Ok(())
    }

    /// When the supplied files changed last.
    fn modified(&self) -> Vec<Option<SystemTime>> {
        [&self.public, &self.edge]
            .into_iter()
            .filter_map(|presented| presented.files.as_ref())
            .flat_map(|files| [&files.chain, &files.key])
            .map(|file| file.metadata().ok()?.modified().ok())
            .collect()
    }
}

fn identity(
    ca: &Ca,
    names: &[String],
    files: Option<&Files>,
) -> Result<ServerIdentity, CertificateError> {
    let Some(files) = files else {
        return Ok(ca.server_identity(names, clock::now_ms())?);
    };
    let wrong = |path: &PathBuf| {
        let path = path.clone();
        |source| CertificateError::File { path, source }
    };
    let certificates = CertificateDer::pem_file_iter(&files.chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(wrong(&files.chain))?;
    if certificates.is_empty() {
        return Err(CertificateError::Empty(files.chain.clone()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(wrong(&files.key))?;
    Ok((certificates, key))
}
