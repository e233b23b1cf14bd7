//! A grid in the scanner's space, and values on it.

use crate::orientation::AxisOrder;
use nalgebra::{Matrix3, Matrix4, Vector4};
use ndarray::Array3;

/// Two grids are the same when no corner is farther apart than this share of the smallest spacing.
const CORNER_TOLERANCE_VOXELS: f64 = 0.05;
/// Below this ratio of |det| to the product of the column lengths the axes are taken as collinear.
const MIN_AXIS_DETERMINANT: f64 = 1e-4;
/// Spacings outside this range in mm are a wrong unit or a broken header, not a head.
const SPACING_RANGE_MM: (f64, f64) = (1e-3, 1e3);

/// Why a grid or volume cannot be.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// An axis without voxels.
    #[error("building a grid of {0:?} voxels: an axis is empty")]
    EmptyAxis([usize; 3]),
    /// NaN or infinity in the affine, or a last row other than 0 0 0 1.
    #[error("building a grid: the affine is not a finite matrix with last row 0 0 0 1")]
    NotAffine,
    /// Zero or absurd spacing.
    #[error("building a grid: spacing {0:?} mm; every axis needs between 0.001 and 1000 mm")]
    Spacing([f64; 3]),
    /// Collinear axes.
    #[error("building a grid: the affine is singular, two axes point the same way")]
    Singular,
    /// The array is not of the grid's shape.
    #[error("putting {data:?} values on a grid of {grid:?} voxels")]
    Shape {
        /// Shape of the array.
        data: [usize; 3],
        /// Shape of the grid.
        grid: [usize; 3],
    },
}

/// Shape `[i, j, k]` and the affine from voxel indices to RAS millimetres.
///
/// Invariants: no empty axis, finite and non-singular affine, positive spacing.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    shape: [usize; 3],
    affine: Matrix4<f64>,
}

impl Geometry {
    /// A validated grid.
    pub fn new(shape: [usize; 3], affine: Matrix4<f64>) -> Result<Self, Error> {
        if shape.contains(&0) {
            return Err(Error::EmptyAxis(shape));
        }
        let last = affine.row(3);
        if affine.iter().any(|v| !v.is_finite())
            || last[0] != 0.0
            || last[1] != 0.0
            || last[2] != 0.0
            || last[3] != 1.0
        {
            return Err(Error::NotAffine);
        }
        let geometry = Self { shape, affine };
        let spacing = geometry.spacing_mm();
        if spacing.iter().any(|s| *s < SPACING_RANGE_MM.0 || *s > SPACING_RANGE_MM.1) {
            return Err(Error::Spacing(spacing));
        }
        let axes = geometry.axes();
        if axes.determinant().abs() < MIN_AXIS_DETERMINANT * spacing.iter().product::<f64>() {
            return Err(Error::Singular);
        }
        Ok(geometry)
    }

    /// An axis-aligned RAS grid whose centre is the origin.
    pub fn with_spacing(shape: [usize; 3], spacing_mm: [f64; 3]) -> Result<Self, Error> {
        let mut affine = Matrix4::identity();
        for axis in 0..3 {
            affine[(axis, axis)] = spacing_mm[axis];
            affine[(axis, 3)] = -spacing_mm[axis] * (shape[axis] as f64 - 1.0) / 2.0;
        }
        Self::new(shape, affine)
    }

    /// Voxels along i, j, k.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Voxel indices to RAS millimetres.
    pub fn affine(&self) -> &Matrix4<f64> {
        &self.affine
    }

    /// Distance between neighbouring voxel centres along i, j, k.
    pub fn spacing_mm(&self) -> [f64; 3] {
        let axes = self.axes();
        [0, 1, 2].map(|c| axes.column(c).norm())
    }

    /// Volume of one voxel.
    pub fn voxel_mm3(&self) -> f64 {
        self.axes().determinant().abs()
    }

    /// Number of voxels.
    pub fn voxels(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether both describe the same voxels in space.
    pub fn matches(&self, other: &Self) -> bool {
        self.difference(other).is_none()
    }

    /// What sets two grids apart, in words; `None` when they match.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.shape != other.shape {
            return Some(format!("{:?} voxels against {:?}", self.shape, other.shape));
        }
        let apart = self.corner_distance_mm(&other.affine);
        let least = self.spacing_mm().into_iter().fold(f64::INFINITY, f64::min);
        (apart > CORNER_TOLERANCE_VOXELS * least)
            .then(|| format!("the same shape, but corners {apart:.3} mm apart"))
    }

    /// Largest distance between a corner of this grid and the same corner under another affine.
    pub fn corner_distance_mm(&self, affine: &Matrix4<f64>) -> f64 {
        let end = self.shape.map(|n| n as f64 - 1.0);
        (0..8u8)
            .map(|c| {
                let pick = |axis: usize| if c >> axis & 1 == 1 { end[axis] } else { 0.0 };
                let p = Vector4::new(pick(0), pick(1), pick(2), 1.0);
                (self.affine * p - affine * p).norm()
            })
            .fold(0.0, f64::max)
    }

    fn axes(&self) -> Matrix3<f64> {
        self.affine.fixed_view::<3, 3>(0, 0).into_owned()
    }
}

