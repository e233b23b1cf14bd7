//! A site's state: its roster and what it knows of every round.

use super::effect::Effect;
use super::receipt::{PassReason, Receipt, ReceiptBody, RefusalReason, StallReason};
use crate::envelope::Envelope;
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::manifest::Manifest;
use crate::passport::Passport;
use crate::plan::{AbsentPolicy, Plan, PlanFacts};
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
    /// Every visit is done and every site has the final model, and the best one if the plan shares it.
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
    /// The round went on without it.
    PassedOver,
}

/// What is known of one visit.
#[derive(Debug, Clone, PartialEq)]
pub struct Visit {
    /// Its number.
    pub number: VisitNo,
    /// Whose turn it is.
    pub site: SiteId,
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
    /// Who said that it is passed over, why, and the signed receipt.
    pub passed: BTreeMap<SiteId, (PassReason, Envelope)>,
    /// Whether the newest checkpoint comes from it.
    pub stands: bool,
}

impl Visit {
    /// Digest of its checkpoint, once its site contributed.
    #[must_use]
    pub fn weights(&self) -> Option<Digest> {
        self.contribution.as_ref().map(|(manifest, _)| manifest.weights.object)
    }

    /// Whether `site` made or received the checkpoint.
    #[must_use]
    pub fn is_at(&self, site: &SiteId) -> bool {
        (self.site == *site && self.contribution.is_some()) || self.is_held_by(site)
    }

    pub(super) fn index(&self) -> usize {
        (self.number.0 as usize).saturating_sub(1)
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
    /// Unix time, by this site's clock, since which an absent site keeps it waiting.
    pub waits_since: u64,
    pub(super) tip: Option<VisitNo>,
    pub(super) turn: Option<VisitNo>,
    pub(super) best: Option<VisitNo>,
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
        let visits: Vec<Visit> = (1..=plan.visit_count())
            .map(VisitNo)
            .filter_map(|number| {
                Some(Visit {
                    number,
                    site: plan.site_of(number)?.clone(),
                    training: false,
                    stalled: None,
                    contribution: None,
                    received_by: BTreeMap::new(),
                    refused_by: BTreeMap::new(),
                    passed: BTreeMap::new(),
                    stands: false,
                })
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
            waits_since: 0,
            tip: None,
            turn: Some(VisitNo::FIRST),
            best: None,
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
        let done = |v: &Visit| self.recipients(v.number).all(|to| v.is_held_by(to));
        let best = self.best.and_then(|n| self.visit(n));
        self.turn.is_none() && self.tip().is_some_and(done) && best.is_none_or(done)
    }

    /// Where a visit stands.
    #[must_use]
    pub fn visit_phase(&self, visit: &Visit) -> VisitPhase {
        if !visit.stands && !visit.passed.is_empty() {
            VisitPhase::PassedOver
        } else if visit.contribution.is_some() {
            let done = self.recipients(visit.number).all(|to| visit.is_held_by(to));
            if done { VisitPhase::HandedOver } else { VisitPhase::Contributed }
        } else if visit.training && !self.is_input_refused(visit.number) {
            VisitPhase::Training
        } else if self.approvals.contains_key(&visit.site) {
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

    /// The manifests from the start to the checkpoint of `visit`, as far back as they are known here.
    #[must_use]
    pub fn chain(&self, visit: VisitNo) -> Vec<&Manifest> {
        let mut chain = Vec::new();
        let mut at = Some(visit);
        while let Some((number, manifest)) = at.and_then(|n| Some((n, self.manifest(n)?))) {
            chain.push(manifest);
            at = self.parent(number, manifest.parent).ok().flatten();
        }
        chain.reverse();
        chain
    }

    /// The passport of the checkpoint of `visit`; none while a hop before it is not known here. With the
    /// newest checkpoint comes why it is handed to whoever it is handed to.
    #[must_use]
    pub fn passport(&self, visit: VisitNo) -> Option<Passport> {
        let (mut manifests, mut gaps) = (Vec::new(), Vec::new());
        let mut upper = if self.tip == Some(visit) { self.turn } else { None };
        let mut at = Some(visit);
        while let Some(number) = at {
            let (manifest, envelope) = self.visit(number)?.contribution.as_ref()?;
            gaps.push((number.next(), upper.unwrap_or(number.next())));
            manifests.push(envelope.clone());
            upper = Some(number);
            at = self.parent(number, manifest.parent).ok()?;
        }
        gaps.push((VisitNo::FIRST, upper.unwrap_or(VisitNo::FIRST)));
        manifests.reverse();
        let passes = gaps.into_iter().rev().flat_map(|(from, to)| from.0..to.0);
        let passes = passes.filter_map(|n| self.visit(VisitNo(n))?.passed.values().next());
        let approvals = self.approvals.values().cloned().collect();
        let mut passport = Passport::new(&self.plan, approvals, manifests);
        passport.passes = passes.map(|(_, envelope)| envelope.clone()).collect();
        Some(passport)
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
        let goes_on = self.paused.is_empty();
        for visit in self.course().filter(|v| v.site == *own && goes_on) {
            let Some(weights) = visit.weights() else { continue };
            let to = self.recipients(visit.number).filter(|to| !visit.is_held_by(to));
            out.extend(to.filter(|to| roster.trusted(to).is_ok()).map(|to| Effect::HandOver {
                round: id,
                visit: visit.number,
                weights,
                to: to.clone(),
            }));
        }
        let Some(turn) = self.turn() else { return };
        let visit = turn.number;
        // What trains goes on to its end in a pause.
        if turn.site == *own && (goes_on || turn.training) {
            if let Some(received) = self.input(own) {
                out.push(Effect::Train { round: id, visit, received });
            }
        } else if turn.site != *own
            && goes_on
            && self.plan.absent != AbsentPolicy::Wait
            && self.tip().is_some_and(|t| t.site == *own && !t.is_held_by(&turn.site))
        {
            let at = self.waits_since.saturating_add(self.plan.absent_after_s());
            out.push(Effect::Expire { round: id, visit, at });
        }
    }

    /// What the visit whose turn it is starts from, if it is at `own`; none for a fresh model.
    #[must_use]
    pub fn input(&self, own: &SiteId) -> Option<Option<Digest>> {
        match self.tip() {
            Some(tip) if tip.refused_by.contains_key(own) => None,
            Some(tip) => tip.is_at(own).then_some(tip.weights()),
            None => Some(self.plan.start_digest()),
        }
    }

    /// Whether the site of `visit` refused what it received for it.
    fn is_input_refused(&self, visit: VisitNo) -> bool {
        let turn = self.turn().filter(|turn| turn.number == visit);
        let refused = |turn: &Visit| self.tip().map(|tip| tip.refused_by.contains_key(&turn.site));
        turn.and_then(refused).unwrap_or(false)
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
