//! `rondo lab demo`: three synthetic centres, so that a newcomer sees a round without any data.

use super::board::Board;
use super::workdir::Workdir;
use crate::commands::cohort::not_made;
use crate::exit::{Exit, Failure};
use rondo_imaging::phantom::{self, Centre, SynthOptions};
use std::fs;
use std::path::{Path, PathBuf};

/// The round of the demo; the seed is put before it.
const PLAN: &str = include_str!("demo-plan.toml");
/// The centres that are imitated; the plan names them.
const CENTRES: [Centre; 3] = [Centre::Uker, Centre::Stanford, Centre::Usz];
const TRAIN: usize = 10;
const VALIDATION: usize = 2;
const TEST: usize = 5;
const SHAPE: [usize; 3] = [64, 72, 56];
const SPACING_MM: [f64; 3] = [1.0; 3];
/// Says of what the cohorts were made, so that they are made again when that changes.
const MARKER: &str = "demo.json";

fn options(centre: Centre, seed: u64) -> SynthOptions {
    SynthOptions {
        train: TRAIN,
        validation: VALIDATION,
        test: TEST,
        shape: SHAPE,
        spacing_mm: SPACING_MM,
        seed,
        ..SynthOptions::small(centre)
    }
}

fn plan(seed: u64) -> String {
    format!("seed = {seed}\n{PLAN}")
}

/// Makes the cohorts unless they are there, and the plan. Folder of the cohorts, and the plan file.
pub(crate) fn prepare(
    workdir: &Workdir,
    seed: u64,
    board: &Board,
) -> Result<(PathBuf, PathBuf), Failure> {
    let file = workdir.file("plan.toml");
    workdir.write(&file, plan(seed).as_bytes())?;
    let folder = workdir.cohorts();
    let made_of = format!("{}\n{:?}", env!("CARGO_PKG_VERSION"), CENTRES.map(|c| options(c, seed)));
    let marker = folder.join(MARKER);
    if fs::read_to_string(&marker).is_ok_and(|text| text == made_of) {
        board.say("the synthetic cohorts are there already");
        return Ok((folder, file));
    }
    let fail =
        |what: &Path, e| Failure::storage(format!("making cohorts in {}", what.display()), &e);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|e| fail(&folder, e))?;
    }
    for centre in CENTRES {
        let name = centre.name();
        let place = folder.join(name);
        fs::create_dir_all(&place).map_err(|e| fail(&place, e))?;
        let made = phantom::synthesise(&place, &options(centre, seed), &|p| {
            board.now(&format!("{name}: {} of {} synthetic heads", p.done, p.total));
        })
        .map_err(|e| not_made(&e))?;
        board.say(&format!(
            "{name}: {} synthetic heads with {} metastases ({TRAIN} to train on, {VALIDATION} to validate, {TEST} to test)",
            made.cases, made.metastases
        ));
    }
    workdir.write(&marker, made_of.as_bytes())?;
    Ok((folder, file))
}

/// The demo's own plan must always be one that can run.
pub(crate) fn is_sound(seed: u64) -> Result<(), Failure> {
    rondo::plan::Plan::from_toml(&plan(seed), 0)
        .map(|_| ())
        .map_err(|e| Failure::new(Exit::Internal, format!("the demo's plan: {e}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_names_the_centres_in_order() {
        is_sound(7).unwrap();
        let plan = rondo::plan::Plan::from_toml(&plan(7), 0).unwrap();
        let names: Vec<&str> = plan.sites.iter().map(rondo::ids::SiteId::as_str).collect();
        assert_eq!(names, CENTRES.map(Centre::name));
        assert_eq!((plan.seed, plan.visit_count()), (7, 6));
    }
}
