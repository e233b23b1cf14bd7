//! Checkpoints outside the store: fetched from a daemon, checked with nothing but a roster.

use crate::daemon::Client;
use crate::exit::{Exit, Failure};
use crate::model_file::{self, EXTENSION, Opened};
use rondo::manifest::Manifest;
use rondo::papers::{self, Papers, RECEIPTS_MAX_BYTES};
use rondo::passport::{self, PASSPORT_MAX_BYTES, Passport, VerifiedPassport};
use rondo::plan::Plan;
use rondo::trust::{PEERS_MAX, Roster};
use rondo_proto::control::model_part::Part;
use rondo_proto::control::{ModelPart, ModelRequest};
use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tokio::sync::mpsc::Sender;
use tokio_stream::StreamExt as _;

/// Bytes of a file in one message to the daemon.
pub(crate) const PART_BYTES: usize = 256 * 1024;

/// A checkpoint with its papers, not yet believed. From a `.safetensors` file it has a passport only.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) papers: Papers,
    pub(crate) weights: Vec<u8>,
}

/// Why a model was refused, with its reason code.
pub(crate) fn unverified(what: &str, error: &papers::Error) -> Failure {
    let code = error.code();
    let advice = match error {
        papers::Error::Passport(passport::Error::Weights(_) | passport::Error::Checkpoint(_)) => {
            "Do not use it; export it again from a site that holds it"
        }
        papers::Error::Passport(passport::Error::Site(_)) => {
            "Without the cards of all its sites nothing can be said of it"
        }
        _ => "Do not use it",
    };
    let text = format!("verifying {what}: {error} [{code}]. {advice}");
    Failure { reason: Some(code.to_owned()), ..Failure::new(Exit::Unverified, text) }
}

/// Fetches a checkpoint from a daemon's store.
pub(crate) async fn fetch(client: &mut Client, digest: &str) -> Result<Parcel, Failure> {
    let attempted = format!("exporting model {digest}");
    let refused = |status| Failure::refused(&attempted, &status);
    let request = ModelRequest { weights: digest.to_owned() };
    let mut parts = client.export_model(request).await.map_err(refused)?.into_inner();
    let wrong = |what: &str| Failure::new(Exit::Internal, format!("{attempted}: {what}"));
    let mut papers = Papers::default();
    let mut weights = Vec::new();
    let mut expected = None;
    while let Some(part) = parts.next().await {
        match part.map_err(refused)?.part {
            Some(Part::Passport(bytes)) if expected.is_none() => {
                let promised = promised_bytes(&bytes);
                expected =
                    Some(promised.map_err(|e| unverified(&format!("model {digest}"), &e.into()))?);
                papers.passport = bytes;
            }
            Some(Part::Receipts(bytes)) if weights.is_empty() => {
                if papers.receipts.len() + bytes.len() > RECEIPTS_MAX_BYTES {
                    return Err(wrong("the daemon sends more receipts than a round can have"));
                }
                papers.receipts.extend_from_slice(&bytes);
            }
            Some(Part::Cards(card)) if papers.cards.len() < PEERS_MAX => papers.cards.push(card),
            Some(Part::Signature(bytes)) => papers.signature = bytes,
            Some(Part::Weights(bytes)) => {
                if (weights.len() + bytes.len()) as u64 > expected.unwrap_or(0) {
                    return Err(wrong("the daemon sends more than the plan's network has"));
                }
                weights.extend_from_slice(&bytes);
            }
            _ => return Err(wrong("the daemon sends parts in another order than it should")),
        }
    }
    if expected.is_none() {
        return Err(wrong("the daemon sent nothing"));
    }
    Ok(Parcel { papers, weights })
}

/// Bytes that a checkpoint of this passport has: the bound of what is taken in.
fn promised_bytes(passport: &[u8]) -> Result<u64, passport::Error> {
    let passport = Passport::from_json(passport)?;
    let plan = Plan::from_canonical(passport.plan.as_bytes())?;
    Ok(plan.layout().len())
}

