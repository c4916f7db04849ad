//! A TCP relay between the agent and a server, which the test redirects, and which forgets connections as routers do.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
};

pub struct Relay {
    pub address: SocketAddr,
    to: watch::Sender<SocketAddr>,
    forgotten: watch::Sender<usize>,
}

impl Relay {
    /// New connections go there.
    pub fn redirect(&self, to: SocketAddr) {
        self.to.send_replace(to);
    }

    /// What is sent on the connections so far gets lost from now on, and nobody is told.
    pub fn forget(&self) {
        self.forgotten.send_modify(|times| *times += 1);
    }
}

/// Starts one, and counts its connections.
pub async fn start(to: SocketAddr) -> (Relay, watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay {
        address: listener.local_addr().unwrap(),
        to: watch::Sender::new(to),
        forgotten: watch::Sender::new(0),
    };
    let (count, connections) = watch::channel(0);
    let (to, forgotten) = (relay.to.subscribe(), relay.forgotten.subscribe());
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            count.send_modify(|count| *count += 1);
            let to = *to.borrow();
            let mut forgotten = forgotten.clone();
            forgotten.mark_unchanged();
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else {
                    return;
                };
                let ((near_reads, near_writes), (far_reads, far_writes)) =
                    (near.into_split(), far.into_split());
                tokio::join!(
                    carry(near_reads, far_writes, forgotten.clone()),
                    carry(far_reads, near_writes, forgotten)
                );
            });
        }
    });
    (relay, connections)
}

async fn carry(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut forgotten: watch::Receiver<usize>,
) {
    let forgotten = forgotten.changed();
    let carrying = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if to.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        // The other direction may still have something to say.
        drop(to.shutdown().await);
    };
    tokio::select! {
        () = carrying => {}
        // The connection stays open on both sides, until the test ends.
        _ = forgotten => std::future::pending().await,
    }
}
