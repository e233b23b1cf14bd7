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

/// Reference, prediction and brain mask of one case each; what `evaluate` says of them.
fn judged(cases: &[[&[(usize, u8)]; 2]], brain: Option<&[(usize, u8)]>) -> Evaluation {
    let dir = tempfile::tempdir().unwrap();
    for (n, boxes) in cases.iter().enumerate() {
        for (folder, boxes) in ["reference", "prediction"].iter().zip(boxes) {
            put(&dir.path().join(folder), &format!("{n}.nii"), boxes);
        }
        if let Some(brain) = brain {
            put(&dir.path().join("brain"), &format!("{n}.nii"), brain);
        }
    }
    run(dir.path(), brain.is_some(), &Options::default()).unwrap()
}

#[test]
fn every_key_of_the_report_in_its_place() {
    let mut report = judged(&[[&[(2, 1), (10, 1)], &[(2, 1), (16, 1)]]], None);
    let surface_dice = &mut report.cases[0].whole_mask.surface_dice;
    assert!((surface_dice.unwrap() - 0.5).abs() < 1e-12);
    *surface_dice = Some(0.5);
    let mut expected = String::from(
        r#"{"settings":{"connectivity":26,"tolerance_mm":1.0,"labels":[],"prediction_labels":[],"brain_mask":false},
        "cases":[{"id":"0","reference_lesions":2,"predicted_components":2,"detected":1,"missed":1,
        "false_positives":1,"whole_mask":{"dice":0.5,"surface_dice":0.5,"hd95_mm":6.0,"hd_mm":6.0},
        "lesions":[{"volume_mm3":16.0,"detected":true,"dice":1.0,"surface_dice":1.0,"hd95_mm":0.0,"hd_mm":0.0},
        {"volume_mm3":16.0,"detected":false,"dice":null,"surface_dice":null,"hd95_mm":null,"hd_mm":null}]}],
        "pooled":{"cases":1,"reference_lesions":2,"detected":1,"false_positives":1,"sensitivity":0.5,
        "precision":0.5,"fp_per_case":1.0,"f1":0.5,"f2":0.5,"dice":1.0,"surface_dice":1.0,"hd95_mm":0.0}}"#,
    );
    expected.retain(|c| !c.is_whitespace());
    assert_eq!(serde_json::to_string(&report).unwrap(), expected);
}

#[test]
fn without_reference_lesions_everything_predicted_is_false() {
    let report = judged(&[[&[], &[(2, 1), (8, 1)]], [&[], &[]]], None);
    let pooled = &report.pooled;
    assert_eq!((pooled.reference_lesions, pooled.detected, pooled.false_positives), (0, 0, 2));
    assert_eq!((pooled.sensitivity, pooled.f1, pooled.f2), (None, None, None));
    assert_eq!((pooled.precision, pooled.fp_per_case), (Some(0.0), Some(1.0)));
    assert_eq!((pooled.dice, pooled.surface_dice, pooled.hd95_mm), (None, None, None));
    let [predicted, empty] = &report.cases[..] else { panic!() };
    assert!(predicted.lesions.is_empty() && empty.lesions.is_empty());
    assert_eq!((predicted.whole_mask.dice, predicted.whole_mask.surface_dice), (0.0, Some(0.0)));
    assert_eq!((predicted.whole_mask.hd_mm, predicted.whole_mask.both_empty), (None, false));
    assert_eq!((empty.whole_mask.dice, empty.whole_mask.surface_dice), (1.0, None));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["cases"][1]["whole_mask"]["both_empty"], true);
    assert!(json["pooled"]["sensitivity"].is_null());
}

#[test]
fn without_a_prediction_every_lesion_is_missed() {
    let report = judged(&[[&[(2, 1), (8, 1)], &[]]], None);
    let (pooled, case) = (&report.pooled, &report.cases[0]);
    assert_eq!((case.detected, case.missed, case.predicted_components), (0, 2, 0));
    assert_eq!((pooled.sensitivity, pooled.fp_per_case), (Some(0.0), Some(0.0)));
    assert_eq!((pooled.precision, pooled.f1, pooled.f2, pooled.dice), (None, None, None, None));
    assert_eq!((case.whole_mask.dice, case.whole_mask.hd95_mm), (0.0, None));
}

#[test]
fn only_false_positives_beside_missed_lesions_is_zero_and_not_undefined() {
    let pooled = judged(&[[&[(2, 1)], &[(10, 1)]]], None).pooled;
    assert_eq!((pooled.sensitivity, pooled.precision), (Some(0.0), Some(0.0)));
    assert_eq!((pooled.f1, pooled.f2, pooled.dice), (Some(0.0), Some(0.0), None));
}

#[test]
fn a_brain_mask_may_remove_every_prediction() {
    let report = judged(&[[&[(2, 1)], &[(2, 1), (10, 1)]]], Some(&[(18, 1)]));
    assert_eq!((report.pooled.detected, report.pooled.false_positives), (1, 1));
    let inside = report.pooled_in_brain.unwrap();
    assert_eq!((inside.detected, inside.false_positives), (0, 0));
    assert_eq!((inside.sensitivity, inside.precision, inside.f1), (Some(0.0), None, None));
    assert_eq!((inside.dice, inside.hd95_mm), (None, None));
    assert!(report.settings.brain_mask);
    // And an empty one is no special case.
    let report = judged(&[[&[], &[(2, 1)]]], Some(&[]));
    let inside = report.pooled_in_brain.unwrap();
    assert_eq!((inside.false_positives, inside.precision, inside.sensitivity), (0, None, None));
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