/// Checks passport and weights with the keys of `roster`.
pub(crate) fn verify(parcel: &Parcel, roster: &Roster) -> Result<VerifiedPassport, papers::Error> {
    let verified = Passport::from_json(&parcel.papers.passport)?.verify(roster)?;
    verified.verify_weights(&parcel.weights)?;
    Ok(verified)
}

/// As [`verify`], with receipts, cards and the signature over all of it.
pub(crate) fn verify_papers(
    parcel: &Parcel,
    roster: &Roster,
) -> Result<VerifiedPassport, papers::Error> {
    let verified = parcel.papers.verify(roster)?;
    verified.verify_weights(&parcel.weights)?;
    Ok(verified)
}

/// Whether a model is one file, by its name.
pub(crate) fn is_one_file(file: &Path) -> bool {
    file.extension().is_some_and(|end| end == EXTENSION)
}

/// What is wrong with a model's file, with its reason code.
pub(crate) fn malformed(file: &Path, error: &model_file::Error) -> Failure {
    let text = format!("reading the model {}: {error}", file.display());
    match error {
        model_file::Error::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
            Failure::new(Exit::BadInput, text)
        }
        model_file::Error::Papers(e) => unverified(&file.display().to_string(), e),
        _ => {
            let reason = Some(model_file::Error::CODE.to_owned());
            Failure { reason, ..Failure::new(Exit::Unverified, text) }
        }
    }
}

/// Opens a model that is one file, and reads its papers.
pub(crate) fn open(file: &Path) -> Result<Opened<BufReader<File>>, Failure> {
    let opened = File::open(file).map_err(model_file::Error::from);
    opened.and_then(|f| Opened::read(BufReader::new(f))).map_err(|e| malformed(file, &e))
}

/// Reads a model that is one file.
pub(crate) fn read_file(file: &Path) -> Result<Parcel, Failure> {
    let opened = open(file)?;
    let expected = promised_bytes(&opened.papers.passport)
        .map_err(|e| unverified(&file.display().to_string(), &e.into()))?;
    let (papers, weights) = opened.all_weights(expected).map_err(|e| malformed(file, &e))?;
    Ok(Parcel { papers, weights })
}

/// Gives the parts of a model to the daemon; ends early if that wants no more. The last part goes only
/// after the end of the file was found to be in order.
pub(crate) fn send(
    mut opened: Opened<BufReader<File>>,
    to: &Sender<ModelPart>,
) -> Result<(), model_file::Error> {
    let papers = std::mem::take(&mut opened.papers);
    let receipts = papers.receipts.chunks(PART_BYTES).map(|c| Part::Receipts(c.to_vec()));
    let head = [Part::Passport(papers.passport)].into_iter().chain(receipts);
    let head = head.chain(papers.cards.into_iter().map(Part::Cards));
    for part in head.chain([Part::Signature(papers.signature)]) {
        if to.blocking_send(ModelPart { part: Some(part) }).is_err() {
            return Ok(());
        }
    }
    let mut part = opened.weights(PART_BYTES)?;
    while !part.is_empty() {
        let next = opened.weights(PART_BYTES)?;
        let message = ModelPart { part: Some(Part::Weights(part)) };
        if to.blocking_send(message).is_err() {
            return Ok(());
        }
        part = next;
    }
    Ok(())
}

