//! Services: each handler converts, asks the daemon, converts back.

pub mod collect;
pub mod control;
mod models;
pub mod peer;
pub mod trainer;

use crate::reason::Reason;
use crate::{daemon, store};
use rondo::round::Refusal;
use rondo::transfer;
use tonic::Status;

/// What a refusal means to a caller.
fn refused(refusal: &Refusal) -> Status {
    Reason::from(refusal).because(refusal)
}

impl From<daemon::Error> for Status {
    fn from(e: daemon::Error) -> Self {
        match &e {
            daemon::Error::Refused(refusal) => refused(refusal),
            daemon::Error::Journal(_) => Reason::Storage.because(e),
            daemon::Error::Sign(_) => Reason::Internal.because(e),
            daemon::Error::Stopping => Reason::Stopping.because(e),
        }
    }
}

impl From<store::Error> for Status {
    fn from(e: store::Error) -> Self {
        let reason = match &e {
            store::Error::Io { .. } => Reason::Storage,
            store::Error::Absent(_) => Reason::Absent,
            store::Error::Damaged { .. } => Reason::Damaged,
            store::Error::Busy(_) => Reason::Busy,
            store::Error::Gap(_) => Reason::ChunkUnasked,
            store::Error::Checkpoint(e) => {
                let e = rondo::passport::Error::from(e.clone());
                return Reason::from_code(e.code()).unwrap_or(Reason::WeightsLayout).because(e);
            }
            store::Error::Repeated(_) | store::Error::Transfer(transfer::Error::Index { .. }) => {
                Reason::ChunkUnasked
            }
            store::Error::Transfer(transfer::Error::Chunk { .. }) => Reason::ChunkDigest,
            store::Error::Transfer(transfer::Error::Length { .. }) => Reason::ChunkLength,
            store::Error::Transfer(transfer::Error::Table(_)) => Reason::ChunkTable,
        };
        reason.because(e)
    }
}
