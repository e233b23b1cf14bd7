//! Around every call, here and there: bodies are bounded, and counted for their message and round, and
//! what was refused is given a reason, logged and counted. No handler has to think of any of it.

use super::meter::Meter;
use crate::intake::{Budget, Intake};
use crate::reason::{Reason, Refusals};
use crate::tls::{Caller, States};
use http_body::{Body as HttpBody, Frame, SizeHint};
use rondo::ids::{Digest, RoundId, SiteId};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{Bytes, http};
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Begin of a message about a round: uncompressed, and `bytes round = 1` of 32 bytes comes first.
/// Every message of peer.proto that names a round names it so.
const ROUND_HEAD: [u8; 2] = [0x0a, 32];
/// Length of gRPC's own head of a message.
const GRPC_HEAD: usize = 5;
/// Bytes of a message in which its round is found.
const ROUND_END: usize = GRPC_HEAD + ROUND_HEAD.len() + 32;

/// Longest name of a call that is counted under its own name.
const NAME_MAX: usize = 40;

/// The call that a path names; anything odd is `other`.
fn call_name(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let plain = !name.is_empty()
        && name.len() <= NAME_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain { name } else { "other" }
}

/// Finds the round in the first bytes of a body.
#[derive(Debug, Default)]
struct Finder {
    head: Vec<u8>,
}

impl Finder {
    fn look(&mut self, bytes: &[u8]) -> Option<RoundId> {
        let wanted = ROUND_END.saturating_sub(self.head.len());
        self.head.extend(bytes.iter().take(wanted));
        let message = self.head.strip_prefix(&[0])?.get(GRPC_HEAD - 1..)?;
        let digest = message.strip_prefix(&ROUND_HEAD)?;
        digest.try_into().ok().map(Digest::from_bytes)
    }
}

/// A body that comes in, and whose round is looked for.
struct Heard {
    inner: Body,
    finder: Finder,
    found: Arc<OnceLock<RoundId>>,
}

impl HttpBody for Heard {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
            && self.found.get().is_none()
            && let Some(round) = self.finder.look(data)
        {
            let _ = self.found.set(round);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Says which round a body is about, given its first bytes.
type RoundOf = Box<dyn FnMut(&[u8]) -> Option<RoundId> + Send>;
/// Is told of a refusal that comes after a part of the answer.
type OnRefusal = Box<dyn FnOnce(&Status) + Send>;

/// A body that goes out, counted under its kind.
struct Told {
    inner: Body,
    meter: Meter,
    kind: Arc<str>,
    message: Option<u64>,
    ended: bool,
    round: RoundOf,
    refused: Option<OnRefusal>,
}

impl HttpBody for Told {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref().filter(|d| !d.is_empty())
                    && self.message.is_none()
                {
                    let round = (self.round)(data);
                    self.message = Some(self.meter.begin(round, self.kind.clone(), data));
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.ended = true;
                    if let Some(status) = Status::from_header_map(trailers)
                        && status.code() != Code::Ok
                        && let Some(refused) = self.refused.take()
                    {
                        refused(&status);
                    }
                }
            }
            Poll::Ready(None) => self.ended = true,
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let broken_off = !self.ended && !self.inner.is_end_stream();
        if let Some(message) = self.message.filter(|_| broken_off) {
            self.meter.withdraw(message);
        }
    }
}

/// Calls to a peer, counted.
#[derive(Debug, Clone)]
pub struct Calling<S> {
    inner: S,
    meter: Meter,
}

impl<S> Calling<S> {
    /// Counts the requests that go over a connection.
    pub fn new(inner: S, meter: Meter) -> Self {
        Self { inner, meter }
    }
}

impl<S> Service<http::Request<Body>> for Calling<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = call_name(request.uri().path()).to_owned();
        let kind = format!("{call}.request").into();
        let mut finder = Finder::default();
        let meter = self.meter.clone();
        let request = request.map(|inner| {
            let round = Box::new(move |data: &[u8]| finder.look(data));
            Body::new(Told {
                inner,
                meter,
                kind,
                message: None,
                ended: false,
                round,
                refused: None,
            })
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            Ok(answer.await?.map(|inner| Body::new(Intake::of_answer(inner, &call))))
        })
    }
}

/// A connection of a peer: whose it is, and its account.
#[derive(Debug, Clone)]
pub struct Line {
    /// The site whose key opened it.
    pub caller: Caller,
    /// Counts what is answered.
    pub meter: Meter,
}

/// Puts [`Answering`] around the services that peers call.
#[derive(Clone)]
pub struct Answers {
    /// Counts what is refused.
    pub refusals: Refusals,
    /// Rounds that may be named.
    pub states: States,
    /// What requests may hold of this site's memory.
    pub budget: Budget,
}

impl<S> Layer<S> for Answers {
    type Service = Answering<S>;
    fn layer(&self, inner: S) -> Answering<S> {
        Answering { inner, around: self.clone() }
    }
}

