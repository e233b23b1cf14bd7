//! Adopting one event.

use super::event::Event;
use super::receipt::{PassReason, RECEIPT_TYPE, Receipt, ReceiptBody};
use super::state::{Imported, Round, RoundPhase, SiteState};
use crate::envelope::{self, Envelope};
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::manifest::{self, Manifest};
use crate::passport::{self, Passport, verify_hop};
use crate::plan::{self, Plan};
use crate::trust::{self, SiteCard};
use std::sync::Arc;

/// Open rounds of a site at most.
pub const OPEN_ROUNDS_MAX: usize = 64;
/// Plans of one peer that wait for this site's approval at most.
pub const PROPOSALS_MAX: usize = 8;
/// Plans of one peer that this site never approved at most, whatever became of them: a peer that
/// aborts its own proposals must not fill the journal.
pub const UNAPPROVED_MAX: usize = 256;
/// Models of other rounds that a site may import.
pub const IMPORTED_MAX: usize = 1024;

/// Receipts that one site may make in one round, so that a peer cannot fill a journal; what only
/// tells of attempts has half of it, so that a contribution always fits.
fn receipts_max(round: &Round, body: &ReceiptBody) -> usize {
    let all = 64 + 16 * round.visits.len();
    match body {
        ReceiptBody::Training { .. }
        | ReceiptBody::Stalled { .. }
        | ReceiptBody::Paused
        | ReceiptBody::Resumed => all / 2,
        _ => all,
    }
}

