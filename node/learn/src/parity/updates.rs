//! Updates with a teacher and Adam, from given weights on given batches.

use super::directory::{Array, File, SHAPE_TARGET, SHAPE_X1, SHAPE_X2, Tensors, section};
use super::losses::{FLOOR, TOLERANCE as TOLERANCE_LOSS};
use super::{Check, Error, Read, compare, compare_parameters, host, magnitude, wide};
use crate::checkpoint::{Moments, Weights};
use crate::device::Device;
use crate::forgetting::Memory;
use crate::network::{self, Network, OUT};
use crate::optimizer::Adam;
use crate::random::unit;
use crate::update::{Input, Student};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rondo::recipe::{Architecture, Precision, Preset, Recipe};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// On weights and running statistics, absolute.
const TOLERANCE: f64 = 1e-4;
/// Voxels of a segment's target.
#[allow(clippy::cast_precision_loss)]
const VOXELS: f64 = (OUT * OUT * OUT) as f64;

/// On Adam's moments and maxima, relative to the largest magnitude in their tensor. The specification
/// gives none; sums that cancel round to some 1e-4 of it.
const TOLERANCE_MOMENTS: f64 = 1e-3;
/// Smallest scale of a moment.
const MOMENT_FLOOR: f64 = 1e-12;
/// Width of the relative change of inputs in a repeat. In training mode, the logits of the paper's
/// network differ by 2e-6 of the largest one between 32 and 64 bits.
const NOISE: f64 = 4e-6;
/// Repeats before a deviation counts as one that rounding does not move.
const REPEATS_LEAST: u64 = 6;
/// Repeats in which the units near zero must come to lie on PyTorch's sides.
const REPEATS_MOST: u64 = 48;
/// Part of a deviation by which a repeat must move it.
const MOVED: f64 = 0.1;

pub(super) const FILE: &str = "lwf_five_updates.safetensors";

/// What `learning.json` says of the updates.
#[derive(Deserialize)]
struct Golden {
    widths: Architecture,
    lr: f64,
    weight_decay: f64,
    amsgrad: bool,
    lambda: f64,
    #[serde(rename = "T")]
    temperature: f64,
    losses: Vec<Losses>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Losses {
    seg: f64,
    kdl: f64,
    total: f64,
}

/// One update's segments.
struct Batch {
    x1: Array<5>,
    x2: Array<5>,
    target: Array<4>,
}

impl Batch {
    fn get(tensors: &Tensors<'_>, i: usize) -> Result<Self, Error> {
        let x1 = tensors.get(&format!("x1.{i}"), SHAPE_X1)?;
        let ([_, c, d, h, w], [_, a, b, e]) = (SHAPE_X2, SHAPE_TARGET);
        let x2 = tensors.get(&format!("x2.{i}"), [x1.batch(), c, d, h, w])?;
        let target = tensors.target(&format!("target.{i}"), [x1.batch(), a, b, e])?;
        Ok(Self { x1, x2, target })
    }

