//! What a stranger can send: any headers that the hosts' rules look at, with any values and any body. Nothing may
//! panic, and nothing may get in.
#![no_main]

use arbitrary::Arbitrary;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use longshore_webhooks::receive;
use secrecy::SecretString;

const NAMES: [&str; 20] = [
    "content-type",
    "x-github-event",
    "x-github-delivery",
    "x-hub-signature-256",
    "x-hub-signature",
    "x-gogs-event",
    "x-gitea-event",
    "x-gitea-signature",
    "x-forgejo-event",
    "x-forgejo-signature",
    "x-gitlab-event",
    "x-gitlab-token",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "x-event-key",
    "x-hook-uuid",
    "x-request-id",
    "x-longshore-signature",
    "x-longshore-delivery",
];

#[derive(Arbitrary, Debug)]
struct Call<'a> {
    headers: Vec<(u8, &'a [u8])>,
    body: &'a [u8],
}

fuzz_target!(|call: Call| {
    let mut headers = HeaderMap::new();
    for (name, value) in &call.headers {
        let name = NAMES[usize::from(*name) % NAMES.len()];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    // Random enough that no fuzzer guesses it, and the empty one, which must never hold.
    let secrets = [
        SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        SecretString::from(""),
    ];
    assert!(receive(&headers, call.body, &secrets).is_err());
});
