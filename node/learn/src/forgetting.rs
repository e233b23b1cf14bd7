//! Methods against forgetting what earlier sites taught, behind one interface.
//!
//! Distillation (`lwf`) adds the received model's logits to the loss. Anchoring (`ewc`, `mas`) holds
//! every parameter θ near its received value θ*, the more the more important it was to earlier sites:
//!
//! | method | penalty | its gradient | importance Ω of one site |
//! |---|---|---|---|
//! | `ewc` | λ/2 · Σ Ω (θ − θ*)², Kirkpatrick et al. 2017 eq. 3 | λ Ω (θ − θ*) | mean of (∂CE/∂θ)², the empirical Fisher information |
//! | `mas` | λ · Σ Ω (θ − θ*)², Aljundi et al. 2018 eq. 4 | 2λ Ω (θ − θ*) | mean of \|∂‖z‖²/∂θ\|, eq. 2 and 3 |
//!
//! A segment is one sample: CE and the squared L2 norm ‖z‖² of the two logits are means over its 729
//! voxels. Importance is measured at the parameters handed on, with the running statistics of
//! BatchNorm, and added to that received (Aljundi et al. section 4.1; Huszár 2018 for EWC), so it
//! grows with every visit.

use crate::checkpoint::Weights;
use crate::device::Device;
use crate::loss;
use crate::network::{self, Frozen, Network, Statistics};
use crate::segment::Batch;
use crate::update::Input;
use burn::tensor::{Tensor, TensorData, TensorReadError};
use rondo::checkpoint::Measure;
use rondo::recipe::{Method, Precision, Recipe};

