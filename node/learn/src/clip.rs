//! Gradient clipping: Pascanu et al., ICML 2013, as `torch.nn.utils.clip_grad_norm_` has it.

use burn::tensor::Tensor;

/// What PyTorch adds to the norm before it divides by it.
const EPSILON: f64 = 1e-6;

/// Scales `gradient` `[p]` down to the L2 norm `most`, on its device; 0 leaves it as it is.
pub(crate) fn clip(gradient: Tensor<1>, most: f64) -> Tensor<1> {
    if most <= 0.0 {
        return gradient;
    }
    let norm = (gradient.clone() * gradient.clone()).sum().sqrt();
    let scale = ((norm + EPSILON).recip() * most).clamp_max(1.0);
    gradient * scale
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::device::{Choice, Device};

    #[test]
    fn long_gradients_are_scaled_and_short_ones_are_not() {
        for choice in [Choice::Cpu, Choice::Flex] {
            let device = Device::open(choice).unwrap();
            let clipped = |values: [f32; 3], most| -> Vec<f32> {
                clip(Tensor::from_floats(values, device.burn()), most).try_into_vec_as().unwrap()
            };
            assert_eq!(clipped([3.0, 0.0, 4.0], 0.0), [3.0, 0.0, 4.0]);
            assert_eq!(clipped([3.0, 0.0, 4.0], 5.1), [3.0, 0.0, 4.0]);
            let short = clipped([3.0, 0.0, -4.0], 1.0);
            // 1 / (5 + 1e-6)
            assert!((short[0] - 0.599_999_9).abs() < 1e-7 && (short[2] + 0.799_999_8).abs() < 1e-7);
            assert_eq!(clipped([0.0; 3], 1.0), [0.0; 3]);
        }
    }
}
