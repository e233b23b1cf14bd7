//! Folders of masks, matched by case id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::Array3;
use rayon::prelude::*;

use super::{CaseResult, Evaluation, Settings, evaluate_case, pool};
use crate::lesion::Connectivity;
use crate::volume::Geometry;
use crate::{OnProgress, Progress, nifti};

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
    /// Label values that are lesion; empty for every value above 0. A prediction that holds only
    /// 0 and 1 is a plain mask and taken as it is.
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
        brain_mask: cases.iter().any(|c| c.brain_mask.is_some()),
    };
    let done = AtomicUsize::new(0);
    let mut judged = (cases.par_iter())
        .map(|case| {
            let result = judge(case, &settings)?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            progress(Progress { done, total: cases.len(), item: &case.id });
            Ok(result)
        })
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
    let Masks { geometry, reference, prediction } = read_masks(case, &settings.labels)?;
    let spacing = geometry.spacing_mm();
    let result = evaluate_case(&case.id, &reference, &prediction, spacing, settings);
    let Some(path) = &case.brain_mask else {
        return Ok((result, None));
    };
    let (grid, brain) = nifti::read_mask(path)?.into_parts();
    same_grid(&geometry, &grid, case, path)?;
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

/// Reads both masks of a case by the rule of [`Options::labels`].
///
/// # Errors
/// A file that cannot be read, and masks on different grids.
pub fn read_masks(case: &EvaluationCase, labels: &[u16]) -> Result<Masks, Error> {
    let (geometry, reference) = nifti::read_labels(&case.reference)?.into_parts();
    let is_lesion = |v: &u16| u8::from(*v > 0 && (labels.is_empty() || labels.contains(v)));
    let reference = reference.map(is_lesion);
    let (grid, prediction) = nifti::read_labels(&case.prediction)?.into_parts();
    same_grid(&geometry, &grid, case, &case.prediction)?;
    let prediction = if prediction.iter().all(|v| *v <= 1) {
        prediction.map(|v| u8::from(*v > 0))
    } else {
        prediction.map(is_lesion)
    };
    Ok(Masks { geometry, reference, prediction })
}

fn same_grid(
    geometry: &Geometry,
    grid: &Geometry,
    case: &EvaluationCase,
    file: &Path,
) -> Result<(), Error> {
    geometry.difference(grid).map_or(Ok(()), |difference| {
        Err(Error::Grid { file: file.to_path_buf(), reference: case.reference.clone(), difference })
    })
}
