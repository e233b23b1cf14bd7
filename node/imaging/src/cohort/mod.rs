//! What a site trains on: `cohort.toml` and the cases it names.
//!
//! ```toml
//! name = "uker"
//! label_include = [1, 3]     # label values that are metastasis; default [1]
//! label_ignore = [2]         # further values that may occur; default none
//! label_rois = ["GTV*"]      # names of contours or segments that are metastasis, in RTSTRUCT or SEG
//! bias_correction = "n4"     # or "none", for images that were corrected before
//! grid = "isotropic"         # or "native": the image's own voxels
//! grid_spacing_mm = 1.0      # of the isotropic grid; default 1 mm,
//! grid_shape = [240, 240, 155] # and these voxels around the brain
//! background = "zscore"      # or "zero": what lies outside the brain after normalisation
//! brain_mask_command = ["synthstrip", "-i", "{input}", "-m", "{mask}"] # for cases without a mask
//!
//! [[case]]
//! id = "uker-0001"           # safe as a file name
//! patient = "p0001"          # all volumes of a patient lie in one split
//! image = "image/uker-0001.nii.gz"     # or the folder of a DICOM series
//! series = "1.2.840.99.1"    # its Series Instance UID, where the folder holds several; else left out
//! label = "label/uker-0001.nii.gz"     # or a DICOM RTSTRUCT or SEG of that series
//! brain_mask = "brain/uker-0001.nii.gz" # left out: the command's, or a rough estimate
//! split = "train"            # train, validation or test
//! ```
//! Paths are relative to the folder of the file. What is left out has the paper's value.

mod check;
mod parse;
mod stats;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use check::{CheckReport, Notice, SetAside, check, same_image};
pub use stats::{SMALL_CM3, SplitStats, Stats, stats};

use crate::durable;
use crate::preprocess::{Background, BiasCorrection, Grid, MaskCommand, Settings, Sources};

/// Largest cohort file that is read.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// Most cases in one cohort.
pub const MAX_CASES: usize = 50_000;
/// Longest case or patient id.
pub const MAX_ID_CHARS: usize = 64;

/// Why a cohort file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system said no.
    #[error("reading cohort file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It could not be written.
    #[error("writing cohort file {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Every problem of the file, in its order.
    #[error("cohort file {} has {} problem(s):{}", path.display(), problems.len(), list(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("\n  {p}")).collect()
}

/// One problem of a cohort file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}; {}", self.line, self.message, self.fix)
    }
}

/// What a case is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Weights are fitted on it.
    Train,
    /// The best model is chosen on it.
    Validation,
    /// Only evaluated.
    Test,
}

impl Split {
    /// All three, in order.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// As written in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// Which label values are metastasis; centres code tumours differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelRule {
    /// Values that are metastasis.
    pub include: Vec<u16>,
    /// Values that may occur and are not.
    pub ignore: Vec<u16>,
    /// Names of the contours that are metastasis, where a label is an RTSTRUCT.
    pub rois: Vec<String>,
}

impl Default for LabelRule {
    fn default() -> Self {
        Self { include: vec![1], ignore: Vec::new(), rois: Vec::new() }
    }
}

impl LabelRule {
    /// Whether this value is metastasis.
    pub fn is_lesion(&self, value: u16) -> bool {
        self.include.contains(&value)
    }

    /// Whether the rule says anything about this value; 0 is background everywhere.
    pub fn knows(&self, value: u16) -> bool {
        value == 0 || self.is_lesion(value) || self.ignore.contains(&value)
    }
}

/// One volume with its label and brain mask. Paths are ready to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Unique in the cohort (also when case is ignored) and safe as a file name.
    pub id: String,
    /// Never in two splits.
    pub patient: String,
    /// T1 with contrast: a NIfTI file, or the folder of a DICOM series.
    pub image: PathBuf,
    /// Series Instance UID, where that folder holds several series.
    pub series: Option<String>,
    /// Lesion label: a NIfTI file, an RTSTRUCT or a DICOM SEG.
    pub label: PathBuf,
    /// Brain where above 0.
    pub brain_mask: Option<PathBuf>,
    /// What it is used for.
    pub split: Split,
}

