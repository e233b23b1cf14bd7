//! The figures of an evaluation as CSV files (RFC 4180, UTF-8, decimal point).
//!
//! | file | a row is | columns |
//! |---|---|---|
//! | `pooled.csv` | a set of predictions: `whole_volume`, with brain masks also `inside_brain_mask` | the pooled figures |
//! | `cases.csv` | a case | counts, and figures over the whole masks |
//! | `lesions.csv` | a reference lesion | case, number from 1, volume, detected, contour figures |
//!
//! A figure that is not defined is an empty cell. Columns have the names of the JSON fields. A case
//! id that a spreadsheet would take for a formula has an apostrophe in front.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::durable;
use crate::metrics::{CaseResult, Evaluation, Pooled};

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A row could not be encoded.
    #[error("building {file}: {source}")]
    Build {
        /// Which file.
        file: &'static str,
        /// Why.
        source: csv::Error,
    },
    /// A folder or file could not be written.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

#[derive(Serialize)]
struct PooledRow<'a> {
    predictions: &'a str,
    cases: usize,
    reference_lesions: usize,
    detected: usize,
    false_positives: usize,
    sensitivity: Option<f64>,
    precision: Option<f64>,
    fp_per_case: Option<f64>,
    f1: Option<f64>,
    f2: Option<f64>,
    dice: Option<f64>,
    surface_dice: Option<f64>,
    hd95_mm: Option<f64>,
}

#[derive(Serialize)]
struct CaseRow<'a> {
    case: Cow<'a, str>,
    reference_lesions: usize,
    predicted_components: usize,
    detected: usize,
    missed: usize,
    false_positives: usize,
    dice: f64,
    both_empty: bool,
    surface_dice: Option<f64>,
    hd95_mm: Option<f64>,
    hd_mm: Option<f64>,
}

#[derive(Serialize)]
struct LesionRow<'a> {
    case: Cow<'a, str>,
    lesion: usize,
    volume_mm3: f64,
    detected: bool,
    dice: Option<f64>,
    surface_dice: Option<f64>,
    hd95_mm: Option<f64>,
    hd_mm: Option<f64>,
}

/// Heads of the files, which a file without rows has too.
const POOLED: &[&str] = &[
    "predictions",
    "cases",
    "reference_lesions",
    "detected",
    "false_positives",
    "sensitivity",
    "precision",
    "fp_per_case",
    "f1",
    "f2",
    "dice",
    "surface_dice",
    "hd95_mm",
];
const CASES: &[&str] = &[
    "case",
    "reference_lesions",
    "predicted_components",
    "detected",
    "missed",
    "false_positives",
    "dice",
    "both_empty",
    "surface_dice",
    "hd95_mm",
    "hd_mm",
];
const LESIONS: &[&str] =
    &["case", "lesion", "volume_mm3", "detected", "dice", "surface_dice", "hd95_mm", "hd_mm"];

/// Writes `pooled.csv`, `cases.csv` and `lesions.csv` into a folder, which is made if need be;
/// files of these names are replaced. Only this user may read them, since they name cases.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn write(folder: &Path, evaluation: &Evaluation) -> Result<(), Error> {
    let fail = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Write { path, source }
    };
    fs::create_dir_all(folder).map_err(fail(folder))?;
    for (name, text) in [
        ("pooled.csv", text("pooled.csv", POOLED, pooled(evaluation))?),
        ("cases.csv", text("cases.csv", CASES, evaluation.cases.iter().map(case))?),
        ("lesions.csv", text("lesions.csv", LESIONS, lesions(evaluation))?),
    ] {
        let path = folder.join(name);
        durable::write_private(&path, &text).map_err(fail(&path))?;
    }
    Ok(())
}

fn text<R: Serialize>(
    file: &'static str,
    head: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Build { file, source };
    let mut writer = csv::WriterBuilder::new()
        .has_headers(false)
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    writer.write_record(head).map_err(fail)?;
    for row in rows {
        writer.serialize(row).map_err(fail)?;
    }
    writer.into_inner().map_err(|e| fail(e.into_error().into()))
}

fn pooled(evaluation: &Evaluation) -> impl Iterator<Item = PooledRow<'static>> + '_ {
    let row = |predictions, p: &Pooled| PooledRow {
        predictions,
        cases: p.cases,
        reference_lesions: p.reference_lesions,
        detected: p.detected,
        false_positives: p.false_positives,
        sensitivity: p.sensitivity,
        precision: p.precision,
        fp_per_case: p.fp_per_case,
        f1: p.f1,
        f2: p.f2,
        dice: p.dice,
        surface_dice: p.surface_dice,
        hd95_mm: p.hd95_mm,
    };
    let inside = evaluation.pooled_in_brain.as_ref();
    std::iter::once(row("whole_volume", &evaluation.pooled))
        .chain(inside.map(|p| row("inside_brain_mask", p)))
}

