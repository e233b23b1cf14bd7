//! `parity` and `self-test numbers` from outside: a line a check, and exit 1 for anything that is wrong.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn trainer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rondo-trainer")).args(arguments).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The small golden numbers, in a folder of their own.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../learn/golden");
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn parity(folder: &Path) -> Output {
    trainer(&["parity", folder.to_str().unwrap(), "--device", "cpu"])
}

/// The checks that failed, as JSON lines, of a run that must fail.
fn failed(folder: &Path) -> Vec<Value> {
    let output = parity(folder);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let failed: Vec<Value> = lines(&output).into_iter().filter(|l| l["pass"] == false).collect();
    assert!(!failed.is_empty());
    failed
}

fn edit_json(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("learning.json");
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_good_directory_and_the_built_in_one_pass() {
    let folder = folder();
    let ours = lines(&trainer(&["self-test", "numbers", "--device", "cpu"]));
    let output = parity(folder.path());
    assert!(output.status.success(), "{output:?}");
    let found = lines(&output);
    assert_eq!(found.len(), ours.len());
    for line in found.iter().chain(&ours) {
        assert_eq!(line["pass"], true, "{line}");
        assert!(line["max_abs_error"].as_f64().unwrap() <= line["tolerance"].as_f64().unwrap());
    }
    for section in ["forward.", "losses.", "updates.", "published.", "tiled.", "t_test."] {
        assert!(
            found.iter().any(|l| l["check"].as_str().unwrap().starts_with(section)),
            "{section}"
        );
    }
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("device: cpu (libtorch") && told.contains(" 0 failed"), "{told}");
}

#[test]
fn what_is_missing_fails_by_its_name() {
    for name in [
        "deepmedic_full_forward.safetensors",
        "deepmedic_full_weights.safetensors",
        "learning.json",
        "losses.safetensors",
        "lwf_five_updates.safetensors",
        "published_layout_narrow.tar",
        "tiled_inference.safetensors",
    ] {
        let folder = folder();
        std::fs::remove_file(folder.path().join(name)).unwrap();
        let failed = failed(folder.path());
        assert!(failed.iter().any(|l| l["detail"].as_str().unwrap().contains(name)), "{failed:?}");
        // Without the forward batch, the map is compared with the weights as stored, and differs.
        let number = |l: &Value| l["check"].as_str().unwrap().starts_with("tiled.");
        let fine =
            |l: &Value| l["max_abs_error"].is_null() || name.contains("forward") && number(l);
        assert!(failed.iter().all(fine), "{failed:?}");
    }
    let output = trainer(&["parity", "/nonexistent/golden"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nonexistent/golden"));
    assert_eq!(trainer(&["parity"]).status.code(), Some(2));
}

#[test]
fn every_t_test_can_fail() {
    for (test, part) in
        [("student", "t"), ("student", "p"), ("welch", "t"), ("welch", "p"), ("welch", "df")]
    {
        let folder = folder();
        edit_json(folder.path(), |json| {
            let number = &mut json["t_test"][test][part];
            *number = (number.as_f64().unwrap() * (1.0 + 1e-6) + 1e-6).into();
        });
        let failed = failed(folder.path());
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0]["check"], format!("t_test.{test}.{part}"));
        edit_json(folder.path(), |json| json["t_test"][test][part] = "0.5".into());
        let failed = self::failed(folder.path());
        assert!(failed[0]["detail"].as_str().unwrap().contains(&format!("`t_test.{test}.{part}`")));
    }
    let folder = folder();
    edit_json(folder.path(), |json| json["t_test"]["a"] = vec![0.5].into());
    assert_eq!(failed(folder.path()).len(), 5);
    edit_json(folder.path(), |json| json["t_test"]["b"] = "none".into());
    assert_eq!(failed(folder.path())[0]["check"], "t_test");
}
