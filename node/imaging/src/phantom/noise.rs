//! Smooth noise in space, the same for the same seed.

/// Point in mm.
pub(super) type Point = [f64; 3];

/// Value noise: random numbers on lattices, blended smoothly in between. Two lattices that lie
/// obliquely to the axes and to each other, so that no plane of either shows in an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise {
    seed: u64,
    per_mm: f64,
}

/// Rows of two rotations with irrational entries (Euler angles 0.6, 0.5, 1.1 and 2.1, -0.7, 0.3).
const LATTICES: [[Point; 3]; 2] = [
    [
        [0.398_066, -0.612_746, 0.682_722],
        [0.782_104, 0.615_164, 0.096_100],
        [-0.478_867, 0.495_700, 0.724_104],
    ],
    [
        [0.730_674, -0.382_054, -0.565_816],
        [0.226_021, -0.646_726, 0.728_466],
        [-0.644_240, -0.660_164, -0.386_200],
    ],
];
/// The mean of two lattices varies less than one.
const GAIN: f64 = 0.62;

impl Noise {
    /// Noise whose features are about `wavelength_mm` wide.
    pub(super) fn new(seed: u64, wavelength_mm: f64) -> Self {
        Self { seed, per_mm: 1.0 / wavelength_mm }
    }

    /// A value from -1 to 1, continuous with its first two derivatives.
    pub(super) fn at(&self, p: Point) -> f64 {
        let sum: f64 = (LATTICES.iter().zip([0.0, 0.5]))
            .map(|(rows, shift)| {
                self.on_lattice(rows.map(|row| {
                    self.per_mm * (row[0] * p[0] + row[1] * p[1] + row[2] * p[2]) + shift
                }))
            })
            .sum();
        (GAIN * sum).clamp(-1.0, 1.0)
    }

    /// Gradient per mm (differences over a fifth of a wavelength).
    pub(super) fn gradient(&self, p: Point) -> Point {
        let step = 0.1 / self.per_mm;
        std::array::from_fn(|axis| {
            let at = |sign: f64| {
                let mut q = p;
                q[axis] += sign * step;
                self.at(q)
            };
            (at(1.0) - at(-1.0)) / (2.0 * step)
        })
    }

    fn on_lattice(&self, scaled: Point) -> f64 {
        let cell = scaled.map(f64::floor);
        let [x, y, z] = [0, 1, 2].map(|n| {
            let t = scaled[n] - cell[n];
            t * t * t * (t * (t * 6.0 - 15.0) + 10.0)
        });
        let cell = cell.map(|c| c as i64);
        let node = |i: i64, j: i64, k: i64| self.node([cell[0] + i, cell[1] + j, cell[2] + k]);
        let mix = |a: f64, b: f64, t: f64| a + (b - a) * t;
        let edge = |i, j| mix(node(i, j, 0), node(i, j, 1), z);
        mix(mix(edge(0, 0), edge(0, 1), y), mix(edge(1, 0), edge(1, 1), y), x)
    }

    fn node(&self, cell: [i64; 3]) -> f64 {
        // The finaliser of splitmix64 after a linear mix of the coordinates.
        let mut h = self.seed;
        for (c, odd) in cell.into_iter().zip([
            0x9e37_79b9_7f4a_7c15u64,
            0xc2b2_ae3d_27d4_eb4f,
            0x1656_67b1_9e37_79f9,
        ]) {
            h = h.wrapping_add((c as u64).wrapping_mul(odd));
        }
        h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^= h >> 31;
        (h >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// 0 below `low`, 1 above `high`, smooth in between.
pub(super) fn ramp(x: f64, low: f64, high: f64) -> f64 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_range_is_smooth_and_depends_on_the_seed() {
        let (a, b) = (Noise::new(1, 10.0), Noise::new(2, 10.0));
        let mut differs = false;
        for n in 0..2000 {
            let p = [n as f64 * 0.1 - 100.0, 3.3, -7.1];
            let (v, w) = (a.at(p), a.at([p[0] + 0.01, p[1], p[2]]));
            assert!((-1.0..=1.0).contains(&v) && (v - w).abs() < 0.01);
            differs |= (v - b.at(p)).abs() > 0.1;
        }
        assert!(differs);
    }
}
