//! What a visit tells while it runs and at its end: numbers, never a patient's name.

use crate::loss::Parts;
use crate::resume::Saved;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// Whoever runs a visit: hears what happens, may stop it, keeps its state.
pub trait Listener {
    /// Hears what happened; `Break` stops the visit.
    fn hear(&mut self, event: Progress) -> ControlFlow<()>;

    /// Asked after every update, and between volumes in validation: whether to stop.
    fn stops(&mut self) -> bool {
        false
    }

    /// Asked after every update and every validation: whether the state shall be kept now.
    fn wants_state(&mut self) -> bool {
        false
    }

    /// The state between two updates, with which the visit can go on after a crash. It is also
    /// offered once when the visit is stopped.
    fn keep(&mut self, state: &Saved) {
        let _ = state;
    }
}

/// One who only hears.
pub(crate) struct Hears<'f>(pub(crate) &'f mut dyn FnMut(Progress) -> ControlFlow<()>);

impl Listener for Hears<'_> {
    fn hear(&mut self, event: Progress) -> ControlFlow<()> {
        (self.0)(event)
    }
}

/// Something that happened during a visit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Progress {
    /// A sentence for this site's operator. It may name a case and must not leave the site.
    Notice {
        /// The sentence.
        text: String,
    },
    /// The visit begins.
    Started {
        /// Cases that are trained on.
        cases: u32,
        /// Cases that are validated on.
        validation_cases: u32,
        /// Passes over the cases.
        epochs: u32,
        /// Updates of the whole visit.
        updates: u32,
    },
    /// One update was made.
    Update {
        /// Epoch, from 1.
        epoch: u32,
        /// Epochs of the visit.
        epochs: u32,
        /// Update, from 1.
        update: u32,
        /// Updates of the visit.
        updates: u32,
        /// Loss of this mini-batch.
        loss: Parts,
        /// Adam's step.
        learning_rate: f64,
        /// Segments per second since the visit began.
        segments_per_s: f64,
        /// Seconds to the end of the visit at this rate.
        eta_s: f64,
        /// Memory in use on the GPU, or by this process where it trains on the CPU, in MiB; none where
        /// the system does not say.
        memory_mib: Option<u32>,
    },
    /// The model was validated.
    Validated {
        /// Epoch it has completed; 0 is the model as received.
        epoch: u32,
        /// Mean whole-mask Dice, empty against empty = 1.
        dice: f64,
    },
}

/// One validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Epoch after which it was made.
    pub epoch: u32,
    /// Mean whole-mask Dice of the local validation set.
    pub dice: f64,
}

/// What a visit did: counts and figures only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Cases trained on.
    pub cases: u32,
    /// Cases validated on.
    pub validation_cases: u32,
    /// Cases that were set aside as unfit.
    pub set_aside: u32,
    /// Epochs completed.
    pub epochs: u32,
    /// Updates made.
    pub updates: u32,
    /// Segments seen.
    pub segments: u64,
    /// Validation of the model as received; none for a fresh one or without validation cases.
    pub dice_before: Option<f64>,
    /// Validation of the model handed on; none without validation cases.
    pub dice_after: Option<f64>,
    /// Validations on the way.
    pub checks: Vec<Check>,
    /// Epoch whose model is handed on.
    pub chosen_epoch: u32,
    /// Mean loss of the first epoch.
    pub loss_first_epoch: Parts,
    /// Mean loss of the last epoch.
    pub loss_last_epoch: Parts,
    /// Learning rate of the last update.
    pub learning_rate: f64,
    /// Seconds of the visit, validation included.
    pub seconds: f64,
}
