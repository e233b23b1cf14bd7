//! Twenty daemons on one machine pass a model around, and none of them needs much.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_proto::control::VisitPhase;
use rondo_tests::federation::Federation;
use rondo_tests::material::PlanText;
use rondo_tests::trainer::{Log, NoOp};
use std::time::{Duration, Instant};

/// How many sites.
const SITES: usize = 20;
/// Memory that an idle daemon may have at most.
const IDLE_MIB: u64 = 40;
/// How long the round may take on a busy machine.
const ROUND: Duration = Duration::from_secs(120);

/// Memory that the daemons have now, in MiB, sorted.
fn memory(all: &Federation) -> Vec<u64> {
    let of = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
    };
    let mut all: Vec<u64> = all.sites.iter().map(|site| of(site.pid().unwrap())).collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_daemons_finish_a_round_and_stay_small() {
    let names: Vec<String> = (1..=SITES).map(|n| format!("site-{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let all = Federation::without_trainers(&names).await;
    let log = Log::default();
    let _trainers: Vec<NoOp> =
        all.sites.iter().map(|site| NoOp::of(site, Duration::ZERO, &log)).collect();
    let idle = memory(&all);
    println!("{SITES} daemons know each other after {:.1} s", begun.elapsed().as_secs_f64());
    println!("idle, MiB: {idle:?}");

    let begun = Instant::now();
    let round = all.agree(&PlanText { method: "tl", ..PlanText::swt(&names) }).await;
    println!("all approved after {:.1} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    all.sites[0].begin(&round).await.unwrap();
    let view = all.finished(&round, ROUND).await;
    println!("{SITES} visits in {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(view.visits.len(), SITES);
    assert!(view.visits.iter().all(|v| v.phase() == VisitPhase::HandedOver));
    let after = memory(&all);
    println!("after the round, MiB: {after:?}");
    assert!(idle.iter().chain(&after).all(|mib| *mib <= IDLE_MIB), "{idle:?} {after:?}");
}
