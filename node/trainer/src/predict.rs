//! `predict`: masks on the grid of the source images.

use crate::args;
use crate::cases::cohort;
use crate::output::Output;
use crate::train::model;
use crate::{DONE, SET_ASIDE};
use anyhow::{Context, Result, bail};
use rondo_imaging::cohort::is_safe_id;
use rondo_imaging::nifti;
use rondo_imaging::preprocess::{Background, prepare_image};
use rondo_imaging::volume::Volume;
use rondo_learn::device::Device;
use rondo_learn::infer::Model;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One image to segment.
struct Job {
    id: String,
    image: PathBuf,
    brain_mask: PathBuf,
    background: Background,
}

pub(crate) fn run(args: &args::Predict) -> Result<u8> {
    let (weights, digest) = model(&args.model)?;
    let jobs = jobs(args)?;
    let maps = args.out.join("probability");
    let folder = if args.probability { &maps } else { &args.out };
    std::fs::create_dir_all(folder)
        .with_context(|| format!("creating the folder {}", folder.display()))?;
    let output = Output::new(args.json);
    let device = Device::open(args.device)?;
    let described = device.describe();
    output.event("device", json!({"device": described}), &format!("device: {described}"))?;
    let model = Model::new(&weights, &device);
    let mut set_aside = 0;
    for (done, job) in jobs.iter().enumerate() {
        let start = Instant::now();
        match segment(&model, job, &args.out, args.probability.then_some(maps.as_path())) {
            Ok(voxels) => {
                let seconds = start.elapsed().as_secs_f64();
                let text = format!("{}: {voxels} voxels segmented in {seconds:.1} s", job.id);
                output.event(
                    "case",
                    json!({"id": job.id, "voxels": voxels, "seconds": seconds}),
                    &text,
                )?;
            }
            Err(e) => {
                set_aside += 1;
                output.notice(&format!("case `{}` is set aside: {e:#}", job.id))?;
            }
        }
        output.count("cases segmented", done + 1, jobs.len())?;
    }
    output.finish();
    let segmented = jobs.len() - set_aside;
    output.event(
        "result",
        json!({"model": digest, "cases": segmented, "set_aside": set_aside, "path": args.out}),
        &format!(
            "{segmented} cases segmented, {set_aside} set aside; masks in {}",
            args.out.display()
        ),
    )?;
    Ok(if set_aside == 0 { DONE } else { SET_ASIDE })
}

fn jobs(args: &args::Predict) -> Result<Vec<Job>> {
    if let (Some(image), Some(brain_mask)) = (&args.image, &args.brain_mask) {
        let name = image.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let id = [".nii.gz", ".nii"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        if !is_safe_id(id) {
            bail!(
                "`{id}` cannot name a mask file; rename the image to letters, digits, `.`, `_` and `-`"
            );
        }
        let (image, brain_mask) = (image.clone(), brain_mask.clone());
        return Ok(vec![Job {
            id: id.to_owned(),
            image,
            brain_mask,
            background: args.background.into(),
        }]);
    }
    let path = args.cohort.as_deref().unwrap_or(Path::new("cohort.toml"));
    let cohort = cohort(path)?;
    let splits = args.split.splits();
    let jobs: Vec<Job> = cohort
        .cases
        .iter()
        .filter(|case| splits.contains(&case.split))
        .map(|case| Job {
            id: case.id.clone(),
            image: case.image.clone(),
            brain_mask: case.brain_mask.clone(),
            background: cohort.background,
        })
        .collect();
    if jobs.is_empty() {
        bail!("the cohort {} has no case in this split", path.display());
    }
    Ok(jobs)
}

/// Segments one image; the number of voxels above one half.
fn segment(model: &Model, job: &Job, out: &Path, maps: Option<&Path>) -> Result<usize> {
    let prepared = prepare_image(&job.image, &job.brain_mask, job.background)?;
    let probability = model.probability(prepared.image.view())?;
    let mask = probability.map(|p| u8::from(*p > 0.5));
    let voxels = mask.iter().filter(|v| **v > 0).count();
    let name = format!("{}.nii.gz", job.id);
    nifti::write(&out.join(&name), &Volume::new(prepared.geometry.clone(), mask)?)?;
    if let Some(maps) = maps {
        nifti::write(&maps.join(&name), &Volume::new(prepared.geometry, probability)?)?;
    }
    Ok(voxels)
}
