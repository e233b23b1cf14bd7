//! Adam as PyTorch has it: coupled L2, amsgrad on the uncorrected second moment, ε outside the root.
//!
//! All parameters are one vector, so an update is a dozen operations.

use crate::checkpoint::Moments;
use burn::tensor::{Device, Tensor, TensorData, TensorReadError};
use rondo::recipe::Recipe;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;

/// Learning rate in the epoch `epoch` (from 0): `base` times the factor for every milestone passed.
#[must_use]
pub fn learning_rate(base: f64, recipe: &Recipe, epoch: u32) -> f64 {
    let passed =
        recipe.learning_rate_epochs.iter().filter(|milestone| **milestone <= epoch).count();
    base * recipe.learning_rate_factor.powi(i32::try_from(passed).unwrap_or(i32::MAX))
}

/// Adam's state on a device.
pub(crate) struct Adam {
    first: Tensor<1>,
    second: Tensor<1>,
    maximum: Tensor<1>,
    step: u32,
    weight_decay: f64,
    epsilon: f64,
    amsgrad: bool,
}

impl Adam {
    pub(crate) fn new(moments: &Moments, recipe: &Recipe, device: &Device) -> Self {
        let vector = |values: &[f32]| {
            Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
        };
        Self {
            first: vector(&moments.first),
            second: vector(&moments.second),
            maximum: vector(&moments.maximum),
            step: moments.step,
            weight_decay: recipe.weight_decay,
            epsilon: recipe.adam_epsilon,
            amsgrad: recipe.amsgrad,
        }
    }

    /// One update of `parameters` `[p]` by `gradient` `[p]`.
    pub(crate) fn update(
        &mut self,
        parameters: Tensor<1>,
        gradient: Tensor<1>,
        rate: f64,
    ) -> Tensor<1> {
        self.step = self.step.saturating_add(1);
        let step = f64::from(self.step);
        let gradient = gradient + parameters.clone() * self.weight_decay;
        self.first = self.first.clone() * BETA1 + gradient.clone() * (1.0 - BETA1);
        self.second = self.second.clone() * BETA2 + gradient.clone() * gradient * (1.0 - BETA2);
        let second = if self.amsgrad {
            self.maximum = self.maximum.clone().max_pair(self.second.clone());
            self.maximum.clone()
        } else {
            self.second.clone()
        };
        let correction2 = (1.0 - BETA2.powf(step)).sqrt();
        let divisor = second.sqrt() / correction2 + self.epsilon;
        parameters - self.first.clone() / divisor * (rate / (1.0 - BETA1.powf(step)))
    }

    /// Copies the state to the host.
    pub(crate) fn moments(&self, learning_rate: f64) -> Result<Moments, TensorReadError> {
        Ok(Moments {
            first: self.first.try_to_vec_as()?,
            second: self.second.try_to_vec_as()?,
            maximum: self.maximum.try_to_vec_as()?,
            step: self.step,
            learning_rate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rondo::recipe::Preset;

    #[test]
    fn the_schedule_multiplies_at_its_epochs() {
        let recipe = Recipe::preset(Preset::Paper);
        let at = |epoch| learning_rate(1e-3, &recipe, epoch);
        assert_eq!((at(0), at(149)), (1e-3, 1e-3));
        assert!((at(150) - 1e-4).abs() < 1e-12 && (at(299) - 1e-5).abs() < 1e-12);
    }
}
