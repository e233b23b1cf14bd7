//! The network through libtorch's own convolution and BatchNorm, forward and backward.
//!
//! Composed from generic operations, a convolution's backward pass is two more convolutions that no
//! kernel is made for, and BatchNorm is a dozen passes over the activations. Here libtorch records
//! the whole pass and differentiates it; only parameters, images, logits and their gradient cross
//! over to Burn, so nothing large is copied. Numbers agree with the composed network
//! ([`crate::network`]), which every other backend uses.
// Burn 0.22 marks libtorch's backend for removal.
#![allow(deprecated)]

use crate::layers::{BRANCH1, BRANCH2, HEAD, Layer, Layers};
use crate::network::{EPSILON, Error, MOMENTUM, OUT, Statistics};
use burn::backend::libtorch::{LibTorch, TchTensor};
use burn::tensor::Tensor as BurnTensor;
use rondo::recipe::Precision;
use std::ops::Range;
use tch::{Kind, TchError, Tensor};

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        // The words of libtorch's allocators for CUDA and for the processor.
        const WORDS: [&str; 3] = ["out of memory", "can't allocate memory", "not enough memory"];
        if WORDS.iter().any(|words| text.contains(words)) {
            return Self::OutOfMemory;
        }
        Self::Device(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// The same numbers as libtorch has them.
pub(crate) fn inside<const D: usize>(tensor: &BurnTensor<D>) -> Result<Tensor, Error> {
    let primitive = tensor.clone().try_into_primitive::<LibTorch>();
    let primitive =
        primitive.map_err(|e| Error::Device(format!("not a tensor of libtorch: {e:?}")))?;
    Ok(primitive.tensor.shallow_clone())
}

/// The same numbers as Burn has them. Nothing else may hold on to `tensor`: Burn reuses its memory.
pub(crate) fn outside<const D: usize>(tensor: Tensor) -> BurnTensor<D> {
    BurnTensor::from_primitive::<LibTorch>(TchTensor::new(tensor))
}

fn copied(tensor: &Tensor) -> Result<Tensor, TchError> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// A part of the network whose inner activations can be dropped and computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// Both plain layers of branch 1.
    Plain,
    /// The residual block with this first layer.
    Residual(usize),
    /// All of branch 2.
    Low,
    /// Upsampling, merge, head.
    Head,
}

/// Branch 1 in its order; each takes the output of the one before.
const HIGH: [Piece; 4] = [Piece::Plain, Piece::Residual(2), Piece::Residual(4), Piece::Residual(6)];

/// Leaves of one pass, in published order: kernel, γ, β of every normalised layer; last kernel, bias.
struct Leaves(Vec<Tensor>);

impl Leaves {
    fn new(layers: &Layers, parameters: &Tensor, gradient: bool) -> Result<Self, Error> {
        let leaf = |range: &Range<usize>, shape: &[usize]| -> Result<Tensor, Error> {
            let shape: Vec<i64> = shape.iter().map(|n| n.cast_signed() as i64).collect();
            let part = parameters.f_narrow(0, range.start as i64, range.len() as i64)?;
            Ok(part.f_view(&shape[..])?.f_detach()?.f_set_requires_grad(gradient)?)
        };
        let mut list = Vec::with_capacity(3 * layers.normalised.len() + 2);
        for layer in &layers.normalised {
            list.push(leaf(&layer.weight, &layer.kernel)?);
            list.push(leaf(&layer.gamma, &[layer.gamma.len()])?);
            list.push(leaf(&layer.beta, &[layer.beta.len()])?);
        }
        list.push(leaf(&layers.last_weight, &layers.last_kernel)?);
        list.push(leaf(&layers.last_bias, &[layers.last_bias.len()])?);
        Ok(Self(list))
    }

    fn last(&self) -> (&Tensor, &Tensor) {
        let n = self.0.len();
        (&self.0[n - 2], &self.0[n - 1])
    }

