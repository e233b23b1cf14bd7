//! Models from elsewhere, from outside: `import`, and the commands that read a model.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use rondo::ids::Digest;
use rondo_imaging::phantom::{Centre, SynthOptions, synthesise};
use rondo_learn::import::{self, Format};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const PUBLISHED: &[u8] = include_bytes!("../../learn/tests/golden/published_layout_narrow.tar");

fn trainer(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rondo-trainer"));
    command.current_dir(folder).args(arguments).output().unwrap()
}

/// JSON lines of a run that succeeded.
fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_published_checkpoint_becomes_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("iter_5.tar"), PUBLISHED).unwrap();
    let bare = lines(&trainer(here, &["import", "iter_5.tar", "--out", "a.safetensors", "--json"]));
    let result = bare.last().unwrap();
    let bytes = std::fs::read(here.join("a.safetensors")).unwrap();
    assert_eq!(result["event"], "result");
    assert_eq!(result["model"], Digest::of(&bytes).to_string());
    assert_eq!(result["widths"], serde_json::json!([4, 6, 8, 12]));
    assert_eq!((&result["iterations"], &result["format"]), (&5.into(), &"published".into()));
    assert_eq!(result["optimizer"], false);
    let notes: Vec<&str> = bare.iter().filter_map(|line| line["text"].as_str()).collect();
    assert!(notes.iter().any(|n| n.contains("num_batches_tracked")), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("5 updates is dropped")), "{notes:?}");
    let read = import::any(&bytes).unwrap();
    assert_eq!((read.format, read.weights.optimizer), (Format::Canonical, None));

    let keep = ["import", "iter_5.tar", "--out", "b.safetensors", "--with-optimizer", "--json"];
    assert_eq!(lines(&trainer(here, &keep)).last().unwrap()["optimizer"], true);
    let bytes = std::fs::read(here.join("b.safetensors")).unwrap();
    assert!(import::any(&bytes).unwrap().weights == import::any(PUBLISHED).unwrap().weights);

    let again = ["import", "a.safetensors", "--out", "c.safetensors", "--with-optimizer"];
    assert!(refusal(&trainer(here, &again)).contains("no optimizer state"));
    std::fs::write(here.join("cut.tar"), &PUBLISHED[..200_000]).unwrap();
    let cut = refusal(&trainer(here, &["import", "cut.tar", "--out", "d.safetensors"]));
    assert!(cut.contains("cut.tar") && cut.contains("cut off"), "{cut}");
    assert!(!here.join("c.safetensors").exists() && !here.join("d.safetensors").exists());
}

#[test]
fn training_and_prediction_take_a_published_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("iter_5.tar"), PUBLISHED).unwrap();
    let options = SynthOptions {
        train: 2,
        validation: 1,
        test: 1,
        shape: [40, 44, 36],
        ..SynthOptions::small(Centre::Usz)
    };
    synthesise(&here.join("cohort"), &options, &|_| {}).unwrap();
    let recipe = "preset = \"published\"\nwidths = [4, 6, 8, 12]\nepochs = 1\n";
    std::fs::write(here.join("recipe.toml"), recipe).unwrap();
    let device = ["--cohort", "cohort", "--json", "--device", "cpu"];
    let train = ["train", "--recipe", "recipe.toml", "--init", "iter_5.tar", "--out", "visit"];
    let visit = lines(&trainer(here, &[&train[..], &device].concat()));
    assert_eq!(visit.last().unwrap()["event"], "result");
    // The recipe carries the optimizer: the updates of the file go on.
    let bytes = std::fs::read(here.join("visit/model.safetensors")).unwrap();
    let step = import::any(&bytes).unwrap().weights.optimizer.map(|adam| adam.step);
    let made = visit.last().unwrap()["visit"]["updates"].as_u64().unwrap();
    assert!(made > 0 && step.map(u64::from) == Some(5 + made), "{step:?} after {made} updates");

    let predict = ["predict", "--model", "iter_5.tar", "--out", "masks"];
    let cases = lines(&trainer(here, &[&predict[..], &device].concat()));
    assert!(cases.iter().any(|line| line["event"] == "case"), "{cases:?}");
}
