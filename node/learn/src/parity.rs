//! This build on this device against golden numbers: the answer to "does it compute what the published
//! code computes here?"
//!
//! A directory of golden numbers holds what PyTorch computed: `deepmedic_full_weights` and `_forward`,
//! `losses`, `lwf_five_updates`, `tiled_inference` (safetensors), `published_layout_narrow.tar` and
//! `learning.json`. Seeds, widths, batch sizes, volume shapes, numbers of cases and updates and the
//! settings of the optimizer are read from it; none is assumed. What is missing or damaged fails the
//! check that needs it, by name. Files are read by the caller.
//!
//! Tolerances are absolute or relative, as said at each constant. A relative error is divided by its
//! scale before it is reported, so that `max_abs_error <= tolerance` is always what `pass` means.

mod built_in;
mod directory;
mod forward;
mod losses;
mod published;
mod updates;
mod volume;

pub use built_in::built_in;

use crate::device::Device;
use crate::{forgetting, import, infer, network};
use burn::tensor::{Tensor, TensorReadError};
use rondo::checkpoint::parameters;
use rondo::recipe::Architecture;
use serde::Serialize;
use std::io;

/// Gives the bytes of a file of the directory by its name, within the caller's own limits.
pub type Read<'a> = dyn Fn(&str) -> io::Result<Vec<u8>> + 'a;

