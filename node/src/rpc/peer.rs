//! What other sites may ask. Default deny: by key at the handshake, then by site, round and visit here.

use super::{received_receipt, refused};
use crate::daemon::{Daemon, unix_now};
use crate::effects::CHUNK_PATIENCE;
use crate::greeting::Greeter;
use crate::store::{self, Incoming, Store};
use crate::tls::Caller;
use rondo::envelope::Envelope;
use rondo::ids::{RoundId, SiteId, VisitNo};
use rondo::passport::{self, Passport};
use rondo::round::{Event, Receipt, ReceiptBody, Refusal};
use rondo_proto::convert::{digest, visit};
use rondo_proto::peer::peer_server::Peer;
use rondo_proto::peer::{
    Chunk, GreetRequest, Greeting, Held, Offer, OfferAnswer, ReceiptAcknowledgement, ReceiptBatch,
    Wanted, offer_answer::Answer,
};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::{Request, Response, Status, Streaming};

/// Receipts that one call may bring.
pub const BATCH_MAX: usize = 256;

/// The peer service of a site.
#[derive(Clone)]
pub struct PeerService {
    daemon: Daemon,
    store: Store,
    greeter: Greeter,
    /// Checkpoints that are being received, each by one caller at a time.
    receiving: Arc<Mutex<HashSet<(RoundId, VisitNo)>>>,
}

impl PeerService {
    /// Serves the daemon of `greeter`, and `store`.
    #[must_use]
    pub fn new(store: Store, greeter: Greeter) -> Self {
        Self { daemon: greeter.daemon.clone(), store, greeter, receiving: Arc::default() }
    }

    /// The caller, if it is (still) trusted: a roster may change while a connection lives.
    fn caller<T>(&self, request: &Request<T>) -> Result<SiteId, Status> {
        let caller = request.extensions().get::<Caller>();
        let Caller(site) = caller.ok_or_else(|| Status::unauthenticated("no TLS identity"))?;
        let state = self.daemon.state();
        let trusted = state.roster().trusted(site);
        trusted.map(|_| site.clone()).map_err(|e| Status::permission_denied(e.to_string()))
    }

