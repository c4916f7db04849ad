//! Secrets: made, hashed, derived and encrypted here, and nowhere printed.
//!
//! - Tokens that operators and new devices present are random; only their SHA-256 is stored. They carry 160
//!   random bits, so a plain hash needs no salt or stretching.
//! - A device's token is derived from the master key and the device, so that it can be told to the device
//!   again without being stored.
//! - Webhook secrets must be known in clear to check signatures; they are stored encrypted (ChaCha20-Poly1305)
//!   with a key derived from the master key.
//!
//! The master key is `LONGSHORE_SECRET_KEY` or the file `secret.key` in the data directory.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use hmac::{Hmac, Mac};
use longshore_protocol::{DeviceId, Digest};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::files;

const NONCE_BYTES: usize = 12;

/// A new random secret: the prefix and 40 hex digits.
pub fn generate(prefix: &str) -> SecretString {
    let random: [u8; 20] = rand::random();
    format!("{prefix}{}", hex::encode(random)).into()
}

/// A new secret for webhooks, in the form of the Standard Webhooks specification: `whsec_` and a key in Base64. GitLab
/// takes only that form for what it signs with; for all others it is a text like any other.
pub fn generate_for_webhooks() -> SecretString {
    let random: [u8; 32] = rand::random();
    format!("whsec_{}", BASE64.encode(random)).into()
}

/// What is stored of a secret.
pub fn hash(secret: &str) -> Digest {
    Digest::of(secret.as_bytes())
}

/// Why there is no master key, or why something does not decrypt.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key's file cannot be read or made.
    #[error("the key file failed")]
    File(#[from] files::FileError),
    /// The key is not 64 hex digits.
    #[error("the secret key must be 64 hex digits; `openssl rand -hex 32` makes one")]
    NotAKey,
    /// The ciphertext was made with another key, for another purpose, or damaged.
    #[error("a stored secret does not decrypt; was the secret key changed?")]
    Undecryptable,
}

/// The master key, and what is derived from it.
pub struct Keyring {
    device_tokens: [u8; 32],
    links: [u8; 32],
    challenges: [u8; 32],
    encryption: ChaCha20Poly1305,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyring")
    }
}

impl Keyring {
    /// The key given in the settings, else the one in the data directory, made there if there is none.
    pub fn open(directory: &Path, given: Option<&SecretString>) -> Result<Self, SecretError> {
        let digits = match given {
            Some(given) => given.clone(),
            None => files::read_or_create_secret(&directory.join("secret.key"), || {
                let random: [u8; 32] = rand::random();
                hex::encode(random).into()
            })?,
        };
        let mut master = [0; 32];
        hex::decode_to_slice(digits.expose_secret().trim(), &mut master)
            .map_err(|_detail| SecretError::NotAKey)?;
        Ok(Self {
            device_tokens: mac(&master, b"longshore.dev/device-tokens/v1"),
            links: mac(&master, b"longshore.dev/links/v1"),
            challenges: mac(&master, b"longshore.dev/challenges/v1"),
            encryption: ChaCha20Poly1305::new(&mac(&master, b"longshore.dev/encryption/v1").into()),
        })
    }

    /// The token of a device.
    pub fn device_token(&self, device: &DeviceId, key: Digest) -> SecretString {
        let context = Digest::of_parts([device.as_str().as_bytes(), key.as_bytes()]);
        format!(
            "lsd_{}",
            hex::encode(mac(&self.device_tokens, context.as_bytes()))
        )
        .into()
    }

    /// Whether `presented` is the token of that device, in constant time.
    pub fn is_device_token(&self, device: &DeviceId, key: Digest, presented: &str) -> bool {
        let expected = self.device_token(device, key);
        expected
            .expose_secret()
            .as_bytes()
            .ct_eq(presented.as_bytes())
            .into()
    }

    /// The key of a link that opens `subject` for whoever was shown it.
    pub fn link_key(&self, subject: &str) -> String {
        hex::encode(mac(&self.links, subject.as_bytes()))
    }

    /// Whether `presented` is the key of the link to `subject`, in constant time.
    pub fn is_link_key(&self, subject: &str, presented: &str) -> bool {
        self.link_key(subject)
            .as_bytes()
            .ct_eq(presented.as_bytes())
            .into()
    }

