//! Renewal of a certificate that has ended, on the public listener.
//!
//! ```text
//! GET /v1/renew ─▶ challenge ─▶ POST /v1/renew {old chain, new request, challenge, signature by the old key}
//! ```
//!
//! The signature is over [`proof`]: it holds for one challenge, one old certificate and one new request. Whoever
//! repeats it gets another certificate for the same new key, which is of use to nobody else.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Where a device whose certificate has ended renews it: `GET` for a challenge, and then `POST`, with
/// `Authorization: Bearer <device token>`.
pub const RENEW_PATH: &str = "/v1/renew";

/// What no other signature of a device's key begins with.
const DOMAIN: &[u8] = b"longshore.dev/renew/v1\0";

/// The answer to `GET`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewChallenge {
    /// A text to sign, good for some minutes.
    pub challenge: String,
    /// The controller's time, in milliseconds since the Unix epoch.
    pub time: u64,
}

/// The body of `POST`. The answers are those of an enrollment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The old certificate and its intermediates, leaf first, in PEM.
    pub certificate_chain: String,
    /// A certificate signing request in PEM, as for an enrollment. Its key may be a new one.
    pub csr: String,
    /// The challenge, as it came.
    pub challenge: String,
    /// The old key's signature over [`proof`]: ECDSA with SHA-256, ASN.1, in Base64.
    pub signature: String,
}

/// What the old key signs. The certificate (the leaf alone) and the request are in DER form.
pub fn proof(challenge: &str, certificate: &[u8], csr: &[u8]) -> Vec<u8> {
    let digest = Digest::of_parts([challenge.as_bytes(), certificate, csr]);
    [DOMAIN, digest.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_for_one_challenge_one_certificate_and_one_request() {
        let proofs = [
            proof("a", b"b", b"c"),
            proof("x", b"b", b"c"),
            proof("a", b"x", b"c"),
            proof("a", b"b", b"x"),
            proof("ab", b"", b"c"),
            proof("a", b"bc", b""),
        ];
        for (index, proof) in proofs.iter().enumerate() {
            assert!(proof.starts_with(DOMAIN));
            assert!(!proofs[..index].contains(proof), "{index}");
        }
    }
}
