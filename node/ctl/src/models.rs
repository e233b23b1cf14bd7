//! Checkpoints outside the store: fetched from a daemon, checked with nothing but a roster.

use crate::daemon::Client;
use crate::exit::{Exit, Failure};
use rondo::passport::{self, PASSPORT_MAX_BYTES, Passport, VerifiedPassport};
use rondo::plan::Plan;
use rondo::trust::Roster;
use rondo_proto::control::ModelRequest;
use rondo_proto::control::model_part::Part;
use std::path::{Path, PathBuf};
use tokio_stream::StreamExt as _;

/// A checkpoint with its passport, not yet believed.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) passport: Vec<u8>,
    pub(crate) weights: Vec<u8>,
}

/// Why a passport or checkpoint was refused, with its reason code.
pub(crate) fn unverified(what: &str, error: &passport::Error) -> Failure {
    let code = error.code();
    let advice = match error {
        passport::Error::Weights(_) | passport::Error::Checkpoint(_) => {
            "Do not use it; export it again from a site that holds it"
        }
        passport::Error::Site(_) => "Without the cards of all its sites nothing can be said of it",
        _ => "Do not use it",
    };
    let text = format!("verifying {what}: {error} [{code}]. {advice}");
    Failure { reason: Some(code), ..Failure::new(Exit::Unverified, text) }
}

/// Fetches a checkpoint from a daemon's store.
pub(crate) async fn fetch(client: &mut Client, digest: &str) -> Result<Parcel, Failure> {
    let attempted = format!("exporting model {digest}");
    let refused = |status| Failure::refused(&attempted, &status);
    let request = ModelRequest { weights: digest.to_owned() };
    let mut parts = client.export_model(request).await.map_err(refused)?.into_inner();
    let wrong = |what: &str| Failure::new(Exit::Internal, format!("{attempted}: {what}"));
    let mut passport = None;
    let mut weights = Vec::new();
    let mut expected = 0;
    while let Some(part) = parts.next().await {
        match part.map_err(refused)?.part {
            Some(Part::Passport(bytes)) if passport.is_none() => {
                expected = promised_bytes(&bytes)
                    .map_err(|e| unverified(&format!("model {digest}"), &e))?;
                passport = Some(bytes);
            }
            Some(Part::Weights(bytes)) if passport.is_some() => {
                if (weights.len() + bytes.len()) as u64 > expected {
                    return Err(wrong("the daemon sends more than the plan's network has"));
                }
                weights.extend_from_slice(&bytes);
            }
            _ => return Err(wrong("the daemon sends parts in another order than it should")),
        }
    }
    let passport = passport.ok_or_else(|| wrong("the daemon sent nothing"))?;
    Ok(Parcel { passport, weights })
}

/// Bytes that a checkpoint of this passport has: the bound of what is taken in.
fn promised_bytes(passport: &[u8]) -> Result<u64, passport::Error> {
    let passport = Passport::from_json(passport)?;
    let plan = Plan::from_canonical(passport.plan.as_bytes())?;
    Ok(plan.layout().len())
}

/// Checks passport and weights with the keys of `roster`.
pub(crate) fn verify(
    parcel: &Parcel,
    roster: &Roster,
) -> Result<VerifiedPassport, passport::Error> {
    let verified = Passport::from_json(&parcel.passport)?.verify(roster)?;
    verified.verify_weights(&parcel.weights)?;
    Ok(verified)
}

/// Where weights and passport lie for a name given with or without `.safetensors`.
pub(crate) fn paths(file: &Path) -> (PathBuf, PathBuf) {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".safetensors").unwrap_or(&name);
    (
        file.with_file_name(format!("{stem}.safetensors")),
        file.with_file_name(format!("{stem}.passport.json")),
    )
}

/// Reads a checkpoint file and the passport beside it.
pub(crate) fn read(file: &Path) -> Result<Parcel, Failure> {
    let (weights, passport) = paths(file);
    let passport = crate::daemon::read_file(
        "the passport beside the checkpoint",
        &passport,
        PASSPORT_MAX_BYTES,
    )?;
    let expected =
        promised_bytes(&passport).map_err(|e| unverified(&weights.display().to_string(), &e))?;
    // One byte more than promised is enough to see that the file is too long.
    let limit = usize::try_from(expected).unwrap_or(usize::MAX - 1) + 1;
    let weights = crate::daemon::read_file("the checkpoint", &weights, limit)?;
    Ok(Parcel { passport, weights })
}

