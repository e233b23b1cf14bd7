//! `train`: one visit of this site, without a daemon.

use crate::cases::{Cases, cohort};
use crate::output::{Output, SCHEMA};
use crate::{DONE, args, recipe};
use anyhow::{Context, Result, bail};
use rondo::ids::Digest;
use rondo_imaging::cohort::Split;
use rondo_imaging::durable;
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::Device;
use rondo_learn::train::{Visit, train};
use serde_json::json;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

/// Largest model file that is read: the widest network with optimizer state stays below it.
const MODEL_MAX_BYTES: u64 = 4 << 30;

/// Reads a model file.
///
/// # Errors
/// A file that cannot be read or is no model of Rondo.
pub(crate) fn model(path: &Path) -> Result<(Weights, Digest)> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)
        .with_context(|| format!("opening the model {}", path.display()))?;
    file.take(MODEL_MAX_BYTES)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading the model {}", path.display()))?;
    let weights = Weights::from_bytes(&bytes)
        .with_context(|| format!("reading the model {}", path.display()))?;
    Ok((weights, Digest::of(&bytes)))
}

pub(crate) fn run(args: &args::Train) -> Result<u8> {
    let recipe = recipe::resolve(&args.recipe)?;
    let cohort = cohort(&args.cohort)?;
    let init = args.init.as_deref().map(model).transpose()?;
    // First of all, so that a folder that cannot be written fails before the work and not after it.
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("creating the folder {}", args.out.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = args.out.join(name);
        durable::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
    };
    write("recipe.toml", recipe::to_toml(&recipe).as_bytes())?;

    let output = Output::new(args.json);
    let device = Device::open(args.device)?;
    let described = device.describe();
    output.event("device", json!({"device": described}), &format!("device: {described}"))?;
    let load = |split: Split| -> Result<Cases> {
        let mut failed = Ok(());
        let what = format!("{} cases read", split.name());
        let cases = Cases::load(&cohort, split, |done, total| {
            let told = output.count(&what, done, total);
            failed = std::mem::replace(&mut failed, Ok(())).and(told);
        });
        failed?;
        cases.set_aside.iter().chain(&cases.notices).try_for_each(|text| output.notice(text))?;
        Ok(cases)
    };
    let (training, validation) = (load(Split::Train)?, load(Split::Validation)?);
    if training.ready.is_empty() {
        bail!("the cohort {} has no usable training case", args.cohort.display());
    }
    let unread = training.set_aside.len() + validation.set_aside.len();

    let mut broken = None;
    let mut tell = |event| match output.progress(&event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            broken = Some(e);
            ControlFlow::Break(())
        }
    };
    let visit = Visit {
        recipe: &recipe,
        seed: args.seed,
        received: init.as_ref().map(|(weights, _)| weights),
        cases: &training.views(),
        validation: &validation.views(),
    };
    let outcome = train(&visit, &device, &mut tell);
    output.finish();
    if let Some(e) = broken {
        return Err(e.context("printing progress"));
    }
    let mut outcome = outcome.context("training")?;
    outcome.report.set_aside += u32::try_from(unread).unwrap_or(u32::MAX);
    let bytes = outcome.weights.to_bytes();
    let digest = Digest::of(&bytes);
    write("model.safetensors", &bytes)?;
    let report = json!({
        "schema": SCHEMA,
        "model": digest,
        "received": init.map(|(_, digest)| digest),
        "device": described,
        "seed": args.seed,
        "recipe": recipe,
        "visit": outcome.report,
    });
    write("report.json", format!("{report:#}\n").as_bytes())?;
    let path = args.out.join("model.safetensors");
    let r = &outcome.report;
    let dice = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |v| format!("{v:.4}"));
    output.event(
        "result",
        json!({"model": digest, "path": path, "visit": r}),
        &format!(
            "{} updates of {} segments in {:.1} s; validation Dice {} before, {} after (epoch {}); model {} at {}",
            r.updates,
            r.segments,
            r.seconds,
            dice(r.dice_before),
            dice(r.dice_after),
            r.chosen_epoch,
            digest.short(),
            path.display(),
        ),
    )?;
    Ok(DONE)
}
