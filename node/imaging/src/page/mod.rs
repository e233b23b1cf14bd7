//! One HTML file per evaluation that needs nothing else: figures, scatter and contact sheets.
//!
//! It loads nothing (its own content policy forbids it), holds no script, and is the same for the
//! same input. The size is bounded: [`MAX_SHEET_BYTES`] of contact sheets, [`MAX_LESIONS`] lesions
//! in table and scatter, [`MAX_CASES`] cases in the table; what is beyond is said in the page, and
//! stands in the CSV files and in the folder of pictures.

mod bins;
mod scatter;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use askama::Template;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::durable;
use crate::metrics::{CaseResult, Evaluation, LesionResult, Pooled};
use crate::picture::{Album, CaseSheets, Kind, sheet_rows};
use bins::Bin;
use scatter::Scatter;

/// Bytes of PNG in a page; base64 makes a third more of them.
pub const MAX_SHEET_BYTES: usize = 24 << 20;
/// Lesions in the table, and points in the scatter.
pub const MAX_LESIONS: usize = 2000;
/// Cases in the table.
pub const MAX_CASES: usize = 2000;
/// Signs of a case id that are shown.
const MAX_ID_CHARS: usize = 120;
/// Signs of a reason that are shown.
const MAX_WHY_CHARS: usize = 2000;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The template could not be filled in.
    #[error("building the page of an evaluation: {0}")]
    Build(#[from] askama::Error),
    /// The file could not be written.
    #[error("writing the page {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Writes the page durably. Without an album it says that no images were given. Only this user may
/// read it, since it shows patients and names cases.
///
/// # Errors
/// A file that cannot be written.
pub fn write(path: &Path, evaluation: &Evaluation, album: Option<&Album>) -> Result<(), Error> {
    let page = html(evaluation, album)?;
    let fail = |source| Error::Write { path: path.to_path_buf(), source };
    durable::write_private(path, page.as_bytes()).map_err(fail)
}

/// The page as text.
///
/// # Errors
/// None that a well-formed evaluation causes.
pub fn html(evaluation: &Evaluation, album: Option<&Album>) -> Result<String, Error> {
    let lesions: Vec<&LesionResult> = evaluation.cases.iter().flat_map(|c| &c.lesions).collect();
    let listed = evaluation
        .cases
        .iter()
        .flat_map(|case| (case.lesions.iter().zip(1..)).map(move |l| (case, l)));
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        settings: settings(evaluation),
        brain_mask: evaluation.pooled_in_brain.is_some(),
        sets: sets(evaluation).map(|(name, _)| name).collect(),
        pooled: pooled_rows(evaluation),
        cases: evaluation.cases.iter().take(MAX_CASES).map(case_row).collect(),
        cases_beyond: evaluation.cases.len().saturating_sub(MAX_CASES),
        bins: bins::bins(&lesions),
        all: bins::all(&lesions),
        scatter: Scatter::of(&evaluation.cases, MAX_LESIONS),
        lesions: listed.take(MAX_LESIONS).map(|(case, (l, n))| lesion_row(case, n, l)).collect(),
        lesions_beyond: lesions.len().saturating_sub(MAX_LESIONS),
        album: album.map(|album| album_of(evaluation, album)),
    };
    Ok(page.render()?)
}

#[derive(Template)]
#[template(path = "evaluation.html")]
struct Page {
    version: &'static str,
    settings: Vec<(&'static str, String)>,
    brain_mask: bool,
    /// Which predictions a column of `pooled` is about.
    sets: Vec<&'static str>,
    pooled: Vec<Row>,
    cases: Vec<Row>,
    cases_beyond: usize,
    bins: Vec<Bin>,
    all: Option<Bin>,
    scatter: Option<Scatter>,
    lesions: Vec<Row>,
    lesions_beyond: usize,
    album: Option<Pages>,
}

/// A row of a table: its head, then its cells.
struct Row {
    head: String,
    cells: Vec<String>,
}

/// The contact sheets as the page shows them.
struct Pages {
    cases: Vec<SheetsOfCase>,
    /// Cases whose sheets had no room.
    not_kept: Vec<String>,
    /// Cases without pictures, and why.
    problems: Vec<(String, String)>,
}

struct SheetsOfCase {
    id: String,
    left_out: usize,
    sheets: Vec<Sheet>,
}

struct Sheet {
    alt: String,
    base64: String,
    findings: Vec<Caption>,
}

struct Caption {
    row: usize,
    class: &'static str,
    text: String,
}

/// A figure with `digits` decimals; a dash where it is undefined.
fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"))
}

/// A volume in whole mm³ from 100 on, with a decimal below, and with two significant digits below 1.
fn mm3(volume: f64) -> String {
    let rounded = format!("{volume:.1e}");
    match rounded.split_once('e').and_then(|(_, exponent)| exponent.parse::<i32>().ok()) {
        Some(..-6) => rounded,
        Some(exponent @ ..0) => {
            format!("{volume:.*}", usize::try_from(1 - exponent).unwrap_or_default())
        }
        _ => format!("{volume:.*}", usize::from(volume < 100.0)),
    }
}

/// A case id from a file name, without what could disturb or disguise the lines around it: control
/// signs, marks of direction and signs that are not seen. For pages and terminals.
pub fn visible(id: &str) -> String {
    shown(id, MAX_ID_CHARS)
}

/// The same of a text that holds such names, for example why a file could not be read.
pub fn visible_text(text: &str) -> String {
    shown(text, MAX_WHY_CHARS)
}

