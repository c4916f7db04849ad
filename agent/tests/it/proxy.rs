//! An HTTP proxy that knows nothing but `CONNECT`, on TCP or TLS, and refuses as the test says.

use std::{net::SocketAddr, sync::Arc};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// How it answers.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// It connects those who send this `Proxy-Authorization`, or everybody.
    Connects(Option<&'static str>),
    /// It answers with this status line.
    Refuses(&'static str),
    /// It hangs up.
    HangsUp,
    /// It says that it connects, and answers itself.
    Interferes,
}

pub struct Proxy {
    pub address: SocketAddr,
    /// The heads of what it was asked.
    pub asked: watch::Receiver<Vec<String>>,
}

pub async fn start(manner: Manner) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    serve(listener, None, manner)
}

pub async fn start_tls(config: ServerConfig, manner: Manner) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    serve(listener, Some(config), manner)
}

pub fn serve(listener: TcpListener, tls: Option<ServerConfig>, manner: Manner) -> Proxy {
    let address = listener.local_addr().unwrap();
    let (record, asked) = watch::channel(Vec::new());
    let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, record) = (acceptor.clone(), record.clone());
            tokio::spawn(async move {
                // Whoever asks may hang up.
                let _broken = match acceptor {
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => connection(stream, manner, &record).await,
                        Err(error) => Err(error),
                    },
                    None => connection(stream, manner, &record).await,
                };
            });
        }
    });
    Proxy { address, asked }
}

async fn connection(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    manner: Manner,
    record: &watch::Sender<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    record.send_modify(|all| all.push(head.clone()));
    let status = match manner {
        Manner::HangsUp => return Ok(()),
        Manner::Refuses(status) => status,
        Manner::Connects(Some(wanted)) if !head.contains(wanted) => {
            "407 Proxy Authentication Required"
        }
        Manner::Connects(_) => {
            let to = head.split(' ').nth(1).unwrap();
            assert!(head.starts_with("CONNECT "), "{head}");
            assert!(
                head.to_lowercase().contains(&format!("\r\nhost: {to}\r\n")),
                "{head}"
            );
            let Ok(mut far) = TcpStream::connect(to).await else {
                return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
            };
            stream
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .await?;
            copy_bidirectional(&mut stream, &mut far).await?;
            return Ok(());
        }
        Manner::Interferes => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 400 Bad Request\r\n\r\n")
                .await?;
            return stream.shutdown().await;
        }
    };
    let answer =
        format!("HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nsorr");
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
