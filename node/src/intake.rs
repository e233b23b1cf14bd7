//! How much a peer's words may take before anybody has looked at them. The heads of gRPC messages are
//! followed while they arrive, so that what is too large for its call is refused before it is decoded.
//!
//! Goals: however many connections and calls a peer opens, a daemon stays below 256 MiB. Not goals:
//! what messages say, which handlers check.
//!
//! What all peers together may have lying here unread or undecided is [`ALL_MAX_BYTES`], 48 MiB; decoded
//! and parsed, a passport takes two to three times its length, so that makes up to 144 MiB. Decoding
//! multiplies tiny entries: 2 bytes of `Collect` become 32, and 2 of `DeliverReceipts` become 24, so the
//! bounds of these calls, 64 KiB and 1.5 MiB, become 1 and 18 MiB until the handler counts them, on each of
//! the two threads that serve. The 16 MiB that [`STREAM_WINDOW`](crate::contacts::STREAM_WINDOW) lets come
//! ahead of a slow disk are those of the few streams whose checkpoint this site is receiving.

use crate::pace::Alarm;
use crate::reason::Reason;
use crate::rpc::collect::COLLECTED_MAX_BYTES;
use crate::rpc::peer::BATCH_BYTES;
use http_body::{Body as HttpBody, Frame, SizeHint};
use rondo::envelope::ENVELOPE_MAX_BYTES;
use rondo::ids::SiteId;
use rondo::passport::PASSPORT_MAX_BYTES;
use rondo::transfer::CHUNK_MAX_BYTES;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

/// Unread and undecided requests of one peer: the largest message, and small ones beside it.
const PEER_MAX_BYTES: usize = 20 * 1024 * 1024;
/// Those of all peers.
pub const ALL_MAX_BYTES: usize = 48 * 1024 * 1024;
/// What a message needs beside its long fields.
const AROUND_BYTES: usize = 2048;
/// A card, a receipt, the list of missing chunks, or the receipts that a caller has.
const SMALL_BYTES: usize = 64 * 1024;
/// As many receipts as a call may bring; the last of them may be the longest.
const RECEIPTS_BYTES: usize = BATCH_BYTES + ENVELOPE_MAX_BYTES + AROUND_BYTES;
/// Fields of one answer to `Collect`: each may take some 50 bytes of memory, however few it has itself.
const FIELDS_MAX: usize = 64 * 1024;
/// Number of the field of `Collected` whose messages hold many receipts each.
const BATCHES_FIELD: u64 = 1;
/// Length of gRPC's own head of a message.
const HEAD_BYTES: usize = 5;

/// What one body may bring.
#[derive(Debug, Clone, Copy)]
struct Bound {
    /// Bytes of a message.
    message: usize,
    /// Any number of messages, instead of one.
    stream: bool,
}

const fn one(message: usize) -> Bound {
    Bound { message, stream: false }
}

fn chunks() -> Bound {
    let chunk = usize::try_from(CHUNK_MAX_BYTES).unwrap_or(usize::MAX);
    Bound { message: chunk.saturating_add(AROUND_BYTES), stream: true }
}

fn of_request(call: &str) -> Bound {
    match call {
        "OfferCheckpoint" => one(PASSPORT_MAX_BYTES + AROUND_BYTES),
        "DeliverReceipts" => one(RECEIPTS_BYTES),
        "SendChunks" => chunks(),
        _ => one(SMALL_BYTES),
    }
}

fn of_answer(call: &str) -> Bound {
    match call {
        "Collect" => one(COLLECTED_MAX_BYTES),
        "FetchChunks" => chunks(),
        _ => one(SMALL_BYTES),
    }
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    peers: BTreeMap<SiteId, usize>,
}

/// What lies here of each peer's requests.
#[derive(Debug, Clone, Default)]
pub struct Budget(Arc<Mutex<Used>>);

