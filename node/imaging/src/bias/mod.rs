//! N4 bias field correction: the smooth, multiplicative shading of a coil taken out of an image.
//!
//! Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE TMI 29(6), 2010, which keeps the
//! sharpening of N3 (Sled, Zijdenbos, Evans, IEEE TMI 17(1), 1998) and fits the field with
//! multilevel B-splines (Lee, Wolberg, Shin, IEEE TVCG 3(3), 1997). In the log domain the image is
//! v = u + f. Each iteration sharpens the histogram of the present u, which gives every voxel its
//! expected true value E(u|v); what remains, u − E(u|v), is approximated by the B-spline lattice
//! and added to the field. Every level halves the spacing of the lattice.
//!
//! The result does not depend on the number of threads: sums are taken plane by plane and added up
//! in the order of the planes.

mod lattice;
mod sharpen;
mod voxels;

use ndarray::Array3;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::volume::Volume;
use lattice::{Basis, Lattice};
use sharpen::Mapping;
use voxels::Voxels;

/// More control points than this on an axis are a mistake in the settings, and gigabytes.
pub const MAX_CONTROL_POINTS: usize = 256;
/// Histogram bins beyond this say nothing more about an image.
pub const MAX_HISTOGRAM_BINS: usize = 1 << 16;
/// An axis is thinned only as far as this many samples remain on it.
const MIN_SAMPLES: usize = 32;
/// Ranges of log intensities below this are rounding, not contrast.
const MIN_LOG_RANGE: f64 = 1e-6;

/// Why no field can be estimated; one sentence that says what to do.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// The mask has another shape than the image.
    #[error(
        "estimating the bias field: the mask has {mask:?} voxels, the image {image:?}; resample the mask onto the image's grid"
    )]
    Shape {
        /// Shape of the mask.
        mask: [usize; 3],
        /// Shape of the image.
        image: [usize; 3],
    },
    /// NaN or infinity.
    #[error(
        "estimating the bias field: {0} voxels of the image are NaN or infinite; export the image again"
    )]
    NotFinite(usize),
    /// No voxel of the mask has a logarithm.
    #[error(
        "estimating the bias field: no voxel seen inside the mask is above zero; check that mask and image belong together"
    )]
    Empty,
    /// One value everywhere.
    #[error(
        "estimating the bias field: all voxels inside the mask hold the same value; this is no scan, export the image again"
    )]
    Constant,
    /// A setting without meaning.
    #[error("estimating the bias field: {0}")]
    Settings(String),
}

/// What becomes of voxels inside the mask that have no logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonPositive {
    /// They take no part.
    Exclude,
    /// They take part with their value in place of its logarithm, as in SimpleITK's filter: a zero
    /// counts as an intensity of one. A mask that holds much air then bends the field.
    Raw,
}

/// What is asked of the fit. The default is that of SimpleITK 2.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Most iterations at each level; their number is the number of levels.
    pub iterations: Vec<usize>,
    /// A level ends when the coefficient of variation of the ratio of two successive fields is not
    /// above this (Tustison et al. 2010, section II-D).
    pub convergence: f64,
    /// Full width at half maximum of the field's histogram, in log intensities.
    pub fwhm: f64,
    /// Noise term of the Wiener filter.
    pub wiener_noise: f64,
    /// Bins of the histogram of log intensities.
    pub histogram_bins: usize,
    /// Control points of the first level along i, j, k.
    pub control_points: [usize; 3],
    /// Order of the B-splines, 1 to 5.
    pub spline_order: usize,
    /// The fit sees every n-th voxel of an axis; 1 is all of them. An axis is thinned less where
    /// its slices are thick (the spacing stays below n times the least one) or few (32 remain).
    pub shrink: usize,
    /// What becomes of voxels that are not above zero.
    pub nonpositive: NonPositive,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            iterations: vec![50; 4],
            convergence: 0.001,
            fwhm: 0.15,
            wiener_noise: 0.01,
            histogram_bins: 200,
            control_points: [4; 3],
            spline_order: 3,
            shrink: 1,
            nonpositive: NonPositive::Raw,
        }
    }
}

