//! The course of a round: which visits stand, whose turn it is, and to whom a checkpoint goes. All of it
//! is a function of what was said, never of the order in which it arrived.
//!
//! A visit that was both contributed and passed over stands if and only if a later visit that stands was
//! trained from it; while there is none, passed over wins. So the course is read from its end: the
//! newest contribution that was not passed over, and from there back from checkpoint to parent.

use super::receipt::PassReason;
use super::state::{Round, Visit};
use crate::ids::{Digest, SiteId, VisitNo};

impl Round {
    /// The newest visit that stands: the round goes on from its checkpoint.
    #[must_use]
    pub fn tip(&self) -> Option<&Visit> {
        self.visit(self.tip?)
    }

    /// The visit whose turn it is; none once every visit stands or was passed over.
    #[must_use]
    pub fn turn(&self) -> Option<&Visit> {
        self.visit(self.turn?)
    }

    /// The visits that stand, in order.
    pub fn course(&self) -> impl Iterator<Item = &Visit> {
        self.visits.iter().filter(|v| v.stands)
    }

    /// Finds the course anew, after something was said.
    pub(super) fn settle(&mut self) {
        let counts =
            |v: &&Visit| v.contribution.is_some() && (v.passed.is_empty() || self.is_everywhere(v));
        let tip = self.visits.iter().rev().find(counts).map(|v| v.number);
        let mut course = vec![false; self.visits.len()];
        let mut at = tip.and_then(|n| self.visit(n));
        while let Some(visit) = at {
            if let Some(stands) = course.get_mut(visit.index()) {
                *stands = true;
            }
            let parent = visit.contribution.as_ref().and_then(|(m, _)| m.parent);
            at = self.parent(visit.number, parent).ok().flatten().and_then(|n| self.visit(n));
        }
        for (visit, stands) in self.visits.iter_mut().zip(course) {
            visit.stands = stands;
        }
        let after = tip.map_or(VisitNo::FIRST, VisitNo::next);
        let open = |v: &&Visit| v.number >= after && v.passed.is_empty();
        self.turn = self.visits.iter().find(open).map(|v| v.number);
        self.tip = tip;
        let ended = self.turn.is_none() && self.plan.share_best;
        self.best = if ended { self.best_of_course() } else { None };
    }

    /// Whether a checkpoint is the round's last and every site has it: too late to pass it over.
    fn is_everywhere(&self, visit: &Visit) -> bool {
        let over = self.visits.iter().skip(visit.index() + 1).all(|v| !v.passed.is_empty());
        over && self.plan.sites.iter().all(|s| self.is_out(s) || visit.is_at(s))
    }

    /// The visit that made the checkpoint `parent` of `visit`; none for what the round starts from. Visits
    /// between the two were passed over.
    ///
    /// # Errors
    /// The visit that would have to be the parent, or to be passed over.
    pub(super) fn parent(
        &self,
        visit: VisitNo,
        parent: Option<Digest>,
    ) -> Result<Option<VisitNo>, VisitNo> {
        let mut at = visit.previous();
        while let Some(before) = at.and_then(|n| self.visit(n)) {
            if before.weights().is_some() && before.weights() == parent {
                return Ok(Some(before.number));
            }
            if before.passed.is_empty() {
                return Err(before.number);
            }
            at = before.number.previous();
        }
        Ok(None)
    }

    /// Whether a site is lost to the round: its last visit was passed over as lost.
    #[must_use]
    pub fn is_out(&self, site: &SiteId) -> bool {
        let last = self.visits.iter().rev().find(|v| v.site == *site);
        last.is_some_and(|v| v.passed.values().any(|(reason, _)| *reason == PassReason::Lost))
    }

    /// Sites that a visit's checkpoint must reach: that of the next visit that stands or whose turn it
    /// is; after the last one every other site that is not lost. Those also get the best one if the plan
    /// shares it, after the last one.
    pub fn recipients(&self, visit: VisitNo) -> impl Iterator<Item = &SiteId> {
        let made = self.visit(visit).filter(|v| v.stands);
        let next = self.visits.iter().skip(visit.0 as usize).find(|v| v.stands);
        let next = next.or(self.turn()).map(|v| &v.site);
        let (tip, ended) = (self.tip(), self.turn.is_none());
        let result = move |s: &SiteId| {
            let last = self.tip == Some(visit);
            let best = self.best == Some(visit) && tip.is_some_and(|tip| tip.is_at(s));
            (last || best) && !self.is_out(s)
        };
        let other = move |s: &&SiteId| made.is_some_and(|v| v.site != **s);
        let sites = self.plan.sites.iter().filter(other);
        sites.filter(move |s| if ended { result(s) } else { Some(*s) == next })
    }

    /// The visits that `site` has to pass over so that the round goes on after `visit` from its own last
    /// contribution, without those that it passed over already.
    pub fn passes_of(&self, site: &SiteId, visit: VisitNo) -> impl Iterator<Item = VisitNo> {
        let own = self.last_of(site, visit).map_or(VisitNo::FIRST, VisitNo::next);
        let said = |v: &&Visit| v.passed.contains_key(site);
        let all = self.visits.iter().filter(move |v| v.number >= own && v.number <= visit);
        all.filter(move |v| !said(v)).map(|v| v.number)
    }

    /// The last visit before `visit` that `site` contributed.
    fn last_of(&self, site: &SiteId, visit: VisitNo) -> Option<VisitNo> {
        let own = |v: &&Visit| v.number < visit && v.site == *site && v.contribution.is_some();
        self.visits.iter().rev().find(own).map(|v| v.number)
    }

    /// Whether what `site` said before lets it say that `visit` is passed over: it made the checkpoint
    /// from which the round goes on then, and passed over everything in between; or the visit is after
    /// its own and it refuses its contribution; or it said before that the visit's site is lost.
    pub(super) fn may_pass(&self, site: &SiteId, visit: &Visit, reason: PassReason) -> bool {
        let number = visit.number;
        let in_turn = self.passes_of(site, number).all(|n| n == number);
        let lost = |v: &Visit| {
            v.site == visit.site
                && v.passed.get(site).is_some_and(|(reason, _)| *reason == PassReason::Lost)
        };
        // Somebody who contributed after it takes nothing away from it.
        let after = || {
            self.visits
                .iter()
                .any(|v| v.number > number && v.site == *site && v.contribution.is_some())
        };
        self.plan.may_pass(site, number, reason)
            && match reason {
                PassReason::Refused => true,
                PassReason::Absent => in_turn,
                PassReason::Lost => in_turn || self.visits.iter().any(lost) || after(),
            }
    }
}
