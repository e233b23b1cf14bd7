//! What a site does by itself: one worker for each outstanding effect, as the daemon keeps them.

use super::mutation::Mutation;
use super::network::{Call, Message};
use super::site::{Context, Site, Stop};
use super::world::Happening;
use crate::envelope::Envelope;
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::manifest::{Counts, Manifest, Validation};
use crate::round::{Effect, Event, ReceiptBody, SiteState, StallReason, Work};
use crate::transfer::{CHUNK_MIN_BYTES, ChunkTable};
use std::collections::BTreeMap;
use std::rc::Rc;

pub(super) const RETRY_MIN: u64 = 250;
const RETRY_MAX: u64 = 30_000;
pub(super) const ANSWER_TIMEOUT: u64 = 60_000;
/// Failures of a visit before all sites are told that it stalls.
const STALL_AFTER: u32 = 3;
/// Receipts in one message; small, so that histories take several.
pub(super) const BATCH_MAX: usize = 4;
/// The trainer saves its progress so many times in a visit.
const SAVES: u64 = 4;

/// What a worker does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Calling,
    Pausing,
    /// Done, but the state still asks for the same.
    Waiting,
    /// The trainer works on another visit.
    Queued,
    Training {
        since: u64,
        fails: bool,
    },
}

#[derive(Debug)]
pub(super) struct Worker {
    effect: Effect,
    phase: Phase,
    /// Names what it waits for; whatever else comes is late.
    turn: u64,
    failures: u32,
    /// Pieces that the receiver of a hand-over still wanted when it was asked last.
    missing: u64,
}

#[derive(Debug, Default)]
pub(super) struct Workers {
    all: BTreeMap<Work, Worker>,
    turns: u64,
    /// Who has the trainer.
    trainer: Option<Work>,
}

impl Workers {
    pub(super) fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }
}

/// What training `visit` from `parent` gives: the same whenever it is done.
fn trained(round: RoundId, visit: VisitNo, parent: Option<Digest>) -> Digest {
    Digest::of(format!("{round} {visit} {parent:?}").as_bytes())
}

impl Site {
    pub(super) fn workers(&mut self) -> Result<&mut Workers, Stop> {
        self.daemon.as_mut().map(|d| &mut d.workers).ok_or(Stop::Died)
    }

    pub(super) fn live(&self) -> Result<&SiteState, Stop> {
        self.state().map(|state| &**state).ok_or(Stop::Died)
    }

    fn outstanding(&self) -> Result<BTreeMap<Work, Effect>, Stop> {
        let state = self.live()?;
        let mut all = state.effects();
        if self.mutation == Some(Mutation::TrainAgain) {
            for (id, round) in state.rounds() {
                let own = |n| round.plan.site_of(n) == Some(&self.id);
                let begun = round.visits.iter().filter(|v| v.training && own(v.number));
                all.extend(begun.filter_map(|v| {
                    let received = v.contribution.as_ref()?.0.parent;
                    Some(Effect::Train { round: *id, visit: v.number, received })
                }));
            }
        }
        Ok(all.into_iter().map(|effect| (effect.work(), effect)).collect())
    }

