//! What happens to a visit's result before it is signed: the site's policy is asked, the operator's hold
//! waited for, the update clipped and noised, and what that costs written down.
//!
//! Results that are held and the ledger of privacy lie in one SQLite file that an auditor can open
//! ([`book`]). A noised release is in the ledger before its manifest is signed, and is found there again
//! after a crash: no result is noised twice, and nothing leaves that was not paid for.

pub mod book;

use crate::effects::Workers;
use crate::policy::{Filter, Noise};
use crate::retention;
use crate::store;
use crate::trainer::Trained;
use crate::update::{self, Update};
pub use book::Outbound;
use rondo::audit::{What, Who};
use rondo::ids::{Digest, RoundId, VisitNo};
use rondo::plan::Plan;
use rondo::privacy::Cost;
use rondo::round::StallReason;

/// Why a result does not leave.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the policy of this site does not let it out: {}. Change policy.toml and restart the daemon, or abort the round", .0.join("; "))]
    Policy(Vec<String>),
    #[error(
        "it waits for this site's operator: `rondo round release {} {visit}` lets it go",
        round.short()
    )]
    Held { round: RoundId, visit: VisitNo },
    #[error(
        "with it the releases of this site would cost ε = {epsilon:.4}, and `epsilon_max` in policy.toml is {max}: nothing more is released. Abort the round, or agree on more with your data protection officer, raise it and restart the daemon"
    )]
    Budget { epsilon: f64, max: f64 },
    #[error(transparent)]
    Book(#[from] book::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Update(#[from] update::Error),
    #[error("{0}")]
    Broken(String),
}

impl Refused {
    fn reason(&self) -> StallReason {
        match self {
            Self::Policy(_) => StallReason::Policy,
            Self::Held { .. } => StallReason::Held,
            Self::Budget { .. } => StallReason::PrivacyBudget,
            Self::Book(_) | Self::Store(_) | Self::Update(_) | Self::Broken(_) => {
                StallReason::Storage
            }
        }
    }
}

/// A result as it may be signed.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) weights: Digest,
    /// What was done to the update, for the manifest.
    pub(crate) filters: Vec<String>,
}

impl Workers {
    /// Asks the policy before a visit costs hours of work: whether its result could leave at all. Gives
    /// the result, if it is kept here already.
    pub(crate) fn outlook(
        &self,
        round: RoundId,
        visit: VisitNo,
        plan: &Plan,
    ) -> Result<Option<Trained>, StallReason> {
        let look = || -> Result<Option<Trained>, Refused> {
            let policy = self.outbound.policy();
            let objections = policy.objections(plan, self.daemon.site(), Some(round));
            if !objections.is_empty() {
                return Err(Refused::Policy(objections));
            }
            let kept = self.outbound.kept(round, visit)?.map(|kept| kept.trained);
            let kept = kept.filter(|trained| self.store.has(trained.weights));
            let paid = match &kept {
                Some(trained) => self.outbound.paid(round, visit, trained.weights)?.is_some(),
                None => false,
            };
            if let Some(noise) = policy.noise().filter(|_| !paid) {
                affordable(self.outbound.spent()?, &noise)?;
            }
            Ok(kept)
        };
        look().map_err(|e| stalled(round, visit, &e))
    }

    /// Makes a result ready to be signed: once its operator let it go, with its update filtered.
    pub(crate) async fn prepare(
        &self,
        round: RoundId,
        visit: VisitNo,
        plan: &Plan,
        parent: Option<Digest>,
        trained: &Trained,
    ) -> Result<Ready, StallReason> {
        let prepared = async {
            self.let_go(round, visit, trained)?;
            let Some(filter) = self.outbound.policy().filter else {
                return Ok(Ready { weights: trained.weights, filters: Vec::new() });
            };
            let parent = parent.ok_or_else(|| Refused::Broken("there is no parent".to_owned()))?;
            let (this, plan, trained) = (self.clone(), plan.clone(), trained.weights);
            let work = move || this.filtered(round, visit, &plan, filter, [parent, trained]);
            let done = tokio::task::spawn_blocking(work).await;
            done.unwrap_or_else(|e| Err(Refused::Broken(e.to_string())))
        };
        prepared.await.map_err(|e| stalled(round, visit, &e))
    }

    fn let_go(&self, round: RoundId, visit: VisitNo, trained: &Trained) -> Result<(), Refused> {
        if !self.outbound.policy().hold {
            return Ok(());
        }
        match self.outbound.kept(round, visit)? {
            Some(kept) if kept.trained.weights == trained.weights && kept.released => Ok(()),
            Some(kept) if kept.trained.weights == trained.weights => {
                Err(Refused::Held { round, visit })
            }
            _ => {
                self.outbound.keep(round, visit, trained)?;
                self.audit.note(Who::Daemon, What::ContributionHeld { round, visit });
                Err(Refused::Held { round, visit })
            }
        }
    }

