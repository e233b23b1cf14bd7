//! Repeats of methods from evaluation files: mean ± standard deviation of every pooled figure over
//! seeds, and unpaired t-tests between methods.
//!
//! The files are what `rondo evaluate --json` printed, and are not believed: they are read up to
//! [`MAX_BYTES`], the pooled figures are computed again from the cases and must agree, and all
//! files must judge the same lesions in the same way. Cases inside the brain are in no file: there
//! sensitivity, precision, F1, F2 and false positives per case are computed again from the counts.

mod sound;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::metrics::{CaseResult, Evaluation, Pooled, Settings};
use crate::page::visible_text;
use crate::repeats::{Summary, TTest, student, summary, welch};

/// Bytes of an evaluation file.
pub const MAX_BYTES: u64 = 64 << 20;
/// Methods compared with each other.
pub const MAX_METHODS: usize = 16;
/// Repeats of all methods together.
pub const MAX_FILES: usize = 1000;
/// Schema of the files.
const SCHEMA: &str = "rondo.evaluate/1";
/// Reference volumes of the same lesion may differ by this share between files.
const VOLUME_ROUNDING: f64 = 1e-6;

/// Why methods cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too few or too many.
    #[error(
        "comparing {methods} methods with {files} files; give 1 to 16 methods and at most 1000 files"
    )]
    Count {
        /// Methods given.
        methods: usize,
        /// Files of all methods.
        files: usize,
    },
    /// A method without repeats.
    #[error("the method {0:?} has no evaluation file; name at least one")]
    Empty(String),
    /// Two methods of one name.
    #[error("two methods are named {0:?}; give each a name of its own")]
    SameName(String),
    /// One result counted twice.
    #[error("{} is given twice; every repeat counts once", .0.display())]
    Twice(PathBuf),
    /// A file that cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Too large to be an evaluation.
    #[error("reading {}: it has more than {MAX_BYTES} bytes; give the output of `rondo evaluate --json`", .0.display())]
    TooLarge(PathBuf),
    /// Not an evaluation.
    #[error("reading {}: {source}; give the output of `rondo evaluate --json`", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        source: serde_json::Error,
    },
    /// Figures that contradict each other.
    #[error("reading {}: {what}; evaluate the predictions again", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Two files about different things.
    #[error("{} and {} {what}; evaluate all methods on the same cases with the same settings", first.display(), second.display())]
    Differ {
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// What sets them apart.
        what: String,
    },
}

/// A method and the files of its repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    /// Name for people.
    pub name: String,
    /// One evaluation a seed.
    pub files: Vec<PathBuf>,
}

/// What a method reached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodFigure {
    /// The method.
    pub method: String,
    /// Over the repeats in which the figure is defined; `n` counts them.
    #[serde(flatten)]
    pub summary: Summary,
    /// Of each repeat in the order of the files; `null` where it is not defined.
    pub values: Vec<Option<f64>>,
}

/// Whether two methods differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Test {
    /// One method.
    pub a: String,
    /// The other.
    pub b: String,
    /// Equal variances; `null` below two values each, or without any variance.
    pub student: Option<TTest>,
    /// Unequal variances; `null` as for `student`.
    pub welch: Option<TTest>,
}

/// One figure over all methods.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// Its name in the evaluation.
    pub figure: &'static str,
    /// In the order given.
    pub methods: Vec<MethodFigure>,
    /// Every pair of methods, the first ones first.
    pub tests: Vec<Test>,
}

/// Methods side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Of all evaluations.
    pub settings: Settings,
    /// Volumes of the test set.
    pub cases: usize,
    /// Lesions of the test set.
    pub reference_lesions: usize,
    /// Predictions in the whole volume.
    pub figures: Vec<Figure>,
    /// With predictions outside the brain removed, where every file has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures_in_brain: Option<Vec<Figure>>,
    /// What a reader should know.
    pub notices: Vec<String>,
}

type Getter = fn(&Pooled) -> Option<f64>;

/// Figures compared, and the largest value each can have; the first [`FROM_COUNTS`] follow from
/// counts alone.
const FIGURES: [(&str, Getter, f64); 8] = [
    ("sensitivity", |p| p.sensitivity, 1.0),
    ("precision", |p| p.precision, 1.0),
    ("fp_per_case", |p| p.fp_per_case, f64::MAX),
    ("f1", |p| p.f1, 1.0),
    ("f2", |p| p.f2, 1.0),
    ("dice", |p| p.dice, 1.0),
    ("surface_dice", |p| p.surface_dice, 1.0),
    ("hd95_mm", |p| p.hd95_mm, f64::MAX),
];

/// See [`FIGURES`].
const FROM_COUNTS: usize = 5;

