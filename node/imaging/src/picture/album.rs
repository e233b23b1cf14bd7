//! The pictures of a whole evaluation, case by case.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{CasePictures, Error, Finding, Options, draw};
use crate::metrics::{CaseResult, Evaluation, EvaluationCase, read_masks};
use crate::{OnProgress, Progress, durable, source};

/// Cases drawn before the room for sheets is looked at again.
const AT_ONCE: usize = 8;

/// Where pictures go.
#[derive(Debug, Clone, Default)]
pub struct AlbumOptions {
    /// Lesions and false positives of a case.
    pub findings: usize,
    /// Writes every picture below this folder: `CASE/sheet-1.png`, `CASE/01-missed-axial.png`, ….
    pub folder: Option<PathBuf>,
    /// Bytes of contact sheets that are kept for a page. Those of the cases with most errors
    /// (missed lesions and false positives) come first.
    pub keep_bytes: usize,
}

/// Contact sheets of a case.
#[derive(Debug, Clone)]
pub struct CaseSheets {
    /// What the rows show, over all sheets.
    pub findings: Vec<Finding>,
    /// Findings beyond the limit.
    pub left_out: usize,
    /// PNG files.
    pub sheets: Vec<Vec<u8>>,
}

/// What became of the pictures.
#[derive(Debug, Clone, Default)]
pub struct Album {
    /// Sheets that were kept, by case id. A case without any lesion or prediction has none.
    pub kept: BTreeMap<String, CaseSheets>,
    /// Cases that have something to picture and whose sheets would be beyond `keep_bytes`.
    pub not_kept: BTreeSet<String>,
    /// Findings beyond the limit, by the cases that were drawn and have any.
    pub left_out: BTreeMap<String, usize>,
    /// Cases without pictures, and why.
    pub problems: BTreeMap<String, String>,
    /// Pictures written.
    pub written: usize,
}

/// Makes sure that pictures can be written to a folder: it is empty, or it can be made. Only this
/// user may enter a new one, since pictures show patients.
pub fn check_folder(folder: &Path) -> Result<(), Error> {
    let fail = |source| Error::Write { path: folder.to_path_buf(), source };
    make(folder).map_err(fail)?;
    match std::fs::read_dir(folder).map_err(fail)?.next() {
        None => Ok(()),
        Some(_) => Err(Error::Exists(folder.to_path_buf())),
    }
}

fn make(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Draws every case of an evaluation over the image of the same name in `images`. A case that
/// cannot be drawn is a problem of its own; one that cannot be written ends it all.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn album(
    cases: &[EvaluationCase],
    images: &Path,
    evaluation: &Evaluation,
    options: &AlbumOptions,
    progress: OnProgress<'_>,
) -> Result<Album, Error> {
    let results: BTreeMap<&str, &CaseResult> =
        evaluation.cases.iter().map(|c| (c.id.as_str(), c)).collect();
    let errors =
        |case: &EvaluationCase| results.get(case.id.as_str()).map(|c| c.missed + c.false_positives);
    let mut order: Vec<&EvaluationCase> = cases.iter().collect();
    order.sort_by_key(|case| (std::cmp::Reverse(errors(case)), case.id.as_str()));
    let mut album = Album::default();
    let done = AtomicUsize::new(0);
    let mut room = options.keep_bytes;
    let mut full = false;
    for chunk in order.chunks(AT_ONCE) {
        let step = |case: &EvaluationCase| {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            progress(Progress { done, total: cases.len(), item: &case.id });
        };
        if full && options.folder.is_none() {
            for case in chunk {
                let nothing = |c: &&CaseResult| c.reference_lesions + c.predicted_components == 0;
                match image_of(&case.id, images) {
                    Err(e) => _ = album.problems.insert(case.id.clone(), e.to_string()),
                    Ok(_) if results.get(case.id.as_str()).is_some_and(nothing) => {}
                    Ok(_) => _ = album.not_kept.insert(case.id.clone()),
                }
                step(case);
            }
            continue;
        }
        let drawn: Vec<_> = (chunk.par_iter())
            .map(|case| {
                let drawn = draw_case(case, images, evaluation, options);
                step(case);
                drawn
            })
            .collect();
        for (case, drawn) in chunk.iter().zip(drawn) {
            let (pictures, written) = match drawn {
                Ok(drawn) => drawn,
                Err(e @ Error::Write { .. }) => return Err(e),
                Err(e) => {
                    album.problems.insert(case.id.clone(), e.to_string());
                    continue;
                }
            };
            album.written += written;
            if pictures.left_out > 0 {
                album.left_out.insert(case.id.clone(), pictures.left_out);
            }
            let bytes: usize = pictures.sheets.iter().map(Vec::len).sum();
            if bytes == 0 {
                continue;
            }
            // Once one did not fit none does, so that the cases shown are the first of the order.
            full |= bytes > room;
            if full {
                album.not_kept.insert(case.id.clone());
            } else {
                room -= bytes;
                let findings = pictures.pictured.iter().map(|p| p.finding).collect();
                let CasePictures { left_out, sheets, .. } = pictures;
                album.kept.insert(case.id.clone(), CaseSheets { findings, left_out, sheets });
            }
        }
    }
    Ok(album)
}

