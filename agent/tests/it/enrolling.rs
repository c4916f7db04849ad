//! Enrollment: whom the agent trusts, and what it makes of every answer.

use std::{path::Path, sync::Arc, time::Duration};

use http::Response;
use longshore_agent::{
    backoff::Backoff,
    enroll::{self, Application, EnrollError},
    identity::{Identity, Keep as _, StateDir},
    network::Network,
    tls::Trust,
};
use longshore_protocol::{DeviceId, Digest, api::EnrollApproved};
use rand::{SeedableRng as _, rngs::StdRng};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use serde_json::json;
use tokio::time;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    DEADLINE,
    pki::{Life, Pki, server_config},
    public::{self, Asked, answer, later},
    relay, until,
};

pub fn id() -> DeviceId {
    DeviceId::from_random([3; 16])
}

async fn enroll(dir: &Path, server: &Url, trust: Trust) -> Result<Identity, EnrollError> {
    enroll_through(Network::default(), dir, server, trust).await
}

pub async fn enroll_through(
    network: Network,
    dir: &Path,
    server: &Url,
    trust: Trust,
) -> Result<Identity, EnrollError> {
    let state = StateDir::open(dir).unwrap();
    let application = Application {
        server: server.clone(),
        trust,
        token: "lst_secret".into(),
        name: "till".parse().unwrap(),
        facts: [("arch".to_owned(), "arm64".to_owned())].into(),
        network,
    };
    let short = Duration::from_millis(20);
    let backoff = Backoff::new(short, short, StdRng::seed_from_u64(1));
    let stop = CancellationToken::new();
    let enrolling = enroll::enroll(&state, &application, |_, _| {}, backoff, &stop);
    time::timeout(DEADLINE, enrolling).await.unwrap()
}

pub fn approved(pki: &Pki, asked: &Asked, edge_url: &str) -> String {
    let csr = CertificateSigningRequestDer::from_pem_slice(asked.request.csr.as_bytes()).unwrap();
    serde_json::to_string(&EnrollApproved {
        device_id: id(),
        device_token: "device-token".into(),
        certificate_chain: pki.device_pem(&csr, &id(), Life::USUAL),
        ca_bundle: pki.bundle(),
        edge_url: edge_url.to_owned(),
    })
    .unwrap()
}

pub fn pending() -> String {
    json!({"device_id": id(), "device_token": "device-token", "status": "pending", "retry_after": 0})
        .to_string()
}

#[tokio::test]
async fn from_pending_to_an_identity_through_trouble() {
    let pki = Arc::new(Pki::new());
    let issuer = pki.clone();
    let script = vec![
        answer(503, ""),
        later(429, 0),
        answer(202, pending()),
        answer(500, "oops"),
        answer(202, pending()),
        Box::new(move |asked: &Asked| {
            Response::new(approved(&issuer, asked, "wss://127.0.0.1:1/v1/edge"))
        }),
    ];
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
    let dir = tempfile::tempdir().unwrap();
    let identity = enroll(
        dir.path(),
        &server.url,
        Trust::Fingerprint(pki.fingerprint()),
    )
    .await
    .unwrap();
    assert_eq!(identity.device_id, id());
    let asked = server.asked.borrow().clone();
    assert_eq!(asked.len(), 6);
    for (place, call) in asked.iter().enumerate() {
        assert_eq!(call.authorization, "Bearer lst_secret");
        assert_eq!(call.request.name, "till");
        assert_eq!(call.request.facts["arch"], "arm64");
        // The first answer is wanted at once; later ones may be held.
        assert_eq!(call.request.wait, if place <= 2 { 0 } else { 25 });
        assert_eq!(call.request.csr, asked[0].request.csr);
    }
    let state = StateDir::open(dir.path()).unwrap();
    assert_eq!(state.identity().unwrap().unwrap().device_id, id());
    assert!(state.enrollment().unwrap().is_none());
    let kept = std::fs::read_to_string(dir.path().join("identity.json")).unwrap();
    assert!(
        !kept.contains("lst_secret"),
        "the provisioning token is not kept"
    );
}

