//! Enrolling by hand, to ask what an agent would not ask.

use anyhow::{Context as _, Result};
use http::StatusCode;
use longshore_protocol::{
    Digest,
    api::{ENROLL_PATH, EnrollApproved, EnrollRequest},
};
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData as _};
use reqwest::Method;

use crate::{Api, api::Answer, wait::eventually};

/// A device with a key that wants to enroll.
#[derive(Debug)]
pub struct Candidate {
    name: String,
    key: KeyPair,
}

impl Candidate {
    /// A device with a new key.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            key: KeyPair::generate().context("make a key")?,
        })
    }

    /// Its key.
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// What an approver compares.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.key.subject_public_key_info())
    }

    /// Its signing request, in PEM.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn csr(&self) -> Result<String> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, self.name.as_str());
        let request = params.serialize_request(&self.key)?;
        Ok(request.pem()?)
    }

    /// Asks once.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn ask(&self, api: &Api, secret: &str) -> Result<Answer> {
        ask(api, secret, &self.name, &self.csr()?, 0).await
    }

    /// Asks until it is approved.
    ///
    /// # Errors
    /// Where it is not in time.
    pub async fn enroll(&self, api: &Api, secret: &str) -> Result<EnrollApproved> {
        eventually(&format!("{} enrolled", self.name), async || {
            let answer = ask(api, secret, &self.name, &self.csr()?, 5).await?;
            anyhow::ensure!(answer.status == StatusCode::OK, "{answer:?}");
            answer.success()
        })
        .await
    }
}

/// Asks to enroll with whatever is given.
///
/// # Errors
/// Where there is no answer.
pub async fn ask(api: &Api, secret: &str, name: &str, csr: &str, wait: u64) -> Result<Answer> {
    let body = EnrollRequest {
        name: name.to_owned(),
        csr: csr.to_owned(),
        facts: [("hardware".to_owned(), "test".to_owned())].into(),
        wait,
    };
    let request = api
        .request(Method::POST, ENROLL_PATH)
        .bearer_auth(secret)
        .json(&body);
    Api::send(request).await
}
