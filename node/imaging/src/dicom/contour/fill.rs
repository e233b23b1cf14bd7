//! Polygons to the voxels of a slice.

use ndarray::{Array2, ArrayViewMut2, s};

use super::Point;

/// A centre this close to an outline, in voxels, lies on it.
const ON_OUTLINE_VOXELS: f64 = 1e-3;

/// Marks in a slice `[i, j]` the voxels whose centre an odd number of polygons surrounds, and those
/// whose centre lies on an outline (inside by PS3.3 C.8.8.6.3); the others are kept.
///
/// Polygons are closed from their last point to their first; what lies beyond the slice is clipped,
/// and a polygon with a point that is not finite marks nothing. Memory is that of the slice whatever
/// the number of points, time is points times the rows they cross.
pub fn fill(polygons: &[Vec<Point>], slice: &mut ArrayViewMut2<'_, u8>) {
    let (width, height) = slice.dim();
    let span = |axis: usize, end: usize| {
        let all = polygons.iter().flatten().map(|p| p[axis]);
        let (low, high) = all
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        whole_numbers(low, high, end)
    };
    let (columns, rows) = (span(0, width), span(1, height));
    if columns.is_empty() || rows.is_empty() {
        return;
    }
    let origin = [columns.start as f64, rows.start as f64];
    let mut plane = Plane::new([columns.len(), rows.len()]);
    let finite = |p: &&Vec<Point>| p.iter().flatten().all(|v| v.is_finite());
    for polygon in polygons.iter().filter(finite) {
        let mut before = polygon.last();
        for point in polygon {
            if let Some(before) = before {
                plane.edge(minus(*before, origin), minus(*point, origin));
            }
            before = Some(point);
        }
    }
    plane.mark(&mut slice.slice_mut(s![columns, rows]));
}

fn minus(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1]]
}

struct Plane {
    /// Parity of the outlines crossed between a voxel's lower neighbour along i and its centre.
    crossed: Array2<bool>,
    on_outline: Array2<bool>,
}

impl Plane {
    fn new(shape: [usize; 2]) -> Self {
        Self {
            crossed: Array2::from_elem(shape, false),
            on_outline: Array2::from_elem(shape, false),
        }
    }

    fn edge(&mut self, a: Point, b: Point) {
        let (width, height) = self.crossed.dim();
        let (low, high) = if a[1] <= b[1] { (a, b) } else { (b, a) };
        for j in whole_numbers(low[1], high[1], height) {
            let y = j as f64;
            // Half-open, so that a corner on a row of centres counts once.
            if low[1] <= y && y < high[1] {
                let x = low[0] + (y - low[1]) / (high[1] - low[1]) * (high[0] - low[0]);
                let first = x.ceil().max(0.0);
                if first < width as f64 {
                    self.crossed[[first as usize, j]] ^= true;
                }
                self.touch(x, x, j);
            } else if y < low[1] {
                self.touch(low[0], low[0], j);
            } else {
                self.touch(high[0], high[0], j);
            }
            if (low[1] - y).abs() <= ON_OUTLINE_VOXELS && (high[1] - y).abs() <= ON_OUTLINE_VOXELS {
                self.touch(a[0].min(b[0]), a[0].max(b[0]), j);
            }
        }
    }

    fn touch(&mut self, from: f64, to: f64, j: usize) {
        for i in whole_numbers(from, to, self.on_outline.dim().0) {
            self.on_outline[[i, j]] = true;
        }
    }

    fn mark(&self, slice: &mut ArrayViewMut2<'_, u8>) {
        let mut odd = vec![false; self.crossed.dim().1];
        for ((crossed, on), mut mask) in
            self.crossed.outer_iter().zip(self.on_outline.outer_iter()).zip(slice.outer_iter_mut())
        {
            for (((odd, crossed), on), voxel) in odd.iter_mut().zip(crossed).zip(on).zip(&mut mask)
            {
                *odd ^= *crossed;
                if *odd || *on {
                    *voxel = 1;
                }
            }
        }
    }
}

/// The whole numbers below `end` that lie between two numbers or as good as on one of them.
fn whole_numbers(from: f64, to: f64, end: usize) -> std::ops::Range<usize> {
    let first = (from - ON_OUTLINE_VOXELS).ceil().max(0.0);
    let last = (to + ON_OUTLINE_VOXELS).floor().min(end as f64 - 1.0);
    if last < first { 0..0 } else { first as usize..last as usize + 1 }
}