/// Why an event was not adopted; nothing changed then.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The journal has no owner yet, or a second one.
    #[error("the journal must begin with the site's own card, once")]
    Owner,
    /// Card or roster.
    #[error(transparent)]
    Trust(#[from] trust::Error),
    /// Envelope or signature.
    #[error(transparent)]
    Envelope(#[from] envelope::Error),
    /// Plan.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// A manifest that does not follow from the plan.
    #[error(transparent)]
    Hop(#[from] passport::Error),
    /// A manifest that cannot be read.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// The round is not known here; its plan may still be on the way.
    #[error("round {} is not known here", .0.short())]
    UnknownRound(RoundId),
    /// The site is not part of the round.
    #[error("{site} takes no part in round {}", round.short())]
    NotInRound {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
    },
    /// Receipts must be told in order.
    #[error("receipt {found} of {site} came, but {expected} is next")]
    Order {
        /// Whose receipt.
        site: SiteId,
        /// The next number.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// A second, different statement where there can be one.
    #[error(
        "{0} said something else before: the contradiction is refused and kept out of the journal"
    )]
    Contradiction(SiteId),
    /// The hop before is not known here yet.
    #[error("the manifest of visit {0} is not known here yet")]
    Gap(VisitNo),
    /// Too much.
    #[error("{0}")]
    Limit(&'static str),
    /// Not possible where the round stands.
    #[error("{0}")]
    Phase(&'static str),
}

/// Adopts `event`, or says why not. An event that is known already changes nothing and is accepted.
///
/// # Errors
/// The [`Refusal`]; the state is unchanged then.
pub fn step(state: &SiteState, event: &Event) -> Result<SiteState, Refusal> {
    let mut next = state.clone();
    match event {
        Event::SiteOpened { card } => {
            let (signed, card) = (card, SiteCard::open(card)?);
            // A renewed card of the same site replaces its own entry.
            match &next.own {
                Some(own) if own.site != card.site => return Err(Refusal::Owner),
                Some(own) if own.signing_key == card.signing_key => {
                    Arc::make_mut(&mut next.roster).revoke(&card.site)?;
                }
                Some(own) if !card.renews(own) => return Err(Refusal::Owner),
                _ => {}
            }
            Arc::make_mut(&mut next.roster).add(signed.clone())?;
            next.own = Some(card);
        }
        Event::PeerAdded { card } => {
            if own_site(&next)? == SiteCard::open(card)?.site {
                return Err(Refusal::Phase(
                    "this is the site's own card; add the card of another site",
                ));
            }
            Arc::make_mut(&mut next.roster).add(card.clone())?;
        }
        Event::PeerRevoked { site } => {
            if own_site(&next)? == *site {
                return Err(Refusal::Phase("a site cannot revoke itself"));
            }
            Arc::make_mut(&mut next.roster).revoke(site)?;
        }
        Event::Receipt { receipt } => adopt_receipt(&mut next, receipt)?,
        Event::Manifest { round, manifest } => adopt_manifest(&mut next, *round, manifest)?,
        Event::Passed { receipt } => adopt_pass(&mut next, receipt)?,
        Event::Delivered { round, to, number } => {
            let own = own_site(&next)?;
            let known = round_mut(&mut next, *round)?;
            let made = known.receipts.get(&own).map_or(0, Vec::len);
            if !known.plan.sites.contains(to) || *number as usize > made {
                return Err(Refusal::Phase("a delivery of receipts that were never made"));
            }
            let have = known.delivered.entry(to.clone()).or_default();
            *have = (*have).max(*number);
        }
        Event::ModelImported { passport } => import(&mut next, passport)?,
    }
    Ok(next)
}

fn import(state: &mut SiteState, passport: &Passport) -> Result<(), Refusal> {
    own_site(state)?;
    let verified = passport.verify(&state.roster)?;
    if state.imported.contains_key(&verified.weights()) {
        return Ok(());
    }
    if state.imported.len() >= IMPORTED_MAX {
        return Err(Refusal::Limit("too many imported models at this site"));
    }
    let hops = verified.hops().to_vec();
    state.imported.insert(verified.weights(), Imported { passport: passport.clone(), hops });
    Ok(())
}

fn own_site(state: &SiteState) -> Result<SiteId, Refusal> {
    state.own.as_ref().map(|card| card.site.clone()).ok_or(Refusal::Owner)
}

fn round_mut(state: &mut SiteState, round: RoundId) -> Result<&mut Round, Refusal> {
    state.rounds.get_mut(&round).ok_or(Refusal::UnknownRound(round))
}

fn adopt_receipt(state: &mut SiteState, envelope: &Envelope) -> Result<(), Refusal> {
    let own = own_site(state)?;
    let claimed = Receipt::unverified(envelope)?;
    let key = state.roster.signing_key(&claimed.site, envelope)?;
    // What was read to find the signer is what the signer signed: the payload, all of it.
    envelope.verify(RECEIPT_TYPE, &key)?;
    let Receipt { round: id, site, number, body, at } = claimed;
    if let ReceiptBody::Proposed { plan } = &body {
        propose(state, id, &site, plan, &own)?;
    }
    let roster = state.roster.clone();
    let round = state.rounds.get_mut(&id).ok_or(Refusal::UnknownRound(id))?;
    if !round.plan.sites.contains(&site) {
        return Err(Refusal::NotInRound { site, round: id });
    }
    let limit = receipts_max(round, &body);
    let told = round.receipts.entry(site.clone()).or_default();
    if let Some(known) = (number as usize).checked_sub(1).and_then(|i| told.get(i)) {
        // ECDSA signatures differ each time, so what was said is compared, not its signature.
        let same = known.payload_digest() == envelope.payload_digest();
        return if same { Ok(()) } else { Err(Refusal::Contradiction(site)) };
    }
    let expected = u32::try_from(told.len()).unwrap_or(u32::MAX).saturating_add(1);
    if number != expected {
        return Err(Refusal::Order { site, expected, found: number });
    }
    let first_only = matches!(body, ReceiptBody::Proposed { .. }) && number != 1;
    if first_only {
        return Err(Refusal::Phase("a plan is proposed first of all, once"));
    }
    if told.len() >= limit {
        return Err(Refusal::Limit("a site made too many receipts in one round"));
    }
    match body {
        ReceiptBody::Proposed { .. } => {}
        ReceiptBody::Approved => {
            round.approvals.insert(site.clone(), envelope.clone());
        }
        ReceiptBody::Started => {
            if site == own && round.phase() == RoundPhase::Proposed {
                return Err(Refusal::Phase("not every site of the plan has approved it"));
            }
            round.started = true;
        }
        ReceiptBody::Received { visit, weights } => {
            let visit = known_visit(round, visit)?;
            let held = visit.received_by.entry(site.clone()).or_insert(weights);
            if *held != weights {
                return Err(Refusal::Contradiction(site));
            }
        }
        ReceiptBody::Training { visit } => {
            let paused = !round.paused.is_empty();
            let visit = turn_of(round, visit, &site)?;
            if site == own && paused && !visit.training {
                return Err(Refusal::Phase("the round is paused; no visit is begun"));
            }
            visit.training = true;
            visit.stalled = None;
        }
        ReceiptBody::Stalled { visit, reason } => {
            let visit = turn_of(round, visit, &site)?;
            // The manifest may have come before this, with an offer.
            visit.stalled = visit.contribution.is_none().then_some(reason);
        }
        ReceiptBody::Contributed { manifest } => {
            let claimed = Manifest::unverified(&manifest)?;
            if claimed.site != site {
                return Err(Refusal::NotInRound { site, round: id });
            }
            if site == own {
                fence(round, &claimed)?;
                round.waits_since = at;
            }
            contribute(round, &manifest, claimed.visit, &roster)?;
        }
        ReceiptBody::Paused => {
            may_steer(round, &site, &own)?;
            round.paused.insert(site.clone());
        }
        ReceiptBody::Resumed => {
            may_steer(round, &site, &own)?;
            if !round.paused.remove(&site) && site == own {
                return Err(Refusal::Phase(
                    "this site has not paused the round; only who paused it can resume it",
                ));
            }
            // No site is absent while the round is paused.
            round.waits_since = round.waits_since.max(at);
        }
        ReceiptBody::Aborted => {
            may_steer(round, &site, &own)?;
            round.aborted.insert(site.clone());
        }
        ReceiptBody::Refused { visit, weights, reason } => {
            let visit = known_visit(round, visit)?;
            if visit.received_by.get(&site) != Some(&weights) {
                return Err(Refusal::Phase("a site refuses a checkpoint that it received before"));
            }
            if *visit.refused_by.entry(site.clone()).or_insert(reason) != reason {
                return Err(Refusal::Contradiction(site));
            }
        }
        ReceiptBody::Passed { visit, reason } => {
            pass(round, &site, &own, visit, reason, envelope)?;
            if site == own {
                round.waits_since = at;
            }
        }
    }
    round.settle();
    round.receipts.entry(site).or_default().push(envelope.clone());
    Ok(())
}

/// Whether `site` may pause, resume or abort. Another site may not know yet that the round is over, so
/// only this one is told so.
fn may_steer(round: &Round, site: &SiteId, own: &SiteId) -> Result<(), Refusal> {
    if !round.approvals.contains_key(site) {
        return Err(Refusal::Phase(
            "a site that has not approved the plan cannot pause, resume or abort the round",
        ));
    }
    match round.phase() {
        RoundPhase::Finished if site == own => Err(Refusal::Phase("the round is finished")),
        RoundPhase::Aborted if site == own => Err(Refusal::Phase("the round was aborted")),
        _ => Ok(()),
    }
}

fn propose(
    state: &mut SiteState,
    id: RoundId,
    by: &SiteId,
    plan: &str,
    own: &SiteId,
) -> Result<(), Refusal> {
    if Digest::of(plan.as_bytes()) != id {
        return Err(Refusal::Phase("the round is not named after its plan"));
    }
    if state.rounds.contains_key(&id) {
        return Ok(());
    }
    let plan = Plan::from_canonical(plan.as_bytes())?;
    for site in [by, own] {
        if !plan.sites.contains(site) {
            return Err(Refusal::NotInRound { site: site.clone(), round: id });
        }
    }
    for site in &plan.sites {
        state.roster.trusted(site)?;
    }
    // A plan that this site did not approve counts against whoever brought it, not against the site.
    let open = |r: &&Round| !r.phase().is_over();
    let approved = |r: &&Round| r.approvals.contains_key(own);
    let crowded = if by == own {
        state.rounds.values().filter(open).filter(approved).count() >= OPEN_ROUNDS_MAX
    } else {
        let theirs = || state.rounds.values().filter(|r| r.proposer == *by && !approved(r));
        theirs().filter(open).count() >= PROPOSALS_MAX || theirs().count() >= UNAPPROVED_MAX
    };
    if crowded {
        return Err(Refusal::Limit("too many open rounds or unapproved proposals at this site"));
    }
    state.rounds.insert(id, Round::new(plan, by.clone()));
    Ok(())
}

/// A visit is contributed once, by whose turn it is, from the checkpoint that the round goes on from:
/// what trained on when it was passed over comes to nothing.
fn fence(round: &Round, manifest: &Manifest) -> Result<(), Refusal> {
    #[cfg(test)]
    if crate::simulator::mutation::contributes_again() {
        return Ok(());
    }
    if round.phase() == RoundPhase::Aborted {
        return Err(Refusal::Phase("the round was aborted"));
    }
    let turn = round.turn().filter(|turn| turn.number == manifest.visit);
    match turn.map(|turn| round.input(&turn.site)) {
        Some(Some(input)) if input == manifest.parent => Ok(()),
        _ => Err(Refusal::Phase(
            "it is not this visit's turn with this checkpoint: it was passed over, or contributed before",
        )),
    }
}

/// Records that a visit is passed over. Another site may not know yet what makes it too late, so only
/// this one is told so.
fn pass(
    round: &mut Round,
    site: &SiteId,
    own: &SiteId,
    visit: VisitNo,
    reason: PassReason,
    envelope: &Envelope,
) -> Result<(), Refusal> {
    let passed = round.visit(visit).ok_or(Refusal::Phase("the plan has no such visit"))?;
    if !round.may_pass(site, passed, reason) {
        return Err(Refusal::Phase("it is not for this site to pass over that visit"));
    }
    if site == own {
        match round.phase() {
            RoundPhase::Running => {}
            RoundPhase::Finished => return Err(Refusal::Phase("the round is finished")),
            RoundPhase::Aborted => return Err(Refusal::Phase("the round was aborted")),
            _ => return Err(Refusal::Phase("the round is not running")),
        }
        let taken = || round.tip().is_some_and(|tip| tip.is_held_by(&passed.site));
        let new = passed.passed.is_empty();
        if reason == PassReason::Absent && new && (passed.contribution.is_some() || taken()) {
            return Err(Refusal::Phase(
                "the visit's site has the checkpoint; only `rondo round recover` passes it over",
            ));
        }
    }
    note_pass(round, site, visit, reason, envelope);
    Ok(())
}

/// The stronger of two reasons stays, whichever comes first.
fn note_pass(
    round: &mut Round,
    site: &SiteId,
    visit: VisitNo,
    reason: PassReason,
    envelope: &Envelope,
) {
    if let Some(visit) = round.visit_mut(visit)
        && visit.passed.get(site).is_none_or(|(known, _)| *known < reason)
    {
        visit.passed.insert(site.clone(), (reason, envelope.clone()));
    }
}

fn adopt_pass(state: &mut SiteState, envelope: &Envelope) -> Result<(), Refusal> {
    let claimed = Receipt::unverified(envelope)?;
    let round = state.rounds.get(&claimed.round).ok_or(Refusal::UnknownRound(claimed.round))?;
    let (site, visit, reason) = passport::verify_pass(&round.plan, envelope, &state.roster)?;
    let round = round_mut(state, claimed.round)?;
    note_pass(round, &site, visit, reason, envelope);
    round.settle();
    Ok(())
}

fn adopt_manifest(state: &mut SiteState, id: RoundId, envelope: &Envelope) -> Result<(), Refusal> {
    let roster = state.roster.clone();
    let claimed = Manifest::unverified(envelope)?;
    let round = round_mut(state, id)?;
    contribute(round, envelope, claimed.visit, &roster)?;
    round.settle();
    Ok(())
}

/// Records a visit's result once; the same again changes nothing, another one is a contradiction.
fn contribute(
    round: &mut Round,
    envelope: &Envelope,
    visit: VisitNo,
    roster: &trust::Roster,
) -> Result<(), Refusal> {
    let known = round.visit(visit).and_then(|visit| visit.contribution.as_ref());
    // An offer repeats every hop; the very same signature was checked when it came first.
    if known.is_some_and(|(_, known)| known == envelope) {
        return Ok(());
    }
    let claimed = Manifest::unverified(envelope)?.parent;
    let parent = match round.parent(visit, claimed) {
        Ok(parent) => parent,
        Err(before) => {
            // It may be that word of a visit that was passed over is still on the way.
            let earlier = |v: &super::Visit| v.number < before && v.weights() == claimed;
            let start = round.plan.start_digest() == claimed;
            if start || round.visits.iter().any(earlier) || round.manifest(before).is_none() {
                return Err(Refusal::Gap(before));
            }
            Some(before)
        }
    };
    let previous = parent.and_then(|n| round.manifest(n));
    let manifest = verify_hop(&round.plan, &round.facts, previous, visit, envelope, roster)?;
    let visit = known_visit(round, visit)?;
    match &visit.contribution {
        Some((_, known)) if known.payload_digest() == envelope.payload_digest() => Ok(()),
        #[cfg(test)]
        Some(_) if crate::simulator::mutation::contributes_again() => {
            visit.contribution = Some((Arc::new(manifest), envelope.clone()));
            Ok(())
        }
        Some(_) => Err(Refusal::Contradiction(manifest.site)),
        None => {
            visit.contribution = Some((Arc::new(manifest), envelope.clone()));
            visit.stalled = None;
            Ok(())
        }
    }
}

fn known_visit(round: &mut Round, visit: VisitNo) -> Result<&mut super::Visit, Refusal> {
    round.visit_mut(visit).ok_or(Refusal::Phase("the plan has no such visit"))
}

fn turn_of<'r>(
    round: &'r mut Round,
    visit: VisitNo,
    site: &SiteId,
) -> Result<&'r mut super::Visit, Refusal> {
    if round.plan.site_of(visit) != Some(site) {
        return Err(Refusal::Phase("it is not this site's turn in that visit"));
    }
    known_visit(round, visit)
}
