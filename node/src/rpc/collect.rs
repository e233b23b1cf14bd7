//! What a peer fetches because it cannot be called: exactly what this site's outstanding effects would
//! have brought to it, and nothing else.

use super::peer::{BATCH_MAX, PeerService, claimed};
use super::refused;
use crate::pace::{CHUNK_PATIENCE, Held};
use crate::reason::Reason;
use crate::release::{self, Release};
use rondo::envelope::Envelope;
use rondo::ids::{RoundId, SiteId, VisitNo};
use rondo::passport::PASSPORT_MAX_BYTES;
use rondo::round::{Effect, Event, Refusal, SiteState};
use rondo::transfer::CHUNKS_MAX;
use rondo_proto::MESSAGE_MAX_BYTES;
use rondo_proto::convert::{digest, visit};
use rondo_proto::peer::{Chunk, Collected, FetchChunksRequest, Having, ReceiptBatch, Wanted};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// How long a call waits for something to tell; middleboxes drop what is silent for much longer.
pub const COLLECT_PATIENCE: Duration = Duration::from_secs(25);
/// Rounds that a caller may name in one call.
pub const HAVING_MAX: usize = 1024;
/// Bytes after which an answer takes no further receipt or offer; what is left comes with the next.
const COLLECTED_BYTES: usize = 2 * 1024 * 1024;
/// Largest answer: the last that is taken may be the longest passport.
pub const COLLECTED_MAX_BYTES: usize = MESSAGE_MAX_BYTES;
const _: () = assert!(COLLECTED_BYTES + PASSPORT_MAX_BYTES < COLLECTED_MAX_BYTES);

impl PeerService {
    /// Notes what `caller` has of this site's receipts.
    pub(super) async fn acknowledged(
        &self,
        caller: &SiteId,
        having: &[Having],
    ) -> Result<BTreeMap<RoundId, u32>, Status> {
        if having.len() > HAVING_MAX {
            let text = format!("a call may name {HAVING_MAX} rounds");
            return Err(Reason::TooMany.because(text));
        }
        let mut have = BTreeMap::new();
        for Having { round, number } in having {
            let id = digest("round", round)?;
            let state = self.daemon.state();
            // A round that this site does not know (any more) has nothing to deliver.
            let Some(round) = state.rounds().get(&id) else { continue };
            if !round.plan.sites.contains(caller) {
                return Err(refused(&Refusal::NotInRound { site: caller.clone(), round: id }));
            }
            let made = round.receipts.get(self.daemon.site()).map_or(0, Vec::len);
            let number = (*number).min(u32::try_from(made).unwrap_or(u32::MAX));
            if number > round.delivered.get(caller).copied().unwrap_or(0) {
                let event = Event::Delivered { round: id, to: caller.clone(), number };
                self.daemon.adopt(event).await?;
            }
            have.insert(id, number);
        }
        Ok(have)
    }