/// Reads all files and compares.
///
/// # Errors
/// A file that is no sound evaluation, files about different test sets, and counts out of bounds.
pub fn compare(methods: &[Method]) -> Result<Comparison, Error> {
    let files = methods.iter().map(|m| m.files.len()).sum();
    if methods.is_empty() || methods.len() > MAX_METHODS || files > MAX_FILES {
        return Err(Error::Count { methods: methods.len(), files });
    }
    let mut names = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut first: Option<(PathBuf, Evaluation)> = None;
    let mut repeats = Vec::new();
    for method in methods {
        if method.files.is_empty() {
            return Err(Error::Empty(method.name.clone()));
        }
        if !names.insert(method.name.as_str()) {
            return Err(Error::SameName(method.name.clone()));
        }
        let mut of_method = Vec::new();
        for path in &method.files {
            let real =
                path.canonicalize().map_err(|source| Error::Read { path: path.clone(), source })?;
            if !seen.insert(real) {
                return Err(Error::Twice(path.clone()));
            }
            let evaluation = read(path)?;
            of_method.push(Repeat {
                path,
                pooled: evaluation.pooled.clone(),
                in_brain: evaluation.pooled_in_brain.clone(),
            });
            match &first {
                None => first = Some((path.clone(), evaluation)),
                Some((other, reference)) => same_test(other, reference, path, &evaluation)?,
            }
        }
        repeats.push((method.name.as_str(), of_method));
    }
    let Some((_, reference)) = first else {
        return Err(Error::Count { methods: 0, files: 0 });
    };
    let figures_of = |pick: for<'a> fn(&'a Repeat<'_>) -> Option<&'a Pooled>| {
        FIGURES
            .iter()
            .map(|(name, get, _)| figure(name, &repeats, |r| pick(r).and_then(get)))
            .collect()
    };
    let without: Vec<&Path> = (repeats.iter().flat_map(|(_, r)| r))
        .filter(|r| r.in_brain.is_none())
        .map(|r| r.path)
        .collect();
    let mut notices = notices(&repeats);
    if let [first, ..] = without[..]
        && without.len() < files
    {
        notices.push(format!(
            "there is no comparison inside the brain: {} of {files} files have no figures for it, the first is {}; evaluate them with --brain-mask",
            without.len(),
            visible_text(&first.display().to_string()),
        ));
    }
    Ok(Comparison {
        cases: reference.pooled.cases,
        reference_lesions: reference.pooled.reference_lesions,
        settings: reference.settings,
        figures: figures_of(|r| Some(&r.pooled)),
        figures_in_brain: without.is_empty().then(|| figures_of(|r| r.in_brain.as_ref())),
        notices,
    })
}

struct Repeat<'a> {
    path: &'a Path,
    pooled: Pooled,
    in_brain: Option<Pooled>,
}

fn figure(
    name: &'static str,
    repeats: &[(&str, Vec<Repeat<'_>>)],
    value: impl Fn(&Repeat<'_>) -> Option<f64>,
) -> Figure {
    let methods: Vec<MethodFigure> = (repeats.iter())
        .map(|(method, repeats)| {
            let values: Vec<Option<f64>> = repeats.iter().map(&value).collect();
            let defined: Vec<f64> = values.iter().flatten().copied().collect();
            MethodFigure { method: (*method).to_owned(), summary: summary(&defined), values }
        })
        .collect();
    let defined = |m: &MethodFigure| m.values.iter().flatten().copied().collect::<Vec<f64>>();
    let mut tests = Vec::new();
    for (n, a) in methods.iter().enumerate() {
        for b in &methods[n + 1..] {
            let (x, y) = (defined(a), defined(b));
            tests.push(Test {
                a: a.method.clone(),
                b: b.method.clone(),
                student: student(&x, &y),
                welch: welch(&x, &y),
            });
        }
    }
    Figure { figure: name, methods, tests }
}

fn notices(repeats: &[(&str, Vec<Repeat<'_>>)]) -> Vec<String> {
    let mut notices = Vec::new();
    for (name, of_method) in repeats {
        if of_method.len() < 2 {
            notices.push(format!(
                "{name:?} has one repeat: there is no standard deviation and no test"
            ));
        }
        let equal = of_method.iter().enumerate().any(|(n, a)| {
            of_method[..n].iter().any(|b| a.pooled == b.pooled && a.pooled.detected > 0)
        });
        if equal {
            notices.push(format!(
                "two repeats of {name:?} have exactly the same figures; if they are copies, the test counts them twice"
            ));
        }
    }
    notices
}

#[derive(Deserialize)]
struct Head {
    schema: String,
}

fn read(path: &Path) -> Result<Evaluation, Error> {
    let fail = |source| Error::Read { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::TooLarge(path.to_path_buf()));
    }
    let no_evaluation = |source| Error::Parse { path: path.to_path_buf(), source };
    let head: Head = serde_json::from_slice(&bytes).map_err(no_evaluation)?;
    let contradiction = |what| Error::Contradiction { path: path.to_path_buf(), what };
    if head.schema != SCHEMA {
        let what = format!("its schema is {:?} and not {SCHEMA:?}", head.schema);
        return Err(contradiction(what));
    }
    let evaluation: Evaluation = serde_json::from_slice(&bytes).map_err(no_evaluation)?;
    sound::check(&evaluation).map_err(contradiction)?;
    Ok(evaluation)
}

fn same_test(first: &Path, a: &Evaluation, second: &Path, b: &Evaluation) -> Result<(), Error> {
    let differ = |what: String| {
        Err(Error::Differ { first: first.to_path_buf(), second: second.to_path_buf(), what })
    };
    let settings = |s: &Settings| (s.connectivity, s.tolerance_mm.to_bits(), s.labels.clone());
    if settings(&a.settings) != settings(&b.settings) {
        return differ("were judged with different settings".to_owned());
    }
    if a.cases.len() != b.cases.len() {
        return differ(format!("have {} and {} cases", a.cases.len(), b.cases.len()));
    }
    let same_lesions = |x: &CaseResult, y: &CaseResult| {
        x.lesions.len() == y.lesions.len()
            && (x.lesions.iter().zip(&y.lesions))
                .all(|(l, m)| (l.volume_mm3 - m.volume_mm3).abs() <= VOLUME_ROUNDING * l.volume_mm3)
    };
    for (x, y) in a.cases.iter().zip(&b.cases) {
        if x.id != y.id {
            return differ(format!("are about different cases ({:?} and {:?})", x.id, y.id));
        }
        if !same_lesions(x, y) {
            return differ(format!("have different reference lesions in case {:?}", x.id));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "comparison/tests.rs"]
mod tests;
