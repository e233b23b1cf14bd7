//! One storage order for all images: i to the right, j to the front, k to the top, as nearly as the
//! grid's own axes allow. Axes are exchanged and reversed, never rotated, so no voxel is computed.

use nalgebra::{Matrix4, Vector3};
use ndarray::Array3;

use crate::volume::{Geometry, Volume};

const PERMUTATIONS: [[usize; 3]; 6] =
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// How the axes of a grid become canonical ones, and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AxisOrder {
    /// The stored axis that becomes canonical axis 0, 1, 2.
    pub from: [usize; 3],
    /// Whether it is reversed on the way.
    pub reversed: [bool; 3],
}

impl AxisOrder {
    /// The order that brings the axes of this grid nearest to right, anterior, superior.
    #[must_use]
    pub fn canonical(geometry: &Geometry) -> Self {
        let spacing = geometry.spacing_mm();
        let along =
            |axis: usize, column: usize| geometry.affine()[(axis, column)] / spacing[column];
        let fit = |from: &[usize; 3]| -> f64 { (0..3).map(|a| along(a, from[a]).abs()).sum() };
        let from = PERMUTATIONS
            .into_iter()
            .reduce(|best, other| if fit(&other) > fit(&best) { other } else { best })
            .unwrap_or([0, 1, 2]);
        Self { from, reversed: [0, 1, 2].map(|a| along(a, from[a]) < 0.0) }
    }

    /// The order that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let mut back = *self;
        for (axis, from) in self.from.into_iter().enumerate() {
            back.from[from] = axis;
            back.reversed[from] = self.reversed[axis];
        }
        back
    }

    /// This order, and another one after it.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        Self {
            from: next.from.map(|axis| self.from[axis]),
            reversed: [0, 1, 2].map(|a| self.reversed[next.from[a]] != next.reversed[a]),
        }
    }

    /// Where the stored axes lead: R or L, A or P, S or I for each, for example `LPS`.
    #[must_use]
    pub fn letters(&self) -> String {
        let back = self.inverse();
        let letter = |stored: usize| {
            let axis = back.from[stored];
            if back.reversed[stored] { ["L", "P", "I"][axis] } else { ["R", "A", "S"][axis] }
        };
        [0, 1, 2].map(letter).concat()
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.from == [0, 1, 2] && self.reversed == [false; 3]
    }

    /// The same voxels in space, with their axes in this order.
    ///
    /// # Errors
    /// None for a valid grid: the same columns in another order.
    pub fn grid(&self, geometry: &Geometry) -> Result<Geometry, crate::volume::Error> {
        let stored = geometry.shape();
        let shape = self.from.map(|axis| stored[axis]);
        let mut affine = Matrix4::identity();
        let mut origin: Vector3<f64> = geometry.affine().fixed_view::<3, 1>(0, 3).into_owned();
        for (axis, voxels) in shape.into_iter().enumerate() {
            let column: Vector3<f64> =
                geometry.affine().fixed_view::<3, 1>(0, self.from[axis]).into_owned();
            let sign = if self.reversed[axis] { -1.0 } else { 1.0 };
            if self.reversed[axis] {
                origin += column * (voxels as f64 - 1.0);
            }
            affine.fixed_view_mut::<3, 1>(0, axis).copy_from(&(column * sign));
        }
        affine.fixed_view_mut::<3, 1>(0, 3).copy_from(&origin);
        Geometry::new(shape, affine)
    }

    /// The same values with their axes in this order.
    ///
    /// # Errors
    /// None for a valid volume.
    pub fn apply<T: Clone>(&self, volume: Volume<T>) -> Result<Volume<T>, crate::volume::Error> {
        if self.is_identity() {
            return Ok(volume);
        }
        let (geometry, data) = volume.into_parts();
        Volume::new(self.grid(&geometry)?, self.turned(data))
    }

    fn turned<T>(&self, data: Array3<T>) -> Array3<T> {
        let mut data = data.permuted_axes(self.from);
        for (axis, reversed) in self.reversed.into_iter().enumerate() {
            if reversed {
                data.invert_axis(ndarray::Axis(axis));
            }
        }
        data
    }
}

/// Largest angle in degrees between an axis of the grid and the axis of the body nearest to it.
#[must_use]
pub fn oblique_degrees(geometry: &Geometry) -> f64 {
    let (order, spacing) = (AxisOrder::canonical(geometry), geometry.spacing_mm());
    (0..3)
        .map(|axis| {
            let stored = order.from[axis];
            let cosine = geometry.affine()[(axis, stored)].abs() / spacing[stored];
            cosine.min(1.0).acos().to_degrees()
        })
        .fold(0.0, f64::max)
}

/// A volume in canonical order.
///
/// # Errors
/// None for a valid volume.
pub fn canonical<T: Clone>(volume: Volume<T>) -> Result<Volume<T>, crate::volume::Error> {
    AxisOrder::canonical(volume.geometry()).apply(volume)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use nalgebra::{Rotation3, Vector4};
    use proptest::prelude::*;

    #[test]
    fn letters_say_where_stored_axes_lead() {
        let mut affine = Matrix4::zeros();
        // To the left, to the top, to the back: a coronal scan.
        (affine[(0, 0)], affine[(2, 1)], affine[(1, 2)], affine[(3, 3)]) = (-1.0, 2.0, -3.0, 1.0);
        let grid = Geometry::new([4, 5, 6], affine).unwrap();
        assert_eq!(AxisOrder::canonical(&grid).letters(), "LSP");
        assert!(oblique_degrees(&grid) < 1e-9);
        let turned = Rotation3::from_euler_angles(0.0, 0.0, 0.1).to_homogeneous() * affine;
        let grid = Geometry::new([4, 5, 6], turned).unwrap();
        assert!((oblique_degrees(&grid) - 0.1f64.to_degrees()).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn every_value_stays_where_it_is_in_space(
            angles in prop::array::uniform3(-3.1f64..3.1), spacing in prop::array::uniform3(0.4f64..6.0),
        ) {
            let mut affine = Rotation3::from_euler_angles(angles[0], angles[1], angles[2]).to_homogeneous();
            for (axis, s) in spacing.into_iter().enumerate() {
                affine.column_mut(axis).scale_mut(s);
            }
            let shape = [3, 4, 5];
            let data = Array3::from_shape_fn((3, 4, 5), |(i, j, k)| i * 100 + j * 10 + k);
            let source = Volume::new(Geometry::new(shape, affine).unwrap(), data).unwrap();
            let turned = canonical(source.clone()).unwrap();
            let order = AxisOrder::canonical(turned.geometry());
            prop_assert!(order.is_identity(), "canonical is a fixed point: {:?}", order);
            let back = turned.geometry().affine().try_inverse().unwrap();
            for ((i, j, k), value) in source.data().indexed_iter() {
                let world = source.geometry().affine() * Vector4::new(i as f64, j as f64, k as f64, 1.0);
                let at = back * world;
                let index = [0, 1, 2].map(|a| at[a].round());
                prop_assert!((0..3).all(|a| (at[a] - index[a]).abs() < 1e-9));
                prop_assert_eq!(turned.data()[index.map(|v| v as usize)], *value);
            }
        }
    }
}
