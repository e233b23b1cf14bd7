//! A visit: one site trains the model it received on its own cases.

mod begin;

use crate::checkpoint::Weights;
use crate::device::Device;
use crate::feed::{self, Position};
use crate::forgetting::{self, Importance};
use crate::infer;
use crate::loss::Parts;
use crate::memory::memory_mib;
use crate::network;
use crate::optimizer::learning_rate;
use crate::readings::{Readings, Update};
use crate::report::{Check, Hears, Listener, Progress, Report};
use crate::resume::{Exact, Figures, Saved};
use crate::segment::{self, Case, Indexed, Unfit};
use crate::update::{Input, Student};
use crate::validation::mean_dice;
use begin::{check, index};
use burn::tensor::TensorReadError;
use rondo::checkpoint::Measure;
use rondo::ids::Digest;
use rondo::recipe::{Precision, Recipe, Select};
use std::ops::ControlFlow;
use std::time::Instant;

pub use crate::validation::{dice, validate};

/// Why a visit ended without a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe cannot run.
    #[error("the recipe is not usable: {0}")]
    Recipe(String),
    /// No case is left to train on.
    #[error("no case is fit to train on; {0} were set aside, each with its reason in the notices")]
    NoCases(usize),
    /// A case turned out unfit while it was trained on.
    #[error("cutting segments failed: {0}")]
    Case(#[from] Unfit),
    /// The model is of other widths.
    #[error("the received model has widths {found}, but the recipe says {wanted}")]
    Widths {
        /// Widths of the model.
        found: String,
        /// Widths of the recipe.
        wanted: String,
    },
    /// A loss or a parameter is no longer a number.
    #[error(
        "the {what} stopped being a number in epoch {epoch}, update {update} (cases {}); \
         lower the learning rate, set `gradient_clip`, or look at these images", cases.join(", ")
    )]
    NotFinite {
        /// The part of the loss, or the model.
        what: &'static str,
        /// Epoch, from 1.
        epoch: u32,
        /// Update, from 1.
        update: u32,
        /// Cases of the mini-batch.
        cases: Vec<String>,
    },
    /// The caller asked to stop.
    #[error("the visit was stopped on request")]
    Stopped,
    /// A validation failed.
    #[error("validating case `{case}` failed: {source}")]
    Validation {
        /// The case.
        case: String,
        /// Why.
        source: infer::Error,
    },
    /// A method against forgetting failed.
    #[error(transparent)]
    Forgetting(#[from] forgetting::Error),
    /// A pass failed.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// Reading from the device failed.
    #[error("reading from the device failed: {0}")]
    Device(#[from] TensorReadError),
}

/// What a site trains with.
#[derive(Clone, Copy)]
pub struct Visit<'a> {
    /// Every hyper-parameter.
    pub recipe: &'a Recipe,
    /// Seed of every draw; and of the fresh model, if none was received.
    pub seed: u64,
    /// The model received; none makes a fresh one, which has no teacher.
    pub received: Option<&'a Weights>,
    /// Cases to train on.
    pub cases: &'a [Case<'a>],
    /// Cases to validate on.
    pub validation: &'a [Case<'a>],
}

/// What a visit hands on.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The model; with optimizer state and importance if the recipe says so.
    pub weights: Weights,
    /// What was done.
    pub report: Report,
}

