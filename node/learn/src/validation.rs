//! Judging a model on whole volumes.

use crate::checkpoint::Weights;
use crate::device::Device;
use crate::infer;
use crate::network::Frozen;
use crate::segment::{Case, Unfit};
use crate::train::Error;
use ndarray::ArrayView3;
use rondo::recipe::Precision;

/// Mean whole-mask Dice of `weights` over `cases`; none without cases.
///
/// # Errors
/// The case whose inference failed.
pub fn validate(
    weights: &Weights,
    cases: &[Case<'_>],
    device: &Device,
) -> Result<Option<f64>, Error> {
    mean_dice(Frozen::new(weights, device, Precision::Fp32), cases, device, &mut || false)
}

/// As [`validate`]; `stops` is asked before every volume.
pub(crate) fn mean_dice(
    frozen: Frozen,
    cases: &[Case<'_>],
    device: &Device,
    stops: &mut dyn FnMut() -> bool,
) -> Result<Option<f64>, Error> {
    if cases.is_empty() {
        return Ok(None);
    }
    let model = infer::Model::from_frozen(frozen, device);
    let mut sum = 0.0;
    for case in cases {
        if stops() {
            return Err(Error::Stopped);
        }
        if case.image.dim() != case.label.dim() {
            return Err(Unfit::Shapes(case.id.to_owned()).into());
        }
        let probability = model
            .probability(case.image)
            .map_err(|source| Error::Validation { case: case.id.to_owned(), source })?;
        sum += dice(probability.view(), case.label);
    }
    #[allow(clippy::cast_precision_loss)]
    let mean = sum / cases.len() as f64;
    Ok(Some(mean))
}

/// Whole-mask Dice of P > 0.5 against a label; empty against empty = 1.
#[must_use]
pub fn dice(probability: ArrayView3<'_, f32>, label: ArrayView3<'_, u8>) -> f64 {
    let mut counts = [0_u64; 3];
    for (p, l) in probability.iter().zip(label.iter()) {
        let (p, l) = (*p > 0.5, *l != 0);
        counts[0] += u64::from(p);
        counts[1] += u64::from(l);
        counts[2] += u64::from(p && l);
    }
    if counts[0] + counts[1] == 0 {
        return 1.0;
    }
    #[allow(clippy::cast_precision_loss)]
    let dice = 2.0 * counts[2] as f64 / (counts[0] + counts[1]) as f64;
    dice
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn dice_of_halves_of_nothing_and_of_everything() {
        let map = |values: [f32; 4]| Array3::from_shape_fn((1, 1, 4), |(_, _, k)| values[k]);
        let label = |values: [u8; 4]| Array3::from_shape_fn((1, 1, 4), |(_, _, k)| values[k]);
        let of = |p, l| dice(map(p).view(), label(l).view());
        assert_eq!(of([0.5, 0.1, 0.0, 0.2], [0; 4]), 1.0, "P = 0.5 is background");
        assert_eq!(of([0.9, 0.1, 0.0, 0.2], [0; 4]), 0.0);
        assert_eq!(of([0.9, 0.6, 0.0, 0.2], [1, 0, 0, 1]), 0.5);
        assert_eq!(of([0.9; 4], [1; 4]), 1.0);
    }
}
