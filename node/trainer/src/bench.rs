//! `bench`: how fast this machine trains and segments, on data made for the purpose; beside PyTorch,
//! if asked. What is measured, and how, is told in `benches/README.md`.

mod figures;
mod infer;
mod peer;
mod process;
mod sample;
mod step;

use crate::{DONE, args, output};
use anyhow::{Context, Result, bail};
use figures::Unit;
use ndarray::Array3;
use peer::{Peer, Setup};
use rondo::recipe::{Architecture, Method};
use rondo_learn::device::{Choice, Device};
use std::path::absolute;

pub(crate) fn run(args: &args::Bench) -> Result<u8> {
    if !matches!(args.method, Method::Tl | Method::Lwf) {
        bail!("--method is {}, but bench measures tl or lwf", args.method);
    }
    let [n1, n2, n3, m] = args.widths.0;
    let architecture = Architecture { n1, n2, n3, m };
    if !architecture.is_possible() {
        bail!("--widths must satisfy N1 ≤ N2 ≤ N3");
    }
    let device = Device::open(args.device)?;
    let (unit, figures) = match args.what {
        args::BenchOf::Step => {
            (Unit::Update, step::run(args, architecture, &device, peer(args, &device)?)?)
        }
        args::BenchOf::Infer => {
            (Unit::Volume, infer::run(args, architecture, &device, peer(args, &device)?)?)
        }
        args::BenchOf::Sample => {
            if args.peer.is_some() {
                bail!("bench sample has no peer to measure against; leave out --peer");
            }
            output::line(&sample::run(args, architecture, &device)?)?;
            return Ok(DONE);
        }
    };
    let report = figures::Report { unit, args, device: &device, figures: &figures };
    output::line(&if args.json { report.json().to_string() } else { report.text() })?;
    Ok(DONE)
}

/// Starts the peer, if there shall be one.
fn peer(args: &args::Bench, device: &Device) -> Result<Option<Peer>> {
    let Some(python) = &args.peer else { return Ok(None) };
    let network = args.network.as_deref().map(absolute).transpose().context("finding --network")?;
    let device_name = match device.choice() {
        Choice::Cuda(n) => format!("cuda:{n}"),
        _ => "cpu".to_owned(),
    };
    Ok(Some(Peer::start(
        python,
        &Setup {
            device: device_name,
            threads: device.threads(),
            batch: args.batch,
            widths: args.widths.0,
            teacher: args.method == Method::Lwf,
            network: network.as_deref(),
        },
    )?))
}

/// Smooth waves between -1 and 1, so that no kernel meets only zeros.
fn pattern(shape: [u32; 3]) -> Array3<f32> {
    #[allow(clippy::cast_precision_loss)]
    Array3::from_shape_fn(shape.map(|n| n as usize), |(x, y, z)| {
        ((x * 3 + y * 5 + z * 7) as f32 * 0.21).sin()
    })
}
