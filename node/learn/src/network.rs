//! DeepMedic on tensors: training pass, evaluation pass, and the folded form used where nothing is learnt.
//!
//! Two inputs: `x1` `[n, 1, 25, 25, 25]` at full resolution, `x2` `[n, 1, 19, 19, 19]` at one third,
//! centred on the same voxel; output logits `[n, 2, 9, 9, 9]`. Every 3³ convolution is valid, without
//! bias, and followed by BatchNorm and ReLU.

use crate::checkpoint::Weights;
use crate::device;
use crate::layers::{BRANCH1, BRANCH2, HEAD, Layer, Layers};
use crate::native::{self, Native};
use burn::tensor::activation::relu;
use burn::tensor::module::{batch_norm, batch_norm_train, conv3d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use rondo::recipe::{Architecture, Precision};
use std::ops::Range;

/// Edge of the full-resolution input.
pub const X1: usize = 25;
/// Edge of the low-resolution input.
pub const X2: usize = 19;
/// Edge of the output.
pub const OUT: usize = 9;
/// Voxels between two samples of the low-resolution input.
pub const STRIDE: usize = 3;
/// BatchNorm's ε.
pub(crate) const EPSILON: f64 = 1e-5;
/// BatchNorm's momentum: weight of the newest batch in the running statistics.
pub(crate) const MOMENTUM: f64 = 0.1;

/// Why a pass could not be made. Nothing was changed by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The device has no memory left for it.
    #[error(
        "the device has not enough memory for this; lower `mini_batch`, or free the device of other work"
    )]
    OutOfMemory,
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Which statistics BatchNorm normalises with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statistics {
    /// Those of the batch: training.
    Batch,
    /// The running ones: evaluation, but differentiable.
    Running,
}

/// A model on a device, being trained.
pub(crate) struct Network {
    pub(crate) layers: Layers,
    architecture: Architecture,
    /// All trainable tensors, `[p]`, outside of any gradient graph.
    pub(crate) parameters: Tensor<1>,
    mean: Tensor<1>,
    variance: Tensor<1>,
    upsampling: Tensor<2>,
    /// How libtorch runs it; none composes it from Burn's operations, which any backend has.
    native: Option<Native>,
}

/// What a training pass keeps for its backward pass.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum Tape {
    /// Burn's own graph.
    Composed { logits: Tensor<5>, leaves: Leaves, seen: BatchStatistics },
    /// libtorch's.
    Native { tape: Box<native::Tape>, layers: Layers },
}

/// Leaves of one update's gradient graph, in published order.
pub(crate) struct Leaves {
    kernels: Vec<Tensor<5>>,
    gammas: Vec<Tensor<1>>,
    betas: Vec<Tensor<1>>,
    last_bias: Tensor<1>,
}

/// What the training pass saw at every BatchNorm.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum BatchStatistics {
    /// Mean and unbiased variance of the batch; empty where the running ones were used.
    Seen { means: Vec<Tensor<1>>, variances: Vec<Tensor<1>> },
    /// The running statistics with the batch taken in.
    Running { mean: Tensor<1>, variance: Tensor<1> },
}

fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

impl Network {
    pub(crate) fn new(weights: &Weights, device: &device::Device, precision: Precision) -> Self {
        let native = device.is_libtorch().then_some(Native { precision, recompute: false });
        let device = device.burn();
        Self {
            native,
            layers: Layers::new(&weights.architecture),
            architecture: weights.architecture,
            parameters: vector(&weights.parameters, device),
            mean: vector(&weights.mean, device),
            variance: vector(&weights.variance, device),
            upsampling: upsampling(device),
        }
    }

    /// Copies the model to the host.
    pub(crate) fn weights(&self) -> Result<Weights, burn::tensor::TensorReadError> {
        Ok(Weights {
            architecture: self.architecture,
            parameters: self.parameters.try_to_vec_as()?,
            mean: self.mean.try_to_vec_as()?,
            variance: self.variance.try_to_vec_as()?,
            optimizer: None,
            importance: None,
        })
    }

    /// The same network, composed from Burn's operations on any device; the yardstick of the other.
    #[cfg(test)]
    pub(crate) fn composed(weights: &Weights, device: &device::Device) -> Self {
        Self { native: None, ..Self::new(weights, device, Precision::Fp32) }
    }

    /// What libtorch runs on.
    fn state(&self) -> Result<native::State, Error> {
        Ok(native::State {
            parameters: native::inside(&self.parameters)?,
            mean: native::inside(&self.mean)?,
            variance: native::inside(&self.variance)?,
            upsampling: native::inside(&self.upsampling)?,
        })
    }