    /// Whether `caller` may hand the checkpoint of `visit` to this site.
    fn may_hand_over(&self, caller: &SiteId, id: RoundId, visit: VisitNo) -> Result<(), Status> {
        let state = self.daemon.state();
        let round = state.rounds().get(&id).ok_or_else(|| refused(&Refusal::UnknownRound(id)))?;
        let own = self.daemon.site();
        if !round.approvals.contains_key(own) {
            return Err(Status::permission_denied("this site has not approved the round"));
        }
        if !round.started {
            return Err(Status::failed_precondition(
                "this site has not heard of the round's start",
            ));
        }
        let its_turn = round.plan.site_of(visit) == Some(caller);
        if !its_turn || !round.recipients(visit).any(|site| site == own) {
            return Err(Status::permission_denied("this visit is not handed from there to here"));
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
            .ok_or_else(|| Status::failed_precondition("offer the checkpoint first"))?;
        let weights = manifest.weights.object;
        if let Some(receipt) = received_receipt(round, self.daemon.site(), number, weights) {
            return Ok(Ok(held(&receipt)));
        }
        let stored = self.store.get(weights);
        if stored.is_ok_and(|bytes| round.plan.layout().check(&bytes).is_ok()) {
            let body = ReceiptBody::Received { visit: number, weights };
            return Ok(Ok(held(&self.daemon.tell(id, body).await?)));
        }
        Ok(Err(self.store.receive(manifest.weights.clone())?))
    }

    async fn receive(
        &self,
        id: RoundId,
        number: VisitNo,
        mut incoming: Incoming,
        first: Chunk,
        mut chunks: Streaming<Chunk>,
    ) -> Result<OfferAnswer, Status> {
        let mut next = Some(first);
        while let Some(chunk) = next {
            incoming.accept(chunk.index, &chunk.data)?;
            next = tokio::time::timeout(CHUNK_PATIENCE, chunks.message())
                .await
                .map_err(|_| Status::deadline_exceeded("no chunk came in time"))??;
        }
        let missing = incoming.missing();
        if !missing.is_empty() {
            return Ok(wanted(missing));
        }
        self.finish(id, number, incoming).await
    }

    async fn finish(
        &self,
        id: RoundId,
        number: VisitNo,
        incoming: Incoming,
    ) -> Result<OfferAnswer, Status> {
        let state = self.daemon.state();
        let round = state.rounds().get(&id).ok_or_else(|| refused(&Refusal::UnknownRound(id)))?;
        let layout = round.plan.layout();
        let check = move |bytes: &[u8]| layout.check(bytes).map_err(Refused::Checkpoint);
        let weights = tokio::task::spawn_blocking(move || incoming.finish(check))
            .await
            .map_err(|e| Status::internal(e.to_string()))??;
        let body = ReceiptBody::Received { visit: number, weights };
        let receipt = self.daemon.tell(id, body).await?;
        tracing::info!(round = id.short(), visit = number.0, weights = %weights.short(), "checkpoint received and stored");
        Ok(held(&receipt))
    }
}

enum Refused {
    Store(store::Error),
    Checkpoint(rondo::checkpoint::Error),
}

impl From<store::Error> for Refused {
    fn from(e: store::Error) -> Self {
        Self::Store(e)
    }
}

impl From<Refused> for Status {
    fn from(e: Refused) -> Self {
        match e {
            Refused::Store(e) => e.into(),
            Refused::Checkpoint(e) => passport_refused(&e.into()),
        }
    }
}

fn passport_refused(e: &passport::Error) -> Status {
    Status::invalid_argument(format!("[{}] {e}", e.code()))
}

fn held(receipt: &Envelope) -> OfferAnswer {
    OfferAnswer { answer: Some(Answer::Held(Held { receipt: receipt.to_json() })) }
}

fn wanted(chunks: Vec<u32>) -> OfferAnswer {
    OfferAnswer { answer: Some(Answer::Wanted(Wanted { chunks })) }
}

fn envelope(bytes: &[u8]) -> Result<Envelope, Status> {
    Envelope::from_json(bytes).map_err(|e| Status::invalid_argument(e.to_string()))
}

/// Marks a checkpoint as being received until dropped.
struct Claim(Arc<Mutex<HashSet<(RoundId, VisitNo)>>>, (RoundId, VisitNo));

impl Claim {
    fn take(
        all: &Arc<Mutex<HashSet<(RoundId, VisitNo)>>>,
        what: (RoundId, VisitNo),
    ) -> Result<Self, Status> {
        let fresh = all.lock().unwrap_or_else(PoisonError::into_inner).insert(what);
        let busy = || Status::aborted("this checkpoint is being received on another connection");
        fresh.then(|| Self(all.clone(), what)).ok_or_else(busy)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<Greeting>, Status> {
        let caller = self.caller(&request)?;
        let said = request.into_inner();
        self.greeter.learn(&caller, &said.card, &said.holds).await;
        let [version_major, version_minor, version_patch] = crate::version();
        let site = self.daemon.site().to_string();
        let now = unix_now();
        Ok(Response::new(Greeting {
            site,
            version_major,
            version_minor,
            version_patch,
            now,
            card: self.greeter.own.now().card.to_json(),
            reaches_you: self.greeter.contacts.reaches(&caller),
            holds: self.greeter.holds(&caller),
        }))
    }

    async fn deliver_receipts(
        &self,
        request: Request<ReceiptBatch>,
    ) -> Result<Response<ReceiptAcknowledgement>, Status> {
        let caller = self.caller(&request)?;
        let batch = request.into_inner();
        let round = digest("round", &batch.round)?;
        if batch.receipts.len() > BATCH_MAX {
            let text = format!("a batch may hold {BATCH_MAX} receipts");
            return Err(Status::resource_exhausted(text));
        }
        let known = || {
            let state = self.daemon.state();
            let told = state.rounds().get(&round).and_then(|r| r.receipts.get(&caller));
            u32::try_from(told.map_or(0, Vec::len)).unwrap_or(u32::MAX)
        };
        for bytes in &batch.receipts {
            let receipt = envelope(bytes)?;
            let claimed = Receipt::unverified(&receipt)
                .map_err(|e| Status::invalid_argument(e.to_string()))?;
            if claimed.site != caller || claimed.round != round {
                return Err(Status::permission_denied(
                    "a site delivers its own receipts of one round",
                ));
            }
            match self.daemon.adopt(Event::Receipt { receipt }).await {
                Ok(()) => {}
                // What was adopted so far counts; the answer tells the caller where to go on.
                Err(crate::daemon::Error::Refused(Refusal::Order { .. } | Refusal::Gap(_))) => {
                    break;
                }
                Err(e) => {
                    tracing::warn!(peer = %caller, round = round.short(), "receipt refused: {e}");
                    return Err(e.into());
                }
            }
        }
        Ok(Response::new(ReceiptAcknowledgement { number: known() }))
    }

    async fn offer_checkpoint(
        &self,
        request: Request<Offer>,
    ) -> Result<Response<OfferAnswer>, Status> {
        let caller = self.caller(&request)?;
        let offer = request.into_inner();
        let (id, number) = (digest("round", &offer.round)?, visit(offer.visit)?);
        self.may_hand_over(&caller, id, number)?;
        let passport = Passport::from_json(&offer.passport).map_err(|e| passport_refused(&e))?;
        let verified = passport.verify(self.daemon.state().roster()).map_err(|e| {
            tracing::warn!(peer = %caller, round = id.short(), visit = number.0, "offer refused: {e}");
            passport_refused(&e)
        })?;
        if verified.plan().round() != id || verified.last().visit != number {
            return Err(Status::invalid_argument("the passport belongs to another visit"));
        }
        for manifest in passport.manifests {
            self.daemon.adopt(Event::Manifest { round: id, manifest }).await?;
        }
        let _claim = Claim::take(&self.receiving, (id, number))?;
        match self.answer(id, number).await? {
            Ok(answer) => Ok(Response::new(answer)),
            Err(incoming) if incoming.missing().is_empty() => {
                self.finish(id, number, incoming).await.map(Response::new)
            }
            Err(incoming) => Ok(Response::new(wanted(incoming.missing()))),
        }
    }

    async fn send_chunks(
        &self,
        request: Request<Streaming<Chunk>>,
    ) -> Result<Response<OfferAnswer>, Status> {
        let caller = self.caller(&request)?;
        let mut chunks = request.into_inner();
        let first =
            chunks.message().await?.ok_or_else(|| Status::invalid_argument("no chunk was sent"))?;
        let (id, number) = (digest("round", &first.round)?, visit(first.visit)?);
        self.may_hand_over(&caller, id, number)?;
        let _claim = Claim::take(&self.receiving, (id, number))?;
        let answer = match self.answer(id, number).await? {
            Ok(answer) => answer,
            Err(incoming) => {
                self.receive(id, number, incoming, first, chunks).await.inspect_err(|e| {
                    tracing::warn!(peer = %caller, round = id.short(), visit = number.0, "transfer broken off: {}", e.message());
                })?
            }
        };
        Ok(Response::new(answer))
    }
}
