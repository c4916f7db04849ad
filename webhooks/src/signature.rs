//! The ways in which hosts prove that they know a secret. Each tries every secret, whichever holds, and each
//! comparison takes constant time. An empty secret is no secret: anybody knows it, so it never holds.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::Error;

/// The prefix of secrets of the Standard Webhooks specification; the rest is the key in Base64.
const STANDARD_PREFIX: &str = "whsec_";
/// How many signatures of one delivery are compared.
const MAX_SIGNATURES: usize = 8;

/// Checks that the header `name` has the HMAC-SHA-256 of the body: `prefix` and 64 hex digits.
pub(crate) fn check_hmac(
    headers: &HeaderMap,
    name: &'static str,
    prefix: &str,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<(), Error> {
    let header = headers.get(name).ok_or(Error::MissingSignature(name))?;
    let mut signature = [0; 32];
    let digits = header.as_bytes().strip_prefix(prefix.as_bytes());
    hex::decode_to_slice(digits.ok_or(Error::BadSignature)?, &mut signature)
        .map_err(|_detail| Error::BadSignature)?;
    let held = any(secrets, |secret| {
        hmac(secret.as_bytes(), &[body]).is_some_and(|mac| mac.ct_eq(&signature).into())
    });
    held.then_some(()).ok_or(Error::BadSignature)
}

/// Checks that the header `name` is the secret itself. Digests are compared, so that not even the secret's length
/// shows in the time.
pub(crate) fn check_token(
    headers: &HeaderMap,
    name: &'static str,
    secrets: &[SecretString],
) -> Result<(), Error> {
    let header = headers.get(name).ok_or(Error::MissingSignature(name))?;
    let presented = Sha256::digest(header.as_bytes());
    let held = any(secrets, |secret| {
        Sha256::digest(secret.as_bytes())
            .as_slice()
            .ct_eq(presented.as_slice())
            .into()
    });
    held.then_some(()).ok_or(Error::BadSignature)
}

/// Checks a signature of the Standard Webhooks specification
/// (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>): one of those in
/// `webhook-signature` is `v1,` and the Base64 of the HMAC-SHA-256 of id, timestamp and body. Only a secret of the
/// form `whsec_…` can make one.
pub(crate) fn check_standard(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<(), Error> {
    let header = |name| headers.get(name).ok_or(Error::MissingSignature(name));
    let id = header("webhook-id")?.as_bytes();
    let timestamp = header("webhook-timestamp")?.as_bytes();
    let signatures: Vec<_> = header("webhook-signature")?
        .as_bytes()
        .split(|byte| *byte == b' ')
        .filter_map(|signature| BASE64.decode(signature.strip_prefix(b"v1,")?).ok())
        .take(MAX_SIGNATURES)
        .collect();
    let held = any(secrets, |secret| {
        let key = secret.strip_prefix(STANDARD_PREFIX).unwrap_or_default();
        let key = BASE64.decode(key).ok().filter(|key| !key.is_empty());
        let signed = [id, b".", timestamp, b".", body];
        let Some(expected) = key.and_then(|key| hmac(&key, &signed)) else {
            return false;
        };
        signatures.iter().fold(false, |held, signature| {
            held | bool::from(expected.as_slice().ct_eq(signature))
        })
    });
    held.then_some(()).ok_or(Error::BadSignature)
}

fn any(secrets: &[SecretString], holds: impl Fn(&str) -> bool) -> bool {
    secrets
        .iter()
        .map(ExposeSecret::expose_secret)
        .filter(|secret| !secret.is_empty())
        .fold(false, |held, secret| holds(secret) | held)
}

/// HMAC-SHA-256 (RFC 2104) of the parts in a row.
fn hmac(key: &[u8], parts: &[&[u8]]) -> Option<[u8; 32]> {
    // It takes keys of every length, so this never fails; were it to, nothing would be let in.
    let mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    let mac = parts.iter().fold(mac, Mac::chain_update);
    Some(mac.finalize().into_bytes().into())
}
