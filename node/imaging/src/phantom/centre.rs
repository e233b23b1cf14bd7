//! The six centres of the paper: how many metastases, how large, and what their scanners make of them.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use crate::cohort::SMALL_CM3;

/// No metastasis is larger than this share of the brain (about 30 cm³ in an adult).
pub const LARGEST_SHARE_OF_BRAIN: f64 = 0.025;
/// All metastases of a volume together take at most this share of the brain.
pub const ALL_SHARE_OF_BRAIN: f64 = 0.10;
/// Nothing smaller is called a metastasis: about 2 mm across.
pub const SMALLEST_CM3: f64 = 0.004;
/// Mean volume of the brains of adult phantoms on 240×240×155 voxels of 1 mm.
pub(super) const ADULT_BRAIN_CM3: f64 = 1215.0;
/// Largest metastasis of an adult; under this cap the sizes have the mean of the table.
const FULL_SIZE_CAP_CM3: f64 = LARGEST_SHARE_OF_BRAIN * ADULT_BRAIN_CM3;

/// A centre whose cohort is imitated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Centre {
    /// Erlangen: 1.5 T, homogeneous.
    Uker,
    /// Zurich: 3 T, lesions near cortex and meninges.
    Usz,
    /// Stanford: few patients, dense.
    Stanford,
    /// San Francisco: vessels and meninges strongly enhanced.
    Ucsf,
    /// New York: thick slices.
    Nyu,
    /// BraTS-METS: thick slices.
    Brats,
}

impl std::str::FromStr for Centre {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|c| c.name() == name.to_ascii_lowercase());
        known.ok_or_else(|| {
            format!(
                "unknown centre {name:?}; choose one of {}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

/// What a centre's volumes look like. First four figures: the paper's Table 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Mean number of metastases in a volume.
    pub per_volume: f64,
    /// Mean size.
    pub mean_cm3: f64,
    /// Median size.
    pub median_cm3: f64,
    /// Share of metastases of at most 0.1 cm³.
    pub share_small: f64,
    /// Slice thickness, least and greatest.
    pub through_plane_mm: [f64; 2],
    /// Standard deviation of the noise as a share of white matter.
    pub noise: f64,
    /// Amplitude of the bias field.
    pub bias: f64,
    /// Number of vessels, against 1 as usual.
    pub vessels: f64,
    /// Share of the meninges that enhances.
    pub meninges: f64,
    /// Share of metastases placed near cortex and meninges.
    pub superficial: f64,
    /// Grey against white matter.
    pub grey: f64,
}

impl Centre {
    /// All six.
    pub const ALL: [Self; 6] =
        [Self::Uker, Self::Usz, Self::Stanford, Self::Ucsf, Self::Nyu, Self::Brats];

    /// In lower case, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uker => "uker",
            Self::Usz => "usz",
            Self::Stanford => "stanford",
            Self::Ucsf => "ucsf",
            Self::Nyu => "nyu",
            Self::Brats => "brats",
        }
    }

    /// Its parameters.
    pub fn profile(self) -> Profile {
        let usual = Profile {
            per_volume: 2.2,
            mean_cm3: 1.642,
            median_cm3: 0.132,
            share_small: 0.444,
            through_plane_mm: [1.0, 1.0],
            noise: 0.035,
            bias: 0.08,
            vessels: 1.0,
            meninges: 0.25,
            superficial: 0.3,
            grey: 0.77,
        };
        let table = |per_volume, mean_cm3, median_cm3, share_small| Profile {
            per_volume,
            mean_cm3,
            median_cm3,
            share_small,
            ..usual
        };
        match self {
            Self::Uker => usual,
            Self::Usz => Profile {
                through_plane_mm: [0.6, 0.6],
                noise: 0.03,
                bias: 0.18,
                meninges: 0.35,
                superficial: 0.9,
                grey: 0.74,
                ..table(4.2, 1.506, 0.229, 0.354)
            },
            Self::Stanford => {
                Profile { noise: 0.03, bias: 0.14, grey: 0.76, ..table(12.2, 0.352, 0.054, 0.675) }
            }
            Self::Ucsf => Profile {
                through_plane_mm: [1.0, 1.5],
                bias: 0.15,
                vessels: 1.8,
                meninges: 0.5,
                ..table(10.3, 0.327, 0.034, 0.712)
            },
            Self::Nyu => Profile {
                through_plane_mm: [1.0, 5.0],
                noise: 0.045,
                bias: 0.12,
                ..table(6.6, 0.828, 0.078, 0.555)
            },
            Self::Brats => Profile {
                through_plane_mm: [1.0, 5.0],
                noise: 0.05,
                bias: 0.15,
                ..table(7.8, 1.371, 0.073, 0.563)
            },
        }
    }
}

/// Sizes of metastases: a log-normal of two pieces, one width below a knot and another above it.
///
/// Median, share of small ones and mean of the table are three figures; a log-normal has two. With
/// its knot at the larger of the median and 0.1 cm³, the two figures of order fix the lower piece and
/// the mean fixes the upper one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    ln_median: f64,
    below: f64,
    knot: f64,
    above: f64,
}

impl Sizes {
    /// The sizes whose median, mean and share of small ones are the centre's.
    pub fn of(profile: &Profile) -> Self {
        let small = Normal::standard().inverse_cdf(profile.share_small);
        let ln_median = profile.median_cm3.ln();
        let mut sizes = Self {
            ln_median,
            below: (SMALL_CM3.ln() - ln_median) / small,
            knot: small.max(0.0),
            above: 0.0,
        };
        let (mut low, mut high) = (0.1, 8.0);
        for _ in 0..60 {
            sizes.above = (low + high) / 2.0;
            if sizes.mean() < profile.mean_cm3 { low = sizes.above } else { high = sizes.above }
        }
        sizes
    }

