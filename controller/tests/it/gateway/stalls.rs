//! Connections that begin a handshake and stall: as many as there is room for, and a device gets in all the same.

use std::time::Duration;

use futures_util::future::join_all;
use longshore_controller::{store::Engine, tls};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};

use super::world::{Bounds, World, until};
use crate::store::database::{self, Database};

/// As many connections as may be in their handshake.
const ROOM: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_handshakes_keep_no_device_out() {
    database::with(Engine::Sqlite, stalled).await;
}

async fn stalled(database: Database) {
    let bounds = Bounds {
        tls: tls::Bounds {
            room: ROOM,
            deadline: Duration::from_mins(10),
            ..tls::Bounds::default()
        },
        ..Bounds::default()
    };
    let world = World::start(database, bounds).await;
    let member = world.devices("one", 0, 1).await.remove(0);
    let stalled = join_all((0..ROOM).map(|_| stall(&world))).await;
    let waiting = &world.metrics.handshakes_waiting;
    until("there is no room", || waiting.get() == 64).await;
    drop(member.greet(None).await);
    assert!(
        waiting.get() > 60,
        "one went for the device: {}",
        waiting.get()
    );
    assert!(world.metrics.handshakes_refused.get() > 0);
    drop(stalled);
    world.stop().await;
}

/// The first byte of a handshake, from an address that is not the device's.
async fn stall(world: &World) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let mut stream = socket.connect(world.address).await.unwrap();
    stream.write_all(&[0x16]).await.unwrap();
    stream
}
