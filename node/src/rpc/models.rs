//! Models that leave and enter as files: the same checks, receipts and journal as over the network.

use super::control::{ControlService, PART_BYTES, PARTS_AHEAD, model_view};
use crate::daemon;
use crate::store::{self, Store};
use crate::transfer::Incoming;
use rondo::checkpoint::{self, Layout};
use rondo::envelope::Envelope;
use rondo::ids::{Digest, RoundId, SiteId};
use rondo::papers::{Papers, RECEIPTS_MAX_BYTES, read_receipts, receipts_json};
use rondo::passport::{self, Passport, VerifiedPassport};
use rondo::plan::Plan;
use rondo::round::{Event, Receipt, ReceiptBody, Refusal, Round, SiteState, step};
use rondo::transfer::{self, ChunkTable};
use rondo::trust::PEERS_MAX;
use rondo_proto::control::{ModelPart, ModelView, model_part::Part};
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tonic::{Status, Streaming};

/// What a refusal of papers is to whoever holds them.
fn refused(e: &rondo::papers::Error) -> Status {
    Status::data_loss(format!("[{}] {e}", e.code()))
}

/// One message of an export or import.
fn part(part: Part) -> ModelPart {
    ModelPart { part: Some(part) }
}

/// Weights as a message.
pub(super) fn weights_part(bytes: Vec<u8>) -> ModelPart {
    part(Part::Weights(bytes))
}

/// Receipts of `round` as messages.
pub(super) fn receipt_parts(round: &Round) -> Vec<ModelPart> {
    let json = receipts_json(round.receipts.values().flatten());
    json.chunks(PART_BYTES).map(|c| part(Part::Receipts(c.to_vec()))).collect()
}

impl ControlService {
    /// What precedes the weights of a verified model in the messages of an export, signed by this site.
    pub(super) fn export_head(
        &self,
        passport: &Passport,
        round: RoundId,
        weights: Digest,
    ) -> Result<Vec<ModelPart>, Status> {
        let state = self.daemon.state();
        let papers = papers(&state, round, passport)?
            .sign(weights, &self.greeter.own.now().signing)
            .map_err(|e| Status::internal(e.to_string()))?;
        let mut parts = vec![part(Part::Passport(papers.passport))];
        parts.extend(papers.receipts.chunks(PART_BYTES).map(|c| part(Part::Receipts(c.to_vec()))));
        parts.extend(papers.cards.into_iter().map(|card| part(Part::Cards(card))));
        parts.push(part(Part::Signature(papers.signature)));
        Ok(parts)
    }

    /// Takes a model in, or receipts alone, as if it had come over the network: what belongs to a round
    /// of this site is adopted and acknowledged there, any other model is kept for a later plan.
    pub(super) async fn import(
        &self,
        mut parts: Streaming<ModelPart>,
    ) -> Result<ModelView, Status> {
        let (papers, first) = take_papers(&mut parts).await?;
        let own = self.daemon.site();
        if papers.passport.is_empty() {
            let receipts = read_receipts(&papers.receipts).map_err(|e| refused(&e))?;
            let round = named_round(&receipts)?;
            self.adopt_receipts(round, receipts).await?;
            return Ok(ModelView { round: round.to_string(), ..ModelView::default() });
        }
        let verified = papers.verify(self.daemon.state().roster()).map_err(|e| refused(&e))?;
        let passport = Passport::from_json(&papers.passport).map_err(|e| refused(&e.into()))?;
        let id = verified.plan().round();
        if verified.plan().sites.contains(own) {
            let receipts = read_receipts(&papers.receipts).map_err(|e| refused(&e))?;
            self.adopt_receipts(id, receipts).await?;
        }
        let state = self.daemon.state();
        let ours = state.rounds().get(&id).filter(|r| r.approvals.contains_key(own));
        if let Some(round) = ours {
            if !round.started {
                let text = "this site has not heard of the round's start; import the receipts of the site that started it first";
                return Err(Status::failed_precondition(text));
            }
            for receipt in passport.passes {
                self.daemon.adopt(Event::Passed { receipt }).await?;
            }
            for manifest in passport.manifests {
                self.daemon.adopt(Event::Manifest { round: id, manifest }).await?;
            }
            self.take_weights(&verified, first, &mut parts, true).await?;
            self.acknowledge(id, &verified).await?;
        } else {
            let event = Event::ModelImported { passport };
            // Whether there is room for it is known before anything is stored.
            step(&state, &event).map_err(daemon::Error::from)?;
            self.take_weights(&verified, first, &mut parts, false).await?;
            self.daemon.adopt(event).await?;
        }
        let weights = verified.weights();
        tracing::info!(round = id.short(), weights = %weights.short(), "model imported from a file");
        Ok(model_view(weights, &verified))
    }

    /// Tells the round that this site has the checkpoint, if it is one of those that wait for it.
    async fn acknowledge(&self, id: RoundId, verified: &VerifiedPassport) -> Result<(), Status> {
        let (own, visit, weights) = (self.daemon.site(), verified.last().visit, verified.weights());
        let state = self.daemon.state();
        let waits = state.rounds().get(&id).is_some_and(|round| {
            round.recipients(visit).any(|site| site == own)
                && round.received_receipt(own, visit, weights).is_none()
        });
        if waits {
            self.daemon.tell(id, ReceiptBody::Received { visit, weights }).await?;
        }
        Ok(())
    }

