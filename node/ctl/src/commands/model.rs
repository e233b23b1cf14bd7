//! `rondo model`.

use crate::args::{DIGEST_PREFIX_MIN, Global, Model};
use crate::daemon::{roster_of_daemon, roster_of_folder};
use crate::exit::{Exit, Failure};
use crate::models::{self, unverified};
use crate::output::Output;
use crate::render::model::{hop_json, hops, hops_text, model_json, models_text, store_text};
use crate::render::{bytes, short};
use rondo_proto::control::{CheckStoreRequest, HopView, ListModelsRequest, ModelRequest};
use serde_json::json;
use std::path::Path;
use tokio_stream::wrappers::ReceiverStream;

/// Parts of a file that are read ahead of the daemon.
const PARTS_AHEAD: usize = 4;

pub(crate) async fn run(command: Model, global: &Global, output: Output) -> Result<(), Failure> {
    match command {
        Model::List => list(global, output).await,
        Model::Verify { model, cards } => {
            let path = Path::new(&model);
            if is_digest(&model) && !path.exists() {
                verify_stored(&model, global, output).await
            } else {
                verify_file(path, cards.as_deref(), global, output).await
            }
        }
        Model::Export { digest, out } => export(&digest, &out, global, output).await,
        Model::Check { repair } => check(repair, global, output).await,
        Model::Import { file } => import(&file, global, output).await,
    }
}

fn is_digest(text: &str) -> bool {
    (DIGEST_PREFIX_MIN..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

async fn list(global: &Global, output: Output) -> Result<(), Failure> {
    let models = global
        .daemon()
        .await?
        .list_models(ListModelsRequest {})
        .await
        .map_err(|status| Failure::refused("listing models", &status))?
        .into_inner()
        .models;
    let body = json!({"models": models.iter().map(model_json).collect::<Vec<_>>()});
    output.give("rondo.models/1", body, || models_text(&models))
}

async fn verify_stored(digest: &str, global: &Global, output: Output) -> Result<(), Failure> {
    let request = ModelRequest { weights: digest.to_owned() };
    let attempted = format!("verifying model {digest} in the store");
    let model = global
        .daemon()
        .await?
        .verify_model(request)
        .await
        .map_err(|status| Failure::refused(&attempted, &status))?
        .into_inner();
    give(output, &model.weights, model.bytes, "the store of this site", &model.hops)
}

async fn verify_file(
    file: &Path,
    cards: Option<&Path>,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    let whole = models::is_one_file(file);
    let parcel = if whole { models::read_file(file)? } else { models::read(file)? };
    let roster = match cards {
        Some(folder) => roster_of_folder(folder)?,
        None => {
            let mut daemon = global.daemon().await.map_err(|e| {
                let text = format!("{e}; or name a folder of the sites' cards with --cards");
                Failure::new(e.exit, text)
            })?;
            roster_of_daemon(&mut daemon).await?
        }
    };
    let shown = file.display().to_string();
    let check = if whole { models::verify_papers } else { models::verify };
    let verified = check(&parcel, &roster).map_err(|e| unverified(&shown, &e))?;
    let size = parcel.weights.len() as u64;
    give(output, &verified.weights().to_string(), size, &shown, &hops(verified.hops()))
}

fn give(
    output: Output,
    weights: &str,
    size: u64,
    place: &str,
    hops: &[HopView],
) -> Result<(), Failure> {
    let body = json!({
        "verified": true,
        "weights": weights,
        "bytes": size,
        "place": place,
        "hops": hops.iter().map(hop_json).collect::<Vec<_>>(),
    });
    output.give("rondo.model-verify/1", body, || {
        format!(
            "Verified: {place} holds checkpoint {weights} ({}), and its passport of {} hop(s) is genuine.\n{}",
            bytes(size),
            hops.len(),
            hops_text(hops),
        )
    })
}

async fn export(digest: &str, out: &Path, global: &Global, output: Output) -> Result<(), Failure> {
    let mut daemon = global.daemon().await?;
    let parcel = models::fetch(&mut daemon, digest).await?;
    let roster = roster_of_daemon(&mut daemon).await?;
    let verified = models::verify_papers(&parcel, &roster)
        .map_err(|e| unverified(&format!("model {digest}"), &e))?;
    let weights = verified.weights().to_string();
    if !weights.starts_with(digest) {
        let text = format!("exporting model {digest}: the daemon sent {}", short(&weights));
        return Err(Failure::new(Exit::Internal, text));
    }
    if models::is_one_file(out) {
        models::write_file(out, &parcel)?;
        let body = json!({"weights": weights, "bytes": parcel.weights.len(), "file": out});
        return output.give("rondo.model-export/1", body, || {
            let (weights, file) = (short(&weights), out.display());
            format!("Checkpoint {weights} written to {file} with its passport, receipts, cards and signature")
        });
    }
    let (file, passport) = models::write(out, &parcel)?;
    let body = json!({"weights": weights, "bytes": parcel.weights.len(), "file": file, "passport": passport});
    output.give("rondo.model-export/1", body, || {
        format!(
            "Checkpoint {} written to {}, its passport to {}",
            short(&weights),
            file.display(),
            passport.display()
        )
    })
}

async fn check(repair: bool, global: &Global, output: Output) -> Result<(), Failure> {
    let mut daemon = global.daemon().await?;
    let report = daemon.check_store(CheckStoreRequest { repair }).await;
    let report = report.map_err(|e| Failure::refused("checking the store", &e))?.into_inner();
    let body = json!({
        "checkpoints": report.checkpoints,
        "bytes": report.bytes,
        "incoming": report.incoming,
        "damaged": report.damaged,
        "quarantined": report.quarantined,
        "unreferenced": report.unreferenced,
        "missing": report.missing,
        "repaired": repair,
    });
    output.give("rondo.model-check/1", body, || store_text(&report))?;
    let bad = report.damaged.len() + report.missing.len();
    if bad == 0 {
        return Ok(());
    }
    let text = if repair {
        "what is damaged was moved to the folder quarantine of the store; import those models from another site's export"
    } else {
        "checkpoints are damaged or missing; `rondo model check --repair` moves damaged ones aside"
    };
    Err(Failure::after_result(Exit::Unverified, text))
}

async fn import(file: &Path, global: &Global, output: Output) -> Result<(), Failure> {
    let opened = models::open(file)?;
    let mut daemon = global.daemon().await?;
    let (send, parts) = tokio::sync::mpsc::channel(PARTS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || models::send(opened, &send));
    let answer = daemon.import_model(ReceiverStream::new(parts)).await;
    let read = reading.await.map_err(|e| Failure::new(Exit::Internal, e))?;
    // A file that is wrong in itself explains why the daemon got less than was promised.
    read.map_err(|e| models::malformed(file, &e))?;
    let attempted = format!("importing the model {}", file.display());
    let model = answer.map_err(|status| Failure::refused(&attempted, &status))?.into_inner();
    output.give("rondo.model-import/1", model_json(&model), || {
        let (weights, shown) = (short(&model.weights), file.display());
        format!(
            "Checkpoint {weights} of visit {} by {} is in the store, from {shown}\n{}",
            model.visit,
            model.site,
            hops_text(&model.hops)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_told_from_files() {
        assert!(is_digest("0123ab") && is_digest(&"f".repeat(64)));
        for file in ["abc", "m.safetensors", "0123AB", "./0123ab", &"f".repeat(65)] {
            assert!(!is_digest(file), "{file}");
        }
    }
}