#[tokio::test]
async fn a_restart_while_pending_goes_on_with_the_same_key() {
    let pki = Arc::new(Pki::new());
    let server = public::serve(
        pki.public("127.0.0.1", Life::USUAL),
        vec![answer(202, pending())],
    )
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut seen = server.asked.clone();
    let trust = Trust::Fingerprint(pki.fingerprint());
    tokio::select! {
        enrolled = enroll(dir.path(), &server.url, trust.clone()) => panic!("{enrolled:?}"),
        // The second call says that the first answer was taken in.
        () = until(&mut seen, "two calls", |asked| asked.len() >= 2) => {}
    }
    let first = seen.borrow()[0].request.csr.clone();
    let issuer = pki.clone();
    let script: Vec<_> = vec![Box::new(move |asked: &Asked| {
        Response::new(approved(&issuer, asked, "wss://127.0.0.1:1/v1/edge"))
    }) as _];
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
    enroll(dir.path(), &server.url, trust).await.unwrap();
    let key = |csr: &str| {
        let csr = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap();
        rcgen::CertificateSigningRequestParams::from_der(&csr)
            .unwrap()
            .public_key
    };
    let second = server.asked.borrow()[0].request.clone();
    assert_eq!(key(&first), key(&second.csr));
    assert_eq!(second.wait, 25);
}

#[tokio::test]
async fn refusals_end_it_with_the_reason() {
    let problem = json!({"type": "about:blank", "title": "Conflict", "status": 409,
        "detail": "the name `till` belongs to another key"});
    let cases = [
        (
            404,
            json!({"error": "Token not found"}).to_string(),
            "Token not found",
        ),
        (
            403,
            json!({"status": "rejected", "reason": "unknown box"}).to_string(),
            "rejected: unknown box",
        ),
        (409, problem.to_string(), "belongs to another key"),
        (
            422,
            json!({"title": "Bad CSR"}).to_string(),
            "(422): Bad CSR",
        ),
    ];
    let pki = Pki::new();
    for (status, body, expected) in cases {
        let script = vec![answer(status, body)];
        let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::Fingerprint(pki.fingerprint());
        let error = enroll(dir.path(), &server.url, trust).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{status}: {error}");
    }
}

#[tokio::test]
async fn what_somebody_in_between_answers_decides_nothing() {
    let pki = Arc::new(Pki::new());
    let page = "<html><body>Welcome to the hotel. Accept our terms</body></html>";
    let redirect = Box::new(move |_: &Asked| {
        let response = Response::builder().status(302);
        let response = response.header("location", "http://portal.example/?next=/v1/enroll");
        response.body(page.to_owned()).unwrap()
    });
    let mut script = vec![redirect as _];
    for status in [
        200, 201, 202, 204, 301, 400, 401, 403, 404, 407, 409, 422, 451, 511,
    ] {
        script.push(answer(status, if status == 204 { "" } else { page }));
        script.push(answer(status, if status == 204 { "" } else { "{}" }));
    }
    script.push(answer(
        403,
        json!({"status": "blocked", "reason": "policy"}).to_string(),
    ));
    script.push(answer(404, json!({"error": "no such page"}).to_string()));
    script.push(answer(202, pending()));
    script.push(answer(403, page));
    let calls = script.len() + 1;
    let issuer = pki.clone();
    script.push(Box::new(move |asked: &Asked| {
        Response::new(approved(&issuer, asked, "wss://127.0.0.1:1/v1/edge"))
    }));
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::Bundle(pki.bundle());
    enroll(dir.path(), &server.url, trust).await.unwrap();
    assert_eq!(server.asked.borrow().len(), calls);
}