/// The pictures of a case, and how many of them were written; slices are kept nowhere else.
fn draw_case(
    case: &EvaluationCase,
    images: &Path,
    evaluation: &Evaluation,
    options: &AlbumOptions,
) -> Result<(CasePictures, usize), Error> {
    let path = image_of(&case.id, images)?;
    let masks = read_masks(case, &evaluation.settings)?;
    let image = source::read_image(&path, None)?.volume;
    let image = image.stored_as(&masks.geometry).map_err(|difference| {
        let reference = case.reference.clone();
        Error::Grid { image: path, reference, difference }
    })?;
    let slices = options.folder.is_some();
    let mut pictures = draw(
        &image,
        &masks.reference,
        &masks.prediction,
        evaluation.settings.connectivity,
        &Options { findings: options.findings, slices },
    )?;
    let Some(folder) = &options.folder else { return Ok((pictures, 0)) };
    write(&folder.join(&case.id), &pictures)?;
    let mut written = pictures.sheets.len();
    for pictured in &mut pictures.pictured {
        written += std::mem::take(&mut pictured.slices).len();
    }
    Ok((pictures, written))
}

/// The image of a case, by name as masks are matched.
fn image_of(id: &str, folder: &Path) -> Result<PathBuf, Error> {
    let mut parts = Path::new(id).components();
    let plain = matches!(parts.next(), Some(std::path::Component::Normal(_)));
    if !plain || parts.next().is_some() || id.ends_with('/') {
        return Err(Error::Name(id.to_owned()));
    }
    // A folder of that name holds a DICOM series.
    [".nii.gz", ".nii", ""]
        .iter()
        .map(|end| folder.join(format!("{id}{end}")))
        .find(|path| path.exists())
        .ok_or_else(|| Error::NoImage { id: id.to_owned(), folder: folder.to_path_buf() })
}

fn write(folder: &Path, pictures: &CasePictures) -> Result<(), Error> {
    make(folder).map_err(|source| Error::Write { path: folder.to_path_buf(), source })?;
    let put = |name: String, bytes: &[u8]| {
        let path = folder.join(name);
        durable::write_private(&path, bytes)
            .map_err(|source| Error::Write { path: path.clone(), source })
    };
    for (sheet, n) in pictures.sheets.iter().zip(1..) {
        put(format!("sheet-{n}.png"), sheet)?;
    }
    for (pictured, n) in pictures.pictured.iter().zip(1..) {
        let kind = pictured.finding.kind.name().replace(' ', "-");
        for (plane, slice) in &pictured.slices {
            put(format!("{n:02}-{kind}-{}.png", plane.name()), slice)?;
        }
    }
    Ok(())
}