    /// Adopts the receipts of other sites. Those of one site come in the order of their numbers, those
    /// of different sites as they build on each other, so what must wait is tried again.
    async fn adopt_receipts(&self, id: RoundId, receipts: Vec<Envelope>) -> Result<(), Status> {
        let invalid = |text: String| Status::invalid_argument(text);
        let mut waiting: BTreeMap<SiteId, VecDeque<(u32, Envelope)>> = BTreeMap::new();
        for receipt in receipts {
            let claimed = Receipt::unverified(&receipt).map_err(|e| invalid(e.to_string()))?;
            if claimed.round != id {
                return Err(invalid("the receipts belong to several rounds".to_owned()));
            }
            // What this site said stands in its own journal.
            if claimed.site != *self.daemon.site() {
                waiting.entry(claimed.site).or_default().push_back((claimed.number, receipt));
            }
        }
        for queue in waiting.values_mut() {
            queue.make_contiguous().sort_by_key(|(number, _)| *number);
        }
        loop {
            let mut adopted = false;
            let mut obstacle = None;
            for queue in waiting.values_mut() {
                while let Some((_, receipt)) = queue.front() {
                    match self.daemon.adopt(Event::Receipt { receipt: receipt.clone() }).await {
                        Ok(()) => {
                            queue.pop_front();
                            adopted = true;
                        }
                        Err(daemon::Error::Refused(
                            e
                            @ (Refusal::Gap(_) | Refusal::UnknownRound(_) | Refusal::Order { .. }),
                        )) => {
                            obstacle = Some(e);
                            break;
                        }
                        Err(e) => return Err(e.into()),
                    }
                }
            }
            match obstacle {
                None => return Ok(()),
                Some(e) if !adopted => return Err(daemon::Error::Refused(e).into()),
                Some(_) => {}
            }
        }
    }

    /// Stores the weights that follow, each chunk verified on arrival; what is here already stays. What
    /// is here of an attempt that fails stays if it is to be `kept`.
    async fn take_weights(
        &self,
        verified: &VerifiedPassport,
        first: Vec<u8>,
        parts: &mut Streaming<ModelPart>,
        kept: bool,
    ) -> Result<(), Status> {
        let (out, inbox) = mpsc::channel(PARTS_AHEAD);
        let (store, table) = (self.store.clone(), verified.last().weights.clone());
        let layout = verified.layout();
        let work = spawn_blocking(move || store_weights(&store, table, layout, inbox, kept));
        let forward = async move {
            let mut next = Some(first);
            while let Some(bytes) = next {
                // Why they are no longer wanted is said in the end.
                if out.send(bytes).await.is_err() {
                    break;
                }
                next = match parts.message().await?.and_then(|p| p.part) {
                    Some(Part::Weights(bytes)) => Some(bytes),
                    Some(_) => return Err(disorder()),
                    None => None,
                };
            }
            Ok(())
        };
        let forwarded = forward.await;
        let stored = work.await.map_err(|e| Status::internal(e.to_string()))?;
        forwarded.and(stored)
    }
}

/// Stores the weights that come out of `inbox`. They are verified also where they are here already: the
/// file is what somebody wants to know about.
fn store_weights(
    store: &Store,
    table: ChunkTable,
    layout: Layout,
    inbox: mpsc::Receiver<Vec<u8>>,
    kept: bool,
) -> Result<(), Status> {
    let whole = store.find(table.object).is_ok_and(|s| s.check(&table, &layout).is_ok());
    if whole {
        return take_chunks(&table, None, inbox);
    }
    let mut incoming = store.receive(table.clone(), layout)?;
    if let Err(e) = take_chunks(&table, Some(&mut incoming), inbox) {
        if !kept && let Err(e) = incoming.abandon() {
            tracing::warn!("removing what was imported: {e}");
        }
        return Err(e);
    }
    match incoming.finish().map_err(unstored)? {
        Ok(_) => Ok(()),
        Err(_) => Err(Status::data_loss(
            "what was received before lies damaged on this disk; import the model again",
        )),
    }
}

