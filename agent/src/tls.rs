//! Whom the agent trusts, and how it proves who it is.
//!
//! - Enrolling, it trusts one root: the certificate with the SHA-256 fingerprint of the join command, which the
//!   server sends along at the end of its chain, or those of a file. The chain must verify up to that
//!   certificate alone, for the server's name, now. A certificate that merely appears in the chain proves
//!   nothing.
//! - Enrolled, it trusts the bundle that it was given and the roots that its settings name, speaks TLS 1.3 only,
//!   and shows its own certificate.
//!
//! When a chain verifies is [`Clock`]'s to say. A certificate that is not yet in force, and verifies otherwise,
//! proves that it is later than the clock says: its issuer, whom we trust, has lived to see that day. One that has
//! expired proves nothing; but nobody is worse off than with the system's clock, so that has the last word.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use longshore_protocol::Digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use secrecy::ExposeSecret as _;

use crate::{
    clock::Clock,
    identity::{Identity, certificate},
    network::Network,
};

/// Which roots the enrollment server's certificate is verified with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The certificate with this SHA-256 digest, wherever it comes from.
    Fingerprint(Digest),
    /// These certificates, in PEM.
    Bundle(String),
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or a key is of no use.
    #[error(transparent)]
    Certificate(#[from] certificate::CertificateError),
    /// A bundle of roots without any.
    #[error("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoRoots,
    /// They do not fit together.
    #[error("TLS cannot be set up")]
    Rustls(#[from] Error),
}

/// What the agent speaks when it enrolls.
pub fn enrollment(trust: &Trust, network: &Network) -> Result<Arc<ClientConfig>, TlsError> {
    public(trust, RootCertStore::empty(), network)
}

/// What the agent speaks when it renews a certificate that has ended. It trusts whom it trusted when it enrolled,
/// the roots that it was given then, for the listener's certificate may have changed since, and those of its settings.
pub fn renewal(identity: &Identity, network: &Network) -> Result<Arc<ClientConfig>, TlsError> {
    let mut known = roots(&identity.ca_bundle)?;
    add_to(&mut known, network)?;
    match &identity.trust {
        Some(trust) => public(trust, known, network),
        None => public(&Trust::Bundle(String::new()), known, network),
    }
}

fn public(
    trust: &Trust,
    mut roots: RootCertStore,
    network: &Network,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Bundle(pem) => {
            add(&mut roots, pem)?;
            verifier(roots)?
        }
        Trust::Fingerprint(pin) => Arc::new(PinnedRoot {
            pin: *pin,
            others: roots,
            provider: provider(),
        }),
    };
    let config = ClientConfig::builder_with_details(provider(), Arc::new(network.clock.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Timely::over(verifier, network))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// What the agent speaks once it is enrolled.
pub fn edge(identity: &Identity, network: &Network) -> Result<Arc<ClientConfig>, TlsError> {
    let chain = certificate::certificates(&identity.chain)?;
    let key = certificate::private_key(identity.key.expose_secret())?;
    let mut roots = roots(&identity.ca_bundle)?;
    add_to(&mut roots, network)?;
    let config = ClientConfig::builder_with_details(provider(), Arc::new(network.clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Timely::over(verifier(roots)?, network))
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// What the agent speaks with a proxy: the system's roots count, and those of its settings.
pub(crate) fn proxy(network: &Network) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    // Systems come with roots that no library takes; the others do.
    roots.add_parsable_certificates(system.certs);
    add_to(&mut roots, network)?;
    let config = ClientConfig::builder_with_details(provider(), Arc::new(network.clock.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Timely::over(verifier(roots)?, network))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// What is wrong with a certificate that is not in force.
pub(crate) fn out_of_time(wrong: &CertificateError) -> Option<&'static str> {
    match wrong {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Some("has expired"),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Some("is not valid yet")
        }
        _ => None,
    }
}

/// The number of root certificates in a bundle, or what is wrong with it.
pub fn count_roots(pem: &str) -> Result<usize, TlsError> {
    Ok(roots(pem)?.len())
}

fn verifier(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

fn add_to(roots: &mut RootCertStore, network: &Network) -> Result<(), TlsError> {
    add(roots, network.roots.as_deref().unwrap_or_default())
}

/// One for all connections of the process.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

fn roots(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    add(&mut roots, pem)?;
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(roots)
}

fn add(roots: &mut RootCertStore, pem: &str) -> Result<(), TlsError> {
    for root in certificate::certificates(pem)? {
        roots.add(root)?;
    }
    Ok(())
}

/// Verifies as another verifier does, and knows that the clock may be wrong.
#[derive(Debug)]
struct Timely {
    verifier: Arc<dyn ServerCertVerifier>,
    clock: Clock,
}

/// Each certificate of a chain may begin later than the one before.
const MOST_BEGINNINGS: usize = 8;

impl Timely {
    fn over(verifier: Arc<dyn ServerCertVerifier>, network: &Network) -> Arc<Self> {
        let clock = network.clock.clone();
        Arc::new(Self { verifier, clock })
    }
}

impl ServerCertVerifier for Timely {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |at| {
            self.verifier.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                at,
            )
        };
        let wrong = match verify(now) {
            Err(Error::InvalidCertificate(wrong)) if out_of_time(&wrong).is_some() => wrong,
            verified => return verified,
        };
        let system = UnixTime::since_unix_epoch(Duration::from_millis(self.clock.system()));
        if let Ok(verified) = verify(system) {
            return Ok(verified);
        }
        let mut beginning = begins(&wrong);
        for _ in 0..MOST_BEGINNINGS {
            let Some(at) = beginning else { break };
            match verify(at) {
                Ok(verified) => {
                    self.clock.not_before(at.as_secs() * 1000);
                    tracing::warn!(
                        at_least = self.clock.shown(),
                        "the controller's certificate shows that this device's clock is behind: set the clock, or start NTP"
                    );
                    return Ok(verified);
                }
                Err(Error::InvalidCertificate(wrong)) => beginning = begins(&wrong),
                Err(_) => break,
            }
        }
        Err(Error::InvalidCertificate(wrong))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn begins(wrong: &CertificateError) -> Option<UnixTime> {
    match wrong {
        CertificateError::NotValidYetContext { not_before, .. } => Some(*not_before),
        _ => None,
    }
}

/// Verifies chains up to the one root with this fingerprint, or to another one that is known.
#[derive(Debug)]
struct PinnedRoot {
    pin: Digest,
    others: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut roots = self.others.clone();
        let pinned = intermediates
            .iter()
            .find(|certificate| Digest::of(certificate) == self.pin);
        if let Some(root) = pinned {
            roots.add(root.clone().into_owned())?;
        }
        if roots.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        verifier(roots)?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