    /// A text that shows that whoever signs it does so after `now`. Every replica knows it again.
    pub fn challenge(&self, now: u64) -> String {
        let at = now.to_string();
        format!("{at}.{}", hex::encode(mac(&self.challenges, at.as_bytes())))
    }

    /// When `presented` was made by [`Self::challenge`]; `None` where it was not.
    pub fn challenged_at(&self, presented: &str) -> Option<u64> {
        let at = presented.split_once('.')?.0.parse().ok()?;
        let expected = self.challenge(at);
        let is_ours: bool = expected.as_bytes().ct_eq(presented.as_bytes()).into();
        is_ours.then_some(at)
    }

    /// Encrypts a secret; `purpose` must be given again to decrypt.
    pub fn encrypt(&self, purpose: &str, secret: &SecretString) -> Result<Vec<u8>, SecretError> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload {
            msg: secret.expose_secret().as_bytes(),
            aad: purpose.as_bytes(),
        };
        let sealed = self
            .encryption
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_opaque| SecretError::Undecryptable)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Decrypts what [`Self::encrypt`] made for the same purpose.
    pub fn decrypt(&self, purpose: &str, sealed: &[u8]) -> Result<SecretString, SecretError> {
        let (nonce, sealed) = sealed
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(SecretError::Undecryptable)?;
        let payload = Payload {
            msg: sealed,
            aad: purpose.as_bytes(),
        };
        let clear = self
            .encryption
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_opaque| SecretError::Undecryptable)?;
        Ok(String::from_utf8(clear)
            .map_err(|_opaque| SecretError::Undecryptable)?
            .into())
    }
}

/// HMAC-SHA-256 (RFC 2104): both for deriving keys and for tokens.
fn mac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    // RFC 2104: a key shorter than the block is padded with zeros.
    let mut block = [0; 64];
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac: Hmac<Sha256> = KeyInit::new(&block.into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring() -> Keyring {
        Keyring::open(Path::new("/nonexistent"), Some(&"07".repeat(32).into())).unwrap()
    }

    #[test]
    fn device_tokens_belong_to_one_device_and_key() {
        let keyring = keyring();
        let (one, two) = (
            DeviceId::from_random([1; 16]),
            DeviceId::from_random([2; 16]),
        );
        let key = Digest::of(b"key");
        let token = keyring.device_token(&one, key);
        assert!(keyring.is_device_token(&one, key, token.expose_secret()));
        assert!(!keyring.is_device_token(&two, key, token.expose_secret()));
        assert!(!keyring.is_device_token(&one, Digest::of(b"other"), token.expose_secret()));
        assert!(!keyring.is_device_token(&one, key, ""));
    }

    #[test]
    fn a_link_opens_its_subject_only() {
        let keyring = keyring();
        let key = keyring.link_key("preview default/shops 7 abc");
        assert!(keyring.is_link_key("preview default/shops 7 abc", &key));
        assert!(!keyring.is_link_key("preview default/shops 8 abc", &key));
        assert!(!keyring.is_link_key("preview default/shops 7 abc", ""));
        let token = keyring.device_token(&DeviceId::from_random([1; 16]), Digest::of(b"key"));
        assert!(!token.expose_secret().contains(&key));
    }

    #[test]
    fn a_challenge_says_when_it_was_made_and_cannot_be_made_up() {
        let keyring = keyring();
        let challenge = keyring.challenge(1234);
        assert_eq!(keyring.challenged_at(&challenge), Some(1234));
        let (_, mac) = challenge.split_once('.').unwrap();
        let forged = [
            format!("9234.{mac}"),
            format!("01234.{mac}"),
            format!("1234.{}", &mac[1..]),
            "1234".to_owned(),
            String::new(),
        ];
        for forged in forged {
            assert_eq!(keyring.challenged_at(&forged), None, "{forged}");
        }
    }

    #[test]
    fn encrypted_secrets_open_for_their_purpose_only() {
        let keyring = keyring();
        let sealed = keyring
            .encrypt("webhook default/shop", &"hush".into())
            .unwrap();
        assert!(!sealed.windows(4).any(|window| window == b"hush"));
        let clear = keyring.decrypt("webhook default/shop", &sealed).unwrap();
        assert_eq!(clear.expose_secret(), "hush");
        assert!(keyring.decrypt("webhook default/other", &sealed).is_err());
        assert!(
            keyring
                .decrypt("webhook default/shop", &sealed[1..])
                .is_err()
        );
    }
}
