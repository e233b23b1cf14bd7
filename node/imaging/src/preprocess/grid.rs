//! The grid a network works on, and the way back to the scanner's.

use nalgebra::{Matrix3, Matrix4, Vector3, Vector4};
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use crate::lesion::{Connectivity, components};
use crate::resample;
use crate::volume::{self, Geometry, Volume};

/// Spacing of the paper's grid.
pub const SPACING_MM: f64 = 1.0;
/// Voxels of the paper's grid.
pub const SHAPE: [usize; 3] = [240, 240, 155];

/// Which voxels a network sees.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grid {
    /// Isotropic, cropped or padded around the brain; in the paper 240×240×155 voxels of 1 mm.
    Isotropic {
        /// Distance between voxels.
        spacing_mm: f64,
        /// Voxels to the right, to the front and to the top.
        shape: [usize; 3],
    },
    /// The image's own voxels, in canonical order: for images that were brought onto a grid before.
    Native,
}

impl Default for Grid {
    fn default() -> Self {
        Self::Isotropic { spacing_mm: SPACING_MM, shape: SHAPE }
    }
}

impl Grid {
    /// The working grid of an image in canonical order, around the brain (`[i, j, k]` on the image's
    /// grid). It keeps the directions of the image's axes, made perpendicular, and shares voxel
    /// centres with it where both have the same spacing.
    ///
    /// # Errors
    /// A spacing or shape that is no grid.
    pub fn around(&self, image: &Geometry, brain: &Array3<u8>) -> Result<Geometry, volume::Error> {
        let Self::Isotropic { spacing_mm, shape } = *self else { return Ok(image.clone()) };
        let directions = perpendicular(image);
        // Millimetres along the directions, from the centre of the image's first voxel.
        let first: Vector3<f64> = image.affine().fixed_view::<3, 1>(0, 3).into_owned();
        let along = |index: [usize; 3]| {
            let index = Vector4::new(index[0] as f64, index[1] as f64, index[2] as f64, 1.0);
            directions.transpose() * ((image.affine() * index).xyz() - first)
        };
        let (mut low, mut high) =
            (Vector3::repeat(f64::INFINITY), Vector3::repeat(f64::NEG_INFINITY));
        for (at, _) in brain.indexed_iter().filter(|(_, b)| **b > 0) {
            let p = along([at.0, at.1, at.2]);
            (low, high) = (low.inf(&p), high.sup(&p));
        }
        if low[0] > high[0] {
            let end = image.shape().map(|n| n - 1);
            (low, high) = (along([0; 3]).inf(&along(end)), along([0; 3]).sup(&along(end)));
        }
        let mut affine = Matrix4::identity();
        affine.fixed_view_mut::<3, 3>(0, 0).copy_from(&(directions * spacing_mm));
        let begin = Vector3::from_fn(|axis, _| {
            let middle = f64::midpoint(low[axis], high[axis]);
            let begin = middle - spacing_mm * (shape[axis] as f64 - 1.0) / 2.0;
            (begin / spacing_mm).round() * spacing_mm
        });
        affine.fixed_view_mut::<3, 1>(0, 3).copy_from(&(first + directions * begin));
        Geometry::new(shape, affine)
    }
}

/// Share of the set voxels of a mask whose centres lie outside a grid; 0 for an empty mask.
pub(super) fn share_outside(mask: &Volume<u8>, grid: &Geometry) -> f64 {
    let Some(inverse) = grid.affine().try_inverse() else { return 0.0 };
    let map = inverse * mask.geometry().affine();
    let (mut set, mut outside) = (0_usize, 0_usize);
    for ((i, j, k), _) in mask.data().indexed_iter().filter(|(_, v)| **v > 0) {
        let at = map * Vector4::new(i as f64, j as f64, k as f64, 1.0);
        let inside = (0..3).all(|a| at[a] >= -0.5 && at[a] <= grid.shape()[a] as f64 - 0.5);
        set += 1;
        outside += usize::from(!inside);
    }
    if set == 0 { 0.0 } else { outside as f64 / set as f64 }
}

/// The rotation nearest to the axes of a grid: their directions, without the shear of a tilted gantry.
fn perpendicular(image: &Geometry) -> Matrix3<f64> {
    let spacing = image.spacing_mm();
    let axes = Matrix3::from_fn(|r, c| image.affine()[(r, c)] / spacing[c]);
    let svd = axes.svd(true, true);
    match (svd.u, svd.v_t) {
        (Some(u), Some(v_t)) => u * v_t,
        _ => axes,
    }
}

/// A map of probabilities on the working grid, brought onto the grid of the source: the mean over each
/// voxel's extent, and 0 where the working grid does not reach.
///
/// # Errors
/// None for valid grids.
pub fn restore_probability(
    probability: &Volume<f32>,
    source: &Geometry,
) -> Result<Volume<f32>, volume::Error> {
    Volume::new(source.clone(), resample::averaged(probability, source, 0.0))
}

/// A mask on the working grid, brought onto the grid of the source: set where at least half of a
/// voxel's extent is. A component too small for that keeps the one voxel that holds most of it, so that
/// no lesion a network found is lost between thick slices.
///
/// # Errors
/// None for valid grids.
pub fn restore_mask(mask: &Volume<u8>, source: &Geometry) -> Result<Volume<u8>, volume::Error> {
    let share = resample::averaged(&mask.map(|v| f32::from(u8::from(*v > 0))), source, 0.0);
    let mut restored = share.map(|v| u8::from(*v >= 0.5));
    let Some(inverse) = source.affine().try_inverse() else {
        return Volume::new(source.clone(), restored);
    };
    let map = inverse * mask.geometry().affine();
    let shape = source.shape();
    let nearest = |index: (usize, usize, usize)| {
        let at = map * Vector4::new(index.0 as f64, index.1 as f64, index.2 as f64, 1.0);
        let at = [at[0].round(), at[1].round(), at[2].round()];
        (0..3).all(|a| at[a] >= 0.0 && at[a] < shape[a] as f64).then(|| at.map(|v| v as usize))
    };
    let found = components(mask.data(), Connectivity::TwentySix);
    let mut kept = vec![false; found.list.len()];
    let mut best: Vec<Option<([usize; 3], f32)>> = vec![None; found.list.len()];
    for (index, label) in found.labels.indexed_iter() {
        let Some(slot) = (*label as usize).checked_sub(1) else { continue };
        let Some(at) = nearest(index) else { continue };
        if restored[at] > 0 {
            kept[slot] = true;
        } else if best[slot].is_none_or(|(_, most)| share[at] > most) {
            best[slot] = Some((at, share[at]));
        }
    }
    for (at, _) in best.into_iter().zip(kept).filter_map(|(best, kept)| best.filter(|_| !kept)) {
        restored[at] = 1;
    }
    Volume::new(source.clone(), restored)
}
