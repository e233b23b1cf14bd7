//! Folders of masks, matched by case id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Array3;

use super::{CaseResult, Evaluation, Settings, evaluate_case, pool};
use crate::lesion::Connectivity;
use crate::volume::{Geometry, Volume};
use crate::{OnProgress, nifti, over_cases};

/// Why masks cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder could not be listed.
    #[error("listing masks in {}: {source}", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file without its counterpart.
    #[error("{} has no {missing} of the same name; add it or move the file away", file.display())]
    Unmatched {
        /// The file that stands alone.
        file: PathBuf,
        /// What is missing.
        missing: &'static str,
    },
    /// Two files with one id in a folder.
    #[error("{} and {} have the same case id; keep one", first.display(), second.display())]
    Twice {
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Nothing to evaluate.
    #[error("there is no .nii or .nii.gz file in {}", .0.display())]
    Nothing(PathBuf),
    /// A mask could not be read.
    #[error(transparent)]
    Read(#[from] nifti::Error),
    /// Masks on different grids.
    #[error("{} lies on another grid than {} ({difference}); resample it onto that grid", file.display(), reference.display())]
    Grid {
        /// The file that differs.
        file: PathBuf,
        /// The reference mask.
        reference: PathBuf,
        /// In words.
        difference: String,
    },
    /// A setting that makes no sense.
    #[error("surface Dice at a tolerance of {0} mm; choose a tolerance of 0 mm or more")]
    Tolerance(f64),
}

/// What a user may choose.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// What makes voxels one lesion.
    pub connectivity: Connectivity,
    /// Tolerance of the surface Dice.
    pub tolerance_mm: f64,
    /// Label values that are lesion; empty for every value above 0. Predictions that all hold only 0 and
    /// 1 are plain masks and taken as they are.
    pub labels: Vec<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self { connectivity: Connectivity::default(), tolerance_mm: 1.0, labels: Vec::new() }
    }
}

/// Files of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationCase {
    /// Case id.
    pub id: String,
    /// The truth.
    pub reference: PathBuf,
    /// What is judged.
    pub prediction: PathBuf,
    /// Brain where above 0.
    pub brain_mask: Option<PathBuf>,
}

/// Matches the files of two or three folders by name without `.nii` or `.nii.gz`.
/// Other files are left alone; a NIfTI file without its counterpart is an error.
pub fn match_folders(
    reference: &Path,
    prediction: &Path,
    brain_mask: Option<&Path>,
) -> Result<Vec<EvaluationCase>, Error> {
    let references = list(reference)?;
    let mut predictions = list(prediction)?;
    let mut brains = brain_mask.map(list).transpose()?;
    if references.is_empty() {
        return Err(Error::Nothing(reference.to_path_buf()));
    }
    let mut cases = Vec::new();
    for (id, file) in references {
        let unmatched = |missing| Error::Unmatched { file: file.clone(), missing };
        let prediction = predictions.remove(&id).ok_or_else(|| unmatched("prediction"))?;
        let brain_mask = match &mut brains {
            Some(brains) => Some(brains.remove(&id).ok_or_else(|| unmatched("brain mask"))?),
            None => None,
        };
        cases.push(EvaluationCase { id, reference: file, prediction, brain_mask });
    }
    let left =
        predictions.into_values().chain(brains.into_iter().flat_map(BTreeMap::into_values)).next();
    left.map_or(Ok(cases), |file| Err(Error::Unmatched { file, missing: "reference" }))
}

fn list(folder: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let fail = |source| Error::List { path: folder.to_path_buf(), source };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(id) = name.strip_suffix(".nii.gz").or_else(|| name.strip_suffix(".nii")) else {
            continue;
        };
        if id.is_empty() || id.starts_with('.') {
            continue;
        }
        if let Some(first) = files.insert(id.to_owned(), path.clone()) {
            return Err(Error::Twice { first, second: path });
        }
    }
    Ok(files)
}

