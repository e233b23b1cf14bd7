#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::path::Path;

use ndarray::Array3;
use proptest::prelude::*;

use super::*;
use crate::nifti;
use crate::volume::{Geometry, Volume};

const GOOD: &str = r#"
name = "uker"
label_include = [1, 3]
label_ignore = [2]
background = "zero"

[[case]]
id = "a-1"
patient = "p1"
image = "a.nii.gz"
label = "a-label.nii.gz"
brain_mask = "a-brain.nii.gz"
split = "train"

[[case]]
id = "b-1"
patient = "p2"
image = "/far/b.nii.gz"
label = "b-label.nii.gz"
brain_mask = "b-brain.nii.gz"
split = "test"
"#;

#[test]
fn a_good_file() {
    let cohort = Cohort::parse(GOOD, Path::new("/data")).unwrap();
    assert_eq!(
        (cohort.name.as_str(), cohort.cases.len(), cohort.preprocess.background),
        ("uker", 2, Background::Zero)
    );
    assert_eq!(cohort.cases[0].image, Path::new("/data/a.nii.gz"));
    assert_eq!(cohort.cases[1].image, Path::new("/far/b.nii.gz"));
    assert_eq!(cohort.split(Split::Test).count(), 1);
    assert!(
        cohort.label.is_lesion(3)
            && cohort.label.knows(2)
            && !cohort.label.is_lesion(2)
            && !cohort.label.knows(4)
    );
}

#[test]
fn all_problems_in_one_report_with_lines() {
    let text = r#"
name = "uk er"
label_include = [0, 70000]
background = "grey"
colour = 3

[[case]]
id = "../a"
patient = "p1"
image = 7
brain_mask = "m"
split = "testing"

[[case]]
id = "b"
patient = "p2"
image = "i"
label = "l"
brain_mask = "m"
split = "train"

[[case]]
id = "B"
patient = "p2"
image = "i"
label = "l"
brain_mask = "m"
split = "test"
sex = "f"
"#;
    let problems = Cohort::parse(text, Path::new("")).unwrap_err();
    let report: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let expected = [
        (2, "not safe as a file name"),
        (3, "not a list of label values"),
        (4, "`background` has an unknown value"),
        (5, "unknown key `colour`"),
        (7, "`label` is missing"),
        (8, "not safe as a file name"),
        (10, "`image` is integer, not text"),
        (12, "unknown split"),
        (23, "id \"B\" is already used in line 15"),
        (23, "patient \"p2\" is in test here and in train in line 15"),
        (29, "unknown key `sex`"),
    ];
    assert_eq!(report.len(), expected.len(), "{report:#?}");
    for ((line, words), (problem, text)) in expected.into_iter().zip(problems.iter().zip(&report)) {
        assert_eq!(problem.line, line, "{text}");
        assert!(text.contains(words) && !problem.fix.is_empty(), "{text}");
    }
}

const ONE_CASE: &str = r#"
[[case]]
id = "a"
patient = "p"
image = "dicom"
series = "1.2.3"
label = "rtstruct.dcm"
split = "train"
"#;

#[test]
fn what_is_left_out_is_the_paper_s_preparation() {
    let text = format!("name = \"uker\"\n{ONE_CASE}");
    let cohort = Cohort::parse(&text, Path::new("/data")).unwrap();
    assert_eq!(cohort.preprocess, Settings::default());
    assert_eq!(cohort.preprocess.grid, Grid::Isotropic { spacing_mm: 1.0, shape: [240, 240, 155] });
    assert_eq!(cohort.preprocess.bias_correction, BiasCorrection::N4);
    let case = &cohort.cases[0];
    assert_eq!((case.series.as_deref(), &case.brain_mask), (Some("1.2.3"), &None));
}

#[test]
fn every_setting_is_read_saved_and_read_again() {
    let text = format!(
        "name = \"uker\"\nlabel_rois = [\"GTV 1\", \"GTV 2\"]\nbias_correction = \"none\"\n\
         grid_spacing_mm = 2\ngrid_shape = [96, 96, 0x40]\nbackground = \"zero\"\n\
         brain_mask_command = [\"bet\", \"{{input}}\", \"{{mask}}\"]\n{ONE_CASE}"
    );
    let dir = tempfile::tempdir().unwrap();
    let cohort = Cohort::parse(&text, dir.path()).unwrap();
    let settings = &cohort.preprocess;
    assert_eq!(settings.grid, Grid::Isotropic { spacing_mm: 2.0, shape: [96, 96, 64] });
    assert_eq!(settings.bias_correction, BiasCorrection::None);
    assert!(settings.brain_mask_command.is_some());
    assert_eq!(cohort.label.rois, ["GTV 1", "GTV 2"]);
    cohort.save(dir.path()).unwrap();
    assert_eq!(Cohort::load(dir.path()).unwrap(), cohort);
    let native = Cohort { preprocess: Settings::native(), ..cohort };
    native.save(dir.path()).unwrap();
    assert_eq!(Cohort::load(dir.path()).unwrap(), native);
}

