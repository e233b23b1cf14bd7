//! Where each layer's tensors lie in the flat vectors a model is held in.
//!
//! A model is three vectors: all trainable tensors in published order
//! ([`rondo::checkpoint::parameters`]), and the running means and variances of its 18 BatchNorms in
//! the order of their layers. One vector makes Adam a dozen operations instead of several hundred.

use rondo::checkpoint::parameters;
use rondo::recipe::Architecture;
use std::collections::BTreeMap;
use std::ops::Range;

/// Convolutions that are followed by a BatchNorm: 8 in branch 1, 8 in branch 2, 2 in the head.
pub(crate) const NORMALISED: usize = 18;
/// Layers of branch 1: two plain ones, then three residual blocks of two.
pub(crate) const BRANCH1: Range<usize> = 0..8;
/// Layers of branch 2.
pub(crate) const BRANCH2: Range<usize> = 8..16;
/// Hidden layers of the head.
pub(crate) const HEAD: Range<usize> = 16..18;

/// A convolution with its BatchNorm.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// Kernel shape `[out, in, k, k, k]`.
    pub(crate) kernel: [usize; 5],
    /// Kernel's place in the parameters; γ and β follow it directly.
    pub(crate) weight: Range<usize>,
    pub(crate) gamma: Range<usize>,
    pub(crate) beta: Range<usize>,
    /// Place in the running statistics.
    pub(crate) channels: Range<usize>,
}

/// Which vector a named tensor lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Parameter,
    Mean,
    Variance,
}

/// Places of all tensors of one architecture.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub(crate) normalised: Vec<Layer>,
    /// Kernel shape of the last layer, with its bias.
    pub(crate) last_kernel: [usize; 5],
    pub(crate) last_weight: Range<usize>,
    pub(crate) last_bias: Range<usize>,
    /// Length of the vector of parameters.
    pub(crate) parameters: usize,
    /// Length of each vector of running statistics.
    pub(crate) statistics: usize,
    places: BTreeMap<String, (Part, Range<usize>)>,
}

impl Layers {
    pub(crate) fn new(architecture: &Architecture) -> Self {
        let specs = parameters(architecture);
        let mut at = 0;
        let mut ranges = Vec::with_capacity(specs.len());
        let mut shapes = Vec::with_capacity(specs.len());
        let mut places = BTreeMap::new();
        for spec in &specs {
            let shape: Vec<usize> =
                spec.shape.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect();
            let range = at..at + shape.iter().product::<usize>();
            at = range.end;
            places.insert(spec.name.clone(), (Part::Parameter, range.clone()));
            ranges.push(range);
            shapes.push(shape);
        }
        let kernel = |i: usize| -> [usize; 5] {
            let mut k = [1; 5];
            k.copy_from_slice(&shapes[i]);
            k
        };
        let mut statistics = 0;
        let mut normalised = Vec::with_capacity(NORMALISED);
        for i in 0..NORMALISED {
            let kernel = kernel(3 * i);
            let channels = statistics..statistics + kernel[0];
            statistics = channels.end;
            let bias = &specs[3 * i + 2].name;
            if let Some(norm) = bias.strip_suffix(".bias") {
                places.insert(format!("{norm}.running_mean"), (Part::Mean, channels.clone()));
                places.insert(format!("{norm}.running_var"), (Part::Variance, channels.clone()));
            }
            normalised.push(Layer {
                kernel,
                weight: ranges[3 * i].clone(),
                gamma: ranges[3 * i + 1].clone(),
                beta: ranges[3 * i + 2].clone(),
                channels,
            });
        }
        Self {
            normalised,
            last_kernel: kernel(3 * NORMALISED),
            last_weight: ranges[3 * NORMALISED].clone(),
            last_bias: ranges[3 * NORMALISED + 1].clone(),
            parameters: at,
            statistics,
            places,
        }
    }

    /// Place of the tensor with a published name.
    pub(crate) fn place(&self, name: &str) -> Option<(Part, Range<usize>)> {
        self.places.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_covered_without_gaps() {
        let layers = Layers::new(&Architecture::PAPER);
        assert_eq!((layers.parameters, layers.normalised.len()), (656_902, NORMALISED));
        assert_eq!(
            layers.statistics,
            2 * 30 + 40 * 4 + 50 * 2 + 2 * 30 + 4 * 40 + 2 * 50 + 2 * 150
        );
        assert_eq!(layers.last_bias.end, layers.parameters);
        assert_eq!(layers.normalised[4].kernel, [40, 40, 3, 3, 3]);
        let (part, range) = layers.place("branch1.0.1.running_var").unwrap_or((Part::Mean, 0..0));
        assert_eq!((part, range), (Part::Variance, 0..30));
    }
}
