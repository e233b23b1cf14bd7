//! The passport: the chain of signed manifests from a round's start to a checkpoint.
//!
//! It can be checked offline, with nothing but the roster: who trained, on how much, with what result.

use crate::checkpoint::Layout;
use crate::envelope::Envelope;
use crate::ids::{Digest, SiteId, VisitNo};
use crate::manifest::{self, Manifest};
use crate::plan::{self, Plan, PlanFacts};
use crate::round::{PassReason, Receipt, ReceiptBody};
use crate::transfer;
use crate::trust::{self, Roster};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Largest passport that is read.
pub const PASSPORT_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Why a passport was refused. Each reason has a code that crosses the wire and scripts can test.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Unreadable.
    #[error("reading a passport: {0}")]
    Malformed(String),
    /// The plan.
    #[error("the passport's plan: {0}")]
    Plan(#[from] plan::Error),
    /// A site that takes part is unknown or revoked.
    #[error("the passport names a site that is not trusted: {0}")]
    Site(#[from] trust::Error),
    /// Not every site approved the plan.
    #[error("{0} did not approve the plan, or its approval is not genuine")]
    Approval(SiteId),
    /// Too few or too many hops.
    #[error("the passport has {found} hops, which is not possible in a plan of {planned} visits")]
    Hops {
        /// Hops found.
        found: usize,
        /// Visits in the plan.
        planned: u32,
    },
    /// One hop's signature or form.
    #[error("hop {hop}: {source}")]
    Manifest {
        /// Visit number of the hop.
        hop: VisitNo,
        /// What is wrong.
        source: manifest::Error,
    },
    /// One hop does not follow from the plan or from the hop before it.
    #[error("hop {hop}: {what}")]
    Chain {
        /// Visit number of the hop.
        hop: VisitNo,
        /// What does not follow.
        what: &'static str,
    },
    /// A statement that a visit was passed over.
    #[error("a statement that a visit was passed over: {0}")]
    Pass(&'static str),
    /// The weights beside the passport are not the ones it ends with.
    #[error("{0}")]
    Weights(transfer::Error),
    /// The weights are as signed, but not a checkpoint of this architecture.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
}

impl Error {
    /// Reason code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "passport-malformed",
            Self::Plan(_) => "passport-plan",
            Self::Site(trust::Error::Revoked(_)) => "passport-signer-revoked",
            Self::Site(_) => "passport-signer-unknown",
            Self::Approval(_) => "passport-approval",
            Self::Hops { .. } => "passport-hops",
            Self::Manifest { .. } => "passport-signature",
            Self::Chain { .. } => "passport-chain",
            Self::Pass(_) => "passport-pass",
            Self::Weights(_) | Self::Checkpoint(crate::checkpoint::Error::Digest { .. }) => {
                "weights-damaged"
            }
            Self::Checkpoint(crate::checkpoint::Error::NotFinite { .. }) => "weights-not-finite",
            Self::Checkpoint(_) => "weights-layout",
        }
    }
}

/// A passport as it travels; nothing in it is believed before [`Passport::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passport {
    version: u32,
    /// The plan's canonical bytes, as text.
    pub plan: String,
    /// Every site's signed approval.
    pub approvals: Vec<Envelope>,
    /// One signed manifest for each visit that stands, in order.
    pub manifests: Vec<Envelope>,
    /// Signed statements about the visits in between that were passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<Envelope>,
}

/// A passport that was checked against a roster. Only [`Passport::verify`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedPassport {
    plan: Plan,
    hops: Vec<Manifest>,
    last: Manifest,
}

impl Passport {
    /// Puts a passport together.
    #[must_use]
    pub fn new(plan: &Plan, approvals: Vec<Envelope>, manifests: Vec<Envelope>) -> Self {
        let plan = String::from_utf8(plan.canonical()).unwrap_or_default();
        Self { version: 1, plan, approvals, manifests, passes: Vec::new() }
    }