/// Writes a checkpoint and the passport beside it, the passport first.
pub(crate) fn write(file: &Path, parcel: &Parcel) -> Result<(PathBuf, PathBuf), Failure> {
    let (weights, passport) = paths(file);
    for (path, bytes) in [(&passport, &parcel.passport), (&weights, &parcel.weights)] {
        rondo_imaging::durable::write(path, bytes)
            .map_err(|e| Failure::storage(format!("writing {}", path.display()), &e))?;
    }
    Ok((weights, passport))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use rondo::envelope::SigningKey;
    use rondo::ids::{Digest, VisitNo};
    use rondo::manifest::{Counts, Manifest, Validation};
    use rondo::round::{Receipt, ReceiptBody};
    use rondo::transfer::ChunkTable;
    use rondo::trust::SiteCard;

    const PLAN: &str = "name = \"t\"\ntopology = \"swt\"\nsites = [\"uker\"]\n[recipe]\npreset = \"paper\"\nwidths = [2, 3, 4, 5]\n";

    /// A checkpoint of zeros that one site made, and a roster that knows the site.
    pub(crate) fn parcel() -> (Parcel, Roster, SiteCard, SigningKey) {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let card = SiteCard {
            site: "uker".parse().unwrap(),
            name: "UKER".to_owned(),
            endpoints: Vec::new(),
            tls_key: Digest::of(b"tls"),
            signing_key: key.public(),
            next: None,
            former: Vec::new(),
            valid_from: 1,
            valid_until: 2,
        };
        let plan = Plan::from_toml(PLAN, 1).unwrap();
        let layout = plan.layout();
        let mut weights = layout.header().to_vec();
        weights.resize(usize::try_from(layout.len()).unwrap(), 0);
        let manifest = Manifest {
            round: plan.round(),
            cycle: 1,
            visit: VisitNo::FIRST,
            site: card.site.clone(),
            parent: None,
            weights: ChunkTable::of(&weights),
            architecture: plan.recipe.architecture,
            recipe: plan.recipe_digest(),
            software: "rondo test".to_owned(),
            counts: Counts::default(),
            validation: Validation::default(),
            filters: Vec::new(),
            signed_at: 5,
        };
        let approval = Receipt {
            round: plan.round(),
            site: card.site.clone(),
            number: 1,
            at: 4,
            body: ReceiptBody::Approved,
        };
        let approvals = vec![approval.sign(&key).unwrap()];
        let passport = Passport::new(&plan, approvals, vec![manifest.sign(&key).unwrap()]);
        let parcel = Parcel { passport: passport.to_json(), weights };
        let roster = Roster::of([card.sign(&key).unwrap()]).unwrap();
        (parcel, roster, card, key)
    }

    #[test]
    fn damage_and_strangers_are_refused_with_their_code() {
        let (mut parcel, roster, ..) = parcel();
        assert_eq!(
            verify(&parcel, &Roster::default()).unwrap_err().code(),
            "passport-signer-unknown"
        );
        let last = parcel.weights.len() - 1;
        parcel.weights[last] ^= 1;
        let error = verify(&parcel, &roster).unwrap_err();
        assert_eq!(error.code(), "weights-damaged");
        let failure = unverified("m", &error);
        assert_eq!((failure.exit, failure.reason), (Exit::Unverified, Some("weights-damaged")));
        assert!(failure.text.contains("chunk 0"), "{failure}");
        parcel.weights[last] ^= 1;
        assert_eq!(verify(&parcel, &roster).unwrap().hops().len(), 1);
    }

    #[test]
    fn a_written_model_reads_back_and_a_longer_one_does_not() {
        let (mut parcel, roster, ..) = parcel();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.b");
        write(&file, &parcel).unwrap();
        let back = read(&folder.path().join("a.b.safetensors")).unwrap();
        assert!(verify(&back, &roster).is_ok());
        parcel.weights.extend([0; 9]);
        write(&file, &parcel).unwrap();
        assert_eq!(read(&file).unwrap_err().exit, Exit::BadInput);
    }
}
