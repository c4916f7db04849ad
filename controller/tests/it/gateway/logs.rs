//! Logs on demand: readers of every speed, and devices that do not keep to what was agreed.

use std::time::Duration;

use futures_util::{FutureExt as _, SinkExt as _, future::join_all};
use longshore_controller::{
    logs::{self, Logs, NotOpened, Piece, Reader},
    store::Engine,
};
use longshore_protocol::{
    Digest, Generation,
    message::{
        ControlMessage, DeviceMessage, Held, Hello, LOG_WINDOW, LOGS, LogEnd, LogRequest,
        MAX_LOG_CHUNK, Phase, StatusReport, StreamId, log_cost,
    },
};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::world::{Bounds, Member, PATIENCE, Socket, World, hear, say, until};
use crate::store::database::{self, Database};

/// A session of a device that can be asked for logs.
async fn greet(world: &World, member: &Member) -> Socket {
    let mut socket = timeout(PATIENCE, member.connect()).await.unwrap().unwrap();
    let hello = Hello {
        capabilities: vec![LOGS.to_owned()],
        ..Hello::default()
    };
    say(&mut socket, &DeviceMessage::Hello(hello))
        .await
        .unwrap();
    hear(&mut socket, |message| {
        matches!(message, ControlMessage::Welcome { .. }).then_some(())
    })
    .await;
    assert!(world.hub.has(&member.id));
    socket
}

fn logs_of(world: &World, bounds: logs::Bounds) -> Logs {
    Logs::new(world.hub.clone(), bounds, world.metrics.clone())
}

fn open(logs: &Logs, member: &Member) -> Result<Reader, NotOpened> {
    let tenant = member.tenant.parse().unwrap();
    logs.open(&tenant, &member.id, LogRequest::default())
}

/// The stream that the device is asked for, and its credit.
async fn asked(socket: &mut Socket) -> (StreamId, u64) {
    hear(socket, |message| match message {
        ControlMessage::OpenLogs { stream, credit, .. } => Some((stream, credit)),
        _ => None,
    })
    .await
}

async fn send(socket: &mut Socket, stream: StreamId, size: usize) {
    let data = vec![b'x'; size];
    say(socket, &DeviceMessage::LogChunk { stream, data })
        .await
        .unwrap();
}

