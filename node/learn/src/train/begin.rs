//! What comes before the first update: refusals, unfit cases, a fresh model or a saved state.

use super::{Error, Run, Visit, tell};
use crate::checkpoint::{Moments, Weights};
use crate::device::Device;
use crate::feed::Position;
use crate::forgetting::Memory;
use crate::network::Network;
use crate::optimizer::Adam;
use crate::readings::Readings;
use crate::report::{Listener, Progress};
use crate::resume::{Figures, Saved};
use crate::segment::{self, Indexed};
use crate::update::Student;
use rondo::ids::Digest;
use rondo::recipe::{Architecture, Method, Precision, Select};
use std::time::Instant;

/// Refuses what can be seen to be wrong before anything is computed.
pub(super) fn check(visit: &Visit<'_>) -> Result<(), Error> {
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
        let words = |a: &Architecture| format!("{}, {}, {}, {}", a.n1, a.n2, a.n3, a.m);
        return Err(Error::Widths {
            found: words(&received.architecture),
            wanted: words(&visit.recipe.architecture),
        });
    }
    Ok(())
}

/// Indexes the centres of every case; sets unfit ones aside, each with a sentence.
pub(super) fn index<'a>(
    visit: &Visit<'a>,
    listener: &mut dyn Listener,
) -> Result<(Vec<Indexed<'a>>, u32), Error> {
    let mut fit = Vec::with_capacity(visit.cases.len());
    let mut set_aside = 0;
    for indexed in segment::index(visit.cases) {
        let text = match indexed {
            Ok(indexed) => {
                let shortage = indexed.shortage(visit.recipe.segments_per_case);
                fit.push(indexed);
                shortage
            }
            Err(unfit) => {
                set_aside += 1;
                Some(format!("{unfit}; it is set aside"))
            }
        };
        if let Some(text) = text {
            tell(listener, Progress::Notice { text })?;
        }
    }
    if fit.is_empty() { Err(Error::NoCases(visit.cases.len())) } else { Ok((fit, set_aside)) }
}

/// What of the recipe cannot be had here; each is a sentence for the operator.
fn departures(visit: &Visit<'_>, device: &Device) -> Vec<&'static str> {
    let Visit { recipe, received, validation, .. } = visit;
    let mut list = Vec::new();
    if recipe.precision == Precision::Bf16 && !device.is_libtorch() {
        list.push("the recipe says bf16, but this device computes in fp32 only");
    }
    if recipe.carries_optimizer() && received.is_some_and(|model| model.optimizer.is_none()) {
        list.push(
            "the received model brings no state of the optimizer to carry on, so Adam begins anew",
        );
    }
    if recipe.select == Select::BestValidation && validation.is_empty() {
        list.push("there is no validation case to select a model by, so the last one is handed on");
    }
    list
}

impl<'r, 'v: 'r> Run<'r, 'v> {
    /// Everything on the device, at the beginning of the visit or where `saved` left it.
    pub(super) fn begin(
        visit: &Visit<'v>,
        device: &'r Device,
        cases: &'r [Indexed<'r>],
        (identity, saved): (Digest, Option<Saved>),
        listener: &'r mut dyn Listener,
    ) -> Result<Self, Error> {
        let (recipe, begun) = (visit.recipe, Instant::now());
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let batches = (0..recipe.epochs).map(|e| segment::batches(cases, recipe, visit.seed, e));
        let updates = batches.fold(0, u32::saturating_add);
        tell(
            listener,
            Progress::Started {
                cases: count(cases.len()),
                validation_cases: count(visit.validation.len()),
                epochs: recipe.epochs,
                updates,
            },
        )?;
        let fresh = || Weights::initial(recipe.architecture, visit.seed);
        let received = visit.received.cloned().unwrap_or_else(fresh);
        let saved = match saved {
            Some(saved) if saved.visit == identity && saved.fits(recipe) => Some(saved),
            Some(_) => {
                let text = "the saved state is of another visit (recipe, seed, received model, \
                            device or cases differ); this one begins anew";
                tell(listener, Progress::Notice { text: text.to_owned() })?;
                None
            }
            None => None,
        };
        let (memory, said) = Memory::of(recipe, visit.received, device)?;
        if let Some(text) = said {
            tell(listener, Progress::Notice { text: text.to_owned() })?;
        }
        for text in departures(visit, device) {
            tell(listener, Progress::Notice { text: text.to_owned() })?;
        }
        let carried = received.optimizer.as_ref().filter(|_| recipe.carries_optimizer());
        let base = carried.map_or(recipe.learning_rate, |m| m.learning_rate);
        let zero = || Moments::zero(received.parameters.len(), base);
        let (weights, moments, state) = match saved {
            None => (&received, carried.cloned().unwrap_or_else(zero), None),
            Some(ref saved) => {
                let at = saved.figures.updates;
                let text =
                    format!("going on after update {at} of {updates}, where it was interrupted");
                tell(listener, Progress::Notice { text })?;
                let here = device.describe();
                if saved.made_on != here {
                    let text = format!(
                        "its state comes from {}, and this is {here}: the model will not be bit for \
                         bit that of an undisturbed visit",
                        saved.made_on
                    );
                    tell(listener, Progress::Notice { text })?;
                }
                (&saved.student, saved.student.optimizer.clone().unwrap_or_else(zero), Some(saved))
            }
        };
        let mut network = Network::new(weights, device, recipe.precision);
        let adam = Adam::new(&moments, recipe, device.burn());
        let thrift = state.map_or(0, |s| s.thrift);
        // The same steps again: recomputed activations may show in the last bit.
        for _ in 0..thrift {
            network.thriftier();
        }
        let (at, figures) = state.map_or_else(
            || (Position::default(), Figures::default()),
            |s| (s.at, s.figures.clone()),
        );
        let best = saved.and_then(|s| s.best);
        let student = Student { network, adam, memory, recipe };
        let (visit, readings) = (*visit, Readings::new());
        Ok(Self {
            visit,
            device,
            cases,
            listener,
            identity,
            begun,
            base,
            student,
            at,
            figures,
            thrift,
            best,
            readings,
            updates,
        })
    }
}
