//! `kill -9` in the middle of a visit: the same command goes on, to the model of a visit that nobody
//! disturbed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr)]

use rondo_imaging::phantom::{Centre, SynthOptions, synthesise};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

const STATE: &str = "unfinished.state";

fn trainer(folder: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rondo-trainer"));
    command.current_dir(folder).args(["train", "--cohort", "cohort", "--recipe", "recipe.toml"]);
    command.args(["--json", "--device", "cpu", "--save-every", "0", "--out", out]).args(more);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The result, and everything said before it.
fn result(output: &Output) -> (Value, String) {
    let lines = text(&output.stdout);
    assert!(output.status.success(), "{lines}{}", text(&output.stderr));
    (serde_json::from_str(lines.lines().last().unwrap()).unwrap(), lines)
}

/// Small numbers that differ from run to run; the seed is printed, and `RONDO_SEED` repeats it.
fn draws() -> impl FnMut(u64) -> u64 {
    let clock = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("RONDO_SEED").map_or_else(|_| clock(), |s| s.parse().unwrap());
    eprintln!("RONDO_SEED={seed}");
    let mut state = seed;
    move |below| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

/// Waits for a state on disk and for `more` lines after it; false if the visit ended before.
fn wait_for_state(child: &mut Child, state: &Path, more: u64) -> bool {
    let begun = Instant::now();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut left = more;
    while begun.elapsed() < Duration::from_secs(120) {
        match lines.next() {
            Some(line) => {
                let line = line.unwrap();
                if state.exists() {
                    if left == 0 || line.contains("\"result\"") {
                        return !line.contains("\"result\"");
                    }
                    left -= 1;
                }
            }
            None => return false,
        }
    }
    false
}

#[test]
fn a_killed_visit_goes_on_to_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let options = SynthOptions {
        train: 2,
        validation: 1,
        test: 0,
        shape: [40, 44, 36],
        ..SynthOptions::small(Centre::Usz)
    };
    synthesise(&here.join("cohort"), &options, &|_| {}).unwrap();
    let recipe = "preset = \"paper\"\nwidths = [2, 3, 4, 6]\nepochs = 8\nmini_batch = 4\n";
    std::fs::write(here.join("recipe.toml"), recipe).unwrap();
    let (whole, _) = result(&trainer(here, "whole", &[]).output().unwrap());
    assert!(!here.join("whole").join(STATE).exists(), "a finished visit leaves no state");

    let mut draw = draws();
    let state = here.join("killed").join(STATE);
    for _ in 0..2 {
        let mut child = trainer(here, "killed", &[]).stdout(Stdio::piped()).spawn().unwrap();
        let in_time = wait_for_state(&mut child, &state, draw(12));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(in_time, "the visit was over before it could be killed");
    }
    assert!(state.exists() && !here.join("killed/report.json").exists());
    let (resumed, said) = result(&trainer(here, "killed", &[]).output().unwrap());
    assert!(said.contains("going on after update"), "{said}");
    assert_eq!(resumed["model"], whole["model"], "bit for bit");
    assert_eq!(resumed["visit"]["updates"], whole["visit"]["updates"]);
    assert_eq!(resumed["visit"]["checks"], whole["visit"]["checks"]);
    assert!(!state.exists());

    // What is finished is neither trained again nor overwritten, unless that is asked for.
    let (again, said) = result(&trainer(here, "killed", &[]).output().unwrap());
    assert!(said.contains("trained before") && !said.contains("\"update\":1,"), "{said}");
    assert_eq!(again["visit"], resumed["visit"]);
    let other = trainer(here, "killed", &["--seed", "7"]).output().unwrap();
    assert!(!other.status.success() && text(&other.stderr).contains("--fresh"));
    let mut anew = trainer(here, "killed", &["--seed", "7", "--fresh"]);
    let mut child = anew.env("OMP_NUM_THREADS", "2").stdout(Stdio::piped()).spawn().unwrap();
    assert!(wait_for_state(&mut child, &state, 0), "the visit was over before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut fewer = trainer(here, "killed", &["--seed", "7"]);
    let (fresh, said) = result(&fewer.env("OMP_NUM_THREADS", "1").output().unwrap());
    assert!(said.contains("going on after update"), "{said}");
    assert!(said.contains("2 threads") && said.contains("not be bit for bit"), "{said}");
    assert_ne!(fresh["model"], whole["model"]);

    // A damaged state is refused with a sentence, and costs nothing but time.
    std::fs::create_dir_all(here.join("damaged")).unwrap();
    std::fs::write(here.join("damaged").join(STATE), b"RONDOVIS, but cut off").unwrap();
    let (anew, said) = result(&trainer(here, "damaged", &[]).output().unwrap());
    assert!(said.contains("begins anew"), "{said}");
    assert_eq!(anew["model"], whole["model"]);
}
