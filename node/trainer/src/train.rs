//! `train`: one visit of this site, without a daemon.

use crate::cases::{self, Cases};
use crate::metrics::Log;
use crate::output::{Output, SCHEMA};
use crate::unfinished::{Unfinished, images, remove};
use crate::{DONE, SET_ASIDE, args, fault, import, recipe};
use anyhow::{Context, Result, anyhow, bail};
use rondo::ids::Digest;
use rondo::recipe::Method;
use rondo_imaging::cohort::{Cohort, Split};
use rondo_imaging::durable;
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::Device;
use rondo_learn::report::{Listener, Progress, Report};
use rondo_learn::resume::{Saved, identity};
use rondo_learn::train::{Error, Visit, go_on};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Reads a model file of any kind that is recognised. The digest is that of our own layout.
///
/// # Errors
/// A file that cannot be read or holds no model.
pub(crate) fn model(path: &Path) -> Result<(Weights, Digest)> {
    let weights = import::read(path)?.weights;
    let digest = Digest::of(&weights.to_bytes());
    Ok((weights, digest))
}

/// The model handed on, in the folder of a visit.
const MODEL: &str = "model.safetensors";
/// What was done, beside it.
const REPORT: &str = "report.json";
/// The state of a visit that is not finished.
const STATE: &str = "unfinished.state";
/// The last good model of a visit that ended in bad numbers.
const LAST_GOOD: &str = "last-good.safetensors";
/// Largest report that is read back: 100 000 validations stay below it.
const REPORT_MAX_BYTES: u64 = 32 << 20;

/// `report.json`.
#[derive(Serialize, Deserialize)]
struct Written {
    schema: u32,
    /// Which visit this was: recipe, seed, received model, device and images.
    identity: Digest,
    model: Digest,
    received: Option<Digest>,
    device: String,
    seed: u64,
    recipe: serde_json::Value,
    visit: Report,
}

pub(crate) fn run(args: &args::Train) -> Result<u8> {
    let recipe = recipe::resolve(&args.recipe)?;
    let cohorts = cohorts(&args.cohort, recipe.method)?;
    cases::check_distinct(&cohorts)?;
    let init = args.init.as_deref().map(model).transpose()?;
    // First of all, so that a folder that cannot be written fails before the work and not after it.
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("creating the folder {}", args.out.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = args.out.join(name);
        durable::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
    };

    let output = Output::new(args.json);
    let device = Device::open(args.device)?;
    let described = device.describe();
    output.event("device", json!({"device": described}), &format!("device: {described}"))?;
    let store = cases::store(args.work.as_deref().unwrap_or(&args.out))?;
    let load = |split: Split| -> Result<Cases> {
        let mut failed = Ok(());
        let what = format!("{} cases read", split.name());
        let cases = Cases::pool(&cohorts, split, &store, |done, total| {
            let told = output.count(&what, done, total);
            failed = std::mem::replace(&mut failed, Ok(())).and(told);
        })?;
        failed?;
        cases.set_aside.iter().chain(&cases.notices).try_for_each(|text| output.notice(text))?;
        Ok(cases)
    };
    let (training, validation) = (load(Split::Train)?, load(Split::Validation)?);
    if training.ready.is_empty() {
        let names: Vec<&str> = cohorts.iter().map(|cohort| cohort.name.as_str()).collect();
        bail!("no training case of the cohort {} can be used", names.join(", "));
    }
    let unread = training.set_aside.len() + validation.set_aside.len();
    let visit = Visit {
        recipe: &recipe,
        seed: args.seed,
        received: init.as_ref().map(|(weights, _)| weights),
        cases: &training.views(),
        validation: &validation.views(),
    };
    let identity = identity(&visit, &device, images([&training, &validation]));
    let unfinished =
        Unfinished::at(args.out.join(STATE), Duration::from_secs(args.save_every.into()));
    if args.fresh {
        unfinished.forget()?;
        // A killed visit must not find the result of the one before it.
        remove(&args.out.join(REPORT))?;
    } else if let Some(done) = finished(&args.out, identity)? {
        unfinished.forget()?;
        output.notice(
            "this visit was trained before; its result is left as it is (--fresh trains it again)",
        )?;
        return tell_result(&output, &args.out, &done);
    }
    if args.work.is_none() {
        cases::prune(&store, &[&training, &validation])?;
    }
    remove(&args.out.join(LAST_GOOD))?;
    write("recipe.toml", recipe::to_toml(&recipe).as_bytes())?;
    let saved = match unfinished.read() {
        Ok(saved) => saved,
        Err(e) => {
            output.notice(&format!("{e:#}; training begins anew"))?;
            None
        }
    };
    let log = Log::open(&args.out, saved.as_ref().filter(|s| s.is_of(identity)))?;

    let mut here = Here { output: &output, log, unfinished, broken: None };
    let outcome = fault::caught(|| go_on(&visit, &device, identity, saved, &mut here));
    output.finish();
    let Here { unfinished, broken, .. } = here;
    if let Some(e) = broken {
        return Err(e.context("telling what happens"));
    }
    let mut outcome = match outcome? {
        Err(e @ Error::NotFinite { .. }) => {
            return Err(anyhow!(e).context(match unfinished.read() {
                Ok(Some(good)) if good.is_of(identity) => {
                    write(LAST_GOOD, &good.weights().to_bytes())?;
                    format!("training; the model after update {} is in {LAST_GOOD}", good.updates())
                }
                _ => "training".to_owned(),
            }));
        }
        outcome => outcome.context("training")?,
    };
    outcome.report.set_aside += u32::try_from(unread).unwrap_or(u32::MAX);
    let bytes = outcome.weights.to_bytes();
    let done = Written {
        schema: SCHEMA,
        identity,
        model: Digest::of(&bytes),
        received: init.map(|(_, digest)| digest),
        device: described,
        seed: args.seed,
        recipe: serde_json::to_value(&recipe)?,
        visit: outcome.report,
    };
    write(MODEL, &bytes)?;
    write(REPORT, format!("{}\n", serde_json::to_string_pretty(&done)?).as_bytes())?;
    unfinished.forget()?;
    tell_result(&output, &args.out, &done)
}

