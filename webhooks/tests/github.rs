//! GitHub's deliveries: what is let in, what is kept out, and that nothing makes the crate panic.
//!
//! The bodies under `tests/github/` are written for these tests, with the members that GitHub documents.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers fail by panicking"
)]

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use longshore_webhooks::{Delivery, Error, Event, error::InvalidBody, github};
use proptest::prelude::*;
use secrecy::SecretString;
use sha2::Sha256;

const PUSH: &[u8] = include_bytes!("github/push.json");
const PUSH_DELETED: &[u8] = include_bytes!("github/push-deleted.json");
const PUSH_FORGEJO: &[u8] = include_bytes!("github/push-forgejo.json");
const PING: &[u8] = include_bytes!("github/ping.json");
const SECRET: &str = "It's a Secret to Everybody";

fn secrets(texts: &[&str]) -> Vec<SecretString> {
    texts.iter().map(|text| SecretString::from(*text)).collect()
}

fn sign(secret: &str, body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
        .unwrap()
        .chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

fn headers(event: &str, signature: &str) -> HeaderMap {
    [
        ("content-type", "application/json"),
        ("x-github-event", event),
        ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("x-hub-signature-256", signature),
    ]
    .into_iter()
    .map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        )
    })
    .collect()
}

fn receive(event: &str, body: &[u8]) -> Result<Delivery, Error> {
    github::receive(
        &headers(event, &sign(SECRET, body)),
        body,
        &secrets(&[SECRET]),
    )
}

fn push(body: &[u8]) -> longshore_webhooks::Push {
    match receive("push", body).unwrap().event {
        Event::Push(push) => push,
        other => panic!("{other:?}"),
    }
}

