//! A visit in a process that may not have enough memory for it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::panic)]

use rondo_imaging::phantom::{Centre, SynthOptions, synthesise};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Address space of a visit, KiB, that is surely too little and surely enough.
const RANGE_KIB: [u64; 2] = [300_000, 2_500_000];

/// A visit in a process with this much address space, in a heap that gives memory back.
fn visit(folder: &Path, limit_kib: u64) -> Output {
    let mut shell = Command::new("sh");
    shell.current_dir(folder).args([
        "-c",
        "ulimit -v \"$0\" && exec \"$@\"",
        &limit_kib.to_string(),
    ]);
    shell.args([env!("CARGO_BIN_EXE_rondo-trainer"), "train", "--cohort", "cohort"]);
    shell.args(["--recipe", "recipe.toml", "--out", &limit_kib.to_string()]);
    shell.args(["--json", "--device", "cpu"]);
    shell.envs([("MALLOC_MMAP_MAX_", "65536"), ("MALLOC_MMAP_THRESHOLD_", "131072")]);
    shell.envs([("MALLOC_TOP_PAD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "131072")]);
    shell.output().unwrap()
}

/// What a visit said of itself: its notices, and the sum of the loss at each update told.
fn told(output: &Output) -> (String, Vec<f64>) {
    let (mut notices, mut losses) = (String::new(), Vec::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        match event["event"].as_str().unwrap() {
            "notice" => notices.push_str(event["text"].as_str().unwrap()),
            "update" => losses
                .push(event["loss"].as_object().unwrap().values().filter_map(Value::as_f64).sum()),
            _ => {}
        }
    }
    (notices, losses)
}

#[test]
fn an_update_that_does_not_fit_is_made_with_less_memory_to_the_same_loss() {
    let folder = tempfile::tempdir().unwrap();
    let options = SynthOptions {
        train: 2,
        validation: 1,
        test: 0,
        shape: [40, 44, 36],
        ..SynthOptions::small(Centre::Usz)
    };
    synthesise(&folder.path().join("cohort"), &options, &|_| {}).unwrap();
    let recipe = "preset = \"paper\"\nmethod = \"tl\"\nepochs = 1\nsegments_per_case = 20\nmini_batch = 20\nselect = \"last\"\n";
    std::fs::write(folder.path().join("recipe.toml"), recipe).unwrap();

    let [mut too_little, mut enough] = RANGE_KIB;
    let whole = visit(folder.path(), enough);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let (notices, losses) = told(&whole);
    assert!(!notices.contains("memory") && !losses.is_empty(), "{notices}");

    while enough - too_little > 10_000 {
        let limit = too_little.midpoint(enough);
        let done = visit(folder.path(), limit);
        if !done.status.success() {
            too_little = limit;
            continue;
        }
        let (notices, less) = told(&done);
        if notices.contains("memory") {
            assert!(notices.contains("computed twice"), "{notices}");
            assert_eq!(less.len(), losses.len());
            for (a, b) in less.iter().zip(&losses) {
                assert!((a - b).abs() < 1e-3 * b.abs(), "{less:?} {losses:?}");
            }
            return;
        }
        enough = limit;
    }
    panic!("no limit between {too_little} and {enough} KiB made the visit save memory");
}
