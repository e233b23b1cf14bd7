//! The gate for what arrives: a checkpoint is not trained on before it is within what the plan allows,
//! and one that was refused lies where nothing serves it.
//!
//! The trainer, which alone sees images, compares the validation with [`Round::least_dice`]; the norm of
//! the change is measured here.

use crate::audit::Audit;
use crate::daemon::Daemon;
use crate::effects::{Outcome, Workers};
use crate::retention;
use crate::store::{self, Store};
use crate::update::Update;
use rondo::audit::{What, Who};
use rondo::ids::{Digest, RoundId, SiteId, VisitNo};
use rondo::plan::Start;
use rondo::round::{ReceiptBody, RefusalReason, Round, SiteState};
use std::collections::BTreeSet;
use std::fmt::Display;

/// A change that is larger than the plan allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Excess {
    /// Its norm.
    pub norm: f64,
    /// What the plan allows for as many visits.
    pub allowed: f64,
}

/// The visit before `visit` that made `weights`.
#[must_use]
fn maker(round: &Round, visit: VisitNo, weights: Digest) -> Option<VisitNo> {
    let before = round.visits.iter().rev().filter(|v| v.number < visit);
    before.into_iter().find(|v| v.weights() == Some(weights)).map(|v| v.number)
}

/// Compares the checkpoint of `visit` with its newest ancestor in the store: each visit between the two
/// may have changed the model by the plan's `norm_max`. Nothing is compared where no ancestor is here.
///
/// # Errors
/// What the disk said.
pub fn excess(
    round: &Round,
    visit: VisitNo,
    weights: Digest,
    store: &Store,
) -> Result<Option<Excess>, store::Error> {
    let Some(norm_max) = round.plan.gate.norm_max else { return Ok(None) };
    let (mut at, mut visits) = (visit, 1_u32);
    let ancestor = loop {
        let Some(parent) = round.manifest(at).and_then(|manifest| manifest.parent) else {
            return Ok(None);
        };
        if store.has(parent) {
            break parent;
        }
        let Some(before) = maker(round, at, parent) else { return Ok(None) };
        at = before;
        visits += 1;
    };
    let (before, after) = (store.find(ancestor)?, store.find(weights)?);
    let norm = Update::between(before, after, &round.plan.recipe.architecture)?.norm()?;
    let allowed = norm_max * f64::from(visits);
    Ok((norm > allowed).then_some(Excess { norm, allowed }))
}

impl Workers {
    /// Lets `visit` begin with what it received, or says how the attempt ends without training.
    pub(crate) async fn admit(
        &self,
        id: RoundId,
        visit: VisitNo,
        received: Option<Digest>,
    ) -> Result<(), Outcome> {
        let (state, store) = (self.daemon.state(), self.store.clone());
        let measured = tokio::task::spawn_blocking(move || {
            let Some((round, weights)) = state.rounds().get(&id).zip(received) else {
                return Ok(None);
            };
            let from = maker(round, visit, weights);
            from.map_or(Ok(None), |from| excess(round, from, weights, &store))
        });
        let failed = |e: &dyn Display| {
            tracing::error!(
                round = id.short(),
                visit = visit.0,
                "measuring what was received: {e}"
            );
            Outcome::Failed
        };
        let Some(Excess { norm, allowed }) =
            measured.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?
        else {
            return Ok(());
        };
        tracing::warn!(
            round = id.short(),
            visit = visit.0,
            norm,
            allowed,
            "what was received changed more than the plan's `norm_max` allows"
        );
        Err(self.refuse(id, visit, received, RefusalReason::Norm).await)
    }

    /// Tells all sites that `visit` does not train on what it received.
    pub(crate) async fn refuse(
        &self,
        id: RoundId,
        visit: VisitNo,
        received: Option<Digest>,
        reason: RefusalReason,
    ) -> Outcome {
        let state = self.daemon.state();
        let round = state.rounds().get(&id);
        let made = round
            .zip(received)
            .and_then(|(round, weights)| Some((maker(round, visit, weights)?, weights)));
        // What the plan itself names is not refused; the trainer is given no bound for it.
        let Some((from, weights)) = made else { return Outcome::Failed };
        tracing::warn!(round = id.short(), visit = from.0, weights = %weights.short(), ?reason, "checkpoint refused, and the round parks: look into it with the site that made it, and propose a round that starts from the last good checkpoint");
        match self.daemon.tell(id, ReceiptBody::Refused { visit: from, weights, reason }).await {
            Ok(_) => Outcome::Done,
            Err(e) => {
                tracing::error!("telling the refusal: {e}");
                Outcome::Failed
            }
        }
    }
}

/// Sets aside what this site refused, now and whenever it refuses something, until dropped. What was
/// refused before a crash is found again in the state.
pub async fn keep(store: Store, daemon: Daemon, audit: Audit) {
    let mut states = daemon.states();
    loop {
        let state = states.borrow_and_update().clone();
        for (round, visit, weights) in refused(&state, daemon.site(), &store) {
            match retention::set_aside(store.folder(), &store.path(weights), &weights.to_string()) {
                Ok(()) => {
                    tracing::warn!(round = round.short(), visit = visit.0, weights = %weights.short(), "the refused checkpoint lies in the store's folder `{}`", retention::QUARANTINE);
                    audit.note(Who::Daemon, What::CheckpointRefused { round, visit, weights });
                }
                Err(e) => tracing::error!("{e}"),
            }
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Checkpoints that `own` refused and that lie in the store, unless something else is the same bytes.
fn refused(state: &SiteState, own: &SiteId, store: &Store) -> Vec<(RoundId, VisitNo, Digest)> {
    let mut refused = Vec::new();
    let mut used: BTreeSet<Digest> = state.imported().keys().copied().collect();
    for (id, round) in state.rounds() {
        if let Start::Checkpoint(start) = round.plan.start {
            used.insert(start);
        }
        for visit in &round.visits {
            let Some(weights) = visit.weights() else { continue };
            if visit.refused_by.contains_key(own) {
                refused.push((*id, visit.number, weights));
            } else {
                used.insert(weights);
            }
        }
    }
    refused.retain(|(_, _, weights)| !used.contains(weights) && store.has(*weights));
    refused
}
