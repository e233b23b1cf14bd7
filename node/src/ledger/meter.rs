//! Counting what goes into TLS: the frames of HTTP/2 are followed just far enough to tell DATA from
//! the rest, and which stream it is of.

use super::{Egress, HTTP2, Key, Open, Row};
use rondo::ids::{RoundId, SiteId};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client writes before its first frame (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// Header of every frame (section 4.1).
const HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Which end of a connection writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that dialled.
    Client,
    /// The one that was called.
    Server,
}

/// The account of one connection with a peer.
#[derive(Debug, Clone)]
pub struct Meter {
    peer: SiteId,
    egress: Egress,
    account: Arc<Mutex<Account>>,
    _open: Arc<Open>,
}

#[derive(Debug)]
struct Account {
    http2: Row,
    preface_left: usize,
    header: Vec<u8>,
    payload_left: usize,
    /// Messages whose first byte has not left yet, in the order in which they were handed to HTTP/2,
    /// which is the order in which their streams write.
    waiting: VecDeque<(u64, Row)>,
    streams: BTreeMap<u32, Row>,
    messages: u64,
}

impl Meter {
    /// An account of a new connection.
    #[must_use]
    pub fn new(egress: &Egress, peer: &SiteId, side: Side) -> Self {
        let key = Key { peer: peer.clone(), round: None, kind: HTTP2.into() };
        let account = Account {
            http2: egress.row(key),
            preface_left: if side == Side::Client { PREFACE_BYTES } else { 0 },
            header: Vec::with_capacity(HEADER_BYTES),
            payload_left: 0,
            waiting: VecDeque::new(),
            streams: BTreeMap::new(),
            messages: 0,
        };
        Self {
            peer: peer.clone(),
            egress: egress.clone(),
            account: Arc::new(Mutex::new(account)),
            _open: Arc::new(egress.open()),
        }
    }

    fn account<T>(&self, with: impl FnOnce(&mut Account) -> T) -> T {
        with(&mut self.account.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A body begins to be sent: its bytes will count for `kind` and `round`.
    pub(super) fn begin(&self, round: Option<RoundId>, kind: Arc<str>) -> u64 {
        let row = self.egress.row(Key { peer: self.peer.clone(), round, kind });
        self.account(|a| {
            a.messages += 1;
            a.waiting.push_back((a.messages, row));
            a.messages
        })
    }

    /// A body was broken off; if nothing of it left, nothing will.
    pub(super) fn withdraw(&self, message: u64) {
        self.account(|a| a.waiting.retain(|(id, _)| *id != message));
    }
}

impl Account {
    /// Follows bytes that went into TLS.
    fn wrote(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = if self.preface_left > 0 {
                let n = self.preface_left.min(bytes.len());
                self.preface_left -= n;
                self.overhead(n)
            } else if self.header.len() < HEADER_BYTES {
                let n = (HEADER_BYTES - self.header.len()).min(bytes.len());
                self.header.extend(bytes.iter().take(n));
                if let [a, b, c, _, _, _, _, _, _] = self.header[..] {
                    self.payload_left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                }
                self.overhead(n)
            } else {
                let n = self.payload_left.min(bytes.len());
                self.payload_left -= n;
                self.payload(n)
            };
            bytes = bytes.get(n..).unwrap_or_default();
            if self.header.len() == HEADER_BYTES && self.payload_left == 0 {
                self.frame_ends();
            }
        }
    }

    fn overhead(&self, n: usize) -> usize {
        self.http2.fetch_add(n as u64, Ordering::Relaxed);
        n
    }

    /// Type, flags and stream of the frame that is being written.
    fn frame(&self) -> (u8, u8, u32) {
        let [_, _, _, kind, flags, a, b, c, d] = self.header[..] else { return (0, 0, 0) };
        (kind, flags, u32::from_be_bytes([a & 0x7f, b, c, d]))
    }

    fn payload(&mut self, n: usize) -> usize {
        let (kind, _, stream) = self.frame();
        if kind != DATA {
            return self.overhead(n);
        }
        if !self.streams.contains_key(&stream)
            && let Some((_, row)) = self.waiting.pop_front()
        {
            self.streams.insert(stream, row);
        }
        let row = self.streams.get(&stream).unwrap_or(&self.http2);
        row.fetch_add(n as u64, Ordering::Relaxed);
        n
    }

    fn frame_ends(&mut self) {
        let (kind, flags, stream) = self.frame();
        let last = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if last || kind == RST_STREAM {
            self.streams.remove(&stream);
        }
        self.header.clear();
    }
}

/// A stream whose written bytes are counted.
#[derive(Debug)]
pub struct Metered<S> {
    inner: S,
    meter: Meter,
}

impl<S> Metered<S> {
    /// Counts what is written to `inner`.
    pub fn new(inner: S, meter: Meter) -> Self {
        Self { inner, meter }
    }

    /// Its account.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = written {
            self.meter.account(|a| a.wrote(buf.get(..n).unwrap_or(buf)));
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut left)) = written {
            self.meter.account(|a| {
                for buf in bufs {
                    let n = left.min(buf.len());
                    a.wrote(buf.get(..n).unwrap_or_default());
                    left -= n;
                }
            });
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn totals(egress: &Egress) -> BTreeMap<String, u64> {
        egress.all().into_iter().map(|(key, n)| (key.kind.to_string(), n)).collect()
    }

    #[test]
    fn data_counts_for_its_message_and_the_sum_is_what_was_written() {
        let peer = "usz".parse().unwrap();
        let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        wire.extend(frame(4, 0, 0, &[0; 6]));
        wire.extend(frame(HEADERS, 0, 1, &[1; 40]));
        wire.extend(frame(HEADERS, 0, 3, &[1; 10]));
        wire.extend(frame(DATA, 0, 1, &[2; 100]));
        wire.extend(frame(DATA, 0, 3, &[3; 7]));
        wire.extend(frame(DATA, END_STREAM, 1, &[2; 50]));
        wire.extend(frame(RST_STREAM, 0, 3, &[0; 4]));
        // However the bytes are cut.
        for step in [1, 5, 9, 24, wire.len()] {
            let egress = Egress::default();
            let meter = Meter::new(&egress, &peer, Side::Client);
            meter.begin(None, "a".into());
            let gone = meter.begin(None, "never".into());
            meter.begin(None, "b".into());
            meter.withdraw(gone);
            for part in wire.chunks(step) {
                meter.account(|a| a.wrote(part));
            }
            let totals = totals(&egress);
            assert_eq!((totals["a"], totals["b"], totals["never"]), (150, 7, 0), "{step}");
            assert_eq!(totals.values().sum::<u64>(), wire.len() as u64, "{step}");
            assert!(meter.account(|a| a.streams.is_empty() && a.waiting.is_empty()));
            let other = meter.clone();
            drop(meter);
            assert_eq!(egress.connections(), 1);
            drop(other);
            assert_eq!(egress.connections(), 0);
        }
    }

    #[test]
    fn data_that_nobody_announced_is_counted_all_the_same() {
        let egress = Egress::default();
        let meter = Meter::new(&egress, &"usz".parse().unwrap(), Side::Server);
        meter.account(|a| a.wrote(&frame(DATA, 0, 9, &[0; 30])));
        assert_eq!(totals(&egress), BTreeMap::from([(HTTP2.to_owned(), 39)]));
    }
}
