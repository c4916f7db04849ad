//! A certificate that ended while the device was away is renewed at the public address, by the old key.

use std::sync::Mutex;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{Method, Response};
use longshore_agent::identity::Chain;
use longshore_protocol::api::{
    EnrollApproved,
    renew::{RenewChallenge, RenewRequest, proof},
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use webpki::{EndEntityCert, aws_lc_rs::ECDSA_P256_SHA256};

use longshore_agent::clock::{self, Wall};

use super::*;
use crate::public::{self, Call};

/// It ended a moment ago.
const ENDED: Life = Life(-3600, -2);
const CHALLENGE: &str = "1.challenge";

/// The controller's answers, unless the script has others first.
struct Public {
    pki: Arc<Pki>,
    edge_url: String,
    script: Mutex<Vec<(u16, String)>>,
    seen: watch::Sender<usize>,
}

impl Public {
    fn respond(&self, call: &Call) -> Response<String> {
        assert_eq!(call.uri().path(), "/v1/renew");
        if call.method() == Method::GET {
            let challenge = RenewChallenge {
                challenge: CHALLENGE.to_owned(),
                time: clock::system(),
            };
            return Response::new(serde_json::to_string(&challenge).unwrap());
        }
        let scripted = {
            let mut script = self.script.lock().unwrap();
            (!script.is_empty()).then(|| script.remove(0))
        };
        let response = match scripted {
            Some((status, body)) => Response::builder().status(status).body(body).unwrap(),
            None => Response::new(self.renewed(call)),
        };
        self.seen.send_modify(|seen| *seen += 1);
        response
    }

    fn renewed(&self, call: &Call) -> String {
        assert_eq!(call.headers()["authorization"], format!("Bearer {TOKEN}"));
        let request: RenewRequest = serde_json::from_slice(call.body()).unwrap();
        let csr = CertificateSigningRequestDer::from_pem_slice(request.csr.as_bytes()).unwrap();
        let leaf = CertificateDer::from_pem_slice(request.certificate_chain.as_bytes()).unwrap();
        let signature = BASE64.decode(&request.signature).unwrap();
        EndEntityCert::try_from(&leaf)
            .unwrap()
            .verify_signature(
                ECDSA_P256_SHA256,
                &proof(CHALLENGE, &leaf, &csr),
                &signature,
            )
            .expect("the old key has signed");
        serde_json::to_string(&EnrollApproved {
            device_id: device(),
            device_token: TOKEN.to_owned(),
            certificate_chain: self.pki.device_pem(&csr, &device(), Life::USUAL),
            ca_bundle: self.pki.bundle(),
            edge_url: self.edge_url.clone(),
        })
        .unwrap()
    }
}

struct World {
    edge: Edge,
    agent: Agent,
    asked: watch::Receiver<usize>,
    before: Identity,
}

/// A device whose certificate has ended, by a clock that says what `wall` says, and a public address that answers so.
async fn world(wall: Wall, script: &[(u16, &str)]) -> World {
    let pki = Arc::new(Pki::new());
    let edge = Edge::start(pki.clone(), device(), 10_000, Behavior::default()).await;
    let mut before = identity(&pki, &edge, ENDED);
    let (seen, asked) = watch::channel(0);
    let script = script.iter();
    let public = Public {
        pki: pki.clone(),
        edge_url: edge.url.to_string(),
        script: Mutex::new(
            script
                .map(|(status, body)| (*status, (*body).to_owned()))
                .collect(),
        ),
        seen,
    };
    let config = pki.public("127.0.0.1", Life::USUAL);
    before.server = public::handle(config, move |call| public.respond(call)).await;
    before.trust = Some(longshore_agent::tls::Trust::Fingerprint(pki.fingerprint()));
    let dir = tempfile::tempdir().unwrap();
    let network = Network {
        clock: wall.into(),
        ..Network::default()
    };
    let agent = Agent::start_in(network, dir, before.clone(), SHORT);
    World {
        edge,
        agent,
        asked,
        before,
    }
}

/// The device is there, with another key and certificate, which are on disk.
async fn comes_back(mut world: World) {
    let mut seen = world.edge.seen.clone();
    until(&mut seen, "a hello", |seen| !seen.hellos.is_empty()).await;
    let wanted = world.edge.desire(1, &[object("a", "1")]);
    until(&mut seen, "a set", |seen| seen.accepted.contains(&wanted)).await;
    let asked = *world.asked.borrow_and_update();
    let dir = world.agent.stop().await;
    assert_eq!(
        *world.asked.borrow(),
        asked,
        "once it has one, it asks no more"
    );
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    let kept = state.identity().unwrap().unwrap();
    let connected = seen.borrow().connections.last().unwrap().1;
    let chain = Chain::verify(&kept.chain, &kept.ca_bundle, Some(clock::system())).unwrap();
    assert_eq!(Digest::of(&chain.certificates()[0]), connected);
    let key = |identity: &Identity| DeviceKey::from_pem(&identity.key).unwrap().fingerprint();
    assert_ne!(key(&kept), key(&world.before));
    assert_eq!(kept.trust, world.before.trust);
}

#[tokio::test]
async fn a_device_that_was_away_for_too_long_comes_back_by_itself() {
    comes_back(world(clock::system, &[]).await).await;
}

/// The device believes that its certificate is good; the controller's refusal says otherwise.
#[tokio::test]
async fn a_clock_that_stands_still_is_not_asked() {
    comes_back(world(|| 0, &[]).await).await;
}

#[tokio::test]
async fn a_portals_and_a_proxys_answers_are_no_verdict() {
    let script = [
        (200, "<html>Welcome to the hotel</html>"),
        (403, "<html>Log in first</html>"),
        (404, "not here"),
        (403, r#"{"error":"decommissioned"}"#),
        (502, "bad gateway"),
        (407, r#"{"status":"decommissioned"}"#),
    ];
    comes_back(world(clock::system, &script).await).await;
}

/// What runs goes on, and so does the asking: somebody may allow more.
#[tokio::test]
async fn who_comes_too_late_goes_on_asking() {
    let late = r#"{"status":"expired","reason":"the certificate ended 91 days ago"}"#;
    let mut world = world(clock::system, &[(403, late), (403, late)]).await;
    until(&mut world.asked, "two tries", |asked| *asked >= 2).await;
    assert!(!world.agent.linking.is_finished());
    comes_back(world).await;
}

#[tokio::test]
async fn a_device_that_was_decommissioned_meanwhile_is_told() {
    let gone = r#"{"status":"decommissioned","reason":"stolen"}"#;
    let world = world(clock::system, &[(403, gone)]).await;
    let (dir, ended) = world.agent.ended().await;
    let reason = "stolen".to_owned();
    assert_eq!(ended, Ended::Decommissioned { reason });
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    let kept = state.identity().unwrap().unwrap();
    assert_eq!(kept.chain, world.before.chain, "nothing else has changed");
}

/// A server with another authority's certificate says that the device is gone, and is not believed.
#[tokio::test]
async fn a_stranger_at_the_public_address_is_not_heard() {
    let pki = Arc::new(Pki::new());
    let edge = Edge::start(pki.clone(), device(), 10_000, Behavior::default()).await;
    let (told, mut asked) = watch::channel(0);
    let config = Pki::new().public("127.0.0.1", Life::USUAL);
    let mut identity = identity(&pki, &edge, ENDED);
    identity.server = public::handle(config, move |_| {
        told.send_modify(|asked| *asked += 1);
        let gone = json!({"status": "decommissioned", "reason": "by a stranger"});
        let response = Response::builder().status(403);
        response.body(gone.to_string()).unwrap()
    })
    .await;
    identity.trust = Some(longshore_agent::tls::Trust::Fingerprint(pki.fingerprint()));
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(dir, identity, SHORT);
    // Other tests show that a verdict takes far less than this.
    let ended = time::timeout(Duration::from_millis(500), &mut agent.linking).await;
    assert!(ended.is_err(), "a stranger must not decommission a device");
    assert_eq!(*asked.borrow_and_update(), 0, "nor is it told anything");
    agent.stop().await;
}