/// Reads the cohorts to train on. Sites keep their cases to themselves, so only the reference method
/// for simulations may pool several.
fn cohorts(paths: &[PathBuf], method: Method) -> Result<Vec<Cohort>> {
    if paths.len() > 1 && method != Method::Mixed {
        bail!(
            "method {method} trains on one cohort and {} are given; method mixed pools them",
            paths.len()
        );
    }
    let cohorts = paths.iter().map(|path| cases::cohort(path)).collect::<Result<Vec<_>>>()?;
    let mut names: Vec<&str> = cohorts.iter().map(|cohort| cohort.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => bail!("two cohorts are named {}; give one another name", pair[0]),
        None => Ok(cohorts),
    }
}

/// The result that lies in `out`, if it is the one of the visit of this `identity`.
///
/// # Errors
/// A result of another visit, which is not overwritten.
fn finished(out: &Path, identity: Digest) -> Result<Option<Written>> {
    let path = out.join(REPORT);
    if !path.exists() {
        return Ok(None);
    }
    let mut text = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(REPORT_MAX_BYTES).read_to_end(&mut text))
        .with_context(|| format!("reading {}", path.display()))?;
    let written = serde_json::from_slice::<Written>(&text).ok().filter(|w| w.identity == identity);
    let Some(written) = written else {
        bail!(
            "{} holds the result of another visit (recipe, seed, received model, device or images \
             differ); choose another folder, or overwrite it with --fresh",
            out.display()
        );
    };
    // A model that is missing or changed since is trained again.
    Ok(model(&out.join(MODEL)).ok().filter(|(_, digest)| *digest == written.model).map(|_| written))
}

/// Tells the result; whether all cases were used is the exit code.
fn tell_result(output: &Output, out: &Path, done: &Written) -> Result<u8> {
    let path = out.join(MODEL);
    let r = &done.visit;
    let dice = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |v| format!("{v:.4}"));
    output.event(
        "result",
        json!({"model": done.model, "path": path, "visit": r}),
        &format!(
            "{} updates of {} segments in {:.1} s; validation Dice {} before, {} after (epoch {}); {} cases set aside; model {} at {}",
            r.updates,
            r.segments,
            r.seconds,
            dice(r.dice_before),
            dice(r.dice_after),
            r.chosen_epoch,
            r.set_aside,
            done.model.short(),
            path.display(),
        ),
    )?;
    Ok(if r.set_aside == 0 { DONE } else { SET_ASIDE })
}

/// Who runs a local visit: the screen, the figures on disk, the state on disk.
struct Here<'o> {
    output: &'o Output,
    log: Log,
    unfinished: Unfinished,
    /// Why nothing more can be told.
    broken: Option<anyhow::Error>,
}

impl Listener for Here<'_> {
    fn hear(&mut self, event: Progress) -> ControlFlow<()> {
        match self.output.progress(&event).and_then(|()| self.log.hear(&event)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.broken.get_or_insert(e);
                ControlFlow::Break(())
            }
        }
    }

    fn wants_state(&mut self) -> bool {
        self.unfinished.due()
    }

    fn keep(&mut self, state: &Saved) {
        if let Some(text) = self.unfinished.keep(state) {
            let _ = self.output.notice(&text);
        }
    }
}
