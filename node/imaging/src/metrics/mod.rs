//! How good a prediction is, lesion by lesion and pooled, as the paper counts.
//!
//! - A lesion is a connected component of the reference, a component one of the prediction.
//! - A lesion is detected when at least one predicted voxel lies in it; a component that lies in
//!   no lesion is a false positive.
//! - Contours are compared for detected lesions only, each against *its part of the prediction*:
//!   the components that overlap it. A component that overlaps several lesions is divided among
//!   them, every voxel going to the nearest of those lesions.
//! - Contour figures of the pool are means over detected lesions; `detected` is their count.
//!
//! A figure that is not defined is `None` (JSON `null`):
//!
//! | figure | undefined when |
//! |---|---|
//! | sensitivity | there is no reference lesion |
//! | precision | there is no detected lesion and no false positive |
//! | F1, F2 | sensitivity or precision is undefined (0 when both are 0) |
//! | false positives per case | there is no case |
//! | HD, HD95 | reference or prediction is empty |
//! | surface Dice | both are empty (0 when one is) |
//! | Dice | never: 1 when both are empty, and `both_empty` says so |
//! | figures of a lesion | it was not detected |
//! | pooled Dice, surface Dice, HD95 | no lesion was detected |

mod case;
mod evaluate;

use serde::{Deserialize, Serialize};

pub use case::{dice, evaluate_case};
pub use evaluate::{Error, EvaluationCase, Masks, Options, evaluate, match_folders, read_masks};

use crate::lesion::Connectivity;

/// How predictions are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What makes voxels one lesion.
    pub connectivity: Connectivity,
    /// Tolerance of the surface Dice.
    pub tolerance_mm: f64,
    /// Label values that are lesion; empty for every value above 0.
    pub labels: Vec<u16>,
    /// The same for predictions: those of `labels` where any prediction of the set holds a value above 1,
    /// else empty, since plain masks know no other codes.
    #[serde(default)]
    pub prediction_labels: Vec<u16>,
    /// Whether every case has a brain mask, so that `pooled_in_brain` is there too.
    pub brain_mask: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connectivity: Connectivity::default(),
            tolerance_mm: 1.0,
            labels: Vec::new(),
            prediction_labels: Vec::new(),
            brain_mask: false,
        }
    }
}

/// Figures over all voxels of a case, whatever lesion they belong to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WholeMask {
    /// 1 when both masks are empty; then `both_empty` is set.
    pub dice: f64,
    /// At the tolerance of the settings.
    pub surface_dice: Option<f64>,
    /// 95th percentile of surface distances.
    pub hd95_mm: Option<f64>,
    /// Greatest surface distance.
    pub hd_mm: Option<f64>,
    /// Neither lesion nor prediction.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub both_empty: bool,
}

/// Figures of one reference lesion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LesionResult {
    /// Its size in the reference.
    pub volume_mm3: f64,
    /// Whether a predicted voxel lies in it.
    pub detected: bool,
    /// Against its part of the prediction.
    pub dice: Option<f64>,
    /// At the tolerance of the settings.
    pub surface_dice: Option<f64>,
    /// 95th percentile of surface distances.
    pub hd95_mm: Option<f64>,
    /// Greatest surface distance.
    pub hd_mm: Option<f64>,
}

/// Figures of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// Case id.
    pub id: String,
    /// Lesions of the reference.
    pub reference_lesions: usize,
    /// Components of the prediction.
    pub predicted_components: usize,
    /// Lesions that were found.
    pub detected: usize,
    /// Lesions that were not.
    pub missed: usize,
    /// Components that lie in no lesion.
    pub false_positives: usize,
    /// Over all voxels.
    pub whole_mask: WholeMask,
    /// Every reference lesion, in the order of its first voxel.
    pub lesions: Vec<LesionResult>,
}

/// Figures over all cases, counts added up before dividing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pooled {
    /// Volumes.
    pub cases: usize,
    /// Lesions of all references.
    pub reference_lesions: usize,
    /// Of these, found.
    pub detected: usize,
    /// Components in no lesion.
    pub false_positives: usize,
    /// detected / reference lesions.
    pub sensitivity: Option<f64>,
    /// detected / (detected + false positives).
    pub precision: Option<f64>,
    /// The paper's FPR: false positives / volumes.
    pub fp_per_case: Option<f64>,
    /// F_β with β = 1.
    pub f1: Option<f64>,
    /// F_β with β = 2.
    pub f2: Option<f64>,
    /// Mean over detected lesions.
    pub dice: Option<f64>,
    /// Mean over detected lesions.
    pub surface_dice: Option<f64>,
    /// Mean over detected lesions.
    pub hd95_mm: Option<f64>,
}

/// What `rondo evaluate --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// How it was judged.
    pub settings: Settings,
    /// Every case, sorted by id.
    pub cases: Vec<CaseResult>,
    /// All predictions.
    pub pooled: Pooled,
    /// The same with predictions outside the brain removed, where brain masks were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled_in_brain: Option<Pooled>,
}

/// Pools cases. No cases: all counts 0, all figures `None`.
pub fn pool<'a>(cases: impl IntoIterator<Item = &'a CaseResult>) -> Pooled {
    let cases: Vec<_> = cases.into_iter().collect();
    let sum = |count: fn(&CaseResult) -> usize| cases.iter().map(|c| count(c)).sum::<usize>();
    let (lesions, detected, fp) =
        (sum(|c| c.reference_lesions), sum(|c| c.detected), sum(|c| c.false_positives));
    let ratio = |part: usize, of: usize| (of > 0).then(|| part as f64 / of as f64);
    let (sensitivity, precision) = (ratio(detected, lesions), ratio(detected, detected + fp));
    let mean = |figure: fn(&LesionResult) -> Option<f64>| {
        let values: Vec<f64> = cases.iter().flat_map(|c| &c.lesions).filter_map(figure).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Pooled {
        cases: cases.len(),
        reference_lesions: lesions,
        detected,
        false_positives: fp,
        sensitivity,
        precision,
        fp_per_case: ratio(fp, cases.len()),
        f1: f_beta(1.0, precision, sensitivity),
        f2: f_beta(2.0, precision, sensitivity),
        dice: mean(|l| l.dice),
        surface_dice: mean(|l| l.surface_dice),
        hd95_mm: mean(|l| l.hd95_mm),
    }
}

/// F_β = (1 + β²)·P·S / (β²·P + S); 0 when both are 0, undefined when one is.
fn f_beta(beta: f64, precision: Option<f64>, sensitivity: Option<f64>) -> Option<f64> {
    let (p, s, b) = (precision?, sensitivity?, beta * beta);
    Some(if p + s > 0.0 { (1.0 + b) * p * s / (b * p + s) } else { 0.0 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pool_is_undefined_not_perfect() {
        let none = pool(&[]);
        assert_eq!(
            (none.sensitivity, none.precision, none.fp_per_case, none.f1, none.dice),
            (None, None, None, None, None)
        );
        assert_eq!(f_beta(1.0, Some(0.0), Some(0.0)), Some(0.0));
        assert_eq!(f_beta(2.0, None, Some(0.0)), None);
    }

    #[test]
    fn f_beta_by_hand() {
        assert!((f_beta(1.0, Some(0.5), Some(1.0)).unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert!((f_beta(2.0, Some(0.5), Some(1.0)).unwrap() - 5.0 / 6.0).abs() < 1e-12);
    }
}
