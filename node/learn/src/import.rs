//! Models from elsewhere: the published checkpoints of `torch.save`, and safetensors files that
//! PyTorch wrote. Whatever comes in, what comes out is a model of our own layout, or a refusal that
//! names the entry.
//!
//! A file is data from outside. Nothing in it is executed, no name in it is used as a path, and what
//! is allocated stays below a small multiple of the file's own length: the tensors of the result
//! (at most twice the file, since only 16-bit numbers grow), a copy of them to check, and some 20 MB
//! for the longest pickle that is read at all.

mod archive;
mod array;
mod cursor;
mod gather;
mod pickle;
mod published;
#[cfg(test)]
mod tests;

use crate::checkpoint::{self, Weights, extras_of};
use archive::Archive;
use array::{Array, Kind, Storage};
use gather::Named;
use rondo::recipe::Architecture;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;

/// Longest pickle that is read; that of a checkpoint has 32 kB.
const PICKLE_MAX_BYTES: usize = 4 << 20;
/// Longest header of a safetensors file that is read; that of a checkpoint has 40 kB.
const HEADER_MAX_BYTES: u64 = 1 << 20;
/// How a zip begins.
const ZIP: &[u8] = b"PK\x03\x04";
/// How `torch.save` began its files before PyTorch 1.6: a pickle of its magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// Why a file is not imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The zip is refused.
    #[error("the zip is refused: {0}")]
    Zip(String),
    /// The pickle in it is refused.
    #[error("the pickle `data.pkl` is refused: {0}")]
    Pickle(String),
    /// A file that was saved in the format before PyTorch 1.6.
    #[error(
        "this file was saved by PyTorch before 1.6; load it in PyTorch and save it again with torch.save"
    )]
    Legacy,
    /// Not a safetensors file either.
    #[error("this is neither a checkpoint of torch.save nor a safetensors file: {0}")]
    Safetensors(String),
    /// An entry is missing.
    #[error("entry `{0}` is missing")]
    Missing(String),
    /// An entry is there that no such model has.
    #[error("entry {0} is none of this network's")]
    Extra(String),
    /// A tensor has another shape.
    #[error("tensor {name} has shape {found:?}, not {expected:?}")]
    Shape {
        /// Its name, quoted.
        name: String,
        /// Shape in the file.
        found: Vec<u64>,
        /// Shape in the network of these widths.
        expected: Vec<u64>,
    },
    /// An entry is not what it should be.
    #[error("entry {name} {reason}")]
    Entry {
        /// Its name, quoted.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The widths cannot be those of a network.
    #[error("the widths {}, {}, {}, {} are impossible", .0.n1, .0.n2, .0.n3, .0.m)]
    Widths(Architecture),
    /// Tensors share bytes, so that the model would be much larger than its file.
    #[error("its tensors need {needed} bytes, but the file has {held}: they share their numbers")]
    Amplified {
        /// Bytes of all tensors.
        needed: u64,
        /// Bytes of the file.
        held: u64,
    },
    /// The model is refused, for one because a number in it is not finite.
    #[error(transparent)]
    Model(#[from] checkpoint::Error),
}

/// What kind of file a model came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Rondo's own layout, byte for byte.
    Canonical,
    /// safetensors with the same tensors, in another order, type or company.
    Safetensors,
    /// `{iter, state_dict, optim_dict}` of `torch.save`.
    Published,
}

impl Format {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Canonical => "canonical",
            Self::Safetensors => "safetensors",
            Self::Published => "published",
        }
    }
}

/// A model from elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The model, with Adam's state where the file has it.
    pub weights: Weights,
    /// Updates so far: `iter`, or what BatchNorm or Adam has counted; 0 where the file says nothing.
    pub iterations: u64,
    /// What the file was.
    pub format: Format,
    /// What was left out, converted or differs, a sentence each.
    pub notes: Vec<String>,
}

