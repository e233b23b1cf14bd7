//! A reference mask of a head with metastases and a prediction of it, both drawn from a seed.

use ndarray::Array3;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The working grid of the paper, 1 mm isotropic.
pub(crate) const SHAPE: [usize; 3] = [240, 240, 155];
const BRAIN_SEMI_AXES_MM: [f64; 3] = [68.0, 84.0, 62.0];
const LESIONS: usize = 12;
const MISSED: usize = 2;
const FALSE_POSITIVES: usize = 6;

/// A ball whose surface is dented by two waves.
struct Blob {
    centre: [f64; 3],
    radius_mm: f64,
    waves: [[f64; 4]; 2],
}

impl Blob {
    fn new(rng: &mut impl Rng, centre: [f64; 3], radius_mm: f64) -> Self {
        let wave = |rng: &mut _| -> [f64; 4] {
            std::array::from_fn(|_| RngExt::random_range(rng, -3.0..3.0))
        };
        Self { centre, radius_mm, waves: [wave(rng), wave(rng)] }
    }

    fn paint(&self, mask: &mut Array3<u8>) {
        let reach = self.radius_mm * 1.4 + 1.0;
        let [i, j, k] = [0, 1, 2].map(|a| {
            let begin = (self.centre[a] - reach).max(0.0) as usize;
            begin..((self.centre[a] + reach) as usize + 1).min(SHAPE[a])
        });
        for i in i {
            for j in j.clone() {
                for k in k.clone() {
                    let d = [i, j, k].map(|x| x as f64);
                    let d: [f64; 3] = std::array::from_fn(|a| d[a] - self.centre[a]);
                    let r = d.iter().map(|x| x * x).sum::<f64>().sqrt();
                    let dent: f64 = (self.waves.iter())
                        .map(|[x, y, z, phase]| {
                            ((d[0] * x + d[1] * y + d[2] * z) / r.max(0.5) + phase).sin()
                        })
                        .sum();
                    if r <= self.radius_mm * (1.0 + 0.15 * dent) {
                        mask[[i, j, k]] = 1;
                    }
                }
            }
        }
    }
}

/// Reference and prediction: twelve metastases of 2 to 24 mm, two of them missed, the rest found with
/// a shifted, resized and differently dented outline, and six false positives.
pub(crate) fn pair(seed: u64) -> (Array3<u8>, Array3<u8>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut masks = [Array3::zeros(SHAPE), Array3::zeros(SHAPE)];
    let mut placed: Vec<Blob> = Vec::new();
    while placed.len() < LESIONS + FALSE_POSITIVES {
        let n = placed.len();
        let radius = if n < LESIONS {
            (12f64 / 1.2).powf(n as f64 / (LESIONS - 1) as f64) * 1.2
        } else {
            rng.random_range(1.0..4.0)
        };
        let at: [f64; 3] = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
        let centre: [f64; 3] =
            std::array::from_fn(|a| SHAPE[a] as f64 / 2.0 + at[a] * BRAIN_SEMI_AXES_MM[a]);
        let apart = |other: &Blob| {
            let square: f64 = (0..3).map(|a| (centre[a] - other.centre[a]).powi(2)).sum();
            square.sqrt() > 1.4 * (radius + other.radius_mm) + 4.0
        };
        if at.iter().map(|x| x * x).sum::<f64>() < 1.0 && placed.iter().all(apart) {
            placed.push(Blob::new(&mut rng, centre, radius));
        }
    }
    for (n, blob) in placed.iter().enumerate() {
        if n < LESIONS {
            blob.paint(&mut masks[0]);
        }
        if n >= LESIONS {
            blob.paint(&mut masks[1]);
        } else if n % (LESIONS / MISSED) != 1 {
            let centre = blob.centre.map(|x| x + rng.random_range(-0.8..0.8));
            let radius = blob.radius_mm * rng.random_range(0.85..1.1);
            Blob::new(&mut rng, centre, radius).paint(&mut masks[1]);
        }
    }
    let [reference, prediction] = masks;
    (reference, prediction)
}