/// Runs one visit from its beginning. `progress` hears everything and may stop it.
///
/// Same visit, same build, same device with as many threads: same bytes, on the CPU and on `flex`. On CUDA,
/// as far as cuDNN's kernels repeat themselves.
///
/// # Errors
/// As [`go_on`].
pub fn train(
    visit: &Visit<'_>,
    device: &Device,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Outcome, Error> {
    go_on(visit, device, Digest::of(&[]), None, &mut Hears(progress))
}

/// Runs one visit, from the state `saved` on where that belongs to the visit of this `identity`
/// ([`crate::resume::identity`]). The model is the one of an uninterrupted visit, bit for bit.
///
/// # Errors
/// An impossible recipe, no usable case, a loss that is no number, a device that fails, or a request
/// to stop.
pub fn go_on(
    visit: &Visit<'_>,
    device: &Device,
    identity: Digest,
    saved: Option<Saved>,
    listener: &mut dyn Listener,
) -> Result<Outcome, Error> {
    check(visit)?;
    let (cases, set_aside) = index(visit, listener)?;
    let mut run = Run::begin(visit, device, &cases, (identity, saved), listener)?;
    let ended = run.finish();
    if matches!(ended, Err(Error::Stopped)) {
        run.keep()?;
    }
    let (weights, chosen) = ended?;
    Ok(Outcome { weights, report: run.report(chosen, set_aside) })
}

/// A visit while it runs.
struct Run<'r, 'v> {
    visit: Visit<'v>,
    device: &'r Device,
    cases: &'r [Indexed<'r>],
    listener: &'r mut dyn Listener,
    identity: Digest,
    begun: Instant,
    /// Learning rate before the schedule.
    base: f64,
    student: Student<'r>,
    at: Position,
    figures: Figures,
    thrift: u32,
    best: Option<(Check, Weights)>,
    readings: Readings,
    /// Updates of the whole visit.
    updates: u32,
}

impl Run<'_, '_> {
    /// All epochs that are left; then the model to hand on, and the epoch it has completed.
    fn finish(&mut self) -> Result<(Weights, u32), Error> {
        let Visit { recipe, seed, .. } = self.visit;
        if self.visit.received.is_some() && self.figures.dice_before.is_none() {
            self.figures.dice_before = self.validate(0)?.map(Exact);
            self.keep_if_wanted()?;
        }
        self.readings = Readings::new();
        let cases = self.cases;
        std::thread::scope(|scope| {
            let mut batches = feed::feed(scope, cases, recipe, seed, self.at);
            while self.at.epoch < recipe.epochs {
                let rate = learning_rate(self.base, recipe, self.at.epoch);
                let last = segment::batches(cases, recipe, seed, self.at.epoch);
                while self.at.batch < last {
                    let Some(batch) = batches.next() else { break };
                    self.update(batch?, rate)?;
                    self.keep_if_wanted()?;
                }
                self.end_epoch()?;
                self.keep_if_wanted()?;
            }
            Ok::<(), Error>(())
        })?;
        self.hand_on()
    }

    /// One update; repeated with less memory where the device has not enough.
    fn update(&mut self, batch: feed::Prepared, rate: f64) -> Result<(), Error> {
        let n = batch.data.n;
        let input = Input::of(batch.data, self.device);
        let parts = loop {
            match self.student.update(&input, rate) {
                Err(network::Error::OutOfMemory) => self.save_memory()?,
                done => break done?,
            }
        };
        self.at = Position { epoch: batch.epoch, batch: batch.batch + 1 };
        self.figures.updates += 1;
        self.figures.segments += n as u64;
        let mut cases: Vec<usize> = batch.segments.iter().map(|s| s.case).collect();
        cases.sort_unstable();
        cases.dedup();
        let update =
            Update { epoch: self.at.epoch + 1, update: self.figures.updates, rate, n, cases };
        self.readings.push(update, parts);
        if self.readings.due() {
            self.read()?;
        }
        self.stop_if_asked()
    }

    fn save_memory(&mut self) -> Result<(), Error> {
        let text = self.student.network.thriftier().ok_or(network::Error::OutOfMemory)?;
        self.thrift += 1;
        self.tell(Progress::Notice { text: text.to_owned() })
    }

