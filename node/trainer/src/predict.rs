//! `predict`: masks on the grid of the source images.

use crate::args;
use crate::cases::cohort;
use crate::output::Output;
use crate::train::model;
use crate::{DONE, SET_ASIDE};
use anyhow::{Context, Result, bail};
use rondo_imaging::cohort::is_safe_id;
use rondo_imaging::dicom::composite::{Description, Grouping};
use rondo_imaging::dicom::{Series, rtstruct, segmentation};
use rondo_imaging::lesion::Connectivity;
use rondo_imaging::nifti;
use rondo_imaging::preprocess::{Settings, Sources, prepare_image};
use rondo_imaging::source::Kind;
use rondo_imaging::volume::Volume;
use rondo_learn::device::Device;
use rondo_learn::infer::Model;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Longest version of an algorithm in a DICOM object: a SHA-256 in hexadecimal.
const VERSION_CHARS: usize = 64;

/// One image to segment.
struct Job {
    id: String,
    image: PathBuf,
    series: Option<String>,
    brain_mask: Option<PathBuf>,
}

/// Where results go.
struct Results<'a> {
    masks: &'a Path,
    probability: Option<&'a Path>,
    dicom: &'a [args::DicomKind],
    /// Of the model, for the DICOM objects.
    digest: &'a str,
}

pub(crate) fn run(args: &args::Predict) -> Result<u8> {
    let (weights, digest) = model(&args.model)?;
    let (jobs, settings) = jobs(args)?;
    let maps = args.out.join("probability");
    let folder = if args.probability { &maps } else { &args.out };
    std::fs::create_dir_all(folder)
        .with_context(|| format!("creating the folder {}", folder.display()))?;
    let output = Output::new(args.json);
    let device = Device::open(args.device)?;
    let described = device.describe();
    output.event("device", json!({"device": described}), &format!("device: {described}"))?;
    let model = Model::new(&weights, &device);
    let results = Results {
        masks: &args.out,
        probability: args.probability.then_some(maps.as_path()),
        dicom: &args.dicom,
        digest: &digest.to_string(),
    };
    let mut set_aside = 0;
    for (done, job) in jobs.iter().enumerate() {
        let start = Instant::now();
        match segment(&model, job, &settings, &results) {
            Ok((voxels, notices)) => {
                for notice in notices {
                    output.notice(&format!("case `{}`: {notice}", job.id))?;
                }
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

fn jobs(args: &args::Predict) -> Result<(Vec<Job>, Settings)> {
    if let Some(image) = &args.image {
        let name = image.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let id = [".nii.gz", ".nii"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        if !is_safe_id(id) {
            bail!(
                "`{id}` cannot name a mask file; rename the image to letters, digits, `.`, `_` and `-`"
            );
        }
        let settings = match &args.like {
            Some(like) => cohort(like)?.preprocess,
            None => Settings::default(),
        };
        let job = Job {
            id: id.to_owned(),
            image: image.clone(),
            series: args.series.clone(),
            brain_mask: args.brain_mask.clone(),
        };
        return Ok((vec![job], settings));
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
            series: case.series.clone(),
            brain_mask: case.brain_mask.clone(),
        })
        .collect();
    if jobs.is_empty() {
        bail!("the cohort {} has no case in this split", path.display());
    }
    Ok((jobs, cohort.preprocess))
}

/// Segments one image; the number of voxels above one half on the source's grid, and what is to be told.
fn segment(
    model: &Model,
    job: &Job,
    settings: &Settings,
    results: &Results<'_>,
) -> Result<(usize, Vec<String>)> {
    let sources = Sources {
        image: &job.image,
        series: job.series.as_deref(),
        brain_mask: job.brain_mask.as_deref(),
    };
    if !results.dicom.is_empty() && Kind::of(&job.image)? == Kind::Nifti {
        bail!(
            "{} is no DICOM series, so no DICOM object can refer to it; leave --dicom out for it",
            job.image.display()
        );
    }
    let prepared = prepare_image(&sources, settings)?;
    let probability = model.probability(prepared.image.view())?;
    let mask = prepared.restore(probability.map(|p| u8::from(*p > 0.5)))?;
    let voxels = mask.data().iter().filter(|v| **v > 0).count();
    let name = format!("{}.nii.gz", job.id);
    nifti::write(&results.masks.join(&name), &mask)?;
    if let Some(series) = &prepared.series {
        for kind in results.dicom {
            write_dicom(*kind, job, series, &mask, results)?;
        }
    }
    if let Some(maps) = results.probability {
        nifti::write(&maps.join(&name), &prepared.restore_probability(probability)?)?;
    }
    Ok((voxels, prepared.steps.notices))
}

/// A DICOM object beside the mask, which refers to the series that was segmented.
fn write_dicom(
    kind: args::DicomKind,
    job: &Job,
    series: &Series,
    mask: &Volume<u8>,
    results: &Results<'_>,
) -> Result<()> {
    let now = jiff::Zoned::now();
    let description = Description {
        name: "Metastasis".to_owned(),
        grouping: Grouping::PerLesion(Connectivity::default()),
        algorithm: "Rondo".to_owned(),
        algorithm_version: results.digest.chars().take(VERSION_CHARS).collect(),
        date: now.strftime("%Y%m%d").to_string(),
        time: now.strftime("%H%M%S").to_string(),
    };
    let place = |end: &str| results.masks.join(format!("{}.{end}.dcm", job.id));
    match kind {
        args::DicomKind::Seg => segmentation::write(&place("seg"), series, mask, &description)?,
        args::DicomKind::Rtstruct => {
            rtstruct::write(&place("rtstruct"), series, mask, &description)?
        }
    }
    Ok(())
}
