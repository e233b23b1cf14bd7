//! Contrast agent where there is no tumour: vessels, sinus, choroid plexus and meninges.
//! Their intensities overlap those of metastases, so that only shape and place tell them apart.

use ndarray::{Array3, Zip};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::centre::{Profile, normal};
use super::head::{Head, norm};
use super::noise::{Noise, Point, ramp};

/// Brightness of anything that takes up contrast agent, against white matter.
pub(super) const ENHANCED: std::ops::Range<f64> = 1.15..1.7;
/// Vessels drawn in an adult brain of a usual centre.
const VESSELS: f64 = 48.0;

/// How much of each voxel is filled by something bright, and how bright that is.
struct Filling {
    share: Array3<f32>,
    level: Array3<f32>,
}

impl Filling {
    fn put(&mut self, at: [usize; 3], share: f64, level: f64) {
        if share as f32 > self.share[at] {
            (self.share[at], self.level[at]) = (share as f32, level as f32);
        }
    }
}

/// Adds everything that enhances in a healthy head.
pub(super) fn healthy(head: &mut Head, profile: &Profile, rng: &mut ChaCha8Rng) {
    let dim = head.image.dim();
    let mut filling = Filling { share: Array3::zeros(dim), level: Array3::zeros(dim) };
    meninges(head, profile, &mut filling, rng);
    vessels(head, profile, &mut filling, rng);
    if let Some(half) = head.synthetic_mm {
        sinuses(head, half, &mut filling, rng);
    }
    if let Some(plexus) = head.plexus.take() {
        let level = rng.random_range(ENHANCED) * head.white;
        for ((i, j, k), share) in plexus.indexed_iter() {
            filling.put([i, j, k], f64::from(*share), level);
        }
    }
    Zip::from(&mut head.image)
        .and(&filling.share)
        .and(&filling.level)
        .for_each(|v, share, level| *v += share * (level - *v));
}

fn meninges(head: &Head, profile: &Profile, filling: &mut Filling, rng: &mut ChaCha8Rng) {
    let fine = head.scale.max(0.5);
    let patches = Noise::new(rng.random(), 22.0 * fine);
    let level = rng.random_range(1.05..1.5) * head.white;
    let half_mm = rng.random_range(0.3..0.7);
    // Value noise lies above this in about the wanted share of space.
    let threshold = 0.5 - profile.meninges;
    let dura = &head.dura_mm;
    for (at, depth) in head.depth_mm.indexed_iter() {
        let depth = f64::from(*depth);
        let sheet = dura.as_ref().map_or(f32::MAX, |dura| dura[at]);
        if depth.abs().min(f64::from(sheet)) > 2.5 {
            continue;
        }
        // Where the depth hardly changes, being shallow does not mean being at the surface.
        let off = (depth.abs() / head.steepness(at).clamp(0.1, 1.0)).min(f64::from(sheet));
        let p = head.point(at);
        let share =
            (half_mm + 0.5 - off).clamp(0.0, 1.0) * ramp(patches.at(p), threshold, threshold + 0.2);
        filling.put([at.0, at.1, at.2], share, level);
    }
}

/// Tortuous tubes that begin near the surface, taper and branch.
fn vessels(head: &Head, profile: &Profile, filling: &mut Filling, rng: &mut ChaCha8Rng) {
    let fine = head.scale.max(0.45);
    let count = (VESSELS * profile.vessels * head.scale.powf(1.8)).round().max(4.0) as usize;
    let mut pending = Vec::new();
    for _ in 0..count {
        if let Some(start) = start_near_surface(head, 14.0 * fine, rng) {
            let radius = rng.random_range(0.45..1.25) * head.scale.max(0.75);
            pending.push((start, radius, rng.random_range(18.0..60.0) * fine, 0));
        }
    }
    while let Some((start, radius, length, generation)) = pending.pop() {
        let level = rng.random_range(ENHANCED) * head.white;
        let mut p = start;
        let mut direction = unit([normal(rng), normal(rng), normal(rng)]);
        let step = 0.7;
        let steps = (length / step) as usize;
        for n in 0..steps {
            direction = unit(std::array::from_fn(|a| direction[a] + 0.28 * normal(rng)));
            let next: Point = std::array::from_fn(|a| p[a] + step * direction[a]);
            match depth_at(head, next) {
                // Turn back before leaving the brain.
                Some(depth) if depth > -1.0 => {}
                _ => {
                    direction = unit(std::array::from_fn(|a| -p[a] + 8.0 * normal(rng)));
                    continue;
                }
            }
            let taper = 1.0 - 0.5 * n as f64 / steps as f64;
            tube(head, filling, p, next, radius * taper, level);
            if generation < 2 && rng.random_bool(0.6 / steps as f64) {
                pending.push((next, radius * 0.75, length * 0.5, generation + 1));
            }
            p = next;
        }
    }
}