/// Values on a grid; axis order i, j, k as in the file, C layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume<T> {
    geometry: Geometry,
    data: Array3<T>,
}

impl<T: Clone> Volume<T> {
    /// Puts values on a grid; they are brought into C layout.
    pub fn new(geometry: Geometry, data: Array3<T>) -> Result<Self, Error> {
        let (i, j, k) = data.dim();
        if [i, j, k] != geometry.shape {
            return Err(Error::Shape { data: [i, j, k], grid: geometry.shape });
        }
        let data =
            if data.is_standard_layout() { data } else { data.as_standard_layout().into_owned() };
        Ok(Self { geometry, data })
    }

    /// For values that were computed voxel by voxel on this very grid.
    pub(crate) fn on_grid_of(geometry: &Geometry, data: Array3<T>) -> Self {
        debug_assert_eq!(data.shape(), geometry.shape);
        Self { geometry: geometry.clone(), data }
    }

    /// The grid.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The values `[i, j, k]`.
    pub fn data(&self) -> &Array3<T> {
        &self.data
    }

    /// Grid and values.
    pub fn into_parts(self) -> (Geometry, Array3<T>) {
        (self.geometry, self.data)
    }

    /// The same values with their axes stored as those of `grid`, which may differ by exchanged and
    /// reversed axes.
    ///
    /// # Errors
    /// What sets the two grids apart, in words, if they do not hold the same voxels.
    pub fn stored_as(self, grid: &Geometry) -> Result<Self, String> {
        if grid.matches(&self.geometry) {
            return Ok(self);
        }
        let (own, wanted) = (AxisOrder::canonical(&self.geometry), AxisOrder::canonical(grid));
        let between = own.then(&wanted.inverse());
        let turned = between.grid(&self.geometry).map_err(|e| e.to_string())?;
        if !grid.matches(&turned) {
            let canonical = |order: AxisOrder, g: &Geometry| order.grid(g).ok();
            let apart = canonical(wanted, grid)
                .zip(canonical(own, &self.geometry))
                .and_then(|(a, b)| a.difference(&b));
            return Err(apart.unwrap_or_else(|| "other axes".to_owned()));
        }
        between.apply(self).map_err(|e| e.to_string())
    }

    /// Other values on the same grid.
    pub fn map<U: Clone>(&self, f: impl FnMut(&T) -> U) -> Volume<U> {
        Volume { geometry: self.geometry.clone(), data: self.data.map(f) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_grid() {
        let id = Matrix4::identity();
        assert_eq!(Geometry::new([4, 0, 4], id), Err(Error::EmptyAxis([4, 0, 4])));
        let mut bad = id;
        bad[(1, 2)] = f64::NAN;
        assert_eq!(Geometry::new([4; 3], bad), Err(Error::NotAffine));
        bad = id;
        bad[(2, 2)] = 0.0;
        assert!(matches!(Geometry::new([4; 3], bad), Err(Error::Spacing(_))));
        bad[(0, 2)] = 1.0;
        assert_eq!(Geometry::new([4; 3], bad), Err(Error::Singular));
    }

    #[test]
    fn spacing_of_an_oblique_grid() {
        let rotation = nalgebra::Rotation3::from_euler_angles(0.3, -0.2, 0.7);
        let mut affine = rotation.to_homogeneous();
        for (axis, s) in [0.5, 0.8, 3.0].into_iter().enumerate() {
            affine.column_mut(axis).scale_mut(s);
        }
        let geometry = Geometry::new([10, 11, 12], affine).unwrap();
        let spacing = geometry.spacing_mm();
        assert!((spacing[0] - 0.5).abs() < 1e-12 && (spacing[2] - 3.0).abs() < 1e-12);
        assert!((geometry.voxel_mm3() - 1.2).abs() < 1e-12);
    }

    #[test]
    fn matching_tolerates_rounding_only() {
        let a = Geometry::with_spacing([10; 3], [1.0; 3]).unwrap();
        let mut moved = *a.affine();
        moved[(0, 3)] += 0.01;
        assert!(a.matches(&Geometry::new([10; 3], moved).unwrap()));
        moved[(0, 3)] += 0.5;
        assert!(
            a.difference(&Geometry::new([10; 3], moved).unwrap()).unwrap().contains("mm apart")
        );
    }
}
