//! Which host's rule holds, and laws that hold for all hosts.

use http::{HeaderMap, HeaderValue};
use longshore_webhooks::{Error, Event, Host, receive};
use proptest::{prelude::*, sample::select};

use crate::sample::{PUSHES, SECRET, deliver, secrets, sign, sign_standard, signed};

#[test]
fn each_host_is_known_by_its_headers() {
    for (host, event, body) in PUSHES {
        assert_eq!(Host::of(&signed(host, event, SECRET, body)).unwrap(), host);
        let delivery = deliver(host, event, body).unwrap();
        assert!(matches!(delivery.event, Event::Push(_)), "{host}");
    }
}

#[test]
fn unsigned_is_refused_whatever_the_secrets() {
    for (host, event, body) in PUSHES {
        let mut unsigned = signed(host, event, SECRET, body);
        for name in [
            "x-hub-signature",
            "x-hub-signature-256",
            "x-gitea-signature",
            "x-forgejo-signature",
            "x-gitlab-token",
            "x-longshore-signature",
        ] {
            unsigned.remove(name);
        }
        for secrets in [secrets(&[]), secrets(&[""]), secrets(&[SECRET])] {
            let error = receive(&unsigned, body, &secrets).unwrap_err();
            assert!(
                matches!(error, Error::MissingSignature(_)),
                "{host}: {error}"
            );
            assert!(error.is_unverified());
            assert!(
                host.receive(&unsigned, body, &secrets).is_err(),
                "{host}: not even where the host is taken for granted"
            );
        }
    }
}

#[test]
fn no_secret_and_the_empty_secret_let_nothing_in() {
    for (host, event, body) in PUSHES {
        let signed_with_nothing = signed(host, event, "", body);
        for secrets in [secrets(&[]), secrets(&[""]), secrets(&["", SECRET])] {
            let error = receive(&signed_with_nothing, body, &secrets).unwrap_err();
            assert!(matches!(error, Error::BadSignature), "{host}: {error}");
        }
    }
}

#[test]
fn two_secrets_while_one_is_replaced() {
    for (host, event, body) in PUSHES {
        for signer in ["old", "new"] {
            let headers = signed(host, event, signer, body);
            assert!(receive(&headers, body, &secrets(&["new", "old"])).is_ok());
            let error = receive(&headers, body, &secrets(&["other"])).unwrap_err();
            assert!(matches!(error, Error::BadSignature), "{host}: {error}");
        }
    }
}

/// A delivery with the headers of two hosts could be meant to pass by the rule of either.
#[test]
fn headers_of_several_hosts_are_refused() {
    let body = b"{}";
    for (one, _, _) in PUSHES {
        for (other, _, _) in PUSHES {
            // Each speaks for those before it.
            let relatives = [Host::GitHub, Host::Gitea, Host::Forgejo];
            let bitbuckets = [Host::BitbucketCloud, Host::BitbucketDataCenter];
            let both = [one, other];
            if one == other
                || both.iter().all(|host| relatives.contains(host))
                || both.iter().all(|host| bitbuckets.contains(host))
            {
                continue;
            }
            let mut headers = signed(one, "push", SECRET, body);
            headers.extend(signed(other, "push", SECRET, body));
            let error = receive(&headers, body, &secrets(&[SECRET])).unwrap_err();
            assert!(
                matches!(error, Error::SeveralHosts),
                "{one} {other}: {error}"
            );
        }
    }
}

/// A good proof of one scheme in the headers of a host that has another.
#[test]
fn another_hosts_proof_is_none() {
    let body = b"{}";
    let standard = sign_standard(SECRET, "1", "2", body);
    let sha256 = sign(SECRET, body);
    let cases: [(&[(&str, &str)], &str); 7] = [
        (
            &[("x-github-event", "push"), ("x-gitlab-token", SECRET)],
            "a token for a signature",
        ),
        (
            &[
                ("x-gitlab-event", "Push Hook"),
                ("x-hub-signature-256", &sha256),
            ],
            "GitHub's signature for GitLab",
        ),
        (
            &[
                ("x-github-event", "push"),
                ("webhook-id", "1"),
                ("webhook-timestamp", "2"),
                ("webhook-signature", &standard),
            ],
            "a standard signature for GitHub",
        ),
        (
            &[
                ("x-event-key", "repo:push"),
                ("x-hub-signature-256", &sha256),
            ],
            "the wrong header for Bitbucket",
        ),
        (
            &[("x-github-event", "push"), ("x-hub-signature", &sha256)],
            "Bitbucket's header for GitHub",
        ),
        (
            &[
                ("x-github-event", "push"),
                ("x-longshore-signature", &sha256),
            ],
            "the generic header for GitHub",
        ),
        (&[("x-hub-signature-256", &sha256)], "nobody's"),
    ];
    for (pairs, why) in cases {
        let headers = crate::sample::headers(pairs.iter().copied());
        let error = receive(&headers, body, &secrets(&[SECRET])).unwrap_err();
        assert!(error.is_unverified(), "{why}: {error}");
    }
}

