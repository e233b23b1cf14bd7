//! What may leave this site as weights: a checkpoint that is as its manifest says, and no byte else.

use crate::store::{self, Store};
use rondo::checkpoint;
use rondo::ids::{RoundId, VisitNo};
use rondo::passport::Passport;
use rondo::round::SiteState;
use rondo::transfer::ChunkTable;
use rondo_proto::peer::{Chunk, Offer};
use std::sync::Arc;

/// Why a checkpoint does not leave.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state lacks it or a hop before it.
    #[error("the passport of this visit is not complete here")]
    Unknown,
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It holds something else than the weights of its architecture.
    #[error("the checkpoint is not released: {0}")]
    Checkpoint(#[from] checkpoint::Error),
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

/// A checkpoint that was checked before it leaves.
pub struct Release {
    round: RoundId,
    visit: VisitNo,
    passport: Passport,
    table: ChunkTable,
    bytes: Arc<Vec<u8>>,
}

impl Release {
    /// Reads the checkpoint of `visit` and checks it.
    ///
    /// # Errors
    /// Why it must not leave.
    pub fn of(
        state: &SiteState,
        store: &Store,
        round: RoundId,
        visit: VisitNo,
    ) -> Result<Self, Error> {
        let known = state.rounds().get(&round).ok_or(Error::Unknown)?;
        let passport = known.passport(visit).ok_or(Error::Unknown)?;
        let table = known.manifest(visit).ok_or(Error::Unknown)?.weights.clone();
        let bytes = Arc::new(store.get(table.object)?);
        known.plan.layout().check(&bytes)?;
        Ok(Self { round, visit, passport, table, bytes })
    }

    /// Its offer.
    #[must_use]
    pub fn offer(&self) -> Offer {
        offer_of(self.round, self.visit, &self.passport)
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.table.bytes
    }

    /// The chunks of these indices, each cut when it is asked for; what does not exist is left out.
    pub fn chunks(&self, wanted: Vec<u32>) -> impl Iterator<Item = Chunk> + Send + use<> {
        let (table, bytes) = (self.table.clone(), self.bytes.clone());
        let (round, visit) = (self.round.as_bytes().to_vec(), self.visit.0);
        wanted.into_iter().filter_map(move |index| {
            let range = table.range(u64::from(index)).ok()?;
            let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
            let data = bytes.get(range)?.to_vec();
            Some(Chunk { round: round.clone(), visit, index, data })
        })
    }
}
