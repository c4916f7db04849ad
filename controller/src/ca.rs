//! The certificate authority: an offline-able root, an online intermediate, and short-lived certificates.
//!
//! ```text
//! root (10 years; its key may be taken away) ─▶ intermediate (5 years) ─▶ device  (30 days, clientAuth)
//!                                                                      └▶ servers (90 days, serverAuth)
//! ```
//!
//! Both are made in `ca/` of the data directory at the first start, or supplied by the operator (`--ca-chain`,
//! `--ca-key`, `--ca-root`). What is loaded is checked: CA:TRUE, keyCertSign, the key's match, expiry.
//! Device certificates follow RFC 5280 and the X.509-SVID profile of SPIFFE: one URI SAN.

mod authority;
mod device;
mod former;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use longshore_protocol::{DeviceId, Digest, TenantName};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub use self::{
    authority::Authority,
    device::{DeviceIdentity, Request, identity_of},
    former::Former,
};
use crate::files;

/// How long a device's certificate lives.
const DEVICE_LIFE_MS: u64 = 30 * DAY_MS;
/// How long a certificate of our own listeners lives; it is renewed at every start and every day.
const SERVER_LIFE_MS: u64 = 90 * DAY_MS;
/// Certificates start this long ago, for peers whose clocks are behind.
const BACKDATE_MS: u64 = 5 * 60 * 1000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Why a certificate authority or a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the authority failed.
    #[error("a file of the certificate authority failed")]
    File(#[from] files::FileError),
    /// A supplied authority does not hold together.
    #[error("{}: {problem}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The device's request is refused. The device's fault.
    #[error("the certificate signing request {0}")]
    Request(String),
    /// The certificate that a device presents for a renewal is refused. The device's fault.
    #[error("the certificate chain {0}")]
    Former(String),
    /// A certificate could not be made.
    #[error("a certificate could not be made")]
    Issue(#[from] rcgen::Error),
}

/// Where a supplied authority lies.
#[derive(Clone, Debug)]
pub struct Supplied {
    /// The issuing certificate and those above it, PEM, issuer first.
    pub chain: PathBuf,
    /// The issuing certificate's key, PEM (PKCS#8).
    pub key: PathBuf,
    /// The roots that devices are to trust, PEM.
    pub root: PathBuf,
}

/// Who signs devices' certificates. The one way to a certificate.
pub trait Signer: Send + Sync {
    /// A certificate chain, leaf first, DER, for the key in `request`.
    fn sign_device(
        &self,
        request: &Request,
        tenant: &TenantName,
        device: &DeviceId,
        now: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError>;
}

/// A certificate chain and its key, for a listener.
pub type ServerIdentity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The certificate authority in force; it can change while the controller runs.
#[derive(Debug)]
pub struct Ca {
    trust_domain: String,
    supplied: Option<Supplied>,
    authority: RwLock<(Arc<Authority>, Option<SystemTime>)>,
}

impl Ca {
    /// The supplied authority, else the one in `directory`, made there if there is none.
    pub fn open(
        directory: &Path,
        supplied: Option<Supplied>,
        trust_domain: &str,
        now: u64,
    ) -> Result<Self, CaError> {
        let authority = match &supplied {
            Some(files) => Authority::load(files, now)?,
            None => Authority::load_or_create(&directory.join("ca"), now)?,
        };
        let modified = supplied.as_ref().and_then(modified);
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            supplied,
            authority: RwLock::new((Arc::new(authority), modified)),
        })
    }

    /// The authority in force.
    pub fn authority(&self) -> Arc<Authority> {
        self.authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    /// Loads a supplied authority anew where its files changed. Returns whether they did.
    ///
    /// # Errors
    /// Where the new files do not hold together; the old authority stays in force.
    pub fn reload(&self, now: u64) -> Result<bool, CaError> {
        let Some(files) = &self.supplied else {
            return Ok(false);
        };
        let modified = modified(files);
        if self
            .authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            == modified
        {
            return Ok(false);
        }
        let authority = Arc::new(Authority::load(files, now)?);
        *self
            .authority
            .write()
            .unwrap_or_else(PoisonError::into_inner) = (authority, modified);
        Ok(true)
    }

    /// The digest of the first root's DER form, which agents pin.
    pub fn fingerprint(&self) -> Digest {
        self.authority()
            .roots()
            .first()
            .map_or(Digest::of(b""), |root| Digest::of(root))
    }

    /// The roots in PEM.
    pub fn root_bundle(&self) -> String {
        pem("CERTIFICATE", self.authority().roots())
    }

    /// The trust domain of the SPIFFE ids.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// A certificate for our own listeners, with a fresh key. The root is part of the chain, so that an agent
    /// that pins it finds it there.
    pub fn server_identity(&self, names: &[String], now: u64) -> Result<ServerIdentity, CaError> {
        let authority = self.authority();
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "longshore-controller");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_life(&mut params, now, SERVER_LIFE_MS, authority.not_after());
        let leaf = params.signed_by(&key, authority.issuer())?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(authority.chain());
        for root in authority.roots() {
            if !chain.contains(root) {
                chain.push(root.clone());
            }
        }
        Ok((
            chain,
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        ))
    }
}

impl Signer for Ca {
    fn sign_device(
        &self,
        request: &Request,
        tenant: &TenantName,
        device: &DeviceId,
        now: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let authority = self.authority();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, device.as_str());
        let uri = format!(
            "spiffe://{}/tenant/{tenant}/device/{device}",
            self.trust_domain
        );
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, now, DEVICE_LIFE_MS, authority.not_after());
        let leaf = params.signed_by(request.key(), authority.issuer())?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(authority.chain());
        Ok(chain)
    }
}

/// When the last of the files changed.
fn modified(files: &Supplied) -> Option<SystemTime> {
    [&files.chain, &files.key, &files.root]
        .into_iter()
        .filter_map(|file| file.metadata().ok()?.modified().ok())
        .max()
}

/// A life from a little before `now`, cut at the issuer's own end.
fn set_life(params: &mut CertificateParams, now: u64, life_ms: u64, issuer_end: u64) {
    params.not_before = instant(now.saturating_sub(BACKDATE_MS));
    params.not_after = instant((now + life_ms).min(issuer_end));
}

fn instant(millis: u64) -> time::OffsetDateTime {
    let seconds = i64::try_from(millis / 1000).unwrap_or(i64::MAX);
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// Certificates in PEM.
pub fn pem(label: &str, ders: &[CertificateDer<'_>]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut text = String::new();
    for der in ders {
        text.push_str("-----BEGIN ");
        text.push_str(label);
        text.push_str("-----\n");
        let body = STANDARD.encode(der);
        for line in body.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END ");
        text.push_str(label);
        text.push_str("-----\n");
    }
    text
}
