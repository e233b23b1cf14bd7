//! Metastases: where they sit, how they grow, how they enhance.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};

use ndarray::Array3;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::centre::{
    ALL_SHARE_OF_BRAIN, LARGEST_SHARE_OF_BRAIN, Profile, SMALLEST_CM3, Sizes, draw_count,
};
use super::enhance::ENHANCED;
use super::head::{Head, norm};
use super::noise::{Noise, Point, ramp};

/// A brain holds at most this many metastases per cm³.
const MOST_PER_CM3: f64 = 0.4;
/// From this radius on a metastasis may be necrotic inside, and swell its surroundings.
const RING_FROM_MM: f64 = 4.5;
/// Attempts to find a place before a metastasis is left out.
const ATTEMPTS: usize = 400;

/// What was painted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Painted {
    /// Metastases in the label.
    pub(super) lesions: usize,
    /// Of these, smaller than drawn because the brain is small.
    pub(super) limited: usize,
    /// Left out for want of room.
    pub(super) left_out: usize,
}

/// Draws number and sizes in cm³, largest first, and how many were cut to what the brain can hold.
pub(super) fn draw_sizes(
    profile: &Profile,
    brain_cm3: f64,
    rng: &mut ChaCha8Rng,
) -> (Vec<f64>, usize) {
    let most = ((MOST_PER_CM3 * brain_cm3) as usize).max(1);
    let sizes = Sizes::of(profile);
    let count = draw_count(profile.per_volume, rng).min(most);
    let drawn: Vec<f64> = (0..count).map(|_| sizes.draw(rng)).collect();
    let mut cap = (LARGEST_SHARE_OF_BRAIN * brain_cm3).max(SMALLEST_CM3);
    while cap > SMALLEST_CM3
        && drawn.iter().map(|s| s.min(cap)).sum::<f64>() > ALL_SHARE_OF_BRAIN * brain_cm3
    {
        cap = (cap * 0.9).max(SMALLEST_CM3);
    }
    let limited = drawn.iter().filter(|s| **s > cap).count();
    let mut sizes: Vec<f64> = drawn.into_iter().map(|s| s.min(cap)).collect();
    sizes.sort_by(|a, b| b.total_cmp(a));
    (sizes, limited)
}

/// Paints the metastases of a patient into image and label.
pub(super) fn paint(
    head: &mut Head,
    label: &mut Array3<u8>,
    profile: &Profile,
    rng: &mut ChaCha8Rng,
) -> Painted {
    let (sizes, limited) = draw_sizes(profile, head.brain_cm3(), rng);
    let mut painted = Painted { limited, ..Painted::default() };
    let places: Vec<[usize; 3]> = (head.depth_mm.indexed_iter())
        .filter(|(_, depth)| **depth > 1.0)
        .map(|((i, j, k), _)| [i, j, k])
        .collect();
    let mut taken: Vec<(Point, f64)> = Vec::new();
    for cm3 in sizes {
        let radius = (cm3 * 1000.0 * 3.0 / (4.0 * std::f64::consts::PI)).cbrt();
        match find_place(head, &places, &taken, radius, profile, rng) {
            Some(at) if grow(head, label, at, cm3, radius, rng) => {
                taken.push((head.point((at[0], at[1], at[2])), radius));
                painted.lesions += 1;
            }
            _ => painted.left_out += 1,
        }
    }
    painted
}

/// A place deep enough for the radius and away from the others; mostly at the border of grey and
/// white matter, where emboli get stuck, or near the surface where the centre has them there.
fn find_place(
    head: &Head,
    places: &[[usize; 3]],
    taken: &[(Point, f64)],
    radius: f64,
    profile: &Profile,
    rng: &mut ChaCha8Rng,
) -> Option<[usize; 3]> {
    if places.is_empty() {
        return None;
    }
    let fine = head.scale.max(0.45);
    let superficial = rng.random_bool(profile.superficial);
    (0..ATTEMPTS).find_map(|attempt| {
        let at = places[rng.random_range(0..places.len())];
        let depth = f64::from(head.depth_mm[at]);
        let wanted = if superficial {
            (-((depth - 0.8 * radius - 1.0) / (2.5 * fine)).powi(2)).exp()
        } else {
            0.2 + 0.8 * (-((depth - 9.0 * fine) / (9.0 * fine)).powi(2)).exp()
        };
        let fits = depth > 0.7 * radius || attempt > ATTEMPTS / 2;
        let p = head.point((at[0], at[1], at[2]));
        let apart = taken
            .iter()
            .all(|(q, r)| norm(std::array::from_fn(|n| p[n] - q[n])) > 1.45 * (radius + r) + 3.0);
        (fits && apart && rng.random_bool(wanted)).then_some(at)
    })
}

/// A voxel of the front, nearest first.
struct Front {
    reach: f64,
    at: [usize; 3],
}