/// The weights of a model that is one file, as a temporary file. They are the ones of its passport; who
/// signed it is for `rondo model verify` to say.
pub(crate) fn unpack(file: &Path) -> Result<NamedTempFile, Failure> {
    let parcel = read_file(file)?;
    let shown = file.display().to_string();
    let refused = |e: passport::Error| unverified(&shown, &e.into());
    let passport = Passport::from_json(&parcel.papers.passport).map_err(refused)?;
    let last = passport.manifests.last().and_then(|m| Manifest::unverified(m).ok());
    let table = last.map(|m| m.weights).ok_or_else(|| {
        refused(passport::Error::Malformed("it has no hop that can be read".to_owned()))
    })?;
    if let Some(damage) = table.first_damage(&parcel.weights) {
        return Err(refused(passport::Error::Weights(damage)));
    }
    let fail = |e| Failure::storage(format!("unpacking {shown} into a temporary file"), &e);
    let mut out = tempfile::Builder::new()
        .prefix("rondo-")
        .suffix(".safetensors")
        .tempfile()
        .map_err(fail)?;
    out.write_all(&parcel.weights).map_err(fail)?;
    Ok(out)
}

/// Writes a model as one file.
pub(crate) fn write_file(file: &Path, parcel: &Parcel) -> Result<(), Failure> {
    rondo_imaging::durable::write_with(file, |out| {
        model_file::write(out, &parcel.papers, &parcel.weights)
    })
    .map_err(|e| Failure::new(Exit::Storage, format!("writing {}: {e}", file.display())))
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
    let expected = promised_bytes(&passport)
        .map_err(|e| unverified(&weights.display().to_string(), &e.into()))?;
    // One byte more than promised is enough to see that the file is too long.
    let limit = usize::try_from(expected).unwrap_or(usize::MAX - 1) + 1;
    let weights = crate::daemon::read_file("the checkpoint", &weights, limit)?;
    Ok(Parcel { papers: Papers { passport, ..Papers::default() }, weights })
}

/// Writes a checkpoint and the passport beside it, the passport first.
pub(crate) fn write(file: &Path, parcel: &Parcel) -> Result<(PathBuf, PathBuf), Failure> {
    let (weights, passport) = paths(file);
    for (path, bytes) in [(&passport, &parcel.papers.passport), (&weights, &parcel.weights)] {
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
        let signed = card.sign(&key).unwrap();
        let papers = Papers {
            passport: passport.to_json(),
            receipts: papers::receipts_json(&passport.approvals),
            cards: vec![signed.to_json()],
            signature: Vec::new(),
        };
        let papers = papers.sign(Digest::of(&weights), &key).unwrap();
        let parcel = Parcel { papers, weights };
        let roster = Roster::of([signed]).unwrap();
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
        assert_eq!(
            (failure.exit, failure.reason.as_deref()),
            (Exit::Unverified, Some("weights-damaged"))
        );
        assert!(failure.text.contains("chunk 0"), "{failure}");
        parcel.weights[last] ^= 1;
        assert_eq!(verify(&parcel, &roster).unwrap().hops().len(), 1);
    }

    #[test]
    fn one_file_reads_back_and_gives_its_weights_to_the_trainer() {
        let (mut parcel, roster, ..) = parcel();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.rondo");
        assert!(is_one_file(&file) && !is_one_file(Path::new("m.safetensors")));
        let last = parcel.weights.len() - 1;
        parcel.weights[last] ^= 1;
        write_file(&file, &parcel).unwrap();
        assert_eq!(unpack(&file).unwrap_err().reason.as_deref(), Some("weights-damaged"));
        let back = read_file(&file).unwrap();
        assert_eq!(verify_papers(&back, &roster).unwrap_err().code(), "weights-damaged");
        parcel.weights[last] ^= 1;
        write_file(&file, &parcel).unwrap();
        assert!(verify_papers(&read_file(&file).unwrap(), &roster).is_ok());
        let weights = unpack(&file).unwrap();
        assert_eq!(std::fs::read(weights.path()).unwrap(), parcel.weights);
        parcel.weights.push(0);
        write_file(&file, &parcel).unwrap();
        let failure = read_file(&file).unwrap_err();
        assert_eq!(
            (failure.exit, failure.reason.as_deref()),
            (Exit::Unverified, Some("file-malformed"))
        );
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
