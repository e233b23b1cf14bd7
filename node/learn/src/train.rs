//! A visit: one site trains the model it received on its own cases.

use crate::checkpoint::{Moments, Weights};
use crate::device::Device;
use crate::infer;
use crate::loss::{Parts, Terms};
use crate::network::{Frozen, Network, X1, X2};
use crate::optimizer::{Adam, learning_rate};
use crate::report::{Check, Progress, Report};
use crate::segment::{self, Batch, Case, Indexed};
use burn::tensor::{Tensor, TensorData, TensorReadError};
use ndarray::ArrayView3;
use rondo::recipe::{Method, Recipe, Select};
use std::ops::ControlFlow;
use std::time::Instant;

/// Why a visit ended without a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe cannot run.
    #[error("the recipe is not usable: {0}")]
    Recipe(String),
    /// No case is left to train on.
    #[error("no case is fit to train on; {0} were set aside, each with its reason in the notices")]
    NoCases(usize),
    /// The model is of other widths.
    #[error("the received model has widths {found}, but the recipe says {wanted}")]
    Widths {
        /// Widths of the model.
        found: String,
        /// Widths of the recipe.
        wanted: String,
    },
    /// A loss is no longer a number.
    #[error(
        "the loss stopped being a number in epoch {epoch}, update {update} (cases {}); \
         lower the learning rate, or look at these images", cases.join(", ")
    )]
    NotFinite {
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
    /// Reading from the device failed.
    #[error("reading from the device failed: {0}")]
    Device(#[from] TensorReadError),
}

/// What a site trains with.
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
    /// The model; with optimizer state if the recipe carries it.
    pub weights: Weights,
    /// What was done.
    pub report: Report,
}