/// One comparison with golden numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What was compared: `section.part`.
    pub check: String,
    /// Largest deviation, divided by its scale where the tolerance is relative. No number (`null` in
    /// JSON) where nothing could be compared, or where a result is no number: both fail.
    pub max_abs_error: f64,
    /// Largest deviation that passes.
    pub tolerance: f64,
    /// Whether `max_abs_error <= tolerance`.
    pub pass: bool,
    /// What went wrong, or what else there is to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file cannot be read.
    #[error("reading {name} of the golden numbers failed: {source}")]
    File {
        /// Its name.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{name} is not a safetensors file: {reason}")]
    Safetensors {
        /// Its name.
        name: &'static str,
        /// Why.
        reason: safetensors::SafeTensorError,
    },
    /// A tensor cannot be used.
    #[error("tensor `{tensor}` of {file} {problem}")]
    Tensor {
        /// File it should be in.
        file: &'static str,
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A section of the JSON file is missing.
    #[error("{name} has no section `{section}`")]
    Section {
        /// Its name.
        name: &'static str,
        /// The section.
        section: &'static str,
    },
    /// The JSON file cannot be used.
    #[error("learning.json cannot be used{place}: {reason}")]
    Json {
        /// Where in it, with a leading ", at", or nothing.
        place: String,
        /// Why.
        reason: String,
    },
    /// The received model could not be kept.
    #[error(transparent)]
    Memory(#[from] forgetting::Error),
    /// The published checkpoint cannot be used.
    #[error("published_layout_narrow.tar cannot be used: {0}")]
    Published(#[from] import::Error),
    /// There is no state of the optimizer.
    #[error("published_layout_narrow.tar holds no state of the optimizer")]
    NoState,
    /// The device failed.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// Reading numbers from the device failed.
    #[error("reading numbers from the device failed: {0}")]
    Device(#[from] TensorReadError),
    /// A volume could not be predicted.
    #[error(transparent)]
    Inference(#[from] infer::Error),
}

impl Error {
    fn json(place: &str, reason: &dyn std::fmt::Display) -> Self {
        let place = if place.is_empty() { String::new() } else { format!(", at `{place}`") };
        Self::Json { place, reason: reason.to_string() }
    }
}

impl Check {
    /// A comparison of numbers.
    ///
    /// Errors are divided by `scale` (1 for an absolute tolerance). Another count of numbers, or one
    /// that is NaN, fails.
    #[must_use]
    pub fn compare(
        check: &str,
        found: &[f64],
        expected: &[f64],
        scale: f64,
        tolerance: f64,
    ) -> Self {
        let mut worst = (0.0_f64, 0);
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            let error = (a - b).abs() / scale;
            if error.is_nan() || error > worst.0 {
                worst = (error, i);
            }
            if error.is_nan() {
                break;
            }
        }
        if found.len() != expected.len() || expected.is_empty() {
            let counts = format!("{} numbers against {}", found.len(), expected.len());
            return Self::failed(check, tolerance, counts);
        }
        let (max_abs_error, at) = worst;
        let pass = max_abs_error <= tolerance;
        let detail = (!pass).then(|| {
            let of = |list: &[f64]| list.get(at).copied().unwrap_or(f64::NAN);
            format!("element {at} is {} and should be {}", of(found), of(expected))
        });
        Self { check: check.to_owned(), max_abs_error, tolerance, pass, detail }
    }

    /// A comparison of two numbers, relative to the larger of `expected` and `floor`.
    #[must_use]
    pub fn relative(check: &str, found: f64, expected: f64, floor: f64, tolerance: f64) -> Self {
        Self::compare(check, &[found], &[expected], expected.abs().max(floor), tolerance)
    }

    /// A comparison that could not be made.
    #[must_use]
    pub fn failed(check: &str, tolerance: f64, detail: impl Into<String>) -> Self {
        let detail = Some(detail.into());
        Self { check: check.to_owned(), max_abs_error: f64::NAN, tolerance, pass: false, detail }
    }

    fn noting(mut self, note: &str) -> Self {
        if !note.is_empty() {
            self.detail = Some(match self.detail {
                Some(detail) => format!("{detail}; {note}"),
                None => note.to_owned(),
            });
        }
        self
    }
}

/// Runs every check on the numbers that `read` gives, telling each as it is made; whether all passed.
///
/// The t-tests of `learning.json` are not among them: they are no part of this crate.
pub fn check(read: &Read<'_>, device: &Device, told: &mut dyn FnMut(Check)) -> bool {
    let mut passed = true;
    for section in Section::ALL {
        section.check(read, device, &mut |check| {
            passed &= check.pass;
            told(check);
        });
    }
    passed
}

/// Checks that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// Logits of the full network.
    Forward,
    /// Losses and their gradient.
    Losses,
    /// Updates, and the published checkpoint of their end.
    Updates,
    /// A whole volume.
    Volume,
}

impl Section {
    const ALL: [Self; 4] = [Self::Forward, Self::Losses, Self::Updates, Self::Volume];

    pub(crate) fn check(self, read: &Read<'_>, device: &Device, tell: &mut dyn FnMut(Check)) {
        // An error ends what it stands in the way of, and is itself a failed check.
        let failed = |name: &str, e: &Error| Check::failed(name, 0.0, e.to_string());
        let done = match self {
            Self::Forward => forward::check(read, device, tell).map_err(|e| failed("forward", &e)),
            Self::Losses => losses::check(read, device, tell).map_err(|e| failed("losses", &e)),
            Self::Updates => {
                let published = published::read(read).map_err(|e| failed("published", &e));
                let adam = published.as_ref().ok().and_then(|weights| weights.optimizer.clone());
                let done = updates::check(read, adam, device, tell);
                done.unwrap_or_else(|e| tell(failed("updates", &e)));
                published.and_then(|weights| {
                    published::check(read, &weights, tell).map_err(|e| failed("published", &e))
                })
            }
            Self::Volume => volume::check(read, device, tell).map_err(|e| failed("tiled", &e)),
        };
        if let Err(check) = done {
            tell(check);
        }
    }
}

/// Copies a tensor to the host.
fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, Error> {
    Ok(tensor.without_autodiff().try_into_vec_as()?)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// [`Check::compare`] for what came from a device.
fn compare(check: &str, found: &[f32], expected: &[f32], scale: f64, tolerance: f64) -> Check {
    Check::compare(check, &wide(found), &wide(expected), scale, tolerance)
}

/// [`compare`] tensor by tensor for vectors of all parameters `[p]`, as one check: `scale` of the golden
/// tensor divides its errors, and a failure names the worst tensor.
fn compare_parameters(
    check: &str,
    found: &[f32],
    expected: &[f32],
    architecture: &Architecture,
    scale: impl Fn(&[f32]) -> f64,
    tolerance: f64,
) -> Check {
    if found.len() != expected.len() {
        let counts = format!("{} numbers against {}", found.len(), expected.len());
        return Check::failed(check, tolerance, counts);
    }
    let (mut a, mut b) = (found, expected);
    let mut worst: Option<Check> = None;
    for spec in parameters(architecture) {
        let count = usize::try_from(spec.elements()).unwrap_or(usize::MAX);
        let (Some((a_part, a_rest)), Some((b_part, b_rest))) =
            (a.split_at_checked(count), b.split_at_checked(count))
        else {
            return Check::failed(check, tolerance, format!("tensor `{}` is cut off", spec.name));
        };
        (a, b) = (a_rest, b_rest);
        let mut part = compare(check, a_part, b_part, scale(b_part), tolerance);
        part.detail = part.detail.map(|detail| format!("`{}`: {detail}", spec.name));
        let undefined = part.max_abs_error.is_nan();
        if undefined || worst.as_ref().is_none_or(|w| part.max_abs_error > w.max_abs_error) {
            worst = Some(part);
        }
        if undefined {
            break;
        }
    }
    worst.unwrap_or_else(|| Check::failed(check, tolerance, "there are no parameters"))
}

/// Largest magnitude, and at least `floor`.
fn magnitude(values: &[f32], floor: f64) -> f64 {
    values.iter().fold(floor, |most, v| most.max(f64::from(v.abs())))
}
