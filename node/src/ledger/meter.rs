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
/// Bytes of a message by which it is known again when its stream begins: gRPC's head, and the round.
const BEGIN_BYTES: usize = 64;
/// Messages that may wait at most; many more than there are calls on a connection. What is older was
/// discarded by HTTP/2.
const WAITING_MAX: usize = 64;
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
    out: Frames,
    coming: Frames,
    /// Messages whose first byte has not left yet, in the order in which they were handed to HTTP/2.
    waiting: VecDeque<Waiting>,
    /// Messages that are on their way, and what they count for.
    streams: BTreeMap<u32, (u64, Row)>,
    /// What the frame counts for that is being written.
    row: Row,
    messages: u64,
}

#[derive(Debug)]
struct Waiting {
    message: u64,
    row: Row,
    begin: Vec<u8>,
}

/// Where in the frames of one direction its bytes are.
#[derive(Debug)]
struct Frames {
    preface_left: usize,
    header: Vec<u8>,
    payload_left: usize,
}

/// What the next bytes of one direction are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The preface or the header of a frame.
    Head,
    /// The first bytes of a frame's payload.
    Begin,
    /// Later ones.
    Rest,
}

impl Frames {
    fn of(side: Side) -> Self {
        let preface_left = if side == Side::Client { PREFACE_BYTES } else { 0 };
        Self { preface_left, header: Vec::with_capacity(HEADER_BYTES), payload_left: 0 }
    }

    /// How many of `bytes` belong to the next part, and which it is. They count as passed.
    fn pass(&mut self, bytes: &[u8]) -> (usize, Part) {
        if self.preface_left > 0 {
            let n = self.preface_left.min(bytes.len());
            self.preface_left -= n;
            return (n, Part::Head);
        }
        if self.header.len() < HEADER_BYTES {
            let n = (HEADER_BYTES - self.header.len()).min(bytes.len());
            self.header.extend(bytes.iter().take(n));
            self.payload_left = self.length();
            return (n, Part::Head);
        }
        let part = if self.payload_left == self.length() { Part::Begin } else { Part::Rest };
        let n = self.payload_left.min(bytes.len());
        self.payload_left -= n;
        (n, part)
    }

    /// Length of the payload, as far as the header is here.
    fn length(&self) -> usize {
        let [a, b, c, _, _, _, _, _, _] = self.header[..] else { return 0 };
        usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
    }

    /// Type, flags and stream of the frame that passes.
    fn frame(&self) -> (u8, u8, u32) {
        let [_, _, _, kind, flags, a, b, c, d] = self.header[..] else { return (0, 0, 0) };
        (kind, flags, u32::from_be_bytes([a & 0x7f, b, c, d]))
    }

    /// The frame that has passed just now.
    fn ended(&mut self) -> Option<(u8, u8, u32)> {
        let ended = self.header.len() == HEADER_BYTES && self.payload_left == 0;
        let frame = ended.then(|| self.frame());
        if ended {
            self.header.clear();
        }
        frame
    }
}

