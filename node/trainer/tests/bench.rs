//! `bench` from outside: figures without a peer, in turns with one, and peers that are none.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const STEP: [&str; 8] =
    ["bench", "step", "--widths", "2,3,4,6", "--shape", "40,40,40", "--batch", "4"];
const INFER: [&str; 8] =
    ["bench", "infer", "--widths", "2,3,4,6", "--shape", "30,20,10", "--repeats", "2"];

fn bench(arguments: &[&str], more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rondo-trainer"));
    command.args(arguments).args(more).args(["--device", "cpu"]).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn figures(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    assert_eq!(output.stdout.iter().filter(|b| **b == b'\n').count(), 1, "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A program that stands for a Python; `$0.pid` gets its process, and that of a child it leaves behind.
fn script(folder: &Path, name: &str, then: &str) -> String {
    let path = folder.join(name);
    let text = format!("#!/bin/sh\nsleep 300 >/dev/null 2>&1 &\necho $$ $! >\"$0.pid\"\n{then}\n");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Neither the peer nor its child runs on, or waits to be reaped.
fn assert_gone(script: &str) {
    let pids = std::fs::read_to_string(format!("{script}.pid")).unwrap();
    assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
    // A child of a killed peer is init's to reap, and may take a moment to end.
    let runs = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    let begun = Instant::now();
    while pids.split_whitespace().any(runs) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{pids} still run");
        std::thread::sleep(Duration::from_millis(10));
    }
    let peer = pids.split_whitespace().next().unwrap();
    assert!(!Path::new("/proc").join(peer).exists(), "the peer itself was reaped");
}

#[test]
fn updates_and_volumes_are_measured_without_a_peer() {
    let step = figures(&bench(&STEP, &["--json", "--method", "lwf"]));
    assert_eq!([&step["bench"], &step["precision"], &step["method"]], ["step", "fp32", "lwf"]);
    let ms = step["median_ms"].as_f64().unwrap();
    assert!(ms > 0.0 && step["peak_rss_mib"].as_u64().unwrap() > 10, "{step}");
    let rate = step["segments_per_s"].as_f64().unwrap();
    assert!((rate * ms / 4000.0 - 1.0).abs() < 0.01, "4 segments an update: {step}");
    assert!(step["repeats"].as_u64().unwrap() >= 30 && step["stretches"].as_u64().unwrap() >= 5);
    assert!(step.get("peer").is_none() && step.get("ratio").is_none(), "{step}");
    assert!(step.get("paper_schedule_minutes").is_none(), "not that schedule's update: {step}");

    let infer = figures(&bench(&INFER, &["--json"]));
    assert_eq!((&infer["bench"], &infer["repeats"]), (&"infer".into(), &2.into()));
    assert!(infer["median_ms"].as_f64().unwrap() > 0.0, "{infer}");
}

#[test]
fn the_supply_of_segments_is_told_against_their_use() {
    let arguments = [&["bench", "sample"], &STEP[2..], &["--json"]].concat();
    let sample = figures(&bench(&arguments, &[]));
    let number = |key: &str| sample[key].as_f64().unwrap();
    let ratio = number("segments_per_s") / number("device_segments_per_s");
    assert!((number("ratio_to_device") / ratio - 1.0).abs() < 1e-3 && ratio > 0.0, "{sample}");
}

#[test]
fn a_peer_works_in_turns_with_us() {
    let folder = tempfile::tempdir().unwrap();
    let answers = "echo '{\"name\": \"Constant 1\", \"threads\": 3}'\n\
                   while read -r request; do echo \"$request\" >>\"$0.asked\"\n\
                   case $request in *bf16*) ms=50 ;; *) ms=100 ;; esac\n\
                   echo '{\"ms\": '$ms', \"cpu_ms\": 150, \"peak_rss_mib\": 7}'; done";
    let peer = script(folder.path(), "constant", answers);
    let infer = figures(&bench(&INFER, &["--json", "--peer", &peer]));
    assert_gone(&peer);
    let about = &infer["peer"];
    assert_eq!((&about["name"], &about["threads"]), (&"Constant 1 fp32".into(), &3.into()));
    assert_eq!((&about["tiles"], &about["peak_rss_mib"]), (&24.into(), &7.into()));
    assert_eq!(about["tiles_at_a_time"], 10, "equally fast, so the first");
    assert_eq!(about["median_ms"], 12.0, "24 tiles at 100 ms per 200");
    let ratio = infer["ratio"].as_f64().unwrap();
    assert!((ratio - infer["median_ms"].as_f64().unwrap() / 12.0).abs() < 1e-3, "{infer}");
    let asked = std::fs::read_to_string(format!("{peer}.asked")).unwrap();
    assert_eq!(asked.lines().filter(|line| *line == "tiles fp32 200 10").count(), 1 + 3, "{asked}");

    // The settings that the trainer was started with are not the peer's, unless that is asked for.
    let told = script(folder.path(), "told", &format!("env >\"$0.env\"\n{answers}"));
    for (settings, has) in [("", false), ("ours", true)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rondo-trainer"));
        command.args(INFER).args(["--device", "cpu", "--json", "--peer", &told]);
        command.env_remove("GOMP_SPINCOUNT").env("RONDO_BENCH_PEER_SETTINGS", settings);
        figures(&command.output().unwrap());
        let env = std::fs::read_to_string(format!("{told}.env")).unwrap();
        assert_eq!(env.contains("GOMP_SPINCOUNT=") && env.contains("MALLOC_MMAP_MAX_="), has);
    }

    std::fs::remove_file(format!("{peer}.asked")).unwrap();
    let step = figures(&bench(&STEP, &["--json", "--peer", &peer]));
    assert_gone(&peer);
    let asked = std::fs::read_to_string(format!("{peer}.asked")).unwrap();
    let warm_up = ["step fp32 5", "step fp32 1", "step bf16 1", "step bf16 1"];
    let mut lines = asked.lines();
    assert!(warm_up.iter().all(|line| lines.next() == Some(line)), "{asked}");
    let updates: u64 =
        lines.filter_map(|l| l.strip_prefix("step fp32 ")?.parse::<u64>().ok()).sum();
    assert_eq!(step["repeats"], updates, "as many of the peer as of ours");
    assert!(step["ratio_of_pairs"].as_f64().unwrap() > 0.0, "{step}");
    let halves = step["peer"]["median_ms"].as_f64().unwrap() / 2.0;
    assert!((step["peer_bf16"]["median_ms"].as_f64().unwrap() - halves).abs() < 1e-3, "{step}");
}

#[test]
fn what_is_no_peer_is_refused_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    let hello = "echo '{\"name\": \"Odd\", \"threads\": 1}'";
    for (name, then, text) in [
        (
            "nonsense",
            "echo what do you want; wait",
            "to `hello` is none that bench knows: `what do",
        ),
        ("endless", "cat /dev/zero", "to `hello` is none that bench knows"),
        ("mute", "exit 3", "ended without an answer to `hello`"),
        (
            "sorry",
            "echo '{\"error\": \"no tensors here\"}'; wait",
            "the peer failed: no tensors here",
        ),
        ("odd", &format!("{hello}; echo '{{\"ms\": -1}}'; wait"), "to `tiles fp32 10 10` is none"),
        ("brief", hello, "ended without an answer to `tiles fp32 10 10`"),
    ] {
        let peer = script(folder.path(), name, then);
        let done = bench(&INFER, &["--json", "--peer", &peer]);
        assert_eq!(
            (done.status.code(), done.stdout.len()),
            (Some(1), 0),
            "{name}: {}",
            said(&done)
        );
        assert!(said(&done).contains(text), "{name}: {}", said(&done));
        assert_gone(&peer);
    }
    let done = bench(&INFER, &["--peer", "/nonexistent/python"]);
    assert!(
        said(&done).contains("starting the peer /nonexistent/python failed"),
        "{}",
        said(&done)
    );
    for (more, text) in [
        (["--method", "single"], "tl or lwf"),
        (["--widths", "4,3,2,1"], "cannot be used multiple times"),
        (["--network", "x.py"], "--peer"),
    ] {
        let done = bench(&INFER, &more);
        assert!(!done.status.success() && said(&done).contains(text), "{}", said(&done));
    }
}