impl Budget {
    /// The part of a call of `site`, which is given back when it is dropped.
    #[must_use]
    pub fn of(&self, site: &SiteId) -> Load {
        Load(Arc::new(Mutex::new(Held { budget: self.clone(), site: site.clone(), bytes: 0 })))
    }
}

/// What one call holds, as long as its body or its answer is under way.
#[derive(Debug, Clone)]
pub struct Load(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    budget: Budget,
    site: SiteId,
    bytes: usize,
}

impl Load {
    fn hold(&self, bytes: usize) -> Result<(), Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hold(bytes)
    }
}

impl Held {
    fn hold(&mut self, bytes: usize) -> Result<(), Status> {
        let mut used = self.budget.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = used.peers.get(&self.site).copied().unwrap_or(0);
        let (own, all) = (own - self.bytes + bytes, used.all - self.bytes + bytes);
        if bytes > self.bytes && (own > PEER_MAX_BYTES || all > ALL_MAX_BYTES) {
            let text = "too much of this peer, or of all, is under way already; call again later";
            return Err(Reason::TooMany.because(text));
        }
        used.all = all;
        self.bytes = bytes;
        if own == 0 {
            used.peers.remove(&self.site);
        } else {
            used.peers.insert(self.site.clone(), own);
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Less is always allowed.
        let _ = self.hold(0);
    }
}

/// Follows the messages of a body.
#[derive(Debug)]
struct Messages {
    call: String,
    bound: Bound,
    head: Vec<u8>,
    left: usize,
    /// Bytes of the message that is not complete yet; of the only one, also when it is.
    held: usize,
    over: bool,
    fields: Option<Fields>,
}

impl Messages {
    fn look(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            let wanted = if self.left > 0 { self.left } else { HEAD_BYTES - self.head.len() };
            let (now, rest) = data.split_at(wanted.min(data.len()));
            data = rest;
            if self.left > 0 {
                self.left -= now.len();
                self.held += now.len();
                let few = self.fields.as_mut().is_none_or(|fields| fields.few(now));
                few.then_some(()).ok_or_else(|| self.too_large("has too many fields"))?;
            } else {
                if self.over {
                    return Err(self.too_large("does not end"));
                }
                self.head.extend_from_slice(now);
                let [_, a, b, c, d] = self.head[..] else { continue };
                self.head.clear();
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                if self.left > self.bound.message {
                    return Err(self.too_large(&format!("has {} bytes", self.left)));
                }
                self.over = !self.bound.stream;
            }
            if self.left == 0 && self.bound.stream {
                self.held = 0;
            }
        }
        Ok(())
    }

    fn too_large(&self, why: &str) -> Status {
        let (call, most) = (&self.call, self.bound.message);
        let text =
            format!("a message of {call} {why}, which is too large; it may have {most} bytes");
        Reason::OversizeMessage.because(text)
    }
}

/// What is read next of a message.
#[derive(Debug, Clone, Copy)]
enum Next {
    Key,
    Number,
    /// The length of a field, whose own fields count too or do not.
    Length(bool),
    Content,
}

/// Counts the fields of a message in Protocol Buffers and of those in [`BATCHES_FIELD`], however it is cut.
#[derive(Debug)]
struct Fields {
    left: usize,
    next: Next,
    number: u64,
    shift: u32,
    /// Bytes of the content that is skipped.
    content: u64,
    /// Bytes that are left of an inner message.
    inner: u64,
}

impl Default for Fields {
    fn default() -> Self {
        Self { left: FIELDS_MAX, next: Next::Key, number: 0, shift: 0, content: 0, inner: 0 }
    }
}

