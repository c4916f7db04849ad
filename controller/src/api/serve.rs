//! The public listener's connections: bounded in number, and none may dawdle.

use std::{net::SocketAddr, pin::Pin, time::Duration};

use axum::{Extension, Router};
use hyper::{
    server::conn::{http1, http2},
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::OwnedSemaphorePermit,
};
use tokio_io_timeout::TimeoutWriter;
use tracing::{debug, warn};

use super::presence::{Connections, Presence};
use crate::{
    tasks::Tasks,
    tls::{self, TlsListener},
};

/// How many connections are open at once. For further ones, idle ones go; where none is idle, they wait.
const MAX_CONNECTIONS: usize = 8192;
/// How long a request's head may take to come; also how long an idle connection is kept.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long a client may take nothing of its answer. Whoever pages through a log takes a while for each page.
const UNREAD: Duration = Duration::from_mins(5);
/// How much of an answer is waiting for the client at most, in bytes, where the answer is made as it is read.
const WAITING: usize = 64 * 1024;
/// How long requests under way may take to end at the shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// Who is on the other side of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Where connections come from.
#[derive(Debug)]
pub enum Accepting {
    /// With TLS.
    Tls(TlsListener),
    /// Without.
    Plain(TcpListener),
}

/// Serves `app` on what is accepted, until the shutdown.
pub async fn serve(mut accepting: Accepting, app: Router, tasks: Tasks) {
    let connections = Connections::of(MAX_CONNECTIONS);
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            match &mut accepting {
                Accepting::Tls(listener) => listener
                    .next()
                    .await
                    .map(|(stream, peer)| (Stream::Tls(Box::new(stream)), peer)),
                Accepting::Plain(listener) => match listener.accept().await {
                    Ok((stream, peer)) => Some((Stream::Plain(stream), peer)),
                    Err(error) => {
                        warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        Some((Stream::None, SocketAddr::from(([0, 0, 0, 0], 0))))
                    }
                },
            }
        };
        let next = async {
            let (stream, peer) = next.await?;
            let place = connections.place(peer.ip()).await?;
            Some((stream, peer, place))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = tasks.shutdown.cancelled() => None,
        };
        let Some((stream, peer, place)) = accepted else {
            break;
        };
        let present = (connections.enter(peer.ip()), place);
        let app = app.clone().layer(Extension(Peer(peer)));
        match stream {
            Stream::Tls(stream) => {
                let version = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Version::Http2,
                    _ => Version::Http1,
                };
                connection(stream, version, app, present, &graceful, &tasks);
            }
            Stream::Plain(stream) => {
                connection(stream, Version::Http1, app, present, &graceful, &tasks);
            }
            Stream::None => {}
        }
    }
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        warn!("requests were still under way");
    }
}

enum Stream {
    Tls(Box<tls::Stream>),
    Plain(tokio::net::TcpStream),
    None,
}

fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    version: Version,
    app: Router,
    (presence, place): (Presence, OwnedSemaphorePermit),
    graceful: &GracefulShutdown,
    tasks: &Tasks,
) {
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(UNREAD));
    let io = TokioIo::new(Box::pin(stream));
    let (answers, present) = (TowerToHyperService::new(app), presence.clone());
    let service = service_fn(move |request| present.clone().answer(answers.call(request)));
    // The version is known, so that nothing waits without a deadline for a first byte to tell it.
    let watched: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>> = match version {
        Version::Http1 => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .max_buf_size(WAITING);
            Box::pin(graceful.watch(builder.serve_connection(io, service)))
        }
        Version::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .keep_alive_interval(HEAD_DEADLINE)
                .max_send_buf_size(WAITING);
            Box::pin(graceful.watch(builder.serve_connection(io, service)))
        }
    };
    tasks.tracker.spawn(async move {
        let _place = place;
        tokio::select! {
            done = watched => {
                if let Err(error) = done {
                    debug!(%error, "a connection broke");
                }
            }
            () = presence.over() => debug!("an idle connection made room for another one"),
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Version {
    Http1,
    Http2,
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
        time::{Instant, sleep, timeout},
    };
    use tokio_util::sync::CancellationToken;

    use super::*;

    const SIZE: usize = 256 * 1024;
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";

    /// A client that asks for something large over a connection that holds little.
    async fn asks(tasks: &Tasks, graceful: &GracefulShutdown) -> DuplexStream {
        let app = Router::new().route("/", get(async || vec![b'x'; SIZE]));
        let connections = Connections::of(1);
        let here = [192, 0, 2, 1].into();
        let place = connections.place(here).await.unwrap();
        let present = (connections.enter(here), place);
        let (mut client, server) = tokio::io::duplex(1024);
        connection(server, Version::Http1, app, present, graceful, tasks);
        client.write_all(REQUEST).await.unwrap();
        client
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_hung_up_on_and_who_reads_slowly_is_not() {
        let (tasks, graceful) = (
            Tasks::new(CancellationToken::new()).0,
            GracefulShutdown::new(),
        );
        let begun = Instant::now();
        let mut stuck = asks(&tasks, &graceful).await;
        let mut slow = asks(&tasks, &graceful).await;
        let mut read = 0;
        let mut buffer = [0; 4096];
        loop {
            match slow.read(&mut buffer).await.unwrap() {
                0 => break,
                bytes => read += bytes,
            }
            sleep(UNREAD / 10).await;
        }
        assert!(read > SIZE, "{read}");
        assert!(begun.elapsed() > 2 * UNREAD, "that was no slow reader");
        tasks.tracker.close();
        let ended = timeout(Duration::from_secs(1), tasks.tracker.wait());
        assert!(
            ended.await.is_ok(),
            "a connection that nobody reads is kept"
        );
        let mut rest = Vec::new();
        drop(stuck.read_to_end(&mut rest).await);
        assert!(rest.len() < SIZE);
    }
}