async fn next(reader: &mut Reader) -> Option<Piece> {
    timeout(PATIENCE, reader.next())
        .await
        .expect("a piece comes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_goes_from_the_device_to_the_reader_and_ends() {
    database::with(Engine::Sqlite, goes).await;
}

async fn goes(database: Database) {
    let world = World::start(database, Bounds::default()).await;
    let member = world.devices("one", 0, 1).await.remove(0);
    let logs = logs_of(&world, logs::Bounds::default());
    assert_eq!(open(&logs, &member).unwrap_err(), NotOpened::NotHere);
    let mut socket = greet(&world, &member).await;
    let mut reader = open(&logs, &member).unwrap();
    let (stream, credit) = asked(&mut socket).await;
    assert_eq!(credit, LOG_WINDOW);
    send(&mut socket, stream, 0).await;
    send(&mut socket, stream, 5).await;
    let end = LogEnd::Failed("the disk is gone".to_owned());
    let ends = DeviceMessage::LogEnd {
        stream,
        end: end.clone(),
    };
    say(&mut socket, &ends).await.unwrap();
    assert_eq!(next(&mut reader).await, Some(Piece::Data(vec![].into())));
    assert_eq!(
        next(&mut reader).await,
        Some(Piece::Data(b"xxxxx".to_vec().into()))
    );
    assert_eq!(next(&mut reader).await, Some(Piece::End(end)));
    drop(reader);
    // One whose device leaves just ends, without a reason.
    let mut reader = open(&logs, &member).unwrap();
    asked(&mut socket).await;
    drop(socket);
    assert_eq!(next(&mut reader).await, None);
    drop(reader);
    // And one whose reader leaves is closed on the device.
    let mut socket = greet(&world, &member).await;
    let reader = open(&logs, &member).unwrap();
    let (stream, _) = asked(&mut socket).await;
    drop(reader);
    hear(&mut socket, |message| {
        (message == ControlMessage::CloseLogs { stream }).then_some(())
    })
    .await;
    assert_eq!(world.metrics.log_streams.get(), 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_nothing_but_its_log() {
    database::with(Engine::Sqlite, slow).await;
}

async fn slow(database: Database) {
    let world = World::start(database, Bounds::default()).await;
    let member = world.devices("one", 0, 1).await.remove(0);
    let logs = logs_of(&world, logs::Bounds::default());
    let mut socket = greet(&world, &member).await;
    let mut reader = open(&logs, &member).unwrap();
    let (stream, mut credit) = asked(&mut socket).await;
    // All that was granted, with reports between: more than the pace of other messages would allow.
    let mut sent = 0;
    let full = log_cost(MAX_LOG_CHUNK);
    while credit >= full {
        send(&mut socket, stream, MAX_LOG_CHUNK).await;
        credit -= full;
        sent += 1;
    }
    let report = StatusReport {
        held: Held {
            generation: Generation::FIRST,
            digest: Digest::of(b"any"),
        },
        phase: Phase::Applied,
        conditions: Vec::new(),
    };
    let frames = world.metrics.device_frames.get();
    say(&mut socket, &DeviceMessage::Status(report))
        .await
        .unwrap();
    until("the report is read", || {
        world.metrics.device_frames.get() > frames
    })
    .await;
    // Nothing is granted while nothing is read, and what the device should run goes its way.
    world.desire(std::slice::from_ref(&member), 1, &[]).await;
    let granted = hear(&mut socket, |message| match message {
        ControlMessage::GrantLogs { .. } => Some(true),
        ControlMessage::Offer { .. } | ControlMessage::Delta { .. } => Some(false),
        _ => None,
    })
    .await;
    assert!(!granted, "nobody read anything");
    // Half of it is read, and granted anew.
    let half = usize::try_from(LOG_WINDOW / 2)
        .unwrap()
        .div_ceil(MAX_LOG_CHUNK);
    for _ in 0..half {
        assert!(matches!(next(&mut reader).await, Some(Piece::Data(_))));
    }
    let more = hear(&mut socket, |message| match message {
        ControlMessage::GrantLogs { stream: of, credit } if of == stream => Some(credit),
        _ => None,
    })
    .await;
    assert_eq!(more, full * half as u64);
    for _ in half..sent {
        assert!(matches!(next(&mut reader).await, Some(Piece::Data(_))));
    }
    assert!(reader.next().now_or_never().is_none(), "that was all");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_floods_a_log_is_cut_off() {
    database::with(Engine::Sqlite, flood).await;
}

async fn flood(database: Database) {
    let world = World::start(database, Bounds::default()).await;
    let members = world.devices("one", 0, 2).await;
    let logs = logs_of(&world, logs::Bounds::default());
    // More than it was granted.
    let mut socket = greet(&world, &members[0]).await;
    let mut reader = open(&logs, &members[0]).unwrap();
    let (stream, _) = asked(&mut socket).await;
    let chunk = DeviceMessage::LogChunk {
        stream,
        data: vec![b'x'; MAX_LOG_CHUNK],
    };
    let chunk = chunk.encode();
    let flood = async { while socket.send(Message::binary(chunk.clone())).await.is_ok() {} };
    timeout(PATIENCE, flood).await.expect("it is cut off");
    let mut held = 0;
    while let Some(piece) = next(&mut reader).await {
        let Piece::Data(data) = piece else {
            panic!("{piece:?}")
        };
        held += log_cost(data.len());
    }
    assert!(held <= LOG_WINDOW, "{held}");
    // What nobody asked for.
    let mut socket = greet(&world, &members[1]).await;
    send(&mut socket, 77, 1).await;
    until("it is cut off", || !world.hub.has(&members[1].id)).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_many_logs_are_read_has_a_bound() {
    database::with(Engine::Sqlite, bounded).await;
}

async fn bounded(database: Database) {
    let world = World::start(database, Bounds::default()).await;
    let ones = world.devices("one", 0, 4).await;
    let two = world.devices("two", 100, 1).await.remove(0);
    let logs = logs_of(&world, logs::Bounds { all: 4, tenant: 3 });
    let sockets = join_all(ones.iter().chain([&two]).map(|it| greet(&world, it))).await;
    let mut readers: Vec<_> = ones
        .iter()
        .take(3)
        .map(|it| open(&logs, it).unwrap())
        .collect();
    assert_eq!(open(&logs, &ones[3]).unwrap_err(), NotOpened::TooMany);
    readers.push(open(&logs, &two).unwrap());
    assert_eq!(open(&logs, &two).unwrap_err(), NotOpened::TooMany);
    drop(readers);
    drop(open(&logs, &ones[3]).unwrap());
    drop(sockets);
    // An agent that cannot be asked is not.
    let mut old = ones[0].greet(None).await;
    hear(&mut old, |message| {
        matches!(message, ControlMessage::Welcome { .. }).then_some(())
    })
    .await;
    let mut reader = timeout(PATIENCE, async {
        loop {
            // The session before may not have ended yet.
            let mut reader = open(&logs, &ones[0]).unwrap();
            match reader.next().await {
                Some(piece) => return Some(piece),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
    .unwrap();
    let Some(Piece::End(LogEnd::Refused(why))) = reader.take() else {
        panic!("an old agent was asked")
    };
    assert!(why.contains("too old"), "{why}");
    world.stop().await;
}