/// Calls of peers: answers counted, refusals given a reason, logged and counted.
#[derive(Clone)]
pub struct Answering<S> {
    inner: S,
    around: Answers,
}

impl<S> Service<http::Request<Body>> for Answering<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let line = request.extensions().get::<Line>().cloned();
        if let Some(line) = &line {
            request.extensions_mut().insert(line.caller.clone());
        }
        let call = call_name(request.uri().path()).to_owned();
        let found = Arc::new(OnceLock::new());
        let heard = found.clone();
        let load = line.as_ref().map(|line| self.around.budget.of(&line.caller.0));
        let request = request.map(|inner| {
            let inner = Body::new(Intake::of_request(inner, &call, load.clone()));
            Body::new(Heard { inner, finder: Finder::default(), found: heard })
        });
        let around = self.around.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            drop(load);
            let site = line.as_ref().map(|line| line.caller.0.clone());
            let response = judged(response, &around.refusals, site.as_ref(), &call);
            let Some(Line { meter, .. }) = line else { return Ok(response) };
            let kind = format!("{call}.answer").into();
            let refusals = around.refusals.clone();
            let refused = move |status: &Status| {
                let reason = Reason::of(status).unwrap_or(Reason::of_grpc(status.code()));
                refusals.note(site.as_ref(), &call, reason, status.message());
            };
            // A caller may name any round; only those that are known here become rows.
            let known = move |_: &[u8]| {
                found.get().copied().filter(|r| around.states.borrow().rounds().contains_key(r))
            };
            Ok(response.map(|inner| {
                let (round, refused) = (Box::new(known), Some(Box::new(refused) as OnRefusal));
                Body::new(Told { inner, meter, kind, message: None, ended: false, round, refused })
            }))
        })
    }
}

/// Gives a refusal its reason if it has none, and notes it.
fn judged(
    response: http::Response<Body>,
    refusals: &Refusals,
    site: Option<&SiteId>,
    call: &str,
) -> http::Response<Body> {
    let status = Status::from_header_map(response.headers()).filter(|s| s.code() != Code::Ok);
    let Some(status) = status else { return response };
    let named = Reason::of(&status);
    let reason = named.unwrap_or(Reason::of_grpc(status.code()));
    refusals.note(site, call, reason, status.message());
    match (reason.for_peers(), named) {
        (Some(text), _) => reason.answer(status.code(), text).into_http(),
        (None, Some(_)) => response,
        (None, None) => reason.answer(status.code(), status.message()).into_http(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo_proto::peer::{Chunk, GreetRequest, Offer, ReceiptBatch};
    use tonic_prost::prost::Message;

    fn framed(message: &impl Message) -> Vec<u8> {
        let body = message.encode_to_vec();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[0], &length[..], &body].concat()
    }

    #[test]
    fn the_round_of_every_message_that_names_one_is_found_however_it_is_cut() {
        let digest = Digest::of(b"a plan");
        let round = digest.as_bytes().to_vec();
        let offer = Offer { round: round.clone(), visit: 1, passport: vec![1; 9] };
        let chunk = Chunk {
            round: round.clone(),
            visit: 1,
            index: 0,
            data: vec![2; 500].into(),
            offset: 0,
        };
        let batch = ReceiptBatch { round, receipts: vec![vec![3; 4]] };
        for bytes in [framed(&offer), framed(&chunk), framed(&batch)] {
            for step in [1, 6, 38, bytes.len()] {
                let mut finder = Finder::default();
                let found: Vec<_> = bytes.chunks(step).filter_map(|p| finder.look(p)).collect();
                assert_eq!(found.first(), Some(&digest), "{step}");
            }
        }
        for other in [framed(&GreetRequest::default()), vec![], vec![0; 60], vec![1; 60]] {
            assert_eq!(Finder::default().look(&other), None);
        }
    }

    #[test]
    fn a_peer_is_told_no_path_of_this_machine() {
        let told = |status: Status| {
            let response = judged(status.into_http(), &Refusals::default(), None, "Greet");
            Status::from_header_map(response.headers()).unwrap()
        };
        let path = "writing /var/lib/rondo-node/journal.sqlite: database or disk is full";
        for inside in [Reason::Storage.because(path), Reason::Internal.because(path)] {
            let (reason, code) = (Reason::of(&inside), inside.code());
            let status = told(inside);
            assert!(!status.message().contains('/'), "{status}");
            assert_eq!((Reason::of(&status), status.code()), (reason, code));
        }
        assert!(!told(Status::internal(path)).message().contains('/'));
        let plain = told(Reason::NotApproved.because("approve it first"));
        assert_eq!(plain.message(), "[not-approved] approve it first");
    }

    #[test]
    fn odd_paths_make_no_rows_of_their_own() {
        assert_eq!(call_name("/rondo.peer.v1.Peer/Greet"), "Greet");
        for odd in ["", "/", "/a/b-c", "/x/\u{e4}", &"a".repeat(41)] {
            assert_eq!(call_name(odd), "other", "{odd}");
        }
    }
}
