//! Certificates that the controller would not make, by its own authority.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::{Duration, OffsetDateTime};

/// The controller's issuing authority, from its data directory.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
}

/// What to put into a certificate.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The common name: a device id.
    pub device: String,
    /// The tenant in the SPIFFE id.
    pub tenant: String,
    /// When it starts to be valid, from now.
    pub from: Duration,
    /// When it ends to be, from now.
    pub until: Duration,
}

impl Leaf {
    /// What the controller itself would issue.
    pub fn of(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            tenant: "default".to_owned(),
            from: Duration::minutes(-5),
            until: Duration::days(30),
        }
    }
}

impl Authority {
    /// Reads the authority of the controller with this data directory.
    ///
    /// # Errors
    /// Where its files are not there.
    pub fn of_controller(data_dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            fs::read_to_string(data_dir.join("ca").join(name)).with_context(|| name.to_owned())
        };
        let certificate = read("intermediate.pem")?;
        let key = KeyPair::from_pem(&read("intermediate-key.pem")?)?;
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("intermediate.pem")?;
        let own = chain.first().context("intermediate.pem is empty")?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(own, key)?,
            chain,
        })
    }

    /// Another authority, which nobody trusts.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn stranger() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "Longshore intermediate");
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            chain: vec![certificate.der().clone()],
            issuer: Issuer::new(params, key),
        })
    }

    /// Issues a certificate chain for `key`, leaf first.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn issue(&self, leaf: &Leaf, key: &KeyPair) -> Result<Vec<CertificateDer<'static>>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, leaf.device.as_str());
        let id = format!(
            "spiffe://longshore/tenant/{}/device/{}",
            leaf.tenant, leaf.device
        );
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let now = OffsetDateTime::now_utc();
        params.not_before = now + leaf.from;
        params.not_after = now + leaf.until;
        let certificate = params.signed_by(key, &self.issuer)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend_from_slice(&self.chain);
        Ok(chain)
    }
}
