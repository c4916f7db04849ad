//! A connection that takes in no more than it should: little until its handshake is over, and then what its pace
//! allows. Past that it is not read, so the kernel's buffers fill up and the peer has to wait.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::rate::{Bucket, Rate};

/// What a peer's part of a handshake may have, in bytes: hello and certificates, whatever their keys.
const HANDSHAKE: usize = 16 * 1024;
/// The longest record of TLS. The first of what comes after the handshake may be read together with its end, to its own
/// end.
const RECORD: usize = 5 + 16 * 1024 + 2048;
/// What each read costs beside its bytes, so that single bytes are no way to keep the controller busy.
const READ: u32 = 256;

/// An accepted connection.
#[derive(Debug)]
pub struct Inbound {
    stream: TcpStream,
    intake: Intake,
}

#[derive(Debug)]
enum Intake {
    Handshake { left: usize },
    Free,
    Paced(Pace),
}

#[derive(Debug)]
struct Pace {
    rate: Rate,
    bucket: Bucket,
    /// There only while the peer has to wait.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Inbound {
    /// One whose handshake is to come.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            intake: Intake::Handshake {
                left: HANDSHAKE + RECORD,
            },
        }
    }

    /// What it comes from.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// From here on, reads as much as comes.
    pub(super) fn free(&mut self) {
        self.intake = Intake::Free;
    }

    /// From here on, reads so many bytes.
    pub(super) fn pace(&mut self, rate: Rate) {
        self.intake = Intake::Paced(Pace {
            rate,
            bucket: Bucket::full(rate),
            pause: None,
        });
    }

    /// So many of the bytes that came had been asked for, and do not count.
    pub fn asked_for(&mut self, bytes: usize) {
        if let Intake::Paced(Pace {
            rate,
            bucket,
            pause,
        }) = &mut self.intake
        {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            // With what is around them, and what it costs to read them.
            bucket.spend(*rate, -f64::from(bytes + bytes / 8 + 2 * READ));
            *pause = bucket.debt(*rate).map(|debt| Box::pin(sleep(debt)));
        }
    }
}

impl Intake {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Handshake { left: 0 } => Poll::Ready(Err(io::Error::other(
                "the handshake has more bytes than any should",
            ))),
            Self::Paced(Pace {
                pause: pause @ Some(_),
                ..
            }) => {
                if let Some(pending) = pause {
                    ready!(pending.as_mut().poll(cx));
                }
                *pause = None;
                Poll::Ready(Ok(()))
            }
            Self::Handshake { .. } | Self::Free | Self::Paced(_) => Poll::Ready(Ok(())),
        }
    }

    fn took(&mut self, bytes: usize) {
        match self {
            Self::Handshake { left } => *left = left.saturating_sub(bytes),
            Self::Free => {}
            Self::Paced(Pace {
                rate,
                bucket,
                pause,
            }) => {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                bucket.spend(*rate, f64::from(bytes.saturating_add(READ)));
                *pause = bucket.debt(*rate).map(|debt| Box::pin(sleep(debt)));
            }
        }
    }
}

impl AsyncRead for Inbound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.intake.poll_ready(cx))?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let came = buffer.filled().len() - before;
        self.intake.took(came);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Inbound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::Instant,
    };

    use super::*;

    async fn pair() -> (TcpStream, Inbound) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (peer, accepted) = tokio::join!(connect, listener.accept());
        (peer.unwrap(), Inbound::new(accepted.unwrap().0))
    }

    #[tokio::test]
    async fn an_endless_handshake_is_cut_off() {
        let (mut peer, mut inbound) = pair().await;
        let flood = async move { while peer.write_all(&[0; 4096]).await.is_ok() {} };
        let read = async move {
            let mut bytes = [0; 4096];
            let mut all = 0;
            while let Ok(read) = inbound.read(&mut bytes).await {
                all += read;
            }
            all
        };
        let (read, ()) = tokio::join!(read, flood);
        let bound = HANDSHAKE + RECORD;
        assert!((bound..bound + 4096).contains(&read), "{read}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_read_at_its_pace() {
        let (mut peer, mut inbound) = pair().await;
        let rate = Rate {
            burst: 20_000.0,
            per_second: 1_000.0,
        };
        inbound.pace(rate);
        let flood = tokio::spawn(async move { while peer.write_all(&[0; 4096]).await.is_ok() {} });
        let begun = Instant::now();
        let mut bytes = [0; 1000];
        for _ in 0..100 {
            inbound.read_exact(&mut bytes).await.unwrap();
        }
        // A read is a thousand bytes and what each read costs.
        let least = Duration::from_secs(100);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
        drop(inbound);
        flood.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_for_is_read_as_it_comes() {
        let (mut peer, mut inbound) = pair().await;
        inbound.pace(Rate {
            burst: 20_000.0,
            per_second: 1.0,
        });
        let flood = tokio::spawn(async move { while peer.write_all(&[0; 4096]).await.is_ok() {} });
        let begun = Instant::now();
        let mut bytes = [0; 1000];
        for _ in 0..1000 {
            inbound.read_exact(&mut bytes).await.unwrap();
            inbound.asked_for(bytes.len());
        }
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
        drop(inbound);
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn who_is_free_waits_for_nothing() {
        let (mut peer, mut inbound) = pair().await;
        inbound.free();
        let flood = async move { peer.write_all(&vec![0; 1 << 20]).await };
        let read = async move {
            let mut bytes = Vec::new();
            inbound.read_to_end(&mut bytes).await.map(|_| bytes.len())
        };
        let (read, sent) = tokio::join!(read, flood);
        sent.unwrap();
        assert_eq!(read.unwrap(), 1 << 20);
    }
}
