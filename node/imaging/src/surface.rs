//! Distances between the surfaces of two masks.
//!
//! The definitions of the public `surface-distance` tool (Nikolov et al. 2018): a surface element
//! sits at every corner shared by 2×2×2 voxels that are not all inside or all outside, its area is
//! that of the marching-cubes surface within them, and percentiles weigh elements by their area.

use std::sync::OnceLock;

use nalgebra::Vector3;
use ndarray::{Array3, ArrayView3, s};

use crate::bounds::Bounds;
use crate::nearest::Nearest;

type Triangle = [Vector3<f64>; 3];

/// Surface elements of one mask with their distance to the other's, nearest first.
#[derive(Debug, Clone, Default)]
struct Elements {
    distance_mm: Vec<f64>,
    area_mm2: Vec<f64>,
}

impl Elements {
    fn area(&self) -> f64 {
        pairwise_sum(&self.area_mm2)
    }

    fn area_within(&self, tolerance_mm: f64) -> f64 {
        let near = self.distance_mm.partition_point(|d| *d <= tolerance_mm);
        pairwise_sum(&self.area_mm2[..near])
    }

    /// Flat masks have elements of one size, so that a percentile may fall exactly between two of
    /// them. Which one it is then hangs on rounding; adding up in the tool's order gives the tool's.
    fn percentile(&self, percent: f64) -> Option<f64> {
        let (all, mut sum) = (self.area(), 0.0);
        for (distance, area) in self.distance_mm.iter().zip(&self.area_mm2) {
            sum += area;
            if sum / all >= percent / 100.0 && percent < 100.0 {
                return Some(*distance);
            }
        }
        self.distance_mm.last().copied()
    }

    fn mean(&self) -> Option<f64> {
        let sum: f64 = self.distance_mm.iter().zip(&self.area_mm2).map(|(d, a)| d * a).sum();
        (!self.distance_mm.is_empty()).then(|| sum / self.area())
    }
}

/// Distances in both directions between two surfaces.
#[derive(Debug, Clone)]
pub struct SurfaceDistances {
    reference: Elements,
    prediction: Elements,
}

impl SurfaceDistances {
    /// Measures two masks of the same shape (above 0 is inside).
    pub fn new(
        reference: ArrayView3<u8>,
        prediction: ArrayView3<u8>,
        spacing_mm: [f64; 3],
    ) -> Self {
        let areas = areas_mm2(spacing_mm);
        let (reference, prediction) =
            rayon::join(|| Border::of(reference, &areas), || Border::of(prediction, &areas));
        let (reference, prediction) = rayon::join(
            || reference.elements(&prediction, spacing_mm),
            || prediction.elements(&reference, spacing_mm),
        );
        Self { reference, prediction }
    }

    /// Share of both surfaces that lies within the tolerance of the other.
    /// 0 when one mask is empty, `None` when both are.
    pub fn dice_at(&self, tolerance_mm: f64) -> Option<f64> {
        let all = self.reference.area() + self.prediction.area();
        let near =
            self.reference.area_within(tolerance_mm) + self.prediction.area_within(tolerance_mm);
        (all > 0.0).then(|| near / all)
    }

    /// The larger of both directions' area-weighted percentiles; 100 is the Hausdorff distance.
    /// `None` when a mask is empty.
    pub fn hausdorff_mm(&self, percent: f64) -> Option<f64> {
        let larger = self.reference.percentile(percent)?.max(self.prediction.percentile(percent)?);
        larger.is_finite().then_some(larger)
    }

    /// Area-weighted mean distance from the reference to the prediction, and back.
    /// `None` where it is not defined.
    pub fn average_mm(&self) -> [Option<f64>; 2] {
        [&self.reference, &self.prediction].map(|e| e.mean().filter(|d| d.is_finite()))
    }
}

/// Surface elements of one mask: the corner of the voxel grid where each sits, and its area.
#[derive(Default)]
struct Border {
    corners: Vec<[i32; 3]>,
    area_mm2: Vec<f64>,
}

