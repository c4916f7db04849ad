//! The files of the state directory, with their secrets in the open. These types stay in this module's
//! parent; everybody else sees the domain's types, whose secrets do not print.

use longshore_protocol::{DeviceId, DeviceName, Digest};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::tls::Trust;

#[derive(Serialize, Deserialize)]
pub(crate) struct Identity {
    device_id: DeviceId,
    name: DeviceName,
    device_token: String,
    private_key: String,
    certificate_chain: String,
    ca_bundle: String,
    edge_url: Url,
    server: Url,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_fingerprint: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_ca: Option<String>,
    token_digest: Digest,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Enrollment {
    name: DeviceName,
    private_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device_id: Option<DeviceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device_token: Option<String>,
}

impl From<&super::Identity> for Identity {
    fn from(identity: &super::Identity) -> Self {
        let (server_fingerprint, server_ca) = match &identity.trust {
            Some(Trust::Fingerprint(pin)) => (Some(*pin), None),
            Some(Trust::Bundle(pem)) => (None, Some(pem.clone())),
            None => (None, None),
        };
        Self {
            device_id: identity.device_id.clone(),
            name: identity.name.clone(),
            device_token: identity.device_token.expose_secret().to_owned(),
            private_key: identity.key.expose_secret().to_owned(),
            certificate_chain: identity.chain.clone(),
            ca_bundle: identity.ca_bundle.clone(),
            edge_url: identity.edge_url.clone(),
            server: identity.server.clone(),
            server_fingerprint,
            server_ca,
            token_digest: identity.token,
        }
    }
}

impl From<Identity> for super::Identity {
    fn from(record: Identity) -> Self {
        let pin = record.server_fingerprint.map(Trust::Fingerprint);
        Self {
            device_id: record.device_id,
            name: record.name,
            device_token: record.device_token.into(),
            key: record.private_key.into(),
            chain: record.certificate_chain,
            ca_bundle: record.ca_bundle,
            edge_url: record.edge_url,
            server: record.server,
            trust: pin.or(record.server_ca.map(Trust::Bundle)),
            token: record.token_digest,
        }
    }
}

impl From<&super::Enrollment> for Enrollment {
    fn from(enrollment: &super::Enrollment) -> Self {
        let (device_id, device_token) = enrollment.registered.as_ref().map_or_else(
            || (None, None),
            |(id, token)| (Some(id.clone()), Some(token.expose_secret().to_owned())),
        );
        Self {
            name: enrollment.name.clone(),
            private_key: enrollment.key.expose_secret().to_owned(),
            device_id,
            device_token,
        }
    }
}

impl From<Enrollment> for super::Enrollment {
    fn from(record: Enrollment) -> Self {
        Self {
            name: record.name,
            key: record.private_key.into(),
            registered: record.device_id.zip(record.device_token.map(Into::into)),
        }
    }
}