#[test]
fn errors_and_debug_show_no_secret() {
    for (host, event, body) in PUSHES {
        let headers = signed(host, event, "another", body);
        let error = receive(&headers, body, &secrets(&[SECRET])).unwrap_err();
        let shown = format!("{error} {error:?} {:?}", secrets(&[SECRET]));
        assert!(!shown.contains("MfKQ9r8G"), "{shown}");
    }
}

fn any_push() -> impl Strategy<Value = (Host, &'static str, &'static [u8])> {
    select(&PUSHES[..])
}

/// The headers that some hosts' rules look at.
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

proptest! {
    #[test]
    fn a_flipped_bit_of_the_body_is_refused(
        (host, event, body) in any_push(), at: prop::sample::Index, bit in 0_u8..8
    ) {
        // GitLab's token says nothing about the body.
        prop_assume!(host != Host::GitLab);
        let headers = signed(host, event, SECRET, body);
        let mut body = body.to_vec();
        let at = at.index(body.len());
        body[at] ^= 1 << bit;
        prop_assert!(matches!(
            receive(&headers, &body, &secrets(&[SECRET])),
            Err(Error::BadSignature)
        ));
    }

    #[test]
    fn a_changed_proof_is_refused((host, event, body) in any_push(), at: prop::sample::Index, to: u8) {
        let mut headers = signed(host, event, SECRET, body);
        let name = match host {
            Host::GitHub => "x-hub-signature-256",
            Host::GitLab => "x-gitlab-token",
            Host::Gitea => "x-gitea-signature",
            Host::Forgejo => "x-forgejo-signature",
            Host::BitbucketCloud | Host::BitbucketDataCenter => "x-hub-signature",
            Host::Generic => "x-longshore-signature",
        };
        let mut value = headers[name].as_bytes().to_vec();
        let at = at.index(value.len());
        // Hex digits may be written in capitals.
        prop_assume!(!value[at].eq_ignore_ascii_case(&to));
        value[at] = to;
        let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
        headers.insert(name, value);
        prop_assert!(matches!(
            receive(&headers, body, &secrets(&[SECRET])),
            Err(Error::BadSignature)
        ));
    }

    /// Whatever headers come together: without a secret that is in force, nothing gets in, and nothing panics.
    #[test]
    fn nothing_gets_in_by_chance(
        mixed in proptest::collection::vec(
            (select(&NAMES[..]), proptest::collection::vec(any::<u8>(), 0..80)), 0..12
        ),
        (host, event, push) in any_push(),
        body in proptest::collection::vec(any::<u8>(), 0..256),
    ) {
        let mut headers: HeaderMap = signed(host, event, "not in force", push);
        for (name, value) in mixed {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(name, value);
            }
        }
        prop_assert!(receive(&headers, push, &secrets(&[SECRET, ""])).is_err());
        prop_assert!(receive(&headers, &body, &secrets(&[SECRET, ""])).is_err());
    }

    /// Signed rubbish reaches the parsers.
    #[test]
    fn nothing_panics(
        (host, event, _) in any_push(), body in proptest::collection::vec(any::<u8>(), 0..512)
    ) {
        let headers = signed(host, event, SECRET, &body);
        let _outcome = receive(&headers, &body, &secrets(&[SECRET]));
    }

    /// Broken JSON made of a real body, signed: cut short, and with one byte replaced.
    #[test]
    fn damaged_bodies_do_not_panic(
        (host, event, push) in any_push(),
        cut: prop::sample::Index,
        at: prop::sample::Index,
        byte: u8,
    ) {
        let mut body = push.to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        let _outcome = deliver(host, event, &body);
        // The newline at the end may be cut off.
        let cut = &push[..cut.index(push.trim_ascii_end().len())];
        prop_assert!(host == Host::Generic || deliver(host, event, cut).is_err());
    }
}