    /// Starts a gradient graph at the parameters.
    fn leaves(&self) -> Leaves {
        let kernel = |range: &Range<usize>, shape| {
            kernel(&self.parameters, range, shape).autodiff().require_grad()
        };
        let flat = |range: &Range<usize>| part(&self.parameters, range).autodiff().require_grad();
        let normalised = &self.layers.normalised;
        let mut kernels: Vec<_> = normalised.iter().map(|l| kernel(&l.weight, l.kernel)).collect();
        kernels.push(kernel(&self.layers.last_weight, self.layers.last_kernel));
        Leaves {
            kernels,
            gammas: normalised.iter().map(|l| flat(&l.gamma)).collect(),
            betas: normalised.iter().map(|l| flat(&l.beta)).collect(),
            last_bias: flat(&self.layers.last_bias),
        }
    }

    /// Forward pass that can be differentiated.
    ///
    /// `x1` `[n, 1, 25, 25, 25]`, `x2` `[n, 1, 19, 19, 19]` → logits `[n, 2, 9, 9, 9]`, outside of any
    /// gradient graph, and what [`Tape::gradient`] needs.
    pub(crate) fn forward(
        &self,
        x1: Tensor<5>,
        x2: Tensor<5>,
        statistics: Statistics,
    ) -> Result<(Tensor<5>, Tape), Error> {
        if let Some(native) = self.native {
            let inputs = [&native::inside(&x1)?, &native::inside(&x2)?];
            let (logits, tape) = native.forward(&self.layers, self.state()?, inputs, statistics)?;
            let tape = Tape::Native { tape: Box::new(tape), layers: self.layers.clone() };
            return Ok((native::outside(logits), tape));
        }
        let leaves = self.leaves();
        let (mut means, mut variances) = (Vec::new(), Vec::new());
        let mut block = |i: usize, x: Tensor<5>| {
            let y = conv3d(x, leaves.kernels[i].clone(), None, valid());
            let (gamma, beta) = (leaves.gammas[i].clone(), leaves.betas[i].clone());
            if statistics == Statistics::Running {
                let channels = &self.layers.normalised[i].channels;
                let running = |of: &Tensor<1>| part(of, channels).autodiff();
                let (mean, variance) = (running(&self.mean), running(&self.variance));
                return batch_norm(y, gamma, beta, mean, variance, EPSILON);
            }
            let [n, _, d, h, w] = y.dims();
            #[allow(clippy::cast_precision_loss)]
            let count = (n * d * h * w) as f64;
            let out = batch_norm_train(y, gamma, beta, EPSILON);
            means.push(out.mean.without_autodiff());
            variances.push(out.variance.without_autodiff() * (count / (count - 1.0).max(1.0)));
            out.output
        };
        let hidden = forward(x1, x2, &self.upsampling, &mut block);
        let last = leaves.kernels[self.layers.normalised.len()].clone();
        let logits = conv3d(hidden, last, Some(leaves.last_bias.clone()), valid());
        let seen = BatchStatistics::Seen { means, variances };
        Ok((logits.clone().without_autodiff(), Tape::Composed { logits, leaves, seen }))
    }

    /// Goes on with less memory and the same mathematics; none if that is not possible. The sentence
    /// is for the operator.
    ///
    /// Halving the mini-batch would change the numbers, since BatchNorm couples its segments; so the
    /// activations are halved instead.
    pub(crate) fn thriftier(&mut self) -> Option<&'static str> {
        let native = self.native.as_mut().filter(|native| !native.recompute)?;
        native.recompute = true;
        Some(
            "the device has too little memory for a mini-batch; activations are now computed twice \
             instead of kept, which is slower and changes at most last bits",
        )
    }

    /// Takes a batch's statistics into the running ones, as PyTorch does (unbiased variance).
    pub(crate) fn adopt(&mut self, seen: BatchStatistics) {
        match seen {
            BatchStatistics::Seen { means, .. } if means.is_empty() => {}
            BatchStatistics::Seen { means, variances } => {
                let blend = |old: &Tensor<1>, new| {
                    old.clone() * (1.0 - MOMENTUM) + Tensor::cat(new, 0) * MOMENTUM
                };
                self.mean = blend(&self.mean, means);
                self.variance = blend(&self.variance, variances);
            }
            BatchStatistics::Running { mean, variance } => {
                (self.mean, self.variance) = (mean, variance);
            }
        }
    }

    /// The model as it stands, frozen.
    pub(crate) fn frozen(&self, precision: Precision) -> Frozen {
        let mut layers: Vec<_> = self.layers.normalised.iter().map(|l| self.folded(l)).collect();
        layers.push((
            kernel(&self.parameters, &self.layers.last_weight, self.layers.last_kernel),
            part(&self.parameters, &self.layers.last_bias),
        ));
        let native = self.native.map(|native| Native { precision, ..native });
        Frozen { layers, upsampling: self.upsampling.clone(), native }
    }

    /// Convolution and BatchNorm in evaluation mode as one convolution with bias.
    fn folded(&self, layer: &Layer) -> (Tensor<5>, Tensor<1>) {
        let scale = part(&self.parameters, &layer.gamma)
            / (part(&self.variance, &layer.channels) + EPSILON).sqrt();
        let bias =
            part(&self.parameters, &layer.beta) - part(&self.mean, &layer.channels) * scale.clone();
        let kernel = kernel(&self.parameters, &layer.weight, layer.kernel);
        (kernel * scale.reshape([layer.kernel[0], 1, 1, 1, 1]), bias)
    }
}

