//! A model on the host, and its bytes: exactly the layout that [`rondo::checkpoint`] computes.

use crate::layers::{Layers, Part};
use crate::random::{self, Purpose};
use rondo::checkpoint::{Extras, Layout, Measure, VerifiedCheckpoint};
use rondo::recipe::Architecture;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Largest header that is read to find out a model's widths.
const HEADER_MAX_BYTES: u64 = 1024 * 1024;

/// Why a model could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The widths cannot be found.
    #[error("this is not a model of Rondo: {0}")]
    Widths(String),
    /// The layout is not the one of its widths.
    #[error(transparent)]
    Layout(#[from] rondo::checkpoint::Error),
    /// A tensor is missing or has another number of elements.
    #[error("tensor `{name}` is missing or has not {expected} values")]
    Tensor {
        /// Its name.
        name: String,
        /// Values needed.
        expected: usize,
    },
    /// A tensor of squares, magnitudes or a rate has a value below zero.
    #[error("tensor `{0}` holds a negative value, which it cannot have; the file is damaged")]
    Negative(String),
}

/// Adam's state beside the weights. The vectors run parallel to [`Weights::parameters`].
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Mean of the gradients, not bias-corrected.
    pub first: Vec<f32>,
    /// Mean of their squares, not bias-corrected.
    pub second: Vec<f32>,
    /// Running maximum of `second` (amsgrad).
    pub maximum: Vec<f32>,
    /// Updates so far.
    pub step: u32,
    /// Learning rate at the end, which `optimizer_on_arrival = carry` starts from.
    pub learning_rate: f64,
}

/// A model on the host: three vectors, in the order of the published optimizer state.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Widths of the network.
    pub architecture: Architecture,
    /// All trainable tensors, one after the other.
    pub parameters: Vec<f32>,
    /// Running means of all BatchNorms.
    pub mean: Vec<f32>,
    /// Running (unbiased) variances of all BatchNorms.
    pub variance: Vec<f32>,
    /// Adam's state, where a recipe carries it.
    pub optimizer: Option<Moments>,
    /// Importance of each parameter, parallel to [`Weights::parameters`] and summed over the visits so
    /// far, where the method holds parameters by it (`ewc`, `mas`).
    pub importance: Option<(Measure, Vec<f32>)>,
}

impl Weights {
    /// A fresh model. Kaiming normal (fan-out, gain of ReLU) for every convolution, so the last
    /// one's deviation is 1; BatchNorm γ = 1, β = 0; last bias uniform within ±1/√m.
    #[must_use]
    pub fn initial(architecture: Architecture, seed: u64) -> Self {
        let layers = Layers::new(&architecture);
        let mut rng = random::stream(seed, Purpose::InitialWeights, 0, 0);
        let mut parameters = vec![0.0; layers.parameters];
        let kernels = layers.normalised.iter().map(|l| (l.kernel, &l.weight));
        for (kernel, range) in kernels.chain([(layers.last_kernel, &layers.last_weight)]) {
            let fan_out = kernel[0] * kernel[2..].iter().product::<usize>();
            #[allow(clippy::cast_precision_loss)]
            let deviation = (2.0 / fan_out as f64).sqrt();
            for value in &mut parameters[range.clone()] {
                *value = narrow(deviation * random::normal(&mut rng));
            }
        }
        for layer in &layers.normalised {
            parameters[layer.gamma.clone()].fill(1.0);
        }
        let bound = 1.0 / f64::from(architecture.m).sqrt();
        for value in &mut parameters[layers.last_bias.clone()] {
            *value = narrow(bound * (2.0 * random::unit(&mut rng) - 1.0));
        }
        Self {
            architecture,
            parameters,
            mean: vec![0.0; layers.statistics],
            variance: vec![1.0; layers.statistics],
            optimizer: None,
            importance: None,
        }
    }

    /// What is there beside the weights.
    #[must_use]
    pub fn extras(&self) -> Extras {
        Extras {
            optimizer: self.optimizer.is_some(),
            importance: self.importance.as_ref().map(|i| i.0),
        }
    }

    /// Importance of the parameters as this `measure` has it; another's says nothing.
    #[must_use]
    pub fn importance_by(&self, measure: Measure) -> Option<&[f32]> {
        self.importance.as_ref().filter(|(by, _)| *by == measure).map(|(_, values)| &values[..])
    }

    /// Reads a verified checkpoint of `architecture`.
    ///
    /// # Errors
    /// Bytes that were verified against another architecture.
    pub fn from_checkpoint(checkpoint: &VerifiedCheckpoint) -> Result<Self, Error> {
        Self::from_bytes(checkpoint.bytes())
    }

