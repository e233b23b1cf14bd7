//! The closed surface that grows inside a head (Smith 2002, "Surface model" and "Main iterated
//! loop").

use std::collections::HashMap;

use nalgebra::{Point3, Vector3};
use rayon::prelude::*;

use super::Head;

/// Each halving of the icosahedron's edges has four times the triangles: 2562 vertices.
const HALVINGS: usize = 4;
const ITERATIONS: usize = 1000;
/// How far inwards the darkest and the brightest value are looked for.
const DARKEST_WITHIN_MM: usize = 20;
const BRIGHTEST_WITHIN_MM: usize = 10;
/// Share of the local contrast at which the surface stops (b_t; the paper has 0.5, which leaks where
/// contrast agent has brightened the meninges; more cuts into lesions of the cortex).
const STOP_AT: f64 = 0.55;
/// Not in the paper: what is this much brighter than the brain, and this deep, is marrow or fat, which
/// thick slices join to the brain without a dark rim between. Lesions are rarely as bright.
const FAT: f64 = 1.6;
const FAT_WITHIN_MM: usize = 2;
/// Bends sharper than the lesser radius are smoothed fully, those gentler than the larger hardly.
const RADII_MM: (f64, f64) = (3.33, 10.0);
/// Share of the tangential and weight of the outward movement in each iteration.
const TANGENTIAL: f64 = 0.5;
const OUTWARD: f64 = 0.05;

/// What drives the surface: intensities and the sphere to begin with.
pub(super) struct Forces {
    /// 2nd percentile (t_2).
    pub(super) low: f64,
    /// Between air and head (t).
    pub(super) threshold: f64,
    /// Median inside the sphere (t_m).
    pub(super) median: f64,
    /// RAS millimetres.
    pub(super) centre: Point3<f64>,
    /// Millimetres, of a sphere with the volume of the head.
    pub(super) radius: f64,
}

pub(super) struct Surface {
    vertices: Vec<Point3<f64>>,
    /// Counter-clockwise seen from outside.
    triangles: Vec<[usize; 3]>,
}

impl Surface {
    /// Grows a sphere of half the head's radius until it fills the brain.
    pub(super) fn grown(head: &Head<'_>, forces: &Forces) -> Self {
        let mut surface = Self::sphere(forces.centre, forces.radius / 2.0);
        let rings = surface.rings();
        for _ in 0..ITERATIONS {
            let edge = surface.edge_mm(&rings);
            surface.vertices = (0..surface.vertices.len())
                .into_par_iter()
                .with_min_len(256)
                .map(|n| surface.moved(n, &rings[n], edge, head, forces))
                .collect();
        }
        surface
    }

    fn moved(
        &self,
        n: usize,
        ring: &[usize],
        edge: f64,
        head: &Head<'_>,
        forces: &Forces,
    ) -> Point3<f64> {
        let here = self.vertices[n];
        let around = |k: usize| self.vertices[ring[k % ring.len()]] - here;
        let normal: Vector3<f64> =
            (0..ring.len()).map(|k| around(k).cross(&around(k + 1))).sum::<Vector3<f64>>();
        let normal = normal.try_normalize(1e-12).unwrap_or_else(Vector3::zeros);
        let to_middle = (0..ring.len()).map(around).sum::<Vector3<f64>>() / ring.len() as f64;
        let along = to_middle.dot(&normal);
        let tangential = to_middle - normal * along;
        let bend = 2.0 * along.abs() / (edge * edge);
        let (sharp, gentle) = (1.0 / RADII_MM.0, 1.0 / RADII_MM.1);
        let smooth =
            0.5 * (1.0 + (6.0 / (sharp - gentle) * (bend - (sharp + gentle) / 2.0)).tanh());
        let outward = OUTWARD * edge * forces.outward(head, &here, &normal);
        here + tangential * TANGENTIAL + normal * (smooth * along + outward)
    }

    /// Mean distance between neighbours.
    fn edge_mm(&self, rings: &[Vec<usize>]) -> f64 {
        let (mut sum, mut count) = (0.0, 0);
        for (here, ring) in self.vertices.iter().zip(rings) {
            sum += ring.iter().map(|n| (self.vertices[*n] - here).norm()).sum::<f64>();
            count += ring.len();
        }
        sum / count as f64
    }

