//! How a site trains: every hyper-parameter of the paper as a resolved value, each departure by name.
//!
//! Source: Huang et al. 2024 (Radiotherapy & Oncology), Methods, and the behaviour of its published code.

use crate::checkpoint::{Extras, Measure};
use crate::settings::Table;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A word in a settings file that names no known choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not known here; choose one of {known}")]
pub struct UnknownChoice {
    found: String,
    known: String,
}

/// An enum whose values have names: the same name in TOML, JSON and on the command line.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }
        impl $name {
            /// Every choice, in the order of its number on the wire (from 1).
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Number of this choice on the wire: its place in [`Self::ALL`], from 1.
            #[must_use]
            pub fn number(self) -> i32 {
                let at = Self::ALL.iter().position(|c| *c == self).unwrap_or_default();
                i32::try_from(at + 1).unwrap_or_default()
            }
            /// The choice of that number, if there is one.
            #[must_use]
            pub fn from_number(number: i32) -> Option<Self> {
                let at = usize::try_from(number).ok()?.checked_sub(1)?;
                Self::ALL.get(at).copied()
            }
            /// The name of this choice.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.name()) }
        }
        impl FromStr for $name {
            type Err = UnknownChoice;
            fn from_str(text: &str) -> Result<Self, UnknownChoice> {
                Self::ALL.iter().find(|c| c.name() == text).copied().ok_or_else(|| UnknownChoice {
                    found: text.chars().take(40).collect(),
                    known: Self::ALL.iter().map(|c| c.name()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

choices! {
    /// Where the values come from that a recipe does not set itself.
    Preset {
        /// What the paper describes.
        Paper = "paper",
        /// What the released code does.
        Published = "published",
    }
}

choices! {
    /// What a visit does with the model it received.
    Method {
        /// One site alone, from a fresh model.
        Single = "single",
        /// Transfer: go on training the received model.
        Tl = "tl",
        /// Learning without forgetting: transfer with distillation from the received model.
        Lwf = "lwf",
        /// Pooled cases of several sites; only a simulation on one machine may do this.
        Mixed = "mixed",
        /// Elastic weight consolidation: transfer, with parameters held near the received ones by the
        /// empirical Fisher information of the cross-entropy (Kirkpatrick et al., PNAS 2017, eq. 3).
        Ewc = "ewc",
        /// Memory aware synapses: as `ewc`, by the mean size of the gradient of the squared L2 norm of
        /// the logits (Aljundi et al., ECCV 2018, eq. 2 to 4), which needs no labels.
        Mas = "mas",
    }
}

impl Method {
    /// Whether parameters are held near the received ones by their importance, which then travels
    /// with the weights.
    #[must_use]
    pub const fn anchors(self) -> bool {
        self.measure().is_some()
    }

    /// How the method measures importance.
    #[must_use]
    pub const fn measure(self) -> Option<Measure> {
        match self {
            Self::Ewc => Some(Measure::Ewc),
            Self::Mas => Some(Measure::Mas),
            Self::Single | Self::Tl | Self::Lwf | Self::Mixed => None,
        }
    }

    /// `anchor_lambda` where a recipe file leaves it out. Squared gradients of the cross-entropy are
    /// some thousand times smaller than those of the logits' norm; of 1, 100, 1000 for `ewc` and 0.1, 1
    /// for `mas`, these kept most of the first site's Dice after a visit to another phantom centre.
    const fn anchor_lambda(self) -> f64 {
        match self {
            Self::Ewc => 100.0,
            Self::Mas => 0.1,
            Self::Single | Self::Tl | Self::Lwf | Self::Mixed => ANCHOR_LAMBDA,
        }
    }
}

choices! {
    /// Arithmetic of the convolutions; weights, statistics, losses and the optimizer are always fp32.
    Precision {
        /// 32-bit floating point (paper).
        Fp32 = "fp32",
        /// Mixed precision with bfloat16 (Kalamkar et al. 2019): eight bits of mantissa, fp32's range.
        Bf16 = "bf16",
    }
}

#[allow(clippy::derivable_impls)] // `choices!` gives no type a default
impl Default for Precision {
    fn default() -> Self {
        Self::Fp32
    }
}

choices! {
    /// What happens to the optimizer when a checkpoint arrives.
    OptimizerOnArrival {
        /// Fresh moments and the recipe's learning rate.
        Reset = "reset",
        /// Moments, maxima, step and the decayed learning rate travel with the weights.
        Carry = "carry",
    }
}

choices! {
    /// Which model a visit hands on.
    Select {
        /// Best mean validation Dice.
        BestValidation = "best-validation",
        /// The one after the last update.
        Last = "last",
    }
}

choices! {
    /// Which segments count as negative in the specificity part of VSS.
    VssNegatives {
        /// Any segment with a background voxel (published code, ε = 0.1).
        AnyBackground = "any-background",
        /// Only segments without tumour (Medical Physics 2022, ε = 1).
        AllBackground = "all-background",
    }
}

choices! {
    /// How KDL is averaged.
    KdlReduction {
        /// Summed over classes and voxels, divided by the number of segments.
        VoxelSum = "voxel-sum",
        /// Divided by the number of voxels as well.
        VoxelMean = "voxel-mean",
    }
}

/// Widths of DeepMedic (paper: 30, 40, 50, 150).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// First two layers of both branches.
    pub n1: u32,
    /// Middle layers.
    pub n2: u32,
    /// Last layers before the merge.
    pub n3: u32,
    /// Hidden layers of the head.
    pub m: u32,
}

impl Architecture {
    /// The network of the paper: 656,902 trainable parameters.
    pub const PAPER: Self = Self { n1: 30, n2: 40, n3: 50, m: 150 };
    /// Widest layer that is accepted: bounds memory before anything is allocated.
    pub const WIDTH_MAX: u32 = 512;

    /// Widths must lie in 1..=512 and not shrink from n1 to n3, because a skip adds to the first channels.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        [self.n1, self.n2, self.n3, self.m].iter().all(|w| (1..=Self::WIDTH_MAX).contains(w))
            && self.n1 <= self.n2
            && self.n2 <= self.n3
    }
}

/// Weight of a penalty in a plan that does not say it, which then has none. Part of the plan's format.
pub const ANCHOR_LAMBDA: f64 = 1.0;
/// Segments that importance is measured on in a plan that does not say it. Part of the plan's format.
pub const IMPORTANCE_SEGMENTS: u32 = 1000;

fn anchor_lambda() -> f64 {
    ANCHOR_LAMBDA
}

fn importance_segments() -> u32 {
    IMPORTANCE_SEGMENTS
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[allow(clippy::trivially_copy_pass_by_ref, clippy::float_cmp)] // as serde calls it; equal means unset
fn is_anchor_lambda(value: &f64) -> bool {
    *value == ANCHOR_LAMBDA
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_importance_segments(value: &u32) -> bool {
    *value == IMPORTANCE_SEGMENTS
}

/// Every value that decides how a visit trains. There are no defaults left in it.
///
/// Its JSON is signed. Options that came later are left out of it while they have the value they had
/// before they existed, so that an older plan keeps its bytes and its signatures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Where unset values came from.
    pub preset: Preset,
    /// What a visit does with the model it received.
    pub method: Method,
    /// Widths of the network.
    pub architecture: Architecture,
    /// Passes over the training cases in one visit (paper: 300).
    pub epochs: u32,
    /// Segments drawn per visit of a case, half of them centred on tumour (paper: 10).
    pub segments_per_case: u32,
    /// Case visits whose segments are pooled and shuffled (paper: 100).
    pub cases_per_pool: u32,
    /// Segments per update (paper: 50; mixed training in the published code: 16).
    pub mini_batch: u32,
    /// Adam's step (paper: 1e-3).
    pub learning_rate: f64,
    /// Epochs at which the step is multiplied by `learning_rate_factor` (paper: 150, 250).
    pub learning_rate_epochs: Vec<u32>,
    /// Paper: 0.1.
    pub learning_rate_factor: f64,
    /// Coupled L2 on every tensor (paper: 1e-4).
    pub weight_decay: f64,
    /// Adam's ε (1e-8).
    pub adam_epsilon: f64,
    /// Running maximum of the second moment (paper: on).
    pub amsgrad: bool,
    /// Weight of sensitivity against specificity in VSS (α = 0.5).
    pub vss_alpha: f64,
    /// Which segments are negative in VSS.
    pub vss_negatives: VssNegatives,
    /// ε of VSS: 0.1 or 1, by the definition chosen.
    pub vss_epsilon: f64,
    /// Weight λ of the distillation loss (paper: 0.1).
    pub kdl_lambda: f64,
    /// Temperature T of the distillation loss (paper: 2).
    pub kdl_temperature: f64,
    /// How KDL is averaged.
    pub kdl_reduction: KdlReduction,
    /// What happens to the optimizer on arrival.
    pub optimizer_on_arrival: OptimizerOnArrival,
    /// Which model is handed on.
    pub select: Select,
    /// Epochs between two validations (paper: 2).
    pub validate_every: u32,
    /// Arithmetic of the convolutions (paper: fp32).
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Mirrors each segment along each axis with probability ½ (paper: off).
    #[serde(default, skip_serializing_if = "is_default")]
    pub augment_flips: bool,
    /// Multiplies the intensities of a segment by U(1 − s, 1 + s) (paper: off, s = 0).
    #[serde(default, skip_serializing_if = "is_default")]
    pub augment_scale: f64,
    /// Adds U(−s, s) to the intensities of a segment, in z-score units (paper: off, s = 0).
    #[serde(default, skip_serializing_if = "is_default")]
    pub augment_shift: f64,
    /// Largest L2 norm of the gradient over all tensors; a longer one is scaled down to it (Pascanu et
    /// al. 2013). Paper: off, 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gradient_clip: f64,
    /// Weight of the penalty of `ewc` and `mas`; other methods have none. A file that leaves it out
    /// gets 100 for `ewc` and 0.1 for `mas`.
    #[serde(default = "anchor_lambda", skip_serializing_if = "is_anchor_lambda")]
    pub anchor_lambda: f64,
    /// Segments on which `ewc` and `mas` measure the importance of parameters at the end of a visit.
    #[serde(default = "importance_segments", skip_serializing_if = "is_importance_segments")]
    pub importance_segments: u32,
}

impl Recipe {
    /// The named preset with the method it is used with most: `lwf`.
    #[must_use]
    pub fn preset(preset: Preset) -> Self {
        let (optimizer_on_arrival, select) = match preset {
            Preset::Paper => (OptimizerOnArrival::Reset, Select::BestValidation),
            Preset::Published => (OptimizerOnArrival::Carry, Select::Last),
        };
        Self {
            preset,
            method: Method::Lwf,
            architecture: Architecture::PAPER,
            epochs: 300,
            segments_per_case: 10,
            cases_per_pool: 100,
            mini_batch: 50,
            learning_rate: 1e-3,
            learning_rate_epochs: vec![150, 250],
            learning_rate_factor: 0.1,
            weight_decay: 1e-4,
            adam_epsilon: 1e-8,
            amsgrad: true,
            vss_alpha: 0.5,
            vss_negatives: VssNegatives::AnyBackground,
            vss_epsilon: 0.1,
            kdl_lambda: 0.1,
            kdl_temperature: 2.0,
            kdl_reduction: KdlReduction::VoxelSum,
            optimizer_on_arrival,
            select,
            validate_every: 2,
            precision: Precision::Fp32,
            augment_flips: false,
            augment_scale: 0.0,
            augment_shift: 0.0,
            gradient_clip: 0.0,
            anchor_lambda: ANCHOR_LAMBDA,
            importance_segments: IMPORTANCE_SEGMENTS,
        }
    }

    /// What travels beside the weights.
    #[must_use]
    pub fn extras(&self) -> Extras {
        Extras { optimizer: self.carries_optimizer(), importance: self.method.measure() }
    }

    /// Whether optimizer state travels with the weights.
    #[must_use]
    pub fn carries_optimizer(&self) -> bool {
        self.optimizer_on_arrival == OptimizerOnArrival::Carry
    }

    /// Reads a `[recipe]` table: a preset, then what departs from it.
    pub fn from_table(t: &mut Table<'_>) -> Option<Self> {
        let mut r = Self::preset(t.parsed("preset").unwrap_or(Preset::Paper));
        r.method = t.parsed("method").unwrap_or(r.method);
        r.anchor_lambda = r.method.anchor_lambda();
        if r.method == Method::Mixed && r.preset == Preset::Published {
            r.mini_batch = 16;
        }
        r.vss_negatives = t.parsed("vss_negatives").unwrap_or(r.vss_negatives);
        if r.vss_negatives == VssNegatives::AllBackground {
            r.vss_epsilon = 1.0;
        }
        if let Some(widths) = t.integer_list("widths", 1, Architecture::WIDTH_MAX) {
            match widths.as_slice() {
                &[n1, n2, n3, m] => r.architecture = Architecture { n1, n2, n3, m },
                _ => t.problem("`widths` needs four numbers, as [30, 40, 50, 150]"),
            }
        }
        if let Some(list) = t.integer_list("learning_rate_epochs", 1, 100_000) {
            r.learning_rate_epochs = list;
        }
        r.amsgrad = t.boolean("amsgrad").unwrap_or(r.amsgrad);
        r.kdl_reduction = t.parsed("kdl_reduction").unwrap_or(r.kdl_reduction);
        r.optimizer_on_arrival = t.parsed("optimizer_on_arrival").unwrap_or(r.optimizer_on_arrival);
        r.select = t.parsed("select").unwrap_or(r.select);
        r.precision = t.parsed("precision").unwrap_or(r.precision);
        r.augment_flips = t.boolean("augment_flips").unwrap_or(r.augment_flips);
        r.read_bounded(t);
        for problem in r.problems() {
            t.problem(problem);
        }
        Some(r)
    }

    /// Everything impossible about these values, as sentences; empty when the recipe can run.
    ///
    /// A recipe that came over the wire passes the same bounds as one that was read from a file.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut list = self.out_of_bounds();
        if !self.architecture.is_possible() {
            list.push("`widths` must lie in 1 to 512 and n1 ≤ n2 ≤ n3".to_owned());
        }
        if self.learning_rate_epochs.len() > 100 {
            list.push("`learning_rate_epochs` holds more than 100 entries".to_owned());
        }
        if self.method.anchors() && self.anchor_lambda == 0.0 {
            list.push(format!(
                "method {} with `anchor_lambda` 0 holds nothing; raise it, or choose tl",
                self.method
            ));
        }
        list
    }
}

/// Bounds of the numeric values, used for files and for what peers send alike.
macro_rules! bounds {
    (whole { $($w:ident: $wmin:literal..=$wmax:literal),+ $(,)? }
     number { $($n:ident: $nmin:literal..=$nmax:literal),+ $(,)? }) => {
        impl Recipe {
            fn read_bounded(&mut self, t: &mut Table<'_>) {
                $(if let Some(v) = t.integer32(stringify!($w), $wmin, $wmax) { self.$w = v; })+
                $(if let Some(v) = t.number(stringify!($n), $nmin, $nmax) { self.$n = v; })+
            }

            fn out_of_bounds(&self) -> Vec<String> {
                let mut list = Vec::new();
                $(if !($wmin..=$wmax).contains(&self.$w) {
                    list.push(format!(concat!("`", stringify!($w), "` is {}, but must lie between ",
                        stringify!($wmin), " and ", stringify!($wmax)), self.$w));
                })+
                $(if !($nmin..=$nmax).contains(&self.$n) {
                    list.push(format!(concat!("`", stringify!($n), "` is {}, but must lie between ",
                        stringify!($nmin), " and ", stringify!($nmax)), self.$n));
                })+
                list
            }
        }
    };
}

bounds! {
    whole {
        epochs: 1..=100_000,
        segments_per_case: 2..=1000,
        cases_per_pool: 1..=1000,
        mini_batch: 1..=4096,
        validate_every: 1..=100_000,
        importance_segments: 1..=100_000,
    }
    number {
        learning_rate: 1e-9..=1.0,
        learning_rate_factor: 1e-6..=1.0,
        weight_decay: 0.0..=1.0,
        adam_epsilon: 1e-16..=1e-2,
        vss_alpha: 0.0..=1.0,
        vss_epsilon: 1e-9..=10.0,
        kdl_lambda: 0.0..=1e4,
        kdl_temperature: 0.1..=100.0,
        augment_scale: 0.0..=0.9,
        augment_shift: 0.0..=10.0,
        gradient_clip: 0.0..=1e6,
        anchor_lambda: 0.0..=1e6,
    }
}
