//! Closed planar contours: from polygons to the voxels of one slice, and back.
//!
//! Points are voxel indices `[i, j]`; a voxel's centre lies at whole numbers, its edges at halves.
//! [`trace`] follows voxel edges, so every centre is half a voxel away from every outline and
//! [`fill`] gives back exactly the mask that was traced, whatever the rounding in between.

use std::collections::HashSet;

use ndarray::{Array2, ArrayView2};

mod fill;
mod keyhole;

pub use fill::fill;

/// A point `[i, j]` in voxel indices of a slice.
pub type Point = [f64; 2];

/// The outline of one 4-connected part of a slice: simple polygons along voxel edges, without the
/// first point repeated at the end. Polygons may touch each other in corners.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    outer: Vec<Point>,
    holes: Vec<Vec<Point>>,
}

impl Outline {
    /// Around the part.
    pub fn outer(&self) -> &[Point] {
        &self.outer
    }

    /// Around what the part leaves out inside; in the opposite direction to the outer polygon.
    pub fn holes(&self) -> &[Vec<Point>] {
        &self.holes
    }

    /// One polygon for part and holes: each hole is joined by a channel of no width, the keyhole
    /// technique of PS3.3 C.8.8.6.3. Even-odd and winding rule both read it as the part.
    pub fn keyhole(&self) -> Vec<Point> {
        keyhole::join(&self.outer, &self.holes)
    }
}

/// Outlines of the voxels above 0 in a slice `[i, j]`, in the order of their first voxel.
pub fn trace(slice: ArrayView2<'_, u8>) -> Vec<Outline> {
    let (width, height) = slice.dim();
    let mut part = Array2::<u32>::zeros((width, height));
    let mut outlines = Vec::new();
    let mut stack = Vec::new();
    let mut voxels = Vec::new();
    for i in 0..width {
        for j in 0..height {
            if slice[[i, j]] == 0 || part[[i, j]] != 0 {
                continue;
            }
            let n = outlines.len() as u32 + 1;
            voxels.clear();
            part[[i, j]] = n;
            stack.push([i, j]);
            while let Some([i, j]) = stack.pop() {
                voxels.push([i, j]);
                for next in [[i.wrapping_sub(1), j], [i + 1, j], [i, j.wrapping_sub(1)], [i, j + 1]]
                {
                    if slice.get(next).is_some_and(|v| *v > 0) && part[next] == 0 {
                        part[next] = n;
                        stack.push(next);
                    }
                }
            }
            voxels.sort_unstable();
            outlines.push(outline(&part, n, &voxels));
        }
    }
    outlines
}

/// Directions of an edge around a part that lies to its left: +i, +j, -i, -j.
const STEPS: [[isize; 2]; 4] = [[1, 0], [0, 1], [-1, 0], [0, -1]];

/// The polygons around part `n`, whose voxels are given.
fn outline(part: &Array2<u32>, n: u32, voxels: &[[usize; 2]]) -> Outline {
    let inside = |i: isize, j: isize| {
        usize::try_from(i)
            .ok()
            .zip(usize::try_from(j).ok())
            .and_then(|at| part.get(at))
            .is_some_and(|p| *p == n)
    };
    // Every polygon has edges in direction +j, with a voxel of the part at lower i: one of them is
    // where the walk starts, and the voxel is remembered for each that was walked.
    let mut polygons = Vec::new();
    let mut walked = HashSet::new();
    for &[i, j] in voxels {
        let (i, j) = (i as isize, j as isize);
        if inside(i + 1, j) || walked.contains(&(i, j)) {
            continue;
        }
        let start = ([i + 1, j], 1usize);
        let (mut corner, mut towards) = start;
        let mut polygon = Vec::new();
        loop {
            if towards == 1 {
                walked.insert((corner[0] - 1, corner[1]));
            }
            corner = [corner[0] + STEPS[towards][0], corner[1] + STEPS[towards][1]];
            let before = towards;
            towards = turn(&inside, corner, towards);
            if towards != before {
                polygon.push([corner[0] as f64 - 0.5, corner[1] as f64 - 0.5]);
            }
            if (corner, towards) == start {
                break;
            }
        }
        polygons.push(polygon);
    }
    // A voxel of the part lies at lower i than any hole.
    let outer = (0..polygons.len()).min_by(|a, b| least(&polygons[*a], &polygons[*b])).unwrap_or(0);
    let outer = if polygons.is_empty() { Vec::new() } else { polygons.remove(outer) };
    Outline { outer, holes: polygons }
}

fn least(a: &[Point], b: &[Point]) -> std::cmp::Ordering {
    let low = |p: &[Point]| p.iter().map(|p| p[0]).fold(f64::INFINITY, f64::min);
    low(a).total_cmp(&low(b))
}

