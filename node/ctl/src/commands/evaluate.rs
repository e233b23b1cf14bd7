//! `rondo evaluate`.

use crate::args::Evaluate;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Steps, note};
use crate::render::figures::evaluation_text;
use rondo_imaging::metrics::{self, Evaluation, EvaluationCase, Options};
use rondo_imaging::page::{visible, visible_text};
use rondo_imaging::picture::{self, Album, AlbumOptions, DEFAULT_FINDINGS, MAX_FINDINGS};
use rondo_imaging::{page, spreadsheet};
use std::path::Path;

/// Cases that a note names.
const MAX_NAMED: usize = 10;

pub(crate) fn run(args: Evaluate, output: Output) -> Result<(), Failure> {
    if args.image.is_some() && args.html.is_none() && args.pictures.is_none() {
        let text = "--image is for pictures; say with --html or --pictures where they go";
        return Err(Failure::new(Exit::Usage, text));
    }
    let bad = |e: metrics::Error| Failure::new(Exit::BadInput, visible_text(&e.to_string()));
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
        metrics::evaluate(&cases, &options, &|p| steps.at(p.done, p.total, &visible(p.item)))
            .map_err(bad)?;
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
        findings: per_case(args),
        folder: args.pictures.clone(),
        keep_bytes: if args.html.is_some() { page::MAX_SHEET_BYTES } else { 0 },
    };
    let steps = Steps::new("cases pictured");
    let progress = |p: rondo_imaging::Progress<'_>| steps.at(p.done, p.total, &visible(p.item));
    let album = picture::album(cases, images, evaluation, &options, &progress)
        .map_err(|e| Failure::new(Exit::Storage, visible_text(&e.to_string())))?;
    drop(steps);
    if let Some(folder) = &args.pictures {
        note(&format!("{} pictures: {}", album.written, folder.display()));
    }
    if let Some(text) = left_out(&album, options.findings) {
        note(&text);
    }
    if args.html.is_some() && !album.not_kept.is_empty() {
        let cases = named(album.not_kept.iter().map(|id| visible(id)));
        note(&format!("the page has no room for the pictures of {cases}"));
    }
    Ok(album)
}

/// A folder shall have slices through every lesion; a page is to be looked through.
fn per_case(args: &Evaluate) -> usize {
    let usual = if args.pictures.is_some() { MAX_FINDINGS } else { DEFAULT_FINDINGS };
    args.pictures_per_case.unwrap_or(usual)
}

/// What the limit of a case left out.
fn left_out(album: &Album, limit: usize) -> Option<String> {
    let all: usize = album.left_out.values().sum();
    let cases = named(album.left_out.iter().map(|(id, n)| format!("{} ({n})", visible(id))));
    let more = if limit < MAX_FINDINGS { "; --pictures-per-case N pictures more" } else { "" };
    (all > 0).then(|| {
        format!("{all} lesion(s) and false positive(s) beyond {limit} a case are not pictured: {cases}{more}")
    })
}

/// The first of many cases, and how many more there are.
fn named(cases: impl ExactSizeIterator<Item = String>) -> String {
    let more = cases.len().saturating_sub(MAX_NAMED);
    let mut text = cases.take(MAX_NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more case(s)"));
    }
    text
}

/// The exit code says it too when cases could not be pictured.
fn not_pictured(album: Option<&Album>) -> Result<(), Failure> {
    let problems = album.map(|album| &album.problems);
    match problems {
        Some(problems) if !problems.is_empty() => {
            let lines = problems
                .iter()
                .map(|(id, why)| format!("\n  {}: {}", visible(id), visible_text(why)));
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
        album.problems.insert("c\u{202e}2".into(), "\u{1b}[2J is no image".into());
        let text = not_pictured(Some(&album)).unwrap_err().text;
        assert!(text.contains("\n  c\u{fffd}2: \u{fffd}[2J is no image"), "{text:?}");
    }

    #[test]
    fn a_folder_has_every_lesion_and_what_is_left_out_is_said() {
        use clap::Parser as _;
        let limit = |more: &[&str]| {
            let given =
                ["rondo", "evaluate", "--reference", "r", "--prediction", "p", "--image", "i"];
            let parsed = crate::args::Cli::try_parse_from(given.iter().chain(more)).unwrap();
            match parsed.command {
                crate::args::Command::Evaluate(args) => per_case(&args),
                _ => unreachable!("that is what was given"),
            }
        };
        assert_eq!(limit(&["--html", "h"]), DEFAULT_FINDINGS);
        assert_eq!(limit(&["--pictures", "d"]), MAX_FINDINGS);
        assert_eq!(limit(&["--html", "h", "--pictures", "d"]), MAX_FINDINGS);
        assert_eq!(limit(&["--pictures", "d", "--pictures-per-case", "3"]), 3);

        let mut album = Album::default();
        assert_eq!(left_out(&album, 12), None);
        album.left_out.extend((0..12).map(|n| (format!("c{n:02}\u{1b}"), n + 1)));
        let text = left_out(&album, 12).unwrap();
        assert!(text.starts_with("78 lesion(s)") && text.contains("c00\u{fffd} (1), "), "{text}");
        assert!(text.contains(" and 2 more case(s)") && text.contains("--pictures-per-case"));
        assert!(!left_out(&album, MAX_FINDINGS).unwrap().contains("--pictures-per-case"));
    }
}