    /// Places of the leaves that a piece uses.
    fn of(&self, piece: Piece) -> Range<usize> {
        match piece {
            Piece::Plain => 0..3 * 2,
            Piece::Residual(first) => 3 * first..3 * (first + 2),
            Piece::Low => 3 * BRANCH2.start..3 * BRANCH2.end,
            Piece::Head => 3 * HEAD.start..self.0.len(),
        }
    }
}

/// What one pass runs on.
struct Pass<'a> {
    layers: &'a Layers,
    leaves: &'a Leaves,
    upsampling: &'a Tensor,
    statistics: Statistics,
    /// Running means and variances, moved by the pass where the statistics are the batch's; none
    /// when a piece is computed a second time.
    running: Option<(&'a Tensor, &'a Tensor)>,
    precision: Precision,
}

impl Pass<'_> {
    /// Convolution and BatchNorm of layer `i`.
    fn block(&self, i: usize, x: &Tensor) -> Result<Tensor, Error> {
        let Layer { channels, .. } = &self.layers.normalised[i];
        let [kernel, gamma, beta] = [0, 1, 2].map(|part| &self.leaves.0[3 * i + part]);
        let y = conv(x, &kernel.f_to_kind(kind(self.precision))?, None)?;
        let part = |of: &Tensor| of.f_narrow(0, channels.start as i64, channels.len() as i64);
        let running =
            self.running.map(|(mean, variance)| Ok::<_, TchError>((part(mean)?, part(variance)?)));
        let (mean, variance) = running.transpose()?.unzip();
        let training = self.statistics == Statistics::Batch;
        Ok(y.f_batch_norm(
            Some(gamma),
            Some(beta),
            mean.as_ref(),
            variance.as_ref(),
            training,
            MOMENTUM,
            EPSILON,
            true,
        )?)
    }

    fn piece(&self, piece: Piece, inputs: &[&Tensor]) -> Result<Tensor, Error> {
        let mut x = inputs[0].shallow_clone();
        match piece {
            Piece::Plain => {
                for i in BRANCH1.start..2 {
                    x = self.block(i, &x)?.f_relu_()?;
                }
            }
            Piece::Residual(first) => {
                let inner = self.block(first, &x)?.f_relu_()?;
                x = add_skip(self.block(first + 1, &inner)?, &x)?.f_relu_()?;
            }
            Piece::Low => {
                for i in BRANCH2 {
                    x = self.block(i, &x)?.f_relu_()?;
                }
            }
            Piece::Head => {
                x = Tensor::f_cat(&[x, upsample(inputs[1], self.upsampling)?], 1)?;
                for i in HEAD {
                    x = self.block(i, &x)?.f_relu_()?;
                }
                let (kernel, bias) = self.leaves.last();
                // As the losses: always in full precision.
                x = conv(&x.f_to_kind(Kind::Float)?, kernel, Some(bias))?;
            }
        }
        Ok(x)
    }
}

fn conv(x: &Tensor, kernel: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    x.f_conv3d(kernel, bias, [1; 3], [0; 3], [1; 3], 1)
}

/// Adds the middle of `x` (2 voxels cropped on every side) to the first channels of `y`, in place
/// where that costs no copy.
fn add_skip(mut y: Tensor, x: &Tensor) -> Result<Tensor, TchError> {
    let mut middle = x.shallow_clone();
    for axis in 2..5 {
        middle = middle.f_narrow(axis, 2, x.size()[axis as usize] - 4)?;
    }
    let missing = y.size()[1] - x.size()[1];
    if missing == 0 {
        return y.f_add_(&middle);
    }
    if !y.requires_grad() {
        let _ = y.f_narrow(1, 0, x.size()[1])?.f_add_(&middle)?;
        return Ok(y);
    }
    // Differentiating an addition to a part of a tensor copies all of it; zeros cost less.
    y.f_add_(&middle.f_constant_pad_nd([0, 0, 0, 0, 0, 0, 0, missing])?)
}

