//! The device's certificate: whether it is ours, and for how long.

use longshore_protocol::DeviceId;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::DeviceKey;

/// Why a certificate or a key is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The key cannot be made, read or used.
    #[error("the device key is of no use: {0}")]
    Key(rcgen::Error),
    /// The PEM or DER does not parse.
    #[error("the certificate does not parse: {0}")]
    Malformed(String),
    /// The certificate does not verify up to the bundle.
    #[error("the certificate does not verify: {0}")]
    Untrusted(webpki::Error),
    /// The certificate carries another key.
    #[error("the certificate is for another key")]
    OtherKey,
    /// The certificate carries another device's id.
    #[error("the certificate is for `{0}`")]
    OtherDevice(String),
}

/// A certificate chain that verified.
#[derive(Clone, Debug)]
pub struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    public_key: Vec<u8>,
    common_name: String,
    /// In milliseconds since the Unix epoch.
    not_before: u64,
    not_after: u64,
}

impl Chain {
    /// The chain in `pem`, leaf first, verified for client authentication up to the roots in `bundle`.
    /// Without `now` (milliseconds since the Unix epoch) it is verified as of the middle of the leaf's life:
    /// whether it is in force is then not asked.
    pub fn verify(pem: &str, bundle: &str, now: Option<u64>) -> Result<Self, CertificateError> {
        let chain = Self::parse(certificates(pem)?)?;
        let middle = chain.not_before + (chain.not_after - chain.not_before) / 2;
        chain.check(bundle, now.unwrap_or(middle))?;
        Ok(chain)
    }

    /// Like [`Chain::verify`], for certificates in DER form.
    pub fn verify_der(
        certificates: Vec<Vec<u8>>,
        bundle: &str,
        now: u64,
    ) -> Result<Self, CertificateError> {
        let chain = Self::parse(certificates.into_iter().map(Into::into).collect())?;
        chain.check(bundle, now)?;
        Ok(chain)
    }

    fn parse(certificates: Vec<CertificateDer<'static>>) -> Result<Self, CertificateError> {
        let leaf = certificates
            .first()
            .ok_or_else(|| CertificateError::Malformed("there is none".to_owned()))?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| CertificateError::Malformed(error.to_string()))?;
        let millis = |seconds: i64| u64::try_from(seconds).unwrap_or_default() * 1000;
        let not_before = millis(parsed.validity().not_before.timestamp());
        let not_after = millis(parsed.validity().not_after.timestamp()).max(not_before);
        let public_key = parsed.public_key().raw.to_vec();
        let common_name = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .unwrap_or_default()
            .to_owned();
        Ok(Self {
            certificates,
            public_key,
            common_name,
            not_before,
            not_after,
        })
    }

    fn check(&self, bundle: &str, now: u64) -> Result<(), CertificateError> {
        let Some((leaf, intermediates)) = self.certificates.split_first() else {
            return Ok(());
        };
        let leaf = EndEntityCert::try_from(leaf).map_err(CertificateError::Untrusted)?;
        let roots = certificates(bundle)?;
        let anchors = roots
            .iter()
            .map(|root| anchor_from_trusted_cert(root).map_err(CertificateError::Untrusted))
            .collect::<Result<Vec<_>, _>>()?;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now));
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            now,
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map(drop)
        .map_err(CertificateError::Untrusted)
    }

    /// Whether the leaf carries this key.
    pub fn belongs_to(&self, key: &DeviceKey) -> Result<(), CertificateError> {
        if self.public_key == key.public_key() {
            Ok(())
        } else {
            Err(CertificateError::OtherKey)
        }
    }

    /// Whether the leaf names this device.
    pub fn names(&self, device: &DeviceId) -> Result<(), CertificateError> {
        if self.common_name == device.as_str() {
            Ok(())
        } else {
            Err(CertificateError::OtherDevice(self.common_name.clone()))
        }
    }

    /// From when to when it is in force, in milliseconds since the Unix epoch.
    pub fn validity(&self) -> (u64, u64) {
        (self.not_before, self.not_after)
    }

    /// The certificates, leaf first.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The certificates in PEM, leaf first.
    pub fn pem(&self) -> String {
        self.certificates
            .iter()
            .map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref())))
            .collect()
    }
}

/// The certificates of a PEM text.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| CertificateError::Malformed(error.to_string()))
}

/// The private key of a PEM text.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| CertificateError::Malformed(error.to_string()))
}