    /// Reads a passport.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > PASSPORT_MAX_BYTES {
            return Err(Error::Malformed(format!("it is larger than {PASSPORT_MAX_BYTES} bytes")));
        }
        let passport: Self =
            serde_json::from_slice(bytes).map_err(|e| Error::Malformed(e.to_string()))?;
        if passport.version != 1 {
            let text = format!("format version {} is newer than this software", passport.version);
            return Err(Error::Malformed(text));
        }
        Ok(passport)
    }

    /// The JSON form.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Checks everything: plan, approvals, and each hop's signer, place and parent.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self, roster: &Roster) -> Result<VerifiedPassport, Error> {
        let plan = Plan::from_canonical(self.plan.as_bytes())?;
        let facts = plan.facts();
        let round = facts.round;
        for site in &plan.sites {
            roster.trusted(site)?;
            let approves = |e: &&Envelope| {
                let Ok(key) = roster.signing_key(site, e) else { return false };
                Receipt::open(e, &key).is_ok_and(|r| {
                    r.round == round && r.site == *site && r.body == ReceiptBody::Approved
                })
            };
            if self.approvals.iter().find(approves).is_none() {
                return Err(Error::Approval(site.clone()));
            }
        }
        let (found, planned) = (self.manifests.len(), plan.visit_count());
        if self.approvals.len() != plan.sites.len() || found > planned as usize {
            return Err(Error::Hops { found, planned });
        }
        if self.passes.len() > planned as usize {
            return Err(Error::Pass("there are more of them than visits"));
        }
        let passed = |envelope| verify_pass(&plan, envelope, roster).map(|(_, visit, _)| visit);
        let passed = self.passes.iter().map(passed).collect::<Result<BTreeSet<_>, _>>()?;
        let mut hops: Vec<Manifest> = Vec::with_capacity(found);
        for envelope in &self.manifests {
            let next = hops.last().map_or(VisitNo::FIRST, |last| last.visit.next());
            let claimed = Manifest::unverified(envelope).map_or(next, |m| m.visit);
            // Only signed statements let a hop follow one that is not right before it.
            let shown = (next.0..claimed.0).all(|n| passed.contains(&VisitNo(n)));
            let hop = if shown { claimed.max(next) } else { next };
            let manifest = verify_hop(&plan, &facts, hops.last(), hop, envelope, roster)?;
            hops.push(manifest);
        }
        let last = hops.last().cloned().ok_or(Error::Hops { found, planned })?;
        Ok(VerifiedPassport { plan, hops, last })
    }
}

/// Checks a statement that a visit of `plan` is passed over: who says it, which visit, and why.
///
/// # Errors
/// [`Error::Site`] or [`Error::Pass`].
pub fn verify_pass(
    plan: &Plan,
    envelope: &Envelope,
    roster: &Roster,
) -> Result<(SiteId, VisitNo, PassReason), Error> {
    let malformed = |_| Error::Pass("it cannot be read, or its signature does not hold");
    let claimed = Receipt::unverified(envelope).map_err(malformed)?;
    let key = roster.signing_key(&claimed.site, envelope)?;
    let receipt = Receipt::open(envelope, &key).map_err(malformed)?;
    if receipt.round != plan.round() {
        return Err(Error::Pass("it belongs to another round"));
    }
    match receipt.body {
        ReceiptBody::Passed { visit, reason } if plan.may_pass(&receipt.site, visit, reason) => {
            Ok((receipt.site, visit, reason))
        }
        ReceiptBody::Passed { .. } => Err(Error::Pass("it is not for its site to pass it over")),
        _ => Err(Error::Pass("its site says something else")),
    }
}

/// Checks one manifest as hop `hop` of `plan`, of which `facts` are, after `previous`.
///
/// # Errors
/// [`Error::Site`], [`Error::Manifest`] or [`Error::Chain`].
pub fn verify_hop(
    plan: &Plan,
    facts: &PlanFacts,
    previous: Option<&Manifest>,
    hop: VisitNo,
    envelope: &Envelope,
    roster: &Roster,
) -> Result<Manifest, Error> {
    let chain = |what| Error::Chain { hop, what };
    let site = plan.site_of(hop).ok_or(chain("the plan has no such visit"))?;
    let key = roster.signing_key(site, envelope)?;
    let manifest =
        Manifest::open(envelope, &key).map_err(|source| Error::Manifest { hop, source })?;
    let parent = previous.map_or(plan.start_digest(), |p| Some(p.weights.object));
    for (holds, what) in [
        (manifest.round == facts.round, "its manifest belongs to another round"),
        (manifest.visit == hop, "its manifest is of another visit"),
        (manifest.cycle == plan.cycle_of(hop), "its manifest is of another cycle"),
        (manifest.site == *site, "it was not this site's turn"),
        (manifest.parent == parent, "its parent is not the checkpoint of the hop before"),
        (manifest.architecture == plan.recipe.architecture, "its architecture is not the plan's"),
        (manifest.recipe == facts.recipe, "its recipe is not the plan's"),
        (manifest.weights.bytes == facts.bytes, "its length is not that of the architecture"),
    ] {
        if !holds {
            return Err(chain(what));
        }
    }
    Ok(manifest)
}

impl VerifiedPassport {
    /// The plan all sites approved.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The manifests in order; never empty.
    #[must_use]
    pub fn hops(&self) -> &[Manifest] {
        &self.hops
    }

    /// The manifest of the checkpoint this passport belongs to.
    #[must_use]
    pub fn last(&self) -> &Manifest {
        &self.last
    }

    /// The layout its weights must have.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.plan.layout()
    }

    /// Checks the weights that lie beside the passport, naming the first damaged chunk.
    ///
    /// # Errors
    /// [`Error::Weights`] or [`Error::Checkpoint`].
    pub fn verify_weights(&self, weights: &[u8]) -> Result<(), Error> {
        match self.last.weights.first_damage(weights) {
            Some(damage) => Err(Error::Weights(damage)),
            None if weights.len() as u64 != self.last.weights.bytes => {
                let (expected, found) = (self.last.weights.bytes, weights.len() as u64);
                Err(crate::checkpoint::Error::Length { expected, found }.into())
            }
            None => Ok(self.layout().check(weights)?),
        }
    }

    /// Digest of the checkpoint.
    #[must_use]
    pub fn weights(&self) -> Digest {
        self.last.weights.object
    }
}
