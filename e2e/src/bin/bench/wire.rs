//! `wire`: how many bytes go over the socket for a small change. They are counted between the device and the
//! controller: TLS records and WebSocket frames are part of them, TCP and IP headers are not.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use longshore_agent::sim::{Behavior, Options, Roster, Simulation};
use longshore_agent::tls::Trust;
use longshore_e2e::simulated;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    report::{Aim, Report, say},
    yard::{PATIENCE, Yard},
};

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Wire {
    /// How many devices there are; one of them is looked at
    #[arg(long, default_value_t = 40)]
    devices: usize,
}

impl Wire {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let mut yard = Yard::start(report, self.devices).await?;
        wire(&mut yard).await?;
        yard.end().await
    }
}

/// What went through, in both directions.
#[derive(Debug, Default)]
struct Counts {
    down: AtomicU64,
    up: AtomicU64,
}

/// Changes one field of one object of a device, and counts.
pub(crate) async fn wire(yard: &mut Yard) -> Result<()> {
    say("a change of one field, byte by byte");
    let counts = Arc::new(Counts::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let edge = yard.world.controller.edge()?;
    let forwarder = tokio::spawn(forward(listener, edge, counts.clone()));
    // The first of them takes the long way from now on.
    let board = yard.simulation.board().clone();
    let identity = board.identity(0).context("an enrolled device")?;
    let mut identity = (*identity).clone();
    identity
        .edge_url
        .set_port(Some(address.port()))
        .ok()
        .context("an edge URL with a port")?;
    yard.simulation.unplug(0);
    let watched = Simulation::start(Options {
        server: identity.server.clone(),
        trust: Trust::Bundle(identity.ca_bundle.clone()),
        token: String::new().into(),
        names: vec![identity.name.clone()],
        roster: Roster::of([identity]),
        enrolling: 1,
        behavior: Behavior::default(),
        seed: 1,
    });
    simulated::until(&watched, "in sync", PATIENCE, |now| now.in_sync == 1).await?;
    yard.in_sync().await?;
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let mut totals = Vec::new();
    // A heartbeat may fall into one of them.
    for _ in 0..5 {
        // What the round before left over gets the time to arrive.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (down, up) = (read(&counts.down), read(&counts.up));
        let marker = yard.marker();
        yard.change_own(&yard.folder(0)?, &marker)?;
        let pushed = yard.push(&marker).await?;
        let applies = watched.board().applies(0, &pushed.commit);
        tokio::time::timeout(PATIENCE, applies)
            .await
            .context("the device does not apply the commit")?;
        let arrived = read(&counts.down) - down;
        yard.in_sync().await?;
        totals.push((arrived, read(&counts.up) - up));
    }
    totals.sort_unstable();
    let (down, up) = totals.get(totals.len() / 2).context("rounds")?;
    #[expect(clippy::cast_precision_loss, reason = "these are few bytes")]
    let (down, up) = (*down as f64, *up as f64);
    let n = totals.len();
    yard.report
        .aim("wire_delta_bytes", down, "B", n, Aim::AtMost(400.0))?;
    yard.report.line("wire_answer_bytes", up, "B", n)?;
    watched.stop().await;
    forwarder.abort();
    yard.simulation.plug_in(0);
    simulated::until(&yard.simulation, "the device back", PATIENCE, |now| {
        now.connected == now.devices && now.in_sync == now.devices
    })
    .await?;
    yard.in_sync().await
}

async fn forward(listener: TcpListener, edge: SocketAddr, counts: Arc<Counts>) -> Result<()> {
    loop {
        let (device, _) = listener.accept().await?;
        let controller = TcpStream::connect(edge).await?;
        device.set_nodelay(true)?;
        controller.set_nodelay(true)?;
        let (from_device, to_device) = device.into_split();
        let (from_controller, to_controller) = controller.into_split();
        let counts = counts.clone();
        tokio::spawn(async move {
            let ended = tokio::join!(
                copy(from_device, to_controller, &counts.up),
                copy(from_controller, to_device, &counts.down),
            );
            drop(ended);
        });
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &AtomicU64,
) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(to.shutdown().await?);
        };
        count.fetch_add(u64::try_from(read)?, Ordering::Relaxed);
        to.write_all(bytes).await?;
    }
}