/// Trilinear ×3 of one aligned 3³ block per segment, as in [`crate::network`].
/// `[n, c, 3, 3, 3]` → `[n, c, 9, 9, 9]`.
fn upsample(x: &Tensor, matrix: &Tensor) -> Result<Tensor, TchError> {
    let [n, c] = [x.size()[0], x.size()[1]];
    let edge = OUT as i64;
    let matrix = matrix.f_to_kind(x.kind())?;
    x.f_reshape([n * c, 27])?.f_matmul(&matrix)?.f_view([n, c, edge, edge, edge])
}

/// The same of every aligned 3³ block on its own, channels innermost.
/// `[n, c, 3a, 3b, 3c]` → `[n, c, 9a, 9b, 9c]`.
fn upsample_blocks(x: &Tensor, matrix: &Tensor) -> Result<Tensor, TchError> {
    let size = x.size();
    let (n, channels) = (size[0], size[1]);
    let [a, b, c] = [2, 3, 4].map(|axis| size[axis] / 3);
    let edge = OUT as i64;
    x.f_reshape(&[n, channels, a, 3, b, 3, c, 3][..])?
        .f_permute([0, 2, 4, 6, 1, 3, 5, 7])?
        .f_reshape([n * a * b * c * channels, 27])?
        .f_matmul(&matrix.f_to_kind(x.kind())?)?
        .f_view(&[n, a, b, c, channels, edge, edge, edge][..])?
        .f_permute([0, 1, 5, 2, 6, 3, 7, 4])?
        .f_reshape([n, edge * a, edge * b, edge * c, channels])?
        .f_permute([0, 4, 1, 2, 3])
}

/// The same tensor with its channels innermost in memory. Convolutions take and give it as it is
/// then, which spares two reorderings each; BatchNorm in training is slower so, and stays as it was.
fn channels_innermost(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_permute([0, 2, 3, 4, 1])?.f_contiguous()?.f_permute([0, 4, 1, 2, 3])
}

/// How a network's passes run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Native {
    pub(crate) precision: Precision,
    /// Activations inside the pieces are dropped and computed again, for a third more arithmetic.
    pub(crate) recompute: bool,
}

/// What a pass keeps for its backward pass.
pub(crate) struct Tape {
    native: Native,
    statistics: Statistics,
    leaves: Leaves,
    upsampling: Tensor,
    /// The logits inside the recorded graph; or, when recomputing, what each piece took in:
    /// `HIGH`, `Low`, `Head` in this order.
    kept: Kept,
    /// Running means and variances after the pass.
    pub(crate) running: (Tensor, Tensor),
}

enum Kept {
    Graph(Tensor),
    Inputs(Vec<Tensor>),
}

/// Parameters, running statistics and the upsampling of a network, as libtorch has them.
pub(crate) struct State {
    pub(crate) parameters: Tensor,
    pub(crate) mean: Tensor,
    pub(crate) variance: Tensor,
    pub(crate) upsampling: Tensor,
}

impl Native {
    /// Logits, outside of any graph, and the tape. `state` is not changed.
    pub(crate) fn forward(
        self,
        layers: &Layers,
        state: State,
        [x1, x2]: [&Tensor; 2],
        statistics: Statistics,
    ) -> Result<(Tensor, Tape), Error> {
        let State { parameters, mean, variance, upsampling } = state;
        let running = (copied(&mean)?, copied(&variance)?);
        let leaves = Leaves::new(layers, &parameters, true)?;
        let pass = Pass {
            layers,
            leaves: &leaves,
            upsampling: &upsampling,
            statistics,
            running: Some((&running.0, &running.1)),
            precision: self.precision,
        };
        let [x1, x2] = [x1, x2].map(|x| x.f_to_kind(kind(self.precision)));
        let (mut high, low) = (x1?, x2?);
        let (logits, kept) = if self.recompute {
            let mut inputs = Vec::with_capacity(HIGH.len() + 3);
            let _guard = tch::no_grad_guard();
            for piece in HIGH {
                inputs.push(high.shallow_clone());
                high = pass.piece(piece, &[&high])?;
            }
            inputs.push(low.shallow_clone());
            let low = pass.piece(Piece::Low, &[&low])?;
            let logits = pass.piece(Piece::Head, &[&high, &low])?;
            inputs.extend([high, low]);
            (logits, Kept::Inputs(inputs))
        } else {
            for piece in HIGH {
                high = pass.piece(piece, &[&high])?;
            }
            let low = pass.piece(Piece::Low, &[&low])?;
            let logits = pass.piece(Piece::Head, &[&high, &low])?;
            (copied(&logits.f_detach()?)?, Kept::Graph(logits))
        };
        Ok((logits, Tape { native: self, statistics, leaves, upsampling, kept, running }))
    }
}

