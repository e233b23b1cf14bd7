//! What must hold after every step, whoever crashed and whatever was lost.

use super::disk::Disk;
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::manifest::Manifest;
use crate::round::{Event, Receipt, ReceiptBody, RoundPhase, SiteState};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What must never be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Violation {
    #[error("visit {0} is trained at {1} while it is trained already, or after its contribution")]
    TrainedTwice(VisitNo, SiteId),
    #[error("visit {0} was contributed with two results")]
    ContributedTwice(VisitNo),
    #[error("{at} heard two different statements of {by}")]
    Contradiction { at: SiteId, by: SiteId },
    #[error("{at} was told something that is not in the journal of {by}")]
    Untold { at: SiteId, by: SiteId },
    #[error("the newest model that was handed over, of visit {0}, is safe on {1} disks only")]
    Custody(VisitNo, usize),
    #[error("the journal of {0} cannot be replayed: {1}")]
    Replay(SiteId, String),
    #[error("the journal of {0} tells another state than the live one")]
    Diverged(SiteId),
    #[error("the round is not over {0} s after the network healed")]
    NoProgress(u64),
    #[error("{0} and {1} end with different histories")]
    History(SiteId, SiteId),
    #[error("{0} ends without a passport that verifies, or without the model")]
    Ending(SiteId),
}

/// Sees all sites at once, which no site can.
pub(super) struct Observer {
    ids: Vec<SiteId>,
    disks: Vec<Rc<RefCell<Disk>>>,
    /// What each site's trainer works on.
    training: BTreeMap<usize, (RoundId, VisitNo)>,
    /// Digest of what was contributed, by visit.
    contributed: BTreeMap<(RoundId, VisitNo), Digest>,
    /// The newest visit of each round whose checkpoint another site said that it received.
    handed_over: BTreeMap<RoundId, (VisitNo, Digest)>,
    /// Rounds that somebody aborted.
    aborted: BTreeSet<RoundId>,
}

impl Observer {
    pub(super) fn new(ids: Vec<SiteId>, disks: Vec<Rc<RefCell<Disk>>>) -> Self {
        Self {
            ids,
            disks,
            training: BTreeMap::new(),
            contributed: BTreeMap::new(),
            handed_over: BTreeMap::new(),
            aborted: BTreeSet::new(),
        }
    }

    pub(super) fn id(&self, site: usize) -> &SiteId {
        &self.ids[site]
    }

    /// A trainer begins.
    pub(super) fn trains(
        &mut self,
        site: usize,
        round: RoundId,
        visit: VisitNo,
    ) -> Result<(), Violation> {
        let other = self.training.iter().any(|(_, at)| *at == (round, visit));
        if other || self.contributed.contains_key(&(round, visit)) {
            return Err(Violation::TrainedTwice(visit, self.ids[site].clone()));
        }
        self.training.insert(site, (round, visit));
        Ok(())
    }

    pub(super) fn stops_training(&mut self, site: usize) {
        self.training.remove(&site);
    }

    /// A site adopted an event and has `state` now.
    pub(super) fn adopted(
        &mut self,
        at: usize,
        state: &SiteState,
        event: &Event,
    ) -> Result<(), Violation> {
        if self.disks[at].borrow().told() != state {
            return Err(Violation::Diverged(self.ids[at].clone()));
        }
        match event {
            Event::Receipt { receipt } => {
                let told = Receipt::unverified(receipt).unwrap();
                self.is_journalled(at, &told, receipt.payload_digest())?;
                match told.body {
                    ReceiptBody::Contributed { manifest } => {
                        let visit = Manifest::unverified(&manifest).unwrap().visit;
                        self.contributed(told.round, visit, manifest.payload_digest())?;
                    }
                    ReceiptBody::Received { visit, weights }
                        if !self.aborted.contains(&told.round) =>
                    {
                        let newest = self.handed_over.entry(told.round).or_insert((visit, weights));
                        *newest = (*newest).max((visit, weights));
                        self.custody()?;
                    }
                    // What becomes of a model that nobody wants any more is the operators' business.
                    ReceiptBody::Aborted => {
                        self.handed_over.remove(&told.round);
                        self.aborted.insert(told.round);
                    }
                    _ => {}
                }
            }
            Event::Manifest { round, manifest } => {
                let visit = Manifest::unverified(manifest).unwrap().visit;
                self.contributed(*round, visit, manifest.payload_digest())?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Whoever hears something of a site may rely on it: the site has it in its journal.
    fn is_journalled(&self, at: usize, told: &Receipt, digest: Digest) -> Result<(), Violation> {
        let by = self.ids.iter().position(|id| *id == told.site).unwrap();
        let disk = self.disks[by].borrow();
        let known = disk.told().rounds().get(&told.round).and_then(|r| r.receipts.get(&told.site));
        let said = known.and_then(|all| all.get((told.number as usize).checked_sub(1)?));
        if said.is_some_and(|envelope| envelope.payload_digest() == digest) {
            return Ok(());
        }
        Err(Violation::Untold { at: self.ids[at].clone(), by: told.site.clone() })
    }

    fn contributed(
        &mut self,
        round: RoundId,
        visit: VisitNo,
        manifest: Digest,
    ) -> Result<(), Violation> {
        let known = self.contributed.entry((round, visit)).or_insert(manifest);
        if *known == manifest { Ok(()) } else { Err(Violation::ContributedTwice(visit)) }
    }

    /// The newest model that was handed over is on two disks, were power to fail everywhere now.
    pub(super) fn custody(&self) -> Result<(), Violation> {
        for (visit, weights) in self.handed_over.values() {
            let safe = self.disks.iter().filter(|disk| disk.borrow().is_safe(weights)).count();
            if safe < 2 {
                return Err(Violation::Custody(*visit, safe));
            }
        }
        Ok(())
    }

    /// All sites know the same, and have what they need.
    pub(super) fn ending(&self, states: &[&SiteState]) -> Result<(), Violation> {
        for (id, state) in self.ids.iter().zip(states) {
            for (number, round) in state.rounds() {
                let other = self.ids.iter().zip(states).find(|(_, other)| {
                    other
                        .rounds()
                        .get(number)
                        .is_some_and(|r| r.receipts != round.receipts || r.visits != round.visits)
                });
                if let Some((other, _)) = other {
                    return Err(Violation::History(id.clone(), other.clone()));
                }
                if round.phase() == RoundPhase::Aborted {
                    continue;
                }
                let last = round.plan.last_visit();
                let passport = round.passport(last);
                let verified = passport.and_then(|p| p.verify(state.roster()).ok());
                let here = |w| {
                    self.disks
                        .iter()
                        .zip(&self.ids)
                        .any(|(disk, at)| at == id && disk.borrow().is_safe(&w))
                };
                if !verified.is_some_and(|v| here(v.weights())) {
                    return Err(Violation::Ending(id.clone()));
                }
            }
        }
        Ok(())
    }
}
