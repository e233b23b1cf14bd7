//! What a directory of golden numbers holds: tensors by name and shape, models, and one JSON file.
//! Everything in it came from outside: a value that is missing, misshapen or no number is an error that
//! names it.

use super::{Error, Read};
use crate::checkpoint::Weights;
use crate::device::Device;
use crate::network::{OUT, X1, X2};
use burn::tensor::{Tensor, TensorData};
use rondo::checkpoint::{Extras, Layout};
use rondo::recipe::Architecture;
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;

/// In the shape asked for: any number of entries but none at all.
pub(super) const ANY: usize = 0;
/// Shape of a batch's full-resolution input.
pub(super) const SHAPE_X1: [usize; 5] = [ANY, 1, X1, X1, X1];
/// Shape of a batch's low-resolution input.
pub(super) const SHAPE_X2: [usize; 5] = [ANY, 1, X2, X2, X2];
/// Shape of a batch's logits.
pub(super) const SHAPE_LOGITS: [usize; 5] = [ANY, 2, OUT, OUT, OUT];
/// Shape of a batch's target.
pub(super) const SHAPE_TARGET: [usize; 4] = [ANY, OUT, OUT, OUT];
/// The file of numbers that are no tensors.
const JSON: &str = "learning.json";

/// Numbers of one tensor, in C order.
pub(super) struct Array<const D: usize> {
    pub(super) shape: [usize; D],
    pub(super) values: Vec<f32>,
}

impl<const D: usize> Array<D> {
    pub(super) fn on(&self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape), device.burn())
    }

    /// The same with every number replaced, computed in 64 bits.
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn map(&self, mut change: impl FnMut(f64) -> f64) -> Self {
        let values = self.values.iter().map(|v| change(f64::from(*v)) as f32).collect();
        Self { shape: self.shape, values }
    }

    /// Segments in the batch.
    pub(super) fn batch(&self) -> usize {
        self.shape.first().copied().unwrap_or_default()
    }

    /// As `[n, v]`: a row a segment.
    pub(super) fn rows(&self, device: &Device) -> Tensor<2> {
        let n = self.batch();
        let shape = [n, self.values.len() / n.max(1)];
        Tensor::from_data(TensorData::new(self.values.clone(), shape), device.burn())
    }
}

/// One safetensors file, read but not yet taken apart.
pub(super) struct File {
    name: &'static str,
    bytes: Vec<u8>,
}

/// The tensors of one file.
pub(super) struct Tensors<'a> {
    file: &'static str,
    tensors: SafeTensors<'a>,
}

pub(super) fn bytes(read: &Read<'_>, name: &'static str) -> Result<Vec<u8>, Error> {
    read(name).map_err(|source| Error::File { name, source })
}

impl File {
    pub(super) fn read(read: &Read<'_>, name: &'static str) -> Result<Self, Error> {
        Ok(Self { name, bytes: bytes(read, name)? })
    }

    pub(super) fn tensors(&self) -> Result<Tensors<'_>, Error> {
        let tensors = SafeTensors::deserialize(&self.bytes)
            .map_err(|reason| Error::Safetensors { name: self.name, reason })?;
        Ok(Tensors { file: self.name, tensors })
    }
}

