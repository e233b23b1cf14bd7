//! What other sites may ask. Default deny: by key at the handshake, then by site, round and visit here.

use super::refused;
use crate::claim::{Claim, Claims};
use crate::daemon::{Daemon, unix_now};
use crate::greeting::Greeter;
use crate::pace::{Paces, Patience};
use crate::policy::Policy;
use crate::reason::Reason;
use crate::store::Store;
use crate::tls::Caller;
use crate::transfer::{self, Incoming};
use rondo::envelope::Envelope;
use rondo::ids::{RoundId, SiteId, VisitNo};
use rondo::passport::{self, Passport};
use rondo::round::{Event, Receipt, ReceiptBody, Refusal, RoundPhase};
use rondo_proto::convert::{digest, visit};
use rondo_proto::peer::peer_server::Peer;
use rondo_proto::peer::{
    Chunk, CollectRequest, Collected, FetchChunksRequest, GreetRequest, Greeting, Held, Offer,
    OfferAnswer, ReceiptAcknowledgement, ReceiptBatch, offer_answer::Answer,
};
use std::hash::Hash;
use std::sync::Arc;
use tokio::task::spawn_blocking;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Receipts that one call may bring.
pub const BATCH_MAX: usize = 256;
/// Bytes after which a call takes no further receipt: there may be a manifest in each.
pub const BATCH_BYTES: usize = 512 * 1024;

/// The peer service of a site.
#[derive(Clone)]
pub struct PeerService {
    pub(super) daemon: Daemon,
    pub(super) store: Store,
    pub(super) greeter: Greeter,
    pub(super) paces: Paces,
    pub(super) policy: Arc<Policy>,
    /// Checkpoints that are being offered or sent, each on one connection at a time.
    receiving: Claims<(RoundId, VisitNo)>,
    /// Checkpoints that are being fetched, each on one connection of a peer at a time.
    pub(super) sending: Claims<(RoundId, VisitNo, SiteId)>,
}

impl PeerService {
    /// Serves the daemon of `greeter`, and what `policy` lets out of `store`.
    #[must_use]
    pub fn new(store: Store, greeter: Greeter, paces: Paces, policy: Arc<Policy>) -> Self {
        let (receiving, sending) = (Claims::default(), Claims::default());
        Self { daemon: greeter.daemon.clone(), store, greeter, paces, policy, receiving, sending }
    }

    /// The caller, if it is (still) trusted: a roster may change while a connection lives.
    fn caller<T>(&self, request: &Request<T>) -> Result<SiteId, Status> {
        let caller = request.extensions().get::<Caller>();
        let Caller(site) = caller.ok_or_else(|| Reason::UnknownKey.because("no TLS identity"))?;
        let state = self.daemon.state();
        let trusted = state.roster().trusted(site);
        let may = trusted.and_then(|card| card.valid_at(unix_now()));
        may.map_err(|e| Reason::of_trust(&e).because(e))?;
        self.greeter.contacts.heard(site);
        Ok(site.clone())
    }

    /// Whether `caller` may hand the checkpoint of `visit` to this site. Before its manifest is known
    /// here, what follows it in the plan tells. With `passes` it may be that visits after it were passed
    /// over, and this site has not heard of it.
    fn may_hand_over(
        &self,
        caller: &SiteId,
        id: RoundId,
        visit: VisitNo,
        passes: bool,
    ) -> Result<(), Status> {
        let state = self.daemon.state();
        let round = state.rounds().get(&id).ok_or_else(|| refused(&Refusal::UnknownRound(id)))?;
        let own = self.daemon.site();
        if !round.approvals.contains_key(own) {
            return Err(Reason::NotApproved.because("this site has not approved the round"));
        }
        if !round.started {
            return Err(Reason::NotStarted.because("this site has not heard of the round's start"));
        }
        if round.phase() == RoundPhase::Aborted {
            return Err(Reason::WrongPhase.because("the round was aborted"));
        }
        let its_turn = round.plan.site_of(visit) == Some(caller);
        let last = visit == round.plan.last_visit();
        let next = round.visit(visit.next());
        let planned = last || next.is_some_and(|v| v.site == *own || !v.passed.is_empty());
        let ours = match round.manifest(visit) {
            _ if passes => true,
            Some(_) => round.recipients(visit).any(|site| site == own),
            None => planned,
        };
        if !its_turn || !ours {
            return Err(Reason::NotItsTurn.because("this visit is not handed from there to here"));
        }
        Ok(())
    }

