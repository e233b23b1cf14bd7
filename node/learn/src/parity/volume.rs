//! A whole volume, dense and in blocks, against the published code's tile by tile.

use super::directory::{ANY, File};
use super::{Check, Error, Read, compare, forward};
use crate::checkpoint::Weights;
use crate::device::Device;
use crate::infer::{self, Model};
use crate::network::{Network, OUT, Statistics};
use ndarray::ArrayView3;
use rondo::recipe::Precision;

/// On probabilities, absolute.
const TOLERANCE: f64 = 1e-4;
/// Tiles along each axis of a block: the sizes that are compared. Small ones are left out where a volume
/// is cut into so many blocks that they would take minutes.
const BLOCKS: [usize; 3] = [9, 2, 1];
/// Most blocks that a comparison beyond the first may take.
const BLOCKS_MAX: usize = 1000;

pub(super) fn check(
    read: &Read<'_>,
    device: &Device,
    tell: &mut dyn FnMut(Check),
) -> Result<(), Error> {
    let file = File::read(read, "tiled_inference.safetensors")?;
    let tensors = file.tensors()?;
    let volume = tensors.get("volume", [ANY; 3])?;
    let golden = tensors.get("prob", volume.shape)?;
    let stored = forward::weights(read)?;
    let at = |model: &Model, size: usize| -> Result<Check, Error> {
        let image =
            ArrayView3::from_shape(volume.shape, &volume.values).map_err(infer::Error::from)?;
        let found = model.probability_in_blocks(image, size)?;
        let found: Vec<f32> = found.into_iter().collect();
        let check = format!("tiled.blocks_of_{size}");
        Ok(compare(&check, &found, &golden.values, 1.0, TOLERANCE))
    };
    // The map belongs to the network as the forward check leaves it: its training pass takes the batch
    // into the running statistics. A map made with the weights as they are stored is recognised too.
    let [most, rest @ ..] = BLOCKS;
    let trained = after_training_pass(&stored, read, device)
        .map(|weights| Model::new(&weights, device))
        .and_then(|model| Ok((at(&model, most)?, model)));
    let (first, model) = match trained {
        Ok((check, model)) if check.pass => {
            (check.noting("with the forward check's batch in the running statistics"), model)
        }
        other => {
            let model = Model::new(&stored, device);
            let check = at(&model, most)?;
            match other {
                _ if check.pass => (check.noting("with the weights as they are stored"), model),
                Ok((trained, model)) => {
                    (trained.noting("nor do the weights as stored agree"), model)
                }
                Err(e) => (check.noting(&e.to_string()), model),
            }
        }
    };
    tell(first);
    let tiles = volume.shape.map(|n| n.div_ceil(OUT));
    let mut made = vec![tiles.map(|t| t.div_ceil(most))];
    for size in rest {
        let counts = tiles.map(|t| t.div_ceil(size));
        let blocks = counts.iter().fold(1_usize, |all, n| all.saturating_mul(*n));
        if blocks <= BLOCKS_MAX && !made.contains(&counts) {
            made.push(counts);
            tell(at(&model, size)?);
        }
    }
    Ok(())
}

/// The weights with the forward check's batch in their running statistics.
fn after_training_pass(
    stored: &Weights,
    read: &Read<'_>,
    device: &Device,
) -> Result<Weights, Error> {
    let batch = forward::batch(read)?;
    let mut network = Network::new(stored, device, Precision::Fp32);
    let (logits, tape) =
        network.forward(batch.x1.on(device), batch.x2.on(device), Statistics::Batch)?;
    // The statistics are handed out with the gradient alone; what the gradient is of is no matter.
    let (_, seen) = tape.gradient(logits.zeros_like())?;
    network.adopt(seen);
    Ok(network.weights()?)
}
