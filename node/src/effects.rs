//! Carrying out what the state asks for. Effects are levels, not edges: each worker looks at the state
//! again and again, and ends when the state no longer asks for its work.

use crate::audit::Audit;
use crate::contacts::{self, Client, Contacts, connect};
use crate::daemon::{self, Daemon, unix_now};
use crate::identity::Own;
use crate::ledger::Egress;
use crate::outbound::{Outbound, Ready};
use crate::pace::{Held as Waits, Paces, last_patience};
use crate::release::Release;
use crate::rpc::peer::{BATCH_BYTES, BATCH_MAX};
use crate::store::Store;
use crate::trainer::{Assignment, Failure, Trained, TrainerHub};
use rondo::envelope::Envelope;
use rondo::ids::{Digest, RoundId, SiteId, VisitNo};
use rondo::manifest::Manifest;
use rondo::plan::{AbsentPolicy, Plan};
use rondo::round::{Effect, Event, ReceiptBody, RefusalReason, StallReason, Work};
use rondo_proto::peer::{OfferAnswer, ReceiptBatch, offer_answer::Answer};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

/// First pause after a failure; it doubles up to [`RETRY_MAX`].
pub const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause after a failure. An effect is never given up: a peer may be away for days.
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// Pause after a failure that the same cases and the same seed will give again.
const HOPELESS_PAUSE: Duration = Duration::from_secs(600);
/// Failures of a visit before all sites are told that it stalls.
const STALL_AFTER: u32 = 3;
/// After its start a daemon gives an absent site this long at least, if the plan has as much: it knows
/// of no progress from before.
const EXPIRE_GRACE: Duration = Duration::from_secs(600);
/// An answer to a single message must come within this time; transfers have no such limit.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What every worker needs.
#[derive(Clone)]
pub struct Workers {
    /// The state.
    pub daemon: Daemon,
    /// Keys for calling peers and signing manifests.
    pub own: Own,
    /// Checkpoints.
    pub store: Store,
    /// The trainer.
    pub hub: TrainerHub,
    /// How calls went.
    pub contacts: Contacts,
    /// How fast and when weights may flow.
    pub paces: Paces,
    /// Counts what is sent.
    pub egress: Egress,
    /// When the daemon started.
    pub since: Instant,
    /// What leaves only when the site's policy and operator let it.
    pub outbound: Outbound,
    /// Where it is written down who did what.
    pub audit: Audit,
}

/// How an attempt at an effect went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    /// It will fail again until something else changes.
    Hopeless,
}

impl From<bool> for Outcome {
    fn from(done: bool) -> Self {
        if done { Self::Done } else { Self::Failed }
    }
}

impl Workers {
    /// Keeps one worker for every outstanding effect, until dropped or the daemon stops.
    pub async fn run(self) {
        let mut states = self.daemon.states();
        let mut workers: BTreeMap<Work, Worker> = BTreeMap::new();
        let (ended, mut endings) = mpsc::unbounded_channel();
        let mut generation = 0_u64;
        loop {
            let effects = states.borrow_and_update().effects();
            let outstanding: BTreeMap<Work, Effect> =
                effects.into_iter().map(|e| (e.work(), e)).collect();
            workers.retain(|key, _| outstanding.contains_key(key));
            for (key, effect) in outstanding {
                workers.entry(key.clone()).or_insert_with(|| {
                    generation += 1;
                    let ending = Ending { key, generation, ended: ended.clone() };
                    let this = self.clone();
                    let task = tokio::spawn(async move {
                        let _ending = ending;
                        this.work(effect).await;
                    });
                    Worker { generation, task }
                });
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { break },
                // A worker that ended may have been asked for again in the same moment.
                Some((key, generation)) = endings.recv() => {
                    if workers.get(&key).is_some_and(|w| w.generation == generation) {
                        workers.remove(&key);
                    }
                }
            }
        }
    }

