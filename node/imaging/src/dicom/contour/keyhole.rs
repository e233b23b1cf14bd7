//! An outline with holes as one polygon.

use std::collections::BTreeMap;

use super::Point;

/// Joins each hole by a channel of no width to what lies to the left of it.
pub(super) fn join(outer: &[Point], holes: &[Vec<Point>]) -> Vec<Point> {
    if holes.is_empty() {
        return outer.to_vec();
    }
    let mut walks: Vec<Vec<Corner>> = holes.iter().map(|hole| corners(hole)).collect();
    for hole in &mut walks {
        let first = (0..hole.len()).min_by_key(|n| hole[*n]).unwrap_or(0);
        hole.rotate_left(first);
    }
    // What is met first to the left of a hole was then joined before it.
    walks.sort_unstable_by_key(|hole| hole.first().copied());
    let mut chain = Chain::default();
    chain.add(&corners(outer));
    for hole in &walks {
        chain.join(hole);
    }
    chain.polygon()
}

/// A corner `[a, b]` of voxels is the point `[a - 1/2, b - 1/2]`.
type Corner = [i64; 2];

/// All corners of voxels that a polygon along voxel edges passes.
fn corners(polygon: &[Point]) -> Vec<Corner> {
    let at = |n: usize| polygon[n % polygon.len()].map(|v| (v + 0.5).round() as i64);
    let mut corners = Vec::new();
    for n in 0..polygon.len() {
        let (mut here, there) = (at(n), at(n + 1));
        while here != there {
            corners.push(here);
            here = [0, 1].map(|axis| here[axis] + (there[axis] - here[axis]).signum());
        }
    }
    corners
}

/// A closed walk over corners that grows by detours.
#[derive(Default)]
struct Chain {
    corners: Vec<Corner>,
    next: Vec<usize>,
    /// `[b, a]` of each corner, and one place in the walk where it is passed.
    places: BTreeMap<Corner, usize>,
}

impl Chain {
    /// Adds a closed walk of its own; gives its first and last place.
    fn add(&mut self, walk: &[Corner]) -> (usize, usize) {
        let start = self.corners.len();
        for (n, corner) in walk.iter().enumerate() {
            self.corners.push(*corner);
            self.next.push(start + (n + 1) % walk.len());
            self.places.insert([corner[1], corner[0]], start + n);
        }
        (start, self.corners.len().saturating_sub(1))
    }

    /// Enters a hole at its first corner, which is its leftmost, from the nearest corner of the walk
    /// to the left of it. Between the two lies nothing but the part.
    fn join(&mut self, hole: &[Corner]) {
        let Some([a, b]) = hole.first().copied() else { return };
        let Some(from) = self.places.range([b, i64::MIN]..=[b, a]).next_back().map(|p| *p.1) else {
            return;
        };
        let after = self.next[from];
        let (first, last) = self.add(hole);
        let back = self.corners.len();
        self.corners.extend([[a, b], self.corners[from]]);
        self.next.extend([back + 1, after]);
        self.next[from] = first;
        self.next[last] = back;
    }

    /// The walk without the corners it passes straight on.
    fn polygon(&self) -> Vec<Point> {
        let mut walk = Vec::with_capacity(self.corners.len());
        let mut place = 0;
        for _ in 0..self.corners.len() {
            if walk.last() != Some(&self.corners[place]) {
                walk.push(self.corners[place]);
            }
            place = self.next[place];
        }
        if walk.len() > 1 && walk.first() == walk.last() {
            walk.pop();
        }
        let towards =
            |from: Corner, to: Corner| [0, 1].map(|axis| (to[axis] - from[axis]).signum());
        let turns = |n: &usize| {
            let (before, after) =
                (walk[(n + walk.len() - 1) % walk.len()], walk[(n + 1) % walk.len()]);
            towards(before, walk[*n]) != towards(walk[*n], after)
        };
        (0..walk.len()).filter(turns).map(|n| walk[n].map(|v| v as f64 - 0.5)).collect()
    }
}
