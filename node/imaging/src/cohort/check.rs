//! Are the files of a cohort sound? What is not is set aside, the rest goes on.

use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

use super::{Case, Cohort, Split};
use crate::orientation::canonical;
use crate::preprocess::{self, normalise};
use crate::volume::{self, Volume};
use crate::{OnProgress, over_cases, source};

/// Lesion voxels outside the brain mask from which on a notice is given.
const OUTSIDE_BRAIN_NOTICE: f64 = 0.1;

const NO_MASK: &str = "the case has no brain mask and the cohort no `brain_mask_command`; a rough estimate will be made";

/// A case that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// Case id.
    pub id: String,
    /// The split it is missing from.
    pub split: Split,
    /// One sentence: what is wrong and what to do.
    pub reason: String,
}

/// Something a user should know about a case that is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// Case id.
    pub id: String,
    /// What.
    pub text: String,
}

/// Result of [`check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Name of the cohort.
    pub name: String,
    /// Cases in the file.
    pub cases: usize,
    /// Ids of the cases that can be used, in the order of the file.
    pub usable: Vec<String>,
    /// The others.
    pub set_aside: Vec<SetAside>,
    /// Peculiarities of usable cases.
    pub notices: Vec<Notice>,
}

impl CheckReport {
    /// The cohort without the cases that were set aside.
    pub fn usable_cohort(&self, cohort: &Cohort) -> Cohort {
        let mut kept = cohort.clone();
        kept.cases.retain(|c| self.usable.contains(&c.id));
        kept
    }
}

struct Sound {
    digest: [u8; 32],
    notices: Vec<String>,
}

/// Reads every file of the cohort and sets aside what cannot be used: missing or unreadable files,
/// other grids, NaN, constant images, unknown label values, empty brain masks, and images whose
/// voxels another case already holds.
pub fn check(cohort: &Cohort, progress: OnProgress<'_>) -> CheckReport {
    let inspected = over_cases(&cohort.cases, |c| &c.id, progress, |case| inspect(cohort, case));
    let mut report = CheckReport {
        name: cohort.name.clone(),
        cases: cohort.cases.len(),
        usable: Vec::new(),
        set_aside: Vec::new(),
        notices: Vec::new(),
    };
    let mut seen: HashMap<[u8; 32], &Case> = HashMap::new();
    for (case, result) in cohort.cases.iter().zip(inspected) {
        let verdict = result.and_then(|sound| match seen.get(&sound.digest) {
            Some(first) => Err(format!(
                "the image holds the same voxels as case {} of the {} split; remove one of the two{}",
                first.id,
                first.split.name(),
                if first.split == case.split { "" } else { ", or a model is judged on what it saw" }
            )),
            None => Ok(sound),
        });
        match verdict {
            Ok(sound) => {
                seen.insert(sound.digest, case);
                report.usable.push(case.id.clone());
                report.notices.extend(
                    sound.notices.into_iter().map(|text| Notice { id: case.id.clone(), text }),
                );
            }
            Err(reason) => {
                report.set_aside.push(SetAside { id: case.id.clone(), split: case.split, reason })
            }
        }
    }
    report
}

/// The first two of `cases` whose images hold the same voxels, by their places. Images that cannot be
/// read are left out.
pub fn same_image(cases: &[&Case]) -> Option<[usize; 2]> {
    let digests = over_cases(
        cases,
        |case| &case.id,
        &|_| {},
        |case| {
            let image = source::read_image(&case.image, case.series.as_deref()).ok()?;
            digest(image.volume).ok()
        },
    );
    let mut seen = HashMap::new();
    digests
        .into_iter()
        .enumerate()
        .find_map(|(at, digest)| seen.insert(digest?, at).map(|before| [before, at]))
}

fn inspect(cohort: &Cohort, case: &Case) -> Result<Sound, String> {
    for (what, path) in case.paths() {
        if !path.exists() {
            let stray = if what == "image" && case.label.exists() {
                ", though its label is there"
            } else {
                ""
            };
            return Err(format!(
                "the {what} {} does not exist{stray}; put it back or correct the path in the cohort file",
                path.display()
            ));
        }
    }
    inspect_voxels(cohort, case).map_err(|e| e.to_string())
}

fn inspect_voxels(cohort: &Cohort, case: &Case) -> Result<Sound, preprocess::Error> {
    let source::Image { volume, series, mut notices } =
        source::read_image(&case.image, case.series.as_deref())?;
    let source::Label { volume: label, notices: of_label } =
        source::read_label(&case.label, volume.geometry(), series.as_ref(), &cohort.label)?;
    notices.extend(of_label);
    let lesion = label.data().iter().filter(|v| **v > 0).count();
    if lesion == 0 {
        notices.push("the label holds no lesion".into());
    }
    let Some(brain_mask) = &case.brain_mask else {
        match &cohort.preprocess.brain_mask_command {
            None => notices.push(NO_MASK.into()),
            Some(command) => {
                if let Some(program) = command.missing() {
                    return Err(preprocess::Error::NoProgram(program.to_owned()));
                }
            }
        }
        if volume.data().iter().all(|v| v == &volume.data()[[0, 0, 0]]) {
            return Err(preprocess::Error::Uniform(case.image.clone()));
        }
        return Ok(Sound { digest: digest(volume)?, notices });
    };
    let brain = source::read_mask("brain mask", brain_mask, volume.geometry())?;
    let outside =
        label.data().iter().zip(brain.data()).filter(|(l, b)| **l > 0 && **b == 0).count();
    if outside as f64 > OUTSIDE_BRAIN_NOTICE * lesion as f64 {
        notices.push(format!(
            "{outside} of {lesion} lesion voxels lie outside the brain mask; look at the mask"
        ));
    }
    normalise(&mut volume.data().clone(), brain.data(), cohort.preprocess.background)
        .map_err(|e| e.of(&case.sources()))?;
    Ok(Sound { digest: digest(volume)?, notices })
}

/// Of shape and voxels in canonical order, so that a copy under another name, compression, header or
/// order of axes is recognised.
fn digest(volume: Volume<f32>) -> Result<[u8; 32], volume::Error> {
    let volume = canonical(volume)?;
    let mut hash = Sha256::new();
    for n in volume.geometry().shape() {
        hash.update((n as u64).to_le_bytes());
    }
    for row in volume.data().rows() {
        let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        hash.update(&bytes);
    }
    Ok(hash.finalize().into())
}