    /// What is still needed of a checkpoint whose manifest is known here. A checkpoint that is in the
    /// store already, perhaps from before a crash, is not asked for again.
    async fn answer(
        &self,
        id: RoundId,
        number: VisitNo,
    ) -> Result<Result<OfferAnswer, Incoming>, Status> {
        let state = self.daemon.state();
        let round = state.rounds().get(&id).ok_or_else(|| refused(&Refusal::UnknownRound(id)))?;
        let manifest = round
            .manifest(number)
            .ok_or_else(|| Reason::NotOffered.because("offer the checkpoint first"))?;
        let weights = manifest.weights.object;
        if let Some(receipt) = round.received_receipt(self.daemon.site(), number, weights) {
            return Ok(Ok(held(&receipt)));
        }
        let (table, layout) = (manifest.weights.clone(), round.plan.layout());
        let store = self.store.clone();
        let work = spawn_blocking(move || {
            let whole = store.find(weights).is_ok_and(|s| s.check(&table, &layout).is_ok());
            if whole { Ok(None) } else { store.receive(table, layout).map(Some) }
        });
        if let Some(incoming) = work.await.map_err(|e| Status::internal(e.to_string()))?? {
            return Ok(Err(incoming));
        }
        let body = ReceiptBody::Received { visit: number, weights };
        Ok(Ok(held(&self.daemon.tell(id, body).await?)))
    }

    async fn receive(
        &self,
        id: RoundId,
        number: VisitNo,
        incoming: Incoming,
        first: Chunk,
        chunks: Streaming<Chunk>,
    ) -> Result<OfferAnswer, Status> {
        let chunks = tokio_stream::once(Ok(first)).chain(chunks);
        let incoming = transfer::receive(incoming, chunks).await?;
        self.finish(id, number, incoming).await
    }

    /// Stores what is complete, and says what is still wanted otherwise.
    async fn finish(
        &self,
        id: RoundId,
        number: VisitNo,
        incoming: Incoming,
    ) -> Result<OfferAnswer, Status> {
        let bytes = incoming.bytes();
        let work = spawn_blocking(move || incoming.finish());
        let finished = work.await.map_err(|e| Reason::Internal.because(e))??;
        let (weights, spent) = match finished {
            Ok(finished) => finished,
            Err(incoming) => return Ok(wanted(&incoming)),
        };
        let body = ReceiptBody::Received { visit: number, weights };
        let receipt = self.daemon.tell(id, body).await?;
        tracing::info!(
            round = id.short(),
            visit = number.0,
            weights = %weights.short(),
            bytes,
            write_s = spent.write.as_secs_f64(),
            verify_s = spent.verify.as_secs_f64(),
            whole_s = spent.whole.as_secs_f64(),
            sync_s = spent.sync.as_secs_f64(),
            "checkpoint received and stored"
        );
        Ok(held(&receipt))
    }
}

fn passport_refused(e: &passport::Error) -> Status {
    Reason::from_code(e.code()).unwrap_or(Reason::PassportMalformed).because(e)
}

fn held(receipt: &Envelope) -> OfferAnswer {
    OfferAnswer { answer: Some(Answer::Held(Held { receipt: receipt.to_json() })) }
}

fn wanted(incoming: &Incoming) -> OfferAnswer {
    OfferAnswer { answer: Some(Answer::Wanted(transfer::wanted(incoming))) }
}

fn envelope(bytes: &[u8]) -> Result<Envelope, Status> {
    Envelope::from_json(bytes).map_err(|e| Reason::Malformed.because(e))
}

/// The claim on `what`, or that it is under way already.
pub(super) fn claimed<K: Eq + Hash + Clone>(all: &Claims<K>, what: K) -> Result<Claim<K>, Status> {
    let busy = || Reason::Busy.because("this checkpoint is being passed on another connection");
    all.take(what).ok_or_else(busy)
}

