//! Segments as a visit's threads cut them, with nothing that consumes them, against what updates consume.

use super::figures::{Figures, round};
use super::{pattern, step};
use crate::{args, output};
use anyhow::{Context, Result};
use ndarray::Array3;
use rondo::recipe::Architecture;
use rondo_learn::device::Device;
use rondo_learn::segment::{self, Case};
use serde_json::json;

/// Volumes cut from: more than any cache holds.
const VOLUMES: usize = 8;
/// How long the supply is measured.
const SECONDS: f64 = 5.0;

pub(super) fn run(
    args: &args::Bench,
    architecture: Architecture,
    device: &Device,
) -> Result<String> {
    let volumes: Vec<_> = (0..VOLUMES).map(|_| volume(args.shape.0)).collect();
    let case = |(image, label, brain)| {
        let (image, label, brain): (&Array3<f32>, &Array3<u8>, &Array3<u8>) = (image, label, brain);
        Case { id: "pattern", image: image.view(), label: label.view(), brain: brain.view() }
    };
    let cases: Vec<_> = volumes.iter().map(|(i, l, b)| case((i, l, b))).collect();
    // As many segments from a volume as a real visit takes before it goes to the next one.
    let recipe =
        rondo::recipe::Recipe { segments_per_case: 10, ..step::recipe(args, architecture) };
    let supply = segment::rate(&cases, &recipe, 1, SECONDS).context("cutting segments")?;
    let consumed = step::run(args, architecture, device, None)?;
    let ms = Figures::median_ms(&consumed.ours);
    let consumption = f64::from(args.batch) * 1e3 / ms;
    let ratio = supply.segments_per_s / consumption;
    if !args.json {
        return Ok(format!(
            "sample: {:.0} segments/s from {} threads, {ratio:.1} times the {consumption:.1} segments/s \
             that updates of {} consume on {}",
            supply.segments_per_s,
            supply.threads,
            args.batch,
            device.describe(),
        ));
    }
    let object = json!({
        "schema": output::SCHEMA, "bench": "sample", "device": device.describe(),
        "precision": args.precision.name(), "method": args.method.name(), "widths": args.widths.0,
        "shape": args.shape.0, "batch": args.batch, "volumes": VOLUMES, "threads": supply.threads,
        "segments_per_s": round(supply.segments_per_s),
        "device_segments_per_s": round(consumption), "ratio_to_device": round(ratio),
    });
    Ok(object.to_string())
}

fn volume(shape: [u32; 3]) -> (Array3<f32>, Array3<u8>, Array3<u8>) {
    let image = pattern(shape);
    let label = image.mapv(|v| u8::from(v > 0.9));
    let brain = Array3::ones(image.dim());
    (image, label, brain)
}