    /// What is outstanding towards `caller`, as soon as there is something.
    pub(super) async fn collected(
        &self,
        caller: &SiteId,
        have: &BTreeMap<RoundId, u32>,
    ) -> Result<Collected, Status> {
        let deadline = Instant::now() + COLLECT_PATIENCE;
        let mut states = self.daemon.states();
        loop {
            let state = states.borrow_and_update().clone();
            let collected = self.outstanding(&state, caller, have);
            if collected != Collected::default() {
                return Ok(collected);
            }
            match timeout_at(deadline, states.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Reason::Stopping.because("the daemon is stopping")),
                Err(_) => return Ok(collected),
            }
        }
    }

    fn outstanding(
        &self,
        state: &SiteState,
        caller: &SiteId,
        have: &BTreeMap<RoundId, u32>,
    ) -> Collected {
        let weights_pass = self.paces.of(caller).open().is_ok();
        let mut collected = Collected::default();
        let mut bytes = 0;
        // Receipts first: an offer may rest on them.
        for effect in state.effects() {
            let Effect::DeliverReceipts { round, to, from } = effect else { continue };
            let told = state.rounds().get(&round).and_then(|r| r.receipts.get(self.daemon.site()));
            if to != *caller || bytes >= COLLECTED_BYTES {
                continue;
            }
            // A caller that lost what it had is told again.
            let has = have.get(&round).copied().unwrap_or(0).min(from.saturating_sub(1));
            let rest = told.into_iter().flatten().skip(has as usize).take(BATCH_MAX);
            let fits = |receipt: &Vec<u8>| {
                let fits = bytes < COLLECTED_BYTES;
                bytes += receipt.len();
                fits
            };
            let receipts = rest.map(Envelope::to_json).take_while(fits).collect();
            collected.batches.push(ReceiptBatch { round: round.as_bytes().to_vec(), receipts });
        }
        for effect in state.effects() {
            let Effect::HandOver { round, visit, to, .. } = effect else { continue };
            if to == *caller
                && weights_pass
                && bytes < COLLECTED_BYTES
                && let Some(offer) = release::offer(state, round, visit)
            {
                bytes += offer.passport.len();
                collected.offers.push(offer);
            }
        }
        collected
    }

    /// Sends chunks of a checkpoint that is to be handed to `caller`, at the pace of that peer.
    pub(super) async fn fetched(
        &self,
        caller: &SiteId,
        request: FetchChunksRequest,
    ) -> Result<ReceiverStream<Result<Chunk, Status>>, Status> {
        let (id, number) = (digest("round", &request.round)?, visit(request.visit)?);
        let state = self.daemon.state();
        let asked = |e: &Effect| {
            matches!(e, Effect::HandOver { round, visit, to, .. }
                if *round == id && *visit == number && to == caller)
        };
        if !state.effects().iter().any(asked) {
            return Err(Reason::NotItsTurn
                .because("no checkpoint of this visit is to be handed from here to there"));
        }
        if request.chunks.len() > CHUNKS_MAX {
            return Err(Reason::TooMany.because(format!("a call may ask for {CHUNKS_MAX} chunks")));
        }
        let pace = self.paces.of(caller);
        pace.open().map_err(|e| Reason::OutOfHours.because(e))?;
        // One reader of a checkpoint for each peer, so that memory stays bounded.
        let claim = claimed(&self.sending, (id, number, caller.clone()))?;
        let (store, policy, to) = (self.store.clone(), self.policy.clone(), caller.clone());
        let work = move || Release::of(&state, &store, &policy, &to, id, number);
        let release = tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Reason::Internal.because(e))?
            .map_err(|e| unreleased(id, number, &e))?;
        let wanted = Wanted { chunks: request.chunks, offset: request.offset };
        let (pieces, problem) = release.send(wanted);
        let (out, chunks) = mpsc::channel(1);
        let (to, contacts) = (caller.clone(), self.greeter.contacts.clone());
        tokio::spawn(async move {
            let _claim = claim;
            let moved = |chunk| {
                contacts.moved(&to);
                Ok(chunk)
            };
            let fed = pace.feed(pieces, out.clone(), moved).await;
            if let Some(e) = problem.get() {
                let _ = timeout(CHUNK_PATIENCE, out.send(Err(unreleased(id, number, e)))).await;
            }
            match fed {
                Ok(()) | Err(Held::Closed) => {}
                Err(e) => {
                    tracing::info!(peer = %to, round = id.short(), visit = number.0, "the transfer ends early: {e}")
                }
            }
        });
        Ok(ReceiverStream::new(chunks))
    }
}

/// Tells the caller no more than that this site has to look, and this site why.
fn unreleased(round: RoundId, visit: VisitNo, e: &dyn std::fmt::Display) -> Status {
    tracing::error!(round = round.short(), visit = visit.0, "cannot hand over: {e}");
    Reason::Damaged.because("the checkpoint cannot be released; its site has to look")
}