#[test]
fn settings_that_cannot_be_are_refused_in_their_line() {
    for (line, words) in [
        ("grid = \"1mm\"", "`grid` has an unknown value; write \"isotropic\" or \"native\""),
        ("bias_correction = true", "`bias_correction` has an unknown value"),
        ("grid_spacing_mm = 0.0", "`grid_spacing_mm` is no distance"),
        ("grid_spacing_mm = nan", "`grid_spacing_mm` is no distance"),
        ("grid_shape = [240, 240]", "`grid_shape` is no shape"),
        ("grid_shape = [240, 240, 5000]", "`grid_shape` is no shape"),
        ("grid_shape = [240, -1, 5]", "`grid_shape` is no shape"),
        ("label_rois = \"GTV\"", "`label_rois` is not a list of texts"),
        ("label_rois = [\"\"]", "`label_rois` is not a list of texts"),
        ("brain_mask_command = [\"bet\", \"{input}\"]", "`brain_mask_command` is incomplete"),
        ("grid = \"native\"\ngrid_spacing_mm = 1.0", "a native grid has the spacing"),
    ] {
        let text = format!("name = \"uker\"\n{line}\n{ONE_CASE}");
        let problems = Cohort::parse(&text, Path::new("")).unwrap_err();
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(said.len() == 1 && said[0].contains(words), "{line}: {said:?}");
        assert_eq!(problems[0].line, 1 + line.lines().count(), "{line}");
    }
}

#[test]
fn ids_are_unique_even_on_one_line() {
    let case = |id: &str| {
        format!(
            "{{ id = \"{id}\", patient = \"p\", image = \"i\", label = \"l\", split = \"train\" }}"
        )
    };
    let text = format!("name = \"uker\"\ncase = [{}, {}]", case("a"), case("A"));
    let problems = Cohort::parse(&text, Path::new("")).unwrap_err();
    assert!(problems.len() == 1 && problems[0].message.contains("already used"), "{problems:?}");
}

#[test]
fn broken_toml_and_empty_cohorts() {
    for (text, words) in [
        ("name = \"a\nid", "line 1"),
        ("name = \"a\"", "no cases"),
        ("name = \"a\"\ncase = 3", "not a list of tables"),
        ("name = \"a\"\ncase = []", "no cases"),
        ("", "`name` is missing"),
    ] {
        let problems = Cohort::parse(text, Path::new("")).unwrap_err();
        assert!(problems.iter().any(|p| p.to_string().contains(words)), "{text}: {problems:?}");
    }
}