    /// Reads a model file: finds its widths, then holds it to the layout of these widths.
    ///
    /// # Errors
    /// Whatever is not exactly that layout, by the name of the tensor.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (architecture, extras) = widths(bytes)?;
        let layout = Layout::new(&architecture, extras);
        layout.check(bytes)?;
        let mut rest = bytes.get(layout.header().len()..).unwrap_or_default();
        let mut tensors = BTreeMap::new();
        for spec in layout.tensors() {
            let size = usize::try_from(4 * spec.elements()).unwrap_or(usize::MAX);
            let (data, tail) = rest.split_at_checked(size).unwrap_or((rest, &[]));
            rest = tail;
            let values = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            tensors.insert(spec.name.clone(), values);
        }
        Self::from_tensors(architecture, extras, |name| tensors.remove(name))
    }

    /// Gathers a model from its named tensors, as in the published `state_dict`.
    ///
    /// # Errors
    /// A tensor that is missing or has another number of elements.
    pub fn from_tensors(
        architecture: Architecture,
        extras: Extras,
        mut tensor: impl FnMut(&str) -> Option<Vec<f32>>,
    ) -> Result<Self, Error> {
        let layers = Layers::new(&architecture);
        let mut weights = Self {
            architecture,
            parameters: vec![0.0; layers.parameters],
            mean: vec![0.0; layers.statistics],
            variance: vec![0.0; layers.statistics],
            optimizer: None,
            importance: None,
        };
        weights.optimizer = extras.optimizer.then(|| Moments::zero(layers.parameters, 0.0));
        weights.importance =
            extras.importance.map(|measure| (measure, vec![0.0; layers.parameters]));
        for spec in Layout::new(&architecture, extras).tensors() {
            let expected = usize::try_from(spec.elements()).unwrap_or(usize::MAX);
            let wrong = || Error::Tensor { name: spec.name.clone(), expected };
            let values = tensor(&spec.name).filter(|v| v.len() == expected).ok_or_else(wrong)?;
            weights.slot(&layers, &spec.name, &values).ok_or_else(wrong)?;
            if never_negative(&spec.name) && values.iter().any(|v| *v < 0.0) {
                return Err(Error::Negative(spec.name.clone()));
            }
        }
        Ok(weights)
    }

    /// Puts one named tensor where it belongs.
    fn slot(&mut self, layers: &Layers, name: &str, values: &[f32]) -> Option<()> {
        if name == "optimizer.step" {
            self.optimizer.as_mut()?.step = step_from(*values.first()?)?;
            return Some(());
        }
        if name == "optimizer.learning_rate" {
            // The shortest decimal of the 32-bit value is what was meant: 0.001, not 0.00100000005.
            self.optimizer.as_mut()?.learning_rate = values.first()?.to_string().parse().ok()?;
            return Some(());
        }
        let (place, parameter) = Place::of(name);
        let (part, range) = layers.place(parameter)?;
        let vector = match (place, part) {
            (Place::Weights, Part::Parameter) => &mut self.parameters,
            (Place::Weights, Part::Mean) => &mut self.mean,
            (Place::Weights, Part::Variance) => &mut self.variance,
            (_, Part::Mean | Part::Variance) => return None,
            (Place::Importance, _) => &mut self.importance.as_mut()?.1,
            (Place::First, _) => &mut self.optimizer.as_mut()?.first,
            (Place::Second, _) => &mut self.optimizer.as_mut()?.second,
            (Place::Maximum, _) => &mut self.optimizer.as_mut()?.maximum,
        };
        vector.get_mut(range)?.copy_from_slice(values);
        Some(())
    }

    /// The checkpoint's bytes: a function of the numbers alone.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let layers = Layers::new(&self.architecture);
        let layout = Layout::new(&self.architecture, self.extras());
        let mut bytes = Vec::with_capacity(usize::try_from(layout.len()).unwrap_or(0));
        bytes.extend_from_slice(layout.header());
        for spec in layout.tensors() {
            match (&self.optimizer, spec.name.as_str()) {
                #[allow(clippy::cast_precision_loss)] // exact up to 2^24 updates
                (Some(m), "optimizer.step") => bytes.extend((m.step as f32).to_le_bytes()),
                (Some(m), "optimizer.learning_rate") => {
                    bytes.extend(narrow(m.learning_rate).to_le_bytes());
                }
                (_, name) => {
                    bytes.extend(self.values(&layers, name).iter().flat_map(|v| v.to_le_bytes()));
                }
            }
        }
        bytes
    }

    /// Values of one named tensor; empty for an unknown name.
    fn values(&self, layers: &Layers, name: &str) -> &[f32] {
        let (place, parameter) = Place::of(name);
        let Some((part, range)) = layers.place(parameter) else { return &[] };
        let moments = self.optimizer.as_ref();
        let vector = match (place, part) {
            (Place::Weights, Part::Parameter) => Some(&self.parameters),
            (Place::Weights, Part::Mean) => Some(&self.mean),
            (Place::Weights, Part::Variance) => Some(&self.variance),
            (Place::Importance, _) => self.importance.as_ref().map(|i| &i.1),
            (Place::First, _) => moments.map(|m| &m.first),
            (Place::Second, _) => moments.map(|m| &m.second),
            (Place::Maximum, _) => moments.map(|m| &m.maximum),
        };
        vector.and_then(|v| v.get(range)).unwrap_or_default()
    }
}

