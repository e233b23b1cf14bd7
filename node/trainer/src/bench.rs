//! `bench`: how fast this machine trains and segments, on data made for the purpose.

use crate::{DONE, args, output};
use anyhow::{Context, Result};
use ndarray::Array3;
use rondo::recipe::{Architecture, Method, Preset, Recipe, Select};
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::Device;
use rondo_learn::infer::Model;
use rondo_learn::report::Progress;
use rondo_learn::segment::Case;
use rondo_learn::train::{Visit, train};
use serde_json::json;
use std::ops::ControlFlow;
use std::time::Instant;

/// Updates before the clock counts: libtorch chooses its kernels in them.
const WARM_UP: u32 = 3;
/// Edge of the cube that `step` cuts its segments from.
const STEP_EDGE: usize = 48;

pub(crate) fn run(args: &args::Bench) -> Result<u8> {
    let device = Device::open(args.device)?;
    let (what, unit, mut times) = match args.what {
        args::BenchOf::Step => ("step", "ms/update", step(args, &device)?),
        args::BenchOf::Infer => ("infer", "ms/volume", infer(args, &device)?),
    };
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().context("nothing was measured")? * 1e3;
    let batch = args.batch;
    let text = if args.json {
        json!({
            "schema": output::SCHEMA, "bench": what, "device": device.describe(),
            "widths": args.widths.0, "batch": batch, "shape": args.shape.0,
            "repeats": times.len(), "median_ms": median,
        })
        .to_string()
    } else {
        format!("{what}: {median:.1} {unit} (median of {}) on {}", times.len(), device.describe())
    };
    output::line(&text)?;
    Ok(DONE)
}

fn architecture(args: &args::Bench) -> Architecture {
    let [n1, n2, n3, m] = args.widths.0;
    Architecture { n1, n2, n3, m }
}

/// Seconds of single updates: sampling, forward, backward, Adam, and reading the loss back.
fn step(args: &args::Bench, device: &Device) -> Result<Vec<f64>> {
    let recipe = Recipe {
        method: Method::Tl,
        architecture: architecture(args),
        epochs: WARM_UP + args.repeats,
        segments_per_case: args.batch.max(2),
        mini_batch: args.batch,
        select: Select::Last,
        ..Recipe::preset(Preset::Paper)
    };
    let image = pattern([STEP_EDGE; 3]);
    let label = image.mapv(|v| u8::from(v > 0.9));
    let brain = Array3::ones(image.dim());
    let case =
        Case { id: "pattern", image: image.view(), label: label.view(), brain: brain.view() };
    let visit = Visit { recipe: &recipe, seed: 1, received: None, cases: &[case], validation: &[] };
    let (mut times, mut last) = (Vec::new(), Instant::now());
    train(&visit, device, &mut |event| {
        if let Progress::Update { update, .. } = event {
            if update > WARM_UP {
                times.push(last.elapsed().as_secs_f64());
            }
            last = Instant::now();
        }
        ControlFlow::Continue(())
    })?;
    Ok(times)
}

/// Seconds of whole volumes.
fn infer(args: &args::Bench, device: &Device) -> Result<Vec<f64>> {
    let model = Model::new(&Weights::initial(architecture(args), 1), device);
    let image = pattern(args.shape.0.map(|n| n as usize));
    let mut times = Vec::new();
    for _ in 0..args.repeats {
        let begun = Instant::now();
        model.probability(image.view())?;
        times.push(begun.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// Smooth waves between -1 and 1, so that no kernel meets only zeros.
fn pattern(shape: [usize; 3]) -> Array3<f32> {
    #[allow(clippy::cast_precision_loss)]
    Array3::from_shape_fn(shape, |(x, y, z)| ((x * 3 + y * 5 + z * 7) as f32 * 0.21).sin())
}
