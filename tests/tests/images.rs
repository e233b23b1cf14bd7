//! The command line on images: a cohort of DICOM series is checked, prepared once, converted and judged.
#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "the tests make their own input"
)]

use rondo_tests::programs::packaged;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs `rondo --json` in a folder; the exit code, its document and its errors.
fn rondo(folder: &Path, line: &str) -> (i32, Value, String) {
    let done = Command::new(packaged("rondo"))
        .args(line.split(' '))
        .arg("--json")
        .current_dir(folder)
        .output()
        .expect("rondo starts");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let document = serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|e| panic!("`rondo {line}` gave no document: {e}\n{said}"));
    (done.status.code().expect("it ended by itself"), document, said)
}

fn done(folder: &Path, line: &str) -> Value {
    let (code, document, said) = rondo(folder, line);
    assert_eq!(code, 0, "`rondo {line}`: {document}\n{said}");
    document
}

const SYNTH: &str = "cohort synth --centre usz --train 1 --validation 1 --test 1 --shape 48x52x44 \
                     --slices scanner --format dicom --out .";

#[test]
fn a_cohort_of_dicom_series_goes_through_the_command_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    done(here, SYNTH);

    let check = done(here, "cohort check .");
    assert_eq!(check["usable"].as_array().map(Vec::len), Some(3), "{check}");
    let stats = done(here, "cohort stats .");
    assert_eq!(stats["total"]["volumes"], 3, "{stats}");

    let made = done(here, "cohort preprocess . --work work --export seen");
    assert_eq!(made["cases"].as_array().map(Vec::len), Some(2), "train and validation: {made}");
    assert_eq!(made["cases"][0]["shape"], serde_json::json!([48, 52, 44]));
    assert!(made["cases"][0]["n4_iterations"].is_array(), "{made}");
    let seen = done(here, "image info seen/image/usz-0001.nii.gz");
    assert_eq!(seen["grid"]["orientation"], "RAS", "{seen}");
    let prepared = || -> Vec<_> {
        let entries = fs::read_dir(here.join("work/prepared")).expect("it is there");
        let mut files: Vec<_> = entries
            .map(|e| e.expect("it can be listed"))
            .filter(|e| e.path().extension().is_some_and(|end| end == "case"))
            .map(|e| (e.path(), e.metadata().and_then(|m| m.modified()).expect("it has a time")))
            .collect();
        files.sort();
        files
    };
    let before = prepared();
    done(here, "cohort preprocess . --work work");
    assert!(before.len() == 2 && before == prepared(), "what is there is not done again");

    let info = done(here, "image info image/usz-0001");
    assert_eq!(info["format"], "DICOM");
    done(here, "image convert image/usz-0001 image.nii.gz");
    let converted = done(here, "image info image.nii.gz");
    assert_eq!(converted["grid"]["shape"], info["grid"]["shape"]);
    assert_eq!(converted["values"]["max"], info["values"]["max"]);
    done(
        here,
        "image convert label/usz-0001.dcm label.nii.gz --on image/usz-0001 --roi Metastasis",
    );
    let label = fs::read(here.join("label.nii.gz")).expect("it was written");
    for kind in ["seg", "rtstruct"] {
        done(
            here,
            &format!("image convert label.nii.gz {kind}.dcm --on image/usz-0001 --as {kind}"),
        );
        done(
            here,
            &format!("image convert {kind}.dcm back.nii.gz --on image/usz-0001 --roi Metastasis*"),
        );
        assert!(fs::read(here.join("back.nii.gz")).expect("it was written") == label, "{kind}");
    }

    for part in ["truth", "guess", "scan"] {
        fs::create_dir(here.join(part)).expect("a folder can be made");
    }
    fs::copy(here.join("label.nii.gz"), here.join("truth/a.nii.gz")).expect("it can be copied");
    fs::copy(here.join("label.nii.gz"), here.join("guess/a.nii.gz")).expect("it can be copied");
    fs::copy(here.join("image.nii.gz"), here.join("scan/a.nii.gz")).expect("it can be copied");
    let judged = done(
        here,
        "evaluate --reference truth --prediction guess --image scan --html page.html --csv tables",
    );
    assert_eq!(judged["pooled"]["sensitivity"], 1.0, "{judged}");
    let page = fs::read_to_string(here.join("page.html")).expect("it was written");
    assert!(page.contains("data:image/png;base64,"), "pictures are in the page");
    assert!(here.join("tables/lesions.csv").exists());
}

#[test]
fn a_series_with_a_missing_slice_is_set_aside_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    done(here, SYNTH);
    fs::remove_file(here.join("image/usz-0002/0020.dcm")).expect("a slice of many");
    fs::write(here.join("label/usz-0003.dcm"), b"no contours").expect("it can be written");
    for line in [
        "cohort check .",
        "cohort preprocess . --work work --split validation --split train --split test",
    ] {
        let (code, report, said) = rondo(here, line);
        assert_eq!(code, 8, "some cases were set aside: {said}");
        let aside: Vec<_> = report["set_aside"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|a| (a["id"].as_str().unwrap_or(""), a["reason"].as_str().unwrap_or("")))
            .collect();
        assert_eq!(aside.len(), 2, "{aside:?}");
        let (missing, other) = (aside[0], aside[1]);
        assert!(missing.0 == "usz-0002" && missing.1.contains("0019.dcm"), "{missing:?}");
        assert!(other.0 == "usz-0003" && other.1.contains("usz-0003.dcm"), "{other:?}");
    }
}