/// Whether a tensor holds squares, magnitudes or a rate.
fn never_negative(name: &str) -> bool {
    let begins = ["importance.", "optimizer.second_moment.", "optimizer.maximum."];
    name.ends_with(".running_var")
        || name == "optimizer.learning_rate"
        || begins.iter().any(|start| name.starts_with(start))
}

/// Which vector a named tensor is a part of.
#[derive(Clone, Copy)]
enum Place {
    Weights,
    Importance,
    First,
    Second,
    Maximum,
}

impl Place {
    /// The vector, and the name of the weight that the tensor belongs to.
    fn of(name: &str) -> (Self, &str) {
        [
            (Measure::Ewc.prefix(), Self::Importance),
            (Measure::Mas.prefix(), Self::Importance),
            ("optimizer.first_moment.", Self::First),
            ("optimizer.second_moment.", Self::Second),
            ("optimizer.maximum.", Self::Maximum),
        ]
        .into_iter()
        .find_map(|(prefix, place)| Some((place, name.strip_prefix(prefix)?)))
        .unwrap_or((Self::Weights, name))
    }
}

impl Moments {
    /// State before the first update.
    #[must_use]
    pub fn zero(parameters: usize, learning_rate: f64) -> Self {
        let zero = vec![0.0; parameters];
        Self { first: zero.clone(), second: zero.clone(), maximum: zero, step: 0, learning_rate }
    }
}

#[allow(clippy::cast_possible_truncation)]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// A count of updates that was stored as a 32-bit number; exact up to 2^24.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn step_from(value: f32) -> Option<u32> {
    (value >= 0.0 && value <= (1_u32 << 24) as f32 && value.fract() == 0.0).then_some(value as u32)
}

/// What tensors of these names are there beside the weights. Two measures at once fail later, by the
/// tensors of the second.
pub(crate) fn extras_of<'n>(names: impl Iterator<Item = &'n str> + Clone) -> Extras {
    let any = |prefix: &str| names.clone().any(|name| name.starts_with(prefix));
    let importance = Measure::ALL.into_iter().find(|measure| any(measure.prefix()));
    Extras { optimizer: any("optimizer."), importance }
}

