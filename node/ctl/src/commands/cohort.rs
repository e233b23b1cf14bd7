//! `rondo cohort`.

use crate::args::{Cohort, CohortFile, Preprocess, Synth};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Steps};
use crate::render::{figure, table};
use rondo_imaging::cohort::{self, CheckReport, SetAside, SplitStats, Stats};
use rondo_imaging::nifti;
use rondo_imaging::phantom::{self, Anatomy, SynthOptions};
use rondo_imaging::prepared::{Prepared, Store};
use rondo_imaging::preprocess::MaskSource;
use rondo_imaging::volume::Volume;
use serde::Serialize;
use std::path::{Path, PathBuf};

pub(crate) fn run(command: Cohort, output: Output) -> Result<(), Failure> {
    match command {
        Cohort::Synth(synth) => self::synth(synth, output),
        Cohort::Stats(file) => stats(&file, output),
        Cohort::Check(file) => check(&file, output),
        Cohort::Preprocess(args) => preprocess(&args, output),
    }
}

/// Reads a cohort file.
pub(crate) fn load(path: &std::path::Path) -> Result<cohort::Cohort, Failure> {
    cohort::Cohort::load(path).map_err(|e| Failure::new(Exit::BadInput, e))
}

/// What the imaging crate says about a synthesis that failed.
pub(crate) fn not_made(error: &phantom::Error) -> Failure {
    let exit = match error {
        phantom::Error::Folder { .. }
        | phantom::Error::Exists(_)
        | phantom::Error::Unfinished(_)
        | phantom::Error::Cohort(_) => Exit::Storage,
        _ => Exit::BadInput,
    };
    Failure::new(exit, error)
}

fn synth(args: Synth, output: Output) -> Result<(), Failure> {
    let options = SynthOptions {
        centre: args.centre,
        train: args.train,
        validation: args.validation,
        test: args.test,
        shape: args.shape,
        spacing_mm: args.spacing,
        slices: args.slices.into(),
        format: args.format.into(),
        seed: args.seed,
        anatomy: args.anatomy.map(|image| Anatomy { image, mask: args.anatomy_mask }),
        skull: !args.no_skull,
    };
    let steps = Steps::new("volumes made");
    let made = phantom::synthesise(&args.out, &options, &|p| steps.at(p.done, p.total, p.item))
        .map_err(|e| not_made(&e))?;
    drop(steps);
    output.give("rondo.cohort-synth/1", &made, || {
        let mut text = format!(
            "Made {} cases with {} metastases: {}",
            made.cases,
            made.metastases,
            made.cohort.display()
        );
        if made.limited + made.left_out > 0 {
            text.push_str(&format!(
                "\n{} metastases are smaller than drawn and {} were left out, since the brain is small",
                made.limited, made.left_out
            ));
        }
        text
    })
}

fn stats(file: &CohortFile, output: Output) -> Result<(), Failure> {
    let cohort = load(&file.cohort)?;
    let steps = Steps::new("labels measured");
    let stats = cohort::stats(&cohort, &|p| steps.at(p.done, p.total, p.item));
    drop(steps);
    output.give("rondo.cohort-stats/1", &stats, || stats_text(&stats))?;
    aside(&stats.set_aside)
}

fn stats_text(stats: &Stats) -> String {
    let head = [
        "split",
        "patients",
        "volumes",
        "metastases",
        "per volume",
        "mean cm³",
        "median cm³",
        "≤ 0.1 cm³",
        "in-plane mm",
        "through-plane mm",
    ];
    let range = |r: Option<[f64; 2]>| match r {
        Some([least, most]) if least < most => format!("{least:.2}–{most:.2}"),
        Some([one, _]) => format!("{one:.2}"),
        None => "–".to_owned(),
    };
    let row = |s: &SplitStats| {
        vec![
            s.split.map_or("all", cohort::Split::name).to_owned(),
            s.patients.to_string(),
            s.volumes.to_string(),
            s.metastases.to_string(),
            figure(s.metastases_per_volume, 1),
            figure(s.mean_cm3, 3),
            figure(s.median_cm3, 3),
            s.share_up_to_0_1_cm3.map_or_else(|| "–".to_owned(), |v| format!("{:.1} %", 100.0 * v)),
            range(s.in_plane_mm),
            range(s.through_plane_mm),
        ]
    };
    let rows = stats.splits.iter().chain([&stats.total]).map(row).collect();
    let table = table(&head, &(1..10).collect::<Vec<_>>(), rows);
    format!("{}\n{table}{}", stats.name, aside_text(&stats.set_aside))
}

fn check(file: &CohortFile, output: Output) -> Result<(), Failure> {
    let cohort = load(&file.cohort)?;
    let steps = Steps::new("cases read");
    let report = cohort::check(&cohort, &|p| steps.at(p.done, p.total, p.item));
    drop(steps);
    output.give("rondo.cohort-check/1", &report, || check_text(&report))?;
    aside(&report.set_aside)
}

fn check_text(report: &CheckReport) -> String {
    let mut text =
        format!("{}: {} of {} cases can be used", report.name, report.usable.len(), report.cases);
    text.push_str(&aside_text(&report.set_aside));
    for notice in &report.notices {
        text.push_str(&format!("\nnote {}: {}", notice.id, notice.text));
    }
    text
}