impl Border {
    fn of(mask: ArrayView3<u8>, areas: &[f64; 256]) -> Self {
        let mut border = Self::default();
        let Some(bounds) = Bounds::of(mask) else {
            return border;
        };
        let mask = bounds.view(mask);
        let (ni, nj, nk) = mask.dim();
        let mut inside = Array3::<u8>::zeros((ni + 2, nj + 2, nk + 2));
        let mut middle = inside.slice_mut(s![1..=ni, 1..=nj, 1..=nk]);
        for (mut inside, line) in middle.rows_mut().into_iter().zip(mask.rows()) {
            inside.zip_mut_with(&line, |inside, v| *inside = u8::from(*v > 0));
        }
        let lines = inside.as_slice().unwrap_or_default();
        let line = |i: usize, j: usize| &lines[(i * (nj + 2) + j) * (nk + 2)..][..nk + 2];
        // Corner [i, j, k] lies before voxel [i, j, k] of the mask, which is the one behind it in
        // `inside`; bit n of its code is the voxel at [n & 1, n >> 1 & 1, n >> 2] from there.
        let mut codes = vec![0u8; nk + 1];
        for i in 0..=ni {
            for j in 0..=nj {
                codes.fill(0);
                for n in 0..4 {
                    let line = line(i + (n & 1), j + (n >> 1));
                    for (code, (low, high)) in codes.iter_mut().zip(line.iter().zip(&line[1..])) {
                        *code |= low << n | high << (n + 4);
                    }
                }
                for (k, code) in codes.iter().enumerate().filter(|(_, c)| !matches!(c, 0 | 255)) {
                    let [a, b, c] = bounds.min;
                    border.corners.push([(a + i) as i32, (b + j) as i32, (c + k) as i32]);
                    border.area_mm2.push(areas[usize::from(*code)]);
                }
            }
        }
        border
    }

    /// With the distance of each to the other's nearest.
    fn elements(&self, other: &Self, spacing_mm: [f64; 3]) -> Elements {
        let squares = Nearest::new(other.corners.clone(), spacing_mm).squares_mm2(&self.corners);
        let mut list: Vec<_> =
            squares.iter().map(|square| square.sqrt()).zip(self.area_mm2.iter().copied()).collect();
        list.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let (distance_mm, area_mm2) = list.into_iter().unzip();
        Elements { distance_mm, area_mm2 }
    }
}

/// The sum of numpy: pairs of halves down to 128 values, which eight sums take in turns.
fn pairwise_sum(values: &[f64]) -> f64 {
    let n = values.len();
    if n > 128 {
        let half = n / 2 - n / 2 % 8;
        return pairwise_sum(&values[..half]) + pairwise_sum(&values[half..]);
    }
    let (eights, rest) = values.as_chunks::<8>();
    let Some((first, others)) = eights.split_first() else {
        return rest.iter().fold(0.0, |sum, v| sum + v);
    };
    let mut r = *first;
    for eight in others {
        r.iter_mut().zip(eight).for_each(|(r, v)| *r += v);
    }
    let sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    rest.iter().fold(sum, |sum, v| sum + v)
}

fn areas_mm2([x, y, z]: [f64; 3]) -> [f64; 256] {
    static NORMALS: OnceLock<Vec<Vec<Vector3<f64>>>> = OnceLock::new();
    let table = NORMALS
        .get_or_init(|| (0..=255).map(|c| triangles(c).iter().map(normal).collect()).collect());
    let mut areas = [0.0; 256];
    for (area, normals) in areas.iter_mut().zip(table) {
        *area = normals
            .iter()
            .map(|n| Vector3::new(n.x * y * z, n.y * x * z, n.z * x * y).norm())
            .sum();
    }
    areas
}

/// Perpendicular to a triangle, as long as its area.
fn normal([a, b, c]: &Triangle) -> Vector3<f64> {
    (b - a).cross(&(c - a)) / 2.0
}