    fn on(&self, device: &Device, noise: Option<&mut ChaCha8Rng>) -> Input {
        let (x1, x2) = match noise {
            None => (self.x1.on(device), self.x2.on(device)),
            Some(rng) => {
                let mut shaken =
                    |x: &Array<5>| x.map(|v| v * (1.0 + NOISE * (unit(rng) - 0.5))).on(device);
                (shaken(&self.x1), shaken(&self.x2))
            }
        };
        Input { x1, x2, target: self.target.rows(device) }
    }
}

/// Everything golden about the updates.
struct Updates {
    recipe: Recipe,
    batches: Vec<Batch>,
    losses: Vec<Losses>,
    start: Weights,
    end: Weights,
    /// Adam's state at the end, of the published checkpoint.
    adam: Option<Moments>,
    notes: Vec<String>,
}

impl Updates {
    fn read(read: &Read<'_>, adam: Option<Moments>) -> Result<Self, Error> {
        let golden: Golden = section(read, "lwf_five_updates")?;
        let recipe = Recipe {
            architecture: golden.widths,
            learning_rate: golden.lr,
            weight_decay: golden.weight_decay,
            amsgrad: golden.amsgrad,
            kdl_lambda: golden.lambda,
            kdl_temperature: golden.temperature,
            ..Recipe::preset(Preset::Paper)
        };
        let mut problems = recipe.problems();
        if golden.losses.is_empty() {
            problems.push("there is no update".to_owned());
        }
        if !problems.is_empty() {
            return Err(Error::json("lwf_five_updates", &problems.join("; ")));
        }
        let file = File::read(read, FILE)?;
        let tensors = file.tensors()?;
        let count = golden.losses.len();
        tensors.only(|name| match name.split_once('.') {
            Some(("start" | "end", _)) => true,
            Some(("x1" | "x2" | "target", i)) => i.parse().is_ok_and(|i: usize| i < count),
            _ => false,
        })?;
        let (start, end) = (tensors.model("start.")?, tensors.model("end.")?);
        for (when, model) in [("start", &start), ("end", &end)] {
            if model.architecture != golden.widths {
                let why = format!("the weights at the {when} have {:?}", model.architecture);
                return Err(Error::json("lwf_five_updates.widths", &why));
            }
        }
        let batches = (0..count).map(|i| Batch::get(&tensors, i)).collect::<Result<_, _>>()?;
        let mut notes = Vec::new();
        if !golden.unknown.is_empty() {
            let unknown: Vec<&str> = golden.unknown.keys().map(String::as_str).collect();
            notes.push(format!("not checked: {}", unknown.join(", ")));
        }
        Ok(Self { recipe, batches, losses: golden.losses, start, end, adam, notes })
    }

    /// Makes the updates and compares; with noise in the inputs of those whose seed is not 0.
    fn run(&self, device: &Device, seeds: &[u64]) -> Result<Run, Error> {
        let recipe = &self.recipe;
        let rate = recipe.learning_rate;
        let network = Network::new(&self.start, device, Precision::Fp32);
        let zero = Moments::zero(self.start.parameters.len(), rate);
        let adam = Adam::new(&zero, recipe, device.burn());
        let (memory, _) = Memory::of(recipe, Some(&self.start), device)?;
        let mut student = Student { network, adam, memory, recipe };
        let mut checks = Vec::new();
        let mut notes = self.notes.clone();
        for (i, (batch, losses)) in self.batches.iter().zip(&self.losses).enumerate() {
            let seed = seeds.get(i).copied().filter(|seed| *seed > 0);
            let input = batch.on(device, seed.map(ChaCha8Rng::seed_from_u64).as_mut());
            let row = loop {
                match student.update(&input, rate) {
                    Err(network::Error::OutOfMemory) => match student.network.thriftier() {
                        Some(note) => notes.push(note.to_owned()),
                        None => return Err(network::Error::OutOfMemory.into()),
                    },
                    row => break wide(&host(row?)?),
                }
            };
            let [ce, vss, kdl, _] = row.try_into().unwrap_or([f64::NAN; 4]);
            let seg = ce + vss;
            let mut loss = |part: &str, found: f64, expected: f64, floor: f64| {
                let check = format!("updates.{i}.{part}");
                checks.push(Check::relative(&check, found, expected, floor, TOLERANCE_LOSS));
            };
            loss("seg", seg, losses.seg, FLOOR);
            loss("kdl", kdl, losses.kdl, FLOOR * VOXELS);
            loss("total", seg + recipe.kdl_lambda * kdl, losses.total, FLOOR);
        }
        let found = student.weights(rate)?;
        let note = notes.join("; ");
        weights("updates", &found, &self.end, TOLERANCE, &note, &mut |check| checks.push(check));
        if let (Some(found), Some(expected)) = (&found.optimizer, &self.adam) {
            checks.extend(self.adam_checks(found, expected));
        }
        let pairs = found.parameters.iter().zip(&self.end.parameters);
        let distance = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        Ok(Run { checks, distance })
    }