#[test]
fn ids_are_file_names() {
    for id in ["a", "UKER-0001", "p.1_2-3", &"x".repeat(64)] {
        assert!(is_safe_id(id), "{id}");
    }
    for id in ["", ".a", "-a", "a/b", "a\\b", "a ", "a.", "..", "ä", "a\0", &"x".repeat(65)] {
        assert!(!is_safe_id(id), "{id:?}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics_and_lines_exist(text in "([a-z_]{1,6} = (\"[a-z]{0,3}\"|[0-9]|\\[1\\])\n|\\[\\[case\\]\\]\n|\\PC{0,6}\n){0,12}") {
        if let Err(problems) = Cohort::parse(&text, Path::new("")) {
            prop_assert!(!problems.is_empty());
            for p in problems {
                prop_assert!(p.line >= 1 && p.line <= text.lines().count() + 1);
            }
        }
    }
}

fn put<T: nifti::Voxel>(path: &Path, shape: [usize; 3], value: impl Fn(usize) -> T) {
    let geometry = Geometry::with_spacing(shape, [1.0; 3]).unwrap();
    let mut n = 0;
    let data = Array3::from_shape_simple_fn((shape[0], shape[1], shape[2]), || {
        n += 1;
        value(n - 1)
    });
    nifti::write(path, &Volume::new(geometry, data).unwrap()).unwrap();
}

/// A sound cohort of `n` cases of 6³ voxels on disk.
fn on_disk(folder: &Path, n: usize) -> Cohort {
    let cases = (0..n)
        .map(|c| {
            let file = |what: &str| folder.join(format!("{c}-{what}.nii.gz"));
            let case = Case {
                id: format!("c{c}"),
                patient: format!("p{c}"),
                image: file("image"),
                series: None,
                label: file("label"),
                brain_mask: Some(file("brain")),
                split: Split::Train,
            };
            put(&case.image, [6; 3], |v| (v * 31 % 101 + c) as f32);
            put(&case.label, [6; 3], |v| u8::from(v == 40 || v == 41 || v == 200));
            put(&file("brain"), [6; 3], |v| u8::from(v > 10));
            case
        })
        .collect();
    Cohort {
        name: "disk".into(),
        label: LabelRule::default(),
        preprocess: Settings::native(),
        cases,
    }
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let cohort = on_disk(dir.path(), 2);
    let path = cohort.save(dir.path()).unwrap();
    assert_eq!(Cohort::load(&path).unwrap(), cohort);
    assert_eq!(Cohort::load(dir.path()).unwrap(), cohort);
    assert!(std::fs::read_to_string(path).unwrap().contains("image = \"0-image.nii.gz\""));
}

#[test]
fn bad_cases_are_set_aside_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let cohort = on_disk(dir.path(), 11);
    let case = |n: usize| &cohort.cases[n];
    std::fs::remove_file(&case(1).image).unwrap();
    let whole = std::fs::read(&case(2).image).unwrap();
    std::fs::write(&case(2).image, &whole[..whole.len() / 2]).unwrap();
    put(&case(3).label, [6, 6, 5], |_| 0u8);
    put(&case(4).image, [6; 3], |v| if v == 100 { f32::NAN } else { v as f32 });
    put(&case(5).image, [6; 3], |_| 7f32);
    put(&case(6).label, [6; 3], |v| u8::from(v == 3) * 9);
    put(case(7).brain_mask.as_ref().unwrap(), [6; 3], |_| 0u8);
    std::fs::remove_file(&case(8).label).unwrap();
    // The same voxels under another type, name and patient.
    put(&case(9).image, [6; 3], |v| (v * 31 % 101) as u16);

    let count = std::sync::atomic::AtomicUsize::new(0);
    let report = check(&cohort, &|p| {
        assert_eq!(p.total, 11);
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(count.into_inner(), 11);
    assert_eq!(report.usable, ["c0", "c10"]);
    let expected = [
        ("c1", "does not exist, though its label is there"),
        ("c2", "cut short"),
        ("c3", "another grid"),
        ("c4", "not a finite number"),
        ("c5", "same value"),
        ("c6", "the value 9 in 1 voxels"),
        ("c7", "7-brain.nii.gz is empty; make a new one"),
        ("c8", "label"),
        ("c9", "same voxels as case c0 of the train split"),
    ];
    assert_eq!(report.set_aside.len(), expected.len());
    for (aside, (id, words)) in report.set_aside.iter().zip(expected) {
        assert!(aside.id == id && aside.reason.contains(words), "{aside:?}");
    }
    assert_eq!(report.usable_cohort(&cohort).cases.len(), 2);
}

/// The same scan as DICOM and as NIfTI with other axes: the ordinary way into two splits.
#[test]
fn a_copy_in_another_format_and_order_is_a_duplicate() {
    let dir = tempfile::tempdir().unwrap();
    let mut cohort = on_disk(dir.path(), 2);
    let volume = nifti::read_image(&cohort.cases[0].image).unwrap().volume;
    let series = dir.path().join("series");
    crate::dicom::scan::write_series(&series, "p", &volume).unwrap();
    cohort.cases[1] = Case {
        image: series,
        label: cohort.cases[0].label.clone(),
        brain_mask: cohort.cases[0].brain_mask.clone(),
        split: Split::Test,
        ..cohort.cases[1].clone()
    };
    let report = check(&cohort, &|_| {});
    assert_eq!(report.usable, ["c0"]);
    let reason = &report.set_aside[0].reason;
    assert!(reason.contains("case c0 of the train split") && reason.contains("judged"), "{reason}");
}

#[test]
fn table_one_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let mut cohort = on_disk(dir.path(), 3);
    cohort.cases[2].split = Split::Test;
    let table = stats(&cohort, &|_| {});
    let train = &table.splits[0];
    assert_eq!((train.patients, train.volumes, train.metastases), (2, 2, 4));
    assert_eq!(train.metastases_per_volume, Some(2.0));
    assert!(
        (train.mean_cm3.unwrap() - 0.0015).abs() < 1e-9
            && (train.median_cm3.unwrap() - 0.0015).abs() < 1e-9
    );
    assert_eq!(train.share_up_to_0_1_cm3, Some(1.0));
    assert_eq!(train.through_plane_mm, Some([1.0, 1.0]));
    assert_eq!(
        (table.splits[1].volumes, table.splits[1].mean_cm3, table.splits[1].in_plane_mm),
        (0, None, None)
    );
    assert_eq!((table.total.volumes, table.total.metastases), (3, 6));
    std::fs::remove_file(&cohort.cases[0].label).unwrap();
    assert_eq!(stats(&cohort, &|_| {}).set_aside.len(), 1);
}
