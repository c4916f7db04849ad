//! A device's certificate that may have ended: it still says who the device was, to whoever proves to have its key.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert,
    aws_lc_rs::ECDSA_P256_SHA256,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{Authority, CaError, DeviceIdentity, identity_of};

/// A leaf and what may stand between it and a root; each one costs a verification.
const MAX_CHAIN: usize = 4;

/// A certificate that was presented, with what it claims. Nothing of it holds before [`Former::verify`].
#[derive(Debug)]
pub struct Former {
    identity: DeviceIdentity,
    leaf: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    began: u64,
    ended: u64,
}

impl Former {
    /// Reads a chain in PEM, leaf first.
    ///
    /// # Errors
    /// Where it is no chain, or its leaf is not for a device of `trust_domain`.
    pub fn from_pem(text: &str, trust_domain: &str) -> Result<Self, CaError> {
        let wrong = |problem: String| CaError::Former(problem);
        let mut chain = CertificateDer::pem_slice_iter(text.as_bytes())
            .take(MAX_CHAIN + 1)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| wrong(format!("is not PEM: {error}")))?;
        if chain.is_empty() || chain.len() > MAX_CHAIN {
            return Err(wrong(format!(
                "must have 1 to {MAX_CHAIN} certificates, the device's first"
            )));
        }
        let leaf = chain.remove(0);
        let identity = identity_of(&leaf, trust_domain)
            .ok_or_else(|| wrong("is not for a device of this controller".to_owned()))?;
        let (_, parsed) = X509Certificate::from_der(&leaf)
            .map_err(|error| wrong(format!("is not a certificate: {error}")))?;
        let milliseconds = |seconds| {
            u64::try_from(seconds)
                .unwrap_or_default()
                .saturating_mul(1000)
        };
        Ok(Self {
            identity,
            began: milliseconds(parsed.validity().not_before.timestamp()),
            ended: milliseconds(parsed.validity().not_after.timestamp()),
            leaf,
            intermediates: chain,
        })
    }

    /// Who it says the device is.
    pub fn identity(&self) -> &DeviceIdentity {
        &self.identity
    }

    /// When it ends or ended, in milliseconds since the Unix epoch.
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// The device's certificate in DER form.
    pub fn leaf(&self) -> &[u8] {
        &self.leaf
    }

    /// Whether `authority` issued it, for devices, and its key made `signature` over `message`. That it has ended, or
    /// has not begun, is no matter: a controller whose clock was wrong issues what begins too late. It is verified as of
    /// its own life.
    pub fn verify(
        &self,
        authority: &Authority,
        message: &[u8],
        signature: &[u8],
        now: u64,
    ) -> Result<(), webpki::Error> {
        let leaf = EndEntityCert::try_from(&self.leaf)?;
        let anchors = authority
            .roots()
            .iter()
            .map(anchor_from_trusted_cert)
            .collect::<Result<Vec<_>, _>>()?;
        let at =
            UnixTime::since_unix_epoch(Duration::from_millis(now.max(self.began).min(self.ended)));
        leaf.verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            &self.intermediates,
            at,
            KeyUsage::client_auth(),
            None,
            None,
        )?;
        leaf.verify_signature(ECDSA_P256_SHA256, message, signature)
    }
}

#[cfg(test)]
mod tests {
    use longshore_protocol::{DeviceId, TenantName};
    use rcgen::{KeyPair, SigningKey as _};

    use super::*;
    use crate::ca::{Ca, DAY_MS, Request, Signer as _, pem};

    const NOW: u64 = 1_800_000_000_000;

    fn ca(directory: &std::path::Path) -> Ca {
        Ca::open(directory, None, "example.org", NOW).unwrap()
    }

    fn issued(ca: &Ca, key: &KeyPair) -> Former {
        let csr = rcgen::CertificateParams::default()
            .serialize_request(key)
            .unwrap();
        let request = Request::from_der(csr.der()).unwrap();
        let device = DeviceId::from_random([1; 16]);
        let chain = ca
            .sign_device(&request, &TenantName::default_tenant(), &device, NOW)
            .unwrap();
        Former::from_pem(&pem("CERTIFICATE", &chain), "example.org").unwrap()
    }

    #[test]
    fn a_certificate_that_has_ended_still_proves_whose_key_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        let key = KeyPair::generate().unwrap();
        let former = issued(&ca, &key);
        assert_eq!(former.ended(), NOW + 30 * DAY_MS);
        let authority = ca.authority();
        let signature = key.sign(b"message").unwrap();
        for now in [
            NOW - 60 * DAY_MS,
            NOW,
            NOW + 31 * DAY_MS,
            NOW + 365 * DAY_MS,
        ] {
            former
                .verify(&authority, b"message", &signature, now)
                .unwrap();
        }
        former
            .verify(&authority, b"another", &signature, NOW)
            .unwrap_err();
        let other = KeyPair::generate().unwrap().sign(b"message").unwrap();
        former
            .verify(&authority, b"message", &other, NOW)
            .unwrap_err();
        former.verify(&authority, b"message", b"", NOW).unwrap_err();
    }

    #[test]
    fn only_our_authority_vouches_for_devices() {
        let directory = tempfile::tempdir().unwrap();
        let stranger = tempfile::tempdir().unwrap();
        let (ca, stranger) = (ca(directory.path()), ca(stranger.path()));
        let key = KeyPair::generate().unwrap();
        let signature = key.sign(b"message").unwrap();
        let theirs = issued(&stranger, &key);
        let error = theirs.verify(&ca.authority(), b"message", &signature, NOW);
        // It has the same name, and another key.
        assert_eq!(
            error.unwrap_err(),
            webpki::Error::InvalidSignatureForPublicKey
        );
        // A listener's certificate is of the same authority, and no device's.
        let (chain, _) = ca.server_identity(&["localhost".to_owned()], NOW).unwrap();
        let error = Former::from_pem(&pem("CERTIFICATE", &chain[..2]), "example.org");
        assert!(error.unwrap_err().to_string().contains("not for a device"));
        let many = pem("CERTIFICATE", &chain).repeat(10);
        assert!(Former::from_pem(&many, "example.org").is_err());
        assert!(Former::from_pem("", "example.org").is_err());
    }
}