impl Fields {
    /// Whether `data` can be the next bytes of a message with few fields.
    fn few(&mut self, mut data: &[u8]) -> bool {
        while let Some((byte, rest)) = data.split_first() {
            if let Next::Content = self.next {
                let n = usize::try_from(self.content).unwrap_or(usize::MAX).min(data.len());
                data = data.get(n..).unwrap_or_default();
                self.content -= n as u64;
                self.inner = self.inner.saturating_sub(n as u64);
                if self.content == 0 {
                    self.next = Next::Key;
                }
                continue;
            }
            data = rest;
            let nested = self.inner > 0;
            self.inner = self.inner.saturating_sub(1);
            if self.shift >= u64::BITS {
                return false;
            }
            self.number |= u64::from(byte & 0x7f) << self.shift;
            self.shift += 7;
            if byte & 0x80 != 0 {
                continue;
            }
            self.shift = 0;
            let number = std::mem::take(&mut self.number);
            let skip = |content| (content, if content > 0 { Next::Content } else { Next::Key });
            (self.content, self.next) = match self.next {
                Next::Key if self.left == 0 => return false,
                Next::Key => {
                    self.left -= 1;
                    // Kinds of fields (Protocol Buffers, Encoding).
                    match number & 7 {
                        0 => (0, Next::Number),
                        1 => skip(8),
                        2 => (0, Next::Length(!nested && number >> 3 == BATCHES_FIELD)),
                        5 => skip(4),
                        _ => return false,
                    }
                }
                Next::Length(false) => skip(number),
                Next::Length(true) => {
                    self.inner = number;
                    (0, Next::Key)
                }
                Next::Number | Next::Content => (0, Next::Key),
            };
        }
        true
    }
}

/// A body that comes in and is cut off where it is too much, or too slow.
#[derive(Debug)]
pub struct Intake {
    inner: Body,
    messages: Messages,
    load: Option<Load>,
    /// Streams have handlers that watch them, and answers a limit of time.
    alarm: Option<Alarm>,
}

impl Intake {
    /// The request of a peer for `call`.
    #[must_use]
    pub fn of_request(inner: Body, call: &str, load: Option<Load>) -> Self {
        let bound = of_request(call);
        let alarm = (!bound.stream).then(Alarm::default);
        Self { inner, messages: messages(call, bound, None), load, alarm }
    }

    /// What a peer answers to `call`.
    #[must_use]
    pub fn of_answer(inner: Body, call: &str) -> Self {
        let fields = (call == "Collect").then(Fields::default);
        let messages = messages(call, of_answer(call), fields);
        Self { inner, messages, load: None, alarm: None }
    }
}

fn messages(call: &str, bound: Bound, fields: Option<Fields>) -> Messages {
    let head = Vec::with_capacity(HEAD_BYTES);
    Messages { call: call.to_owned(), bound, head, left: 0, held: 0, over: false, fields }
}