impl Tensors<'_> {
    fn wrong(&self, tensor: &str, problem: String) -> Error {
        Error::Tensor { file: self.file, tensor: tensor.to_owned(), problem }
    }

    /// The tensor `name`, whose shape must be `shape`, and whose values must be finite.
    pub(super) fn get<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Array<D>, Error> {
        let (found, values) = self.any(name, &shape)?;
        let shape = found.try_into().unwrap_or(shape);
        Ok(Array { shape, values })
    }

    /// As [`Tensors::get`] for a target: every value is 0 or 1.
    pub(super) fn target<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Array<D>, Error> {
        let target = self.get(name, shape)?;
        match target.values.iter().find(|v| ![0.0, 1.0].contains(*v)) {
            Some(v) => Err(self.wrong(name, format!("holds {v}; a target is 0 or 1"))),
            None => Ok(target),
        }
    }

    fn any(&self, name: &str, shape: &[usize]) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let tensor =
            self.tensors.tensor(name).map_err(|_| self.wrong(name, "is missing".to_owned()))?;
        let found = tensor.shape();
        let fits = |(found, wanted): (&usize, &usize)| match *wanted {
            ANY => *found > 0,
            wanted => *found == wanted,
        };
        if found.len() != shape.len() || !found.iter().zip(shape).all(fits) {
            let wanted: Vec<_> = shape
                .iter()
                .map(|n| if *n == ANY { "n".to_owned() } else { n.to_string() })
                .collect();
            let problem = format!("has shape {found:?}, not [{}]", wanted.join(", "));
            return Err(self.wrong(name, problem));
        }
        let data = tensor.data();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
        let values: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F64 => {
                data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
            }
            Dtype::I64 => {
                data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect()
            }
            Dtype::U8 | Dtype::BOOL => data.iter().map(|b| f32::from(*b)).collect(),
            other => return Err(self.wrong(name, format!("is of type {other:?}, not F32"))),
        };
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => {
                let value = values.get(i).copied().unwrap_or(f32::NAN);
                Err(self.wrong(name, format!("holds {value} at element {i}")))
            }
            None => Ok((found.to_vec(), values)),
        }
    }

    /// The model whose tensors begin with `prefix`, of whatever widths its shapes say.
    pub(super) fn model(&self, prefix: &str) -> Result<Weights, Error> {
        let width = |name: &str| {
            let name = format!("{prefix}{name}");
            let tensor = self
                .tensors
                .tensor(&name)
                .map_err(|_| self.wrong(&name, "is missing".to_owned()))?;
            let width = tensor.shape().first().and_then(|n| u32::try_from(*n).ok());
            width.ok_or_else(|| self.wrong(&name, "has no width".to_owned()))
        };
        let architecture = Architecture {
            n1: width("branch1.0.0.weight")?,
            n2: width("branch1.2.conv1.weight")?,
            n3: width("branch1.4.conv1.weight")?,
            m: width("fc.0.0.weight")?,
        };
        if !architecture.is_possible() {
            return Err(self.wrong(
                &format!("{prefix}branch1.0.0.weight"),
                format!("belongs to a network of impossible widths, {architecture:?}"),
            ));
        }
        let mut values = BTreeMap::new();
        for spec in Layout::new(&architecture, Extras::NONE).tensors() {
            let shape: Vec<usize> =
                spec.shape.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect();
            let (_, found) = self.any(&format!("{prefix}{}", spec.name), &shape)?;
            values.insert(spec.name.clone(), found);
        }
        for name in self.tensors.names() {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            if !values.contains_key(rest) && !rest.ends_with(".num_batches_tracked") {
                return Err(self.wrong(name, "belongs to no layer of the network".to_owned()));
            }
        }
        Weights::from_tensors(architecture, Extras::NONE, |name| values.remove(name))
            .map_err(|e| self.wrong(prefix, e.to_string()))
    }

    /// Refuses tensors that no check would look at.
    pub(super) fn only(&self, known: impl Fn(&str) -> bool) -> Result<(), Error> {
        match self.tensors.names().into_iter().find(|name| !known(name)) {
            Some(extra) => {
                Err(self.wrong(extra, format!("is there, but {JSON} does not speak of it")))
            }
            None => Ok(()),
        }
    }
}

/// One section of the JSON file.
pub(super) fn section<T: DeserializeOwned>(
    read: &Read<'_>,
    section: &'static str,
) -> Result<T, Error> {
    let bytes = bytes(read, JSON)?;
    let json: Value = serde_json::from_slice(&bytes).map_err(|e| Error::json("", &e))?;
    let part = json.get(section).ok_or(Error::Section { name: JSON, section })?;
    T::deserialize(part).map_err(|e| Error::json(section, &e))
}
