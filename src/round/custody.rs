//! What a site must keep, so that no single machine ever holds the only copy of the newest model.

use super::state::{Round, SiteState};
use crate::ids::Digest;
use std::collections::BTreeSet;

impl SiteState {
    /// Checkpoints that no rule removes: all of an open round, the newest of any round, and imports.
    #[must_use]
    pub fn kept(&self) -> BTreeSet<Digest> {
        let of_round = |round: &Round| -> Vec<Digest> {
            if round.phase().is_over() {
                let (last, best) = round.results();
                let kept = [round.tip().map(|visit| visit.number), last, best];
                kept.into_iter().flatten().filter_map(|n| round.visit(n)?.weights()).collect()
            } else {
                round.weights().chain(round.start_weights()).collect()
            }
        };
        let rounds = self.rounds.values().flat_map(of_round);
        rounds.chain(self.imported.keys().copied()).collect()
    }
}

impl Round {
    /// The checkpoints of its visits, as far as they are known, in order.
    pub fn weights(&self) -> impl Iterator<Item = Digest> + '_ {
        self.visits.iter().filter_map(super::Visit::weights)
    }

    /// The checkpoint that it starts from; none for a fresh model.
    #[must_use]
    pub fn start_weights(&self) -> Option<Digest> {
        self.plan.start_digest()
    }
}