impl Meter {
    /// An account of a new connection.
    #[must_use]
    pub fn new(egress: &Egress, peer: &SiteId, side: Side) -> Self {
        let key = Key { peer: peer.clone(), round: None, kind: HTTP2.into() };
        let http2 = egress.row(key);
        let other = if side == Side::Client { Side::Server } else { Side::Client };
        let account = Account {
            row: http2.clone(),
            http2,
            out: Frames::of(side),
            coming: Frames::of(other),
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

    /// A body begins to be sent with `data`: its bytes will count for `kind` and `round`.
    pub(super) fn begin(&self, round: Option<RoundId>, kind: Arc<str>, data: &[u8]) -> u64 {
        let row = self.egress.row(Key { peer: self.peer.clone(), round, kind });
        let begin = data.iter().copied().take(BEGIN_BYTES).collect();
        self.account(|a| {
            a.messages += 1;
            a.waiting.push_back(Waiting { message: a.messages, row, begin });
            if a.waiting.len() > WAITING_MAX {
                a.waiting.pop_front();
            }
            a.messages
        })
    }

    /// A body was broken off: its stream is reset, and nothing more of it leaves.
    pub(super) fn withdraw(&self, message: u64) {
        self.account(|a| {
            a.waiting.retain(|w| w.message != message);
            a.streams.retain(|_, (id, _)| *id != message);
        });
    }
}

impl Account {
    /// Follows bytes that went into TLS.
    fn wrote(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (n, part) = self.out.pass(bytes);
            let (now, rest) = bytes.split_at(n.min(bytes.len()));
            bytes = rest;
            match part {
                Part::Head => self.row = self.http2.clone(),
                Part::Begin => self.row = self.row_of(now),
                Part::Rest => {}
            }
            self.row.fetch_add(n as u64, Ordering::Relaxed);
            if let Some((kind, flags, stream)) = self.out.ended() {
                let last = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
                if last || kind == RST_STREAM {
                    self.streams.remove(&stream);
                }
            }
        }
    }

    /// What the frame counts for whose payload begins with `data`.
    fn row_of(&mut self, data: &[u8]) -> Row {
        let (kind, _, stream) = self.out.frame();
        if kind != DATA {
            return self.http2.clone();
        }
        if let Some((_, row)) = self.streams.get(&stream) {
            return row.clone();
        }
        // A message that the peer reset may wait for ever, so the first one need not be the right one.
        let begins = |w: &Waiting| w.begin.iter().zip(data).all(|(a, b)| a == b);
        let known = self.waiting.iter().position(begins);
        match known.and_then(|at| self.waiting.remove(at)) {
            Some(Waiting { message, row, .. }) => {
                self.streams.insert(stream, (message, row.clone()));
                row
            }
            None => self.http2.clone(),
        }
    }

    /// Follows bytes that came out of TLS: of a stream that the peer resets, nothing more leaves.
    fn heard(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (n, _) = self.coming.pass(bytes);
            bytes = bytes.get(n..).unwrap_or_default();
            if let Some((RST_STREAM, _, stream)) = self.coming.ended() {
                self.streams.remove(&stream);
            }
        }
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
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.meter.account(|a| a.heard(buf.filled().get(before..).unwrap_or_default()));
        read
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
            meter.begin(None, "a".into(), &[2; 100]);
            let gone = meter.begin(None, "never".into(), &[9; 8]);
            meter.begin(None, "b".into(), &[3; 7]);
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
    fn a_reset_leaves_nothing_behind_and_shifts_nothing() {
        let egress = Egress::default();
        let meter = Meter::new(&egress, &"usz".parse().unwrap(), Side::Server);
        let wrote = |bytes: Vec<u8>| meter.account(|a| a.wrote(&bytes));
        let mut heard = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for n in 0..1000_u32 {
            let stream = 2 * n + 1;
            // Reset by the peer after the first byte.
            meter.begin(None, "reset".into(), &[1; 9]);
            wrote(frame(DATA, 0, stream, &[1; 9]));
            heard.extend(frame(DATA, 0, stream, &[0; 40]));
            heard.extend(frame(RST_STREAM, 0, stream, &[0; 4]));
        }
        for part in heard.chunks(7) {
            meter.account(|a| a.heard(part));
        }
        assert!(meter.account(|a| a.streams.is_empty() && a.waiting.is_empty()));

        // Ended here, but HTTP/2 discarded all of it when the peer reset it.
        for n in 0..1000_u32 {
            meter.begin(None, "discarded".into(), &[2; 9]);
            meter.begin(None, "sent".into(), &[3; 9]);
            wrote(frame(DATA, END_STREAM, 4000 + n, &[3; 9]));
        }
        assert!(meter.account(|a| a.streams.is_empty() && a.waiting.len() <= WAITING_MAX));

        // Broken off here after a part, in the middle of a frame.
        let message = meter.begin(None, "broken".into(), &[4; 9]);
        let bytes = frame(DATA, 0, 9001, &[4; 9]);
        wrote(bytes[..12].to_vec());
        meter.withdraw(message);
        wrote(bytes[12..].to_vec());
        assert!(meter.account(|a| a.streams.is_empty()));
        let totals = totals(&egress);
        let told = ["reset", "discarded", "sent", "broken"].map(|kind| totals[kind]);
        assert_eq!(told, [9000, 0, 9000, 9]);
    }

    #[test]
    fn data_that_nobody_announced_is_counted_all_the_same() {
        let egress = Egress::default();
        let meter = Meter::new(&egress, &"usz".parse().unwrap(), Side::Server);
        meter.account(|a| a.wrote(&frame(DATA, 0, 9, &[0; 30])));
        assert_eq!(totals(&egress), BTreeMap::from([(HTTP2.to_owned(), 39)]));
    }
}