/// Why importance could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pass failed.
    #[error("measuring which parameters matter failed: {0}")]
    Network(#[from] network::Error),
    /// Reading from the device failed.
    #[error("reading the importance of parameters from the device failed: {0}")]
    Read(#[from] TensorReadError),
    /// A gradient is no number.
    #[error("the importance of parameters is not a number; the logits of this model are too large")]
    NotFinite,
    /// The received importance is of another model.
    #[error("the received model tells the importance of {found} parameters, but has {wanted}")]
    Length {
        /// Values found.
        found: usize,
        /// Parameters.
        wanted: usize,
    },
}

/// What a visit knows of the model it received.
pub(crate) enum Memory {
    /// Nothing: a fresh model, or a method that does not care.
    Nothing,
    /// The model itself, frozen, for its logits on the local segments.
    Teacher(Box<Frozen>),
    /// Its parameters and their importance.
    Anchor(Box<Anchor>),
}

/// Received parameters and how strongly each is held.
pub(crate) struct Anchor {
    /// θ*, `[p]`
    received: Tensor<1>,
    /// Ω, `[p]`
    importance: Tensor<1>,
    /// Penalty = `strength` · Σ Ω (θ − θ*)².
    strength: f64,
}

impl Memory {
    /// What `recipe` keeps of `received`; the second value is a sentence for the operator.
    pub(crate) fn of(
        recipe: &Recipe,
        received: Option<&Weights>,
        device: &Device,
    ) -> Result<(Self, Option<&'static str>), Error> {
        let Some(received) = received else {
            return Ok((Self::Nothing, None));
        };
        if recipe.method == Method::Lwf {
            return Ok((
                Self::Teacher(Box::new(Frozen::new(received, device, recipe.precision))),
                None,
            ));
        }
        let Some(measure) = recipe.method.measure() else {
            return Ok((Self::Nothing, None));
        };
        let Some(importance) = received.importance_by(measure) else {
            let text = "the received model does not tell which of its parameters matter, so nothing \
                        holds them during this visit; earlier sites must train with the same method";
            return Ok((Self::Nothing, Some(text)));
        };
        let (found, wanted) = (importance.len(), received.parameters.len());
        if found != wanted {
            return Err(Error::Length { found, wanted });
        }
        let half = if measure == Measure::Ewc { 0.5 } else { 1.0 };
        let anchor = Anchor {
            received: vector(&received.parameters, device),
            importance: vector(importance, device),
            strength: recipe.anchor_lambda * half,
        };
        Ok((Self::Anchor(Box::new(anchor)), None))
    }

    /// The received model's logits `[n, 2, 9, 9, 9]` on a batch, where it teaches.
    pub(crate) fn logits(
        &self,
        x1: &Tensor<5>,
        x2: &Tensor<5>,
    ) -> Result<Option<Tensor<5>>, network::Error> {
        match self {
            Self::Teacher(teacher) => teacher.logits(x1.clone(), x2.clone()).map(Some),
            Self::Nothing | Self::Anchor(_) => Ok(None),
        }
    }

    /// Penalty `[1]` and its gradient `[p]` at `parameters` `[p]`, where they are held.
    pub(crate) fn pull(&self, parameters: &Tensor<1>) -> Option<(Tensor<1>, Tensor<1>)> {
        let Self::Anchor(anchor) = self else {
            return None;
        };
        let away = parameters.clone() - anchor.received.clone();
        let weighted = anchor.importance.clone() * away.clone() * anchor.strength;
        Some(((weighted.clone() * away).sum(), weighted * 2.0))
    }
}

/// Sums up, segment by segment, how much each parameter matters to a model that is handed on.
pub(crate) struct Importance {
    network: Network,
    measure: Measure,
    sum: Tensor<1>,
    segments: u32,
}

impl Importance {
    pub(crate) fn new(weights: &Weights, measure: Measure, device: &Device) -> Self {
        Self {
            network: Network::new(weights, device, Precision::Fp32),
            measure,
            sum: Tensor::zeros([weights.parameters.len()], device.burn()),
            segments: 0,
        }
    }

    /// Adds one segment: a mini-batch of 1.
    pub(crate) fn add(&mut self, segment: Batch, device: &Device) -> Result<(), Error> {
        let Input { x1, x2, target } = Input::of(segment, device);
        let (logits, tape) = self.network.forward(x1, x2, Statistics::Running)?;
        let leaf = logits.autodiff().require_grad();
        let value = match self.measure {
            Measure::Mas => loss::squared_norm(leaf.clone()),
            Measure::Ewc => loss::cross_entropy_of(leaf.clone(), target),
        };
        let upstream = loss::gradient(&leaf, value);
        let (gradient, _) = tape.gradient(upstream)?;
        let matters = match self.measure {
            Measure::Mas => gradient.abs(),
            Measure::Ewc => gradient.clone() * gradient,
        };
        self.sum = self.sum.clone() + matters;
        self.segments += 1;
        Ok(())
    }

    /// The mean over all segments, added to what was `received`.
    pub(crate) fn handed_on(self, received: Option<&[f32]>) -> Result<Vec<f32>, Error> {
        let mean = self.sum / f64::from(self.segments.max(1));
        let mut all: Vec<f32> = mean.try_into_vec_as()?;
        if let Some(received) = received {
            all.iter_mut().zip(received).for_each(|(own, before)| *own += before);
        }
        if all.iter().all(|v| v.is_finite()) { Ok(all) } else { Err(Error::NotFinite) }
    }
}

fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device.burn())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::device::Choice;
    use rondo::recipe::{Architecture, Preset};

    const NARROW: Architecture = Architecture { n1: 2, n2: 3, n3: 4, m: 6 };

    fn recipe(method: Method) -> Recipe {
        Recipe { method, architecture: NARROW, anchor_lambda: 3.0, ..Recipe::preset(Preset::Paper) }
    }

    #[test]
    fn penalty_and_its_gradient_are_those_of_the_quadratic() {
        let mut received = Weights::initial(NARROW, 1);
        let count = received.parameters.len();
        let mut importance = vec![0.0; count];
        importance[..3].copy_from_slice(&[2.0, 0.5, 4.0]);
        let mut moved = received.parameters.clone();
        for (value, by) in moved.iter_mut().zip([1.0, -2.0, 0.5, 9.0]) {
            *value += by;
        }
        // Σ Ω d² = 2·1 + 0.5·4 + 4·0.25 + 0·81 = 5.
        for (method, value, gradient) in [
            (Method::Mas, 15.0, [12.0, -6.0, 12.0, 0.0]),
            (Method::Ewc, 7.5, [6.0, -3.0, 6.0, 0.0]),
        ] {
            for choice in [Choice::Cpu, Choice::Flex] {
                let device = Device::open(choice).unwrap();
                received.importance = method.measure().map(|by| (by, importance.clone()));
                let (memory, said) = Memory::of(&recipe(method), Some(&received), &device).unwrap();
                assert_eq!(said, None);
                let (penalty, pull) = memory.pull(&vector(&moved, &device)).unwrap();
                let penalty: Vec<f32> = penalty.try_into_vec_as().unwrap();
                assert!((penalty[0] - value).abs() < 1e-4, "{method} {penalty:?}");
                let pull: Vec<f32> = pull.try_into_vec_as().unwrap();
                assert!(pull[..4].iter().zip(gradient).all(|(a, b)| (a - b).abs() < 1e-4));
                assert!(pull[4..].iter().all(|v| *v == 0.0));
            }
        }
        received.importance = Some((Measure::Mas, vec![1.0; 3]));
        let device = Device::open(Choice::Cpu).unwrap();
        let refused = Memory::of(&recipe(Method::Mas), Some(&received), &device);
        assert!(matches!(refused, Err(Error::Length { found: 3, .. })));
        // Neither none nor the other method's, whose numbers have another size.
        for importance in [None, Some((Measure::Mas, importance))] {
            received.importance = importance;
            let (memory, said) =
                Memory::of(&recipe(Method::Ewc), Some(&received), &device).unwrap();
            assert!(said.unwrap().contains("does not tell"));
            assert!(memory.pull(&vector(&moved, &device)).is_none());
        }
    }

    /// Against the definition, by the slopes of the last layer's bias: the mean of 2 z over the voxels for
    /// MAS, that of the cross-entropy for EWC.
    #[test]
    fn importance_is_that_of_the_definition() {
        use rand::Rng;
        let device = Device::open(Choice::Cpu).unwrap();
        let mut rng = crate::random::stream(1, crate::random::Purpose::Centres, 0, 0);
        let mut noise = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| f32::from(u16::try_from(rng.next_u32() % 1000).unwrap()) / 500.0 - 1.0)
                .collect()
        };
        let mut batch = || Batch {
            n: 1,
            x1: noise(25 * 25 * 25),
            x2: noise(19 * 19 * 19),
            target: (0..729).map(|i| f32::from(u8::from(i % 7 == 0))).collect(),
        };
        let batches = [batch(), batch()];
        let weights = Weights::initial(NARROW, 4);
        let count = weights.parameters.len();
        for measure in Measure::ALL {
            let mut importance = Importance::new(&weights, measure, &device);
            let mut expected = [0.0_f64; 2];
            for batch in &batches {
                let copy = || Batch {
                    n: 1,
                    x1: batch.x1.clone(),
                    x2: batch.x2.clone(),
                    target: batch.target.clone(),
                };
                importance.add(copy(), &device).unwrap();
                let Input { x1, x2, .. } = Input::of(copy(), &device);
                let z: Vec<f32> = Frozen::new(&weights, &device, Precision::Fp32)
                    .logits(x1, x2)
                    .unwrap()
                    .try_into_vec_as()
                    .unwrap();
                let (z0, z1) = z.split_at(729);
                let mut slope = [0.0_f64; 2];
                for ((z0, z1), y) in z0.iter().zip(z1).zip(&batch.target) {
                    let (z0, z1, y) = (f64::from(*z0), f64::from(*z1), f64::from(*y));
                    let p = 1.0 / (1.0 + (z0 - z1).exp());
                    let by =
                        if measure == Measure::Mas { [2.0 * z0, 2.0 * z1] } else { [y - p, p - y] };
                    slope.iter_mut().zip(by).for_each(|(s, b)| *s += b / 729.0);
                }
                for (e, s) in expected.iter_mut().zip(slope) {
                    let matters = if measure == Measure::Mas { s.abs() } else { s * s };
                    *e += matters / 2.0;
                }
            }
            let received = vec![0.25; count];
            let all = importance.handed_on(Some(&received)).unwrap();
            for (found, expected) in all[count - 2..].iter().zip(expected) {
                let own = f64::from(*found) - 0.25;
                assert!(
                    (own - expected).abs() < 1e-4 * (1.0 + expected),
                    "{measure:?}: {own} {expected}"
                );
            }
            assert!(all.iter().all(|v| *v >= 0.25));
            assert!(all.iter().filter(|v| **v > 0.25).count() > count / 2);
        }
    }
}
