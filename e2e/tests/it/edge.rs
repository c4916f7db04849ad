//! Who gets a session: only the active device to which both the certificate and the token belong.

use std::time::Duration as StdDuration;

use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use longshore_e2e::{
    Candidate, World,
    edge::{self, Attempt, Client, Identity, certificates, closed},
    eventually,
    pki::{Authority, Leaf},
};
use longshore_protocol::{
    Digest,
    api::{Approval, DeviceState, EnrollApproved},
    message::{ControlMessage, DeviceMessage, Held, Hello, MAX_DEVICE_FRAME, Phase, StatusReport},
};
use rustls::HandshakeKind;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::Duration;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

struct Two {
    world: World,
    mine: (Candidate, EnrollApproved),
    theirs: (Candidate, EnrollApproved),
}

impl Two {
    async fn devices() -> Result<Self> {
        let world = World::start().await?;
        let token = world.api.create_token(Approval::Automatic).await?;
        let mut enrolled = Vec::new();
        for name in ["mine", "theirs"] {
            let device = Candidate::new(name)?;
            let approved = device.enroll(&world.api, &token.secret).await?;
            enrolled.push((device, approved));
        }
        let (Some(theirs), Some(mine)) = (enrolled.pop(), enrolled.pop()) else {
            anyhow::bail!("two devices")
        };
        Ok(Self {
            world,
            mine,
            theirs,
        })
    }

    async fn connect(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: &Candidate,
        token: Option<&str>,
    ) -> Result<Attempt> {
        let ca = self.world.controller.ca()?;
        let identity = Identity {
            chain,
            key: key.key().serialize_der(),
            token,
        };
        edge::connect(self.world.controller.edge()?, &ca, identity).await
    }
}

#[tokio::test]
async fn certificate_and_token_must_belong_to_the_same_device() -> Result<()> {
    let two = Two::devices().await?;
    let (mine, theirs) = (&two.mine, &two.theirs);
    let chain = certificates(&mine.1.certificate_chain)?;
    let own = Some(mine.1.device_token.as_str());

    let right = two.connect(chain.clone(), &mine.0, own).await?;
    ensure!(!right.is_refused(), "{right:?}");
    for (case, token) in [
        (
            "another device's token",
            Some(theirs.1.device_token.as_str()),
        ),
        ("no token", None),
        ("an empty token", Some("")),
        ("half a token", own.map(|token| &token[..token.len() / 2])),
    ] {
        let attempt = two.connect(chain.clone(), &mine.0, token).await?;
        ensure!(
            matches!(attempt, Attempt::Refused(401)),
            "{case}: {attempt:?}"
        );
    }
    // With the other device's certificate, but not its key, there is not even a handshake.
    let stolen = certificates(&theirs.1.certificate_chain)?;
    let attempt = two
        .connect(stolen, &mine.0, Some(&theirs.1.device_token))
        .await;
    ensure!(attempt.is_err() || attempt.is_ok_and(|attempt| matches!(attempt, Attempt::Tls(_))));
    // With its certificate and key, but my token.
    let theirs_chain = certificates(&theirs.1.certificate_chain)?;
    let attempt = two.connect(theirs_chain, &theirs.0, own).await?;
    ensure!(matches!(attempt, Attempt::Refused(401)), "{attempt:?}");
    // Without any certificate.
    let attempt = two.connect(Vec::new(), &mine.0, own).await?;
    ensure!(matches!(attempt, Attempt::Tls(_)), "{attempt:?}");
    Ok(())
}