impl Tape {
    /// Gradient of all parameters `[p]` from the loss's gradient by the logits.
    pub(crate) fn gradient(&self, layers: &Layers, upstream: &Tensor) -> Result<Tensor, Error> {
        let gradients = match &self.kept {
            Kept::Graph(logits) => back(logits, upstream, &self.leaves.0)?,
            Kept::Inputs(inputs) => self.again(layers, inputs, upstream)?,
        };
        let flat: Result<Vec<_>, _> = gradients.iter().map(|g| g.f_reshape([-1])).collect();
        Ok(Tensor::f_cat(&flat?, 0)?)
    }

    /// Gradients of all leaves, one piece after the other, each computed forward once more.
    fn again(
        &self,
        layers: &Layers,
        inputs: &[Tensor],
        upstream: &Tensor,
    ) -> Result<Vec<Tensor>, Error> {
        // Running statistics have moved already; where they normalise, they are needed again.
        let running =
            (self.statistics == Statistics::Running).then_some((&self.running.0, &self.running.1));
        let pass = Pass {
            layers,
            leaves: &self.leaves,
            upsampling: &self.upsampling,
            statistics: self.statistics,
            running,
            precision: self.native.precision,
        };
        let mut gradients: Vec<Option<Tensor>> = self.leaves.0.iter().map(|_| None).collect();
        let mut step =
            |piece: Piece, inputs: &[&Tensor], upstream: &Tensor| -> Result<Vec<Tensor>, Error> {
                let inputs: Result<Vec<_>, TchError> =
                    inputs.iter().map(|x| x.f_detach()?.f_set_requires_grad(true)).collect();
                let inputs = inputs?;
                let output = pass.piece(piece, &inputs.iter().collect::<Vec<_>>())?;
                let places = self.leaves.of(piece);
                let wanted: Vec<&Tensor> =
                    inputs.iter().chain(&self.leaves.0[places.clone()]).collect();
                let mut found = back(&output, upstream, &wanted)?;
                let leaves = found.split_off(inputs.len());
                for (slot, gradient) in gradients[places].iter_mut().zip(leaves) {
                    *slot = Some(gradient);
                }
                Ok(found)
            };
        let (branch1, rest) = inputs.split_at(HIGH.len());
        let [low_in, high, low] = rest else {
            return Err(Error::Device("a pass kept the wrong number of tensors".to_owned()));
        };
        let merged = step(Piece::Head, &[high, low], upstream)?;
        let [mut upstream, from_low]: [Tensor; 2] =
            merged.try_into().map_err(|_| Error::Device("a gradient is missing".to_owned()))?;
        step(Piece::Low, &[low_in], &from_low)?;
        for (piece, input) in HIGH.into_iter().zip(branch1).rev() {
            upstream = step(piece, &[input], &upstream)?.swap_remove(0);
        }
        gradients
            .into_iter()
            .map(|g| g.ok_or_else(|| Error::Device("a gradient is missing".to_owned())))
            .collect()
    }
}

