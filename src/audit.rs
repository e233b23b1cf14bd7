//! The audit log: who did what at a site, as a hash-chained list of lines that the site signs now and then.
//!
//! Goals: a line that was removed, changed or moved is found and named, and so is an end that was cut
//! off behind a signature. Not goals: hiding what was done; a log that its own site cannot rewrite from
//! an old backup, unless an auditor kept a later signature ([`Mark`]) elsewhere.

use crate::envelope::{self, Envelope, SigningKey};
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::journal::Tip;
use crate::trust::SiteCard;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Payload type of a signature over the log so far.
pub const MARK_TYPE: &str = "application/vnd.rondo.audit.v1+json";
/// Format of a line's payload that this software writes.
pub const LINE_VERSION: u32 = 1;
/// Keeps digests of this chain apart from those of any other.
const DOMAIN: &[u8] = b"rondo audit line\0";

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line is missing.
    #[error("audit line {expected} is missing; line {found} stands in its place")]
    Missing {
        /// Number that should come.
        expected: u64,
        /// Number that came.
        found: u64,
    },
    /// A line is not what was written, or not where it was written.
    #[error("audit line {0} was changed or moved")]
    Changed(u64),
    /// The end is missing.
    #[error("audit lines {} to {signed} were cut off the end; a signature over line {signed} is there", last + 1)]
    Cut {
        /// Last line that is there.
        last: u64,
        /// Last line that was signed.
        signed: u64,
    },
    /// Lines and digests were written anew.
    #[error(
        "audit lines up to {0} were rewritten: the signature over line {0} names another digest"
    )]
    Rewritten(u64),
    /// A signature of somebody else, or of something else.
    #[error("the signature over audit line {0} is not this site's")]
    Signature(u64),
    /// A line that cannot be read.
    #[error("audit line {number} cannot be read: {what}")]
    Payload {
        /// The line.
        number: u64,
        /// What is wrong.
        what: String,
    },
    /// Written by newer software.
    #[error("audit line {number} has format version {version}; this software reads {LINE_VERSION}")]
    Version {
        /// The line.
        number: u64,
        /// Its version.
        version: u32,
    },
    /// Signing failed.
    #[error("signing the audit log: {0}")]
    Sign(#[from] envelope::Error),
}

impl Error {
    /// Reason code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "audit-missing",
            Self::Changed(_) => "audit-changed",
            Self::Cut { .. } => "audit-cut",
            Self::Rewritten(_) => "audit-rewritten",
            Self::Signature(_) => "audit-signature",
            Self::Payload { .. } => "audit-malformed",
            Self::Version { .. } => "audit-version",
            Self::Sign(_) => "audit-sign",
        }
    }
}

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Who {
    /// Somebody on this machine, as the kernel says; absent where it could not.
    Operator {
        /// User.
        uid: Option<u32>,
        /// Process.
        pid: Option<i32>,
    },
    /// Another site.
    Peer {
        /// Its id.
        site: SiteId,
    },
    /// Somebody without a trusted key.
    Stranger,
    /// The daemon itself.
    Daemon,
}

/// What was done. No free text: numbers, ids, digests and codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum What {
    /// The daemon started.
    Started {
        /// Its software.
        version: [u32; 3],
        /// Records in the journal.
        journal_records: u64,
    },
    /// The daemon stopped in order.
    Stopped,
    /// A site was added to the roster by an operator, or its renewed card was adopted by the daemon.
    PeerAdded {
        /// Its id.
        site: SiteId,
        /// Of its keys: the operator compared it, or the card before vouched for it.
        fingerprint: String,
    },
    /// A site was revoked.
    PeerRevoked {
        /// Its id.
        site: SiteId,
    },
    /// This site's own card or keys were renewed.
    SiteRenewed {
        /// Fingerprint of the card in force.
        fingerprint: String,
        /// Fingerprint of the announced keys.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_fingerprint: Option<String>,
    },
    /// A plan was proposed.
    RoundProposed {
        /// The round.
        round: RoundId,
    },
    /// A plan was approved.
    RoundApproved {
        /// The round.
        round: RoundId,
    },
    /// A round was started.
    RoundStarted {
        /// The round.
        round: RoundId,
    },
    /// A round was paused.
    RoundPaused {
        /// The round.
        round: RoundId,
    },
    /// A pause was taken back.
    RoundResumed {
        /// The round.
        round: RoundId,
    },
    /// A round was aborted.
    RoundAborted {
        /// The round.
        round: RoundId,
    },
    /// A round goes on from here without a site that is lost.
    RoundRecovered {
        /// The round.
        round: RoundId,
        /// The site that was named, if one was.
        without: Option<SiteId>,
    },
    /// A model left the store to a file.
    ModelExported {
        /// Its digest.
        weights: Digest,
    },
    /// A model came into the store from a file.
    ModelImported {
        /// Its digest.
        weights: Digest,
    },
    /// A result waits for an operator's word before it is signed and leaves.
    ContributionHeld {
        /// The round.
        round: RoundId,
        /// The visit.
        visit: VisitNo,
    },
    /// An operator let a result go.
    ContributionReleased {
        /// The round.
        round: RoundId,
        /// The visit.
        visit: VisitNo,
    },
    /// A received checkpoint did not pass the gate of its plan, and was set aside.
    CheckpointRefused {
        /// The round.
        round: RoundId,
        /// The visit that made it.
        visit: VisitNo,
        /// The checkpoint.
        weights: Digest,
    },
    /// Calls or connections were refused.
    Refused {
        /// Code of the reason.
        reason: String,
        /// How many since the last such line.
        count: u64,
    },
    /// What has left to each peer since the site was made, in bytes.
    Egress {
        /// Bytes by peer.
        bytes: BTreeMap<SiteId, u64>,
    },
}