/// Reads any model file that is recognised.
///
/// # Errors
/// What [`published`] refuses, and of safetensors files: entries that are missing, extra, misshapen,
/// of another type than F64, F32, F16 or BF16, or not finite.
pub fn any(bytes: &[u8]) -> Result<Imported, Error> {
    if bytes.starts_with(ZIP) {
        return published(bytes);
    }
    if bytes.starts_with(LEGACY) {
        return Err(Error::Legacy);
    }
    match Weights::from_bytes(bytes) {
        Ok(weights) => {
            let iterations = weights.optimizer.as_ref().map_or(0, |adam| u64::from(adam.step));
            Ok(Imported { weights, iterations, format: Format::Canonical, notes: Vec::new() })
        }
        Err(_) => safetensors(bytes),
    }
}

/// Reads a published checkpoint: the zip of `torch.save` with `{iter, state_dict, optim_dict}`
/// (PyTorch 1.6 and later; layout of Huang et al.'s released code).
///
/// # Errors
/// A zip or pickle that holds more than such a checkpoint needs; an entry that is missing, extra or
/// misshapen, by its name; numbers that are not finite.
pub fn published(bytes: &[u8]) -> Result<Imported, Error> {
    let archive = Archive::open(bytes).map_err(|e| Error::Zip(e.to_string()))?;
    let big_endian = match archive.get("byteorder") {
        None | Some(b"little") => false,
        Some(b"big") => true,
        Some(_) => {
            return Err(Error::Zip("its `byteorder` is neither little nor big".to_owned()));
        }
    };
    let pickle = archive.get("data.pkl").unwrap_or_default();
    if pickle.len() > PICKLE_MAX_BYTES {
        let length = pickle.len();
        return Err(Error::Pickle(format!("it has {length} bytes, more than {PICKLE_MAX_BYTES}")));
    }
    let values = pickle::read(pickle, &archive, big_endian)
        .map_err(|error| Error::Pickle(error.to_string()))?;
    published::read(&values, bytes.len())
}

/// Reads a safetensors file with the published names, in any order.
fn safetensors(bytes: &[u8]) -> Result<Imported, Error> {
    let wrong = |text: String| Error::Safetensors(text);
    let length = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    let length = length.ok_or_else(|| wrong("it is shorter than eight bytes".to_owned()))?;
    if length > HEADER_MAX_BYTES {
        return Err(wrong(format!(
            "its header would have {length} bytes, more than {HEADER_MAX_BYTES}"
        )));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(e.to_string()))?;
    let mut arrays = BTreeMap::new();
    for (name, view) in file.iter() {
        let refuse = |reason: String| Error::Entry { name: quoted(name), reason };
        let kind = match view.dtype() {
            Dtype::F64 => Kind::F64,
            Dtype::F32 => Kind::F32,
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::Bf16,
            Dtype::I64 => Kind::I64,
            Dtype::I32 => Kind::I32,
            other => return Err(refuse(format!("is {other:?}, not of F64, F32, F16 or BF16"))),
        };
        let shape = view.shape().iter().map(|n| *n as u64).collect();
        let storage = Storage { data: view.data(), kind, big_endian: false };
        let array = Array::whole(storage, shape).map_err(|e| refuse(e.to_string()))?;
        arrays.insert(name.to_owned(), array);
    }
    let mut tensors: Named<'_, '_> = arrays.iter().map(|(n, a)| (n.clone(), a)).collect();
    let architecture = gather::widths(&tensors)?;
    let counted = gather::take_counters(&mut tensors, &architecture, true)?;
    let extras = extras_of(tensors.keys().map(String::as_str));
    let weights = gather::weights(architecture, extras, &tensors, &BTreeMap::new(), bytes.len())?;
    let notes = gather::converted(&tensors).into_iter().chain(gather::dropped(counted)).collect();
    let stepped = weights.optimizer.as_ref().map(|adam| u64::from(adam.step));
    let iterations = stepped.or(counted).unwrap_or(0);
    Ok(Imported { weights, iterations, format: Format::Safetensors, notes })
}

/// A name from outside, fit for a message.
fn quoted(text: &str) -> String {
    format!("`{}`", text.chars().take(120).collect::<String>().escape_default())
}
