//! The double's TLS: an authority of its own, which signs the server and the agent's client certificate.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

/// What a server with TLS has, and what a kubeconfig for it says.
pub struct Tls {
    pub acceptor: TlsAcceptor,
    /// The fields of the kubeconfig's cluster and user.
    pub cluster: Value,
    pub user: Value,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "kubernetes");
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf = |names: Vec<String>, common: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, common);
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = leaf(vec!["127.0.0.1".to_owned()], "kube-apiserver");
        let (client, client_key) = leaf(Vec::new(), "longshore");
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![server.der().clone()], key)
            .unwrap();
        let encoded = |pem: String| BASE64_STANDARD.encode(pem);
        Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            cluster: json!({"certificate-authority-data": encoded(authority.pem())}),
            user: json!({"client-certificate-data": encoded(client.pem()),
                "client-key-data": encoded(client_key.serialize_pem())}),
        }
    }
}
