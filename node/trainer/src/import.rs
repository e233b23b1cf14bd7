//! `import`: a model from elsewhere, written in Rondo's own layout.

use crate::output::Output;
use crate::{DONE, args};
use anyhow::{Context, Result, bail};
use rondo::ids::Digest;
use rondo_imaging::durable;
use rondo_learn::import::{self, Format, Imported};
use serde_json::json;
use std::io::Read;
use std::path::Path;

/// Largest model file that is read: the widest network with optimizer state stays below it.
const MODEL_MAX_BYTES: u64 = 4 << 30;

/// Reads a model file of any kind that is recognised.
///
/// # Errors
/// A file that cannot be read, or that holds no model.
pub(crate) fn read(path: &Path) -> Result<Imported> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)
        .with_context(|| format!("opening the model {}", path.display()))?;
    file.take(MODEL_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading the model {}", path.display()))?;
    if bytes.len() as u64 > MODEL_MAX_BYTES {
        bail!("the model {} has more than {MODEL_MAX_BYTES} bytes", path.display());
    }
    import::any(&bytes).with_context(|| format!("reading the model {}", path.display()))
}

pub(crate) fn run(args: &args::Import) -> Result<u8> {
    let Imported { mut weights, iterations, format, mut notes } = read(&args.file)?;
    let step = weights.optimizer.as_ref().map(|adam| adam.step);
    match step {
        None if args.with_optimizer => {
            bail!("{} holds no optimizer state; leave out --with-optimizer", args.file.display());
        }
        Some(step) if !args.with_optimizer => {
            weights.optimizer = None;
            notes.push(format!(
                "Adam's state after {step} updates is dropped; --with-optimizer keeps it"
            ));
        }
        _ => {}
    }
    let bytes = weights.to_bytes();
    let digest = Digest::of(&bytes);
    durable::write(&args.out, &bytes).with_context(|| format!("writing {}", args.out.display()))?;
    let output = Output::new(args.json);
    notes.iter().try_for_each(|text| output.notice(text))?;
    let a = weights.architecture;
    let widths = [a.n1, a.n2, a.n3, a.m];
    let kind = match format {
        Format::Canonical => "Rondo's own layout",
        Format::Safetensors => "safetensors",
        Format::Published => "a published checkpoint",
    };
    output.event(
        "result",
        json!({
            "model": digest,
            "path": args.out,
            "format": format.name(),
            "widths": widths,
            "iterations": iterations,
            "optimizer": weights.optimizer.is_some(),
            "importance": weights.importance.is_some(),
        }),
        &format!(
            "{kind} of widths {widths:?} after {iterations} updates; model {digest} at {}",
            args.out.display()
        ),
    )?;
    Ok(DONE)
}
