//! The training itself: what the daemon's task says, as a visit of the learning library.

use super::{Failed, REPORT_PACE, Site, report};
use crate::unfinished::{Unfinished, images};
use rondo::checkpoint::VerifiedCheckpoint;
use rondo::ids::Digest;
use rondo::recipe::Recipe;
use rondo_learn::checkpoint::Weights;
use rondo_learn::report::{Listener, Progress};
use rondo_learn::resume::{Saved, identity};
use rondo_learn::train::{Error, Visit, go_on};
use rondo_proto::convert::digest_bytes;
use rondo_proto::trainer::{
    FailureReason, TrainProgress, TrainResult, TrainTask, TrainerReport, trainer_report::Report,
};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

/// Trains, from where an earlier process left this very visit if one did.
pub(super) fn learn(
    site: &Site,
    task: &TrainTask,
    recipe: &Recipe,
    received: Option<&VerifiedCheckpoint>,
    unfinished: Unfinished,
    stop: Arc<AtomicBool>,
    reports: mpsc::Sender<TrainerReport>,
) -> Result<(Vec<u8>, TrainResult), Failed> {
    let received = received
        .map(Weights::from_checkpoint)
        .transpose()
        .map_err(|e| Failed(FailureReason::Storage, e.into()))?;
    let visit = Visit {
        recipe,
        seed: task.seed,
        received: received.as_ref(),
        cases: &site.training.views(),
        validation: &site.validation.views(),
    };
    let identity = identity(&visit, &site.device, images([&site.training, &site.validation]));
    let saved = unfinished.read().unwrap_or_else(|e| {
        tracing::warn!("{e:#}; training begins anew");
        None
    });
    let told = Instant::now();
    if task.least_dice.is_some() && received.is_some() && visit.validation.is_empty() {
        tracing::warn!(
            "the plan demands a validation of the received model, but this site has no validation case: it is not judged here"
        );
    }
    let mut daemon =
        Daemon { task, unfinished, stop, reports, told, validation_dice: None, too_low: None };
    let outcome = go_on(&visit, &site.device, identity, saved, &mut daemon);
    if let Some((dice, least)) = daemon.too_low {
        let e = anyhow::anyhow!(
            "the received model validates at Dice {dice:.4}, but {least:.4} is the least that the plan accepts here; nothing was trained"
        );
        return Err(Failed(FailureReason::Floor, e));
    }
    let outcome = outcome.map_err(|e| {
        let reason = match &e {
            Error::NoCases(_) => FailureReason::Cohort,
            Error::NotFinite { .. } => FailureReason::Diverged,
            _ => FailureReason::Trainer,
        };
        Failed(reason, e.into())
    })?;
    let bytes = outcome.weights.to_bytes();
    let r = &outcome.report;
    let result = TrainResult {
        round: task.round.clone(),
        visit: task.visit,
        weights: digest_bytes(Digest::of(&bytes)),
        training_cases: r.cases,
        validation_cases: r.validation_cases,
        epochs: r.epochs,
        updates: r.updates.into(),
        chosen_epoch: r.chosen_epoch,
        received_dice: r.dice_before,
        trained_dice: r.dice_after,
    };
    Ok((bytes, result))
}

/// Who runs the visit: the daemon hears figures, this site's disk keeps the state.
struct Daemon<'t> {
    task: &'t TrainTask,
    unfinished: Unfinished,
    stop: Arc<AtomicBool>,
    reports: mpsc::Sender<TrainerReport>,
    told: Instant,
    validation_dice: Option<f64>,
    /// Validation of the received model, and the least that is accepted, if it is less.
    too_low: Option<(f64, f64)>,
}

impl Daemon<'_> {
    fn tell(&mut self, event: Progress) {
        match event {
            Progress::Notice { text } => tracing::warn!("{text}"),
            Progress::Validated { epoch, dice } => {
                self.validation_dice = Some(dice);
                if epoch == 0 {
                    self.too_low =
                        self.task.least_dice.filter(|least| dice < *least).map(|l| (dice, l));
                }
                tracing::info!(epoch, dice, "validated");
            }
            Progress::Update {
                epoch,
                epochs,
                update,
                updates,
                loss,
                learning_rate,
                segments_per_s,
                eta_s,
                memory_mib,
            } => {
                if self.told.elapsed() <= REPORT_PACE && update != updates {
                    return;
                }
                self.told = Instant::now();
                let now = TrainProgress {
                    round: self.task.round.clone(),
                    visit: self.task.visit,
                    epoch,
                    epochs,
                    update: update.into(),
                    updates: updates.into(),
                    cross_entropy: loss.ce.into(),
                    vss: loss.vss.into(),
                    kdl: loss.kdl.into(),
                    penalty: loss.penalty.into(),
                    learning_rate,
                    segments_per_second: segments_per_s,
                    validation_dice: self.validation_dice,
                    eta_seconds: eta_s,
                    memory_mib,
                };
                // A daemon that is slow to listen misses some progress, and nothing else.
                let _ = self.reports.try_send(report(Report::Progress(now)));
            }
            Progress::Started { .. } => {}
        }
    }
}

impl Listener for Daemon<'_> {
    fn hear(&mut self, event: Progress) -> ControlFlow<()> {
        self.tell(event);
        if self.stops() || self.too_low.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn stops(&mut self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn wants_state(&mut self) -> bool {
        self.unfinished.due()
    }

    fn keep(&mut self, state: &Saved) {
        if let Some(text) = self.unfinished.keep(state) {
            tracing::warn!("{text}");
        }
    }
}
