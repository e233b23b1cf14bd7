//! Losses of the paper (section 2.3 of Huang et al. 2024; names as in the recipe).
//!
//! Shapes: n segments, v = 729 voxels. With two classes, the softmax depends on the difference
//! d = z₁ − z₀ alone, so everything is computed on `[n, v]`: p = σ(d), −log p = softplus(−d).

use burn::tensor::Tensor;
use burn::tensor::activation::{log_sigmoid, sigmoid};
use rondo::recipe::{KdlReduction, Recipe, VssNegatives};
use serde::{Deserialize, Serialize};

/// Parts of one update's loss, or their means over several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// Two-class cross-entropy, mean over voxels (the paper's "BCE").
    pub ce: f32,
    /// Volume-level sensitivity-specificity.
    pub vss: f32,
    /// Distillation, before its weight λ; 0 without a teacher.
    pub kdl: f32,
}

impl Parts {
    /// Whether every part is a number.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.ce.is_finite() && self.vss.is_finite() && self.kdl.is_finite()
    }
}

/// The three parts on the device; [`Terms::total`] is what is differentiated.
pub(crate) struct Terms {
    pub(crate) ce: Tensor<1>,
    pub(crate) vss: Tensor<1>,
    pub(crate) kdl: Option<Tensor<1>>,
}

impl Terms {
    /// Loss of `student` logits `[n, 2, 9, 9, 9]` against `target` `[n, v]` (0 or 1) and, if there is
    /// one, the teacher's logits on the same segments.
    pub(crate) fn of(
        student: Tensor<5>,
        target: Tensor<2>,
        teacher: Option<Tensor<5>>,
        recipe: &Recipe,
    ) -> Self {
        let d = difference(student);
        Self {
            ce: cross_entropy(d.clone(), target.clone()),
            vss: vss(sigmoid(d.clone()), target, recipe),
            kdl: teacher.map(|t| kdl(d, difference(t), recipe)),
        }
    }

    /// CE + VSS + λ·KDL.
    pub(crate) fn total(&self, recipe: &Recipe) -> Tensor<1> {
        let segmentation = self.ce.clone() + self.vss.clone();
        match &self.kdl {
            Some(kdl) => segmentation + kdl.clone() * recipe.kdl_lambda,
            None => segmentation,
        }
    }

    /// Reads the parts in one transfer.
    pub(crate) fn read(self) -> Result<Parts, burn::tensor::TensorReadError> {
        let inner = |t: Tensor<1>| t.without_autodiff();
        let kdl = self.kdl.map(inner);
        let list = [Some(inner(self.ce)), Some(inner(self.vss)), kdl];
        let values: Vec<f32> =
            Tensor::cat(list.into_iter().flatten().collect(), 0).try_into_vec_as()?;
        let at = |i: usize| values.get(i).copied().unwrap_or_default();
        Ok(Parts { ce: at(0), vss: at(1), kdl: at(2) })
    }
}

/// z₁ − z₀ as `[n, v]`.
fn difference(logits: Tensor<5>) -> Tensor<2> {
    let [n, classes, d, h, w] = logits.dims();
    let flat = logits.reshape([n, classes, d * h * w]);
    (flat.clone().narrow(1, 1, 1) - flat.narrow(1, 0, 1)).reshape([n, d * h * w])
}

/// Mean of −log p(class): softplus(d) − y·d.
fn cross_entropy(d: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    (log_sigmoid(-d.clone()) + y * d).mean().neg()
}

/// 1 − ((1−α)·Spec + α·Sens), with Sens = Σ max(p·y) / (Σ pos + ε) and
/// Spec = 1 − Σ neg·max(p) / (Σ neg + ε); `p`, `y` are `[n, v]`.
fn vss(p: Tensor<2>, y: Tensor<2>, recipe: &Recipe) -> Tensor<1> {
    let positive = y.clone().max_dim(1);
    let negative = match recipe.vss_negatives {
        VssNegatives::AnyBackground => y.clone().min_dim(1),
        VssNegatives::AllBackground => positive.clone(),
    };
    let negative = negative * -1.0 + 1.0;
    let found = (p.clone() * y).max_dim(1).sum() / (positive.sum() + recipe.vss_epsilon);
    let alarms = (p.max_dim(1) * negative.clone()).sum() / (negative.sum() + recipe.vss_epsilon);
    // Both halves written as what is lost, so that nothing cancels.
    let alpha = recipe.vss_alpha;
    alarms * (1.0 - alpha) + found * -alpha + alpha
}

/// KL(teacher ‖ student) of softmax(z/T), summed over classes and voxels, divided by n
/// (`voxel-sum`) or by n·v (`voxel-mean`). No factor T².
fn kdl(student: Tensor<2>, teacher: Tensor<2>, recipe: &Recipe) -> Tensor<1> {
    let [n, v] = student.dims();
    let (s, t) = (student / recipe.kdl_temperature, teacher / recipe.kdl_temperature);
    let tumour = sigmoid(t.clone()) * (log_sigmoid(t.clone()) - log_sigmoid(s.clone()));
    let background = sigmoid(-t.clone()) * (log_sigmoid(-t) - log_sigmoid(-s));
    #[allow(clippy::cast_precision_loss)]
    let count = match recipe.kdl_reduction {
        KdlReduction::VoxelSum => n as f64,
        KdlReduction::VoxelMean => (n * v) as f64,
    };
    (tumour + background).sum() / count
}