/// Runs one visit. `progress` hears everything and may stop it at any update.
///
/// Same visit, same build, same device: same bytes.
///
/// # Errors
/// An impossible recipe, no usable case, a loss that is no number, or a request to stop.
pub fn train(
    visit: &Visit<'_>,
    device: &Device,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Outcome, Error> {
    let start = Instant::now();
    let recipe = visit.recipe;
    check(visit)?;
    let mut run = Run { device, progress };
    let (cases, set_aside) = run.index(visit.cases, recipe)?;
    let fresh;
    let received = match visit.received {
        Some(received) => received,
        None => {
            fresh = Weights::initial(recipe.architecture, visit.seed);
            &fresh
        }
    };
    let per_epoch = segment::epoch(&cases, recipe, visit.seed, 0).len();
    let updates = u32::try_from(per_epoch).unwrap_or(u32::MAX).saturating_mul(recipe.epochs);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    run.tell(Progress::Started {
        cases: count(cases.len()),
        validation_cases: count(visit.validation.len()),
        epochs: recipe.epochs,
        updates,
    })?;

    let mut student = Network::new(received, device.burn());
    let distils = recipe.method == Method::Lwf && visit.received.is_some();
    let teacher = distils.then(|| student.frozen());
    let carried = received.optimizer.as_ref().filter(|_| recipe.carries_optimizer());
    let base = carried.map_or(recipe.learning_rate, |m| m.learning_rate);
    let zero;
    let moments = match carried {
        Some(moments) => moments,
        None => {
            zero = Moments::zero(received.parameters.len(), base);
            &zero
        }
    };
    let mut adam = Adam::new(moments, recipe, device.burn());
    let mut report = Report {
        cases: count(cases.len()),
        validation_cases: count(visit.validation.len()),
        set_aside,
        epochs: 0,
        updates: 0,
        segments: 0,
        dice_before: None,
        dice_after: None,
        checks: Vec::new(),
        chosen_epoch: 0,
        loss_first_epoch: Parts::default(),
        loss_last_epoch: Parts::default(),
        learning_rate: base,
        seconds: 0.0,
    };
    if visit.received.is_some() {
        report.dice_before = run.validate(student.frozen(), visit.validation, 0)?;
    }

    let training = Instant::now();
    let mut best: Option<(Check, Weights)> = None;
    for epoch in 0..recipe.epochs {
        let rate = learning_rate(base, recipe, epoch);
        let batches = segment::epoch(&cases, recipe, visit.seed, epoch);
        let mut sum = Mean::default();
        for segments in &batches {
            let batch = segment::cut(&cases, segments);
            let (n, parts) =
                run.update(&mut student, teacher.as_ref(), &mut adam, batch, recipe, rate)?;
            report.updates += 1;
            report.segments += n as u64;
            if !parts.is_finite() {
                let mut names: Vec<_> =
                    segments.iter().map(|s| cases[s.case].case.id.to_owned()).collect();
                names.sort_unstable();
                names.dedup();
                return Err(Error::NotFinite {
                    epoch: epoch + 1,
                    update: report.updates,
                    cases: names,
                });
            }
            sum.add(parts, n);
            let elapsed = training.elapsed().as_secs_f64();
            #[allow(clippy::cast_precision_loss)]
            run.tell(Progress::Update {
                epoch: epoch + 1,
                epochs: recipe.epochs,
                update: report.updates,
                updates,
                loss: parts,
                learning_rate: rate,
                segments_per_s: report.segments as f64 / elapsed,
                eta_s: elapsed / f64::from(report.updates)
                    * f64::from(updates.saturating_sub(report.updates)),
            })?;
        }
        report.epochs = epoch + 1;
        report.learning_rate = rate;
        report.loss_last_epoch = sum.mean();
        if epoch == 0 {
            report.loss_first_epoch = report.loss_last_epoch;
        }
        let last = epoch + 1 == recipe.epochs;
        if last || (epoch + 1) % recipe.validate_every == 0 {
            let Some(dice) = run.validate(student.frozen(), visit.validation, epoch + 1)? else {
                continue;
            };
            let check = Check { epoch: epoch + 1, dice };
            report.checks.push(check);
            // Of equals, the longer trained one.
            if recipe.select == Select::BestValidation
                && best.as_ref().is_none_or(|(b, _)| dice >= b.dice)
            {
                best = Some((check, snapshot(&student, &adam, recipe, rate)?));
            }
        }
    }
    report.dice_after = report.checks.last().map(|c| c.dice);
    report.chosen_epoch = recipe.epochs;
    let weights = match best {
        Some((check, weights)) => {
            report.dice_after = Some(check.dice);
            report.chosen_epoch = check.epoch;
            weights
        }
        None => snapshot(&student, &adam, recipe, report.learning_rate)?,
    };
    report.seconds = start.elapsed().as_secs_f64();
    Ok(Outcome { weights, report })
}

/// Mean whole-mask Dice of `weights` over `cases`; none without cases.
///
/// # Errors
/// The case whose inference failed.
pub fn validate(
    weights: &Weights,
    cases: &[Case<'_>],
    device: &Device,
) -> Result<Option<f64>, Error> {
    let frozen = Frozen::new(weights, device.burn());
    let mut silent = |_| ControlFlow::Continue(());
    Run { device, progress: &mut silent }.validate(frozen, cases, 0)
}

/// Refuses what can be seen to be wrong before anything is computed.
fn check(visit: &Visit<'_>) -> Result<(), Error> {
    let problems = visit.recipe.problems();
    if !problems.is_empty() {
        return Err(Error::Recipe(problems.join("; ")));
    }
    let Some(received) = visit.received else {
        return Ok(());
    };
    if visit.recipe.method == Method::Single {
        let text =
            "`single` trains a fresh model; leave out the received one, or use `tl` or `lwf`";
        return Err(Error::Recipe(text.to_owned()));
    }
    if received.architecture != visit.recipe.architecture {
        let words =
            |a: &rondo::recipe::Architecture| format!("{}, {}, {}, {}", a.n1, a.n2, a.n3, a.m);
        return Err(Error::Widths {
            found: words(&received.architecture),
            wanted: words(&visit.recipe.architecture),
        });
    }
    Ok(())
}

fn snapshot(student: &Network, adam: &Adam, recipe: &Recipe, rate: f64) -> Result<Weights, Error> {
    let mut weights = student.weights()?;
    if recipe.carries_optimizer() {
        weights.optimizer = Some(adam.moments(rate)?);
    }
    Ok(weights)
}

/// Running mean of the loss, weighted by segments.
#[derive(Default)]
struct Mean {
    sum: [f64; 3],
    segments: usize,
}

impl Mean {
    #[allow(clippy::cast_precision_loss)]
    fn add(&mut self, parts: Parts, n: usize) {
        for (sum, part) in self.sum.iter_mut().zip([parts.ce, parts.vss, parts.kdl]) {
            *sum += f64::from(part) * n as f64;
        }
        self.segments += n;
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn mean(&self) -> Parts {
        let n = self.segments.max(1) as f64;
        let [ce, vss, kdl] = self.sum.map(|s| (s / n) as f32);
        Parts { ce, vss, kdl }
    }
}

/// Device and listener of a visit.
struct Run<'r> {
    device: &'r Device,
    progress: &'r mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl Run<'_> {
    fn tell(&mut self, event: Progress) -> Result<(), Error> {
        match (self.progress)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }

    /// Indexes the centres of every case; sets unfit ones aside, each with a sentence.
    fn index<'a>(
        &mut self,
        cases: &[Case<'a>],
        recipe: &Recipe,
    ) -> Result<(Vec<Indexed<'a>>, u32), Error> {
        let mut fit = Vec::with_capacity(cases.len());
        let mut set_aside = 0;
        for case in cases {
            match Indexed::new(*case) {
                Ok(indexed) => {
                    if let Some(text) = indexed.shortage(recipe.segments_per_case) {
                        self.tell(Progress::Notice { text })?;
                    }
                    fit.push(indexed);
                }
                Err(unfit) => {
                    set_aside += 1;
                    self.tell(Progress::Notice { text: format!("{unfit}; it is set aside") })?;
                }
            }
        }
        if fit.is_empty() { Err(Error::NoCases(cases.len())) } else { Ok((fit, set_aside)) }
    }

    /// Forward, backward, Adam, running statistics.
    fn update(
        &self,
        student: &mut Network,
        teacher: Option<&Frozen>,
        adam: &mut Adam,
        batch: Batch,
        recipe: &Recipe,
        rate: f64,
    ) -> Result<(usize, Parts), Error> {
        let n = batch.n;
        let burn = self.device.burn();
        let x1 = Tensor::from_data(TensorData::new(batch.x1, [n, 1, X1, X1, X1]), burn);
        let x2 = Tensor::from_data(TensorData::new(batch.x2, [n, 1, X2, X2, X2]), burn);
        let target = TensorData::new(batch.target, [n, crate::network::OUT.pow(3)]);
        let target = Tensor::<2>::from_data(target, burn);
        let taught = teacher.map(|t| t.logits(x1.clone(), x2.clone()));
        let leaves = student.leaves();
        let (logits, seen) = student.train(&leaves, x1, x2);
        let terms = Terms::of(logits, target, taught, recipe);
        let mut grads = terms.total(recipe).backward();
        let gradient = leaves.gradients(&mut grads);
        student.parameters = adam.update(student.parameters.clone(), gradient, rate);
        student.adopt(seen);
        Ok((n, terms.read()?))
    }

    /// Mean whole-mask Dice over `cases`; none without cases.
    fn validate(
        &mut self,
        frozen: Frozen,
        cases: &[Case<'_>],
        epoch: u32,
    ) -> Result<Option<f64>, Error> {
        if cases.is_empty() {
            return Ok(None);
        }
        let model = infer::Model::from_frozen(frozen, self.device);
        let mut sum = 0.0;
        for case in cases {
            let probability = model
                .probability(case.image)
                .map_err(|source| Error::Validation { case: case.id.to_owned(), source })?;
            sum += dice(probability.view(), case.label);
        }
        #[allow(clippy::cast_precision_loss)]
        let dice = sum / cases.len() as f64;
        self.tell(Progress::Validated { epoch, dice })?;
        Ok(Some(dice))
    }
}

/// Whole-mask Dice of P > 0.5 against a label; empty against empty = 1.
#[must_use]
pub fn dice(probability: ArrayView3<'_, f32>, label: ArrayView3<'_, u8>) -> f64 {
    let mut counts = [0_u64; 3];
    for (p, l) in probability.iter().zip(label.iter()) {
        let (p, l) = (*p > 0.5, *l != 0);
        counts[0] += u64::from(p);
        counts[1] += u64::from(l);
        counts[2] += u64::from(p && l);
    }
    if counts[0] + counts[1] == 0 {
        return 1.0;
    }
    #[allow(clippy::cast_precision_loss)]
    let dice = 2.0 * counts[2] as f64 / (counts[0] + counts[1]) as f64;
    dice
}