/// The content of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Unix time by this site's clock.
    pub at: u64,
    /// Who.
    pub who: Who,
    /// What.
    pub what: What,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// From 1 without gaps.
    pub number: u64,
    /// Format of the payload.
    pub version: u32,
    /// The entry, in that format.
    pub payload: Vec<u8>,
    /// Digest over the previous line's digest and this line.
    pub digest: Digest,
}

impl Line {
    /// The line that follows `tip`.
    ///
    /// # Errors
    /// [`Error::Payload`] if the entry cannot be written.
    pub fn next(tip: Tip, entry: &Entry) -> Result<Self, Error> {
        let number = tip.number + 1;
        let payload = serde_json::to_vec(entry)
            .map_err(|e| Error::Payload { number, what: e.to_string() })?;
        let digest = chain(tip.digest, number, LINE_VERSION, &payload);
        Ok(Self { number, version: LINE_VERSION, payload, digest })
    }

    /// The end of a log whose last line this is.
    #[must_use]
    pub fn tip(&self) -> Tip {
        Tip { number: self.number, digest: self.digest }
    }
}

fn chain(previous: Digest, number: u64, version: u32, payload: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    hash.update(previous.as_bytes());
    hash.update(number.to_le_bytes());
    hash.update(version.to_le_bytes());
    hash.update((payload.len() as u64).to_le_bytes());
    hash.update(payload);
    Digest::from_bytes(hash.finalize().into())
}

/// What a site signs: that the log had this line, and with it all lines before, at this time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The site.
    pub site: SiteId,
    /// Number of the line.
    pub number: u64,
    /// Its digest.
    pub digest: Digest,
    /// Unix time.
    pub at: u64,
}

impl Mark {
    /// Signs it.
    ///
    /// # Errors
    /// [`Error::Sign`].
    pub fn sign(&self, key: &SigningKey) -> Result<Envelope, Error> {
        let payload = serde_json::to_vec(self)
            .map_err(|e| Error::Payload { number: self.number, what: e.to_string() })?;
        Ok(key.sign(MARK_TYPE, payload)?)
    }

    /// Opens a signature that should be over line `number`.
    ///
    /// # Errors
    /// [`Error::Signature`] if no key of `card` signed it.
    fn open(envelope: &Envelope, number: u64, card: &SiteCard) -> Result<Self, Error> {
        let mut keys = card.signing_keys().filter(|key| key.id() == envelope.key());
        let key = keys.next().ok_or(Error::Signature(number))?;
        let payload = envelope.verify(MARK_TYPE, key).map_err(|_| Error::Signature(number))?;
        let mark: Self = serde_json::from_slice(payload).map_err(|_| Error::Signature(number))?;
        if mark.number == number { Ok(mark) } else { Err(Error::Signature(number)) }
    }

    /// The line that an envelope speaks of, before it is verified; none if it is no mark.
    #[must_use]
    pub fn number_of(envelope: &Envelope) -> Option<u64> {
        let mark: Self = serde_json::from_slice(envelope.unverified(MARK_TYPE).ok()?).ok()?;
        Some(mark.number)
    }
}

/// Goes through a log line by line, and holds it against its signatures.
#[derive(Debug, Clone)]
pub struct Walk {
    tip: Tip,
    marks: Vec<Mark>,
    next: usize,
    signed: Option<Mark>,
}

impl Walk {
    /// Begins with all signatures by line; each must be by a key that `card` names.
    ///
    /// # Errors
    /// The first that is not.
    pub fn new(
        marks: impl IntoIterator<Item = (u64, Envelope)>,
        card: &SiteCard,
    ) -> Result<Self, Error> {
        let open = |(number, envelope): (u64, Envelope)| Mark::open(&envelope, number, card);
        let mut marks = marks.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        marks.sort_by_key(|mark| mark.number);
        Ok(Self { tip: Tip::EMPTY, marks, next: 0, signed: None })
    }