/// The sinuses: the superior sagittal one along the midline at the top, and from its lower end the
/// transverse ones along the upper edge of the cerebellum.
fn sinuses(head: &Head, half: [f64; 3], filling: &mut Filling, rng: &mut ChaCha8Rng) {
    const STEPS: usize = 80;
    let level = rng.random_range(ENHANCED) * head.white;
    let radius = (3.2 * head.scale).max(1.0);
    let mut run = |from: f64, to: f64, path: &dyn Fn(f64) -> Point| {
        let at = |n: usize| on_surface(head, path(n as f64 / STEPS as f64));
        for n in 0..STEPS {
            let width = from + (to - from) * n as f64 / STEPS as f64;
            tube(head, filling, at(n), at(n + 1), radius * width, level);
        }
    };
    run(0.5, 1.0, &|t| {
        let angle = (20.0 + 168.0 * t).to_radians();
        [0.0, half[1] * angle.cos(), half[2] * angle.sin()]
    });
    // One side drains more than the other.
    let stronger = if rng.random_bool(0.7) { 1.0 } else { -1.0 };
    for side in [1.0, -1.0] {
        let width = if side == stronger { 0.9 } else { 0.55 };
        run(width, 0.8 * width, &|t| {
            let angle = (90.0 * t * 0.75).to_radians();
            [side * half[0] * angle.sin(), -half[1] * angle.cos(), -half[2] * (0.14 + 0.16 * t)]
        });
    }
}

/// The point of the brain's surface in this direction from its middle.
fn on_surface(head: &Head, direction: Point) -> Point {
    let unit = unit(direction);
    let step = 0.5;
    let inside = |n: &usize| {
        let p = unit.map(|x| x * step * *n as f64);
        depth_at(head, p).is_some_and(|depth| depth > 0.0)
    };
    let reached = (0..800).take_while(inside).count();
    unit.map(|x| x * step * reached as f64)
}

fn start_near_surface(head: &Head, within_mm: f64, rng: &mut ChaCha8Rng) -> Option<Point> {
    let (ni, nj, nk) = head.image.dim();
    (0..400).find_map(|_| {
        let at = (rng.random_range(0..ni), rng.random_range(0..nj), rng.random_range(0..nk));
        let depth = f64::from(head.depth_mm[[at.0, at.1, at.2]]);
        (depth > 0.5 && depth < within_mm).then(|| head.point(at))
    })
}

fn index_of(head: &Head, p: Point) -> [f64; 3] {
    let (shape, spacing) = (head.geometry.shape(), head.geometry.spacing_mm());
    std::array::from_fn(|n| p[n] / spacing[n] + (shape[n] as f64 - 1.0) / 2.0)
}

fn depth_at(head: &Head, p: Point) -> Option<f64> {
    let index = index_of(head, p).map(f64::round);
    if index.iter().any(|x| *x < 0.0) {
        return None;
    }
    head.depth_mm.get(index.map(|x| x as usize)).map(|d| f64::from(*d))
}

/// Fills the neighbourhood of a segment; a voxel on the wall is filled in part.
fn tube(head: &Head, filling: &mut Filling, a: Point, b: Point, radius: f64, level: f64) {
    let (shape, spacing) = (head.geometry.shape(), head.geometry.spacing_mm());
    let voxel = spacing.iter().product::<f64>().cbrt();
    let reach = radius + voxel;
    let (ia, ib) = (index_of(head, a), index_of(head, b));
    let bounds: [(usize, usize); 3] = std::array::from_fn(|n| {
        let margin = reach / spacing[n];
        let low = (ia[n].min(ib[n]) - margin).ceil().max(0.0) as usize;
        let high = ((ia[n].max(ib[n]) + margin).floor() + 1.0).clamp(0.0, shape[n] as f64) as usize;
        (low, high)
    });
    let along: Point = std::array::from_fn(|n| b[n] - a[n]);
    let square = along.iter().map(|x| x * x).sum::<f64>().max(1e-9);
    for i in bounds[0].0..bounds[0].1 {
        for j in bounds[1].0..bounds[1].1 {
            for k in bounds[2].0..bounds[2].1 {
                let p = head.point((i, j, k));
                let t = ((0..3).map(|n| (p[n] - a[n]) * along[n]).sum::<f64>() / square)
                    .clamp(0.0, 1.0);
                let off = norm(std::array::from_fn(|n| p[n] - a[n] - t * along[n]));
                let wall = (0.5 + (radius - off) / voxel).clamp(0.0, 1.0);
                // A tube thinner than a voxel never fills one.
                let share = wall * (2.0 * radius / voxel).min(1.0);
                if share > 0.0 {
                    filling.put([i, j, k], share, level);
                }
            }
        }
    }
}

fn unit(p: Point) -> Point {
    let length = norm(p).max(1e-9);
    p.map(|x| x / length)
}
