//! Values of a grid at the voxels of another one, wherever both lie in space.
//!
//! A voxel's value stands for its centre. Up to half a voxel outside the outermost centres a grid still
//! has values, those of its border, as in ITK.

use nalgebra::{Matrix4, Vector3};
use ndarray::{Array3, ArrayView3};
use rayon::prelude::*;

use crate::volume::{Geometry, Volume};

/// Most points averaged along one axis of a voxel: a slice of 8 mm on a grid of 1 mm.
const MAX_POINTS_PER_AXIS: usize = 8;
/// Rounding of an index that is a whole number in exact arithmetic: identical grids give identical values.
const INDEX_ROUNDING: f64 = 1e-6;

/// Indices of one grid as indices of another.
#[derive(Debug, Clone, Copy)]
struct Map {
    columns: [Vector3<f64>; 3],
    origin: Vector3<f64>,
}

impl Map {
    /// `None` where `from` has no inverse, which no valid grid is.
    fn new(onto: &Geometry, from: &Geometry) -> Option<Self> {
        let m: Matrix4<f64> = from.affine().try_inverse()? * onto.affine();
        let column = |c: usize| m.fixed_view::<3, 1>(0, c).into_owned();
        Some(Self { columns: [column(0), column(1), column(2)], origin: column(3) })
    }

    fn at(&self, index: [f64; 3]) -> Vector3<f64> {
        self.origin
            + self.columns[0] * index[0]
            + self.columns[1] * index[1]
            + self.columns[2] * index[2]
    }
}

/// Cell and share of the next one along one axis of `n` voxels; `None` outside.
fn cell(at: f64, n: usize) -> Option<(usize, usize, f32)> {
    let last = (n - 1) as f64;
    if !(at >= -0.5 - INDEX_ROUNDING && at <= last + 0.5 + INDEX_ROUNDING) {
        return None;
    }
    let at = at.clamp(0.0, last);
    let whole = at.round();
    let at = if (at - whole).abs() < INDEX_ROUNDING { whole } else { at };
    let low = at.floor();
    Some((low as usize, ((low + 1.0).min(last)) as usize, (at - low) as f32))
}

/// Trilinear interpolation at a fractional index; `None` outside.
pub(crate) fn trilinear(data: &ArrayView3<'_, f32>, at: Vector3<f64>) -> Option<f32> {
    let (ni, nj, nk) = data.dim();
    let (i0, i1, fi) = cell(at[0], ni)?;
    let (j0, j1, fj) = cell(at[1], nj)?;
    let (k0, k1, fk) = cell(at[2], nk)?;
    let line = |i, j| data[[i, j, k0]] + fk * (data[[i, j, k1]] - data[[i, j, k0]]);
    let plane = |i| {
        let low = line(i, j0);
        low + fj * (line(i, j1) - low)
    };
    let low = plane(i0);
    Some(low + fi * (plane(i1) - low))
}

/// A value at a point in RAS mm, by trilinear interpolation; `None` outside the grid.
#[must_use]
pub fn value_at(volume: &Volume<f32>, ras_mm: [f64; 3]) -> Option<f32> {
    let inverse = volume.geometry().affine().try_inverse()?;
    let [x, y, z] = ras_mm;
    let at = inverse * nalgebra::Vector4::new(x, y, z, 1.0);
    trilinear(&volume.data().view(), at.xyz())
}

/// The volume on another grid, by trilinear interpolation; `outside` where it has no values.
#[must_use]
pub fn linear(volume: &Volume<f32>, onto: &Geometry, outside: f32) -> Array3<f32> {
    let data = volume.data().view();
    sampled(volume.geometry(), onto, outside, |at| trilinear(&data, at))
}

/// The volume on another grid, each voxel with the value of the nearest one; `outside` where there is none.
#[must_use]
pub fn nearest<T: Copy + Send + Sync>(
    volume: &Volume<T>,
    onto: &Geometry,
    outside: T,
) -> Array3<T> {
    let data = volume.data();
    let shape = volume.geometry().shape();
    sampled(volume.geometry(), onto, outside, |at| {
        let mut index = [0; 3];
        for axis in 0..3 {
            let (low, high, share) = cell(at[axis], shape[axis])?;
            index[axis] = if share < 0.5 { low } else { high };
        }
        data.get(index).copied()
    })
}