    /// Checks the next line and reads its entry.
    ///
    /// # Errors
    /// The place and kind of what is wrong.
    pub fn line(&mut self, line: &Line) -> Result<Entry, Error> {
        let number = line.number;
        let expected = self.tip.number + 1;
        if number != expected {
            return Err(Error::Missing { expected, found: number });
        }
        if line.digest != chain(self.tip.digest, number, line.version, &line.payload) {
            return Err(Error::Changed(number));
        }
        self.tip = line.tip();
        while let Some(mark) = self.marks.get(self.next).filter(|mark| mark.number <= number) {
            if mark.number != number || mark.digest != line.digest {
                return Err(Error::Rewritten(mark.number));
            }
            self.signed = Some(mark.clone());
            self.next += 1;
        }
        match line.version {
            1 => serde_json::from_slice(&line.payload)
                .map_err(|e| Error::Payload { number, what: e.to_string() }),
            version => Err(Error::Version { number, version }),
        }
    }

    /// The end of the log, and the last signature over it.
    ///
    /// # Errors
    /// [`Error::Cut`] if lines are signed that are not there.
    pub fn finish(self) -> Result<(Tip, Option<Mark>), Error> {
        match self.marks.last().filter(|_| self.next < self.marks.len()) {
            Some(mark) => Err(Error::Cut { last: self.tip.number, signed: mark.number }),
            None => Ok((self.tip, self.signed)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    fn log(lines: u64) -> Vec<Line> {
        let mut tip = Tip::EMPTY;
        let entry = |n| Entry {
            at: n,
            who: Who::Operator { uid: Some(1000), pid: Some(7) },
            what: What::Refused { reason: "not-approved".to_owned(), count: n },
        };
        (1..=lines)
            .map(|n| {
                let line = Line::next(tip, &entry(n)).unwrap();
                tip = line.tip();
                line
            })
            .collect()
    }

    fn mark(line: &Line, key: &SigningKey) -> (u64, Envelope) {
        let site = "uker".parse().unwrap();
        let mark = Mark { site, number: line.number, digest: line.digest, at: 9 };
        (line.number, mark.sign(key).unwrap())
    }

    fn verify(
        lines: &[Line],
        marks: &[(u64, Envelope)],
        key: &SigningKey,
    ) -> Result<(Tip, Option<Mark>), Error> {
        let mut walk = Walk::new(marks.to_vec(), &crate::trust::tests::card("uker", key))?;
        for line in lines {
            walk.line(line)?;
        }
        walk.finish()
    }

    #[test]
    fn removed_changed_moved_cut_and_rewritten_lines_are_named() {
        let (own, foreign) = (key(), key());
        let good = log(9);
        let marks = [mark(&good[4], &own), mark(&good[8], &own)];
        let bad = |lines: &[Line]| verify(lines, &marks, &own).unwrap_err();

        let mut removed = good.clone();
        removed.remove(3);
        assert_eq!(bad(&removed), Error::Missing { expected: 4, found: 5 });
        let mut changed = good.clone();
        changed[2].payload[8] ^= 1;
        assert_eq!(bad(&changed), Error::Changed(3));
        let mut moved = good.clone();
        moved.swap(5, 6);
        (moved[5].number, moved[6].number) = (6, 7);
        assert_eq!(bad(&moved), Error::Changed(6));
        assert_eq!(bad(&good[..7]), Error::Cut { last: 7, signed: 9 });
        assert_eq!(bad(&[]), Error::Cut { last: 0, signed: 9 });
        // A whole chain of its own, as somebody without the key could make it.
        let mut other = log(1);
        let entry = Entry { at: 5, who: Who::Stranger, what: What::Stopped };
        for _ in 1..9 {
            other.push(Line::next(other.last().unwrap().tip(), &entry).unwrap());
        }
        assert_eq!(bad(&other), Error::Rewritten(5));
        let theirs = [mark(&good[4], &foreign)];
        assert_eq!(verify(&good, &theirs, &own), Err(Error::Signature(5)));
        let misplaced = [(6, marks[0].1.clone())];
        assert_eq!(verify(&good, &misplaced, &own), Err(Error::Signature(6)));

        let (tip, signed) = verify(&good, &marks, &own).unwrap();
        assert_eq!((tip.number, signed.unwrap().number), (9, 9));
        assert_eq!(verify(&good, &[], &own).unwrap().1, None);
        assert_eq!(Mark::number_of(&marks[1].1), Some(9));
    }

    #[test]
    fn every_flipped_bit_of_a_line_is_found() {
        let own = key();
        let good = log(3);
        for byte in 0..good[1].payload.len() {
            for bit in 0..8 {
                let mut lines = good.clone();
                lines[1].payload[byte] ^= 1 << bit;
                assert_eq!(verify(&lines, &[], &own), Err(Error::Changed(2)));
            }
        }
        let mut lines = good.clone();
        lines[1].version += 1;
        assert_eq!(verify(&lines, &[], &own), Err(Error::Changed(2)));
    }
}
