//! The network's logits in evaluation and in training mode.

use super::directory::{Array, File, SHAPE_LOGITS, SHAPE_X1, SHAPE_X2};
use super::{Check, Error, Read, compare, host};
use crate::checkpoint::Weights;
use crate::device::Device;
use crate::network::{Network, Statistics};
use rondo::recipe::Precision;

/// On logits, absolute.
const TOLERANCE: f64 = 2e-4;

/// A batch of segments.
pub(super) struct Batch {
    pub(super) x1: Array<5>,
    pub(super) x2: Array<5>,
}

pub(super) fn weights(read: &Read<'_>) -> Result<Weights, Error> {
    File::read(read, "deepmedic_full_weights.safetensors")?.tensors()?.model("")
}

/// The batch, its logits in evaluation mode, and those in training mode.
fn golden(read: &Read<'_>) -> Result<(Batch, Array<5>, Array<5>), Error> {
    let file = File::read(read, "deepmedic_full_forward.safetensors")?;
    let tensors = file.tensors()?;
    let x1 = tensors.get("x1", SHAPE_X1)?;
    let of = |[_, rest @ ..]: [usize; 5]| {
        let [c, d, h, w] = rest;
        [x1.batch(), c, d, h, w]
    };
    let x2 = tensors.get("x2", of(SHAPE_X2))?;
    let evaluated = tensors.get("logits_eval", of(SHAPE_LOGITS))?;
    let trained = tensors.get("logits_train", of(SHAPE_LOGITS))?;
    Ok((Batch { x1, x2 }, evaluated, trained))
}

pub(super) fn batch(read: &Read<'_>) -> Result<Batch, Error> {
    Ok(golden(read)?.0)
}

pub(super) fn check(
    read: &Read<'_>,
    device: &Device,
    tell: &mut dyn FnMut(Check),
) -> Result<(), Error> {
    let weights = weights(read)?;
    let (batch, evaluated, trained) = golden(read)?;
    let network = Network::new(&weights, device, Precision::Fp32);
    let inputs = || (batch.x1.on(device), batch.x2.on(device));
    let mut logits = |check: &str, found, expected: &Array<5>| -> Result<(), Error> {
        tell(compare(check, &host::<5>(found)?, &expected.values, 1.0, TOLERANCE));
        Ok(())
    };
    let (x1, x2) = inputs();
    let folded = network.frozen(Precision::Fp32).logits(x1, x2)?;
    logits("forward.eval", folded, &evaluated)?;
    let (x1, x2) = inputs();
    let unfolded = network.forward(x1, x2, Statistics::Running)?.0;
    logits("forward.eval_unfolded", unfolded, &evaluated)?;
    let (x1, x2) = inputs();
    logits("forward.train", network.forward(x1, x2, Statistics::Batch)?.0, &trained)
}
