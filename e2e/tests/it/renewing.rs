//! A device whose certificate ended while it was away comes back by itself; nobody else gets in on its account.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use longshore_e2e::{
    Agent, Api, Candidate, ControllerOptions, World, WorldOptions,
    api::{Answer, is_in_sync},
    edge::{self, Identity, certificates},
    eventually,
    pki::{Authority, Leaf},
};
use longshore_protocol::api::{
    Approval, DeviceState, EnrollApproved,
    renew::{RENEW_PATH, RenewChallenge, RenewRequest, proof},
};
use rcgen::{KeyPair, SigningKey as _};
use reqwest::{Method, StatusCode};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use serde_json::{Value, json};
use time::Duration;

/// What the controller issued so many days ago.
fn issued(device: &str, days_ago: i64) -> Leaf {
    Leaf {
        from: Duration::days(-days_ago),
        until: Duration::days(30 - days_ago),
        ..Leaf::of(device)
    }
}

fn pem(chain: &[CertificateDer<'_>]) -> String {
    let line = |der: &CertificateDer<'_>| {
        let body = BASE64.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    chain.iter().map(line).collect()
}

/// A world whose authority is older than all certificates.
struct Old {
    world: World,
    authority: Authority,
    _directory: tempfile::TempDir,
}

impl Old {
    async fn world(arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let authority = Authority::old(directory.path())?;
        let mut all = Authority::settings(directory.path());
        all.extend(arguments.iter().map(Into::into));
        let controller = ControllerOptions {
            arguments: all,
            ..ControllerOptions::default()
        };
        let world = World::with(WorldOptions {
            controller,
            ..WorldOptions::default()
        })
        .await?;
        Ok(Self {
            world,
            authority,
            _directory: directory,
        })
    }
}

/// Replaces the certificate that a stopped agent keeps by one of the same key that was issued so long ago.
fn age(authority: &Authority, agent: &Agent, days_ago: i64) -> Result<String> {
    let file = agent.state().join("identity.json");
    let mut kept: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let device = kept["device_id"].as_str().context("device_id")?.to_owned();
    let key = KeyPair::from_pem(kept["private_key"].as_str().context("private_key")?)?;
    let chain = pem(&authority.issue(&issued(&device, days_ago), &key)?);
    kept["certificate_chain"] = json!(chain);
    fs::write(&file, serde_json::to_string(&kept)?)?;
    Ok(chain)
}

async fn is_connected(world: &World, agent: &mut Agent) -> Result<()> {
    eventually("a device that is there again", async || {
        agent.process()?.check()?;
        let device = world.api.device(agent.name()).await?;
        ensure!(device.connected && is_in_sync(&device), "{device:#?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_device_comes_back_whose_certificate_has_ended() -> Result<()> {
    let Old {
        world, authority, ..
    } = &Old::world(&[]).await?;
    let mut agent = world.enrolled("store-0001").await?;
    agent.stop().await?;
    let old = age(authority, &agent, 100)?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Back at")?;
    copy.publish("Change the page while the device is away")?;
    agent.start_again()?;
    is_connected(world, &mut agent).await?;
    agent.page_shows("Back at Our shop").await?;
    let kept = fs::read_to_string(agent.state().join("identity.json"))?;
    let kept: Value = serde_json::from_str(&kept)?;
    ensure!(kept["certificate_chain"] != json!(old));
    // It is on disk: the next start connects at once, with no renewal.
    agent.stop().await?;
    let renewals = |world: &World| world.controller.log().matches("is renewed").count();
    ensure!(renewals(world) == 1);
    agent.start_again()?;
    is_connected(world, &mut agent).await?;
    ensure!(renewals(world) == 1);
    Ok(())
}

#[tokio::test]
async fn a_device_that_was_away_longer_than_the_grace_says_so_and_runs_on() -> Result<()> {
    let Old {
        world, authority, ..
    } = &Old::world(&["--renewal-grace", "7"]).await?;
    let mut agent = world.enrolled("store-0001").await?;
    agent.stop().await?;
    age(authority, &agent, 38)?;
    agent.start_again()?;
    eventually("the agent says so", async || {
        agent.process()?.check()?;
        let log = agent.log();
        ensure!(log.contains("ended 8 days ago") && log.contains("enroll it anew"));
        Ok(())
    })
    .await?;
    ensure!(!world.api.device("store-0001").await?.connected);
    // What it ran it runs: a file that somebody deletes is back soon.
    fs::remove_file(agent.directory().join(longshore_e2e::agent::PAGE))?;
    agent.page_shows("Our shop").await?;
    agent.process()?.check()?;

    // One that was decommissioned meanwhile is told, whenever it comes.
    world.api.decide("store-0001", "decommission").await?;
    world
        .api
        .device_becomes("store-0001", DeviceState::Decommissioned)
        .await?;
    agent.stop().await?;
    agent.start_again()?;
    let status = agent.exit().await?;
    ensure!(status.success(), "{status}");
    ensure!(agent.manifests()?.is_empty(), "{:?}", agent.manifests()?);
    Ok(())
}

/// Everything that a call is made of.
struct Call {
    chain: String,
    csr: String,
    challenge: String,
    token: String,
    signature: Vec<u8>,
}

impl Call {
    /// What the device itself would send, for a fresh key.
    fn right(
        device: &(Candidate, EnrollApproved),
        chain: &[CertificateDer<'_>],
        challenge: &str,
    ) -> Result<(Self, Candidate)> {
        let fresh = Candidate::new("fresh")?;
        let mut call = Self {
            chain: pem(chain),
            csr: fresh.csr()?,
            challenge: challenge.to_owned(),
            token: device.1.device_token.clone(),
            signature: Vec::new(),
        };
        call.sign(device.0.key())?;
        Ok((call, fresh))
    }

    fn sign(&mut self, key: &KeyPair) -> Result<()> {
        let leaf = CertificateDer::from_pem_slice(self.chain.as_bytes())?;
        let csr = CertificateSigningRequestDer::from_pem_slice(self.csr.as_bytes())?;
        self.signature = key.sign(&proof(&self.challenge, &leaf, &csr))?;
        Ok(())
    }

    async fn send(&self, api: &Api) -> Result<Answer> {
        let body = RenewRequest {
            certificate_chain: self.chain.clone(),
            csr: self.csr.clone(),
            challenge: self.challenge.clone(),
            signature: BASE64.encode(&self.signature),
        };
        let request = api.request(Method::POST, RENEW_PATH);
        Api::send(request.bearer_auth(&self.token).json(&body)).await
    }
}

async fn challenge(api: &Api) -> Result<String> {
    let answer = Api::send(api.request(Method::GET, RENEW_PATH)).await?;
    Ok(answer.success::<RenewChallenge>()?.challenge)
}

async fn two_devices(world: &World) -> Result<[(Candidate, EnrollApproved); 2]> {
    let token = world.api.create_token(Approval::Automatic).await?;
    let mine = Candidate::new("mine")?;
    let theirs = Candidate::new("theirs")?;
    let approved = mine.enroll(&world.api, &token.secret).await?;
    let others = theirs.enroll(&world.api, &token.secret).await?;
    Ok([(mine, approved), (theirs, others)])
}

#[tokio::test]
async fn only_the_old_key_of_the_same_device_renews() -> Result<()> {
    let Old {
        world, authority, ..
    } = &Old::world(&[]).await?;
    let [mine, theirs] = two_devices(world).await?;
    let device = mine.1.device_id.as_str();
    let chain = authority.issue(&issued(device, 60), mine.0.key())?;
    let fresh = challenge(&world.api).await?;

    let (right, key) = Call::right(&mine, &chain, &fresh)?;
    let answer = right.send(&world.api).await?;
    let approved: EnrollApproved = answer.success()?;
    ensure!(approved.device_id == mine.1.device_id);
    ensure!(approved.device_token == mine.1.device_token);
    let identity = Identity {
        chain: certificates(&approved.certificate_chain)?,
        key: key.key().serialize_der(),
        token: Some(&approved.device_token),
    };
    let ca = world.controller.ca()?;
    let attempt = edge::connect(world.controller.edge()?, &ca, identity).await?;
    ensure!(!attempt.is_refused(), "{attempt:?}");

    // Whoever saw the call and repeats it with a request of his own gets nothing; nor with the certificate alone.
    let (_, thief) = Call::right(&mine, &chain, &fresh)?;
    let unproven = |change: &dyn Fn(&mut Call) -> Result<()>| -> Result<Call> {
        let mut call = Call::right(&mine, &chain, &fresh)?.0;
        change(&mut call)?;
        Ok(call)
    };
    let stranger = Authority::stranger()?;
    let forged = |leaf: &Leaf, authority: &Authority, key: &KeyPair| -> Result<String> {
        Ok(pem(&authority.issue(leaf, key)?))
    };
    let cases = [
        (
            "another request under the same signature",
            unproven(&|call| {
                call.signature.clone_from(&right.signature);
                call.csr = thief.csr()?;
                Ok(())
            })?,
        ),
        (
            "a signature by the new key",
            unproven(&|call| call.sign(thief.key()))?,
        ),
        (
            "no signature",
            unproven(&|call| {
                call.signature.clear();
                Ok(())
            })?,
        ),
        (
            "another device's token",
            unproven(&|call| {
                call.token.clone_from(&theirs.1.device_token);
                Ok(())
            })?,
        ),
        (
            "no token",
            unproven(&|call| {
                call.token.clear();
                Ok(())
            })?,
        ),
        (
            "another authority's certificate",
            unproven(&|call| {
                call.chain = forged(&issued(device, 60), &stranger, mine.0.key())?;
                call.sign(mine.0.key())
            })?,
        ),
        (
            "another tenant's certificate",
            unproven(&|call| {
                let leaf = Leaf {
                    tenant: "acme".to_owned(),
                    ..issued(device, 60)
                };
                call.chain = forged(&leaf, authority, mine.0.key())?;
                call.sign(mine.0.key())
            })?,
        ),
        (
            "another device's certificate with my key and token",
            unproven(&|call| {
                let leaf = issued(theirs.1.device_id.as_str(), 60);
                call.chain = forged(&leaf, authority, mine.0.key())?;
                call.sign(mine.0.key())
            })?,
        ),
    ];
    // What the controller issued while its clock was ahead is proof all the same.
    let early = unproven(&|call| {
        call.chain = forged(&issued(device, -1), authority, mine.0.key())?;
        call.sign(mine.0.key())
    })?;
    for (case, call) in cases {
        let answer = call.send(&world.api).await?;
        ensure!(
            answer.status == StatusCode::UNAUTHORIZED,
            "{case}: {answer:?}"
        );
    }
    let answer = early.send(&world.api).await?;
    ensure!(answer.status == StatusCode::OK, "{answer:?}");

    for (case, stale) in [
        ("a challenge of nobody", "1.00".to_owned()),
        ("no challenge", String::new()),
        ("an altered challenge", format!("9{fresh}")),
    ] {
        let answer = Call::right(&mine, &chain, &stale)?
            .0
            .send(&world.api)
            .await?;
        ensure!(answer.status == StatusCode::CONFLICT, "{case}: {answer:?}");
    }
    for (case, body) in [
        ("nothing", json!({})),
        (
            "no certificate",
            json!({"certificate_chain": "", "csr": "", "challenge": fresh, "signature": ""}),
        ),
    ] {
        let request = world.api.request(Method::POST, RENEW_PATH).json(&body);
        let answer = Api::send(request).await?;
        ensure!(
            answer.status == StatusCode::UNPROCESSABLE_ENTITY,
            "{case}: {answer:?}"
        );
    }

    // Who has proved to be a device may not ask for ever.
    let limited = loop {
        let (call, _) = Call::right(&mine, &chain, &fresh)?;
        let answer = call.send(&world.api).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => break answer,
            _ => anyhow::bail!("{answer:?}"),
        }
    };
    ensure!(limited.retry_after.is_some(), "{limited:?}");

    // The other device is not touched by all that.
    let leaf = issued(theirs.1.device_id.as_str(), 60);
    let chain = authority.issue(&leaf, theirs.0.key())?;
    let answer = Call::right(&theirs, &chain, &fresh)?
        .0
        .send(&world.api)
        .await?;
    answer.success::<EnrollApproved>()?;
    Ok(())
}

#[tokio::test]
async fn a_device_that_is_no_longer_active_gets_no_certificate() -> Result<()> {
    let Old {
        world, authority, ..
    } = &Old::world(&[]).await?;
    let [mine, theirs] = two_devices(world).await?;
    world.api.decide("mine", "decommission").await?;
    let fresh = challenge(&world.api).await?;
    let leaf = issued(mine.1.device_id.as_str(), 60);
    let chain = authority.issue(&leaf, mine.0.key())?;
    let answer = Call::right(&mine, &chain, &fresh)?
        .0
        .send(&world.api)
        .await?;
    ensure!(answer.status == StatusCode::FORBIDDEN, "{answer:?}");
    ensure!(answer.json()["status"] == "decommissioned", "{answer:?}");
    // And whoever is not that device does not learn what became of it.
    let (mut call, _) = Call::right(&mine, &chain, &fresh)?;
    call.sign(theirs.0.key())?;
    let answer = call.send(&world.api).await?;
    ensure!(answer.status == StatusCode::UNAUTHORIZED, "{answer:?}");

    // 121 days after it was issued, a certificate has been over for more than the 90 of the default.
    let leaf = issued(theirs.1.device_id.as_str(), 121);
    let chain = authority.issue(&leaf, theirs.0.key())?;
    let answer = Call::right(&theirs, &chain, &fresh)?
        .0
        .send(&world.api)
        .await?;
    ensure!(answer.status == StatusCode::FORBIDDEN, "{answer:?}");
    ensure!(answer.json()["status"] == "expired", "{answer:?}");
    Ok(())
}