impl Settings {
    /// For whole heads: every second voxel of an axis gives the same field as all of them (known
    /// fields on real heads are met as well to three digits) in an eighth of the time. Air inside
    /// the mask takes no part.
    pub fn for_heads() -> Self {
        Self { shrink: 2, nonpositive: NonPositive::Exclude, ..Self::default() }
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::Settings(why));
        if !(1..=5).contains(&self.spline_order) {
            return refuse(format!(
                "splines of order {} are not supported; choose 1 to 5",
                self.spline_order
            ));
        }
        if self.iterations.is_empty() {
            return refuse("no level is asked for; give the iterations of at least one".into());
        }
        for first in self.control_points {
            if first <= self.spline_order {
                return refuse(format!(
                    "{first} control points cannot carry splines of order {}; an axis needs at least {}",
                    self.spline_order,
                    self.spline_order + 1
                ));
            }
            let doubled = u32::try_from(self.iterations.len() - 1)
                .ok()
                .and_then(|n| 2usize.checked_pow(n))
                .and_then(|n| n.checked_mul(first - self.spline_order));
            if doubled.is_none_or(|n| n > MAX_CONTROL_POINTS - self.spline_order) {
                return refuse(format!(
                    "{} levels from {first} control points need more than {MAX_CONTROL_POINTS} on an axis; take fewer levels",
                    self.iterations.len()
                ));
            }
        }
        if !(2..=MAX_HISTOGRAM_BINS).contains(&self.histogram_bins) {
            return refuse(format!(
                "{} histogram bins; choose 2 to {MAX_HISTOGRAM_BINS}",
                self.histogram_bins
            ));
        }
        for (what, value) in [("fwhm", self.fwhm), ("wiener_noise", self.wiener_noise)] {
            if !(value.is_finite() && value > 0.0) {
                return refuse(format!("{what} is {value}; it must be above zero"));
            }
        }
        if self.convergence.is_nan() || self.convergence < 0.0 {
            return refuse(format!(
                "convergence is {}; it must not be below zero",
                self.convergence
            ));
        }
        if self.shrink == 0 {
            return refuse("shrink is 0; 1 takes every voxel".into());
        }
        Ok(())
    }
}

/// The field found.
#[derive(Debug, Clone)]
pub struct Correction {
    /// Natural logarithm of the field `[i, j, k]` on the grid of the image.
    pub log_field: Array3<f32>,
    /// Iterations made at each level.
    pub iterations: Vec<usize>,
    /// Coefficient of variation of the last ratio of fields.
    pub convergence: f64,
    /// Voxels that took part in the fit.
    pub voxels: usize,
}

impl Correction {
    /// Divides an image `[i, j, k]` by the field, in place.
    ///
    /// # Panics
    /// An image of another shape is a mistake of the caller.
    pub fn apply(&self, image: &mut Array3<f32>) {
        assert_eq!(image.shape(), self.log_field.shape(), "image and field differ in shape");
        image
            .outer_iter_mut()
            .zip(self.log_field.outer_iter())
            .par_bridge()
            .for_each(|(mut plane, field)| plane.zip_mut_with(&field, |v, f| *v *= (-f).exp()));
    }
}

