//! A brain mask without a trained model, for sites that have neither a mask nor a tool of their own.
//!
//! Smith, "Fast robust automated brain extraction", Human Brain Mapping 17(3), 2002: a balloon that
//! begins inside the brain and grows until it meets the dark rim of liquor and bone. Good to some
//! millimetres on T1 heads, with or without contrast; a mask by a trained tool is better, and who
//! uses this one is to say so. All of it happens in millimetres of the scanner's axes, so that
//! orientation, obliquity and thick slices of the image do not matter.

mod surface;

use nalgebra::{Matrix4, Point3, Vector3};
use ndarray::{Array3, Axis};
use rayon::prelude::*;

use crate::distance::distance_mm;
use crate::preprocess::percentile;
use crate::resample::trilinear;
use crate::volume::Volume;
use surface::{Forces, Surface};

/// Spacing of the grid that intensities are measured on.
const STEP_MM: f64 = 2.0;
/// Spacing of the mask that the final surface is painted on.
const PAINT_MM: f64 = 1.0;
/// What extends farther is no head, and would not fit into memory either.
const MAX_EXTENT_MM: f64 = 600.0;
/// The brain of an adult lies within this distance below the top of the head; the neck does not.
const BELOW_TOP_MM: f64 = 140.0;
/// Least area of a slice through the head, in mm², for the top of the head to be above it.
const TOP_AREA_MM2: f64 = 600.0;
/// Smallest and largest brains, in cm³, from infants to giants.
const BRAIN_CM3: (f64, f64) = (200.0, 2600.0);
/// A skull-stripped image has at least this share of exact zeros,
const STRIPPED_ZEROS: f64 = 0.2;
/// and at most this share of what is not zero lies
const STRIPPED_BEYOND: f64 = 0.01;
/// this far outside the surface found.
const STRIPPED_BEYOND_MM: f64 = 12.0;

/// Why there is no brain mask; one sentence that says what to do.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// NaN or infinity.
    #[error("looking for the brain: {0} voxels are NaN or infinite; export the image again")]
    NotFinite(usize),
    /// No contrast.
    #[error(
        "looking for the brain: the image has no contrast; this is no scan, export the image again"
    )]
    Constant,
    /// Not a head by its size.
    #[error(
        "looking for the brain: the image extends over {0:.0} mm; no head does, check its spacing or give a mask"
    )]
    Extent(f64),
    /// What was found is no brain by its size.
    #[error(
        "looking for the brain: what was found has {0:.0} cm³, which no brain has; give a mask for this image"
    )]
    Size(f64),
}

/// 1 inside the brain `[i, j, k]`, on the grid of the image.
///
/// An image that is already skull-stripped gives what is not zero in it.
///
/// # Errors
/// NaN or infinity, no contrast, an extent that no head has, a result that no brain could be.
pub fn estimate(image: &Volume<f32>) -> Result<Array3<u8>, Error> {
    let bad = image.data().iter().filter(|v| !v.is_finite()).count();
    if bad > 0 {
        return Err(Error::NotFinite(bad));
    }
    let head = Head::sample(image)?;
    let forces = head.measure()?;
    let surface = Surface::grown(&head, &forces);
    let paint = Paint::inside(&surface);
    let cm3 = paint.cm3();
    if cm3.is_nan() || cm3 < BRAIN_CM3.0 || cm3 > BRAIN_CM3.1 {
        return Err(Error::Size(cm3));
    }
    let mask = paint.onto(image);
    Ok(if is_stripped(image, &mask) { image.data().map(|v| u8::from(*v != 0.0)) } else { mask })
}

/// Whether nothing but a brain is left: no scalp and no face outside the surface.
fn is_stripped(image: &Volume<f32>, mask: &Array3<u8>) -> bool {
    let zeros = image.data().iter().filter(|v| **v == 0.0).count();
    if (zeros as f64) < STRIPPED_ZEROS * image.data().len() as f64 {
        return false;
    }
    // Every third voxel tells: the question is about centimetres.
    let spacing = image.geometry().spacing_mm();
    let every = spacing.map(|s| (3.0 / s).round().max(1.0) as usize);
    let thin = Array3::from_shape_fn(
        [0, 1, 2].map(|a| mask.len_of(Axis(a)).div_ceil(every[a])),
        |(i, j, k)| {
            let at = [i * every[0], j * every[1], k * every[2]];
            (mask[at], image.data()[at] != 0.0)
        },
    );
    let away = distance_mm(&thin.map(|t| t.0), [0, 1, 2].map(|a| spacing[a] * every[a] as f64));
    let left = thin.iter().filter(|t| t.1).count();
    let beyond = thin.iter().zip(&away).filter(|(t, d)| t.1 && **d > STRIPPED_BEYOND_MM).count();
    (beyond as f64) < STRIPPED_BEYOND * left as f64
}

