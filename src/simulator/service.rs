//! What peers may ask of a site, as the daemon's peer service answers it.

use super::mutation::Mutation;
use super::network::{Call, Message, PIECES};
use super::site::{Context, Site, Stop};
use crate::envelope::Envelope;
use crate::ids::{Digest, RoundId, VisitNo};
use crate::passport::Passport;
use crate::round::{Event, ReceiptBody, Refusal};

impl Site {
    /// Answers a call of `from`; nothing is answered when the daemon dies over it.
    pub(super) fn serve(
        &mut self,
        cx: &mut Context<'_>,
        from: usize,
        message: &Message,
    ) -> Result<(), Stop> {
        let (call, answer) = match message {
            Message::Receipts { call, round, receipts } => {
                (*call, self.receipts(cx, from, *call, *round, receipts))
            }
            Message::Offer { call, round, visit, passport } => {
                (*call, self.offered(cx, from, *call, *round, *visit, passport))
            }
            Message::Pieces { call, round, visit, pieces } => {
                (*call, self.taken(cx, from, *call, *round, *visit, pieces))
            }
            Message::Collect { call, having } => {
                (*call, self.outstanding_to(cx, from, *call, having))
            }
            Message::Fetch { call, round, visit, pieces } => {
                (*call, self.fetched(cx, from, *call, (*round, *visit), pieces))
            }
            _ => return Ok(()),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(Stop::Full | Stop::Refused(_)) => Message::Refused { call },
            Err(stop) => return Err(stop),
        };
        cx.sent.push((from, answer));
        Ok(())
    }

    pub(super) fn receipts(
        &mut self,
        cx: &mut Context<'_>,
        from: usize,
        call: Call,
        round: RoundId,
        receipts: &[Envelope],
    ) -> Result<Message, Stop> {
        for receipt in receipts {
            match self.adopt(cx, &Event::Receipt { receipt: receipt.clone() }) {
                Ok(()) => {}
                // What was adopted so far counts; the answer tells the peer where to go on.
                Err(Stop::Refused(Refusal::Order { .. } | Refusal::Gap(_))) => break,
                Err(e) => return Err(e),
            }
        }
        let from = cx.observer.id(from).clone();
        let state = self.state().ok_or(Stop::Died)?;
        let told = state.rounds().get(&round).and_then(|r| r.receipts.get(&from));
        let number = u32::try_from(told.map_or(0, Vec::len)).unwrap();
        Ok(Message::Acknowledged { call, number })
    }

    /// Whether `from` may hand the checkpoint of `visit` to this site.
    fn may_hand_over(
        &self,
        cx: &Context<'_>,
        from: usize,
        id: RoundId,
        visit: VisitNo,
    ) -> Result<(), Stop> {
        let state = self.state().ok_or(Stop::Died)?;
        let round = state.rounds().get(&id).ok_or(Stop::Refused(Refusal::UnknownRound(id)))?;
        let allowed = round.approvals.contains_key(&self.id)
            && round.started
            && round.plan.site_of(visit) == Some(cx.observer.id(from))
            && round.recipients(visit).any(|site| *site == self.id);
        if allowed { Ok(()) } else { Err(Stop::Refused(Refusal::Phase("not handed over here"))) }
    }

    pub(super) fn offered(
        &mut self,
        cx: &mut Context<'_>,
        from: usize,
        call: Call,
        id: RoundId,
        visit: VisitNo,
        passport: &Passport,
    ) -> Result<Message, Stop> {
        self.may_hand_over(cx, from, id, visit)?;
        let state = self.state().ok_or(Stop::Died)?;
        let verified =
            passport.verify(state.roster()).map_err(|e| Stop::Refused(Refusal::Hop(e)))?;
        if verified.plan().round() != id || verified.last().visit != visit {
            return Err(Stop::Refused(Refusal::Phase("the passport belongs to another visit")));
        }
        for manifest in &passport.manifests {
            self.adopt(cx, &Event::Manifest { round: id, manifest: manifest.clone() })?;
        }
        self.answer(cx, call, id, visit)
    }

    /// What is still needed of a checkpoint whose manifest is known here.
    fn answer(
        &mut self,
        cx: &mut Context<'_>,
        call: Call,
        id: RoundId,
        visit: VisitNo,
    ) -> Result<Message, Stop> {
        let unknown = || Stop::Refused(Refusal::Phase("offer the checkpoint first"));
        let state = self.state().ok_or(Stop::Died)?;
        let round = state.rounds().get(&id).ok_or_else(unknown)?;
        let weights = round.manifest(visit).ok_or_else(unknown)?.weights.object;
        if let Some(receipt) = round.received_receipt(&self.id, visit, weights) {
            return Ok(Message::Held { call, receipt });
        }
        if self.disk.borrow().checkpoints.contains_key(&weights) {
            let receipt = self.tell(cx, id, ReceiptBody::Received { visit, weights })?;
            return Ok(Message::Held { call, receipt });
        }
        let missing = self.missing(&weights);
        if missing.is_empty() {
            return self.finish(cx, call, id, visit, weights);
        }
        Ok(Message::Wanted { call, pieces: missing })
    }

    fn missing(&self, weights: &Digest) -> Vec<u64> {
        let disk = self.disk.borrow();
        let part = disk.parts.get(weights);
        let here = |piece: &u64| {
            part.is_some_and(|p| p.synced.contains(piece) || p.cached.contains(piece))
        };
        (0..PIECES).filter(|piece| !here(piece)).collect()
    }

    pub(super) fn taken(
        &mut self,
        cx: &mut Context<'_>,
        from: usize,
        call: Call,
        id: RoundId,
        visit: VisitNo,
        pieces: &[u64],
    ) -> Result<Message, Stop> {
        self.may_hand_over(cx, from, id, visit)?;
        let answer = self.answer(cx, call, id, visit)?;
        if !matches!(answer, Message::Wanted { .. }) {
            return Ok(answer);
        }
        let state = self.state().ok_or(Stop::Died)?;
        let manifest = state.rounds().get(&id).and_then(|round| round.manifest(visit));
        let unknown = Stop::Refused(Refusal::Phase("offer the checkpoint first"));
        let weights = manifest.ok_or(unknown)?.weights.object;
        if self.disk.borrow().full {
            return Err(Stop::Full);
        }
        // The connection may break in the middle.
        let broken = cx.troubled && cx.random.chance(200);
        let arrived = if broken { cx.random.below(pieces.len() as u64) } else { u64::MAX };
        let arrived = pieces.iter().take(usize::try_from(arrived).unwrap_or(usize::MAX)).copied();
        self.disk.borrow_mut().parts.entry(weights).or_default().cached.extend(arrived);
        if broken {
            return Ok(Message::Refused { call });
        }
        self.answer(cx, call, id, visit)
    }

    /// Stores what is complete, and only then says so.
    fn finish(
        &mut self,
        cx: &mut Context<'_>,
        call: Call,
        round: RoundId,
        visit: VisitNo,
        weights: Digest,
    ) -> Result<Message, Stop> {
        {
            let mut disk = self.disk.borrow_mut();
            if disk.full {
                return Err(Stop::Full);
            }
            disk.parts.remove(&weights);
            let safe = self.mutation != Some(Mutation::AcknowledgeBeforeSync);
            disk.checkpoints.insert(weights, safe);
        }
        let receipt = self.tell(cx, round, ReceiptBody::Received { visit, weights })?;
        Ok(Message::Held { call, receipt })
    }
}