fn case(case: &CaseResult) -> CaseRow<'_> {
    CaseRow {
        case: plain(&case.id),
        reference_lesions: case.reference_lesions,
        predicted_components: case.predicted_components,
        detected: case.detected,
        missed: case.missed,
        false_positives: case.false_positives,
        dice: case.whole_mask.dice,
        both_empty: case.whole_mask.both_empty,
        surface_dice: case.whole_mask.surface_dice,
        hd95_mm: case.whole_mask.hd95_mm,
        hd_mm: case.whole_mask.hd_mm,
    }
}

fn lesions(evaluation: &Evaluation) -> impl Iterator<Item = LesionRow<'_>> {
    evaluation.cases.iter().flat_map(|case| {
        (case.lesions.iter().zip(1..)).map(|(l, lesion)| LesionRow {
            case: plain(&case.id),
            lesion,
            volume_mm3: l.volume_mm3,
            detected: l.detected,
            dice: l.dice,
            surface_dice: l.surface_dice,
            hd95_mm: l.hd95_mm,
            hd_mm: l.hd_mm,
        })
    })
}

/// An id that no spreadsheet takes for a formula.
fn plain(id: &str) -> Cow<'_, str> {
    if id.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        Cow::Owned(format!("'{id}"))
    } else {
        Cow::Borrowed(id)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::metrics::{LesionResult, Settings, WholeMask, pool};

    fn evaluation() -> Evaluation {
        let lesion = |detected: bool| LesionResult {
            volume_mm3: 12.5,
            detected,
            dice: detected.then_some(0.75),
            surface_dice: detected.then_some(1.0),
            hd95_mm: detected.then_some(1.25),
            hd_mm: None,
        };
        let whole_mask = WholeMask {
            dice: 0.5,
            surface_dice: None,
            hd95_mm: None,
            hd_mm: None,
            both_empty: false,
        };
        let case = |id: &str, lesions: Vec<LesionResult>| CaseResult {
            id: id.into(),
            reference_lesions: lesions.len(),
            predicted_components: 3,
            detected: lesions.iter().filter(|l| l.detected).count(),
            missed: lesions.iter().filter(|l| !l.detected).count(),
            false_positives: 1,
            whole_mask: whole_mask.clone(),
            lesions,
        };
        let cases =
            vec![case("a, \"b\"\nc", vec![lesion(true), lesion(false)]), case("=1+1", vec![])];
        let pooled = pool(&cases);
        let pooled_in_brain = Some(pooled.clone());
        Evaluation { settings: Settings::default(), cases, pooled, pooled_in_brain }
    }

    fn read(path: &Path) -> Vec<Vec<String>> {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_path(path).unwrap();
        let row = |r: Result<csv::StringRecord, _>| r.unwrap().iter().map(str::to_owned).collect();
        reader.records().map(row).collect()
    }

    #[test]
    fn rows_come_back_as_they_were_and_undefined_figures_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/csv");
        let made = evaluation();
        write(&folder, &made).unwrap();
        write(&folder, &made).unwrap();

        for name in ["pooled.csv", "cases.csv", "lesions.csv"] {
            let mode = fs::metadata(folder.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let lesions = read(&folder.join("lesions.csv"));
        assert_eq!(lesions[0], LESIONS);
        assert_eq!(lesions[1], ["a, \"b\"\nc", "1", "12.5", "true", "0.75", "1.0", "1.25", ""]);
        assert_eq!(lesions[2], ["a, \"b\"\nc", "2", "12.5", "false", "", "", "", ""]);
        assert_eq!(lesions.len(), 3);

        let cases = read(&folder.join("cases.csv"));
        assert_eq!(cases[0], CASES);
        assert_eq!(cases[2], ["'=1+1", "0", "3", "0", "0", "1", "0.5", "false", "", "", ""]);

        let pooled = read(&folder.join("pooled.csv"));
        assert_eq!(pooled[0], POOLED);
        assert_eq!(
            (pooled[1][0].as_str(), pooled[2][0].as_str()),
            ("whole_volume", "inside_brain_mask")
        );
        assert_eq!(pooled[1][5].parse::<f64>().unwrap(), 0.5);
        let json = serde_json::to_value(&made.pooled).unwrap();
        for name in &POOLED[1..] {
            assert!(json.get(*name).is_some(), "{name} is no field of the JSON");
        }
    }
}
