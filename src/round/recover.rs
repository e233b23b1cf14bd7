//! Going on without a site that is lost, or that does not take the checkpoint.

use super::receipt::PassReason;
use super::state::{Round, RoundPhase, Visit};
use crate::ids::{SiteId, VisitNo};

/// Why a round cannot be recovered from here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing is under way.
    #[error("the round is not running; there is nothing to recover")]
    Idle,
    /// The site that should be given up runs the command, or is none of the round.
    #[error("{0} cannot be left out here: name another site of the plan that is lost")]
    Site(SiteId),
    /// Every visit stands; only a site that does not take the result may be missing.
    #[error("every visit is done; name the site that will not take the result with --without")]
    Unnamed,
    /// It is not that site that the round waits for.
    #[error(
        "the round does not wait for {0}; leave it out when it does, or let its operator abort the round"
    )]
    NotAwaited(SiteId),
    /// A site that is not lost has the newest checkpoint, and its turn is next.
    #[error(
        "{site} has the checkpoint of visit {visit} and goes on from it; if {site} is lost, say --without {site}"
    )]
    GoesOn {
        /// The visit.
        visit: VisitNo,
        /// The site.
        site: SiteId,
    },
    /// Another site made the checkpoint from which the round would go on.
    #[error(
        "this site does not hold the model that would go on: it is the checkpoint of visit {visit}, and {site} has it. Run `rondo round recover` there"
    )]
    Elsewhere {
        /// The visit.
        visit: VisitNo,
        /// The site.
        site: SiteId,
    },
    /// The only checkpoint left is the one that the first site had.
    #[error(
        "no site that is left made a checkpoint in this round; abort it and propose another plan"
    )]
    Nowhere,
}

impl Round {
    /// What `own` says so that the round goes on from its checkpoint without the sites that are lost:
    /// `without`, or the one for which the round waits.
    ///
    /// # Errors
    /// Why not from here.
    pub fn recovery(
        &self,
        own: &SiteId,
        without: Option<&SiteId>,
    ) -> Result<Vec<(VisitNo, PassReason)>, Error> {
        if self.phase() != RoundPhase::Running {
            return Err(Error::Idle);
        }
        // Whoever made the newest checkpoint misses the site after it; whoever made the one before it
        // misses the site that made the newest.
        let mut course = self.visits.iter().rev().filter(|v| v.stands);
        let awaited = match (course.next(), course.next()) {
            (Some(tip), Some(before)) if tip.site != *own && before.site == *own => Some(&tip.site),
            _ => self.turn().map(|turn| &turn.site),
        };
        let awaited = awaited.filter(|_| self.turn.is_some());
        let lost = without.or(awaited).ok_or(Error::Unnamed)?;
        if lost == own || !self.plan.sites.contains(lost) {
            return Err(Error::Site(lost.clone()));
        }
        let gone = |s: &SiteId| s == lost || self.is_out(s);
        let Some(turn) = self.turn() else { return self.end_without(own, lost) };
        if let Some(tip) = self.tip().filter(|tip| tip.is_at(&turn.site) && !gone(&turn.site)) {
            return Err(Error::GoesOn { visit: tip.number, site: turn.site.clone() });
        }
        let base = self.visits.iter().rev().find(|v| v.stands && !gone(&v.site));
        match base {
            Some(base) if base.site != *own => {
                return Err(Error::Elsewhere { visit: base.number, site: base.site.clone() });
            }
            None if self.plan.start_digest().is_some() => return Err(Error::Nowhere),
            _ => {}
        }
        let after = base.map_or(VisitNo::FIRST, |v| v.number.next());
        let between = self.visits.iter().filter(|v| v.number >= after);
        let open = |v: &&Visit| v.stands || !v.passed.is_empty() || gone(&v.site);
        let mut said: Vec<(VisitNo, PassReason)> = between
            .clone()
            .take_while(open)
            .map(|v| (v.number, if gone(&v.site) { PassReason::Lost } else { restated(v) }))
            .collect();
        if !said.iter().any(|(n, _)| self.visit(*n).is_some_and(|v| v.site == *lost)) {
            return Err(Error::NotAwaited(lost.clone()));
        }
        if without.is_some() {
            let end = said.last().map_or(after, |(n, _)| n.next());
            let further = between.filter(|v| v.number >= end && v.site == *lost);
            said.extend(further.map(|v| (v.number, PassReason::Lost)));
        }
        Ok(self.unsaid(own, said))
    }

    /// At the end a lost site is one that no longer has to take the result.
    fn end_without(
        &self,
        own: &SiteId,
        lost: &SiteId,
    ) -> Result<Vec<(VisitNo, PassReason)>, Error> {
        let tip = self.tip().ok_or(Error::Nowhere)?;
        if tip.is_at(lost) && tip.site != *lost {
            return Err(Error::NotAwaited(lost.clone()));
        }
        let base = self.visits.iter().rev().find(|v| v.stands && v.site != *lost);
        let base = base.ok_or(Error::Nowhere)?;
        if base.site != *own {
            return Err(Error::Elsewhere { visit: base.number, site: base.site.clone() });
        }
        let last = self.visits.iter().rev().find(|v| v.site == *lost);
        let last = last.ok_or_else(|| Error::Site(lost.clone()))?.number;
        let between = self.visits.iter().filter(|v| v.number > base.number && v.number < last);
        let mut said: Vec<_> = between.map(|v| (v.number, restated(v))).collect();
        said.push((last, PassReason::Lost));
        Ok(self.unsaid(own, said))
    }

    /// What `own` says when the site whose turn it is does not take the checkpoint in time.
    #[must_use]
    pub fn expiry(&self, own: &SiteId) -> Vec<(VisitNo, PassReason)> {
        let Some(turn) = self.turn() else { return Vec::new() };
        let numbers = self.passes_of(own, turn.number);
        let visits = numbers.filter_map(|n| self.visit(n));
        visits.map(|v| (v.number, restated(v))).collect()
    }

    /// Leaves out what `own` said already.
    fn unsaid(&self, own: &SiteId, said: Vec<(VisitNo, PassReason)>) -> Vec<(VisitNo, PassReason)> {
        let known = |n: VisitNo| Some(self.visit(n)?.passed.get(own)?.0);
        said.into_iter().filter(|(n, reason)| known(*n) < Some(*reason)).collect()
    }
}

/// Why a visit is passed over that was not its site's loss.
fn restated(visit: &Visit) -> PassReason {
    let known = visit.passed.values().map(|(reason, _)| *reason).max();
    known.map_or(PassReason::Absent, |reason| reason.max(PassReason::Absent))
}