    /// Neighbours of every vertex, counter-clockwise seen from outside.
    fn rings(&self) -> Vec<Vec<usize>> {
        let mut next = vec![HashMap::new(); self.vertices.len()];
        for &[a, b, c] in &self.triangles {
            for [n, from, to] in [[a, b, c], [b, c, a], [c, a, b]] {
                next[n].insert(from, to);
            }
        }
        next.into_iter()
            .map(|next| {
                let mut ring: Vec<usize> = next.keys().min().copied().into_iter().collect();
                while let Some(n) = ring.last().and_then(|last| next.get(last))
                    && ring.len() < next.len()
                {
                    ring.push(*n);
                }
                ring
            })
            .collect()
    }

    fn sphere(centre: Point3<f64>, radius: f64) -> Self {
        // An icosahedron: the cyclic permutations of (0, ±1, ±golden ratio).
        let g = f64::midpoint(1.0, 5f64.sqrt());
        let mut directions = Vec::new();
        for (a, b) in [(1.0, g), (1.0, -g), (-1.0, g), (-1.0, -g)] {
            directions.extend([[0.0, a, b], [a, b, 0.0], [b, 0.0, a]].map(Vector3::from));
        }
        let near = |a: usize, b: usize| (directions[a] - directions[b]).norm() < 2.1;
        let mut triangles = Vec::new();
        for a in 0..12 {
            for b in a + 1..12 {
                for c in b + 1..12 {
                    if near(a, b) && near(b, c) && near(a, c) {
                        let [p, q, r] = [a, b, c].map(|n| directions[n]);
                        let outside = (q - p).cross(&(r - p)).dot(&p) > 0.0;
                        triangles.push(if outside { [a, b, c] } else { [a, c, b] });
                    }
                }
            }
        }
        for _ in 0..HALVINGS {
            let mut middles: HashMap<(usize, usize), usize> = HashMap::new();
            let mut finer = Vec::with_capacity(4 * triangles.len());
            for [a, b, c] in triangles {
                let [ab, bc, ca] = [(a, b), (b, c), (c, a)].map(|(p, q)| {
                    *middles.entry((p.min(q), p.max(q))).or_insert_with(|| {
                        directions
                            .push((directions[p].normalize() + directions[q].normalize()) / 2.0);
                        directions.len() - 1
                    })
                });
                finer.extend([[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]]);
            }
            triangles = finer;
        }
        let vertices = directions.iter().map(|d| centre + d.normalize() * radius).collect();
        Self { vertices, triangles }
    }

    pub(super) fn bounds(&self) -> (Point3<f64>, Point3<f64>) {
        self.vertices.iter().fold(
            (Point3::from([f64::INFINITY; 3]), Point3::from([f64::NEG_INFINITY; 3])),
            |(low, high), p| (low.inf(p), high.sup(p)),
        )
    }

    pub(super) fn triangles(&self) -> impl Iterator<Item = [Point3<f64>; 3]> + '_ {
        self.triangles.iter().map(|t| t.map(|n| self.vertices[n]))
    }
}

impl Forces {
    /// From −1, inwards, to 1, outwards (f_3): whether the darkest value below the surface is nearer
    /// to the brain's intensity or to that of liquor and bone.
    fn outward(&self, head: &Head<'_>, here: &Point3<f64>, normal: &Vector3<f64>) -> f64 {
        let (mut darkest, mut brightest) = (self.median, self.threshold);
        let fat = self.low + FAT * (self.median - self.low);
        let mut in_fat = true;
        for (depth, value) in head.ray(here, &-normal).take(DARKEST_WITHIN_MM + 1).enumerate() {
            let Some(value) = value else {
                // Outside the image there is nothing to grow into.
                return if depth == 0 { -1.0 } else { 0.0 };
            };
            darkest = darkest.min(f64::from(value));
            in_fat &= depth > FAT_WITHIN_MM || f64::from(value) > fat;
            if in_fat && depth >= FAT_WITHIN_MM {
                return -1.0;
            }
            if depth <= BRIGHTEST_WITHIN_MM {
                brightest = brightest.max(f64::from(value));
            }
        }
        let darkest = darkest.max(self.low);
        let brightest = brightest.min(self.median);
        let range = brightest - self.low;
        if range <= 0.0 {
            return 0.0;
        }
        (2.0 * (darkest - self.low - range * STOP_AT) / range).clamp(-1.0, 1.0)
    }
}