/// The image on a cubic grid in the scanner's axes; NaN outside the image.
struct Head<'a> {
    /// RAS millimetres of the first voxel.
    origin: Point3<f64>,
    values: Array3<f32>,
    /// The image itself, and RAS millimetres to its voxels.
    image: &'a Array3<f32>,
    to_voxel: Matrix4<f64>,
}

impl<'a> Head<'a> {
    fn sample(image: &'a Volume<f32>) -> Result<Self, Error> {
        let geometry = image.geometry();
        let end = geometry.shape().map(|n| n as f64 - 0.5);
        let corners = (0..8u8).map(|c| {
            let pick = |axis: usize| if c >> axis & 1 == 1 { end[axis] } else { -0.5 };
            geometry.affine().transform_point(&Point3::new(pick(0), pick(1), pick(2)))
        });
        let (low, high) = corners.fold(
            (Point3::from([f64::INFINITY; 3]), Point3::from([f64::NEG_INFINITY; 3])),
            |(low, high), p| (low.inf(&p), high.sup(&p)),
        );
        let extent = (high - low).max();
        if extent > MAX_EXTENT_MM {
            return Err(Error::Extent(extent));
        }
        let shape = [0, 1, 2].map(|a| ((high[a] - low[a]) / STEP_MM).ceil() as usize + 1);
        let to_voxel = inverse(geometry.affine());
        let mut values = vec![0f32; shape.iter().product()];
        values.par_chunks_mut(shape[1] * shape[2]).enumerate().for_each(|(x, plane)| {
            for (n, value) in plane.iter_mut().enumerate() {
                let at = [x, n / shape[2], n % shape[2]].map(|n| n as f64 * STEP_MM);
                let p = to_voxel.transform_point(&(low + Vector3::from(at)));
                *value = trilinear(&image.data().view(), p.coords).unwrap_or(f32::NAN);
            }
        });
        let values = Array3::from_shape_vec(shape, values).map_err(|_| Error::Extent(extent))?;
        Ok(Self { origin: low, values, image: image.data(), to_voxel })
    }

    /// Values of the image at points that lie a millimetre apart, from `start` on; `None` outside.
    /// They are those of the nearest voxels: the rim of bone is thin, and interpolation blurs it.
    fn ray(
        &self,
        start: &Point3<f64>,
        direction: &Vector3<f64>,
    ) -> impl Iterator<Item = Option<f32>> + '_ {
        let first = self.to_voxel.transform_point(start) + Vector3::repeat(0.5);
        let step = self.to_voxel.transform_vector(direction);
        (0..).map(move |n| {
            let at = first + step * f64::from(n);
            if at.x < 0.0 || at.y < 0.0 || at.z < 0.0 {
                return None;
            }
            self.image.get([at.x as usize, at.y as usize, at.z as usize]).copied()
        })
    }

    fn point(&self, (i, j, k): (usize, usize, usize)) -> Point3<f64> {
        self.origin + Vector3::new(i as f64, j as f64, k as f64) * STEP_MM
    }

    /// Intensities and a sphere to begin with (Smith 2002, "Estimation of basic image and brain
    /// parameters").
    fn measure(&self) -> Result<Forces, Error> {
        let mut seen: Vec<f32> = self.values.iter().copied().filter(|v| !v.is_nan()).collect();
        if seen.is_empty() {
            return Err(Error::Constant);
        }
        let [low, high] = [2.0, 98.0].map(|p| percentile(&mut seen, p));
        if high <= low {
            return Err(Error::Constant);
        }
        let threshold = low + 0.1 * (high - low);
        let is_head = |v: f32| f64::from(v) > threshold;
        let area = STEP_MM * STEP_MM;
        let top = (self.values.axis_iter(Axis(2)).enumerate().rev())
            .find(|(_, slice)| {
                slice.iter().filter(|v| is_head(**v)).count() as f64 * area > TOP_AREA_MM2
            })
            .map_or(self.values.len_of(Axis(2)), |(k, _)| k);
        let bottom = top.saturating_sub((BELOW_TOP_MM / STEP_MM) as usize);
        let upper = |at: &(usize, usize, usize)| at.2 >= bottom && at.2 <= top;

        let (mut sum, mut weights, mut count) = (Vector3::zeros(), 0.0, 0);
        for (at, v) in self.values.indexed_iter().filter(|(at, v)| upper(at) && is_head(**v)) {
            let weight = f64::from(*v).min(high) - low;
            sum += self.point(at).coords * weight;
            weights += weight;
            count += 1;
        }
        if count == 0 {
            return Err(Error::Constant);
        }
        let centre = Point3::from(sum / weights);
        let volume = f64::from(count) * STEP_MM.powi(3);
        let radius = (volume * 3.0 / (4.0 * std::f64::consts::PI)).cbrt();
        let mut inner: Vec<f32> = (self.values.indexed_iter())
            .filter(|(at, v)| {
                is_head(**v) && f64::from(**v) < high && (self.point(*at) - centre).norm() < radius
            })
            .map(|(_, v)| *v)
            .collect();
        if inner.is_empty() {
            return Err(Error::Constant);
        }
        let median = percentile(&mut inner, 50.0);
        Ok(Forces { low, threshold, median, centre, radius })
    }
}