    /// Works on an effect until the state no longer asks for it.
    async fn work(self, mut effect: Effect) {
        let id = effect.work();
        let mut failures = 0_u32;
        // What the receiver of a hand-over still wanted when it was asked last.
        let mut missing = u64::MAX;
        loop {
            let before = missing;
            let mut releases = self.outbound.releases();
            let outcome = match &effect {
                Effect::DeliverReceipts { round, to, from } => {
                    self.deliver(*round, to, *from).await.into()
                }
                Effect::HandOver { round, visit, to, .. } => {
                    self.hand_over(*round, *visit, to, &mut missing).await.into()
                }
                Effect::Train { round, visit, received } => {
                    self.train(*round, *visit, *received, failures).await
                }
                Effect::Expire { round, visit, at } => {
                    self.expire(*round, *visit, *at).await.into()
                }
            };
            // A link that breaks again and again but brings something over is no dead one.
            let progress = outcome == Outcome::Done || missing < before;
            failures = if progress { 0 } else { failures.saturating_add(1) };
            let pause = match outcome {
                Outcome::Hopeless => HOPELESS_PAUSE,
                _ => RETRY_MAX.min(RETRY_MIN * 2_u32.saturating_pow(failures.min(16))),
            };
            let mut states = self.daemon.states();
            if outcome != Outcome::Done {
                // A trainer that comes back may have other cases now.
                let waited = self.hub.changes();
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = waited, if outcome == Outcome::Hopeless => {}
                    _ = releases.changed(), if outcome == Outcome::Hopeless => {}
                }
            }
            let outcome = outcome == Outcome::Done;
            let next = states.borrow_and_update().effects().into_iter().find(|e| e.work() == id);
            match next {
                // Done, but not told yet: wait for word instead of asking again and again.
                Some(same) if outcome && same == effect => {
                    let _ = tokio::time::timeout(RETRY_MAX, states.changed()).await;
                    effect = same;
                }
                Some(next) => effect = next,
                None => return,
            }
        }
    }

    /// Notes how a call to `site` went; a new kind of failure is logged once.
    fn noted<T>(&self, site: &SiteId, outcome: Result<T, contacts::Error>) -> Option<T> {
        if self.contacts.note(site, &outcome)
            && let Err(e) = &outcome
        {
            tracing::warn!(peer = %site, "{e}; trying again");
        }
        outcome.ok()
    }

    /// Whether `to` has to collect what is for it, because its card names no endpoint.
    fn collects(&self, to: &SiteId) -> bool {
        self.daemon.state().roster().trusted(to).is_ok_and(|card| card.endpoints.is_empty())
    }

    async fn deliver(&self, round: RoundId, to: &SiteId, from: u32) -> bool {
        if self.collects(to) {
            return false;
        }
        let mut from = from;
        loop {
            let state = self.daemon.state();
            let told = state.rounds().get(&round).and_then(|r| r.receipts.get(self.daemon.site()));
            let skip = from.saturating_sub(1) as usize;
            let mut bytes = 0;
            let fits = |receipt: &Vec<u8>| {
                let fits = bytes < BATCH_BYTES;
                bytes += receipt.len();
                fits
            };
            let rest = told.into_iter().flatten().skip(skip).take(BATCH_MAX);
            let batch = rest.map(Envelope::to_json).take_while(fits);
            let batch =
                ReceiptBatch { round: round.as_bytes().to_vec(), receipts: batch.collect() };
            let outcome = async {
                let mut peer = connect(&self.own.now(), &self.daemon, &self.egress, to).await?;
                let answer = call(to, peer.deliver_receipts(batch)).await?;
                Ok(answer.number)
            };
            let Some(number) = self.noted(to, outcome.await) else { return false };
            if number.saturating_add(1) < from {
                // The peer lost what it had, perhaps with its disk: it is told again.
                from = number + 1;
                continue;
            }
            let event = Event::Delivered { round, to: to.clone(), number };
            return match self.daemon.adopt(event).await {
                // A peer that is not further than before is asked again after a pause.
                Ok(()) => number >= from,
                Err(e) => {
                    tracing::warn!(peer = %to, "recording a delivery: {e}");
                    false
                }
            };
        }
    }

    async fn hand_over(
        &self,
        round: RoundId,
        visit: VisitNo,
        to: &SiteId,
        missing: &mut u64,
    ) -> bool {
        if self.collects(to) || self.paces.of(to).open().is_err() {
            return false;
        }
        let policy = self.outbound.policy();
        let release = match Release::of(&self.daemon.state(), &self.store, policy, to, round, visit)
        {
            Ok(release) => release,
            Err(e) => {
                tracing::error!(round = round.short(), visit = visit.0, "cannot hand over: {e}");
                return false;
            }
        };
        let bytes = release.bytes();
        let begun = Instant::now();
        let outcome = async {
            let mut peer = connect(&self.own.now(), &self.daemon, &self.egress, to).await?;
            let answer = call(to, peer.offer_checkpoint(release.offer())).await?;
            if let Some(Answer::Wanted(wanted)) = &answer.answer {
                *missing = release.missing(wanted);
            }
            self.send_wanted(&mut peer, to, release, answer).await
        };
        let Some(Some(receipt)) = self.noted(to, outcome.await) else { return false };
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(round = round.short(), visit = visit.0, peer = %to, bytes, seconds, "checkpoint handed over");
        // If receipts before this one have not arrived yet, it comes again with them.
        let _ = self.daemon.adopt(Event::Receipt { receipt }).await;
        true
    }

    /// Sends the chunks that `answer` asks for; gives the receipt once the peer holds the checkpoint.
    async fn send_wanted(
        &self,
        peer: &mut Client,
        to: &SiteId,
        release: Release,
        answer: OfferAnswer,
    ) -> Result<Option<Envelope>, contacts::Error> {
        let answer = match answer.answer {
            Some(Answer::Wanted(wanted)) => {
                let pace = self.paces.of(to);
                let limit = last_patience(release.bytes());
                let (round, visit) = release.visit();
                let (pieces, problem) = release.send(wanted);
                let (out, chunks) = mpsc::channel(1);
                let feed = pace.feed(pieces, out, |chunk| {
                    self.contacts.moved(to);
                    chunk
                });
                let sending = peer.send_chunks(ReceiverStream::new(chunks));
                tokio::pin!(sending);
                let fed = tokio::select! {
                    biased;
                    answer = &mut sending => Err(answer),
                    fed = feed => Ok(fed),
                };
                let slow = |e: String| Err(tonic::Status::deadline_exceeded(e));
                let sent = match fed {
                    Err(answer) => answer,
                    Ok(Err(e @ Waits::Stalled(_))) => slow(e.to_string()),
                    Ok(fed) => {
                        if let Err(e @ Waits::Hours(_)) = fed {
                            tracing::info!(peer = %to, "the transfer pauses: {e}");
                        }
                        let late = |_| slow("no answer came to the last chunk".to_owned());
                        tokio::time::timeout(limit, sending).await.unwrap_or_else(late)
                    }
                };
                if let Some(e) = problem.get() {
                    tracing::error!(
                        round = round.short(),
                        visit = visit.0,
                        "cannot hand over: {e}"
                    );
                }
                sent.map_err(|status| refused(to, status))?.into_inner().answer
            }
            answer => answer,
        };
        Ok(match answer {
            Some(Answer::Held(held)) => Envelope::from_json(&held.receipt).ok(),
            _ => None,
        })
    }

    async fn train(
        &self,
        round: RoundId,
        visit: VisitNo,
        received: Option<Digest>,
        failures: u32,
    ) -> Outcome {
        let state = self.daemon.state();
        let Some(known) = state.rounds().get(&round) else { return Outcome::Failed };
        let plan = &known.plan;
        let assignment = Assignment {
            round,
            visit,
            seed: plan.visit_seed(visit),
            recipe: plan.recipe.clone(),
            received,
            least_dice: known.least_dice(self.daemon.site(), visit),
        };
        if let Err(outcome) = self.admit(round, visit, received).await {
            return outcome;
        }
        let known = || {
            let state = self.daemon.state();
            let visit = state.rounds().get(&round)?.visit(visit)?;
            Some((visit.training, visit.stalled))
        };
        let begin = async || match known() {
            Some((true, _)) => true,
            _ => self.daemon.tell(round, ReceiptBody::Training { visit }).await.is_ok(),
        };
        tracing::info!(round = round.short(), visit = visit.0, "this site's turn");
        let told = async {
            let trained = match self.outlook(round, visit, plan)? {
                Some(kept) => kept,
                None => self.hub.train(assignment, begin).await?,
            };
            Ok(self.contribute(round, visit, received, plan, &trained).await?)
        };
        match told.await {
            Ok(()) => Outcome::Done,
            Err(Failure::Floor) => self.refuse(round, visit, received, RefusalReason::Floor).await,
            Err(Failure::Stalled(reason)) => {
                // These wait for somebody, and said so.
                let waits = matches!(
                    reason,
                    StallReason::Held | StallReason::Policy | StallReason::PrivacyBudget
                );
                if !waits {
                    tracing::warn!(
                        round = round.short(),
                        visit = visit.0,
                        ?reason,
                        "visit not finished; trying again"
                    );
                }
                let hopeless =
                    waits || matches!(reason, StallReason::Cohort | StallReason::Diverged);
                let long = failures + 1 >= STALL_AFTER || hopeless;
                if long && known().is_some_and(|(_, stalled)| stalled != Some(reason)) {
                    let _ = self.daemon.tell(round, ReceiptBody::Stalled { visit, reason }).await;
                }
                if hopeless { Outcome::Hopeless } else { Outcome::Failed }
            }
        }
    }

    /// Carries out the plan's absent-site policy, once its time without progress is over.
    async fn expire(&self, round: RoundId, visit: VisitNo, at: u64) -> bool {
        let state = self.daemon.state();
        let Some(known) = state.rounds().get(&round) else { return false };
        let Some(turn) = known.turn().filter(|turn| turn.number == visit) else { return false };
        let limit = Duration::from_secs(known.plan.absent_after_s());
        let moves = self.contacts.of(&turn.site).moved.is_some_and(|at| at.elapsed() < limit);
        if unix_now() < at || moves || self.since.elapsed() < limit.min(EXPIRE_GRACE) {
            return false;
        }
        let bodies = match known.plan.absent {
            AbsentPolicy::Wait => return false,
            AbsentPolicy::Abort => vec![ReceiptBody::Aborted],
            AbsentPolicy::Skip => {
                let passed = |(visit, reason)| ReceiptBody::Passed { visit, reason };
                known.expiry(self.daemon.site()).into_iter().map(passed).collect()
            }
        };
        tracing::warn!(
            round = round.short(),
            visit = visit.0,
            peer = %turn.site,
            hours = known.plan.absent_after_hours,
            "the site has not taken the checkpoint in the plan's time"
        );
        for body in bodies {
            if let Err(e) = self.daemon.tell(round, body).await {
                tracing::warn!(round = round.short(), visit = visit.0, "going on without it: {e}");
                return false;
            }
        }
        true
    }

    async fn contribute(
        &self,
        round: RoundId,
        visit: VisitNo,
        parent: Option<Digest>,
        plan: &Plan,
        trained: &Trained,
    ) -> Result<(), StallReason> {
        let failed = |e: &dyn std::fmt::Display| {
            tracing::error!("contributing visit {visit}: {e}");
            StallReason::Storage
        };
        let Ready { weights, filters } = self.prepare(round, visit, plan, parent, trained).await?;
        let stored = self.store.find(weights).map_err(|e| failed(&e))?;
        let table = tokio::task::spawn_blocking(move || stored.table()).await;
        let table = table.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        let manifest = Manifest {
            round,
            cycle: plan.cycle_of(visit),
            visit,
            site: self.daemon.site().clone(),
            parent,
            weights: table,
            architecture: plan.recipe.architecture,
            recipe: plan.recipe_digest(),
            software: concat!("rondo ", env!("CARGO_PKG_VERSION")).to_owned(),
            counts: trained.counts,
            validation: trained.validation,
            filters,
            signed_at: unix_now(),
        };
        let failed = |e: &dyn std::fmt::Display| {
            tracing::error!("contributing visit {visit}: {e}");
            StallReason::Storage
        };
        let manifest = manifest.sign(&self.own.now().signing).map_err(|e| failed(&e))?;
        let body = ReceiptBody::Contributed { manifest };
        let (this, trained) = (self.clone(), trained.weights);
        // This worker ends when the state no longer asks for it; what follows happens all the same.
        let told = tokio::spawn(async move {
            this.daemon.tell(round, body).await?;
            this.signed(round, visit, trained, weights);
            Ok::<_, daemon::Error>(())
        });
        match told.await.map_err(|e| failed(&e))? {
            Ok(()) => {}
            Err(daemon::Error::Refused(e)) => {
                tracing::warn!("visit {visit} comes to nothing: {e}");
                return Err(StallReason::TrainerFailed);
            }
            Err(e) => return Err(failed(&e)),
        }
        tracing::info!(round = round.short(), visit = visit.0, weights = %weights.short(), "contributed");
        Ok(())
    }
}

/// A worker that ends when it is dropped.
struct Worker {
    generation: u64,
    task: JoinHandle<()>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Tells that a worker ended, in whatever way. There are no more endings than there were workers.
struct Ending {
    key: Work,
    generation: u64,
    ended: mpsc::UnboundedSender<(Work, u64)>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.ended.send((self.key.clone(), self.generation));
    }
}

/// What `site` refused.
pub fn refused(site: &SiteId, status: tonic::Status) -> contacts::Error {
    contacts::Error::Refused { site: site.clone(), status: Box::new(status) }
}

/// The answer of `site` to one message, if it comes in time.
///
/// # Errors
/// What the site says, or that it says nothing.
pub async fn call<T>(
    site: &SiteId,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, contacts::Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refused(site, status)),
        Err(_) => Err(refused(site, tonic::Status::deadline_exceeded("no answer came in time"))),
    }
}