/// Cuts what comes out of `inbox` into chunks, and has each stored that is verified and still missing.
fn take_chunks(
    table: &ChunkTable,
    mut incoming: Option<&mut Incoming>,
    mut inbox: mpsc::Receiver<Vec<u8>>,
) -> Result<(), Status> {
    let damaged = |e| refused(&passport::Error::Weights(e).into());
    let missing = incoming.as_ref().map(|incoming| incoming.missing()).unwrap_or_default();
    let (mut index, mut held) = (0_u32, Vec::new());
    while let Some(bytes) = inbox.blocking_recv() {
        held.extend_from_slice(&bytes);
        while let Ok(range) = table.range(u64::from(index)) {
            let size = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            if held.len() < size {
                break;
            }
            let rest = held.split_off(size);
            let chunk = std::mem::replace(&mut held, rest);
            table.verify_chunk(u64::from(index), &chunk).map_err(damaged)?;
            if let Some(incoming) = &mut incoming
                && missing.binary_search(&index).is_ok()
            {
                incoming.accept(index, 0, &chunk).map_err(unstored)?;
            }
            index += 1;
        }
        if table.range(u64::from(index)).is_err() && !held.is_empty() {
            let (expected, found) = (table.bytes, table.bytes + held.len() as u64);
            let length = checkpoint::Error::Length { expected, found };
            return Err(refused(&passport::Error::from(length).into()));
        }
    }
    if table.range(u64::from(index)).is_ok() {
        let (checkpoint, index) = (table.object, index as usize);
        return Err(damaged(transfer::Error::Chunk { checkpoint, index }));
    }
    Ok(())
}

/// What kept weights from being stored; what is no model is refused as papers are.
fn unstored(e: store::Error) -> Status {
    match e {
        store::Error::Checkpoint(e) => refused(&passport::Error::from(e).into()),
        e => e.into(),
    }
}

fn disorder() -> Status {
    Status::invalid_argument("the parts of the model come in another order than they should")
}

/// The papers at the head of an import, and the first bytes of the weights.
async fn take_papers(parts: &mut Streaming<ModelPart>) -> Result<(Papers, Vec<u8>), Status> {
    let mut papers = Papers::default();
    while let Some(message) = parts.message().await? {
        match message.part {
            Some(Part::Passport(bytes)) if papers == Papers::default() => papers.passport = bytes,
            Some(Part::Receipts(bytes))
                if papers.receipts.len() + bytes.len() <= RECEIPTS_MAX_BYTES =>
            {
                papers.receipts.extend_from_slice(&bytes);
            }
            Some(Part::Cards(card)) if papers.cards.len() < PEERS_MAX => papers.cards.push(card),
            Some(Part::Signature(bytes)) if papers.signature.is_empty() => {
                papers.signature = bytes;
            }
            Some(Part::Weights(bytes)) if !papers.passport.is_empty() => {
                return Ok((papers, bytes));
            }
            _ => return Err(disorder()),
        }
    }
    if papers.passport.is_empty() { Ok((papers, Vec::new())) } else { Err(disorder()) }
}

/// The round that receipts tell of, by the first of them.
fn named_round(receipts: &[Envelope]) -> Result<RoundId, Status> {
    let first = receipts.first().ok_or_else(|| Status::invalid_argument("there is no receipt"))?;
    let first = Receipt::unverified(first).map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(first.round)
}

/// What travels with a model, still without its signature.
fn papers(state: &SiteState, round: RoundId, passport: &Passport) -> Result<Papers, Status> {
    let plan = Plan::from_canonical(passport.plan.as_bytes())
        .map_err(|e| refused(&passport::Error::from(e).into()))?;
    let mut sites = plan.sites;
    sites.sort();
    let card = |site| {
        let peer = state.roster().peers().find(|(known, _)| *known == site);
        peer.map(|(_, peer)| peer.signed.to_json())
    };
    let cards = sites.iter().filter_map(card).collect();
    let known = state.rounds().get(&round);
    let receipts = receipts_json(known.iter().flat_map(|r| r.receipts.values().flatten()));
    Ok(Papers { passport: passport.to_json(), receipts, cards, signature: Vec::new() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo::checkpoint::Extras;
    use rondo::recipe::Architecture;

    #[test]
    fn weights_are_verified_also_if_they_are_here_and_an_attempt_leaves_what_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let narrow = Architecture { n1: 20, n2: 24, n3: 28, m: 40 };
        let layout = Layout::new(&narrow, Extras::NONE);
        let mut object = layout.header().to_vec();
        object.resize(usize::try_from(layout.len()).unwrap(), 1);
        let table = ChunkTable::of(&object);
        let import = |bytes: &[u8], kept| {
            let (out, inbox) = mpsc::channel(1000);
            for part in bytes.chunks(PART_BYTES - 7) {
                out.try_send(part.to_vec()).unwrap();
            }
            drop(out);
            store_weights(&store, table.clone(), layout.clone(), inbox, kept)
        };
        let here = || std::fs::read_dir(folder.path().join("incoming")).unwrap().count();
        let half = &object[..object.len() / 2];
        let mut bad = object.clone();
        bad[300_000] ^= 1;
        for wrong in [half, &bad, &[&object[..], b"after the end"].concat()] {
            assert_eq!(import(wrong, false).unwrap_err().code(), tonic::Code::DataLoss);
            assert_eq!(here(), 0, "nobody would go on with it");
        }
        import(half, true).unwrap_err();
        assert_eq!(here(), 1);
        import(&object, false).unwrap();
        assert_eq!((here(), store.get(table.object).unwrap() == object), (0, true));
        for wrong in [half, &bad, &[&object[..], b"after the end"].concat()] {
            assert_eq!(import(wrong, false).unwrap_err().code(), tonic::Code::DataLoss);
        }
        import(&object, false).unwrap();
        assert_eq!(store.get(table.object).unwrap(), object);
    }
}
