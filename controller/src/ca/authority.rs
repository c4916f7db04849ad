//! The issuing certificate, its key, and the roots above it: made, loaded and checked.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{CaError, DAY_MS, Supplied, pem, set_life};
use crate::files;

const ROOT_LIFE_MS: u64 = 3650 * DAY_MS;
const INTERMEDIATE_LIFE_MS: u64 = 1825 * DAY_MS;
/// An intermediate of our own making is replaced at a start this long before its end.
const RENEW_BEFORE_MS: u64 = 180 * DAY_MS;

/// An issuing certificate with its key and roots. Checked when it was loaded.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_after: u64,
}

impl Authority {
    /// The authority in `directory`, made there if there is none.
    pub(super) fn load_or_create(directory: &Path, now: u64) -> Result<Self, CaError> {
        let supplied = Supplied {
            chain: directory.join("intermediate.pem"),
            key: directory.join("intermediate-key.pem"),
            root: directory.join("root.pem"),
        };
        let root_key = directory.join("root-key.pem");
        if files::read(&supplied.root)?.is_none() {
            files::create_private_directory(directory)?;
            create_root(&supplied.root, &root_key, now)?;
        }
        let authority = match files::read(&supplied.chain)? {
            Some(_) => Some(Self::load(&supplied, now)?),
            None => None,
        };
        match authority {
            Some(authority) if authority.not_after > now + RENEW_BEFORE_MS => Ok(authority),
            // The root's key may have been taken away; the old intermediate then serves to its end.
            Some(authority) if files::read(&root_key)?.is_none() => Ok(authority),
            _ => {
                create_intermediate(&supplied, &root_key, now)?;
                Self::load(&supplied, now)
            }
        }
    }

    /// A supplied authority.
    ///
    /// # Errors
    /// [`CaError::Authority`] names the file and what is wrong with it.
    pub(super) fn load(supplied: &Supplied, now: u64) -> Result<Self, CaError> {
        let wrong = |path: &Path, problem: String| CaError::Authority {
            path: path.to_owned(),
            problem,
        };
        let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, CaError> {
            let text = required(path)?;
            let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|error| wrong(path, format!("is not PEM: {error}")))?;
            if certificates.is_empty() {
                return Err(wrong(path, "holds no certificate".to_owned()));
            }
            Ok(certificates)
        };
        let roots = certificates(&supplied.root)?;
        for root in &roots {
            check_ca(root, now).map_err(|problem| wrong(&supplied.root, problem))?;
        }
        let chain = certificates(&supplied.chain)?;
        let mut not_after = u64::MAX;
        for certificate in &chain {
            let end =
                check_ca(certificate, now).map_err(|problem| wrong(&supplied.chain, problem))?;
            not_after = not_after.min(end);
        }
        let key = KeyPair::from_pem(&required(&supplied.key)?)
            .map_err(|error| wrong(&supplied.key, format!("is not a PKCS#8 key: {error}")))?;
        let Some(first) = chain.first() else {
            return Err(wrong(&supplied.chain, "holds no certificate".to_owned()));
        };
        let (_, parsed) = X509Certificate::from_der(first)
            .map_err(|error| wrong(&supplied.chain, format!("is not a certificate: {error}")))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(wrong(
                &supplied.key,
                format!(
                    "is not the key of the first certificate in {}",
                    supplied.chain.display()
                ),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(first, key)
            .map_err(|error| wrong(&supplied.chain, format!("cannot issue: {error}")))?;
        Ok(Self {
            issuer,
            chain,
            roots,
            not_after,
        })
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The issuing certificate and those between it and the root, DER.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots, DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(super) fn not_after(&self) -> u64 {
        self.not_after
    }
}

fn required(path: &Path) -> Result<String, CaError> {
    files::read(path)?.ok_or_else(|| CaError::Authority {
        path: path.to_owned(),
        problem: "is missing".to_owned(),
    })
}

/// Checks that a certificate may issue others now; returns its end.
fn check_ca(certificate: &CertificateDer<'_>, now: u64) -> Result<u64, String> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("is not a certificate: {error}"))?;
    let is_ca = parsed
        .basic_constraints()
        .map_err(|error| format!("has broken basic constraints: {error}"))?
        .is_some_and(|constraints| constraints.value.ca);
    if !is_ca {
        return Err(format!(
            "`{}` is not a CA certificate (CA:TRUE is missing)",
            parsed.subject()
        ));
    }
    let may_sign = parsed
        .key_usage()
        .map_err(|error| format!("has a broken key usage: {error}"))?
        .is_none_or(|usage| usage.value.key_cert_sign());
    if !may_sign {
        return Err(format!(
            "`{}` may not sign (keyCertSign is missing)",
            parsed.subject()
        ));
    }
    let millis = |seconds: i64| {
        u64::try_from(seconds)
            .unwrap_or_default()
            .saturating_mul(1000)
    };
    let start = millis(parsed.validity().not_before.timestamp());
    let end = millis(parsed.validity().not_after.timestamp());
    if now < start {
        return Err(format!(
            "`{}` is not valid yet; is the clock right?",
            parsed.subject()
        ));
    }
    if now >= end {
        return Err(format!("`{}` expired; replace it", parsed.subject()));
    }
    Ok(end)
}

fn ca_params(name: &str, path_length: u8, now: u64, life_ms: u64, end: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Longshore");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, now, life_ms, end);
    params
}

fn create_root(certificate: &Path, key_file: &Path, now: u64) -> Result<(), CaError> {
    let key = KeyPair::generate()?;
    let root = ca_params("Longshore root CA", 1, now, ROOT_LIFE_MS, u64::MAX).self_signed(&key)?;
    files::write(key_file, key.serialize_pem().as_bytes(), 0o600)?;
    files::write(
        certificate,
        pem("CERTIFICATE", &[root.der().clone()]).as_bytes(),
        0o644,
    )?;
    Ok(())
}

fn create_intermediate(supplied: &Supplied, root_key: &Path, now: u64) -> Result<(), CaError> {
    let root = Issuer::from_ca_cert_pem(
        &required(&supplied.root)?,
        KeyPair::from_pem(&required(root_key)?)?,
    )?;
    let root_der =
        CertificateDer::from_pem_slice(required(&supplied.root)?.as_bytes()).map_err(|error| {
            CaError::Authority {
                path: supplied.root.clone(),
                problem: format!("is not PEM: {error}"),
            }
        })?;
    let end = check_ca(&root_der, now).map_err(|problem| CaError::Authority {
        path: supplied.root.clone(),
        problem,
    })?;
    let key = KeyPair::generate()?;
    let mut params = ca_params("Longshore issuing CA", 0, now, INTERMEDIATE_LIFE_MS, end);
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &root)?;
    // The key first: a crash in between leaves a key without a certificate, and both are then made again.
    files::write(&supplied.key, key.serialize_pem().as_bytes(), 0o600)?;
    let chain = pem("CERTIFICATE", &[certificate.der().clone()]);
    files::write(&supplied.chain, chain.as_bytes(), 0o644)?;
    Ok(())
}
