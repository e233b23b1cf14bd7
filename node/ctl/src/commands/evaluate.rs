//! `rondo evaluate`.

use crate::args::Evaluate;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Steps, note};
use crate::render::figures::evaluation_text;
use rondo_imaging::metrics::{self, Evaluation, EvaluationCase, Options};
use rondo_imaging::picture::{self, Album, AlbumOptions};
use rondo_imaging::{page, spreadsheet};
use std::path::Path;

pub(crate) fn run(args: Evaluate, output: Output) -> Result<(), Failure> {
    if args.image.is_some() && args.html.is_none() && args.pictures.is_none() {
        let text = "--image is for pictures; say with --html or --pictures where they go";
        return Err(Failure::new(Exit::Usage, text));
    }
    let bad = |e: metrics::Error| Failure::new(Exit::BadInput, e);
    let cases =
        metrics::match_folders(&args.reference, &args.prediction, args.brain_mask.as_deref())
            .map_err(bad)?;
    // A folder that cannot be used is told before the work, not after it.
    if let Some(folder) = &args.pictures {
        picture::check_folder(folder).map_err(|e| Failure::new(Exit::Storage, e))?;
    }
    let options = Options {
        connectivity: args.connectivity,
        tolerance_mm: args.tolerance_mm,
        labels: args.labels.clone(),
    };
    let steps = Steps::new("cases judged");
    let evaluation =
        metrics::evaluate(&cases, &options, &|p| steps.at(p.done, p.total, p.item)).map_err(bad)?;
    drop(steps);
    if let Some(folder) = &args.csv {
        spreadsheet::write(folder, &evaluation).map_err(|e| Failure::new(Exit::Storage, e))?;
        note(&format!("CSV files: {}", folder.display()));
    }
    let album = (args.image.as_deref())
        .map(|images| pictures(&args, images, &cases, &evaluation))
        .transpose()?;
    if let Some(file) = &args.html {
        page::write(file, &evaluation, album.as_ref())
            .map_err(|e| Failure::new(Exit::Storage, e))?;
        note(&format!("page: {}", file.display()));
    }
    output.give("rondo.evaluate/1", &evaluation, || evaluation_text(&evaluation))?;
    not_pictured(album.as_ref())
}

fn pictures(
    args: &Evaluate,
    images: &Path,
    cases: &[EvaluationCase],
    evaluation: &Evaluation,
) -> Result<Album, Failure> {
    let options = AlbumOptions {
        findings: args.pictures_per_case,
        folder: args.pictures.clone(),
        keep_bytes: if args.html.is_some() { page::MAX_SHEET_BYTES } else { 0 },
    };
    let steps = Steps::new("cases pictured");
    let progress = |p: rondo_imaging::Progress<'_>| steps.at(p.done, p.total, p.item);
    let album = picture::album(cases, images, evaluation, &options, &progress)
        .map_err(|e| Failure::new(Exit::Storage, e))?;
    drop(steps);
    if let Some(folder) = &args.pictures {
        note(&format!("{} pictures: {}", album.written, folder.display()));
    }
    Ok(album)
}

/// The exit code says it too when cases could not be pictured.
fn not_pictured(album: Option<&Album>) -> Result<(), Failure> {
    let problems = album.map(|album| &album.problems);
    match problems {
        Some(problems) if !problems.is_empty() => {
            let lines = problems.iter().map(|(id, why)| format!("\n  {id}: {why}"));
            let text = format!(
                "{} case(s) were judged but not pictured:{}",
                problems.len(),
                lines.collect::<String>()
            );
            Err(Failure::after_result(Exit::SetAside, text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_case_without_picture_is_in_the_exit_code() {
        assert!(not_pictured(None).is_ok() && not_pictured(Some(&Album::default())).is_ok());
        let mut album = Album::default();
        album.problems.insert("c1".into(), "there is no image".into());
        let failure = not_pictured(Some(&album)).unwrap_err();
        assert_eq!((failure.exit, failure.after_result), (Exit::SetAside, true));
        assert!(failure.text.contains("c1: there is no image"));
    }
}