/// Result of `cohort preprocess`.
#[derive(Debug, Serialize)]
struct Preprocessed {
    name: String,
    folder: PathBuf,
    cases: Vec<PreprocessedCase>,
    set_aside: Vec<SetAside>,
}

#[derive(Debug, Serialize)]
struct PreprocessedCase {
    id: String,
    shape: [usize; 3],
    spacing_mm: [f64; 3],
    brain_mask: MaskSource,
    brain_cm3: f64,
    n4_iterations: Option<Vec<usize>>,
    notices: Vec<String>,
}

fn preprocess(args: &Preprocess, output: Output) -> Result<(), Failure> {
    let cohort = load(&args.cohort)?;
    let broken = |e: rondo_imaging::prepared::Error| Failure::new(Exit::Storage, e);
    let folder = args.work.join("prepared");
    let store = Store::open(&folder).map_err(broken)?;
    let steps = Steps::new("cases prepared");
    let wanted: Vec<_> =
        cohort.cases.iter().filter(|case| args.split.contains(&case.split)).collect();
    let results =
        store.cases(&cohort, &wanted, |p| steps.at(p.done, p.total, p.item)).map_err(broken)?;
    drop(steps);
    let mut made =
        Preprocessed { name: cohort.name.clone(), folder, cases: vec![], set_aside: vec![] };
    for (case, result) in wanted.iter().zip(results) {
        match result {
            Ok(prepared) => {
                if let Some(folder) = &args.export {
                    export(folder, &prepared)?;
                }
                made.cases.push(described(&prepared));
            }
            Err(e) => made.set_aside.push(SetAside {
                id: case.id.clone(),
                split: case.split,
                reason: e.to_string(),
            }),
        }
    }
    output.give("rondo.cohort-preprocess/1", &made, || preprocessed_text(&made))?;
    aside(&made.set_aside)
}

fn described(prepared: &Prepared) -> PreprocessedCase {
    let (grid, steps) = (prepared.geometry(), prepared.steps());
    PreprocessedCase {
        id: prepared.id.clone(),
        shape: grid.shape(),
        spacing_mm: grid.spacing_mm(),
        brain_mask: steps.brain_mask,
        brain_cm3: steps.normalisation.voxels as f64 * grid.voxel_mm3() / 1000.0,
        n4_iterations: steps.n4_iterations.clone(),
        notices: steps.notices.clone(),
    }
}

/// Writes what a network sees, to be looked at: `image`, `label` and `brain` below `folder`.
fn export(folder: &Path, prepared: &Prepared) -> Result<(), Failure> {
    let name = format!("{}.nii.gz", prepared.id);
    let place = |part: &str| {
        let folder = folder.join(part);
        std::fs::create_dir_all(&folder).map(|()| folder.join(&name)).map_err(|e| {
            Failure::new(Exit::Storage, format!("creating the folder {}: {e}", folder.display()))
        })
    };
    let grid = || prepared.geometry().clone();
    let internal = |e: rondo_imaging::volume::Error| Failure::new(Exit::Internal, e);
    let storage = |e: nifti::Error| Failure::new(Exit::Storage, e);
    let image = Volume::new(grid(), prepared.image().to_owned()).map_err(internal)?;
    nifti::write(&place("image")?, &image).map_err(storage)?;
    for (part, mask) in [("label", prepared.label()), ("brain", prepared.brain())] {
        let mask = Volume::new(grid(), mask.to_owned()).map_err(internal)?;
        nifti::write(&place(part)?, &mask).map_err(storage)?;
    }
    Ok(())
}

fn preprocessed_text(made: &Preprocessed) -> String {
    let mut text = format!(
        "{}: {} of {} cases prepared in {}",
        made.name,
        made.cases.len(),
        made.cases.len() + made.set_aside.len(),
        made.folder.display()
    );
    text.push_str(&aside_text(&made.set_aside));
    for case in &made.cases {
        for notice in &case.notices {
            text.push_str(&format!("\nnote {}: {notice}", case.id));
        }
    }
    text
}

/// The cases that were set aside, a line each, before them a line break.
fn aside_text(cases: &[SetAside]) -> String {
    let line = |c: &SetAside| format!("\nset aside {} ({}): {}", c.id, c.split.name(), c.reason);
    cases.iter().map(line).collect()
}

/// The exit code says it too when cases were set aside.
fn aside(cases: &[SetAside]) -> Result<(), Failure> {
    if cases.is_empty() {
        return Ok(());
    }
    let text = format!("{} case(s) were set aside; the result says why", cases.len());
    Err(Failure::after_result(Exit::SetAside, text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo_imaging::cohort::Split;

    #[test]
    fn cases_set_aside_have_an_exit_code_of_their_own() {
        assert!(aside(&[]).is_ok());
        let case = SetAside { id: "c1".into(), split: Split::Train, reason: "it holds NaN".into() };
        assert!(aside_text(std::slice::from_ref(&case)).contains("c1 (train): it holds NaN"));
        let failure = aside(&[case]).unwrap_err();
        assert_eq!((failure.exit, failure.after_result), (Exit::SetAside, true));
    }

    #[test]
    fn a_missing_cohort_is_bad_input() {
        assert_eq!(load("/nowhere/cohort.toml".as_ref()).unwrap_err().exit, Exit::BadInput);
    }
}
