//! The parts of a synthetic head as solids: how deep a point lies in each, in millimetres.
//!
//! Proportions are those of an adult head on T1 images, given in semi-axes of the brain (x to the
//! right, y to the front, z up). A depth is negative outside.

use super::head::norm;
use super::noise::{Noise, Point};

/// Width over which two solids melt into each other, in units of an adult's mm.
const MELT_MM: f64 = 3.0;

/// How deep a point lies in the parts of the brain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Depths {
    /// Below the surface of the whole brain.
    pub(super) brain: f64,
    /// In hemispheres with temporal lobes.
    pub(super) cerebrum: f64,
    /// In the cerebellum.
    pub(super) cerebellum: f64,
    /// In pons and medulla.
    pub(super) stem: f64,
}

/// A head of a given size with an outline of its own.
pub(super) struct Anatomy {
    /// Semi-axes of the brain.
    pub(super) half: Point,
    scale: f64,
    outline: Noise,
    lopsided: f64,
}

impl Anatomy {
    /// `lopsided` shifts the right side of the head backwards and the left side forwards.
    pub(super) fn new(half: Point, scale: f64, outline: Noise, lopsided: f64) -> Self {
        Self { half, scale, outline, lopsided }
    }

    fn part(&self, p: Point, centre: Point, half: Point) -> f64 {
        let q: Point = std::array::from_fn(|n| p[n] - centre[n] * self.half[n]);
        radial(q, std::array::from_fn(|n| half[n] * self.half[n]))
    }

    /// How deep a point lies in the brain.
    pub(super) fn depths(&self, p: Point) -> Depths {
        let p = [p[0], p[1] + self.lopsided * p[0], p[2]];
        let side = [p[0].abs(), p[1], p[2]];
        let bulge = 4.0 * self.scale * self.outline.at(p);
        // Egg-shaped from above, flat below.
        let y = p[1] / self.half[1];
        let z = p[2] - 0.10 * self.half[2];
        let egg = [p[0] * (1.0 + 0.16 * y.max(0.0) + 0.05 * (-y).max(0.0)), p[1], z];
        let flat = if z < 0.0 { 0.56 } else { 0.90 };
        let dome = radial(egg, [self.half[0], self.half[1], flat * self.half[2]]);
        let temporal = self.part(side, [0.52, 0.12, -0.36], [0.36, 0.52, 0.33]);
        let cerebellum = self.part(p, [0.0, -0.50, -0.58], [0.64, 0.39, 0.36]) + 0.4 * bulge;
        let stem = self.tube(p, [0.0, -0.10, -0.20], [0.0, -0.30, -1.6], 0.17);
        let melt = MELT_MM * self.scale;
        let cerebrum = smooth_max(dome, temporal, melt) + bulge;
        let brain = smooth_max(smooth_max(cerebrum, cerebellum, melt), stem, melt);
        Depths { brain, cerebrum, cerebellum, stem }
    }

    fn tube(&self, p: Point, from: Point, to: Point, radius: f64) -> f64 {
        let at = |u: Point| -> Point { std::array::from_fn(|n| u[n] * self.half[n]) };
        let (a, b) = (at(from), at(to));
        let along: Point = std::array::from_fn(|n| b[n] - a[n]);
        let square: f64 = along.iter().map(|x| x * x).sum();
        let t = ((0..3).map(|n| (p[n] - a[n]) * along[n]).sum::<f64>() / square).clamp(0.0, 1.0);
        radius * self.half[0] - norm(std::array::from_fn(|n| p[n] - a[n] - t * along[n]))
    }

    /// How deep a point lies in the soft tissue of face and neck.
    pub(super) fn soft(&self, p: Point) -> f64 {
        let base = self.part(p, [0.0, 0.0, -0.28], [1.06, 1.08, 0.85]);
        let face = self.part(p, [0.0, 0.45, -0.85], [0.82, 0.68, 0.95]);
        let neck = self.tube(p, [0.0, -0.22, -0.75], [0.0, -0.35, -2.0], 0.78);
        let melt = 5.0 * MELT_MM * self.scale;
        smooth_max(smooth_max(face, base, melt), neck, melt)
    }

    /// How deep a point lies in an eye.
    pub(super) fn eye(&self, p: Point) -> f64 {
        let (r, h) = (0.18 * self.half[0], self.half);
        let centre = [0.45 * h[0], 0.97 * h[1], -0.40 * h[2]];
        r - norm([p[0].abs() - centre[0], p[1] - centre[1], p[2] - centre[2]])
    }

    /// How deep a point lies in the air of nose, sinuses and throat.
    pub(super) fn airway(&self, p: Point) -> f64 {
        let side = [p[0].abs(), p[1], p[2]];
        let nose = self.part(p, [0.0, 0.78, -0.82], [0.12, 0.32, 0.22]);
        let maxilla = self.part(side, [0.38, 0.78, -0.86], [0.20, 0.20, 0.20]);
        let throat = self.tube(p, [0.0, 0.22, -0.85], [0.0, 0.10, -2.0], 0.13);
        nose.max(maxilla).max(throat)
    }
}

/// Roughly the distance to the surface of an ellipsoid around the origin, exact along its axes.
fn radial(p: Point, half: Point) -> f64 {
    let r = norm([p[0] / half[0], p[1] / half[1], p[2] / half[2]]).max(1e-3);
    norm(p).max(1e-3) * (1.0 / r - 1.0)
}

/// The larger of the two, rounded off where they are nearly equal.
fn smooth_max(a: f64, b: f64, width: f64) -> f64 {
    let h = (width - (a - b).abs()).max(0.0);
    a.max(b) + h * h / (4.0 * width)
}

/// Positive inside, roughly the distance to the surface in units of the brain.
pub(super) fn ellipsoid(u: Point, centre: Point, half: Point) -> f64 {
    let q: Point = [0, 1, 2].map(|n| (u[n] - centre[n]) / half[n]);
    (1.0 - norm(q)) * half[0].min(half[1]).min(half[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_lie_where_they_belong() {
        let half = [68.0, 86.0, 66.0];
        let head = Anatomy::new(half, 1.0, Noise::new(1, 1e9), 0.0);
        let at = |u: Point| head.depths([u[0] * half[0], u[1] * half[1], u[2] * half[2]]);
        assert!((at([0.0, 0.0, 1.0]).brain).abs() < 4.5 && at([0.0, 0.0, 1.2]).brain < -10.0);
        let (front, back) = (at([0.0, 0.6, 0.2]), at([0.0, -0.5, -0.7]));
        assert!(front.cerebrum > 10.0 && front.cerebellum < 0.0);
        assert!(back.cerebellum > 10.0 && back.cerebrum < back.cerebellum);
        let pons = at([0.0, -0.22, -1.0]);
        assert!(pons.stem > 5.0 && pons.brain >= pons.stem);
        assert!((smooth_max(1.0, 9.0, 2.0), smooth_max(1.0, 1.0, 2.0)) == (9.0, 1.5));
    }
}
