//! The papers of a model: everything that travels with a checkpoint when it leaves a site as a file.
//!
//! The passport says what the model is. The receipts let a site without a network follow the round.
//! The cards are information about its sites and give no trust. The signature is an OpenSSF Model
//! Signing v1.0 bundle over all of it and the weights, so that `model-signing verify key` can check
//! the unpacked file without any software of Rondo.

use crate::envelope::{self, Envelope, SigningKey, VerifyingKey};
use crate::ids::{Digest, SiteId};
use crate::manifest::STATEMENT_PAYLOAD;
use crate::passport::{self, PASSPORT_MAX_BYTES, Passport, VerifiedPassport};
use crate::plan::Plan;
use crate::round::Receipt;
use crate::trust::{self, Roster, SiteCard};
use serde::{Deserialize, Serialize};

/// Name of the weights among the members of a model.
pub const WEIGHTS_NAME: &str = "checkpoint.safetensors";
/// Name of the passport.
pub const PASSPORT_NAME: &str = "passport.json";
/// Name of the receipts.
pub const RECEIPTS_NAME: &str = "receipts.json";
/// Name of the signature over all other members.
pub const SIGNATURE_NAME: &str = "model.sig";
/// Largest list of receipts that is read: each contribution of a passport once more, and the rest.
pub const RECEIPTS_MAX_BYTES: usize = 2 * PASSPORT_MAX_BYTES;
/// Largest signature that is read: a few hundred bytes for each site's card.
pub const SIGNATURE_MAX_BYTES: usize = 256 * 1024;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Name of the model in its signature; informative.
const SUBJECT: &str = "rondo-model";

/// Why the papers of a model were refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The passport, or the weights beside it.
    #[error(transparent)]
    Passport(#[from] passport::Error),
    /// Not a list of receipts.
    #[error("reading the receipts: {0}")]
    Malformed(String),
    /// A receipt that is not genuine, or of another round.
    #[error("receipt {place} of the model's file: {what}")]
    Receipt {
        /// Its place in the list, from 1.
        place: usize,
        /// What is wrong.
        what: String,
    },
    /// The cards are not those of the plan's sites in order.
    #[error("the cards of the model's file: {0}")]
    Cards(String),
    /// Not a signature in the form that is written here.
    #[error("reading {SIGNATURE_NAME}: {0}")]
    SignatureMalformed(String),
    /// Signed by nobody who is known here.
    #[error(
        "{SIGNATURE_NAME} is of a key that is not in the roster; add the card of the site that exported the model"
    )]
    SignerUnknown,
    /// Signed by a site that is not trusted any more.
    #[error("{SIGNATURE_NAME} is of {0}, which is revoked in this roster")]
    SignerRevoked(SiteId),
    /// The signature does not hold.
    #[error("{SIGNATURE_NAME} of {0} does not hold: it was changed")]
    Signature(SiteId),
    /// Something was changed after it was signed.
    #[error("`{member}` is not the one that {signer} signed")]
    Member {
        /// Which member.
        member: String,
        /// Who signed.
        signer: SiteId,
    },
    /// The library could not sign.
    #[error(transparent)]
    Sign(#[from] envelope::Error),
}

impl Error {
    /// Reason code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Passport(e) => e.code(),
            Self::Malformed(_) => "receipts-malformed",
            Self::Receipt { .. } => "receipts-foreign",
            Self::Cards(_) => "cards-malformed",
            Self::SignatureMalformed(_) => "model-signature-malformed",
            Self::SignerUnknown => "model-signer-unknown",
            Self::SignerRevoked(_) => "model-signer-revoked",
            Self::Signature(_) | Self::Sign(_) => "model-signature",
            Self::Member { .. } => "model-member-changed",
        }
    }
}

