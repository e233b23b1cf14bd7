//! Folders of masks in, the report of `rondo evaluate` out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::path::Path;

use ndarray::Array3;
use rondo_imaging::metrics::{Error, Evaluation, Options, evaluate, match_folders};
use rondo_imaging::nifti;
use rondo_imaging::volume::{Geometry, Volume};

fn put(folder: &Path, name: &str, boxes: &[(usize, u8)]) {
    std::fs::create_dir_all(folder).unwrap();
    let mut data = Array3::<u8>::zeros((20, 12, 12));
    for (at, value) in boxes {
        data.slice_mut(ndarray::s![*at..at + 2, 4..6, 4..6]).fill(*value);
    }
    let geometry = Geometry::with_spacing([20, 12, 12], [1.0, 1.0, 2.0]).unwrap();
    nifti::write(&folder.join(name), &Volume::new(geometry, data).unwrap()).unwrap();
}

fn run(dir: &Path, brain: bool, options: &Options) -> Result<Evaluation, Error> {
    let brain_dir = dir.join("brain");
    let cases = match_folders(
        &dir.join("reference"),
        &dir.join("prediction"),
        brain.then_some(brain_dir.as_path()),
    )?;
    evaluate(&cases, options, &|p| assert_eq!(p.total, cases.len()))
}

#[test]
fn two_cases_with_and_without_the_brain_mask() {
    let dir = tempfile::tempdir().unwrap();
    let (r, p, b) =
        (dir.path().join("reference"), dir.path().join("prediction"), dir.path().join("brain"));
    put(&r, "one.nii.gz", &[(2, 1), (10, 3)]);
    put(&p, "one.nii", &[(2, 1), (16, 1)]);
    put(&r, "two.v1.nii.gz", &[]);
    put(&p, "two.v1.nii.gz", &[]);
    for name in ["one.nii.gz", "two.v1.nii.gz"] {
        put(&b, name, &[(0, 1), (2, 1), (4, 1), (6, 1), (8, 1), (10, 1), (12, 1)]);
    }
    let result = run(dir.path(), true, &Options::default()).unwrap();
    assert_eq!(result.cases.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["one", "two.v1"]);
    let pooled = &result.pooled;
    assert_eq!((pooled.reference_lesions, pooled.detected, pooled.false_positives), (2, 1, 1));
    assert_eq!(
        (pooled.sensitivity, pooled.precision, pooled.fp_per_case),
        (Some(0.5), Some(0.5), Some(0.5))
    );
    assert_eq!((pooled.f1, pooled.dice, pooled.surface_dice), (Some(0.5), Some(1.0), Some(1.0)));
    let inside = result.pooled_in_brain.as_ref().unwrap();
    assert_eq!((inside.false_positives, inside.precision), (0, Some(1.0)));
    assert!(result.cases[1].whole_mask.both_empty);

    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(json["settings"]["connectivity"], 26);
    assert_eq!(json["cases"][0]["lesions"][0]["volume_mm3"], 16.0);
    assert!(json["cases"][0]["lesions"][1]["dice"].is_null());
    assert!(json["cases"][1]["whole_mask"]["hd95_mm"].is_null());
    let back: Evaluation = serde_json::from_value(json).unwrap();
    assert_eq!(back, result);

    let chosen = Options { labels: vec![3], ..Options::default() };
    let pooled = run(dir.path(), false, &chosen).unwrap().pooled;
    assert_eq!((pooled.reference_lesions, pooled.detected, pooled.false_positives), (1, 0, 2));
}

#[test]
fn what_does_not_match_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (r, p) = (dir.path().join("reference"), dir.path().join("prediction"));
    put(&r, "one.nii.gz", &[]);
    put(&p, "one.nii.gz", &[]);
    put(&p, "extra.nii.gz", &[]);
    let text = |e: Error| e.to_string();
    assert!(
        text(run(dir.path(), false, &Options::default()).unwrap_err())
            .contains("extra.nii.gz has no reference")
    );
    std::fs::rename(p.join("extra.nii.gz"), r.join("more.nii.gz")).unwrap();
    assert!(
        text(run(dir.path(), false, &Options::default()).unwrap_err())
            .contains("more.nii.gz has no prediction")
    );
    std::fs::remove_file(r.join("more.nii.gz")).unwrap();
    put(&p, "one.nii", &[]);
    assert!(
        text(run(dir.path(), false, &Options::default()).unwrap_err()).contains("same case id")
    );
    std::fs::remove_file(p.join("one.nii")).unwrap();
    assert!(
        text(run(dir.path(), true, &Options::default()).unwrap_err()).contains("listing masks")
    );
    let odd = Options { tolerance_mm: f64::NAN, ..Options::default() };
    assert!(text(run(dir.path(), false, &odd).unwrap_err()).contains("tolerance"));
    let grid = Geometry::with_spacing([5; 3], [1.0; 3]).unwrap();
    nifti::write(
        &p.join("one.nii.gz"),
        &Volume::new(grid, Array3::<u8>::zeros((5, 5, 5))).unwrap(),
    )
    .unwrap();
    assert!(
        text(run(dir.path(), false, &Options::default()).unwrap_err()).contains("another grid")
    );
}
