//! Receipts: signed statements of one site about one round, numbered without gaps.

use crate::envelope::{self, Envelope, SigningKey, VerifyingKey};
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use serde::{Deserialize, Serialize};

/// Payload type of a receipt.
pub const RECEIPT_TYPE: &str = "application/vnd.rondo.receipt.v1+json";

/// What a site states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReceiptBody {
    /// Here is a plan; its canonical bytes as text.
    Proposed {
        /// The plan.
        plan: String,
    },
    /// This site takes part in the plan that the round is named after.
    Approved,
    /// Every site approved; the round begins.
    Started,
    /// This site has the checkpoint of a visit, verified and stored. Acknowledges the hand-over.
    Received {
        /// Visit that made the checkpoint.
        visit: VisitNo,
        /// The checkpoint.
        weights: Digest,
    },
    /// This site's trainer works on a visit.
    Training {
        /// The visit.
        visit: VisitNo,
    },
    /// This site's trainer cannot finish a visit for now; it will try again.
    Stalled {
        /// The visit.
        visit: VisitNo,
        /// Why.
        reason: StallReason,
    },
    /// This site finished a visit.
    Contributed {
        /// The signed manifest of what it trained.
        manifest: Envelope,
    },
    /// Nothing of the round is begun or handed over until this site resumes it.
    Paused,
    /// This site takes its pause back.
    Resumed,
    /// The round ends here, unless every visit is handed over already.
    Aborted,
    /// This site received the checkpoint of a visit, but does not train on it: it did not pass the
    /// gate of the plan. It is kept aside.
    Refused {
        /// Visit that made the checkpoint.
        visit: VisitNo,
        /// The checkpoint.
        weights: Digest,
        /// Why.
        reason: RefusalReason,
    },
    /// A visit is passed over: the round goes on from the checkpoint before it.
    Passed {
        /// The visit.
        visit: VisitNo,
        /// Why.
        reason: PassReason,
    },
}

/// Why a checkpoint did not pass the gate: codes, because text could carry what must not leave a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// It changed more than the plan allows.
    Norm,
    /// Its validation at the receiving site is below what the plan demands.
    Floor,
}

/// Why a visit is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassReason {
    /// Its contribution did not pass the gate of the site after it.
    Refused,
    /// Its site did not take the checkpoint in the time that the plan gives it.
    Absent,
    /// Its site will not come back, an operator says.
    Lost,
}

/// Why a visit stalls: codes, because text could carry what must not leave a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StallReason {
    /// No trainer is connected.
    TrainerAbsent,
    /// The trainer ended or broke off.
    TrainerFailed,
    /// The trainer cannot use its cohort.
    Cohort,
    /// The loss became not finite.
    Diverged,
    /// The trained model could not be stored.
    Storage,
    /// The result waits until this site's operator releases it.
    Held,
    /// What the site's own policy does not let out.
    Policy,
    /// Releasing a result would cost more privacy than the site's policy allows.
    PrivacyBudget,
}

/// One signed statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The round.
    pub round: RoundId,
    /// Who states it.
    pub site: SiteId,
    /// Number among this site's receipts of this round, from 1 without gaps.
    pub number: u32,
    /// Unix time by the site's own clock; informative.
    pub at: u64,
    /// What is stated.
    pub body: ReceiptBody,
}

impl Receipt {
    /// Signs the receipt.
    ///
    /// # Errors
    /// If signing fails.
    pub fn sign(&self, key: &SigningKey) -> Result<Envelope, envelope::Error> {
        let payload =
            serde_json::to_vec(self).map_err(|e| envelope::Error::Malformed(e.to_string()))?;
        key.sign(RECEIPT_TYPE, payload)
    }

    /// Opens a receipt that `key` signed.
    ///
    /// # Errors
    /// If it is not one.
    pub fn open(envelope: &Envelope, key: &VerifyingKey) -> Result<Self, envelope::Error> {
        read(envelope.verify(RECEIPT_TYPE, key)?)
    }

    /// Reads a receipt whose signer is not known yet; only to find out whose key to verify it with.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn unverified(envelope: &Envelope) -> Result<Self, envelope::Error> {
        read(envelope.unverified(RECEIPT_TYPE)?)
    }
}

fn read(payload: &[u8]) -> Result<Receipt, envelope::Error> {
    serde_json::from_slice(payload).map_err(|e| envelope::Error::Malformed(e.to_string()))
}
