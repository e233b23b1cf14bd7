//! The bench of rounds measures something.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_tests::programs;
use serde_json::Value;
use std::process::Command;

fn bench(arguments: &[&str]) -> Value {
    let done = Command::new(programs::node()).arg("bench").args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).expect("one JSON object")
}

#[test]
fn a_round_is_measured_hand_over_by_hand_over() {
    let said = bench(&["round", "--size", "100000", "--repeats", "1", "--json"]);
    assert_eq!(said["schema"], "rondo.bench-round/1");
    assert_eq!(said["gaps"], 11, "twelve visits: {said}");
    let number = |part: &str, name: &str| said[part][name].as_f64().unwrap();
    let (median, max) = (number("gap_ms", "median"), number("gap_ms", "max"));
    assert!(0.0 < median && median <= max, "{said}");
    // The gaps are parts of the round.
    assert!(11.0 * median / 2.0 <= 1e3 * number("round_s", "median"), "{said}");
    assert_eq!(said["round_s"]["holds"], number("round_s", "median") <= 3.0);
}