impl PeerService {
    /// Adopts what `from` told, be it delivered or collected; the number of its receipts known then.
    async fn receipts(&self, from: &SiteId, batch: ReceiptBatch) -> Result<u32, Status> {
        let round = digest("round", &batch.round)?;
        if batch.receipts.len() > BATCH_MAX {
            let text = format!("a batch may hold {BATCH_MAX} receipts");
            return Err(Reason::TooMany.because(text));
        }
        let known = || {
            let state = self.daemon.state();
            let told = state.rounds().get(&round).and_then(|r| r.receipts.get(from));
            u32::try_from(told.map_or(0, Vec::len)).unwrap_or(u32::MAX)
        };
        for bytes in &batch.receipts {
            let receipt = envelope(bytes)?;
            let claimed =
                Receipt::unverified(&receipt).map_err(|e| Reason::Malformed.because(e))?;
            if claimed.site != *from || claimed.round != round {
                return Err(
                    Reason::ReceiptForeign.because("a site delivers its own receipts of one round")
                );
            }
            match self.daemon.adopt(Event::Receipt { receipt }).await {
                Ok(()) => {}
                // What was adopted so far counts; the answer tells the from where to go on.
                Err(crate::daemon::Error::Refused(Refusal::Order { .. } | Refusal::Gap(_))) => {
                    break;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(known())
    }

    /// Adopts receipts that were collected from `from`; says whether there was anything new in them.
    ///
    /// # Errors
    /// What this site refuses.
    pub async fn told(&self, from: &SiteId, batch: ReceiptBatch) -> Result<bool, Status> {
        let round = digest("round", &batch.round)?;
        let state = self.daemon.state();
        let before =
            state.rounds().get(&round).and_then(|r| r.receipts.get(from)).map_or(0, Vec::len);
        Ok(self.receipts(from, batch).await? as usize > before)
    }

    /// Looks at a checkpoint that `from` offers; the answer says which chunks are missing here.
    ///
    /// # Errors
    /// What this site refuses.
    pub async fn offered(&self, from: &SiteId, offer: Offer) -> Result<OfferAnswer, Status> {
        let (id, number) = (digest("round", &offer.round)?, visit(offer.visit)?);
        self.may_hand_over(from, id, number, true)?;
        let passport = Passport::from_json(&offer.passport).map_err(|e| passport_refused(&e))?;
        let passes = !passport.passes.is_empty();
        self.may_hand_over(from, id, number, passes)?;
        let verified =
            passport.verify(self.daemon.state().roster()).map_err(|e| passport_refused(&e))?;
        if verified.plan().round() != id || verified.last().visit != number {
            return Err(Reason::WrongVisit.because("the passport belongs to another visit"));
        }
        for receipt in passport.passes {
            self.daemon.adopt(Event::Passed { receipt }).await?;
        }
        for manifest in passport.manifests {
            self.daemon.adopt(Event::Manifest { round: id, manifest }).await?;
        }
        self.may_hand_over(from, id, number, false)?;
        let _claim = claimed(&self.receiving, (id, number))?;
        match self.answer(id, number).await? {
            Ok(answer) => Ok(answer),
            Err(incoming) if incoming.missing().is_empty() => {
                self.finish(id, number, incoming).await
            }
            Err(incoming) => {
                let (here, bytes) = (incoming.here(), incoming.bytes());
                if here > 0 {
                    tracing::info!(peer = %from, round = id.short(), visit = number.0, here, bytes, "transfer goes on where it stopped");
                }
                Ok(wanted(&incoming))
            }
        }
    }

    /// Takes the chunks of a checkpoint that `from` offered.
    ///
    /// # Errors
    /// What this site refuses; what was verified before stays.
    pub async fn taken(
        &self,
        from: &SiteId,
        mut chunks: Streaming<Chunk>,
    ) -> Result<OfferAnswer, Status> {
        let first =
            transfer::next(&mut Patience::default(), &mut chunks).await.inspect_err(|e| {
                tracing::warn!(peer = %from, "transfer broken off: {}", e.message());
            })?;
        let first = first.ok_or_else(|| Reason::Malformed.because("no chunk was sent"))?;
        let (id, number) = (digest("round", &first.round)?, visit(first.visit)?);
        self.may_hand_over(from, id, number, false)?;
        let _claim = claimed(&self.receiving, (id, number))?;
        let answer = match self.answer(id, number).await? {
            Ok(answer) => answer,
            Err(incoming) => {
                self.receive(id, number, incoming, first, chunks).await.inspect_err(|e| {
                    tracing::warn!(peer = %from, round = id.short(), visit = number.0, "transfer broken off: {}", e.message());
                })?
            }
        };
        Ok(answer)
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type FetchChunksStream = ReceiverStream<Result<Chunk, Status>>;

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<Greeting>, Status> {
        let caller = self.caller(&request)?;
        let said = request.into_inner();
        self.greeter.learn(&caller, &said.card, &said.holds).await;
        let [version_major, version_minor, version_patch] = crate::version();
        Ok(Response::new(Greeting {
            site: self.daemon.site().to_string(),
            version_major,
            version_minor,
            version_patch,
            now: unix_now(),
            card: self.greeter.own.now().card.to_json(),
            reaches_you: !self.greeter.contacts.of(&caller).unreached,
            holds: self.greeter.holds(&caller),
        }))
    }

    async fn deliver_receipts(
        &self,
        request: Request<ReceiptBatch>,
    ) -> Result<Response<ReceiptAcknowledgement>, Status> {
        let caller = self.caller(&request)?;
        let number = self.receipts(&caller, request.into_inner()).await?;
        Ok(Response::new(ReceiptAcknowledgement { number }))
    }

    async fn offer_checkpoint(
        &self,
        request: Request<Offer>,
    ) -> Result<Response<OfferAnswer>, Status> {
        let caller = self.caller(&request)?;
        self.offered(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn send_chunks(
        &self,
        request: Request<Streaming<Chunk>>,
    ) -> Result<Response<OfferAnswer>, Status> {
        let caller = self.caller(&request)?;
        self.taken(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn collect(
        &self,
        request: Request<CollectRequest>,
    ) -> Result<Response<Collected>, Status> {
        let caller = self.caller(&request)?;
        let have = self.acknowledged(&caller, &request.into_inner().having).await?;
        self.collected(&caller, &have).await.map(Response::new)
    }

    async fn fetch_chunks(
        &self,
        request: Request<FetchChunksRequest>,
    ) -> Result<Response<Self::FetchChunksStream>, Status> {
        let caller = self.caller(&request)?;
        self.fetched(&caller, request.into_inner()).await.map(Response::new)
    }
}
