//! Devices that break the rules, with an identity of their own that the controller accepts: what a faulty network,
//! a bug or a stolen device could do. They are clients of the WebSocket and have nothing of an agent but its dial.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use longshore_protocol::{
    Condition, Digest, Generation,
    message::{ControlMessage, DeviceMessage, Held, Hello, MAX_DEVICE_FRAME, Phase, StatusReport},
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{io::AsyncWriteExt as _, time};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::{
    causes,
    identity::Identity,
    link::dial::{self, Socket},
    network::Network,
    tls::{self, TlsError},
};

/// Between two connections.
const PAUSE: Duration = Duration::from_millis(100);
/// For how long a connection that says nothing is kept.
const SILENCE: Duration = Duration::from_mins(1);

/// Which rule a device breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Misbehavior {
    /// Asks for all its objects again and again, and reads none of them.
    StopsReading,
    /// Says hello, and then nothing: no ping, no answer, no end.
    HalfOpen,
    /// Sends frames that are no messages, and bytes that are no frames.
    Garbage,
    /// Sends frames larger than the controller allows.
    Oversize,
    /// Reports a new state as fast as the connection takes it.
    Floods,
}

impl Misbehavior {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::StopsReading,
        Self::HalfOpen,
        Self::Garbage,
        Self::Oversize,
        Self::Floods,
    ];
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many connections there were.
    pub connections: u64,
    /// How many messages or pieces of garbage were sent.
    pub sent: u64,
    /// How often there was no connection.
    pub refused: u64,
}

/// Misbehaves until it is stopped, on one connection after the other.
///
/// # Errors
/// Where the identity is of no use.
pub async fn misbehave(
    identity: &Identity,
    how: Misbehavior,
    seed: u64,
    stop: &CancellationToken,
) -> Result<Tally, TlsError> {
    let network = Network::default();
    let tls = tls::edge(identity, &network)?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let endless = async {
        loop {
            match dial::dial(&network, identity, tls.clone()).await {
                Ok(socket) => {
                    tally.connections += 1;
                    // It ends when the controller has had enough.
                    if let Err(error) = connection(socket, how, &mut random, &mut tally.sent).await
                    {
                        tracing::debug!(?how, error = causes(&error), "cut off");
                    }
                }
                Err(error) => {
                    tally.refused += 1;
                    tracing::debug!(?how, error = causes(&error), "not let in");
                }
            }
            time::sleep(PAUSE.mul_f64(random.random_range(0.5..2.0))).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = endless => {}
    }
    Ok(tally)
}

async fn connection(
    mut socket: Socket,
    how: Misbehavior,
    random: &mut StdRng,
    sent: &mut u64,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    socket.send(hello()).await?;
    match how {
        Misbehavior::StopsReading => {
            let Some(need) = everything_offered(&mut socket).await? else {
                return Ok(());
            };
            loop {
                socket.send(need.clone()).await?;
                *sent += 1;
                time::sleep(Duration::from_millis(2)).await;
            }
        }
        Misbehavior::HalfOpen => {
            time::sleep(SILENCE).await;
            Ok(())
        }
        Misbehavior::Garbage => {
            let mut bytes = vec![0; random.random_range(1..4096)];
            random.fill_bytes(&mut bytes);
            *sent += 1;
            if random.random_bool(0.5) {
                socket.send(Message::Binary(bytes.into())).await?;
            } else {
                socket.get_mut().write_all(&bytes).await?;
                socket.get_mut().flush().await?;
            }
            drain(&mut socket).await
        }
        Misbehavior::Oversize => {
            let bytes = vec![0; MAX_DEVICE_FRAME + random.random_range(1..MAX_DEVICE_FRAME)];
            *sent += 1;
            socket.send(Message::Binary(bytes.into())).await?;
            drain(&mut socket).await
        }
        Misbehavior::Floods => loop {
            socket.send(status(*sent)).await?;
            *sent += 1;
            if sent.is_multiple_of(64) {
                // It has to read, or it would be one that stopped reading.
                let next = time::timeout(Duration::from_millis(1), socket.next()).await;
                if let Ok(None) = next {
                    return Ok(());
                }
                if let Ok(Some(message)) = next {
                    drop(message?);
                }
            }
        },
    }
}

/// Reads until a set is offered, and makes the message that asks for all of it.
async fn everything_offered(
    socket: &mut Socket,
) -> Result<Option<Message>, tokio_tungstenite::tungstenite::Error> {
    while let Ok(Some(message)) = time::timeout(SILENCE, socket.next()).await {
        let Message::Binary(frame) = message? else {
            continue;
        };
        if let Ok(Some(ControlMessage::Offer {
            target, entries, ..
        })) = ControlMessage::decode(&frame)
        {
            let digests = entries.iter().map(|entry| entry.digest).collect();
            let need = DeviceMessage::Need { target, digests };
            return Ok(Some(Message::Binary(need.encode().into())));
        }
    }
    Ok(None)
}

/// Reads until the controller ends the connection.
async fn drain(socket: &mut Socket) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    while let Ok(Some(message)) = time::timeout(SILENCE, socket.next()).await {
        drop(message?);
    }
    Ok(())
}

fn hello() -> Message {
    let hello = DeviceMessage::Hello(Hello {
        agent_version: "misbehaving".to_owned(),
        runtime: "simulated".to_owned(),
        ..Hello::default()
    });
    Message::Binary(hello.encode().into())
}

/// A report that differs from the one before.
fn status(round: u64) -> Message {
    let status = DeviceMessage::Status(StatusReport {
        held: Held {
            generation: Generation::from(1),
            digest: Digest::of(&round.to_be_bytes()),
        },
        phase: Phase::Applying,
        conditions: vec![Condition::fails(
            "Applied",
            "Flooding",
            format!("round {round}"),
            round,
        )],
    });
    Message::Binary(status.encode().into())
}