impl HttpBody for Intake {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            let Some(limit) = this.alarm.as_mut().map(|alarm| alarm.poll(cx)) else {
                return Poll::Pending;
            };
            return limit.map(|limit| {
                let text = format!("the request did not come within {} s", limit.as_secs());
                Some(Err(Reason::StalledStream.because(text)))
            });
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            if let Some(alarm) = &mut this.alarm {
                alarm.moved(data.len());
            }
            let held = this.messages.look(data).and_then(|()| match &this.load {
                Some(load) => load.hold(this.messages.held),
                None => Ok(()),
            });
            if let Err(status) = held {
                return Poll::Ready(Some(Err(status)));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo_proto::peer::{Collected, Offer, ReceiptBatch};
    use tonic_prost::prost::Message;

    fn head(length: usize) -> Vec<u8> {
        let length = u32::try_from(length).unwrap().to_be_bytes();
        [&[0], &length[..]].concat()
    }

    fn reason(outcome: Result<(), Status>) -> Option<Reason> {
        outcome.err().and_then(|status| Reason::of(&status))
    }

    #[test]
    fn a_message_beyond_the_bound_of_its_call_is_refused_by_its_head() {
        for (call, most) in [
            ("Greet", SMALL_BYTES),
            ("Collect", SMALL_BYTES),
            ("FetchChunks", SMALL_BYTES),
            ("AnythingElse", SMALL_BYTES),
            ("DeliverReceipts", RECEIPTS_BYTES),
            ("OfferCheckpoint", PASSPORT_MAX_BYTES + AROUND_BYTES),
            ("SendChunks", usize::try_from(CHUNK_MAX_BYTES).unwrap() + AROUND_BYTES),
        ] {
            let begun = || messages(call, of_request(call), None);
            let refused = begun().look(&head(most + 1));
            assert_eq!(reason(refused), Some(Reason::OversizeMessage), "{call}");
            let whole = [head(most), vec![7; most]].concat();
            for step in [1013, whole.len()] {
                let mut messages = begun();
                for part in whole.chunks(step) {
                    messages.look(part).unwrap();
                }
                // Only a stream may have another one, and what is complete of it is its handler's.
                let stream = call == "SendChunks";
                assert_eq!(messages.held, if stream { 0 } else { most }, "{call}");
                assert_eq!(messages.look(&head(1)).is_ok(), stream, "{call}");
            }
        }
    }

    #[test]
    fn a_peer_holds_so_much_and_leaves_room_for_others() {
        let budget = Budget::default();
        let sites: Vec<SiteId> =
            ["uker", "usz", "insel"].iter().map(|name| name.parse().unwrap()).collect();
        let load = |site: usize| budget.of(&sites[site]);
        let calls: Vec<Load> = (0..256).map(|_| load(0)).collect();
        let each = PEER_MAX_BYTES / 200;
        let held = calls.iter().filter(|call| call.hold(each).is_ok()).count();
        assert_eq!(held, 200);
        assert_eq!(reason(load(0).hold(each)), Some(Reason::TooMany));
        let (second, third) = (load(1), load(2));
        second.hold(PEER_MAX_BYTES).unwrap();
        let rest = ALL_MAX_BYTES - 2 * PEER_MAX_BYTES;
        assert_eq!(reason(third.hold(rest + each)), Some(Reason::TooMany));
        third.hold(rest).unwrap();
        drop(calls);
        third.hold(PEER_MAX_BYTES).unwrap();
        // The answer may outlive the body.
        let answer = second.clone();
        drop((second, third));
        assert_eq!(budget.0.lock().unwrap().all, PEER_MAX_BYTES);
        drop(answer);
        let used = budget.0.lock().unwrap();
        assert_eq!((used.all, used.peers.len()), (0, 0));
    }

    #[test]
    fn tiny_entries_of_what_was_collected_are_counted_before_they_are_decoded() {
        let batch =
            |n, length| ReceiptBatch { round: vec![9; 32], receipts: vec![vec![1; length]; n] };
        let offers = |n| vec![Offer::default(); n];
        let many = FIELDS_MAX + 1;
        for (few, collected) in [
            (false, Collected { offers: offers(many), ..Collected::default() }),
            (
                false,
                Collected { batches: vec![ReceiptBatch::default(); many], ..Collected::default() },
            ),
            (false, Collected { batches: vec![batch(many, 0)], ..Collected::default() }),
            (false, Collected { batches: vec![batch(FIELDS_MAX / 2, 0); 2], offers: offers(2) }),
            (true, Collected { batches: vec![batch(256, 900); 20], offers: offers(9) }),
            (
                true,
                Collected {
                    // What is in a passport is no field.
                    offers: vec![Offer {
                        round: vec![8; 32],
                        visit: 3,
                        passport: vec![2; 900_000],
                    }],
                    ..Collected::default()
                },
            ),
        ] {
            let bytes = collected.encode_to_vec();
            for step in [1, 7, bytes.len()] {
                let mut fields = Fields::default();
                assert_eq!(bytes.chunks(step).all(|part| fields.few(part)), few, "{step}");
            }
        }
        for odd in [&[3][..], &[0xff; 11]] {
            assert!(!Fields::default().few(odd));
        }
    }
}
