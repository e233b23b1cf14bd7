//! Local work from outside: a recipe, a visit, its model, masks on the grid of their images.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use rondo_imaging::dicom::{self, SeriesChoice};
use rondo_imaging::nifti;
use rondo_imaging::phantom::{Centre, Format, Slices, SynthOptions, synthesise};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn trainer(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rondo-trainer"));
    command.current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The last JSON line.
fn result(output: &Output) -> Value {
    let lines = text(&output.stdout);
    assert!(output.status.success(), "{lines}{}", text(&output.stderr));
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "result", "{last}");
    last
}

#[test]
fn a_visit_and_its_masks() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let options = SynthOptions {
        train: 2,
        validation: 1,
        test: 1,
        shape: [40, 44, 36],
        ..SynthOptions::small(Centre::Usz)
    };
    synthesise(&here.join("cohort"), &options, &|_| {}).unwrap();
    let recipe = "preset = \"paper\"\nwidths = [2, 3, 4, 6]\nepochs = 1\n";
    std::fs::write(here.join("recipe.toml"), recipe).unwrap();
    let train =
        ["train", "--cohort", "cohort", "--recipe", "recipe.toml", "--json", "--device", "cpu"];
    let first = result(&trainer(here, &[&train[..], &["--out", "first"]].concat()));
    assert_eq!(
        (&first["visit"]["cases"], &first["visit"]["dice_before"]),
        (&2.into(), &Value::Null)
    );
    let again = result(&trainer(here, &[&train[..], &["--out", "again"]].concat()));
    assert_eq!(first["model"], again["model"], "same seed, same device, same bytes");
    let init = ["--out", "second", "--init", "first/model.safetensors", "--seed", "2"];
    let second = result(&trainer(here, &[&train[..], &init].concat()));
    assert!(
        second["visit"]["dice_before"].is_f64() && second["visit"]["loss_last_epoch"]["kdl"] != 0.0
    );
    let report: Value =
        serde_json::from_slice(&std::fs::read(here.join("second/report.json")).unwrap()).unwrap();
    assert_eq!(report["received"], first["model"]);

    std::fs::remove_file(here.join("cohort/image/usz-0003.nii.gz")).unwrap();
    let predict =
        ["predict", "--model", "second/model.safetensors", "--cohort", "cohort", "--out", "masks"];
    let done = trainer(here, &[&predict[..], &["--split", "all", "--probability"]].concat());
    assert_eq!(done.status.code(), Some(3), "{}", text(&done.stdout));
    assert!(text(&done.stdout).contains("case `usz-0003` is set aside"), "{}", text(&done.stdout));
    let done = trainer(here, &[&train[..], &["--out", "third"]].concat());
    let last = text(&done.stdout);
    assert_eq!(done.status.code(), Some(3), "{last}");
    assert!(last.contains("\"set_aside\":1"), "{last}");
    let image = nifti::read_header(&here.join("cohort/image/usz-0004.nii.gz")).unwrap();
    let mask = nifti::read_mask(&here.join("masks/usz-0004.nii.gz")).unwrap();
    assert!(image.geometry.matches(mask.geometry()));
    let map = nifti::read_image(&here.join("masks/probability/usz-0004.nii.gz")).unwrap();
    let above = map.volume.data().map(|p| u8::from(*p > 0.5));
    assert_eq!(&above, mask.data());
}

