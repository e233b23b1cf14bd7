//! Planes of RAS space and the pixels on them.

use nalgebra::{Matrix4, Vector3, Vector4};
use ndarray::Array3;

use crate::volume::Geometry;

/// A direction of looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// Constant S, seen from the feet.
    Axial,
    /// Constant A, seen from the front.
    Coronal,
    /// Constant R, seen from the patient's left.
    Sagittal,
}

impl Plane {
    /// The order of a row of pictures.
    pub const ALL: [Self; 3] = [Self::Axial, Self::Coronal, Self::Sagittal];

    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Axial => "axial",
            Self::Coronal => "coronal",
            Self::Sagittal => "sagittal",
        }
    }

    /// RAS direction to the right and downwards.
    pub(super) fn directions(self) -> [Vector3<f64>; 2] {
        match self {
            Self::Axial => [-Vector3::x(), -Vector3::y()],
            Self::Coronal => [-Vector3::x(), -Vector3::z()],
            Self::Sagittal => [-Vector3::y(), -Vector3::z()],
        }
    }

    /// Letters at the left, right, top and bottom edge.
    pub(super) const fn letters(self) -> [&'static str; 4] {
        match self {
            Self::Axial => ["R", "L", "A", "P"],
            Self::Coronal => ["R", "L", "S", "I"],
            Self::Sagittal => ["A", "P", "S", "I"],
        }
    }
}

/// Square pixels on a plane: the middle of the picture lies at `centre_mm`.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) plane: Plane,
    pub(super) centre_mm: [f64; 3],
    /// Width, height.
    pub(super) pixels: [u32; 2],
    pub(super) mm_per_pixel: f64,
}

impl View {
    /// Pixel coordinates `(x, y, 0, 1)`, centre of the first pixel at 0, to RAS millimetres.
    fn to_ras(self) -> Matrix4<f64> {
        let [right, down] = self.plane.directions().map(|d| d * self.mm_per_pixel);
        let half = self.pixels.map(|n| (f64::from(n) - 1.0) / 2.0);
        let origin = Vector3::from(self.centre_mm) - right * half[0] - down * half[1];
        let mut matrix = Matrix4::identity();
        for (column, vector) in [(0, right), (1, down), (3, origin)] {
            matrix.fixed_view_mut::<3, 1>(0, column).copy_from(&vector);
        }
        matrix
    }

    /// Pixel coordinates of a point of RAS space, projected onto the plane.
    pub(super) fn pixel_of(self, point_mm: [f64; 3]) -> [f64; 2] {
        let from_centre = Vector3::from(point_mm) - Vector3::from(self.centre_mm);
        let directions = self.plane.directions();
        [0, 1].map(|n| {
            from_centre.dot(&directions[n]) / self.mm_per_pixel
                + (f64::from(self.pixels[n]) - 1.0) / 2.0
        })
    }

    /// Calls `put(x, y, index)` for every pixel within the grid, with its voxel coordinates.
    fn each(self, geometry: &Geometry, mut put: impl FnMut(usize, usize, [f64; 3])) {
        // A `Geometry` is never singular.
        let Some(inverse) = geometry.affine().try_inverse() else { return };
        let to_voxel = inverse * self.to_ras();
        let end = geometry.shape().map(|n| n as f64 - 0.5);
        for y in 0..self.pixels[1] {
            for x in 0..self.pixels[0] {
                let at = to_voxel * Vector4::new(f64::from(x), f64::from(y), 0.0, 1.0);
                let at = [at.x, at.y, at.z];
                if (0..3).all(|n| at[n] >= -0.5 && at[n] < end[n]) {
                    put(x as usize, y as usize, at);
                }
            }
        }
    }

    /// Values of the nearest voxels, row by row; 0 outside the grid.
    pub(super) fn nearest(self, geometry: &Geometry, data: &Array3<u8>) -> Vec<u8> {
        let width = self.pixels[0] as usize;
        let mut out = vec![0; width * self.pixels[1] as usize];
        self.each(geometry, |x, y, at| {
            let nearest = at.map(|v| (v + 0.5).floor().max(0.0) as usize);
            out[y * width + x] = data.get(nearest).copied().unwrap_or(0);
        });
        out
    }

    /// Linearly interpolated values, row by row; `None` outside the grid.
    pub(super) fn linear(self, geometry: &Geometry, data: &Array3<f32>) -> Vec<Option<f32>> {
        let width = self.pixels[0] as usize;
        let shape = geometry.shape();
        let mut out = vec![None; width * self.pixels[1] as usize];
        self.each(geometry, |x, y, at| {
            let at = [0, 1, 2].map(|n| at[n].clamp(0.0, shape[n] as f64 - 1.0));
            let low = at.map(|v| v.floor() as usize);
            let share = [0, 1, 2].map(|n| at[n] - low[n] as f64);
            let mut sum = 0.0;
            for corner in 0..8usize {
                let bit = |n: usize| corner >> n & 1;
                let weight: f64 =
                    (0..3).map(|n| if bit(n) == 1 { share[n] } else { 1.0 - share[n] }).product();
                let voxel = [0, 1, 2].map(|n| (low[n] + bit(n)).min(shape[n] - 1));
                sum += weight * f64::from(data[voxel]);
            }
            out[y * width + x] = Some(sum as f32);
        });
        out
    }
}