#[tokio::test]
async fn certificates_that_are_not_right_are_refused() -> Result<()> {
    let two = Two::devices().await?;
    let authority = Authority::of_controller(two.world.controller.data_dir())?;
    let stranger = Authority::stranger()?;
    let device = two.mine.1.device_id.to_string();
    let token = Some(two.mine.1.device_token.as_str());
    let key = &two.mine.0;

    // What these certificates are made of is right; each differs in one thing only.
    let good = authority.issue(&Leaf::of(&device), key.key())?;
    let attempt = two.connect(good, key, token).await?;
    ensure!(!attempt.is_refused(), "{attempt:?}");

    let expired = Leaf {
        from: Duration::days(-31),
        until: Duration::days(-1),
        ..Leaf::of(&device)
    };
    let early = Leaf {
        from: Duration::days(1),
        until: Duration::days(31),
        ..Leaf::of(&device)
    };
    let unknown = Leaf::of("dev_00000000000000000000000000000000");
    let other_tenant = Leaf {
        tenant: "acme".to_owned(),
        ..Leaf::of(&device)
    };
    let tls = |attempt: &Attempt| matches!(attempt, Attempt::Tls(_));
    let refused = |attempt: &Attempt| matches!(attempt, Attempt::Refused(401) | Attempt::Tls(_));
    for (case, authority, leaf, is_right) in [
        (
            "expired",
            &authority,
            &expired,
            &tls as &dyn Fn(&Attempt) -> bool,
        ),
        ("not yet valid", &authority, &early, &tls),
        ("of another authority", &stranger, &Leaf::of(&device), &tls),
        ("of an unknown device", &authority, &unknown, &refused),
        ("of another tenant", &authority, &other_tenant, &refused),
    ] {
        let chain = authority.issue(leaf, key.key())?;
        let attempt = two.connect(chain, key, token).await?;
        ensure!(is_right(&attempt), "a certificate {case}: {attempt:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_off_takes_effect_at_once() -> Result<()> {
    let two = Two::devices().await?;
    let chain = certificates(&two.mine.1.certificate_chain)?;
    let token = Some(two.mine.1.device_token.as_str());
    let Attempt::Open(mut session) = two.connect(chain.clone(), &two.mine.0, token).await? else {
        anyhow::bail!("the device does not get in")
    };
    two.world.api.decide("mine", "decommission").await?;
    closed(&mut session).await?;
    let attempt = two.connect(chain, &two.mine.0, token).await?;
    ensure!(matches!(attempt, Attempt::Refused(403)), "{attempt:?}");
    // The other device is not touched.
    let theirs = certificates(&two.theirs.1.certificate_chain)?;
    let attempt = two
        .connect(theirs, &two.theirs.0, Some(&two.theirs.1.device_token))
        .await?;
    ensure!(!attempt.is_refused(), "{attempt:?}");
    ensure!(two.world.api.device("theirs").await?.state == DeviceState::Active);
    Ok(())
}

/// A device that connects twice is one device: the newer connection stays.
#[tokio::test]
async fn a_second_connection_takes_over() -> Result<()> {
    let two = Two::devices().await?;
    let chain = certificates(&two.mine.1.certificate_chain)?;
    let token = Some(two.mine.1.device_token.as_str());
    let Attempt::Open(mut first) = two.connect(chain.clone(), &two.mine.0, token).await? else {
        anyhow::bail!("the device does not get in")
    };
    let Attempt::Open(_second) = two.connect(chain, &two.mine.0, token).await? else {
        anyhow::bail!("the device does not get in again")
    };
    closed(&mut first).await?;
    eventually("one session", async || {
        let sessions = two.world.api.metrics().await?.count("sessions");
        ensure!(sessions == 1, "{sessions}");
        Ok(())
    })
    .await
}

/// The library takes the certificate of a resumed session from the ticket. It must hold now, and so must all else.
#[tokio::test]
async fn a_resumed_session_is_verified_again() -> Result<()> {
    let two = Two::devices().await?;
    let ca = two.world.controller.ca()?;
    let edge = two.world.controller.edge()?;
    let authority = Authority::of_controller(two.world.controller.data_dir())?;
    let client = |device: &(Candidate, EnrollApproved), until| {
        let leaf = Leaf {
            until,
            ..Leaf::of(device.1.device_id.as_str())
        };
        let identity = Identity {
            chain: authority.issue(&leaf, device.0.key())?,
            key: device.0.key().serialize_der(),
            token: Some(device.1.device_token.as_str()),
        };
        Client::new(&ca, identity)
    };
    let short = client(&two.mine, Duration::seconds(15))?;
    let ends = Instant::now() + StdDuration::from_secs(15);
    let (attempt, kind) = short.connect(edge).await?;
    ensure!(
        !attempt.is_refused() && kind == Some(HandshakeKind::Full),
        "{attempt:?}"
    );
    // A device that tried again and again would be hung up on for that.
    tokio::time::sleep_until(ends + StdDuration::from_secs(1)).await;
    let (attempt, kind) = short.connect(edge).await?;
    ensure!(kind == Some(HandshakeKind::Resumed), "{kind:?}");
    ensure!(matches!(attempt, Attempt::Tls(_)), "{attempt:?}");

    let cut_off = client(&two.theirs, Duration::days(1))?;
    let (attempt, _) = cut_off.connect(edge).await?;
    ensure!(!attempt.is_refused(), "{attempt:?}");
    two.world.api.decide("theirs", "decommission").await?;
    let (attempt, kind) = cut_off.connect(edge).await?;
    ensure!(kind == Some(HandshakeKind::Resumed), "{kind:?}");
    ensure!(matches!(attempt, Attempt::Refused(403)), "{attempt:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_message_ends_the_session() -> Result<()> {
    let two = Two::devices().await?;
    let chain = certificates(&two.mine.1.certificate_chain)?;
    let token = Some(two.mine.1.device_token.as_str());
    for nonsense in [
        Message::binary(vec![0xff; 100]),
        Message::binary(vec![0; MAX_DEVICE_FRAME + 1]),
    ] {
        let Attempt::Open(mut session) = two.connect(chain.clone(), &two.mine.0, token).await?
        else {
            anyhow::bail!("the device does not get in")
        };
        // Of what is too large, the first bytes are enough; the rest may find a closed connection.
        drop(session.send(nonsense).await);
        closed(&mut session).await?;
    }
    Ok(())
}

/// A device that says the same again and again is read at its pace. The last word is stored, and others are served.
#[tokio::test]
async fn a_device_that_floods_is_slowed_and_loses_nothing() -> Result<()> {
    let two = Two::devices().await?;
    let chain = certificates(&two.mine.1.certificate_chain)?;
    let token = Some(two.mine.1.device_token.as_str());
    let Attempt::Open(mut session) = two.connect(chain, &two.mine.0, token).await? else {
        anyhow::bail!("the device does not get in")
    };
    let hello = DeviceMessage::Hello(Hello::default());
    let welcomed = |message| matches!(message, ControlMessage::Welcome { .. }).then_some(());
    ask(&mut session, &hello, welcomed).await?;
    let last = 600;
    for generation in 1..=last {
        let report = StatusReport {
            held: Held {
                generation: generation.into(),
                digest: Digest::of(b"any"),
            },
            phase: Phase::Applied,
            conditions: Vec::new(),
        };
        let status = DeviceMessage::Status(report).encode();
        session.send(Message::binary(status)).await?;
    }
    eventually("the last report is stored", async || {
        let observed = two.world.api.device("mine").await?.observed;
        let generation = observed.map(|observed| observed.generation);
        ensure!(generation == Some(last.into()), "{generation:?}");
        Ok(())
    })
    .await?;
    let flushes = two.world.api.metrics().await?.count("report_flushes");
    ensure!(flushes <= last + 10, "{flushes}");
    Ok(())
}

/// Sends a message, and waits for the first answer that `wanted` picks.
async fn ask<T>(
    session: &mut edge::Session,
    message: &DeviceMessage,
    wanted: impl Fn(ControlMessage) -> Option<T>,
) -> Result<T> {
    session.send(Message::binary(message.encode())).await?;
    let answer = async {
        while let Some(frame) = session.next().await {
            if let Message::Binary(frame) = frame?
                && let Some(message) = ControlMessage::decode(&frame)?
                && let Some(answer) = wanted(message)
            {
                return Ok(answer);
            }
        }
        anyhow::bail!("the session ended")
    };
    tokio::time::timeout(longshore_e2e::wait::PATIENCE, answer)
        .await
        .context("no answer")?
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_session() -> Result<()> {
    let two = Two::devices().await?;
    let chain = certificates(&two.mine.1.certificate_chain)?;
    let token = Some(two.mine.1.device_token.as_str());
    let Attempt::Open(mut session) = two.connect(chain, &two.mine.0, token).await? else {
        anyhow::bail!("the device does not get in")
    };
    let hello = DeviceMessage::Hello(Hello {
        agent_version: "0".to_owned(),
        runtime: "directory".to_owned(),
        ..Hello::default()
    });
    let welcomed = |message| matches!(message, ControlMessage::Welcome { .. }).then_some(());
    ask(&mut session, &hello, welcomed).await?;

    // A fresh key, as a renewal has it.
    let fresh = Candidate::new("mine")?;
    let csr =
        rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(fresh.csr()?.as_bytes())?;
    let renew = DeviceMessage::Renew {
        csr: csr.as_ref().to_vec(),
    };
    let answered = |message| match message {
        ControlMessage::Certificate(answer) => Some(answer),
        _ => None,
    };
    let renewed = ask(&mut session, &renew, answered).await?;
    let renewed = renewed.map_err(anyhow::Error::msg)?;
    ensure!(renewed.len() >= 2, "leaf and issuer");
    let chain: Vec<_> = renewed.into_iter().map(CertificateDer::from).collect();
    let attempt = two.connect(chain.clone(), &fresh, token).await?;
    ensure!(
        !attempt.is_refused(),
        "the new certificate works: {attempt:?}"
    );
    let attempt = two
        .connect(chain, &fresh, Some(&two.theirs.1.device_token))
        .await?;
    ensure!(
        matches!(attempt, Attempt::Refused(401)),
        "for nobody else: {attempt:?}"
    );

    // Nonsense is answered, and costs nobody the session.
    let Attempt::Open(mut session) = two
        .connect(
            certificates(&two.mine.1.certificate_chain)?,
            &two.mine.0,
            token,
        )
        .await?
    else {
        anyhow::bail!("the old certificate works until it expires")
    };
    ask(&mut session, &hello, welcomed).await?;
    let refused = ask(
        &mut session,
        &DeviceMessage::Renew { csr: vec![0; 100] },
        answered,
    )
    .await?;
    ensure!(refused.is_err(), "nonsense is signed");
    ask(&mut session, &renew, answered)
        .await?
        .map_err(anyhow::Error::msg)?;
    Ok(())
}

#[tokio::test]
async fn what_a_device_says_of_itself_is_what_it_said_last() -> Result<()> {
    let two = Two::devices().await?;
    let (device, approved) = &two.mine;
    let chain = certificates(&approved.certificate_chain)?;
    let attempt = two
        .connect(chain, device, Some(&approved.device_token))
        .await?;
    let Attempt::Open(mut session) = attempt else {
        anyhow::bail!("{attempt:?}")
    };
    let facts = |site: &str| [("site".to_owned(), site.to_owned())].into();
    let hello = Hello {
        facts: facts("madrid"),
        ..Hello::default()
    };
    for message in [
        DeviceMessage::Hello(hello),
        DeviceMessage::Facts(facts("bonn")),
    ] {
        session
            .send(Message::Binary(message.encode().into()))
            .await?;
    }
    eventually("the facts", async || {
        let device = two.world.api.device("mine").await?;
        ensure!(device.facts == facts("bonn"), "{:?}", device.facts);
        Ok(())
    })
    .await
}
