//! What an operator sees of a round.

use crate::control::{
    FigureView, GateRefusalView, HopView, RetentionView, RoundPhase, RoundView, VisitPhase,
    VisitView,
};
use rondo::ids::{RoundId, SiteId, VisitNo};
use rondo::manifest::Manifest;
use rondo::round::figures::Retention;
use rondo::round::{self, PassReason, RefusalReason, Round, StallReason, Visit};
use std::collections::BTreeSet;

/// The view of a round; live progress is the daemon's to add.
#[must_use]
pub fn round_view(id: RoundId, round: &Round) -> RoundView {
    let plan = &round.plan;
    let phase = match round.phase() {
        round::RoundPhase::Proposed => RoundPhase::Proposed,
        round::RoundPhase::Approved => RoundPhase::Approved,
        round::RoundPhase::Running => RoundPhase::Running,
        round::RoundPhase::Finished => RoundPhase::Finished,
        round::RoundPhase::Aborted => RoundPhase::Aborted,
    };
    let names = |sites: &BTreeSet<SiteId>| sites.iter().map(SiteId::to_string).collect();
    let (last, best) = round.results();
    let weights = |visit: Option<VisitNo>| {
        let digest = visit.and_then(|n| round.visit(n)?.weights());
        digest.map(|d| d.to_string()).unwrap_or_default()
    };
    RoundView {
        round: id.to_string(),
        name: plan.name.clone(),
        topology: plan.topology.to_string(),
        cycles: plan.cycles,
        phase: phase.into(),
        sites: plan.sites.iter().map(SiteId::to_string).collect(),
        approved_by: round.approvals.keys().map(SiteId::to_string).collect(),
        visits: round.visits.iter().map(|v| visit_view(round, v)).collect(),
        plan_json: String::from_utf8(plan.canonical()).unwrap_or_default(),
        progress: None,
        paused_by: names(&round.paused),
        aborted_by: names(&round.aborted),
        final_weights: weights(last),
        best_weights: weights(best),
        retention: round.retention().into_iter().map(retention_view).collect(),
    }
}

fn retention_view(r: Retention) -> RetentionView {
    let figure = |(visit, dice): (VisitNo, f64)| FigureView { visit: visit.0, dice };
    RetentionView {
        site: r.site.to_string(),
        figures: r.figures.into_iter().map(figure).collect(),
        forgetting: r.forgetting,
        backward_transfer: r.backward_transfer,
    }
}

fn visit_view(round: &Round, visit: &Visit) -> VisitView {
    let phase = match round.visit_phase(visit) {
        round::VisitPhase::Registered => VisitPhase::Registered,
        round::VisitPhase::Approved => VisitPhase::Approved,
        round::VisitPhase::Training => VisitPhase::Training,
        round::VisitPhase::Contributed => VisitPhase::Contributed,
        round::VisitPhase::HandedOver => VisitPhase::HandedOver,
        round::VisitPhase::PassedOver => VisitPhase::PassedOver,
    };
    let manifest = visit.contribution.as_ref().map(|(manifest, _)| manifest);
    let counts = manifest.map(|m| m.counts).unwrap_or_default();
    let validation = manifest.map(|m| m.validation).unwrap_or_default();
    VisitView {
        visit: visit.number.0,
        cycle: round.plan.cycle_of(visit.number),
        site: visit.site.to_string(),
        phase: phase.into(),
        weights: visit.weights().map(|d| d.to_string()).unwrap_or_default(),
        parent: manifest.and_then(|m| m.parent).map(|d| d.to_string()).unwrap_or_default(),
        received_dice: validation.received_dice,
        trained_dice: validation.trained_dice,
        training_cases: counts.training_cases,
        epochs: counts.epochs,
        updates: counts.updates,
        stalled: visit.stalled.map(stall_code).unwrap_or_default().to_owned(),
        held_by: visit
            .received_by
            .keys()
            .filter(|s| visit.is_held_by(s) && !visit.refused_by.contains_key(s))
            .map(SiteId::to_string)
            .collect(),
        signed_at: manifest.map_or(0, |m| m.signed_at),
        refused_by: visit
            .refused_by
            .iter()
            .map(|(site, reason)| GateRefusalView {
                site: site.to_string(),
                reason: refusal_code(*reason).to_owned(),
            })
            .collect(),
        passed: visit
            .passed
            .values()
            .map(|(reason, _)| *reason)
            .max()
            .map(pass_code)
            .unwrap_or_default()
            .to_owned(),
        passed_by: visit.passed.keys().map(SiteId::to_string).collect(),
        filters: manifest.map(|m| m.filters.clone()).unwrap_or_default(),
    }
}

const fn refusal_code(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::Norm => "norm",
        RefusalReason::Floor => "floor",
    }
}

const fn pass_code(reason: PassReason) -> &'static str {
    match reason {
        PassReason::Refused => "refused",
        PassReason::Absent => "absent",
        PassReason::Lost => "lost",
    }
}

const fn stall_code(reason: StallReason) -> &'static str {
    match reason {
        StallReason::TrainerAbsent => "trainer-absent",
        StallReason::TrainerFailed => "trainer-failed",
        StallReason::Cohort => "cohort",
        StallReason::Diverged => "diverged",
        StallReason::Storage => "storage",
        StallReason::Held => "held",
        StallReason::Policy => "policy",
        StallReason::PrivacyBudget => "privacy-budget",
    }
}

/// One hop of a passport.
#[must_use]
pub fn hop_view(m: &Manifest) -> HopView {
    HopView {
        visit: m.visit.0,
        cycle: m.cycle,
        site: m.site.to_string(),
        weights: m.weights.object.to_string(),
        training_cases: m.counts.training_cases,
        epochs: m.counts.epochs,
        updates: m.counts.updates,
        received_dice: m.validation.received_dice,
        trained_dice: m.validation.trained_dice,
        signed_at: m.signed_at,
        filters: m.filters.clone(),
    }
}