/// Judges every case and pools them; with brain masks also with predictions outside them removed.
pub fn evaluate(
    cases: &[EvaluationCase],
    options: &Options,
    progress: OnProgress<'_>,
) -> Result<Evaluation, Error> {
    if !(options.tolerance_mm >= 0.0 && options.tolerance_mm.is_finite()) {
        return Err(Error::Tolerance(options.tolerance_mm));
    }
    let settings = Settings {
        connectivity: options.connectivity,
        tolerance_mm: options.tolerance_mm,
        labels: options.labels.clone(),
        prediction_labels: if coded(cases, options)? { options.labels.clone() } else { Vec::new() },
        // Figures inside the brain pool all cases or none.
        brain_mask: !cases.is_empty() && cases.iter().all(|c| c.brain_mask.is_some()),
    };
    let mut judged = over_cases(cases, |case| &case.id, progress, |case| judge(case, &settings))
        .into_iter()
        .collect::<Result<Vec<_>, Error>>()?;
    judged.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    let (cases, in_brain): (Vec<_>, Vec<_>) = judged.into_iter().unzip();
    let pooled = pool(&cases);
    let pooled_in_brain = settings
        .brain_mask
        .then(|| pool(in_brain.iter().zip(&cases).map(|(b, c)| b.as_ref().unwrap_or(c))));
    Ok(Evaluation { settings, cases, pooled, pooled_in_brain })
}

/// The result, and the one inside the brain where it differs.
fn judge(
    case: &EvaluationCase,
    settings: &Settings,
) -> Result<(CaseResult, Option<CaseResult>), Error> {
    let Masks { geometry, reference, prediction } = read_masks(case, settings)?;
    let spacing = geometry.spacing_mm();
    let result = evaluate_case(&case.id, &reference, &prediction, spacing, settings);
    let Some(path) = &case.brain_mask else {
        return Ok((result, None));
    };
    let brain = stored_as(&geometry, nifti::read_mask(path)?, case, path)?;
    let inside = Array3::from_shape_fn(prediction.dim(), |at| prediction[at] & brain[at]);
    let in_brain = (inside != prediction)
        .then(|| evaluate_case(&case.id, &reference, &inside, spacing, settings));
    Ok((result, in_brain))
}

/// What is compared of a case.
#[derive(Debug, Clone)]
pub struct Masks {
    /// The grid of both.
    pub geometry: Geometry,
    /// 1 where the truth is lesion.
    pub reference: Array3<u8>,
    /// 1 where the prediction is.
    pub prediction: Array3<u8>,
}

/// Whether the predictions are coded as the reference is: one of them holds a value above 1. It is asked
/// of all together, so that one rule holds for a whole set.
fn coded(cases: &[EvaluationCase], options: &Options) -> Result<bool, Error> {
    if options.labels.is_empty() {
        return Ok(false);
    }
    let above = |case: &EvaluationCase| {
        Ok::<_, Error>(nifti::read_labels(&case.prediction)?.data().iter().any(|v| *v > 1))
    };
    for case in cases {
        if above(case)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads both masks of a case by the rule of the settings. They may be stored in different orders of axes.
///
/// # Errors
/// A file that cannot be read, and masks on different grids.
pub fn read_masks(case: &EvaluationCase, settings: &Settings) -> Result<Masks, Error> {
    let (geometry, reference) = nifti::read_labels(&case.reference)?.into_parts();
    let by = |labels: &[u16], data: &Array3<u16>| {
        data.map(|v| u8::from(*v > 0 && (labels.is_empty() || labels.contains(v))))
    };
    let prediction = nifti::read_labels(&case.prediction)?;
    let prediction = stored_as(&geometry, prediction, case, &case.prediction)?;
    Ok(Masks {
        reference: by(&settings.labels, &reference),
        prediction: by(&settings.prediction_labels, &prediction),
        geometry,
    })
}

fn stored_as<T: Clone>(
    geometry: &Geometry,
    volume: Volume<T>,
    case: &EvaluationCase,
    file: &Path,
) -> Result<Array3<T>, Error> {
    let volume = volume.stored_as(geometry).map_err(|difference| Error::Grid {
        file: file.to_path_buf(),
        reference: case.reference.clone(),
        difference,
    })?;
    Ok(volume.into_parts().1)
}
