//! A site's state: its roster and what it knows of every round.

use super::effect::Effect;
use super::receipt::{Receipt, ReceiptBody, RefusalReason, StallReason};
use crate::envelope::Envelope;
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::manifest::Manifest;
use crate::passport::Passport;
use crate::plan::{Plan, PlanFacts, Start};
use crate::trust::{Roster, SiteCard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything a site knows; the result of replaying its journal.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SiteState {
    pub(super) own: Option<SiteCard>,
    // Shared, because a state is cloned for every event and this hardly ever changes.
    pub(super) roster: Arc<Roster>,
    pub(super) rounds: BTreeMap<RoundId, Round>,
    pub(super) imported: BTreeMap<Digest, Imported>,
}

/// A model that came as a file, of a round that was not known here.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Its passport.
    pub passport: Passport,
    /// The verified hops; never empty.
    pub hops: Vec<Manifest>,
}

/// Where a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundPhase {
    /// Some sites have not approved yet.
    Proposed,
    /// All approved, and no site's start has arrived yet.
    Approved,
    /// Under way.
    Running,
    /// Every visit contributed and every site has the final model.
    Finished,
    /// A site ended it before that.
    Aborted,
}

impl RoundPhase {
    /// Whether nothing of the round is left to do.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Aborted)
    }
}

/// Where a visit stands. Registered, approved, training and contributed are different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VisitPhase {
    /// In the plan.
    Registered,
    /// Its site approved the plan.
    Approved,
    /// Its site says that it trains.
    Training,
    /// Its site signed a manifest.
    Contributed,
    /// The next site (every site, for the last visit) has the checkpoint.
    HandedOver,
}

/// What is known of one visit.
#[derive(Debug, Clone, PartialEq)]
pub struct Visit {
    /// Its number.
    pub number: VisitNo,
    /// Whether its site says that it trains.
    pub training: bool,
    /// Why it stalls, if it does.
    pub stalled: Option<StallReason>,
    /// Its result.
    pub contribution: Option<(Arc<Manifest>, Envelope)>,
    /// What each other site says that it received as this visit's checkpoint.
    pub received_by: BTreeMap<SiteId, Digest>,
    /// Sites whose gate the checkpoint did not pass.
    pub refused_by: BTreeMap<SiteId, RefusalReason>,
}

impl Visit {
    /// Digest of its checkpoint, once its site contributed.
    #[must_use]
    pub fn weights(&self) -> Option<Digest> {
        self.contribution.as_ref().map(|(manifest, _)| manifest.weights.object)
    }

    /// Whether `site` received exactly the checkpoint that was contributed.
    #[must_use]
    pub fn is_held_by(&self, site: &SiteId) -> bool {
        self.received_by.get(site).is_some_and(|held| Some(*held) == self.weights())
    }
}

/// What a site knows of one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// The plan.
    pub plan: Arc<Plan>,
    /// What follows from it.
    pub facts: PlanFacts,
    /// The site that brought it here.
    pub proposer: SiteId,
    /// Each site's receipts in order; the round's history.
    pub receipts: BTreeMap<SiteId, Vec<Envelope>>,
    /// Approvals by site.
    pub approvals: BTreeMap<SiteId, Envelope>,
    /// Whether a site started it.
    pub started: bool,
    /// Sites whose last word on it is a pause.
    pub paused: BTreeSet<SiteId>,
    /// Sites that aborted it.
    pub aborted: BTreeSet<SiteId>,
    /// The visits in order.
    pub visits: Vec<Visit>,
    /// Number of the last own receipt that each peer has.
    pub delivered: BTreeMap<SiteId, u32>,
}

impl SiteState {
    /// This site's own card; none before the first event.
    #[must_use]
    pub fn own(&self) -> Option<&SiteCard> {
        self.own.as_ref()
    }

    /// Pinned keys, this site's own among them.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The rounds this site takes part in.
    #[must_use]
    pub fn rounds(&self) -> &BTreeMap<RoundId, Round> {
        &self.rounds
    }

    /// Models of other rounds that came as files, by the digest of their weights.
    #[must_use]
    pub fn imported(&self) -> &BTreeMap<Digest, Imported> {
        &self.imported
    }

    /// Everything that is outstanding, in a stable order.
    #[must_use]
    pub fn effects(&self) -> Vec<Effect> {
        let Some(own) = &self.own else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        for (id, round) in &self.rounds {
            round.effects(*id, &own.site, &self.roster, &mut effects);
        }
        effects
    }
}

impl Round {
    pub(super) fn new(plan: Plan, proposer: SiteId) -> Self {
        let visits = (1..=plan.visit_count())
            .map(|n| Visit {
                number: VisitNo(n),
                training: false,
                stalled: None,
                contribution: None,
                received_by: BTreeMap::new(),
                refused_by: BTreeMap::new(),
            })
            .collect();
        Self {
            facts: plan.facts(),
            plan: Arc::new(plan),
            proposer,
            receipts: BTreeMap::new(),
            approvals: BTreeMap::new(),
            started: false,
            paused: BTreeSet::new(),
            aborted: BTreeSet::new(),
            visits,
            delivered: BTreeMap::new(),
        }
    }

    /// Where the round stands: a function of what was said, never of the order in which it arrived.
    #[must_use]
    pub fn phase(&self) -> RoundPhase {
        let approved = self.approvals.len() == self.plan.sites.len();
        if approved && self.started && self.is_complete() {
            RoundPhase::Finished
        } else if !self.aborted.is_empty() {
            RoundPhase::Aborted
        } else if !approved {
            RoundPhase::Proposed
        } else if !self.started {
            RoundPhase::Approved
        } else {
            RoundPhase::Running
        }
    }