fn shown(text: &str, most: usize) -> String {
    let disguised = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}')
    };
    let mut shown: String =
        text.chars().take(most).map(|c| if disguised(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

fn settings(evaluation: &Evaluation) -> Vec<(&'static str, String)> {
    let s = &evaluation.settings;
    let touch = match u8::from(s.connectivity) {
        6 => "by faces",
        18 => "by faces and edges",
        _ => "by faces, edges and corners",
    };
    let labels = if s.labels.is_empty() {
        "every value above 0".to_owned()
    } else {
        s.labels.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
    };
    vec![
        ("Voxels of one lesion touch", format!("{touch} ({})", u8::from(s.connectivity))),
        ("Tolerance of the surface Dice", format!("{} mm", s.tolerance_mm)),
        ("Label values that are lesion", labels),
        ("Brain masks", if s.brain_mask { "given" } else { "not given" }.to_owned()),
    ]
}

/// The pooled figures, with predictions outside the brain and without.
fn sets(evaluation: &Evaluation) -> impl Iterator<Item = (&'static str, &Pooled)> {
    let inside = evaluation.pooled_in_brain.as_ref();
    std::iter::once(("Whole volume", &evaluation.pooled))
        .chain(inside.map(|pooled| ("Inside the brain mask", pooled)))
}

fn pooled_rows(evaluation: &Evaluation) -> Vec<Row> {
    type Cell = fn(&Pooled) -> String;
    let rows: [(&str, Cell); 12] = [
        ("Cases", |p| p.cases.to_string()),
        ("Reference lesions", |p| p.reference_lesions.to_string()),
        ("Found", |p| p.detected.to_string()),
        ("False positives", |p| p.false_positives.to_string()),
        ("Sensitivity", |p| figure(p.sensitivity, 3)),
        ("Precision", |p| figure(p.precision, 3)),
        ("FPR: false positives per case", |p| figure(p.fp_per_case, 2)),
        ("F1", |p| figure(p.f1, 3)),
        ("F2", |p| figure(p.f2, 3)),
        ("Dice", |p| figure(p.dice, 3)),
        ("Surface Dice", |p| figure(p.surface_dice, 3)),
        ("HD95, mm", |p| figure(p.hd95_mm, 2)),
    ];
    let row = |(head, cell): (&str, Cell)| Row {
        head: head.to_owned(),
        cells: sets(evaluation).map(|(_, pooled)| cell(pooled)).collect(),
    };
    rows.into_iter().map(row).collect()
}

fn case_row(case: &CaseResult) -> Row {
    let whole = &case.whole_mask;
    let note = if whole.both_empty { " (both empty)" } else { "" };
    let cells = vec![
        case.reference_lesions.to_string(),
        case.predicted_components.to_string(),
        case.detected.to_string(),
        case.missed.to_string(),
        case.false_positives.to_string(),
        format!("{:.3}{note}", whole.dice),
        figure(whole.surface_dice, 3),
        figure(whole.hd95_mm, 2),
        figure(whole.hd_mm, 2),
    ];
    Row { head: visible(&case.id), cells }
}

fn lesion_row(case: &CaseResult, n: usize, lesion: &LesionResult) -> Row {
    let cells = vec![
        n.to_string(),
        mm3(lesion.volume_mm3),
        if lesion.detected { "found" } else { "missed" }.to_owned(),
        figure(lesion.dice, 3),
        figure(lesion.surface_dice, 3),
        figure(lesion.hd95_mm, 2),
        figure(lesion.hd_mm, 2),
    ];
    Row { head: visible(&case.id), cells }
}

fn album_of(evaluation: &Evaluation, album: &Album) -> Pages {
    let kept = evaluation.cases.iter().filter_map(|case| {
        let of_case = album.kept.get(&case.id)?;
        Some(sheets_of(&visible(&case.id), of_case))
    });
    Pages {
        cases: kept.collect(),
        not_kept: album.not_kept.iter().map(|id| visible(id)).collect(),
        problems: album.problems.iter().map(|(id, why)| (visible(id), visible_text(why))).collect(),
    }
}

fn sheets_of(id: &str, of_case: &CaseSheets) -> SheetsOfCase {
    let count = of_case.sheets.len();
    let rows = of_case.findings.chunks(sheet_rows());
    let sheets = (of_case.sheets.iter().zip(rows).enumerate()).map(|(n, (png, findings))| {
        let first = n * sheet_rows() + 1;
        let captions = findings.iter().zip(first..).map(|(finding, row)| Caption {
            row,
            class: match finding.kind {
                Kind::Missed => "missed",
                Kind::FalsePositive => "false-positive",
                Kind::Found => "found",
            },
            text: match finding.kind {
                Kind::FalsePositive => {
                    format!("{}, {} mm³", finding.kind.name(), mm3(finding.volume_mm3))
                }
                kind => format!(
                    "lesion {}, {}, {} mm³",
                    finding.number,
                    kind.name(),
                    mm3(finding.volume_mm3)
                ),
            },
        });
        Sheet {
            alt: format!(
                "Contact sheet {} of {count} of case {id}: rows {first} to {} as listed below, each \
                 with an axial, a coronal and a sagittal slice and the place in the head",
                n + 1,
                first + findings.len() - 1,
            ),
            base64: STANDARD.encode(png),
            findings: captions.collect(),
        }
    });
    SheetsOfCase { id: id.to_owned(), left_out: of_case.left_out, sheets: sheets.collect() }
}