    /// Reads the losses since the last reading in one transfer, and tells them.
    fn read(&mut self) -> Result<(), Error> {
        let mut heard = Ok(());
        let read = self.readings.read()?;
        let memory = if read.is_empty() { None } else { memory_mib(self.device) };
        for (update, parts) in read {
            if let Some(what) = parts.not_finite() {
                return Err(self.not_finite(what, &update));
            }
            self.figures.add(parts, update.n);
            let told = self.progress(&update, parts, memory);
            heard = heard.and_then(|()| self.tell(told));
        }
        heard
    }

    fn progress(&self, update: &Update, loss: Parts, memory_mib: Option<u32>) -> Progress {
        let left = self.updates.saturating_sub(update.update);
        Progress::Update {
            epoch: update.epoch,
            epochs: self.visit.recipe.epochs,
            update: update.update,
            updates: self.updates,
            loss,
            learning_rate: update.rate,
            segments_per_s: self.readings.segments_per_s(),
            eta_s: self.readings.seconds_per_update() * f64::from(left),
            memory_mib,
        }
    }

    /// Validation and selection where they are due; then the next epoch is current.
    fn end_epoch(&mut self) -> Result<(), Error> {
        let recipe = self.visit.recipe;
        self.read()?;
        let epoch = self.at.epoch + 1;
        let due = epoch == recipe.epochs || epoch.is_multiple_of(recipe.validate_every);
        if let Some(dice) = if due { self.validate(epoch)? } else { None } {
            self.figures.checks.push((epoch, Exact(dice)));
            // Of equals, the longer trained one.
            if recipe.select == Select::BestValidation
                && self.best.as_ref().is_none_or(|(best, _)| dice >= best.dice)
            {
                self.best = Some((Check { epoch, dice }, self.model()?));
            }
        }
        self.figures.loss_last = self.figures.end_epoch();
        if epoch == 1 {
            self.figures.loss_first = self.figures.loss_last;
        }
        self.at = Position { epoch, batch: 0 };
        Ok(())
    }

    /// The model that the recipe selects, as the recipe hands it on.
    fn hand_on(&mut self) -> Result<(Weights, u32), Error> {
        let recipe = self.visit.recipe;
        let (chosen, mut weights) = match &self.best {
            Some((check, weights)) => (check.epoch, weights.clone()),
            None => (recipe.epochs, self.model()?),
        };
        if let Some(measure) = recipe.method.measure() {
            weights.importance = Some(self.importance(&weights, measure)?);
        }
        Ok((weights, chosen))
    }

    /// Which parameters of `weights` matter here, added to what mattered before. The segments are
    /// those of the epochs that would have come next, one by one and not augmented.
    fn importance(
        &mut self,
        weights: &Weights,
        measure: Measure,
    ) -> Result<(Measure, Vec<f32>), Error> {
        let recipe = Recipe {
            epochs: u32::MAX,
            mini_batch: 1,
            augment_flips: false,
            augment_scale: 0.0,
            augment_shift: 0.0,
            ..self.visit.recipe.clone()
        };
        let (seed, from) =
            (self.visit.seed, Position { epoch: self.visit.recipe.epochs, batch: 0 });
        let wanted = usize::try_from(recipe.importance_segments).unwrap_or(usize::MAX);
        let text = format!("measuring on {wanted} segments which parameters matter to this site");
        self.tell(Progress::Notice { text })?;
        let mut importance = Importance::new(weights, measure, self.device);
        let cases = self.cases;
        std::thread::scope(|scope| {
            for segment in feed::feed(scope, cases, &recipe, seed, from).take(wanted) {
                importance.add(segment?.data, self.device)?;
                self.stop_if_asked()?;
            }
            Ok::<(), Error>(())
        })?;
        let before = self.visit.received.and_then(|r| r.importance_by(measure));
        Ok((measure, importance.handed_on(before)?))
    }

    /// The model as it stands, with Adam's state where the recipe hands that on.
    fn model(&self) -> Result<Weights, Error> {
        let weights = self.weights()?;
        let optimizer = weights.optimizer.filter(|_| self.visit.recipe.carries_optimizer());
        Ok(Weights { optimizer, ..weights })
    }

