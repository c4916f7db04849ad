//! Devices' requests and certificates, read and checked.

use longshore_protocol::{DeviceId, Digest, TenantName};
use rcgen::{CertificateSigningRequestParams, PublicKey, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::CaError;

/// A certificate signing request whose signature proves that the sender holds the key.
#[derive(Debug)]
pub struct Request {
    key: PublicKey,
    der: Vec<u8>,
}

impl Request {
    /// Reads a request in PEM.
    ///
    /// # Errors
    /// Where it is no request, its signature does not fit, or its key is not ECDSA P-256.
    pub fn from_pem(text: &str) -> Result<Self, CaError> {
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .map_err(|error| CaError::Request(format!("is not PEM: {error}")))?;
        Self::from_der(&der)
    }

    /// Reads a request in DER.
    ///
    /// # Errors
    /// As [`Self::from_pem`].
    pub fn from_der(der: &[u8]) -> Result<Self, CaError> {
        let bytes = der.to_vec();
        let der = CertificateSigningRequestDer::from(der);
        let params = CertificateSigningRequestParams::from_der(&der)
            .map_err(|error| CaError::Request(format!("is not valid: {error}")))?;
        if *params.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Request(
                "must be for an ECDSA P-256 key".to_owned(),
            ));
        }
        // Names and extensions that it asks for are not looked at: the controller decides them.
        Ok(Self {
            key: params.public_key,
            der: bytes,
        })
    }

    /// The digest of the key's DER form (RFC 5280 `SubjectPublicKeyInfo`), which names a device's key.
    pub fn key_digest(&self) -> Digest {
        Digest::of(&self.key.subject_public_key_info())
    }

    /// The request as it came, in DER form.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub(super) fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// What a device's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// Its tenant.
    pub tenant: TenantName,
    /// Its id.
    pub device: DeviceId,
    /// The digest of its public key.
    pub public_key: Digest,
}

/// What a certificate that the TLS library verified says; `None` where it is not a device's of `trust_domain`.
pub fn identity_of(certificate: &CertificateDer<'_>, trust_domain: &str) -> Option<DeviceIdentity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = &parsed.subject_alternative_name().ok()??.value.general_names;
    let [GeneralName::URI(uri)] = names.as_slice() else {
        return None;
    };
    let path = uri.strip_prefix("spiffe://")?.strip_prefix(trust_domain)?;
    let ["", "tenant", tenant, "device", device] = path.split('/').collect::<Vec<_>>()[..] else {
        return None;
    };
    Some(DeviceIdentity {
        tenant: tenant.parse().ok()?,
        device: device.parse().ok()?,
        public_key: Digest::of(parsed.public_key().raw),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Ca, Signer as _};

    const NOW: u64 = 1_800_000_000_000;

    fn csr(key: &rcgen::KeyPair) -> rcgen::CertificateSigningRequest {
        rcgen::CertificateParams::default()
            .serialize_request(key)
            .unwrap()
    }

    #[test]
    fn a_certificate_says_who_the_device_is() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::open(directory.path(), None, "example.org", NOW).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let request = Request::from_pem(&csr(&key).pem().unwrap()).unwrap();
        let device = DeviceId::from_random([1; 16]);
        let tenant = TenantName::default_tenant();
        let chain = ca.sign_device(&request, &tenant, &device, NOW).unwrap();
        assert_eq!(chain.len(), 2, "leaf and intermediate");
        let identity = identity_of(&chain[0], "example.org").unwrap();
        let public_key = request.key_digest();
        assert_eq!(
            identity,
            DeviceIdentity {
                tenant,
                device,
                public_key
            }
        );
        assert_eq!(identity_of(&chain[0], "elsewhere.org"), None);
        assert_eq!(identity_of(&chain[1], "example.org"), None);
    }

    #[test]
    fn the_authority_survives_a_restart_and_works_without_the_root_key() {
        let directory = tempfile::tempdir().unwrap();
        let first = Ca::open(directory.path(), None, "example.org", NOW)
            .unwrap()
            .fingerprint();
        std::fs::remove_file(directory.path().join("ca/root-key.pem")).unwrap();
        let second = Ca::open(directory.path(), None, "example.org", NOW).unwrap();
        assert_eq!(second.fingerprint(), first);
        second
            .server_identity(&["localhost".into(), "127.0.0.1".into()], NOW)
            .unwrap();
    }

    #[test]
    fn requests_without_proof_or_with_another_kind_of_key_are_refused() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut der = csr(&key).der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(Request::from_der(&der).is_err());
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let error = Request::from_der(csr(&other).der()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the certificate signing request must be for an ECDSA P-256 key"
        );
        assert!(Request::from_pem("hello").is_err());
    }

    #[test]
    fn a_supplied_authority_is_checked() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        Ca::open(directory.path(), None, "example.org", NOW).unwrap();
        let good = super::super::Supplied {
            chain: at("ca/intermediate.pem"),
            key: at("ca/intermediate-key.pem"),
            root: at("ca/root.pem"),
        };
        let open = |supplied: &super::super::Supplied, now| {
            Ca::open(&at("other"), Some(supplied.clone()), "example.org", now)
                .map(|ca| ca.fingerprint())
                .map_err(|error| error.to_string())
        };
        assert!(open(&good, NOW).is_ok());
        let wrong_key = super::super::Supplied {
            key: at("ca/root-key.pem"),
            ..good.clone()
        };
        assert!(
            open(&wrong_key, NOW)
                .unwrap_err()
                .contains("is not the key of the first")
        );
        let expired = open(&good, NOW + 4000 * super::super::DAY_MS).unwrap_err();
        assert!(expired.contains("expired"), "{expired}");
        let early = open(&good, 1).unwrap_err();
        assert!(early.contains("not valid yet"), "{early}");
        let leaf = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(at("leaf.pem"), leaf.cert.pem()).unwrap();
        let not_ca = super::super::Supplied {
            chain: at("leaf.pem"),
            ..good
        };
        let problem = open(&not_ca, NOW).unwrap_err();
        assert!(problem.contains("CA:TRUE"), "{problem}");
    }

    #[test]
    fn a_supplied_authority_is_taken_over_when_its_files_change() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let authority = |name: &str| {
            Ca::open(&at(name), None, "example.org", NOW).unwrap();
            ["intermediate.pem", "intermediate-key.pem", "root.pem"]
                .map(|file| at(name).join("ca").join(file))
        };
        let [chain, key, root] = authority("used");
        let next = authority("next");
        let supplied = super::super::Supplied {
            chain: chain.clone(),
            key,
            root,
        };
        let ca = Ca::open(&at("unused"), Some(supplied.clone()), "example.org", NOW).unwrap();
        let before = ca.fingerprint();
        assert!(!ca.reload(NOW).unwrap(), "nothing changed");

        let later = |file: &std::path::Path, seconds| {
            let modified = std::time::SystemTime::now() + std::time::Duration::from_secs(seconds);
            std::fs::File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_modified(modified)
                .unwrap();
        };
        std::fs::copy(&next[0], &chain).unwrap();
        later(&chain, 10);
        assert!(ca.reload(NOW).is_err(), "the chain is new, its key is not");
        assert_eq!(ca.fingerprint(), before, "the old authority stays");

        std::fs::copy(&next[1], &supplied.key).unwrap();
        std::fs::copy(&next[2], &supplied.root).unwrap();
        later(&supplied.root, 20);
        assert!(ca.reload(NOW).unwrap());
        assert_ne!(ca.fingerprint(), before);
    }
}
