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
    /// Penalty for leaving the received parameters (EWC, MAS), its weight λ included; else 0.
    #[serde(default)]
    pub penalty: f32,
}

impl Parts {
    /// The first part that is no number, in words.
    #[must_use]
    pub fn not_finite(&self) -> Option<&'static str> {
        let named = [
            (self.ce, "cross-entropy"),
            (self.vss, "VSS loss"),
            (self.kdl, "distillation loss"),
            (self.penalty, "penalty for leaving the received parameters"),
        ];
        named.into_iter().find(|(part, _)| !part.is_finite()).map(|(_, name)| name)
    }
}

impl From<[f32; 4]> for Parts {
    fn from([ce, vss, kdl, penalty]: [f32; 4]) -> Self {
        Self { ce, vss, kdl, penalty }
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

    /// CE, VSS, KDL and `penalty` as one vector `[4]`, still on the device and outside of any graph.
    pub(crate) fn row(self, penalty: Option<Tensor<1>>) -> Tensor<1> {
        let ce = self.ce.without_autodiff();
        let or_zero = |part: Option<Tensor<1>>| part.unwrap_or_else(|| ce.zeros_like());
        let kdl = or_zero(self.kdl.map(Tensor::without_autodiff));
        let penalty = or_zero(penalty);
        Tensor::cat(vec![ce, self.vss.without_autodiff(), kdl, penalty], 0)
    }

    /// Reads the parts in one transfer.
    pub(crate) fn read(self) -> Result<Parts, burn::tensor::TensorReadError> {
        let row: Vec<f32> = self.row(None).try_into_vec_as()?;
        Ok(row.as_chunks().0.first().copied().map(Parts::from).unwrap_or_default())
    }
}

/// Gradient of `value` `[1]` by the logits `leaf` `[n, 2, 9, 9, 9]` that it was computed from.
pub(crate) fn gradient(leaf: &Tensor<5>, value: Tensor<1>) -> Tensor<5> {
    let grads = value.backward();
    leaf.grad(&grads).unwrap_or_else(|| leaf.clone().without_autodiff().zeros_like())
}

/// CE alone: `logits` `[n, 2, 9, 9, 9]` against `target` `[n, v]`.
pub(crate) fn cross_entropy_of(logits: Tensor<5>, target: Tensor<2>) -> Tensor<1> {
    cross_entropy(difference(logits), target)
}

/// Squared L2 norm of the two logits, mean over segments and voxels.
pub(crate) fn squared_norm(logits: Tensor<5>) -> Tensor<1> {
    (logits.clone() * logits).mean() * 2.0
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