    /// One size in cm³, before the cap of a particular brain.
    pub fn draw(&self, rng: &mut impl Rng) -> f64 {
        self.at(normal(rng))
    }

    /// The size at a standard normal deviate, rising with it.
    fn at(&self, z: f64) -> f64 {
        let ln =
            self.ln_median + self.below * z.min(self.knot) + self.above * (z - self.knot).max(0.0);
        let thin = 2.0 * SMALLEST_CM3;
        if ln >= thin.ln() {
            return ln.exp().min(FULL_SIZE_CAP_CM3);
        }
        // Nobody delineates what is smaller still; as many are spread evenly over what remains.
        let phi = |z: f64| Normal::standard().cdf(z);
        let all = phi((thin.ln() - self.ln_median) / self.below);
        SMALLEST_CM3 + (thin - SMALLEST_CM3) * phi(z) / all
    }

    /// Mean size in cm³ (midpoint rule over the deviates).
    fn mean(&self) -> f64 {
        const STEP: f64 = 0.002;
        let (mut sum, mut weights) = (0.0, 0.0);
        for n in -4000..4000 {
            let z = (f64::from(n) + 0.5) * STEP;
            let weight = (-z * z / 2.0).exp();
            sum += weight * self.at(z);
            weights += weight;
        }
        sum / weights
    }
}

/// Number of metastases of a volume: one, and a negative binomial (two failures) on top of it,
/// since patients differ widely.
pub fn draw_count(per_volume: f64, rng: &mut impl Rng) -> usize {
    let exponential = |rng: &mut dyn Rng| -(1.0 - rng.random::<f64>()).ln();
    let rate = (per_volume - 1.0) / 2.0 * (exponential(rng) + exponential(rng));
    let (mut count, mut product) = (0, rng.random::<f64>());
    while product > (-rate).exp() {
        count += 1;
        product *= rng.random::<f64>();
    }
    1 + count
}

/// Standard normal deviate (Box and Muller).
pub(super) fn normal(rng: &mut impl Rng) -> f64 {
    let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    /// Table 1 of the paper: metastases in a volume, mean and median in cm³, share of at most 0.1 cm³.
    const TABLE: [(Centre, f64, f64, f64, f64); 6] = [
        (Centre::Uker, 2.2, 1.642, 0.132, 0.444),
        (Centre::Usz, 4.2, 1.506, 0.229, 0.354),
        (Centre::Stanford, 12.2, 0.352, 0.054, 0.675),
        (Centre::Ucsf, 10.3, 0.327, 0.034, 0.712),
        (Centre::Nyu, 6.6, 0.828, 0.078, 0.555),
        (Centre::Brats, 7.8, 1.371, 0.073, 0.563),
    ];

    /// Every figure of the table against as many drawn sizes and counts. The tolerance is the standard
    /// error of what was drawn, times the deviate that four figures of six centres together exceed by
    /// chance once in a thousand times.
    #[test]
    fn sizes_and_counts_fit_the_table_of_the_paper() {
        let checks = 4.0 * TABLE.len() as f64;
        let z = Normal::standard().inverse_cdf(1.0 - 0.001 / checks / 2.0);
        for (centre, per_volume, mean_cm3, median_cm3, share_small) in TABLE {
            let (profile, name) = (centre.profile(), centre.name());
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            let sizes = Sizes::of(&profile);
            let mut drawn: Vec<f64> = (0..200_000).map(|_| sizes.draw(&mut rng)).collect();
            drawn.sort_by(f64::total_cmp);
            let n = drawn.len() as f64;
            let (mean, error) = mean_and_error(&drawn);
            assert!((mean - mean_cm3).abs() < z * error, "{name}: mean {mean} ± {error}");
            // The rank of the true median is binomial.
            let rank = drawn.partition_point(|v| *v < median_cm3) as f64;
            assert!((rank - n / 2.0).abs() < z * n.sqrt() / 2.0, "{name}: median at {rank} of {n}");
            let small = drawn.iter().filter(|v| **v <= 0.1).count() as f64 / n;
            let error = (share_small * (1.0 - share_small) / n).sqrt();
            assert!((small - share_small).abs() < z * error, "{name}: {small} ± {error}");
            let counts: Vec<f64> =
                (0..50_000).map(|_| draw_count(profile.per_volume, &mut rng) as f64).collect();
            let (mean, error) = mean_and_error(&counts);
            assert!((mean - per_volume).abs() < z * error, "{name}: {mean} per volume");
            assert!(drawn[0] >= SMALLEST_CM3 && drawn[drawn.len() - 1] <= FULL_SIZE_CAP_CM3);
            let smallest = drawn.iter().filter(|v| **v <= 1.05 * SMALLEST_CM3).count() as f64;
            assert!(smallest < 0.02 * n, "{name}: {smallest} pile up at the smallest size");
        }
    }

    /// Mean and its standard error.
    fn mean_and_error(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, (square / n).sqrt())
    }

    #[test]
    fn names_round_trip() {
        for centre in Centre::ALL {
            assert_eq!(centre.name().parse::<Centre>(), Ok(centre));
        }
        assert!("basel".parse::<Centre>().unwrap_err().contains("uker, usz"));
    }
}
