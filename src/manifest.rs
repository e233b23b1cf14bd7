//! The manifest: what the site that trained a checkpoint says, and signs, about it.

use crate::envelope::{self, Envelope, SigningKey, VerifyingKey};
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::recipe::Architecture;
use crate::transfer::{self, ChunkTable};
use serde::{Deserialize, Serialize};

/// Payload type of an in-toto statement.
pub const STATEMENT_PAYLOAD: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "urn:rondo:manifest:v1";
const SUBJECT: &str = "checkpoint.safetensors";

/// Longest name of a software or filter: a name, not a place for text.
const NAME_MAX_BYTES: usize = 64;
/// Most filters of one update.
const FILTERS_MAX: usize = 8;

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Envelope or signature.
    #[error(transparent)]
    Envelope(#[from] envelope::Error),
    /// Signed, but not a manifest.
    #[error("reading a manifest: {0}")]
    Malformed(String),
    /// Its chunk table.
    #[error(transparent)]
    Table(#[from] transfer::Error),
}

/// How much a visit trained on; counts only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Training cases.
    pub training_cases: u32,
    /// Validation cases.
    pub validation_cases: u32,
    /// Epochs gone through.
    pub epochs: u32,
    /// Updates of the weights.
    pub updates: u64,
    /// Epoch whose model is handed on.
    pub chosen_epoch: u32,
}

/// Mean whole-mask Dice on the site's validation cases; none where there is no validation case.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Of the model that was received (or the fresh one).
    pub received_dice: Option<f64>,
    /// Of the model that is handed on.
    pub trained_dice: Option<f64>,
}

/// What is signed about one checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The round, which is the digest of its plan.
    pub round: RoundId,
    /// Cycle, from 1.
    pub cycle: u32,
    /// Visit, from 1.
    pub visit: VisitNo,
    /// The site that trained.
    pub site: SiteId,
    /// The checkpoint it started from; none for a fresh model.
    pub parent: Option<Digest>,
    /// Weights digest, length and chunks.
    pub weights: ChunkTable,
    /// Widths of the network.
    pub architecture: Architecture,
    /// Digest of the resolved recipe.
    pub recipe: Digest,
    /// Software that trained, as `rondo 0.1.0`.
    pub software: String,
    /// How much it trained on.
    pub counts: Counts,
    /// Validation before and after.
    pub validation: Validation,
    /// Outbound filters applied to the update, in order.
    pub filters: Vec<String>,
    /// Unix time of signing.
    pub signed_at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Manifest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: Digest,
}

impl Manifest {
    /// Signs the manifest as an in-toto statement about its checkpoint.
    ///
    /// # Errors
    /// If signing fails.
    pub fn sign(&self, key: &SigningKey) -> Result<Envelope, Error> {
        let digest = SubjectDigest { sha256: self.weights.object };
        let statement = Statement {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject { name: SUBJECT.to_owned(), digest }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: self.clone(),
        };
        let payload =
            serde_json::to_vec(&statement).map_err(|e| Error::Malformed(e.to_string()))?;
        Ok(key.sign(STATEMENT_PAYLOAD, payload)?)
    }

    /// Opens a manifest that `key` signed.
    ///
    /// # Errors
    /// If the signature, the statement or its chunk table does not hold.
    pub fn open(envelope: &Envelope, key: &VerifyingKey) -> Result<Self, Error> {
        let payload = envelope.verify(STATEMENT_PAYLOAD, key)?;
        Self::read(payload)
    }

    /// Reads a manifest whose signer is not known yet; only to find out whose key to verify it with.
    ///
    /// # Errors
    /// If the statement is malformed.
    pub fn unverified(envelope: &Envelope) -> Result<Self, Error> {
        Self::read(envelope.unverified(STATEMENT_PAYLOAD)?)
    }

    fn read(payload: &[u8]) -> Result<Self, Error> {
        let statement: Statement =
            serde_json::from_slice(payload).map_err(|e| Error::Malformed(e.to_string()))?;
        let manifest = statement.predicate;
        let subject = matches!(statement.subject.as_slice(),
            [s] if s.name == SUBJECT && s.digest.sha256 == manifest.weights.object);
        if statement.kind != STATEMENT_TYPE
            || statement.predicate_type != PREDICATE_TYPE
            || !subject
        {
            return Err(Error::Malformed("it is not a statement about one checkpoint".to_owned()));
        }
        manifest.weights.check()?;
        let name = |text: &String| {
            text.len() <= NAME_MAX_BYTES
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" .-+".contains(&b))
        };
        if !name(&manifest.software)
            || manifest.filters.len() > FILTERS_MAX
            || !manifest.filters.iter().all(name)
        {
            return Err(Error::Malformed(
                "the name of its software or of a filter is no name".to_owned(),
            ));
        }
        Ok(manifest)
    }
}
