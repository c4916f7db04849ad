//! HMAC-SHA-256 over a body, against several secrets.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// Whether one of `secrets` made `signature` over `body`.
///
/// Every secret is tried, whichever holds, and each comparison takes constant time. An empty secret is no
/// secret: anybody can sign with it, so it never holds.
pub(crate) fn holds(secrets: &[SecretString], body: &[u8], signature: &[u8]) -> bool {
    secrets
        .iter()
        .map(|secret| secret.expose_secret().as_bytes())
        .filter(|secret| !secret.is_empty())
        .fold(false, |held, secret| verify(secret, body, signature) | held)
}

fn verify(secret: &[u8], body: &[u8], signature: &[u8]) -> bool {
    // HMAC takes keys of every length, so this never fails; were it to, nothing would be let in.
    Hmac::<Sha256>::new_from_slice(secret)
        .is_ok_and(|mac| mac.chain_update(body).verify_slice(signature).is_ok())
}
