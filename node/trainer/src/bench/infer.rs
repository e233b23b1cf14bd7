//! Whole volumes; before, between and after them the peer does some of the tiles that the published
//! code cuts a volume into.

use super::figures::{Figures, PeerIs, Watch};
use super::{Peer, pattern};
use crate::args;
use anyhow::{Result, bail};
use rondo::recipe::{Architecture, Precision};
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::{Choice, Device};
use rondo_learn::infer::Model;
use rondo_learn::network::OUT;

/// Volumes to measure.
const REPEATS: u32 = 2;
/// Tiles in one stretch of the peer.
const STRETCH: u32 = 200;
/// Tiles at a time among which the peer's best is sought, on a processor and on a GPU.
const BATCHES: [u32; 4] = [10, 20, 50, 100];
const BATCHES_GPU: [u32; 4] = [50, 200, 500, 1000];

pub(super) fn run(
    args: &args::Bench,
    architecture: Architecture,
    device: &Device,
    mut peer: Option<Peer>,
) -> Result<Figures> {
    if args.precision != Precision::Fp32 {
        bail!("--precision is {}, but whole volumes are segmented in fp32", args.precision);
    }
    let model = Model::new(&Weights::initial(architecture, 1), device);
    let image = pattern(args.shape.0);
    let tiles: u64 = args.shape.0.iter().map(|n| u64::from(*n).div_ceil(OUT as u64)).product();
    let gpu = matches!(device.choice(), Choice::Cuda(_));
    let mut best = (f64::INFINITY, 0);
    if let Some(peer) = &mut peer {
        for batch in if gpu { BATCHES_GPU } else { BATCHES } {
            peer.tiles("fp32", batch, batch)?;
            let count = STRETCH.max(batch);
            let each = peer.tiles("fp32", count, batch)?.ms / f64::from(count);
            if each < best.0 {
                best = (each, batch);
            }
        }
    }
    let count = STRETCH.max(best.1);
    let mut figures =
        Figures { peer_tiles: peer.is_some().then_some((tiles, best.1)), ..Figures::default() };
    let mut stretch = |figures: &mut Figures| -> Result<()> {
        if let Some(peer) = &mut peer {
            #[allow(clippy::cast_precision_loss)]
            let volumes = f64::from(count) / tiles as f64;
            figures.peer.push(peer.tiles("fp32", count, best.1)? / volumes);
        }
        Ok(())
    };
    stretch(&mut figures)?;
    for _ in 0..args.repeats.unwrap_or(REPEATS) {
        let watch = Watch::start();
        model.probability(image.view())?;
        figures.ours.push(watch.read());
        figures.count += 1;
        stretch(&mut figures)?;
    }
    figures.peer_is = peer.as_ref().map(PeerIs::of);
    Ok(figures)
}