/// Gradients of `wanted` from the gradient by `output`. libtorch starts from a number only; this
/// product's own gradient by `output` is `upstream` exactly.
fn back<T: std::borrow::Borrow<Tensor>>(
    output: &Tensor,
    upstream: &Tensor,
    wanted: &[T],
) -> Result<Vec<Tensor>, Error> {
    let root = (output.f_mul(&upstream.f_to_kind(output.kind())?)?).f_sum(Kind::Float)?;
    Ok(Tensor::f_run_backward(&[root], wanted, false, false)?)
}

/// Layers of a model that only evaluates, with every BatchNorm folded into its convolution.
struct Folded {
    layers: Vec<(Tensor, Tensor)>,
    upsampling: Tensor,
    kind: Kind,
}

impl Native {
    /// Logits of several segments, or of one block of any size; `layers` are kernels and biases.
    pub(crate) fn evaluate(
        self,
        layers: Vec<(Tensor, Tensor)>,
        upsampling: Tensor,
        x1: &Tensor,
        x2: &Tensor,
    ) -> Result<Tensor, Error> {
        let _guard = tch::no_grad_guard();
        let kind = kind(self.precision);
        let layers = layers.into_iter().enumerate().map(|(i, (kernel, bias))| {
            // As the losses, the last layer is always in full precision.
            let kind = if i < HEAD.end { kind } else { Kind::Float };
            Ok((channels_innermost(&kernel.f_to_kind(kind)?)?, bias.f_to_kind(kind)?))
        });
        let layers = layers.collect::<Result<_, TchError>>()?;
        Folded { layers, upsampling, kind }.in_halves(x1, x2)
    }
}

impl Folded {
    /// Segments that do not fit into memory together are evaluated in halves, which changes no number.
    fn in_halves(&self, x1: &Tensor, x2: &Tensor) -> Result<Tensor, Error> {
        let n = x1.size()[0];
        match self.logits(x1, x2) {
            Err(Error::OutOfMemory) if n > 1 => {
                let part = |from: i64, count: i64| {
                    self.in_halves(&x1.f_narrow(0, from, count)?, &x2.f_narrow(0, from, count)?)
                };
                Ok(Tensor::f_cat(&[part(0, n / 2)?, part(n / 2, n - n / 2)?], 0)?)
            }
            other => other,
        }
    }

    fn block(&self, i: usize, x: &Tensor) -> Result<Tensor, TchError> {
        let (kernel, bias) = &self.layers[i];
        conv(x, kernel, Some(bias))
    }

    fn logits(&self, x1: &Tensor, x2: &Tensor) -> Result<Tensor, Error> {
        let mut high = channels_innermost(&x1.f_to_kind(self.kind)?)?;
        for i in BRANCH1.start..2 {
            high = self.block(i, &high)?.f_relu_()?;
        }
        for first in (2..BRANCH1.end).step_by(2) {
            let inner = self.block(first, &high)?.f_relu_()?;
            high = add_skip(self.block(first + 1, &inner)?, &high)?.f_relu_()?;
        }
        let mut low = channels_innermost(&x2.f_to_kind(self.kind)?)?;
        for i in BRANCH2 {
            low = self.block(i, &low)?.f_relu_()?;
        }
        let mut merged = Tensor::f_cat(&[high, upsample_blocks(&low, &self.upsampling)?], 1)?;
        for i in HEAD {
            merged = self.block(i, &merged)?.f_relu_()?;
        }
        Ok(self.block(HEAD.end, &merged.f_to_kind(Kind::Float)?)?.f_contiguous()?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::checkpoint::Weights;
    use crate::device::{Choice, Device};
    use crate::network::{Frozen, Network, Statistics, X1, X2};
    use crate::random::{self, Purpose};
    use burn::tensor::{Tensor, TensorData};
    use rondo::recipe::{Architecture, Precision};

    const NARROW: Architecture = Architecture { n1: 4, n2: 6, n3: 8, m: 12 };

    fn noise<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
        let mut rng = random::stream(seed, Purpose::InitialWeights, 7, 7);
        #[allow(clippy::cast_possible_truncation)]
        let draw = |_| random::normal(&mut rng) as f32;
        let values: Vec<f32> = (0..shape.iter().product()).map(draw).collect();
        Tensor::from_data(TensorData::new(values, shape), device.burn())
    }

    fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.try_into_vec_as().unwrap()
    }

