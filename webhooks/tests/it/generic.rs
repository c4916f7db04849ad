//! Calls of whoever has a secret.

use longshore_webhooks::{Host, receive};

use crate::sample::{push, secrets, sign};

#[test]
fn any_body_is_a_push() {
    for body in [&b""[..], b"{}", b"null", b"\xff\x00", b"{\"ref\": 7}"] {
        assert!(push(Host::Generic, "", body).refs.is_empty(), "{body:?}");
    }
    let push = push(
        Host::Generic,
        "",
        b"{\"ref\": \"refs/heads/main\", \"more\": 1}",
    );
    assert_eq!(push.refs[0].branch(), Some("main"));
}

/// What `openssl dgst -sha256 -hmac key` prints for this body.
#[test]
fn it_can_be_signed_with_openssl() {
    let mut headers = http::HeaderMap::new();
    let signature = "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8";
    headers.insert("x-longshore-signature", signature.parse().unwrap());
    let body = b"The quick brown fox jumps over the lazy dog";
    assert_eq!(sign("key", body), signature);
    let delivery = receive(&headers, body, &secrets(&["key"])).unwrap();
    assert_eq!(delivery.id, "", "an id is optional");
}