    fn is_complete(&self) -> bool {
        self.visits.iter().all(|v| self.visit_phase(v) == VisitPhase::HandedOver)
    }

    /// Where a visit stands.
    #[must_use]
    pub fn visit_phase(&self, visit: &Visit) -> VisitPhase {
        let site = self.plan.site_of(visit.number);
        if visit.contribution.is_some() {
            let done = self.recipients(visit.number).all(|to| visit.is_held_by(to));
            if done { VisitPhase::HandedOver } else { VisitPhase::Contributed }
        } else if visit.training && !self.is_input_refused(visit.number) {
            VisitPhase::Training
        } else if site.is_some_and(|s| self.approvals.contains_key(s)) {
            VisitPhase::Approved
        } else {
            VisitPhase::Registered
        }
    }

    /// The visit of that number.
    #[must_use]
    pub fn visit(&self, number: VisitNo) -> Option<&Visit> {
        self.visits.get(usize::try_from(number.0).ok()?.checked_sub(1)?)
    }

    pub(super) fn visit_mut(&mut self, number: VisitNo) -> Option<&mut Visit> {
        self.visits.get_mut(usize::try_from(number.0).ok()?.checked_sub(1)?)
    }

    /// Sites that a visit's checkpoint must reach: the next one, or every other after the last visit.
    pub fn recipients(&self, visit: VisitNo) -> impl Iterator<Item = &SiteId> {
        let own = self.plan.site_of(visit);
        let next = self.plan.site_of(visit.next());
        let last = visit == self.plan.last_visit();
        self.plan.sites.iter().filter(move |s| Some(*s) != own && (last || Some(*s) == next))
    }

    /// The manifest of `visit`, once its site contributed.
    #[must_use]
    pub fn manifest(&self, visit: VisitNo) -> Option<&Manifest> {
        Some(&self.visit(visit)?.contribution.as_ref()?.0)
    }

    /// `site`'s own receipt that it has the checkpoint of `visit`, as it was told once.
    #[must_use]
    pub fn received_receipt(
        &self,
        site: &SiteId,
        visit: VisitNo,
        weights: Digest,
    ) -> Option<Envelope> {
        let told = ReceiptBody::Received { visit, weights };
        let receipts = self.receipts.get(site)?;
        receipts.iter().find(|e| Receipt::unverified(e).is_ok_and(|r| r.body == told)).cloned()
    }

    /// The passport of the checkpoint of `visit`; none while a hop before it is not known here.
    #[must_use]
    pub fn passport(&self, visit: VisitNo) -> Option<Passport> {
        let hop = |n| Some(self.visit(VisitNo(n))?.contribution.as_ref()?.1.clone());
        let manifests = (1..=visit.0).map(hop).collect::<Option<Vec<_>>>()?;
        let approvals = self.approvals.values().cloned().collect();
        Some(Passport::new(&self.plan, approvals, manifests))
    }

    fn effects(&self, id: RoundId, own: &SiteId, roster: &Roster, out: &mut Vec<Effect>) {
        let made = self.receipts.get(own).map_or(0, |r| u32::try_from(r.len()).unwrap_or(u32::MAX));
        for to in self.plan.sites.iter().filter(|s| *s != own && roster.trusted(s).is_ok()) {
            let have = self.delivered.get(to).copied().unwrap_or(0);
            if have < made {
                out.push(Effect::DeliverReceipts { round: id, to: to.clone(), from: have + 1 });
            }
        }
        if !matches!(self.phase(), RoundPhase::Running) {
            return;
        }
        for visit in self.visits.iter().filter(|v| self.plan.site_of(v.number) == Some(own)) {
            match visit.weights() {
                Some(_) if !self.paused.is_empty() => {}
                Some(weights) => {
                    let to = self.recipients(visit.number).filter(|to| !visit.is_held_by(to));
                    out.extend(to.filter(|to| roster.trusted(to).is_ok()).map(|to| {
                        Effect::HandOver { round: id, visit: visit.number, weights, to: to.clone() }
                    }));
                }
                // What trains goes on to its end.
                None if !self.paused.is_empty() && !visit.training => {}
                None => {
                    if let Some(received) = self.input_of(visit.number, own) {
                        out.push(Effect::Train { round: id, visit: visit.number, received });
                    }
                }
            }
        }
    }

    /// What `own` starts `visit` from, if it is this visit's turn and the checkpoint is here.
    fn input_of(&self, visit: VisitNo, own: &SiteId) -> Option<Option<Digest>> {
        let Some(previous) = visit.previous() else {
            return Some(match self.plan.start {
                Start::Fresh => None,
                Start::Checkpoint(digest) => Some(digest),
            });
        };
        let before = self.visit(previous)?;
        let weights = before.weights()?;
        let here = self.plan.site_of(previous) == Some(own) || before.is_held_by(own);
        let refused = before.refused_by.contains_key(own);
        (here && !refused).then_some(Some(weights))
    }

    /// Whether the site of `visit` refused what it received for it.
    fn is_input_refused(&self, visit: VisitNo) -> bool {
        let before = visit.previous().and_then(|before| self.visit(before));
        let site = self.plan.site_of(visit);
        before.zip(site).is_some_and(|(before, site)| before.refused_by.contains_key(site))
    }

    /// The least validation Dice that the gate of `own` demands of what it received for `visit`.
    #[must_use]
    pub fn least_dice(&self, own: &SiteId, visit: VisitNo) -> Option<f64> {
        visit.previous()?;
        let figures = self.visits.iter().filter_map(|v| v.contribution.as_ref());
        let own = figures.filter(|(m, _)| m.site == *own).map(|(m, _)| m.validation);
        let best = own.flat_map(|v| [v.received_dice, v.trained_dice]).flatten().reduce(f64::max);
        self.plan.gate.least_dice(best)
    }
}