    /// Logits, gradient, and the parameters and statistics after a pass of this network.
    fn pass(mut network: Network, device: &Device, statistics: Statistics) -> [Vec<f32>; 4] {
        let n = 5;
        let x1 = noise([n, 1, X1, X1, X1], 1, device);
        let x2 = noise([n, 1, X2, X2, X2], 2, device);
        let (logits, tape) = network.forward(x1, x2, statistics).unwrap();
        let upstream = noise([n, 2, 9, 9, 9], 3, device);
        let (gradient, seen) = tape.gradient(upstream).unwrap();
        network.adopt(seen);
        let weights = network.weights().unwrap();
        [host(logits), host(gradient), weights.mean, weights.variance]
    }

    /// Largest difference, as a part of the largest value.
    fn apart(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let largest = b.iter().fold(1e-9_f32, |m, v| m.max(v.abs()));
        a.iter().zip(b).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs())) / largest
    }

    #[test]
    fn both_implementations_and_both_ways_to_keep_activations_agree() {
        let device = Device::open(Choice::Cpu).unwrap();
        let mut weights = Weights::initial(NARROW, 4);
        weights.variance.iter_mut().for_each(|v| *v = 1.5);
        for statistics in [Statistics::Batch, Statistics::Running] {
            let composed = pass(Network::composed(&weights, &device), &device, statistics);
            let native = Network::new(&weights, &device, Precision::Fp32);
            let native = pass(native, &device, statistics);
            let mut thrifty = Network::new(&weights, &device, Precision::Fp32);
            assert!(thrifty.thriftier().is_some() && thrifty.thriftier().is_none());
            let thrifty = pass(thrifty, &device, statistics);
            for (i, part) in ["logits", "gradient", "means", "variances"].iter().enumerate() {
                let error = apart(&native[i], &composed[i]);
                assert!(error < 2e-5, "{part}, {statistics:?}: {error}");
                let error = apart(&thrifty[i], &native[i]);
                assert!(error < 2e-6, "{part} computed again, {statistics:?}: {error}");
            }
            let half = Network::new(&weights, &device, Precision::Bf16);
            let half = pass(half, &device, statistics);
            let error = apart(&half[0], &native[0]);
            assert!(error > 1e-5 && error < 0.05, "bf16 logits, {statistics:?}: {error}");
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let (a, b) = (&half[1], &native[1]);
            let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            assert!(cosine > 0.95, "bf16 gradient, {statistics:?}: {cosine}");
        }
    }

    #[test]
    fn frozen_models_agree_on_segments_and_on_blocks() {
        let device = Device::open(Choice::Cpu).unwrap();
        let weights = Weights::initial(NARROW, 4);
        for (n, tiles) in [(3, [1, 1, 1]), (1, [2, 1, 3])] {
            let x1 = tiles.map(|t| 9 * t + 16);
            let x2 = tiles.map(|t| 3 * t + 16);
            let x1 = || noise([n, 1, x1[0], x1[1], x1[2]], 1, &device);
            let x2 = || noise([n, 1, x2[0], x2[1], x2[2]], 2, &device);
            let composed = Network::composed(&weights, &device).frozen(Precision::Fp32);
            let composed = host(composed.logits(x1(), x2()).unwrap());
            let native = Frozen::new(&weights, &device, Precision::Fp32);
            let error = apart(&host(native.logits(x1(), x2()).unwrap()), &composed);
            assert!(error < 1e-5, "{tiles:?}: {error}");
            let half = Frozen::new(&weights, &device, Precision::Bf16);
            let error = apart(&host(half.logits(x1(), x2()).unwrap()), &composed);
            assert!(error < 0.05, "{tiles:?} in bf16: {error}");
        }
    }
}
