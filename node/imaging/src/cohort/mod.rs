//! What a site trains on: `cohort.toml` and the cases it names.
//!
//! ```toml
//! name = "uker"
//! label_include = [1, 3]     # label values that are metastasis; default [1]
//! label_ignore = [2]         # further values that may occur; default none
//! background = "zscore"      # or "zero": what lies outside the brain after normalisation
//!
//! [[case]]
//! id = "uker-0001"           # safe as a file name
//! patient = "p0001"          # all volumes of a patient lie in one split
//! image = "image/uker-0001.nii.gz"
//! label = "label/uker-0001.nii.gz"
//! brain_mask = "brain/uker-0001.nii.gz"
//! split = "train"            # train, validation or test
//! ```
//! Paths are relative to the folder of the file.

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
use crate::preprocess::Background;

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
}

impl Default for LabelRule {
    fn default() -> Self {
        Self { include: vec![1], ignore: Vec::new() }
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
    /// T1 with contrast.
    pub image: PathBuf,
    /// Lesion label.
    pub label: PathBuf,
    /// Brain where above 0.
    pub brain_mask: PathBuf,
    /// What it is used for.
    pub split: Split,
}

/// A parsed cohort: ids unique, no patient in two splits. Whether the files are sound, [`check`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cohort {
    /// Name of the cohort, usually of the centre.
    pub name: String,
    /// Which label values are metastasis.
    pub label: LabelRule,
    /// What lies outside the brain after normalisation.
    pub background: Background,
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
            label: String,
            brain_mask: String,
            split: Split,
        }
        #[derive(Serialize)]
        struct CohortFile<'a> {
            name: &'a str,
            label_include: &'a [u16],
            label_ignore: &'a [u16],
            background: Background,
            case: Vec<CaseFile<'a>>,
        }
        let path = folder.join("cohort.toml");
        let relative =
            |p: &Path| p.strip_prefix(folder).unwrap_or(p).to_string_lossy().into_owned();
        let file = CohortFile {
            name: &self.name,
            label_include: &self.label.include,
            label_ignore: &self.label.ignore,
            background: self.background,
            case: (self.cases.iter())
                .map(|c| CaseFile {
                    id: &c.id,
                    patient: &c.patient,
                    image: relative(&c.image),
                    label: relative(&c.label),
                    brain_mask: relative(&c.brain_mask),
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