/// Marching-cubes surface of a unit cube whose corners are inside where `code` has a bit.
///
/// The surface crosses edges at their middle. On a face with two opposite corners inside, the
/// corners of the side that holds at most half of the cube are cut off one by one. The polygons
/// that result are cut into triangles such that the area is largest.
fn triangles(code: u8) -> Vec<Triangle> {
    let minority = code.count_ones() <= 4;
    let inside = |c: [usize; 3]| code >> (c[0] | c[1] << 1 | c[2] << 2) & 1 == 1;
    let middle = |a: [usize; 3], b: [usize; 3]| [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
    let mut links: Vec<[[usize; 3]; 2]> = Vec::new();
    for axis in 0..3 {
        for side in 0..2 {
            let ring = [[0, 0], [0, 1], [1, 1], [1, 0]].map(|[u, v]| {
                let mut c = [0; 3];
                (c[axis], c[(axis + 1) % 3], c[(axis + 2) % 3]) = (side, u, v);
                c
            });
            let edge = |n: usize| middle(ring[n % 4], ring[(n + 1) % 4]);
            let crossed: Vec<usize> =
                (0..4).filter(|n| inside(ring[*n]) != inside(ring[(n + 1) % 4])).collect();
            match crossed[..] {
                [a, b] => links.push([edge(a), edge(b)]),
                [_, _, _, _] => links.extend(
                    (0..4).filter(|n| inside(ring[*n]) == minority).map(|n| [edge(n + 3), edge(n)]),
                ),
                _ => {}
            }
        }
    }
    let mut result = Vec::new();
    while let Some([first, mut end]) = links.pop() {
        let mut polygon = vec![first, end];
        while let Some(n) = links.iter().position(|l| l.contains(&end)) {
            let [a, b] = links.swap_remove(n);
            end = if a == end { b } else { a };
            if end == first {
                break;
            }
            polygon.push(end);
        }
        let points: Vec<_> =
            polygon.iter().map(|p| Vector3::from(p.map(|x| x as f64 / 2.0))).collect();
        result.extend(largest_triangulation(&points).1);
    }
    result
}

fn largest_triangulation(points: &[Vector3<f64>]) -> (f64, Vec<Triangle>) {
    let [first, middle @ .., last] = points else {
        return (0.0, Vec::new());
    };
    let mut best = (0.0, Vec::new());
    for (n, apex) in middle.iter().enumerate() {
        let triangle = [*first, *apex, *last];
        let (left, right) =
            (largest_triangulation(&points[..n + 2]), largest_triangulation(&points[n + 1..]));
        let area = left.0 + right.0 + normal(&triangle).norm();
        if area > best.0 {
            best = (area, [left.1, right.1, vec![triangle]].concat());
        }
    }
    best
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn areas_of_well_known_cubes() {
        let areas = areas_mm2([1.0; 3]);
        let close = |code: usize, area: f64| {
            assert!((areas[code] - area).abs() < 1e-12, "{code}: {}", areas[code])
        };
        close(0, 0.0);
        close(255, 0.0);
        close(0b1, 3f64.sqrt() / 8.0);
        close(0b11, 0.5f64.sqrt());
        close(0b1111, 1.0);
        close(0b1001, 3f64.sqrt() / 4.0);
        for code in 0..256 {
            assert!((areas[code] - areas[255 - code]).abs() < 1e-12, "complement of {code}");
        }
    }

    #[test]
    fn a_stretched_cube_has_a_stretched_face() {
        assert!((areas_mm2([1.0, 2.0, 3.5])[0b1111] - 2.0).abs() < 1e-12);
    }

    #[test]
    fn two_planes_five_apart() {
        let plane = |at: usize| Array3::from_shape_fn((12, 4, 4), |(i, _, _)| u8::from(i == at));
        let d = SurfaceDistances::new(plane(2).view(), plane(7).view(), [2.0, 1.0, 1.0]);
        assert!((d.hausdorff_mm(100.0).unwrap() - 10.0).abs() < 1e-9);
        assert_eq!(d.dice_at(7.9), Some(0.0));
        assert_eq!(d.dice_at(10.0), Some(1.0));
    }

    #[test]
    fn empty_masks_have_no_distance() {
        let empty = Array3::<u8>::zeros((3, 3, 3));
        let full = Array3::<u8>::ones((3, 3, 3));
        let none = SurfaceDistances::new(empty.view(), empty.view(), [1.0; 3]);
        assert_eq!(
            (none.dice_at(1.0), none.hausdorff_mm(95.0), none.average_mm()),
            (None, None, [None, None])
        );
        let one = SurfaceDistances::new(full.view(), empty.view(), [1.0; 3]);
        assert_eq!(
            (one.dice_at(1.0), one.hausdorff_mm(95.0), one.average_mm()),
            (Some(0.0), None, [None, None])
        );
    }
}
