//! Services: each handler converts, asks the daemon, converts back.

pub mod collect;
pub mod control;
mod models;
pub mod peer;
pub mod trainer;

use crate::{daemon, store};
use rondo::envelope::Envelope;
use rondo::ids::SiteId;
use rondo::ids::{Digest, VisitNo};
use rondo::round::{Receipt, ReceiptBody, Refusal, Round};
use tonic::{Code, Status};

/// What a refusal means to a caller.
fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::UnknownRound(_) => Code::NotFound,
        Refusal::Order { .. } | Refusal::Gap(_) => Code::OutOfRange,
        Refusal::Trust(_) | Refusal::NotInRound { .. } => Code::PermissionDenied,
        Refusal::Limit(_) => Code::ResourceExhausted,
        Refusal::Phase(_) | Refusal::Contradiction(_) => Code::FailedPrecondition,
        _ => Code::InvalidArgument,
    };
    Status::new(code, refusal.to_string())
}

impl From<daemon::Error> for Status {
    fn from(e: daemon::Error) -> Self {
        match &e {
            daemon::Error::Refused(refusal) => refused(refusal),
            daemon::Error::Journal(_) => Self::resource_exhausted(e.to_string()),
            daemon::Error::Sign(_) => Self::internal(e.to_string()),
            daemon::Error::Stopping => Self::unavailable(e.to_string()),
        }
    }
}

impl From<store::Error> for Status {
    fn from(e: store::Error) -> Self {
        let code = match &e {
            store::Error::Io { .. } => Code::ResourceExhausted,
            store::Error::Absent(_) => Code::NotFound,
            store::Error::Damaged { .. } => Code::DataLoss,
            store::Error::Transfer(_) | store::Error::Repeated(_) => Code::InvalidArgument,
        };
        Self::new(code, e.to_string())
    }
}

/// `site`'s own receipt that it has the checkpoint of `visit`, as it was told once.
pub fn received_receipt(
    round: &Round,
    site: &SiteId,
    visit: VisitNo,
    weights: Digest,
) -> Option<Envelope> {
    let told = ReceiptBody::Received { visit, weights };
    let receipts = round.receipts.get(site)?;
    receipts.iter().find(|e| Receipt::unverified(e).is_ok_and(|r| r.body == told)).cloned()
}