#[tokio::test]
async fn a_device_that_registered_waits_until_the_controller_answers_again() {
    let (pki, other) = (Arc::new(Pki::new()), Pki::new());
    let issuer = pki.clone();
    let script = vec![
        answer(202, pending()),
        Box::new(move |asked: &Asked| {
            Response::new(approved(&issuer, asked, "wss://127.0.0.1:1/v1/edge"))
        }) as _,
    ];
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
    // A portal stands in between as soon as the device has registered, and goes after a while.
    let (relay, mut connections) = relay::start(server.url.socket_addrs(|| None).unwrap()[0]).await;
    let portal = public::serve(other.public("127.0.0.1", Life::USUAL), vec![]).await;
    let portal = portal.url.socket_addrs(|| None).unwrap()[0];
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::Fingerprint(pki.fingerprint());
    let url: Url = format!("https://{}", relay.address).parse().unwrap();
    let mut asked = server.asked.clone();
    let meanwhile = async {
        until(&mut asked, "it registered", |asked| asked.len() == 1).await;
        relay.redirect(portal);
        let before = *connections.borrow();
        until(&mut connections, "it tried again and again", |now| {
            *now >= before + 5
        })
        .await;
        relay.redirect(server.url.socket_addrs(|| None).unwrap()[0]);
    };
    let (enrolled, ()) = tokio::join!(enroll(dir.path(), &url, trust), meanwhile);
    assert_eq!(enrolled.unwrap().device_id, id());
}

#[tokio::test]
async fn a_certificate_for_another_key_or_an_edge_without_tls_is_refused() {
    let pki = Arc::new(Pki::new());
    let (one, two) = (pki.clone(), pki.clone());
    let scripts: [Vec<_>; 2] = [
        vec![Box::new(move |asked: &Asked| {
            let mut other = asked.clone();
            let key = rcgen::KeyPair::generate().unwrap();
            other.request.csr = rcgen::CertificateParams::default()
                .serialize_request(&key)
                .and_then(|csr| csr.pem())
                .unwrap();
            Response::new(approved(&one, &other, "wss://127.0.0.1:1/v1/edge"))
        }) as _],
        vec![
            Box::new(move |asked: &Asked| Response::new(approved(&two, asked, "ws://127.0.0.1:1")))
                as _,
        ],
    ];
    for (script, expected) in scripts
        .into_iter()
        .zip(["for another key", "is no wss:// address"])
    {
        let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::Fingerprint(pki.fingerprint());
        let error = enroll(dir.path(), &server.url, trust).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(
            StateDir::open(dir.path())
                .unwrap()
                .identity()
                .unwrap()
                .is_none()
        );
    }
}

#[tokio::test]
async fn only_the_pinned_root_is_trusted() {
    let pki = Pki::new();
    let other = Pki::new();
    let (mut spliced, key) = other.server("127.0.0.1", Life::USUAL);
    // Somebody in between, who shows the right root beside a chain of their own.
    spliced.push(pki.root.der().clone());
    let in_between = server_config()
        .with_no_client_auth()
        .with_single_cert(spliced, key)
        .unwrap();
    let right = || Trust::Fingerprint(pki.fingerprint());
    let cases = [
        (
            "another pin",
            pki.public("127.0.0.1", Life::USUAL),
            Trust::Fingerprint(Digest::of(b"x")),
        ),
        (
            "another authority",
            other.public("127.0.0.1", Life::USUAL),
            right(),
        ),
        (
            "a chain of another authority with our root",
            in_between,
            right(),
        ),
        (
            "another name",
            pki.public("127.0.0.2", Life::USUAL),
            right(),
        ),
        (
            "another bundle",
            pki.public("127.0.0.1", Life::USUAL),
            Trust::Bundle(other.bundle()),
        ),
    ];
    for (what, config, trust) in cases {
        let server = public::serve(config, vec![]).await;
        let dir = tempfile::tempdir().unwrap();
        let error = enroll(dir.path(), &server.url, trust).await.unwrap_err();
        assert!(
            matches!(error, EnrollError::Untrusted(_)),
            "{what}: {error}"
        );
        assert!(
            server.asked.borrow().is_empty(),
            "{what}: the token was told"
        );
    }
    let script = vec![answer(404, json!({"error": "Token not found"}).to_string())];
    let server = public::serve(pki.public("127.0.0.1", Life::USUAL), script).await;
    let dir = tempfile::tempdir().unwrap();
    let error = enroll(dir.path(), &server.url, Trust::Bundle(pki.bundle()))
        .await
        .unwrap_err();
    assert!(matches!(error, EnrollError::TokenNotFound(_)), "{error}");
}