/// What lies inside a surface, on a fine grid in the scanner's axes.
struct Paint {
    origin: Point3<f64>,
    inside: Array3<bool>,
}

impl Paint {
    /// Fills column by column between the points where the surface is entered and left.
    fn inside(surface: &Surface) -> Self {
        let (low, high) = surface.bounds();
        // Columns just beside round numbers meet no edge exactly.
        let origin = low - Vector3::from([1.000_37, 1.000_53, 1.0]) * PAINT_MM;
        let shape = [0, 1, 2].map(|a| ((high[a] - origin[a]) / PAINT_MM).ceil() as usize + 2);
        let mut crossings = vec![Vec::new(); shape[0] * shape[1]];
        for corners in surface.triangles() {
            let [a, b, c] = corners.map(|p| (p - origin) / PAINT_MM);
            let doubled = (b.x - a.x) * (c.y - a.y) - (c.x - a.x) * (b.y - a.y);
            if doubled == 0.0 {
                continue;
            }
            let range = |axis: usize| {
                let least = a[axis].min(b[axis]).min(c[axis]).ceil() as usize;
                let most = a[axis].max(b[axis]).max(c[axis]).floor() as usize;
                least..(most + 1).min(shape[axis])
            };
            for x in range(0) {
                for y in range(1) {
                    let p = Vector3::new(x as f64, y as f64, 0.0);
                    let share = |q: Vector3<f64>, r: Vector3<f64>| {
                        ((q.x - p.x) * (r.y - p.y) - (r.x - p.x) * (q.y - p.y)) / doubled
                    };
                    let (u, v) = (share(b, c), share(c, a));
                    let w = 1.0 - u - v;
                    if u >= 0.0 && v >= 0.0 && w >= 0.0 {
                        let z = u * a.z + v * b.z + w * c.z;
                        crossings[x * shape[1] + y].push((z, doubled < 0.0));
                    }
                }
            }
        }
        let mut inside = Array3::from_elem(shape, false);
        for (mut column, mut found) in inside.lanes_mut(Axis(2)).into_iter().zip(crossings) {
            found.sort_by(|a, b| a.0.total_cmp(&b.0));
            // Where the surface folds over itself, a point is inside as long as more enters than leaves.
            let mut depth = 0;
            let mut entered = 0.0;
            for (z, enters) in found {
                if enters && depth == 0 {
                    entered = z;
                }
                depth += if enters { 1 } else { -1 };
                if !enters && depth == 0 {
                    for k in entered.ceil() as usize..=z.floor() as usize {
                        column[k] = true;
                    }
                }
            }
        }
        Self { origin, inside }
    }

    fn cm3(&self) -> f64 {
        self.inside.iter().filter(|v| **v).count() as f64 * PAINT_MM.powi(3) / 1000.0
    }

    fn onto(&self, image: &Volume<f32>) -> Array3<u8> {
        let affine = image.geometry().affine();
        let step = affine.fixed_view::<3, 1>(0, 2) / PAINT_MM;
        let shape = image.geometry().shape();
        let mut mask = Array3::zeros(shape);
        for (n, mut line) in mask.lanes_mut(Axis(2)).into_iter().enumerate() {
            let first = Point3::new((n / shape[1]) as f64, (n % shape[1]) as f64, 0.0);
            let first = (affine.transform_point(&first) - self.origin) / PAINT_MM;
            for (k, v) in line.iter_mut().enumerate() {
                let at = (first + step * k as f64).map(f64::round);
                if at.min() >= 0.0 {
                    let inside = self.inside.get([at.x as usize, at.y as usize, at.z as usize]);
                    *v = u8::from(inside == Some(&true));
                }
            }
        }
        mask
    }
}

fn inverse(affine: &Matrix4<f64>) -> Matrix4<f64> {
    // A grid's affine is regular by construction.
    affine.try_inverse().unwrap_or_else(Matrix4::identity)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