/// Widths of a model file, from the shapes in its header, and what is in it beside the weights.
fn widths(bytes: &[u8]) -> Result<(Architecture, Extras), Error> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        shape: Vec<u32>,
    }
    let wrong = |text: &str| Error::Widths(text.to_owned());
    let (length, rest) =
        bytes.split_first_chunk::<8>().ok_or_else(|| wrong("it is shorter than eight bytes"))?;
    let length = u64::from_le_bytes(*length);
    let json = usize::try_from(length)
        .ok()
        .filter(|_| length <= HEADER_MAX_BYTES)
        .and_then(|n| rest.get(..n))
        .ok_or_else(|| wrong("its header is cut off or too long"))?;
    let entries: BTreeMap<String, Entry> = serde_json::from_slice(json).map_err(|e| {
        Error::Widths(format!("its header is not that of a safetensors file ({e})"))
    })?;
    let width = |name: &str| {
        let entry = entries.get(name).and_then(|e| e.shape.first().copied());
        entry.ok_or_else(|| Error::Widths(format!("tensor `{name}` is missing")))
    };
    let architecture = Architecture {
        n1: width("branch1.0.0.weight")?,
        n2: width("branch1.2.conv1.weight")?,
        n3: width("branch1.4.conv1.weight")?,
        m: width("fc.0.0.weight")?,
    };
    if !architecture.is_possible() {
        let Architecture { n1, n2, n3, m } = architecture;
        return Err(Error::Widths(format!("its widths {n1}, {n2}, {n3}, {m} are impossible")));
    }
    Ok((architecture, extras_of(entries.keys().map(String::as_str))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    const NARROW: Architecture = Architecture { n1: 2, n2: 3, n3: 4, m: 5 };

    fn with_moments() -> Weights {
        let mut weights = Weights::initial(NARROW, 11);
        let count = weights.parameters.len();
        let mut moments = Moments::zero(count, 1e-4);
        moments.step = 123;
        for (i, p) in weights.parameters.iter().enumerate() {
            (moments.first[i], moments.second[i], moments.maximum[i]) =
                (p * 0.5, p * p, p * p * 2.0);
        }
        weights.optimizer = Some(moments);
        weights
    }

    fn with_importance(mut weights: Weights, measure: Measure) -> Weights {
        let values = weights.parameters.iter().map(|p| p.abs() + 3.0).collect();
        weights.importance = Some((measure, values));
        weights
    }

    #[test]
    fn bytes_are_the_layout_and_read_back_the_same() {
        let bare = Weights::initial(NARROW, 3);
        for extras in Extras::EACH {
            let mut weights = if extras.optimizer { with_moments() } else { bare.clone() };
            if let Some(measure) = extras.importance {
                weights = with_importance(weights, measure);
            }
            let bytes = weights.to_bytes();
            let layout = Layout::new(&NARROW, extras);
            assert_eq!(layout.check(&bytes), Ok(()));
            assert_eq!(Weights::from_bytes(&bytes).unwrap(), weights);
            let read = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(read.len(), layout.tensors().len());
            let last = |name: &str, vector: &[f32]| {
                let words = read.tensor(name).unwrap().data().as_chunks::<4>().0;
                let values: Vec<f32> = words.iter().map(|b| f32::from_le_bytes(*b)).collect();
                assert_eq!(values, vector[vector.len() - 2..], "{name}");
            };
            last("fc.2.bias", &weights.parameters);
            if let Some((measure, importance)) = &weights.importance {
                last(&format!("{}fc.2.bias", measure.prefix()), importance);
            }
            if let Some(moments) = &weights.optimizer {
                last("optimizer.maximum.fc.2.bias", &moments.maximum);
            }
        }
    }

    #[test]
    fn what_is_not_a_model_is_refused_with_a_reason() {
        let good = Weights::initial(NARROW, 3).to_bytes();
        for (bad, word) in [
            (Vec::new(), "eight bytes"),
            (vec![255; 64], "too long"),
            (good[..good.len() - 1].to_vec(), "exactly"),
            (b"\x02\0\0\0\0\0\0\0{}".to_vec(), "branch1.0.0.weight"),
        ] {
            let error = Weights::from_bytes(&bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_negative_is_refused_where_it_is() {
        let good = with_importance(with_moments(), Measure::Ewc);
        let refused = |change: fn(&mut Weights)| {
            let mut bad = good.clone();
            change(&mut bad);
            Weights::from_bytes(&bad.to_bytes()).unwrap_err().to_string()
        };
        assert!(refused(|w| w.variance[1] = -1.0).contains("`branch1.0.1.running_var`"));
        assert!(refused(|w| w.importance.as_mut().unwrap().1[0] = -1.0).contains("importance.ewc"));
        let adam = |change: fn(&mut Moments)| {
            let mut bad = good.clone();
            change(bad.optimizer.as_mut().unwrap());
            Weights::from_bytes(&bad.to_bytes()).unwrap_err().to_string()
        };
        assert!(adam(|m| m.second[0] = -1e-9).contains("optimizer.second_moment."));
        assert!(adam(|m| m.maximum[0] = -1e-9).contains("optimizer.maximum."));
        assert!(adam(|m| m.learning_rate = -0.5).contains("`optimizer.learning_rate`"));
    }

    #[test]
    fn initial_models_have_the_documented_spread() {
        let weights = Weights::initial(Architecture::PAPER, 1);
        let layers = Layers::new(&Architecture::PAPER);
        let spread = |values: &[f32]| {
            let n = values.len() as f64;
            (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt()
        };
        let third = &layers.normalised[3];
        let expected = (2.0_f64 / (40.0 * 27.0)).sqrt();
        assert!((spread(&weights.parameters[third.weight.clone()]) / expected - 1.0).abs() < 0.02);
        assert!((spread(&weights.parameters[layers.last_weight.clone()]) - 1.0).abs() < 0.15);
        assert_eq!(weights, Weights::initial(Architecture::PAPER, 1));
        assert_ne!(weights, Weights::initial(Architecture::PAPER, 2));
    }
}
