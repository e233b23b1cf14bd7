//! From named tensors to a model: nothing missing, nothing extra, every shape as it must be.

use super::array::{Array, Kind};
use super::{Error, quoted};
use crate::checkpoint::Weights;
use rondo::checkpoint::{Extras, Layout, parameters};
use rondo::recipe::Architecture;
use std::collections::BTreeMap;

/// Suffix of the counter of batches that a BatchNorm of PyTorch has; it is not stored by Rondo.
const COUNTER: &str = "num_batches_tracked";

/// Tensors under their canonical names.
pub(super) type Named<'v, 'a> = BTreeMap<String, &'v Array<'a>>;

/// Names of all counters.
pub(super) fn counters(architecture: &Architecture) -> impl Iterator<Item = String> {
    parameters(architecture).into_iter().filter_map(|spec| {
        let norm = spec.name.strip_suffix(".bias").filter(|norm| *norm != "fc.2")?;
        Some(format!("{norm}.{COUNTER}"))
    })
}

/// Widths of the network whose tensors these are, from their shapes.
pub(super) fn widths(tensors: &Named<'_, '_>) -> Result<Architecture, Error> {
    let width = |name: &str| {
        let array = tensors.get(name).ok_or_else(|| Error::Missing(name.to_owned()))?;
        let first = array.shape().first().and_then(|n| u32::try_from(*n).ok());
        first.ok_or_else(|| Error::Entry {
            name: quoted(name),
            reason: format!("has shape {:?}, which no kernel has", array.shape()),
        })
    };
    let architecture = Architecture {
        n1: width("branch1.0.0.weight")?,
        n2: width("branch1.2.conv1.weight")?,
        n3: width("branch1.4.conv1.weight")?,
        m: width("fc.0.0.weight")?,
    };
    if !architecture.is_possible() {
        return Err(Error::Widths(architecture));
    }
    Ok(architecture)
}

/// Takes the counters out. They must all be there, or, if `optional`, may all be absent.
///
/// # Errors
/// A counter that is missing or counts nothing.
pub(super) fn take_counters(
    tensors: &mut Named<'_, '_>,
    architecture: &Architecture,
    optional: bool,
) -> Result<Option<u64>, Error> {
    let mut most = None;
    for name in counters(architecture) {
        let Some(array) = tensors.remove(&name) else {
            if optional && most.is_none() && !tensors.keys().any(|n| n.ends_with(COUNTER)) {
                return Ok(None);
            }
            return Err(Error::Missing(name));
        };
        let count = array
            .only()
            .filter(|_| !array.kind().is_float() && array.shape().len() <= 1)
            .and_then(whole)
            .ok_or_else(|| Error::Entry {
                name: quoted(&name),
                reason: format!("is {} {:?}, not one count", array.kind().name(), array.shape()),
            })?;
        most = most.max(Some(count));
    }
    Ok(most)
}

/// Says which numbers change their type.
pub(super) fn converted(tensors: &Named<'_, '_>) -> Option<String> {
    let mut kinds: Vec<&str> = tensors
        .values()
        .map(|array| array.kind())
        .filter(|kind| kind.is_float() && *kind != Kind::F32)
        .map(Kind::name)
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    (!kinds.is_empty()).then(|| format!("tensors of {} are converted to F32", kinds.join(", ")))
}

/// Says that counters were there.
pub(super) fn dropped(counted: Option<u64>) -> Option<String> {
    counted
        .map(|_| "the 18 entries `num_batches_tracked` are dropped: nothing reads them".to_owned())
}

/// A count that was read as a 64-bit number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
pub(super) fn whole(value: f64) -> Option<u64> {
    const MOST: f64 = 9_007_199_254_740_992.0;
    ((0.0..=MOST).contains(&value) && value.fract() == 0.0).then_some(value as u64)
}

/// Makes the model of exactly these tensors; `scalars` are given beside them.
///
/// # Errors
/// The first tensor that is missing, extra, misshapen, of whole numbers or not finite.
pub(super) fn weights(
    architecture: Architecture,
    extras: Extras,
    tensors: &Named<'_, '_>,
    scalars: &BTreeMap<&str, f32>,
    file_bytes: usize,
) -> Result<Weights, Error> {
    let layout = Layout::new(&architecture, extras);
    let mut known = BTreeMap::new();
    for spec in layout.tensors() {
        known.insert(spec.name.as_str(), ());
        if scalars.contains_key(spec.name.as_str()) {
            continue;
        }
        let array = tensors.get(&spec.name).ok_or_else(|| Error::Missing(spec.name.clone()))?;
        if array.shape() != spec.shape {
            return Err(Error::Shape {
                name: quoted(&spec.name),
                found: array.shape().to_vec(),
                expected: spec.shape.clone(),
            });
        }
        if !array.kind().is_float() {
            return Err(Error::Entry {
                name: quoted(&spec.name),
                reason: format!("is {}, not of F64, F32, F16 or BF16", array.kind().name()),
            });
        }
    }
    if let Some(extra) = tensors.keys().find(|name| !known.contains_key(name.as_str())) {
        return Err(Error::Extra(quoted(extra)));
    }
    // Before anything is allocated: tensors may share bytes of a hostile file.
    let needed = layout.len().saturating_sub(layout.header().len() as u64);
    if needed / 2 > file_bytes as u64 {
        return Err(Error::Amplified { needed, held: file_bytes as u64 });
    }
    let weights = Weights::from_tensors(architecture, extras, |name| {
        scalars
            .get(name)
            .map(|scalar| vec![*scalar])
            .or_else(|| tensors.get(name).and_then(|array| array.floats()))
    })?;
    layout.check(&weights.to_bytes()).map_err(crate::checkpoint::Error::from)?;
    Ok(weights)
}
