//! A certificate authority for tests: root, intermediate, servers and devices.

use std::{sync::Arc, time::Duration};

use longshore_agent::clock;
use longshore_protocol::{DeviceId, Digest};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};

const HOUR: i64 = 3600;

pub struct Pki {
    pub root: Certificate,
    pub intermediate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// Seconds from now, from when to when a certificate is in force.
#[derive(Clone, Copy)]
pub struct Life(pub i64, pub i64);

impl Life {
    pub const USUAL: Self = Self(-HOUR, 24 * HOUR);
    pub const PAST: Self = Self(-2 * HOUR, -HOUR);

    fn put(self, params: &mut CertificateParams) {
        let now = i64::try_from(clock::system() / 1000).unwrap();
        let at = |offset: i64| {
            date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(now + offset).unwrap())
        };
        params.not_before = at(self.0);
        params.not_after = at(self.1);
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Life::USUAL.put(&mut params);
    params
}

impl Pki {
    pub fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root_params = authority("test root");
        let root = root_params.self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate().unwrap();
        let params = authority("test intermediate");
        let intermediate = params.signed_by(&key, &root_issuer).unwrap();
        Self {
            root,
            intermediate,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn fingerprint(&self) -> Digest {
        Digest::of(self.root.der())
    }

    pub fn bundle(&self) -> String {
        self.root.pem()
    }

    /// A server's chain with the root at its end, as the controller presents it, and its key.
    pub fn server(
        &self,
        name: &str,
        life: Life,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        life.put(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let chain = [&leaf, &self.intermediate, &self.root];
        (
            chain
                .into_iter()
                .map(|certificate| certificate.der().clone())
                .collect(),
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }

    /// A device's certificate and the intermediate, for a request in DER form.
    pub fn device(&self, csr: &[u8], id: &DeviceId, life: Life) -> Vec<Certificate> {
        let mut request = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, id.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        life.put(&mut params);
        request.params = params;
        vec![
            request.signed_by(&self.issuer).unwrap(),
            self.intermediate.clone(),
        ]
    }

    pub fn device_pem(&self, csr: &[u8], id: &DeviceId, life: Life) -> String {
        self.device(csr, id, life)
            .iter()
            .map(Certificate::pem)
            .collect()
    }

    /// TLS without client certificates, as the public listener has it.
    pub fn public(&self, name: &str, life: Life) -> ServerConfig {
        let (chain, key) = self.server(name, life);
        server_config()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap()
    }

    /// Mutual TLS, as the edge listener has it.
    pub fn edge(&self, name: &str) -> ServerConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let (chain, key) = self.server(name, Life::USUAL);
        server_config()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap()
    }
}

pub fn server_config() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
}
