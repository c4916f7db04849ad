//! Devices that send as fast as they can: they are read at their pace, and wait for the rest.

use std::time::{Duration, Instant};

use futures_util::SinkExt as _;
use longshore_controller::store::Engine;
use longshore_protocol::{
    Digest, Generation,
    message::{DeviceMessage, Held, Phase, StatusReport},
};
use socket2::SockRef;
use tokio::{io::AsyncWriteExt as _, time::timeout};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use super::world::{Bounds, World, until};
use crate::store::database::{self, Database};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_read_at_their_pace() {
    database::with(Engine::Sqlite, messages).await;
}

async fn messages(database: Database) {
    // What the pace allows at once, and in each second.
    const BURST: u64 = 200;
    const PER_SECOND: u64 = 50;
    let world = World::start(database, Bounds::default()).await;
    let member = world.devices("one", 0, 1).await.remove(0);
    let begun = Instant::now();
    let mut socket = member.greet(None).await;
    let flood = tokio::spawn(async move {
        let report = DeviceMessage::Status(StatusReport {
            held: Held {
                generation: Generation::FIRST,
                digest: Digest::of(b"any"),
            },
            phase: Phase::Applied,
            conditions: Vec::new(),
        });
        let report = report.encode();
        while socket.send(Message::binary(report.clone())).await.is_ok() {}
    });
    let frames = world.metrics.device_frames.clone();
    until("the burst is over", || {
        frames.get() > BURST + 2 * PER_SECOND
    })
    .await;
    let allowed = BURST + 1 + PER_SECOND * (begun.elapsed().as_secs() + 1);
    let read = frames.get();
    assert!(
        read <= allowed,
        "{read} frames were read, {allowed} allowed"
    );
    flood.abort();
    world.stop().await;
}

/// Pieces of a message that never ends are no messages, and the WebSocket library does not tell of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_message_is_read_at_its_pace() {
    database::with(Engine::Sqlite, pieces).await;
}

async fn pieces(database: Database) {
    let world = World::start(database, Bounds::default()).await;
    let member = world.devices("one", 0, 1).await.remove(0);
    let mut socket = member.greet(None).await;
    let (tcp, _) = socket.get_ref().get_ref();
    SockRef::from(tcp).set_send_buffer_size(16 * 1024).unwrap();
    let first = Frame::message(vec![0], OpCode::Data(Data::Binary), false);
    socket.send(Message::Frame(first)).await.unwrap();
    // An empty piece, masked with zeros: 6 bytes.
    let pieces = [0x00, 0x80, 0, 0, 0, 0].repeat(1000);
    let flood = async {
        for _ in 0..500 {
            socket.get_mut().write_all(&pieces).await.unwrap();
        }
    };
    let sent = timeout(Duration::from_secs(3), flood).await;
    assert!(sent.is_err(), "three megabytes were read in no time");
    world.stop().await;
}