    fn adam_checks(&self, found: &Moments, expected: &Moments) -> Vec<Check> {
        let vector = |part: &str, found: &[f32], expected: &[f32]| {
            let check = format!("updates.adam.{part}");
            let scale = |tensor: &[f32]| magnitude(tensor, MOMENT_FLOOR);
            let architecture = &self.end.architecture;
            compare_parameters(&check, found, expected, architecture, scale, TOLERANCE_MOMENTS)
        };
        let mut checks = vec![
            vector("first_moment", &found.first, &expected.first),
            vector("second_moment", &found.second, &expected.second),
        ];
        if self.recipe.amsgrad {
            checks.push(vector("maximum", &found.maximum, &expected.maximum));
        }
        let (found, expected) = (f64::from(found.step), f64::from(expected.step));
        checks.push(Check::compare("updates.adam.step", &[found], &[expected], 1.0, 0.0));
        checks
    }
}

/// What came of the updates.
struct Run {
    checks: Vec<Check>,
    /// Squared L2 distance of the parameters from the golden ones.
    distance: f64,
}

impl Run {
    fn passes(&self) -> bool {
        self.checks.iter().all(|check| check.pass)
    }
}

/// Makes the updates and compares losses, the weights at the end, and Adam's state with that of the
/// published checkpoint, `adam`.
///
/// Updates can be ill-conditioned: where a unit of ReLU stands within rounding of zero, its gradient is
/// all or nothing, and Adam makes a step of full length of that. Even PyTorch then differs from itself,
/// with another number of threads or in 64 bits, by tens of tolerances. So the error is taken backwards
/// (Higham 2002, section 1.5): numbers that do not agree as computed are computed again from inputs
/// that differ by what the network rounds, and pass only if one such run agrees in everything.
pub(super) fn check(
    read: &Read<'_>,
    adam: Option<Moments>,
    device: &Device,
    tell: &mut dyn FnMut(Check),
) -> Result<(), Error> {
    let golden = Updates::read(read, adam)?;
    let count = golden.losses.len();
    settled(count, |seeds| golden.run(device, seeds))?.into_iter().for_each(tell);
    Ok(())
}

/// The checks of the run that counts: the first, which computes the `updates` as they are, or a repeat
/// that agrees in everything. `run` gets a seed of noise for each update, 0 for none.
fn settled(
    updates: usize,
    mut run: impl FnMut(&[u64]) -> Result<Run, Error>,
) -> Result<Vec<Check>, Error> {
    let computed = run(&vec![0; updates])?;
    if computed.passes() {
        return Ok(computed.checks);
    }
    let mut repeats = 0;
    let mut repeat = |seeds: &[u64]| {
        repeats += 1;
        run(seeds)
    };
    let mut moved = false;
    for seed in 1..=REPEATS_LEAST {
        let found = repeat(&vec![seed; updates])?;
        if found.passes() {
            return Ok(accepted(found, &computed));
        }
        // What rounding does not move is not rounding's.
        moved |= computed.checks.iter().zip(&found.checks).any(|(before, now)| {
            let change = (before.max_abs_error - now.max_abs_error).abs();
            !before.pass && change > MOVED * before.max_abs_error
        });
    }
    // A unit on the other side of zero sends every later update elsewhere, so the first update is
    // settled first: with the noise that brings the end nearest.
    let (mut best, mut distance) = (vec![0; updates], computed.distance);
    let each = (REPEATS_MOST - REPEATS_LEAST) / (updates as u64).max(1);
    for at in 0..if moved { updates } else { 0 } {
        for seed in 1..=each {
            let mut seeds = best.clone();
            if let Some(slot) = seeds.get_mut(at) {
                *slot = seed;
            }
            let found = repeat(&seeds)?;
            if found.passes() {
                return Ok(accepted(found, &computed));
            }
            if found.distance < distance {
                (best, distance) = (seeds, found.distance);
            }
        }
    }
    let verdict = match moved {
        true => "do not agree either, but differ: these updates are ill-conditioned",
        false => "give the same: this is not rounding",
    };
    let note = format!("{repeats} repeats with inputs changed by rounding {verdict}");
    let noting = |check: Check| if check.pass { check } else { check.noting(&note) };
    Ok(computed.checks.into_iter().map(noting).collect())
}

/// The checks of a repeat that agrees, each with its error as `computed` where that failed.
fn accepted(found: Run, computed: &Run) -> Vec<Check> {
    let mut checks = found.checks;
    for (check, before) in checks.iter_mut().zip(&computed.checks).filter(|(_, b)| !b.pass) {
        let (error, change) = (before.max_abs_error, NOISE / 2.0);
        let note = format!(
            "{error:.1e} as computed, this with inputs changed by at most {change:.0e} of their values"
        );
        check.detail = Some(note);
    }
    checks
}

/// Compares parameters and running statistics.
pub(super) fn weights(
    section: &str,
    found: &Weights,
    expected: &Weights,
    tolerance: f64,
    note: &str,
    tell: &mut dyn FnMut(Check),
) {
    let architecture = &expected.architecture;
    let name = format!("{section}.parameters");
    let (a, b) = (&found.parameters, &expected.parameters);
    tell(compare_parameters(&name, a, b, architecture, |_| 1.0, tolerance).noting(note));
    let name = format!("{section}.running_mean");
    tell(compare(&name, &found.mean, &expected.mean, 1.0, tolerance));
    let name = format!("{section}.running_variance");
    tell(compare(&name, &found.variance, &expected.variance, 1.0, tolerance));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The checks that count where `errors` come of the seeds, the last one being the distance too;
    /// and how often was repeated.
    fn settle(errors: impl Fn(&[u64]) -> [f64; 2]) -> (Vec<Check>, u64) {
        let mut runs = 0;
        let settled = settled(3, |seeds| {
            runs += 1;
            let errors = errors(seeds);
            let check = |error: f64| Check::compare("x", &[error], &[0.0], 1.0, 1.0);
            Ok(Run { checks: errors.map(check).to_vec(), distance: errors[1] })
        });
        (settled.unwrap(), runs - 1)
    }

    #[test]
    fn only_what_rounding_moves_is_repeated_and_only_full_agreement_passes() {
        let (checks, repeats) = settle(|_| [0.5, 1.0]);
        assert!(repeats == 0 && checks.iter().all(|c| c.pass && c.detail.is_none()));

        let (checks, repeats) = settle(|seeds| [0.5, if seeds[0] == 3 { 0.6 } else { 7.0 }]);
        assert!(repeats == 3 && checks.iter().all(|c| c.pass));
        assert!(checks[0].detail.is_none());
        assert!(checks[1].detail.as_ref().unwrap().starts_with("7.0e0 as computed"), "{checks:?}");

        for still in [7.0, 7.5, f64::NAN] {
            let (checks, repeats) = settle(|seeds| [0.5, if seeds[0] == 0 { 7.0 } else { still }]);
            assert_eq!(repeats, REPEATS_LEAST);
            assert!(!checks[1].pass && checks[1].max_abs_error == 7.0);
        }
        let (checks, repeats) = settle(|_| [f64::NAN, 0.0]);
        assert!(repeats == REPEATS_LEAST && !checks[0].pass);

        // Each number agrees in some run, but never both.
        let (checks, repeats) =
            settle(|seeds| if seeds.contains(&2) { [7.0, 0.0] } else { [0.0, 7.0] });
        assert!(repeats > REPEATS_LEAST && checks[0].pass && !checks[1].pass);
        assert!(checks[1].detail.as_ref().unwrap().contains("repeats"), "{checks:?}");
    }

    #[test]
    fn updates_are_settled_one_after_the_other() {
        // Each update needs a seed of its own; a wrong one spoils all that follow.
        let (checks, _) = settle(|seeds| {
            let right = seeds.iter().zip([5, 0, 9]).take_while(|(a, b)| **a == *b).count();
            [0.0, [8.0, 4.0, 2.0, 0.5][right]]
        });
        assert!(checks.iter().all(|c| c.pass), "{checks:?}");
        assert!(checks[1].detail.as_ref().unwrap().contains("8.0e0 as computed"));
    }
}