/// Where to go on from a corner. Where the part touches itself diagonally the walk goes straight
/// over to the other voxel (right turn), which keeps every polygon simple: the part is
/// 4-connected, so the two voxels left out there are not, and each gets a polygon of its own.
fn turn(inside: &impl Fn(isize, isize) -> bool, corner: [isize; 2], towards: usize) -> usize {
    let [di, dj] = STEPS[towards];
    // The voxels ahead, left and right of the direction of travel; left of [di, dj] is [-dj, di].
    let ahead = |side: isize| {
        let along = |step: isize, left: isize| (step + left * side - 1).div_euclid(2);
        inside(corner[0] + along(di, -dj), corner[1] + along(dj, di))
    };
    if ahead(-1) {
        (towards + 3) % 4
    } else if ahead(1) {
        towards
    } else {
        (towards + 1) % 4
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(polygons: &[Vec<Point>], shape: [usize; 2]) -> Array2<u8> {
        let mut mask = Array2::zeros(shape);
        fill(polygons, &mut mask.view_mut());
        mask
    }

    fn drawn(rows: &[&str]) -> Array2<u8> {
        Array2::from_shape_fn((rows[0].len(), rows.len()), |(i, j)| {
            u8::from(rows[j].as_bytes()[i] == b'#')
        })
    }

    fn area(polygon: &[Point]) -> f64 {
        let next = polygon.iter().cycle().skip(1);
        polygon.iter().zip(next).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum::<f64>() / 2.0
    }

    fn check(mask: &Array2<u8>) {
        let shape = [mask.dim().0, mask.dim().1];
        let outlines = trace(mask.view());
        let separate: Vec<_> = outlines
            .iter()
            .flat_map(|o| std::iter::once(o.outer.clone()).chain(o.holes.iter().cloned()))
            .collect();
        let keyhole: Vec<_> = outlines.iter().map(Outline::keyhole).collect();
        assert_eq!(&filled(&separate, shape), mask);
        assert_eq!(&filled(&keyhole, shape), mask);
        let voxels = mask.iter().filter(|v| **v > 0).count() as f64;
        assert_eq!(separate.iter().map(|p| area(p)).sum::<f64>(), voxels);
        assert_eq!(keyhole.iter().map(|p| area(p)).sum::<f64>(), voxels);
        for outline in &outlines {
            assert!(area(&outline.outer) > 0.0 && outline.holes.iter().all(|h| area(h) < 0.0));
        }
        for polygon in &separate {
            let mut corners: Vec<_> = polygon.iter().map(|p| p.map(|v| (v * 2.0) as i64)).collect();
            corners.sort_unstable();
            corners.dedup();
            assert_eq!(corners.len(), polygon.len(), "a corner is passed twice");
        }
    }

    #[test]
    fn holes_islands_and_diagonal_touches() {
        check(&drawn(&["#"]));
        check(&drawn(&["#.", ".#"]));
        check(&drawn(&[".#", "#."]));
        check(&drawn(&["#####", "#...#", "#.#.#", "#...#", "#####"]));
        check(&drawn(&["####", "#.##", "##.#", "####"]));
        check(&drawn(&["###.", "#.#.", "##.#", "..##"]));
        check(&drawn(&["..###", ".#.##", "#####", "##.#.", "###.."]));
        let ring = trace(drawn(&["###", "#.#", "###"]).view());
        assert_eq!((ring.len(), ring[0].holes.len(), ring[0].outer.len()), (1, 1, 4));
        // Outer corners, hole corners, the way in and back, which may go straight on into the hole.
        assert!((4 + 4 + 2..=4 + 4 + 3).contains(&ring[0].keyhole().len()));
        assert!(trace(Array2::zeros((3, 4)).view()).is_empty());
    }

    #[test]
    fn centres_on_the_outline_are_inside() {
        let square = vec![[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0]];
        let mask = filled(std::slice::from_ref(&square), [6, 6]);
        assert_eq!(mask.iter().filter(|v| **v > 0).count(), 12);
        let turned: Vec<_> = square.iter().rev().map(|p| [p[1], p[0]]).collect();
        assert_eq!(filled(&[turned], [6, 6]), mask.t());
        let diamond = vec![[3.0, 0.0], [6.0, 3.0], [3.0, 6.0], [0.0, 3.0]];
        assert_eq!(filled(&[diamond], [7, 7]).iter().filter(|v| **v > 0).count(), 25);
    }

    #[test]
    fn what_lies_beyond_the_slice_is_clipped() {
        let huge = vec![[-1e9, -1e9], [1e9, -1e9], [1e9, 1e9], [-1e9, 1e9]];
        assert!(filled(std::slice::from_ref(&huge), [5, 4]).iter().all(|v| *v == 1));
        assert!(filled(&[huge.clone(), huge], [5, 4]).iter().all(|v| *v == 0));
        let right = vec![[2.5, -9.0], [90.0, -9.0], [90.0, 90.0], [2.5, 90.0]];
        assert_eq!(filled(&[right], [5, 4]).iter().filter(|v| **v == 1).count(), 8);
        let nan = vec![[0.0, 0.0], [f64::NAN, 3.0], [3.0, 0.0]];
        assert!(filled(&[nan, vec![], vec![[1.5, 1.5]]], [5, 4]).iter().all(|v| *v == 0));
    }

    proptest! {
        #[test]
        fn filling_what_was_traced_gives_the_mask(
            (width, height) in (1usize..14, 1usize..14),
            share in 0.05f64..0.95,
            seed in any::<u64>(),
        ) {
            let mut state = seed | 1;
            let mask = Array2::from_shape_fn((width, height), |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                u8::from((state >> 33) as f64 / f64::from(1u32 << 31) < share)
            });
            check(&mask);
        }

        #[test]
        fn rounding_of_a_third_of_a_voxel_changes_nothing(
            cells in proptest::collection::vec(any::<bool>(), 64),
            shifts in proptest::collection::vec(-0.3f64..0.3, 2),
        ) {
            let mask = Array2::from_shape_vec((8, 8), cells).unwrap().map(|v| u8::from(*v));
            let moved: Vec<Vec<Point>> = trace(mask.view())
                .iter()
                .map(|o| o.keyhole().iter().map(|p| [p[0] + shifts[0], p[1] + shifts[1]]).collect())
                .collect();
            prop_assert_eq!(filled(&moved, [8, 8]), mask);
        }
    }
}
