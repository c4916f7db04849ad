//! Certificates that the controller would not make, by its own authority.

use std::{ffi::OsString, fs, path::Path};

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

    /// An authority that is older than the devices' certificates that it is to have issued, for a controller that gets
    /// [`Authority::settings`].
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn old(directory: &Path) -> Result<Self> {
        let now = OffsetDateTime::now_utc();
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_before = now - Duration::days(1000);
            params.not_after = now + Duration::days(1000);
            params
        };
        let root_key = KeyPair::generate()?;
        let root_params = params("old root");
        let root = root_params.self_signed(&root_key)?;
        let key = KeyPair::generate()?;
        let own = params("old intermediate");
        let certificate = own.signed_by(&key, &Issuer::new(root_params, root_key))?;
        for (name, text) in [
            ("root.pem", root.pem()),
            ("chain.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            fs::write(directory.join(name), text).with_context(|| name.to_owned())?;
        }
        Ok(Self {
            chain: vec![certificate.der().clone()],
            issuer: Issuer::new(own, key),
        })
    }

    /// The arguments of a controller that has the authority in `directory`.
    pub fn settings(directory: &Path) -> Vec<OsString> {
        ["chain", "key", "root"]
            .into_iter()
            .flat_map(|part| {
                let path = directory.join(format!("{part}.pem"));
                [format!("--ca-{part}").into(), path.into()]
            })
            .collect()
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
