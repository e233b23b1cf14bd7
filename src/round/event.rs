//! What can happen to a site; each event is one record of its journal.

use crate::envelope::Envelope;
use crate::ids::{RoundId, SiteId};
use crate::passport::Passport;
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The site came to be, with its own card. First record of every journal.
    SiteOpened {
        /// The site's own signed card.
        card: Envelope,
    },
    /// The operator trusts another site.
    PeerAdded {
        /// That site's signed card.
        card: Envelope,
    },
    /// The operator trusts a site no more.
    PeerRevoked {
        /// The site.
        site: SiteId,
    },
    /// A receipt was made here or arrived from a peer.
    Receipt {
        /// The signed receipt.
        receipt: Envelope,
    },
    /// A manifest came with an offered checkpoint, ahead of its site's own receipt.
    Manifest {
        /// The round.
        round: RoundId,
        /// The signed manifest.
        manifest: Envelope,
    },
    /// A statement that a visit is passed over came with an offered checkpoint, ahead of its turn among
    /// its site's receipts.
    Passed {
        /// The signed receipt.
        receipt: Envelope,
    },
    /// A peer has this site's receipts of a round up to a number.
    Delivered {
        /// The round.
        round: RoundId,
        /// The peer.
        to: SiteId,
        /// Number of the last receipt it has.
        number: u32,
    },
    /// A model of a round that is not known here came as a file, and its weights are stored.
    ModelImported {
        /// Its passport, which the roster of that moment verifies.
        passport: Passport,
    },
}
