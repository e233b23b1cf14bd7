//! What a site's state asks its daemon to do.

use crate::ids::{Digest, RoundId, SiteId, VisitNo};

/// One outstanding action. Doing it twice does no harm; it stays outstanding until an event ends it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Deliver this site's receipts of `round` from number `from` on. Ends with `Event::Delivered`.
    DeliverReceipts {
        /// The round.
        round: RoundId,
        /// To whom.
        to: SiteId,
        /// First number the peer does not have.
        from: u32,
    },
    /// Hand the checkpoint of `visit` to `to`. Ends with that site's receipt `Received`.
    HandOver {
        /// The round.
        round: RoundId,
        /// Visit that made the checkpoint.
        visit: VisitNo,
        /// The checkpoint.
        weights: Digest,
        /// To whom.
        to: SiteId,
    },
    /// Train `visit`. Ends with this site's receipt `Contributed`.
    Train {
        /// The round.
        round: RoundId,
        /// The visit.
        visit: VisitNo,
        /// What to start from; none for a fresh model.
        received: Option<Digest>,
    },
    /// Carry out the plan's absent-site policy for `visit`, whose site has not taken the checkpoint, once
    /// the plan's time without progress is over. Ends with this site's receipt `Passed` or `Aborted`.
    Expire {
        /// The round.
        round: RoundId,
        /// The visit whose turn it is.
        visit: VisitNo,
        /// Unix time by this site's clock, before which it is too early in any case.
        at: u64,
    },
}

/// What names an effect as it goes on: deliveries to a peer are one work however many receipts there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Telling a peer.
    Deliver(RoundId, SiteId),
    /// Handing a visit's checkpoint to a peer.
    HandOver(RoundId, VisitNo, SiteId),
    /// Training a visit, from what it starts from.
    Train(RoundId, VisitNo, Option<Digest>),
    /// Waiting for a site that may be absent.
    Expire(RoundId, VisitNo),
}

impl Effect {
    /// The work that this effect is a part of; a site does each only once at a time.
    #[must_use]
    pub fn work(&self) -> Work {
        match self {
            Self::DeliverReceipts { round, to, .. } => Work::Deliver(*round, to.clone()),
            Self::HandOver { round, visit, to, .. } => Work::HandOver(*round, *visit, to.clone()),
            Self::Train { round, visit, received } => Work::Train(*round, *visit, *received),
            Self::Expire { round, visit, .. } => Work::Expire(*round, *visit),
        }
    }
}