/// Papers as they travel; nothing in them is believed before [`Papers::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Papers {
    /// The passport in JSON.
    pub passport: Vec<u8>,
    /// All receipts of the round that the exporting site knew: a JSON list of envelopes.
    pub receipts: Vec<u8>,
    /// The signed cards of the plan's sites, in the order of their names.
    pub cards: Vec<Vec<u8>>,
    /// The OpenSSF bundle.
    pub signature: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Material {
    public_key: KeyHint,
    tlog_entries: [(); 0],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyHint {
    hint: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: [Subject; 1],
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    name: String,
    algorithm: String,
    digest: Digest,
}

impl Statement {
    fn of(members: &[(String, Digest)]) -> Self {
        let all: Vec<u8> = members.iter().flat_map(|(_, digest)| *digest.as_bytes()).collect();
        let resource = |(name, digest): &(String, Digest)| Resource {
            name: name.clone(),
            algorithm: "sha256".to_owned(),
            digest: *digest,
        };
        Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject: [Subject {
                name: SUBJECT.to_owned(),
                digest: SubjectDigest { sha256: Digest::of(&all) },
            }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: "sha256".to_owned(),
                    allow_symlinks: false,
                    ignore_paths: vec![SIGNATURE_NAME.to_owned()],
                },
                resources: members.iter().map(resource).collect(),
            },
        }
    }

    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Name of a site's card among the members of a model.
#[must_use]
pub fn card_name(site: &SiteId) -> String {
    format!("cards/{site}.json")
}

/// Writes a list of receipts.
#[must_use]
pub fn receipts_json<'a>(receipts: impl IntoIterator<Item = &'a Envelope>) -> Vec<u8> {
    serde_json::to_vec(&receipts.into_iter().collect::<Vec<_>>()).unwrap_or_default()
}

/// Reads a list of receipts; none is believed by this.
///
/// # Errors
/// [`Error::Malformed`].
pub fn read_receipts(bytes: &[u8]) -> Result<Vec<Envelope>, Error> {
    if bytes.len() > RECEIPTS_MAX_BYTES {
        return Err(Error::Malformed(format!("they are larger than {RECEIPTS_MAX_BYTES} bytes")));
    }
    serde_json::from_slice(bytes).map_err(|e| Error::Malformed(e.to_string()))
}

impl Papers {
    /// Signs papers whose signature is not there yet, together with the weights of that digest.
    ///
    /// # Errors
    /// If a card is not one, or signing fails.
    pub fn sign(mut self, weights: Digest, key: &SigningKey) -> Result<Self, Error> {
        let statement = Statement::of(&self.members(weights)?).to_json();
        let bundle = Bundle {
            media_type: BUNDLE_TYPE.to_owned(),
            verification_material: Material {
                public_key: KeyHint { hint: hint(&key.public()) },
                tlog_entries: [],
            },
            dsse_envelope: key.sign(STATEMENT_PAYLOAD, statement)?,
        };
        self.signature =
            serde_json::to_vec(&bundle).map_err(|e| Error::SignatureMalformed(e.to_string()))?;
        Ok(self)
    }

    /// The cards with the sites that signed them.
    ///
    /// # Errors
    /// [`Error::Cards`] if one is not a card.
    pub fn sites(&self) -> Result<Vec<SiteId>, Error> {
        let site = |bytes: &Vec<u8>| {
            let card = Envelope::from_json(bytes)
                .map_err(trust::Error::from)
                .and_then(|envelope| SiteCard::open(&envelope));
            card.map(|card| card.site).map_err(|e| Error::Cards(e.to_string()))
        };
        self.cards.iter().map(site).collect()
    }

    /// Name and digest of everything that is signed, in order.
    fn members(&self, weights: Digest) -> Result<Vec<(String, Digest)>, Error> {
        let cards = self.sites()?.into_iter().zip(&self.cards);
        let mut members: Vec<(String, Digest)> =
            cards.map(|(site, bytes)| (card_name(&site), Digest::of(bytes))).collect();
        members.push((WEIGHTS_NAME.to_owned(), weights));
        members.push((PASSPORT_NAME.to_owned(), Digest::of(&self.passport)));
        members.push((RECEIPTS_NAME.to_owned(), Digest::of(&self.receipts)));
        Ok(members)
    }

