//! The journal: a hash-chained list of events, from which a site's state is replayed.
//!
//! A record holds the digest of the record before it; a changed, removed or reordered record breaks
//! the chain at a place that can be named. How records reach the disk is the daemon's business.

use crate::ids::Digest;
use crate::passport::PASSPORT_MAX_BYTES;
use crate::round::{Event, Refusal, SiteState, step};
use sha2::{Digest as _, Sha256};

/// Format of a record's payload that this software writes.
pub const RECORD_VERSION: u32 = 1;
/// Largest payload of one record: that of an import, with the longest passport.
pub const RECORD_MAX_BYTES: usize = PASSPORT_MAX_BYTES + 64 * 1024;

/// Why a journal cannot be replayed.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A record is missing.
    #[error(
        "journal record {expected} is missing; record {found} stands in its place. Restore the journal from a backup"
    )]
    Missing {
        /// Number that should come.
        expected: u64,
        /// Number that came.
        found: u64,
    },
    /// A record is not what was written, or not where it was written.
    #[error("journal record {0} was changed or moved. Restore the journal from a backup")]
    Chain(u64),
    /// Written by newer software.
    #[error(
        "journal record {number} has format version {version}; this software reads {RECORD_VERSION}. Install the newer version again"
    )]
    Version {
        /// The record.
        number: u64,
        /// Its version.
        version: u32,
    },
    /// The payload cannot be read.
    #[error("journal record {number} cannot be read: {what}")]
    Payload {
        /// The record.
        number: u64,
        /// What is wrong.
        what: String,
    },
    /// The event cannot follow from what came before.
    #[error("journal record {number} does not follow from the records before it: {refusal}")]
    Refused {
        /// The record.
        number: u64,
        /// Why.
        refusal: Box<Refusal>,
    },
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// From 1 without gaps.
    pub number: u64,
    /// Format of the payload.
    pub version: u32,
    /// The event, in that format.
    pub payload: Vec<u8>,
    /// Digest over the previous record's digest and this record.
    pub digest: Digest,
}

/// The end of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Number of the last record, 0 for an empty journal.
    pub number: u64,
    /// Its digest.
    pub digest: Digest,
}

impl Tip {
    /// The end of an empty journal.
    pub const EMPTY: Self = Self { number: 0, digest: Digest::from_bytes([0; 32]) };
}

impl Record {
    /// The record that follows `tip` and holds `event`.
    ///
    /// # Errors
    /// [`Error::Payload`] if the event is too large to be written.
    pub fn next(tip: Tip, event: &Event) -> Result<Self, Error> {
        let number = tip.number + 1;
        let problem = |what| Error::Payload { number, what };
        let payload = serde_json::to_vec(event).map_err(|e| problem(e.to_string()))?;
        if payload.len() > RECORD_MAX_BYTES {
            return Err(problem(format!("it is larger than {RECORD_MAX_BYTES} bytes")));
        }
        let digest = chain(tip.digest, number, RECORD_VERSION, &payload);
        Ok(Self { number, version: RECORD_VERSION, payload, digest })
    }

    /// The end of a journal whose last record this is.
    #[must_use]
    pub fn tip(&self) -> Tip {
        Tip { number: self.number, digest: self.digest }
    }

    /// Checks that the record follows `tip`, and reads its event.
    ///
    /// # Errors
    /// The place and kind of the damage.
    pub fn open(&self, tip: Tip) -> Result<Event, Error> {
        let number = self.number;
        if number != tip.number + 1 {
            return Err(Error::Missing { expected: tip.number + 1, found: number });
        }
        if self.digest != chain(tip.digest, number, self.version, &self.payload) {
            return Err(Error::Chain(number));
        }
        match self.version {
            1 => serde_json::from_slice(&self.payload)
                .map_err(|e| Error::Payload { number, what: e.to_string() }),
            version => Err(Error::Version { number, version }),
        }
    }
}

fn chain(previous: Digest, number: u64, version: u32, payload: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(previous.as_bytes());
    hash.update(number.to_le_bytes());
    hash.update(version.to_le_bytes());
    hash.update((payload.len() as u64).to_le_bytes());
    hash.update(payload);
    Digest::from_bytes(hash.finalize().into())
}

/// Replays records one by one.
#[derive(Debug, Clone)]
pub struct Replay {
    state: SiteState,
    tip: Tip,
}

impl Default for Replay {
    fn default() -> Self {
        Self { state: SiteState::default(), tip: Tip::EMPTY }
    }
}

impl Replay {
    /// Adopts the next record.
    ///
    /// # Errors
    /// The place and kind of the damage; what was replayed before stands.
    pub fn adopt(&mut self, record: &Record) -> Result<(), Error> {
        let event = record.open(self.tip)?;
        self.state = step(&self.state, &event).map_err(|refusal| Error::Refused {
            number: record.number,
            refusal: Box::new(refusal),
        })?;
        self.tip = record.tip();
        Ok(())
    }

    /// The state so far.
    #[must_use]
    pub fn state(&self) -> &SiteState {
        &self.state
    }

    /// The journal's end so far.
    #[must_use]
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// The state so far and the journal's end.
    #[must_use]
    pub fn finish(self) -> (SiteState, Tip) {
        (self.state, self.tip)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::passport::Passport;

    #[test]
    fn whatever_passport_is_read_can_be_recorded() {
        let passport = |length| {
            let plan = "p".repeat(length);
            let json = format!(r#"{{"version":1,"plan":"{plan}","approvals":[],"manifests":[]}}"#);
            Passport::from_json(json.as_bytes())
        };
        assert!(passport(PASSPORT_MAX_BYTES).is_err());
        let event = Event::ModelImported { passport: passport(PASSPORT_MAX_BYTES - 99).unwrap() };
        let record = Record::next(Tip::EMPTY, &event).unwrap();
        assert_eq!(record.open(Tip::EMPTY).unwrap(), event);
    }
}