    /// Ends workers that nothing asks for any more, and begins those that are asked for now.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let outstanding = self.outstanding()?;
        let (site, boot) = (self.index, self.boot);
        let workers = self.workers()?;
        workers.all.retain(|work, _| outstanding.contains_key(work));
        let freed = workers.trainer.as_ref().is_some_and(|work| !outstanding.contains_key(work));
        for (work, effect) in outstanding {
            if !workers.all.contains_key(&work) {
                let turn = workers.next_turn();
                let phase = Phase::Pausing;
                let worker = Worker { effect, phase, turn, failures: 0, missing: u64::MAX };
                workers.all.insert(work, worker);
                cx.later.push((cx.now, Happening::Wake { site, boot, turn }));
            }
        }
        if freed {
            self.free_trainer(cx)?;
        }
        Ok(())
    }

    /// The state changed: who waits for word looks again.
    pub(super) fn changed(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let (site, boot) = (self.index, self.boot);
        for worker in self.workers()?.all.values().filter(|w| w.phase == Phase::Waiting) {
            cx.later.push((cx.now, Happening::Wake { site, boot, turn: worker.turn }));
        }
        Ok(())
    }

    fn free_trainer(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        cx.observer.stops_training(self.index);
        let (site, boot) = (self.index, self.boot);
        let workers = self.workers()?;
        workers.trainer = None;
        for worker in workers.all.values().filter(|w| w.phase == Phase::Queued) {
            cx.later.push((cx.now, Happening::Wake { site, boot, turn: worker.turn }));
        }
        Ok(())
    }

    /// A worker's time has come: a pause is over, an answer is late, a training is done.
    pub(super) fn wake(&mut self, cx: &mut Context<'_>, turn: u64) -> Result<(), Stop> {
        let all = &self.workers()?.all;
        let Some((work, worker)) = all.iter().find(|(_, w)| w.turn == turn) else { return Ok(()) };
        let (work, phase) = (work.clone(), worker.phase);
        match phase {
            Phase::Calling => self.ended(cx, &work, false),
            Phase::Pausing | Phase::Waiting | Phase::Queued => self.attempt(cx, &work),
            Phase::Training { fails, .. } => self.training_ended(cx, &work, fails),
        }
    }

    /// Puts `work` into `phase`, of which it hears again after `pause` at the latest.
    fn enter(
        &mut self,
        cx: &mut Context<'_>,
        work: &Work,
        phase: Phase,
        pause: Option<u64>,
    ) -> Result<u64, Stop> {
        let (site, boot) = (self.index, self.boot);
        let workers = self.workers()?;
        let turn = workers.next_turn();
        if let Some(worker) = workers.all.get_mut(work) {
            worker.phase = phase;
            worker.turn = turn;
        }
        if let Some(pause) = pause {
            cx.later.push((cx.now + pause, Happening::Wake { site, boot, turn }));
        }
        Ok(turn)
    }

    /// An attempt ended.
    fn ended(&mut self, cx: &mut Context<'_>, work: &Work, done: bool) -> Result<(), Stop> {
        let next = self.outstanding()?.remove(work);
        let Some(worker) = self.workers()?.all.get_mut(work) else { return Ok(()) };
        if !done {
            worker.failures = worker.failures.saturating_add(1);
            let pause = RETRY_MAX.min(RETRY_MIN * 2_u64.saturating_pow(worker.failures.min(16)));
            return self.enter(cx, work, Phase::Pausing, Some(pause)).map(drop);
        }
        worker.failures = 0;
        match next {
            Some(same) if same == worker.effect => {
                self.enter(cx, work, Phase::Waiting, Some(RETRY_MAX)).map(drop)
            }
            Some(_) => self.attempt(cx, work),
            None => Ok(()),
        }
    }

    fn attempt(&mut self, cx: &mut Context<'_>, work: &Work) -> Result<(), Stop> {
        let Some(effect) = self.outstanding()?.remove(work) else { return Ok(()) };
        if let Some(worker) = self.workers()?.all.get_mut(work) {
            worker.effect = effect.clone();
        }
        match effect {
            Effect::DeliverReceipts { round, to, from } => self.deliver(cx, work, round, &to, from),
            Effect::HandOver { round, visit, weights, to } => {
                self.hand_over(cx, work, round, visit, weights, &to)
            }
            Effect::Train { round, visit, received } => {
                self.train(cx, work, round, visit, received)
            }
            // Plans of the simulator wait for an absent site.
            Effect::Expire { .. } => {
                self.enter(cx, work, Phase::Waiting, Some(RETRY_MAX)).map(drop)
            }
        }
    }

    fn call(
        &mut self,
        cx: &mut Context<'_>,
        work: &Work,
        to: &SiteId,
        message: impl FnOnce(Call) -> Message,
    ) -> Result<(), Stop> {
        let turn = self.enter(cx, work, Phase::Calling, Some(ANSWER_TIMEOUT))?;
        let call = Call { boot: self.boot, turn };
        cx.sent.push((cx.sites[to], message(call)));
        Ok(())
    }

    fn deliver(
        &mut self,
        cx: &mut Context<'_>,
        work: &Work,
        round: RoundId,
        to: &SiteId,
        from: u32,
    ) -> Result<(), Stop> {
        if cx.collects == Some(cx.sites[to]) {
            return self.ended(cx, work, false);
        }
        let told = self.live()?.rounds().get(&round).and_then(|r| r.receipts.get(&self.id));
        let skip = from.saturating_sub(1) as usize;
        let receipts: Vec<Envelope> =
            told.into_iter().flatten().skip(skip).take(BATCH_MAX).cloned().collect();
        self.call(cx, work, to, |call| Message::Receipts { call, round, receipts })
    }

    fn hand_over(
        &mut self,
        cx: &mut Context<'_>,
        work: &Work,
        round: RoundId,
        visit: VisitNo,
        weights: Digest,
        to: &SiteId,
    ) -> Result<(), Stop> {
        let here = self.disk.borrow().checkpoints.contains_key(&weights);
        let passport = self.live()?.rounds().get(&round).and_then(|r| r.passport(visit));
        let here = here && cx.collects != Some(cx.sites[to]);
        let Some(passport) = passport.filter(|_| here).map(Rc::new) else {
            return self.ended(cx, work, false);
        };
        self.call(cx, work, to, |call| Message::Offer { call, round, visit, passport })
    }

    /// An answer of `from` came; whatever is not waited for any more came too late.
    pub(super) fn hears(
        &mut self,
        cx: &mut Context<'_>,
        from: usize,
        call: Call,
        answer: &Message,
    ) -> Result<(), Stop> {
        if call.boot != self.boot {
            return Ok(());
        }
        if self.is_waited_for(from, call.turn) {
            return self.collected(cx, from, call, answer);
        }
        self.answered(cx, call, answer)
    }

    /// The answer to a call of a worker.
    fn answered(&mut self, cx: &mut Context<'_>, call: Call, answer: &Message) -> Result<(), Stop> {
        let all = &mut self.workers()?.all;
        let waits = |w: &Worker| w.turn == call.turn && w.phase == Phase::Calling;
        let Some((work, worker)) = all.iter_mut().find(|(_, w)| waits(w)) else { return Ok(()) };
        let work = work.clone();
        let done = match (answer, worker.effect.clone()) {
            (Message::Acknowledged { number, .. }, Effect::DeliverReceipts { round, to, from }) => {
                if number + 1 < from {
                    return self.deliver(cx, &work, round, &to, number + 1);
                }
                let event = Event::Delivered { round, to, number: *number };
                self.happens(cx, &event)? && *number >= from
            }
            (Message::Wanted { pieces, .. }, Effect::HandOver { round, visit, to, .. }) => {
                if (pieces.len() as u64) < worker.missing {
                    worker.failures = 0;
                }
                worker.missing = pieces.len() as u64;
                let pieces = pieces.clone();
                let message = |call| Message::Pieces { call, round, visit, pieces };
                return self.call(cx, &work, &to, message);
            }
            (Message::Held { receipt, .. }, Effect::HandOver { .. }) => {
                // If receipts before this one have not arrived yet, it comes again with them.
                self.happens(cx, &Event::Receipt { receipt: receipt.clone() })?;
                true
            }
            _ => false,
        };
        self.ended(cx, &work, done)
    }

    /// Whether `event` could be adopted; only death and violations end the handling of what happened.
    fn happens(&mut self, cx: &mut Context<'_>, event: &Event) -> Result<bool, Stop> {
        match self.adopt(cx, event) {
            Ok(()) => Ok(true),
            Err(Stop::Full | Stop::Refused(_)) => Ok(false),
            Err(stop) => Err(stop),
        }
    }

    fn says(
        &mut self,
        cx: &mut Context<'_>,
        round: RoundId,
        body: ReceiptBody,
    ) -> Result<bool, Stop> {
        match self.tell(cx, round, body) {
            Ok(_) => Ok(true),
            Err(Stop::Full | Stop::Refused(_)) => Ok(false),
            Err(stop) => Err(stop),
        }
    }

    fn train(
        &mut self,
        cx: &mut Context<'_>,
        work: &Work,
        round: RoundId,
        visit: VisitNo,
        received: Option<Digest>,
    ) -> Result<(), Stop> {
        let workers = self.workers()?;
        if workers.trainer.as_ref().is_some_and(|other| other != work) {
            return self.enter(cx, work, Phase::Queued, None).map(drop);
        }
        workers.trainer = Some(work.clone());
        let known = self.live()?.rounds().get(&round).and_then(|r| r.visit(visit));
        let begun = known.is_some_and(|visit| visit.training);
        let here = received.is_none_or(|d| self.disk.borrow().checkpoints.contains_key(&d));
        if !here || !begun && !self.says(cx, round, ReceiptBody::Training { visit })? {
            self.free_trainer(cx)?;
            return self.failed(cx, work, round, visit, StallReason::Storage);
        }
        cx.observer.trains(self.index, round, visit)?;
        let whole = self.training;
        let left = *self.progress.entry((round, visit)).or_insert(whole);
        let fails = cx.troubled && cx.random.chance(100);
        let pause = if fails { cx.random.below(left) } else { left };
        let phase = Phase::Training { since: cx.now, fails };
        self.enter(cx, work, phase, Some(pause)).map(drop)
    }

    /// The trainer is stopped in the middle; what it saved shortens the next attempt.
    pub(super) fn save_progress(&mut self, now: u64) {
        let Some(daemon) = &self.daemon else { return };
        let save = self.training / SAVES;
        for (work, worker) in &daemon.workers.all {
            if let (Work::Train(round, visit, _), Phase::Training { since, .. }) =
                (work, worker.phase)
                && let Some(left) = self.progress.get_mut(&(*round, *visit))
            {
                let done = (self.training - *left + now - since) / save.max(1) * save;
                *left = self.training.saturating_sub(done);
            }
        }
    }

    fn training_ended(
        &mut self,
        cx: &mut Context<'_>,
        work: &Work,
        fails: bool,
    ) -> Result<(), Stop> {
        let effect = self.workers()?.all.get(work).map(|worker| worker.effect.clone());
        let Some(Effect::Train { round, visit, received }) = effect else { return Ok(()) };
        self.save_progress(cx.now);
        self.free_trainer(cx)?;
        if fails {
            return self.failed(cx, work, round, visit, StallReason::TrainerFailed);
        }
        if self.disk.borrow().full || !self.contribute(cx, round, visit, received)? {
            return self.failed(cx, work, round, visit, StallReason::Storage);
        }
        if self.mutation == Some(Mutation::ContributeAgain) {
            let report =
                Happening::Report { site: self.index, boot: self.boot, round, visit, received };
            cx.later.push((cx.now + cx.random.below(5_000), report));
        }
        self.ended(cx, work, true)
    }

    pub(super) fn contribute(
        &mut self,
        cx: &mut Context<'_>,
        round: RoundId,
        visit: VisitNo,
        parent: Option<Digest>,
    ) -> Result<bool, Stop> {
        let Some(known) = self.live()?.rounds().get(&round) else { return Ok(false) };
        let (plan, object) = (&known.plan, trained(round, visit, parent));
        let bytes = plan.layout().len();
        let chunks = vec![object; usize::try_from(bytes.div_ceil(CHUNK_MIN_BYTES)).unwrap()];
        let weights = ChunkTable { object, bytes, chunk_bytes: CHUNK_MIN_BYTES, chunks };
        let manifest = Manifest {
            round,
            cycle: plan.cycle_of(visit),
            visit,
            site: self.id.clone(),
            parent,
            weights,
            architecture: plan.recipe.architecture,
            recipe: plan.recipe_digest(),
            software: "rondo simulator".to_owned(),
            counts: Counts::default(),
            validation: Validation::default(),
            filters: Vec::new(),
            signed_at: self.clock + cx.now / 1000,
        };
        let manifest = manifest.sign(&self.key).unwrap();
        self.disk.borrow_mut().checkpoints.insert(object, true);
        self.says(cx, round, ReceiptBody::Contributed { manifest })
    }

    fn failed(
        &mut self,
        cx: &mut Context<'_>,
        work: &Work,
        round: RoundId,
        visit: VisitNo,
        reason: StallReason,
    ) -> Result<(), Stop> {
        let failures = self.workers()?.all.get(work).map_or(0, |worker| worker.failures);
        let known = self.live()?.rounds().get(&round).and_then(|r| r.visit(visit));
        let told = known.is_none_or(|visit| visit.stalled == Some(reason));
        if failures + 1 >= STALL_AFTER && !told {
            self.says(cx, round, ReceiptBody::Stalled { visit, reason })?;
        }
        self.ended(cx, work, false)
    }
}