    /// Checks everything but the weights themselves, for which the answer's
    /// [`VerifiedPassport::verify_weights`] is there.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self, roster: &Roster) -> Result<VerifiedPassport, Error> {
        let verified = Passport::from_json(&self.passport)?.verify(roster)?;
        let mut sites = verified.plan().sites.clone();
        sites.sort();
        if self.sites()? != sites {
            return Err(Error::Cards(
                "they are not those of the plan's sites, in order".to_owned(),
            ));
        }
        verify_receipts(&read_receipts(&self.receipts)?, verified.plan(), roster)?;
        self.verify_signature(verified.weights(), roster)?;
        Ok(verified)
    }

    fn verify_signature(&self, weights: Digest, roster: &Roster) -> Result<(), Error> {
        let malformed = |e: &dyn std::fmt::Display| Error::SignatureMalformed(e.to_string());
        if self.signature.len() > SIGNATURE_MAX_BYTES {
            return Err(malformed(&format!("it is larger than {SIGNATURE_MAX_BYTES} bytes")));
        }
        let bundle: Bundle = serde_json::from_slice(&self.signature).map_err(|e| malformed(&e))?;
        // One form only, so that no byte of it can carry anything else.
        if bundle.media_type != BUNDLE_TYPE
            || serde_json::to_vec(&bundle).ok().as_ref() != Some(&self.signature)
        {
            return Err(malformed(&"it is not in the form that Rondo writes"));
        }
        let claimed = bundle.verification_material.public_key.hint;
        // What a site signed holds after it changed its keys.
        let mut keys = roster
            .peers()
            .flat_map(|(site, peer)| peer.card.signing_keys().map(move |key| (site, peer, key)));
        let (signer, peer, key) =
            keys.find(|(_, _, key)| hint(key) == claimed).ok_or(Error::SignerUnknown)?;
        if peer.revoked {
            return Err(Error::SignerRevoked(signer.clone()));
        }
        let payload = bundle
            .dsse_envelope
            .verify(STATEMENT_PAYLOAD, key)
            .map_err(|_| Error::Signature(signer.clone()))?;
        let found: Statement = serde_json::from_slice(payload).map_err(|e| malformed(&e))?;
        let expected = Statement::of(&self.members(weights)?);
        let signed = |r: &Resource| {
            found.predicate.resources.iter().any(|f| f.name == r.name && f.digest == r.digest)
        };
        if let Some(changed) = expected.predicate.resources.iter().find(|r| !signed(r)) {
            let (member, signer) = (changed.name.clone(), signer.clone());
            return Err(Error::Member { member, signer });
        }
        if expected.to_json() != payload {
            return Err(malformed(&"it is about other files too, or says it in another way"));
        }
        Ok(())
    }
}

/// What names a key in a bundle: the digest of its PEM form.
fn hint(key: &VerifyingKey) -> Digest {
    Digest::of(key.to_pem().as_bytes())
}

fn verify_receipts(receipts: &[Envelope], plan: &Plan, roster: &Roster) -> Result<(), Error> {
    for (envelope, place) in receipts.iter().zip(1..) {
        let wrong = |what: String| Error::Receipt { place, what };
        let claimed = Receipt::unverified(envelope).map_err(|e| wrong(e.to_string()))?;
        if claimed.round != plan.round() || !plan.sites.contains(&claimed.site) {
            return Err(wrong("it belongs to another round".to_owned()));
        }
        let key = roster.signing_key(&claimed.site, envelope).map_err(|e| wrong(e.to_string()))?;
        Receipt::open(envelope, &key).map_err(|e| wrong(e.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
