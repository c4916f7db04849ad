//! The device's key: ECDSA P-256, made here, and it never leaves.

use longshore_protocol::{DeviceName, Digest};
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData as _, SigningKey as _};
use secrecy::{ExposeSecret as _, SecretString};

use super::CertificateError;

/// A private key.
pub struct DeviceKey(KeyPair);

/// A signing request, in both of its forms.
#[derive(Clone, Debug)]
pub struct Request {
    /// For the enrollment.
    pub pem: String,
    /// For a renewal.
    pub der: Vec<u8>,
}

impl DeviceKey {
    /// A new key.
    pub fn generate() -> Result<Self, CertificateError> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(CertificateError::Key)
    }

    /// The key that was written down with [`DeviceKey::pem`].
    pub fn from_pem(pem: &SecretString) -> Result<Self, CertificateError> {
        KeyPair::from_pem(pem.expose_secret())
            .map(Self)
            .map_err(CertificateError::Key)
    }

    /// PKCS #8 in PEM.
    pub fn pem(&self) -> SecretString {
        self.0.serialize_pem().into()
    }

    /// The DER form of the public key, as certificates carry it.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// What the approver compares: the SHA-256 digest of [`DeviceKey::public_key`].
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.public_key())
    }

    /// A signature over `message`: ECDSA with SHA-256, in ASN.1.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CertificateError> {
        self.0.sign(message).map_err(CertificateError::Key)
    }

    /// A request for a certificate, signed with this key. The subject is a courtesy to people; the
    /// controller decides what the certificate says.
    pub fn request(&self, name: &DeviceName) -> Result<Request, CertificateError> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
        let request = params
            .serialize_request(&self.0)
            .map_err(CertificateError::Key)?;
        let pem = request.pem().map_err(CertificateError::Key)?;
        Ok(Request {
            pem,
            der: request.der().to_vec(),
        })
    }
}

impl std::fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceKey({})", self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

    use super::*;

    #[test]
    fn the_request_carries_the_key_whose_fingerprint_is_shown() {
        let key = DeviceKey::generate().unwrap();
        let again = DeviceKey::from_pem(&key.pem()).unwrap();
        let request = again.request(&"till".parse().unwrap()).unwrap();
        let (_, parsed) = X509CertificationRequest::from_der(&request.der).unwrap();
        parsed.verify_signature().unwrap();
        let public_key = parsed.certification_request_info.subject_pki.raw;
        assert_eq!(Digest::of(public_key), key.fingerprint());
        assert!(
            request
                .pem
                .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
        );
    }
}
