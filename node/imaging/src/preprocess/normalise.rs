//! Intensities in units of the brain's own spread.
//!
//! The paper's last step: brain voxels are clipped to their 0.2 and 99.8 percentiles and z-scored with
//! mean and population standard deviation of the clipped voxels. Outside the brain the skull is
//! stripped, as in the paper; see [`Background`].

use ndarray::{Array3, Zip};
use serde::{Deserialize, Serialize};

/// Why values cannot be brought into units of the brain's spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unnormalised {
    /// No voxel of the brain mask is set.
    #[error("the brain mask is empty")]
    EmptyBrain,
    /// All brain voxels hold one value.
    #[error("all brain voxels hold the same value")]
    Constant,
}

/// Percentiles of the brain to which voxels are clipped.
pub const CLIP_PERCENTILES: [f64; 2] = [0.2, 99.8];

/// What is put outside the brain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Background {
    /// The z-score of intensity 0, a negative constant, as the published code has it.
    #[default]
    Zscore,
    /// Zero, the mean of the brain.
    Zero,
}

/// What was measured in the brain and applied to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Brain voxels.
    pub voxels: usize,
    /// 0.2 percentile, the least value kept.
    pub low: f64,
    /// 99.8 percentile, the greatest value kept.
    pub high: f64,
    /// Mean of the clipped brain voxels.
    pub mean: f64,
    /// Population standard deviation of the clipped brain voxels.
    pub sd: f64,
}

/// Clips and z-scores inside the brain, in place; strips what lies outside.
///
/// # Errors
/// An empty brain and a constant brain have no z-score.
pub fn normalise(
    image: &mut Array3<f32>,
    brain: &Array3<u8>,
    background: Background,
) -> Result<Normalisation, Unnormalised> {
    let mut inside: Vec<f32> =
        image.iter().zip(brain).filter(|(_, b)| **b > 0).map(|(v, _)| *v).collect();
    if inside.is_empty() {
        return Err(Unnormalised::EmptyBrain);
    }
    let [low, high] = CLIP_PERCENTILES.map(|p| percentile(&mut inside, p));
    let n = inside.len() as f64;
    let clip = |v: f32| f64::from(v).clamp(low, high);
    let mean = inside.iter().map(|v| clip(*v)).sum::<f64>() / n;
    let sd = (inside.iter().map(|v| (clip(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    if sd <= f64::EPSILON * mean.abs().max(f64::MIN_POSITIVE) {
        return Err(Unnormalised::Constant);
    }
    let outside = match background {
        Background::Zscore => (-mean / sd) as f32,
        Background::Zero => 0.0,
    };
    Zip::from(image).and(brain).for_each(|v, b| {
        *v = if *b > 0 { ((clip(*v) - mean) / sd) as f32 } else { outside };
    });
    Ok(Normalisation { voxels: inside.len(), low, high, mean, sd })
}

/// Percentile with linear interpolation between order statistics (numpy's default); reorders `values`.
/// `values` must not be empty nor hold NaN.
pub fn percentile(values: &mut [f32], percent: f64) -> f64 {
    let at = percent / 100.0 * (values.len() - 1) as f64;
    let below = at.floor() as usize;
    let (_, low, rest) = values.select_nth_unstable_by(below, f32::total_cmp);
    let low = f64::from(*low);
    let next = rest.iter().copied().min_by(f32::total_cmp).map_or(low, f64::from);
    low + (next - low) * at.fract()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_equal_numpy() {
        // np.percentile([3, 1, 4, 1, 5, 9, 2, 6], [0, 0.2, 50, 99.8, 100])
        let mut values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        for (p, expected) in [(0.0, 1.0), (0.2, 1.0), (50.0, 3.5), (99.8, 8.958), (100.0, 9.0)] {
            assert!((percentile(&mut values, p) - expected).abs() < 1e-9, "{p}");
        }
        assert_eq!(percentile(&mut [7.0], 99.8), 7.0);
    }

    #[test]
    fn the_brain_has_mean_zero_and_the_background_follows_the_setting() {
        let source =
            Array3::from_shape_fn((8, 8, 8), |(i, j, k)| (i * 64 + j * 8 + k) as f32 + 100.0);
        let brain = Array3::from_shape_fn((8, 8, 8), |(i, _, _)| u8::from(i > 1));
        for background in [Background::Zscore, Background::Zero] {
            let mut image = source.clone();
            let n = normalise(&mut image, &brain, background).unwrap();
            let inside: Vec<f64> = image
                .iter()
                .zip(&brain)
                .filter(|(_, b)| **b > 0)
                .map(|(v, _)| f64::from(*v))
                .collect();
            assert_eq!(n.voxels, inside.len());
            assert!(inside.iter().sum::<f64>().abs() < 1e-3);
            assert!(
                (inside.iter().map(|v| v * v).sum::<f64>() / inside.len() as f64 - 1.0).abs()
                    < 1e-5
            );
            let outside =
                if background == Background::Zero { 0.0 } else { (-n.mean / n.sd) as f32 };
            assert!(image.iter().zip(&brain).filter(|(_, b)| **b == 0).all(|(v, _)| *v == outside));
        }
    }

    #[test]
    fn no_z_score_without_brain_or_contrast() {
        let mut image = Array3::from_elem((4, 4, 4), 3.0);
        let brain = Array3::ones((4, 4, 4));
        assert!(matches!(
            normalise(&mut image, &brain, Background::Zero),
            Err(Unnormalised::Constant)
        ));
        let none = Array3::zeros((4, 4, 4));
        assert!(matches!(
            normalise(&mut image, &none, Background::Zero),
            Err(Unnormalised::EmptyBrain)
        ));
    }
}