impl Tape {
    /// Gradient of all parameters as one vector `[p]` in published order, from the loss's gradient by
    /// the logits, `upstream` `[n, 2, 9, 9, 9]`; and what BatchNorm saw.
    pub(crate) fn gradient(
        self,
        upstream: Tensor<5>,
    ) -> Result<(Tensor<1>, BatchStatistics), Error> {
        match self {
            Self::Composed { logits, leaves, seen } => {
                let mut grads = (logits * upstream.autodiff()).sum().backward();
                Ok((leaves.gradients(&mut grads), seen))
            }
            Self::Native { tape, layers } => {
                let gradient = tape.gradient(&layers, &native::inside(&upstream)?)?;
                let (mean, variance) = tape.running;
                let (mean, variance) = (native::outside(mean), native::outside(variance));
                Ok((native::outside(gradient), BatchStatistics::Running { mean, variance }))
            }
        }
    }
}

impl Leaves {
    fn gradients(&self, grads: &mut Gradients) -> Tensor<1> {
        let take = |g: Option<Tensor<1>>, like: usize, device: &Device| {
            g.unwrap_or_else(|| Tensor::zeros([like], device))
        };
        let device = self.last_bias.device().without_autodiff();
        let mut list = Vec::new();
        for (i, kernel) in self.kernels.iter().enumerate() {
            let count = kernel.dims().iter().product();
            let gradient = kernel.grad_remove(grads).map(|g| g.reshape([count]));
            list.push(take(gradient, count, &device));
            for flat in [self.gammas.get(i), self.betas.get(i)].into_iter().flatten() {
                list.push(take(flat.grad_remove(grads), flat.dims()[0], &device));
            }
        }
        list.push(take(self.last_bias.grad_remove(grads), 2, &device));
        Tensor::cat(list, 0)
    }
}

/// A model that only evaluates: every BatchNorm folded into its convolution.
pub(crate) struct Frozen {
    /// Kernel and bias of every layer.
    layers: Vec<(Tensor<5>, Tensor<1>)>,
    upsampling: Tensor<2>,
    native: Option<Native>,
}

impl Frozen {
    pub(crate) fn new(weights: &Weights, device: &device::Device, precision: Precision) -> Self {
        Network::new(weights, device, precision).frozen(precision)
    }

    /// Evaluation pass: any number of aligned blocks at once.
    ///
    /// `x1` `[n, 1, 9a+16, 9b+16, 9c+16]`, `x2` `[n, 1, 3a+16, 3b+16, 3c+16]` → `[n, 2, 9a, 9b, 9c]`;
    /// segments are the case a = b = c = 1.
    pub(crate) fn logits(&self, x1: Tensor<5>, x2: Tensor<5>) -> Result<Tensor<5>, Error> {
        if let Some(native) = self.native {
            let layers = self.layers.iter();
            let layers = layers.map(|(k, b)| Ok((native::inside(k)?, native::inside(b)?)));
            let layers = layers.collect::<Result<Vec<_>, Error>>()?;
            let upsampling = native::inside(&self.upsampling)?;
            let (x1, x2) = (native::inside(&x1)?, native::inside(&x2)?);
            return Ok(native::outside(native.evaluate(layers, upsampling, &x1, &x2)?));
        }
        let mut block = |i: usize, x: Tensor<5>| {
            let (kernel, bias) = self.layers[i].clone();
            conv3d(x, kernel, Some(bias), valid())
        };
        let hidden = forward(x1, x2, &self.upsampling, &mut block);
        Ok(block(HEAD.end, hidden))
    }
}

