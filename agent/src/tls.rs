//! Whom the agent trusts, and how it proves who it is.
//!
//! - Enrolling, it trusts one root: the certificate with the SHA-256 fingerprint of the join command, which the
//!   server sends along at the end of its chain, or those of a file. The chain must verify up to that
//!   certificate alone, for the server's name, now. A certificate that merely appears in the chain proves
//!   nothing.
//! - Enrolled, it trusts the bundle that it was given, speaks TLS 1.3 only, and shows its own certificate.

use std::sync::{Arc, LazyLock};

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

use crate::identity::{Identity, certificate};

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
    /// They do not fit together.
    #[error("TLS cannot be set up")]
    Rustls(#[from] Error),
}

/// What the agent speaks when it enrolls.
pub fn enrollment(trust: &Trust) -> Result<Arc<ClientConfig>, TlsError> {
    public(trust, RootCertStore::empty())
}

/// What the agent speaks when it renews a certificate that has ended. It trusts whom it trusted when it enrolled,
/// and the roots that it was given then: the listener's certificate may have changed since.
pub fn renewal(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let known = roots(&identity.ca_bundle)?;
    match &identity.trust {
        Some(trust) => public(trust, known),
        None => public(&Trust::Bundle(String::new()), known),
    }
}

fn public(trust: &Trust, mut roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let config = match trust {
        Trust::Bundle(pem) => {
            add(&mut roots, pem)?;
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::Fingerprint(pin) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedRoot {
                pin: *pin,
                others: roots,
                provider,
            }))
            .with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// What the agent speaks once it is enrolled.
pub fn edge(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let chain = certificate::certificates(&identity.chain)?;
    let key = certificate::private_key(identity.key.expose_secret())?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&identity.ca_bundle)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
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
    Ok(roots)
}

fn add(roots: &mut RootCertStore, pem: &str) -> Result<(), TlsError> {
    for root in certificate::certificates(pem)? {
        roots.add(root)?;
    }
    Ok(())
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
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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
