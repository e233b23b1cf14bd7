//! Everything between a scanner's file and what a network sees, for one head.

use std::path::Path;

use rondo_imaging::nifti;
use rondo_imaging::preprocess::{MaskSource, Settings, Sources, prepare_image};
use serde_json::{Value, json};

use crate::head::Head;
use crate::turns::{Took, Turns, timed};

/// What one head may take.
const MS_WANTED: f64 = 10_000.0;
const MIB_WANTED: u64 = 2048;

/// One report: the paper's preparation of a compressed file without a brain mask, which is the longest way.
pub(crate) fn run(repeats: usize, work: &Path, head: &Head) -> Result<Vec<Value>, String> {
    let file = work.join("preprocess.nii.gz");
    nifti::write_narrow(&file, &head.image.map(|v| v.round())).map_err(|e| e.to_string())?;
    let sources = Sources { image: &file, series: None, brain_mask: None };
    let mut shape = None;
    let turns = Turns::take(
        repeats,
        || {
            let (took, made) = timed(|| prepare_image(&sources, &Settings::default()));
            let made = made.map_err(|e| e.to_string())?;
            if made.steps.brain_mask != MaskSource::Estimate || made.steps.n4_iterations.is_none() {
                return Err("a step was left out".to_owned());
            }
            shape = Some(made.geometry.shape());
            Ok(took)
        },
        None::<fn() -> Result<Took, String>>,
    )?;
    let mut report = turns.report("preprocess", None, None);
    report["source_shape"] = json!(head.image.geometry().shape());
    report["shape"] = json!(shape);
    report["ms_wanted"] = json!(MS_WANTED);
    report["mib_wanted"] = json!(MIB_WANTED);
    Ok(vec![report])
}
