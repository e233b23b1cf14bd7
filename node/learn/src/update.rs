//! One update: forward, losses, backward, what holds the parameters, clipping, Adam.

use crate::checkpoint::Weights;
use crate::clip::clip;
use crate::device::Device;
use crate::forgetting::Memory;
use crate::loss::{self, Terms};
use crate::network::{self, Network, OUT, Statistics, X1, X2};
use crate::optimizer::Adam;
use crate::segment::Batch;
use burn::tensor::{Tensor, TensorData, TensorReadError};
use rondo::recipe::Recipe;

/// A mini-batch on the device.
pub(crate) struct Input {
    /// `[n, 1, 25, 25, 25]`
    pub(crate) x1: Tensor<5>,
    /// `[n, 1, 19, 19, 19]`
    pub(crate) x2: Tensor<5>,
    /// `[n, 729]`, 0 or 1
    pub(crate) target: Tensor<2>,
}

impl Input {
    pub(crate) fn of(batch: Batch, device: &Device) -> Self {
        let (n, burn) = (batch.n, device.burn());
        Self {
            x1: Tensor::from_data(TensorData::new(batch.x1, [n, 1, X1, X1, X1]), burn),
            x2: Tensor::from_data(TensorData::new(batch.x2, [n, 1, X2, X2, X2]), burn),
            target: Tensor::from_data(TensorData::new(batch.target, [n, OUT.pow(3)]), burn),
        }
    }
}

/// The model that learns, with all that an update changes or needs.
pub(crate) struct Student<'a> {
    pub(crate) network: Network,
    pub(crate) adam: Adam,
    pub(crate) memory: Memory,
    pub(crate) recipe: &'a Recipe,
}

impl Student<'_> {
    /// One update at the learning rate `rate`. Gives the loss parts `[4]`, which stay on the device:
    /// nothing waits for it here.
    ///
    /// # Errors
    /// A device that fails or has not enough memory; then nothing was changed.
    pub(crate) fn update(&mut self, input: &Input, rate: f64) -> Result<Tensor<1>, network::Error> {
        let Input { x1, x2, target } = input;
        let taught = self.memory.logits(x1, x2)?;
        let (logits, tape) = self.network.forward(x1.clone(), x2.clone(), Statistics::Batch)?;
        let leaf = logits.autodiff().require_grad();
        let terms = Terms::of(leaf.clone(), target.clone(), taught, self.recipe);
        let upstream = loss::gradient(&leaf, terms.total(self.recipe));
        let (mut gradient, seen) = tape.gradient(upstream)?;
        let mut penalty = None;
        if let Some((value, pull)) = self.memory.pull(&self.network.parameters) {
            gradient = gradient + pull;
            penalty = Some(value);
        }
        let gradient = clip(gradient, self.recipe.gradient_clip);
        self.network.parameters = self.adam.update(self.network.parameters.clone(), gradient, rate);
        self.network.adopt(seen);
        Ok(terms.row(penalty))
    }

    /// Copies the model to the host, and Adam's state beside it.
    pub(crate) fn weights(&self, rate: f64) -> Result<Weights, TensorReadError> {
        let mut weights = self.network.weights()?;
        weights.optimizer = Some(self.adam.moments(rate)?);
        Ok(weights)
    }
}