impl PartialEq for Front {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Front {}
impl PartialOrd for Front {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Front {
    fn cmp(&self, other: &Self) -> Ordering {
        other.reach.total_cmp(&self.reach).then(other.at.cmp(&self.at))
    }
}

/// Grows one connected, lobed metastasis of exactly the wanted number of voxels; false when the
/// place has no room for it.
fn grow(
    head: &mut Head,
    label: &mut Array3<u8>,
    seed: [usize; 3],
    cm3: f64,
    radius: f64,
    rng: &mut ChaCha8Rng,
) -> bool {
    let centre = head.point((seed[0], seed[1], seed[2]));
    let lobes = Noise::new(rng.random(), 0.9);
    let lobed = rng.random_range(0.1..0.4);
    let stretch: Point = std::array::from_fn(|_| rng.random_range(0.8..1.25));
    let reach = |p: Point| {
        let q: Point = std::array::from_fn(|n| (p[n] - centre[n]) * stretch[n]);
        let length = norm(q);
        let direction = q.map(|x| x / length.max(0.5) + 10.0);
        length / (1.0 + lobed * lobes.at(direction))
    };
    let wanted = ((cm3 * 1000.0 / head.geometry.voxel_mm3()).round() as usize).max(1);
    let shape = head.geometry.shape();
    let mut front = BinaryHeap::from([Front { reach: 0.0, at: seed }]);
    let mut seen = HashSet::from([seed]);
    let mut grown: Vec<[usize; 3]> = Vec::with_capacity(wanted);
    let mut edge: f64 = 0.0;
    while let (Some(next), true) = (front.pop(), grown.len() < wanted) {
        grown.push(next.at);
        edge = edge.max(next.reach);
        for axis in 0..3 {
            for forward in [true, false] {
                let mut at = next.at;
                at[axis] = if forward { at[axis] + 1 } else { at[axis].wrapping_sub(1) };
                let free = at[axis] < shape[axis]
                    && head.brain[at] > 0
                    && label[at] == 0
                    && !touches(label, at);
                if free && seen.insert(at) {
                    front.push(Front { reach: reach(head.point((at[0], at[1], at[2]))), at });
                }
            }
        }
    }
    if grown.len() < wanted {
        return false;
    }
    let own: HashSet<_> = grown.iter().copied().collect();
    for at in grown {
        label[at] = 1;
    }
    enhance(head, &own, seed, radius, edge, reach, rng);
    true
}

fn touches(label: &Array3<u8>, [i, j, k]: [usize; 3]) -> bool {
    let around = |x: usize| x.saturating_sub(1)..=x + 1;
    around(i)
        .any(|a| around(j).any(|b| around(k).any(|c| label.get([a, b, c]).is_some_and(|v| *v > 0))))
}

/// Solid or ring-shaped enhancement with a soft border, and oedema around large ones.
fn enhance(
    head: &mut Head,
    own: &HashSet<[usize; 3]>,
    seed: [usize; 3],
    radius: f64,
    edge: f64,
    reach: impl Fn(Point) -> f64,
    rng: &mut ChaCha8Rng,
) {
    let spacing = head.geometry.spacing_mm();
    let voxel = head.geometry.voxel_mm3().cbrt();
    let bright = rng.random_range(ENHANCED) * head.white;
    let large = radius > RING_FROM_MM;
    let rim = (large && rng.random_bool(0.6)).then(|| rng.random_range(0.3..0.5) * radius);
    let dark = rng.random_range(0.45..0.75) * head.white;
    let swelling =
        if large && rng.random_bool(0.6) { rng.random_range(0.3..0.9) * radius } else { 0.0 };
    let texture = Noise::new(rng.random(), 3.0);
    let margin = 2.0 * radius + swelling + 3.0 * voxel;
    let ranges: [_; 3] = std::array::from_fn(|n| {
        let steps = (margin / spacing[n]).ceil() as usize;
        seed[n].saturating_sub(steps)..(seed[n] + steps + 1).min(head.geometry.shape()[n])
    });
    for i in ranges[0].clone() {
        for j in ranges[1].clone() {
            for k in ranges[2].clone() {
                let (at, p) = ([i, j, k], head.point((i, j, k)));
                if head.depth_mm[at] < -1.0 {
                    continue;
                }
                let inward = edge - reach(p);
                let inside = own.contains(&at);
                let mut value = f64::from(head.image[at]);
                // Water makes white matter darker and leaves the rest as it is.
                if !inside && value > 0.6 * head.white && value < 1.1 * head.white {
                    value *= 1.0 - 0.22 * ramp(inward, -swelling - 0.1, -0.4 * swelling);
                }
                let share = (0.5 + inward / (1.6 * voxel))
                    .clamp(if inside { 0.5 } else { 0.0 }, if inside { 1.0 } else { 0.5 });
                let core = rim.map_or(0.0, |rim| ramp(inward, rim - 0.8, rim + 0.8));
                let level = (bright + (dark - bright) * core) * (1.0 + 0.08 * texture.at(p));
                head.image[at] = (value + share * (level - value)) as f32;
            }
        }
    }
}