    fn filtered(
        &self,
        round: RoundId,
        visit: VisitNo,
        plan: &Plan,
        filter: Filter,
        [parent, trained]: [Digest; 2],
    ) -> Result<Ready, Refused> {
        let paid = self.outbound.paid(round, visit, trained)?;
        if let Some((number, weights, Filter { clip, noise: Some(noise) })) = paid
            && self.store.has(weights)
        {
            let before = self.outbound.spent_before(number)?;
            return Ok(Ready { weights, filters: names(clip, Some((noise, before))) });
        }
        let Filter { clip, noise } = filter;
        let spent = self.outbound.spent()?;
        let mut source = None;
        if let Some(noise) = &noise {
            affordable(spent, noise)?;
            source = Some(update::Noise::new(noise.multiplier * clip));
        }
        let [before, after] = [self.store.find(parent)?, self.store.find(trained)?];
        let update = Update::between(before, after, &plan.recipe.architecture)?;
        let norm = update.norm()?;
        let scale = if norm > clip { clip / norm } else { 1.0 };
        let weights = update.filtered(&self.store, scale, source)?;
        tracing::info!(round = round.short(), visit = visit.0, norm, clip, weights = %weights.short(), "update filtered");
        if let Some(noise) = &noise {
            self.outbound.pay(round, visit, trained, weights, (clip, noise.multiplier))?;
        }
        Ok(Ready { weights, filters: names(clip, noise.map(|noise| (noise, spent))) })
    }

    /// Forgets what was only needed until the visit's result was signed, the unfiltered weights too.
    pub(crate) fn signed(&self, round: RoundId, visit: VisitNo, trained: Digest, left: Digest) {
        if self.outbound.policy().hold
            && let Err(e) = self.outbound.forget(round, visit)
        {
            tracing::warn!("{e}");
        }
        if trained != left
            && !retention::referenced(&self.daemon.state()).contains(&trained)
            && let Err(e) = self.store.remove(trained)
        {
            tracing::warn!("{e}");
        }
    }
}

fn affordable(spent: Cost, noise: &Noise) -> Result<(), Refused> {
    let epsilon = spent.and(noise.cost()).epsilon(noise.delta);
    let max = noise.epsilon_max;
    if epsilon > max { Err(Refused::Budget { epsilon, max }) } else { Ok(()) }
}

/// What a manifest says about the filters: the cost of this release, and of all up to it.
fn names(clip: f64, noise: Option<(Noise, Cost)>) -> Vec<String> {
    let mut names = vec![format!("clip l2 {clip}")];
    if let Some((noise, before)) = noise {
        // Never less than it costs.
        let told = |cost: Cost| (cost.epsilon(noise.delta) * 1e4).ceil() / 1e4;
        let (own, all) = (told(noise.cost()), told(before.and(noise.cost())));
        names.push(format!("noise gaussian multiplier {}", noise.multiplier));
        names.push(format!("privacy epsilon {own:.4} total {all:.4} delta {:e}", noise.delta));
    }
    names
}

fn stalled(round: RoundId, visit: VisitNo, e: &Refused) -> StallReason {
    let round = round.short();
    match e {
        Refused::Held { .. } => {
            tracing::info!(round, visit = visit.0, "the result of this visit is ready; {e}");
        }
        Refused::Policy(_) | Refused::Budget { .. } => {
            tracing::warn!(round, visit = visit.0, "the result of this visit does not leave: {e}");
        }
        _ => tracing::error!(round, visit = visit.0, "preparing the result of this visit: {e}"),
    }
    e.reason()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_hard_stop_and_manifests_never_tell_less_than_it_costs() {
        let noise = Noise { multiplier: 1.0, delta: 1e-5, epsilon_max: 8.0 };
        let one = Cost::gaussian(1.0);
        affordable(Cost::default(), &noise).unwrap();
        // Two releases: slope 1, so 1 + 2 √11.512925 = 7.786140.
        affordable(one, &noise).unwrap();
        let refused = affordable(one.and(one), &noise).unwrap_err();
        assert_eq!(refused.reason(), StallReason::PrivacyBudget);
        let text = refused.to_string();
        assert!(text.contains("ε = 9.8113") && text.contains("raise it and restart"), "{text}");
        let expected = [
            "clip l2 0.5",
            "noise gaussian multiplier 1",
            "privacy epsilon 5.2986 total 7.7862 delta 1e-5",
        ];
        assert_eq!(names(0.5, Some((noise, one))), expected);
    }
}