/// DICOM in, DICOM out: a visit on series whose slices are not those of the working grid.
#[test]
fn a_series_gets_its_prediction_as_seg_and_rtstruct() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let options = SynthOptions {
        train: 1,
        validation: 0,
        test: 1,
        shape: [40, 44, 36],
        slices: Slices::Scanner,
        format: Format::Dicom,
        ..SynthOptions::small(Centre::Usz)
    };
    synthesise(&here.join("cohort"), &options, &|_| {}).unwrap();
    let recipe = "preset = \"paper\"\nwidths = [2, 3, 4, 6]\nepochs = 1\n";
    std::fs::write(here.join("recipe.toml"), recipe).unwrap();
    let train = ["train", "--cohort", "cohort", "--recipe", "recipe.toml", "--out", "visit"];
    result(&trainer(here, &[&train[..], &["--json", "--device", "cpu"]].concat()));

    let image = here.join("cohort/image/usz-0002");
    let series = dicom::read_series_geometry(&image, &SeriesChoice::Only).unwrap();
    let model = ["predict", "--model", "visit/model.safetensors", "--device", "cpu", "--json"];
    let of_cohort = ["--cohort", "cohort", "--out", "masks", "--dicom", "seg,rtstruct"];
    let done = result(&trainer(here, &[&model[..], &of_cohort].concat()));
    assert_eq!((&done["cases"], &done["set_aside"]), (&1.into(), &0.into()));
    let mask = nifti::read_mask(&here.join("masks/usz-0002.nii.gz")).unwrap();
    assert!(mask.geometry().matches(&series.geometry));
    let seg = dicom::segmentation::read(&here.join("masks/usz-0002.seg.dcm"), &series).unwrap();
    assert_eq!(seg.data(), mask.data());
    let names = ["Metastasis*".to_owned()];
    let contours = here.join("masks/usz-0002.rtstruct.dcm");
    let contours = dicom::rtstruct::read_label(&contours, &series, &names).unwrap();
    assert_eq!(contours.data(), mask.data());

    let one = ["--image", "cohort/image/usz-0002", "--series", &series.series_uid];
    let brain = ["--brain-mask", "cohort/brain/usz-0002.nii.gz", "--like", "cohort"];
    result(&trainer(here, &[&model[..], &one, &brain, &["--out", "one"]].concat()));
    let same = nifti::read_mask(&here.join("one/usz-0002.nii.gz")).unwrap();
    assert_eq!(same.data(), mask.data());
}

#[test]
fn recipes_are_refused_with_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let bad = "preset = \"paper\"\nepochs = 0\nwat = 1\n";
    std::fs::write(folder.path().join("bad.toml"), bad).unwrap();
    let done = trainer(folder.path(), &["show-recipe", "--recipe", "bad.toml"]);
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1));
    assert!(
        said.contains("bad.toml") && said.contains("`epochs` is 0") && said.contains("`wat`"),
        "{said}"
    );
    let shown = trainer(folder.path(), &["show-recipe", "--preset", "published"]);
    assert!(text(&shown.stdout).contains("optimizer_on_arrival = \"carry\""));
    let missing = trainer(folder.path(), &["show-recipe", "--recipe", "none.toml"]);
    assert!(text(&missing.stderr).contains("none.toml"));
}

#[test]
fn only_mixed_pools_cohorts_and_no_image_twice() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for centre in [Centre::Usz, Centre::Uker] {
        let options = SynthOptions {
            train: 2,
            validation: 1,
            test: 0,
            shape: [40, 44, 36],
            ..SynthOptions::small(centre)
        };
        synthesise(&here.join(centre.name()), &options, &|_| {}).unwrap();
    }
    let recipe = "preset = \"paper\"\nwidths = [2, 3, 4, 6]\nepochs = 1\nmethod = ";
    std::fs::write(here.join("tl.toml"), format!("{recipe}\"tl\"\n")).unwrap();
    std::fs::write(here.join("mixed.toml"), format!("{recipe}\"mixed\"\n")).unwrap();
    let train = |recipe: &str, cohorts: [&str; 2], out: &str| {
        let [a, b] = cohorts;
        let fixed = ["train", "--json", "--device", "cpu", "--work", "work", "--recipe", recipe];
        trainer(here, &[&fixed[..], &["--cohort", a, "--cohort", b, "--out", out]].concat())
    };
    let refused = |done: Output| {
        assert_eq!(done.status.code(), Some(1));
        text(&done.stderr)
    };
    let said = refused(train("tl.toml", ["usz", "uker"], "tl"));
    assert!(said.contains("method tl trains on one cohort and 2 are given"), "{said}");
    let said = refused(train("mixed.toml", ["usz", "usz"], "same"));
    assert!(said.contains("two cohorts are named usz"), "{said}");

    let pooled = result(&train("mixed.toml", ["usz", "uker"], "pooled"));
    assert_eq!(pooled["visit"]["cases"], 4);

    let image = |case: &str| here.join(format!("{case}.nii.gz"));
    std::fs::copy(image("usz/image/usz-0003"), image("uker/image/uker-0001")).unwrap();
    let said = refused(train("mixed.toml", ["usz", "uker"], "twice"));
    assert!(said.contains("cases `usz/usz-0003` and `uker/uker-0001` hold the same"), "{said}");
}
