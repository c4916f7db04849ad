//! What stands before several controllers: connections go to the first of them that takes them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

/// Passes TCP connections on, from one address to one of several.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    backends: Arc<Mutex<Vec<SocketAddr>>>,
    task: AbortHandle,
}

impl Balancer {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// Where that fails.
    pub async fn start(backends: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
        let address = listener.local_addr().context("bind")?;
        let backends = Arc::new(Mutex::new(backends));
        let task = tokio::spawn(serve(listener, backends.clone())).abort_handle();
        Ok(Self {
            address,
            backends,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends new connections to these, the first that takes them. Open ones stay where they are.
    pub fn prefer(&self, backends: Vec<SocketAddr>) {
        *self.backends.lock().unwrap_or_else(PoisonError::into_inner) = backends;
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, backends: Arc<Mutex<Vec<SocketAddr>>>) {
    // Its connections end with it.
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let backends = backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        connections.spawn(async move {
            for backend in backends {
                if let Ok(mut server) = TcpStream::connect(backend).await {
                    // However it ends, both sides see an end.
                    drop(copy_bidirectional(&mut client, &mut server).await);
                    return;
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