impl Case {
    /// Where its image and brain mask lie.
    #[must_use]
    pub fn sources(&self) -> Sources<'_> {
        Sources {
            image: &self.image,
            series: self.series.as_deref(),
            brain_mask: self.brain_mask.as_deref(),
        }
    }

    /// Image, label and, where there is one, brain mask, with what each is called.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        [("image", &self.image), ("label", &self.label)]
            .into_iter()
            .chain(self.brain_mask.as_ref().map(|mask| ("brain mask", mask)))
            .map(|(what, path)| (what, path.as_path()))
    }
}

/// A parsed cohort: ids unique, no patient in two splits. Whether the files are sound, [`check`] tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Cohort {
    /// Name of the cohort, usually of the centre.
    pub name: String,
    /// Which label values are metastasis.
    pub label: LabelRule,
    /// How images are prepared.
    pub preprocess: Settings,
    /// All cases, in the order of the file.
    pub cases: Vec<Case>,
}

impl Cohort {
    /// Reads `cohort.toml`, or the one inside a folder.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let path = if path.is_dir() { path.join("cohort.toml") } else { path.to_path_buf() };
        let read = || {
            let mut text = String::new();
            let mut file = File::open(&path)?.take(MAX_FILE_BYTES + 1);
            file.read_to_string(&mut text)?;
            if text.len() as u64 > MAX_FILE_BYTES {
                return Err(std::io::Error::other("larger than 16 MiB, so this is no cohort file"));
            }
            Ok(text)
        };
        let text = read().map_err(|source| Error::Read { path: path.clone(), source })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).map_err(|problems| Error::Invalid { path, problems })
    }

    /// Parses the text of a cohort file that lies in `folder`; on failure, every problem in order.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Problem>> {
        parse::parse(text, folder)
    }

    /// Writes `cohort.toml` into `folder`; files below the folder are named relative to it.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, Error> {
        #[derive(Serialize)]
        struct CaseFile<'a> {
            id: &'a str,
            patient: &'a str,
            image: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            series: Option<&'a str>,
            label: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            brain_mask: Option<String>,
            split: Split,
        }
        #[derive(Serialize)]
        struct CohortFile<'a> {
            name: &'a str,
            label_include: &'a [u16],
            label_ignore: &'a [u16],
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            label_rois: &'a [String],
            bias_correction: BiasCorrection,
            grid: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            grid_spacing_mm: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            grid_shape: Option<[usize; 3]>,
            background: Background,
            #[serde(skip_serializing_if = "Option::is_none")]
            brain_mask_command: Option<&'a MaskCommand>,
            case: Vec<CaseFile<'a>>,
        }
        let path = folder.join("cohort.toml");
        let relative =
            |p: &Path| p.strip_prefix(folder).unwrap_or(p).to_string_lossy().into_owned();
        let (grid, grid_spacing_mm, grid_shape) = match self.preprocess.grid {
            Grid::Native => ("native", None, None),
            Grid::Isotropic { spacing_mm, shape } => ("isotropic", Some(spacing_mm), Some(shape)),
        };
        let file = CohortFile {
            name: &self.name,
            label_include: &self.label.include,
            label_ignore: &self.label.ignore,
            label_rois: &self.label.rois,
            bias_correction: self.preprocess.bias_correction,
            grid,
            grid_spacing_mm,
            grid_shape,
            background: self.preprocess.background,
            brain_mask_command: self.preprocess.brain_mask_command.as_ref(),
            case: (self.cases.iter())
                .map(|c| CaseFile {
                    id: &c.id,
                    patient: &c.patient,
                    image: relative(&c.image),
                    series: c.series.as_deref(),
                    label: relative(&c.label),
                    brain_mask: c.brain_mask.as_deref().map(relative),
                    split: c.split,
                })
                .collect(),
        };
        let written = toml::to_string(&file)
            .map_err(std::io::Error::other)
            .and_then(|text| durable::write(&path, text.as_bytes()));
        written.map(|()| path.clone()).map_err(|source| Error::Write { path, source })
    }

    /// The cases of one split, in the order of the file.
    pub fn split(&self, split: Split) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(move |c| c.split == split)
    }
}

/// Whether a text may be a file name everywhere: letters, digits, `.`, `_`, `-`, at most 64,
/// beginning with a letter or digit and not ending with a dot.
pub fn is_safe_id(id: &str) -> bool {
    id.len() <= MAX_ID_CHARS
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !id.ends_with('.')
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