/// The wiring of both passes up to the last layer; `block` is a convolution with its normalisation.
fn forward(
    x1: Tensor<5>,
    x2: Tensor<5>,
    upsampling: &Tensor<2>,
    block: &mut impl FnMut(usize, Tensor<5>) -> Tensor<5>,
) -> Tensor<5> {
    let mut high = x1;
    for i in BRANCH1.start..2 {
        high = relu(block(i, high));
    }
    for first in (2..BRANCH1.end).step_by(2) {
        let inner = relu(block(first, high.clone()));
        high = relu(partial_skip(block(first + 1, inner), high));
    }
    let mut low = x2;
    for i in BRANCH2 {
        low = relu(block(i, low));
    }
    let mut merged = Tensor::cat(vec![high, upsample(low, upsampling)], 1);
    for i in HEAD {
        merged = relu(block(i, merged));
    }
    merged
}

/// Adds the middle of `x` (2 voxels cropped on every side) to the first channels of `y`.
fn partial_skip(y: Tensor<5>, x: Tensor<5>) -> Tensor<5> {
    let [n, cin, d, h, w] = x.dims();
    let cout = y.dims()[1];
    let middle = x.slice([0..n, 0..cin, 2..d - 2, 2..h - 2, 2..w - 2]);
    if cin == cout {
        return y + middle;
    }
    let rest = y.clone().narrow(1, cin, cout - cin);
    Tensor::cat(vec![y.narrow(1, 0, cin) + middle, rest], 1)
}

/// Trilinear ×3 (align_corners = false) of every aligned 3³ block **on its own**: across blocks the
/// numbers would differ from those a segment gives. `[n, c, 3a, 3b, 3c]` → `[n, c, 9a, 9b, 9c]`.
fn upsample(x: Tensor<5>, matrix: &Tensor<2>) -> Tensor<5> {
    let [n, c, d, h, w] = x.dims();
    let [a, b, e] = [d / 3, h / 3, w / 3];
    let nc = n * c;
    if [a, b, e] == [1, 1, 1] {
        return x.reshape([nc, 27]).matmul(matrix.clone()).reshape([n, c, OUT, OUT, OUT]);
    }
    x.reshape([nc, a, 3, b, 3, e, 3])
        .permute([0, 1, 3, 5, 2, 4, 6])
        .reshape([nc * a * b * e, 27])
        .matmul(matrix.clone())
        .reshape([nc, a, b, e, OUT, OUT, OUT])
        .permute([0, 1, 4, 2, 5, 3, 6])
        .reshape([n, c, OUT * a, OUT * b, OUT * e])
}

/// `[27, 729]`: the separable interpolation 3³ → 9³ as one linear map.
fn upsampling(device: &Device) -> Tensor<2> {
    let axis = interpolation();
    let mut values = vec![0.0; 27 * 729];
    for (from, row) in values.chunks_exact_mut(729).enumerate() {
        let [i, j, k] = [from / 9, from / 3 % 3, from % 3];
        for (to, value) in row.iter_mut().enumerate() {
            *value = axis[to / 81][i] * axis[to / 9 % 9][j] * axis[to % 9][k];
        }
    }
    Tensor::from_data(TensorData::new(values, [27, 729]), device)
}

/// Weights of the three sources for each of nine targets: s = (i + ½)/3 − ½, clamped to [0, 2].
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn interpolation() -> [[f32; 3]; OUT] {
    let mut axis = [[0.0; 3]; OUT];
    for (i, weights) in axis.iter_mut().enumerate() {
        let s = ((i as f32 + 0.5) / 3.0 - 0.5).clamp(0.0, 2.0);
        let low = s as usize;
        weights[low] += 1.0 - s.fract();
        weights[(low + 1).min(2)] += s.fract();
    }
    axis
}

fn valid() -> ConvOptions<3> {
    ConvOptions::new([1; 3], [0; 3], [1; 3], 1)
}

fn part(vector: &Tensor<1>, range: &Range<usize>) -> Tensor<1> {
    vector.clone().narrow(0, range.start, range.len())
}

fn kernel(vector: &Tensor<1>, range: &Range<usize>, shape: [usize; 5]) -> Tensor<5> {
    part(vector, range).reshape(shape)
}
