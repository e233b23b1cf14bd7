//! What may leave this site as weights: a checkpoint that is as its manifest says, and no byte else.

use crate::policy::Policy;
use crate::store::{self, Store};
use crate::transfer::{self, Outgoing};
use rondo::ids::{RoundId, SiteId, VisitNo};
use rondo::passport::Passport;
use rondo::round::SiteState;
use rondo_proto::peer::{Chunk, Offer, Wanted};
use std::sync::{Arc, OnceLock};
use tokio_stream::Stream;

/// Why a checkpoint does not leave.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state lacks it or a hop before it.
    #[error("the passport of this visit is not complete here")]
    Unknown,
    /// The site's own policy.
    #[error("the policy of this site does not let it out: {}; see policy.toml", .0.join("; "))]
    Policy(Vec<String>),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The offer of a visit's checkpoint; none while a hop before it is not known here.
#[must_use]
pub fn offer(state: &SiteState, round: RoundId, visit: VisitNo) -> Option<Offer> {
    let passport = state.rounds().get(&round)?.passport(visit)?;
    Some(offer_of(round, visit, &passport))
}

fn offer_of(round: RoundId, visit: VisitNo, passport: &Passport) -> Offer {
    Offer { round: round.as_bytes().to_vec(), visit: visit.0, passport: passport.to_json() }
}

/// A checkpoint that may leave; each chunk is checked right before it does.
#[derive(Debug)]
pub struct Release {
    passport: Passport,
    source: Outgoing,
}

impl Release {
    /// Finds the checkpoint of `visit`, if `policy` lets it go to `to`.
    ///
    /// # Errors
    /// Why it must not leave.
    pub fn of(
        state: &SiteState,
        store: &Store,
        policy: &Policy,
        to: &SiteId,
        round: RoundId,
        visit: VisitNo,
    ) -> Result<Self, Error> {
        let known = state.rounds().get(&round).ok_or(Error::Unknown)?;
        let bars = policy.bars(&known.plan, [to], Some(round));
        if !bars.is_empty() {
            return Err(Error::Policy(bars));
        }
        let passport = known.passport(visit).ok_or(Error::Unknown)?;
        let table = known.manifest(visit).ok_or(Error::Unknown)?.weights.clone();
        let stored = store.find(table.object)?;
        let source = Outgoing { stored, table, layout: known.plan.layout(), round, visit };
        Ok(Self { passport, source })
    }

    /// Its offer.
    #[must_use]
    pub fn offer(&self) -> Offer {
        offer_of(self.source.round, self.source.visit, &self.passport)
    }

    /// The visit that made it, and the round.
    #[must_use]
    pub fn visit(&self) -> (RoundId, VisitNo) {
        (self.source.round, self.source.visit)
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.source.table.bytes
    }

    /// About how many bytes are `wanted`.
    #[must_use]
    pub fn missing(&self, wanted: &Wanted) -> u64 {
        let chunks = wanted.chunks.len() as u64 * self.source.table.chunk_bytes;
        chunks.saturating_sub(u64::from(wanted.offset))
    }

    /// The pieces that are `wanted`, and why there are no more if they end early: see
    /// [`transfer::send`].
    pub fn send(
        self,
        wanted: Wanted,
    ) -> (impl Stream<Item = Chunk> + Send + Unpin + 'static, Arc<OnceLock<store::Error>>) {
        transfer::send(self.source, wanted)
    }
}