    /// Copies the model with Adam's state to the host; every loss must have been read before.
    fn weights(&self) -> Result<Weights, Error> {
        let weights = self.student.weights(self.last_rate())?;
        let moments = weights.optimizer.iter().flat_map(|m| [&m.first, &m.second, &m.maximum]);
        let vectors = [&weights.parameters, &weights.mean, &weights.variance];
        if vectors.into_iter().chain(moments).flatten().all(|v| v.is_finite()) {
            return Ok(weights);
        }
        // The loss came before the update, so the last update spoilt it.
        Err(self.not_finite("model", &self.readings.last))
    }

    /// Learning rate of the last update.
    fn last_rate(&self) -> f64 {
        let recipe = self.visit.recipe;
        learning_rate(self.base, recipe, self.at.epoch.min(recipe.epochs.saturating_sub(1)))
    }

    fn not_finite(&self, what: &'static str, update: &Update) -> Error {
        let name = |case: &usize| self.cases.get(*case).map(|c| c.id.to_owned());
        let cases = update.cases.iter().filter_map(name).collect();
        Error::NotFinite { what, epoch: update.epoch, update: update.update, cases }
    }

    fn validate(&mut self, epoch: u32) -> Result<Option<f64>, Error> {
        let frozen = self.student.network.frozen(Precision::Fp32);
        let stops = &mut || self.listener.stops();
        let dice = mean_dice(frozen, self.visit.validation, self.device, stops)?;
        if let Some(dice) = dice {
            self.tell(Progress::Validated { epoch, dice })?;
        }
        Ok(dice)
    }

    fn keep_if_wanted(&mut self) -> Result<(), Error> {
        if self.listener.wants_state() { self.keep() } else { Ok(()) }
    }

    /// Offers the state to the listener. A loss that nobody has looked at is read first: what is
    /// kept is good.
    fn keep(&mut self) -> Result<(), Error> {
        let heard = match self.read() {
            heard @ (Ok(()) | Err(Error::Stopped)) => heard,
            failed => return failed,
        };
        let mut figures = self.figures.clone();
        figures.seconds.0 += self.begun.elapsed().as_secs_f64();
        let state = Saved {
            visit: self.identity,
            at: self.at,
            figures,
            thrift: self.thrift,
            made_on: self.device.describe(),
            student: self.weights()?,
            best: self.best.clone(),
        };
        self.listener.keep(&state);
        heard
    }

    fn stop_if_asked(&mut self) -> Result<(), Error> {
        if self.listener.stops() { Err(Error::Stopped) } else { Ok(()) }
    }

    fn tell(&mut self, event: Progress) -> Result<(), Error> {
        tell(self.listener, event)
    }

    fn report(self, chosen_epoch: u32, set_aside: u32) -> Report {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let learning_rate = self.last_rate();
        let Figures { updates, segments, dice_before, checks, .. } = self.figures;
        let checks: Vec<_> =
            checks.into_iter().map(|(epoch, dice)| Check { epoch, dice: dice.0 }).collect();
        let chosen = checks.iter().find(|check| check.epoch == chosen_epoch);
        Report {
            cases: count(self.cases.len()),
            validation_cases: count(self.visit.validation.len()),
            set_aside,
            epochs: self.visit.recipe.epochs,
            updates,
            segments,
            dice_before: dice_before.map(|dice| dice.0),
            dice_after: chosen.map(|check| check.dice),
            checks,
            chosen_epoch,
            loss_first_epoch: self.figures.loss_first,
            loss_last_epoch: self.figures.loss_last,
            learning_rate,
            seconds: self.figures.seconds.0 + self.begun.elapsed().as_secs_f64(),
        }
    }
}

fn tell(listener: &mut dyn Listener, event: Progress) -> Result<(), Error> {
    match listener.hear(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    }
}