/// The volume on a coarser grid: each voxel the mean over its own extent, so that what is smaller
/// than a voxel counts by its share. `outside` counts where the volume has no values.
#[must_use]
pub fn averaged(volume: &Volume<f32>, onto: &Geometry, outside: f32) -> Array3<f32> {
    let Some(map) = Map::new(onto, volume.geometry()) else {
        return Array3::from_elem(onto.shape(), outside);
    };
    // One point for each voxel of the volume that one step on the other grid passes.
    let points = map
        .columns
        .map(|step| ((step.amax() - 0.01).ceil() as usize).clamp(1, MAX_POINTS_PER_AXIS));
    if points == [1; 3] {
        return linear(volume, onto, outside);
    }
    let offset = |n: usize, axis: usize| (n as f64 + 0.5) / points[axis] as f64 - 0.5;
    let mut offsets = Vec::with_capacity(points.iter().product());
    for i in 0..points[0] {
        for j in 0..points[1] {
            for k in 0..points[2] {
                let index = [offset(i, 0), offset(j, 1), offset(k, 2)];
                offsets.push(map.at(index) - map.origin);
            }
        }
    }
    let data = volume.data().view();
    sampled(volume.geometry(), onto, outside, |at| {
        let sum: f32 = offsets.iter().map(|o| trilinear(&data, at + o).unwrap_or(outside)).sum();
        Some(sum / offsets.len() as f32)
    })
}

fn sampled<T: Copy + Send + Sync>(
    from: &Geometry,
    onto: &Geometry,
    outside: T,
    value: impl Fn(Vector3<f64>) -> Option<T> + Sync,
) -> Array3<T> {
    let [_, nj, nk] = onto.shape();
    let mut out = Array3::from_elem(onto.shape(), outside);
    let (Some(map), Some(values)) = (Map::new(onto, from), out.as_slice_mut()) else { return out };
    values.par_chunks_mut(nj * nk).enumerate().for_each(|(i, slab)| {
        for (j, line) in slab.chunks_exact_mut(nk).enumerate() {
            let start = map.at([i as f64, j as f64, 0.0]);
            for (k, to) in line.iter_mut().enumerate() {
                if let Some(v) = value(start + map.columns[2] * k as f64) {
                    *to = v;
                }
            }
        }
    });
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use nalgebra::Rotation3;

    fn ramp() -> Volume<f32> {
        let mut affine = Rotation3::from_euler_angles(0.2, -0.3, 0.5).to_homogeneous();
        for (axis, s) in [0.8, 1.1, 3.0].into_iter().enumerate() {
            affine.column_mut(axis).scale_mut(s);
        }
        let geometry = Geometry::new([9, 8, 7], affine).unwrap();
        let world = |i: usize, j: usize, k: usize| {
            affine * nalgebra::Vector4::new(i as f64, j as f64, k as f64, 1.0)
        };
        let data = Array3::from_shape_fn((9, 8, 7), |(i, j, k)| {
            let p = world(i, j, k);
            (2.0 * p[0] - 3.0 * p[1] + 0.5 * p[2] + 7.0) as f32
        });
        Volume::new(geometry, data).unwrap()
    }

    #[test]
    fn a_linear_function_of_space_is_kept_on_any_grid() {
        let ramp = ramp();
        let onto = Geometry::with_spacing([12, 12, 12], [0.7; 3]).unwrap();
        let got = linear(&ramp, &onto, f32::NAN);
        let inverse = ramp.geometry().affine().try_inverse().unwrap();
        let mut inside = 0;
        for ((i, j, k), value) in got.indexed_iter() {
            let p = onto.affine() * nalgebra::Vector4::new(i as f64, j as f64, k as f64, 1.0);
            let at = inverse * p;
            let within = |slack: f64| {
                (0..3).all(|a| {
                    at[a] >= -slack && at[a] <= ramp.geometry().shape()[a] as f64 - 1.0 + slack
                })
            };
            if within(0.0) {
                let expected = (2.0 * p[0] - 3.0 * p[1] + 0.5 * p[2] + 7.0) as f32;
                assert!((value - expected).abs() < 1e-4, "{value} against {expected}");
                assert!((value_at(&ramp, [p[0], p[1], p[2]]).unwrap() - expected).abs() < 1e-4);
                inside += 1;
            }
            assert_eq!(value.is_nan(), !within(0.5), "values up to half a voxel outside");
        }
        assert!(inside > 100, "{inside}");
    }

    #[test]
    fn the_same_grid_gives_the_same_values() {
        let ramp = ramp();
        assert_eq!(linear(&ramp, ramp.geometry(), 0.0), *ramp.data());
        assert_eq!(nearest(&ramp, ramp.geometry(), 0.0), *ramp.data());
        assert_eq!(averaged(&ramp, ramp.geometry(), 0.0), *ramp.data());
    }

    #[test]
    fn a_thick_slice_is_the_mean_over_its_extent() {
        let fine = Geometry::with_spacing([4, 4, 12], [1.0; 3]).unwrap();
        let data = Array3::from_shape_fn((4, 4, 12), |(_, _, k)| if k < 5 { 1.0 } else { 0.0 });
        let thick = Geometry::with_spacing([4, 4, 2], [1.0, 1.0, 6.0]).unwrap();
        let got = averaged(&Volume::new(fine, data).unwrap(), &thick, 0.0);
        assert!((got[[1, 1, 0]] - 5.0 / 6.0).abs() < 1e-6 && got[[1, 1, 1]] == 0.0, "{got:?}");
    }
}