/// The vector that GitHub publishes for implementers.
#[test]
fn published_signature() {
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let headers = headers("star", signature);
    let delivery = github::receive(&headers, b"Hello, World!", &secrets(&[SECRET])).unwrap();
    assert_eq!(delivery.event, Event::Ignored("star".into()));
    assert_eq!(delivery.id, "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    let error = github::receive(&headers, b"Hello, World?", &secrets(&[SECRET])).unwrap_err();
    assert!(matches!(error, Error::BadSignature));
}

#[test]
fn a_push() {
    let push = push(PUSH);
    assert_eq!(push.repository, "harbor/shops");
    assert_eq!(push.branch(), Some("main"));
    assert_eq!(push.before, "6113728f27ae82c7b1a177c8d03f9e96e0adf246");
    assert_eq!(push.after, "76ae82c7b1a177c8d03f9e96e0adf2466113728f");
    assert!(!push.deleted);
    assert!(push.forced);
    assert_eq!(
        push.clone_urls,
        [
            "https://git.example/harbor/shops.git",
            "git@git.example:harbor/shops.git",
            "git://git.example/harbor/shops.git",
            "https://git.example/harbor/shops",
        ]
    );
}

#[test]
fn a_deleted_tag() {
    let push = push(PUSH_DELETED);
    assert!(push.deleted);
    assert_eq!(push.branch(), None);
    assert_eq!(push.git_ref, "refs/tags/v1");
    assert_eq!(push.after, "0".repeat(40));
}

/// No `deleted`, no `forced`, no `git_url`.
#[test]
fn a_push_of_forgejo() {
    let push = push(PUSH_FORGEJO);
    assert_eq!((push.deleted, push.forced), (false, false));
    assert_eq!(push.clone_urls.len(), 3);
}

#[test]
fn a_ping_and_what_nobody_asked_for() {
    assert_eq!(receive("ping", PING).unwrap().event, Event::Ping);
    assert_eq!(
        receive("fork", b"").unwrap().event,
        Event::Ignored("fork".into())
    );
}

#[test]
fn unsigned_is_refused_whatever_the_secrets() {
    let mut unsigned = headers("push", "sha256=");
    unsigned.remove("x-hub-signature-256");
    // The older header, with SHA-1, is no signature.
    unsigned.insert("x-hub-signature", HeaderValue::from_static("sha1=00"));
    for secrets in [secrets(&[]), secrets(&[""]), secrets(&[SECRET])] {
        let error = github::receive(&unsigned, PUSH, &secrets).unwrap_err();
        assert!(
            matches!(error, Error::MissingSignature("X-Hub-Signature-256")),
            "{error}"
        );
    }
}

#[test]
fn no_secret_and_the_empty_secret_let_nothing_in() {
    let signed_with_nothing = headers("push", &sign("", PUSH));
    for secrets in [secrets(&[]), secrets(&[""]), secrets(&["", SECRET])] {
        let error = github::receive(&signed_with_nothing, PUSH, &secrets).unwrap_err();
        assert!(matches!(error, Error::BadSignature), "{error}");
    }
}

#[test]
fn two_secrets_while_one_is_replaced() {
    for signer in ["old", "new"] {
        let headers = headers("push", &sign(signer, PUSH));
        assert!(github::receive(&headers, PUSH, &secrets(&["new", "old"])).is_ok());
        assert!(github::receive(&headers, PUSH, &secrets(&["other"])).is_err());
    }
}

#[test]
fn malformed_signatures() {
    let good = sign(SECRET, PUSH);
    let digits = good.strip_prefix("sha256=").unwrap();
    for bad in [
        "",
        "sha256",
        "sha256=",
        "sha256=zz",
        digits,
        &good[..good.len() - 2],
        &format!("{good}00"),
    ] {
        let error = github::receive(&headers("push", bad), PUSH, &secrets(&[SECRET])).unwrap_err();
        assert!(matches!(error, Error::BadSignature), "{bad}: {error}");
    }
}

#[test]
fn a_delivery_without_its_event() {
    let mut headers = headers("push", &sign(SECRET, PUSH));
    headers.remove("x-github-event");
    let error = github::receive(&headers, PUSH, &secrets(&[SECRET])).unwrap_err();
    assert!(
        matches!(error, Error::BadHeader("x-github-event")),
        "{error}"
    );
}

#[test]
fn bad_bodies_say_where() {
    let text = std::str::from_utf8(PUSH).unwrap();
    let cases = [
        ("{}".to_owned(), "."),
        ("not JSON".to_owned(), "."),
        (format!("{text} and more"), "."),
        (text.replace("\"full_name\"", "\"name_full\""), "repository"),
        (
            text.replace("\"harbor/shops\"", "7"),
            "repository.full_name",
        ),
        (text.replace("refs/heads/main", "main"), "ref"),
        (
            text.replace("6113728f27ae82c7b1a177c8d03f9e96e0adf246", "HEAD"),
            "before",
        ),
        (
            text.replace("76ae82c7b1a177c8d03f9e96e0adf2466113728f", &"g".repeat(40)),
            "after",
        ),
    ];
    for (body, place) in cases {
        match receive("push", body.as_bytes()).unwrap_err() {
            Error::BadBody { event, at, .. } => {
                assert_eq!((event.as_str(), at.as_str()), ("push", place), "{body}");
            }
            other => panic!("{body}: {other}"),
        }
    }
}

#[test]
fn a_form_is_answered_with_what_to_change() {
    let body = b"payload=%7B%7D";
    let mut headers = headers("push", &sign(SECRET, body));
    headers.insert(
        "content-type",
        "application/x-www-form-urlencoded".parse().unwrap(),
    );
    let error = github::receive(&headers, body, &secrets(&[SECRET])).unwrap_err();
    assert!(
        matches!(
            error,
            Error::BadBody {
                source: InvalidBody::Form,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn errors_and_debug_show_no_secret() {
    let error =
        github::receive(&headers("push", "sha256=00"), PUSH, &secrets(&[SECRET])).unwrap_err();
    assert!(!format!("{error} {error:?} {:?}", secrets(&[SECRET])).contains("Everybody"));
}

proptest! {
    #[test]
    fn a_flipped_bit_of_the_body_is_refused(at in 0..PUSH.len(), bit in 0_u8..8) {
        let mut body = PUSH.to_vec();
        body[at] ^= 1 << bit;
        let headers = headers("push", &sign(SECRET, PUSH));
        prop_assert!(matches!(
            github::receive(&headers, &body, &secrets(&[SECRET])),
            Err(Error::BadSignature)
        ));
    }

    #[test]
    fn a_flipped_bit_of_the_signature_is_refused(at in 0..32_usize, bit in 0_u8..8) {
        let signature = sign(SECRET, PUSH);
        let mut bytes = hex::decode(signature.strip_prefix("sha256=").unwrap()).unwrap();
        bytes[at] ^= 1 << bit;
        let headers = headers("push", &format!("sha256={}", hex::encode(bytes)));
        prop_assert!(matches!(
            github::receive(&headers, PUSH, &secrets(&[SECRET])),
            Err(Error::BadSignature)
        ));
    }

    /// Signed rubbish reaches the parser; unsigned rubbish reaches the header's decoding.
    #[test]
    fn nothing_panics(
        body in proptest::collection::vec(any::<u8>(), 0..512),
        event in proptest::collection::vec(any::<u8>(), 0..32),
        signature in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut headers = headers("push", &sign(SECRET, &body));
        let _outcome = github::receive(&headers, &body, &secrets(&[SECRET]));
        if let Ok(value) = HeaderValue::from_bytes(&event) {
            headers.insert("x-github-event", value.clone());
            headers.insert("x-github-delivery", value);
            let _outcome = github::receive(&headers, &body, &secrets(&[SECRET]));
        }
        if let Ok(value) = HeaderValue::from_bytes(&signature) {
            headers.insert("x-hub-signature-256", value);
            prop_assert!(github::receive(&headers, &body, &secrets(&[SECRET])).is_err());
        }
    }

    /// Broken JSON made of a real body, signed: cut short, and with one byte replaced.
    #[test]
    fn damaged_bodies_do_not_panic(
        // The newline at the end may be cut off.
        cut in 0..PUSH.trim_ascii_end().len(),
        at in 0..PUSH.len(),
        byte: u8,
    ) {
        let mut body = PUSH.to_vec();
        body[at] = byte;
        let _outcome = receive("push", &body);
        prop_assert!(receive("push", &PUSH[..cut]).is_err());
    }
}
