//! A bad line: a proxy in front of a site that forwards, swallows or drips what callers send.

use crate::site::free_address;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Line {
    /// They pass.
    Forward,
    /// They vanish, in both directions and for good on a connection that met this once: it stays
    /// open at both ends, and nobody is told.
    Swallow,
    /// Those of the caller pass one a second.
    Drip,
}

/// A proxy that runs until the test ends.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    line: Arc<AtomicU8>,
}

impl Proxy {
    /// Stands in front of `site`.
    pub async fn before(site: SocketAddr) -> Self {
        let address = free_address();
        let listener = TcpListener::bind(address).await.expect("a free port");
        let line = Arc::new(AtomicU8::new(Line::Forward as u8));
        let state = line.clone();
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let line = state.clone();
                tokio::spawn(async move {
                    let Ok(called) = TcpStream::connect(site).await else { return };
                    let ((read, write), (back, out)) = (caller.into_split(), called.into_split());
                    let dead = Arc::new(AtomicBool::new(false));
                    let _ = tokio::join!(
                        pump(read, out, line.clone(), dead.clone(), true),
                        pump(back, write, line, dead, false)
                    );
                });
            }
        });
        Self { address, line }
    }

    /// Changes what becomes of bytes from now on.
    pub fn turn(&self, line: Line) {
        self.line.store(line as u8, Ordering::SeqCst);
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    line: Arc<AtomicU8>,
    dead: Arc<AtomicBool>,
    of_caller: bool,
) -> std::io::Result<()> {
    let is = |wanted: Line| line.load(Ordering::SeqCst) == wanted as u8;
    let mut bytes = vec![0; 4096];
    loop {
        let n = from.read(&mut bytes).await?;
        dead.fetch_or(is(Line::Swallow), Ordering::SeqCst);
        if dead.load(Ordering::SeqCst) {
            if n == 0 {
                return std::future::pending().await;
            }
            continue;
        }
        if n == 0 {
            return to.shutdown().await;
        }
        let mut rest = &bytes[..n];
        while of_caller && is(Line::Drip) && !rest.is_empty() {
            to.write_all(&rest[..1]).await?;
            rest = &rest[1..];
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        to.write_all(rest).await?;
    }
}