/// Estimates the field of `image` from the voxels inside `mask` (above 0).
///
/// Besides the field (4 bytes
/// a voxel of the image), memory grows by at most 14 bytes a voxel of the thinned grid, 5 where
/// the mask is compact.
///
/// # Errors
/// A mask of another shape, NaN or infinity anywhere in the image, nothing above zero inside the
/// mask, one value inside the mask, settings without meaning.
pub fn n4(
    image: &Volume<f32>,
    mask: &Array3<u8>,
    settings: &Settings,
) -> Result<Correction, Error> {
    settings.check()?;
    let shape = image.geometry().shape();
    if mask.shape() != shape {
        let (i, j, k) = mask.dim();
        return Err(Error::Shape { mask: [i, j, k], image: shape });
    }
    let bad = image.data().iter().filter(|v| !v.is_finite()).count();
    if bad > 0 {
        return Err(Error::NotFinite(bad));
    }
    let samples = thinned(shape, image.geometry().spacing_mm(), settings.shrink);
    if !image.data().iter().zip(mask).any(|(v, m)| *m > 0 && *v > 0.0) {
        return Err(Error::Empty);
    }
    let raw = settings.nonpositive == NonPositive::Raw;
    let mut voxels = Voxels::gather(image.data(), mask, &samples, raw);
    if voxels.count() == 0 {
        return Err(Error::Empty);
    }
    let mut range = voxels.range();
    if range.1 - range.0 < MIN_LOG_RANGE {
        return Err(Error::Constant);
    }

    let order = voxels.order();
    let mut field = Lattice::zeros(order.map(|axis| settings.control_points[axis]));
    let mut iterations = Vec::with_capacity(settings.iterations.len());
    let mut convergence = f64::INFINITY;
    for (level, &most) in settings.iterations.iter().enumerate() {
        if level > 0 {
            field = field.refined(settings.spline_order);
        }
        let bases = [0, 1, 2].map(|n| {
            let axis = order[n];
            let points = samples[axis].iter().map(|at| relative(*at, shape[axis]));
            Basis::new(settings.spline_order, field.shape()[n], points)
        });
        let support = voxels.support(&bases);
        convergence = f64::INFINITY;
        let mut done = 0;
        while done < most && convergence > settings.convergence {
            if range.1 - range.0 < MIN_LOG_RANGE {
                convergence = 0.0;
                break;
            }
            let histogram = voxels.histogram(range, settings.histogram_bins);
            let mapping = Mapping::sharpen(&histogram, range, settings.fwhm, settings.wiener_noise);
            let step = voxels.residual(&mapping, &bases).over(&support);
            let change = voxels.subtract(&step, &bases);
            (range, convergence) = (change.range, change.variation);
            field.add(&step);
            done += 1;
        }
        iterations.push(done);
    }
    Ok(Correction {
        log_field: evaluate(&field.in_order_of_the_grid(order), settings.spline_order, shape),
        iterations,
        convergence,
        voxels: voxels.count(),
    })
}

/// Where on the lattice's extent [0, 1] a voxel lies; the lattice spans first to last voxel.
fn relative(at: usize, count: usize) -> f64 {
    if count > 1 { at as f64 / (count - 1) as f64 } else { 0.0 }
}

/// Indices of the samples on each axis, centred on it.
fn thinned(shape: [usize; 3], spacing_mm: [f64; 3], shrink: usize) -> [Vec<usize>; 3] {
    let least = spacing_mm.into_iter().fold(f64::INFINITY, f64::min);
    [0, 1, 2].map(|axis| {
        let by_spacing = (shrink as f64 * least / spacing_mm[axis]).round().max(1.0) as usize;
        let by_count = (shape[axis] / MIN_SAMPLES).max(1);
        let every = shrink.min(by_spacing).min(by_count);
        let samples = shape[axis] / every;
        let begin = (shape[axis] - 1 - (samples - 1) * every) / 2;
        (0..samples).map(|n| begin + n * every).collect()
    })
}

/// The field at every voxel of a grid that the lattice spans.
fn evaluate(field: &Lattice, order: usize, shape: [usize; 3]) -> Array3<f32> {
    let bases = [0, 1, 2].map(|axis| {
        let points = (0..shape[axis]).map(|at| relative(at, shape[axis]));
        Basis::new(order, field.shape()[axis], points)
    });
    let mut values = Array3::zeros(shape);
    let [_, lines, points] = shape;
    let Some(flat) = values.as_slice_mut() else { return values };
    flat.par_chunks_mut(lines * points).enumerate().for_each(|(i, plane)| {
        let sheet = field.sheet(&bases[0], i);
        for (j, line) in plane.chunks_mut(points).enumerate() {
            let coefficients = sheet.line(&bases[1], j);
            for (from, to, span) in bases[2].spans(0, points) {
                bases[2].interpolate(&coefficients, span, from, &mut line[from..to]);
            }
        }
    });
    values
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
