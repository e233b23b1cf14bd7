//! Several rounds at one site at once, and a site that is slow.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_proto::control::{VisitPhase, VisitView};
use rondo_tests::federation::Federation;
use rondo_tests::hand::digest;
use rondo_tests::history;
use rondo_tests::material::PlanText;
use rondo_tests::trainer::{Log, NoOp, Worked};
use std::time::Duration;

/// How long a visit takes here.
const VISIT: Duration = Duration::from_millis(300);
/// How long everything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_rounds_at_one_site_train_one_after_another_and_all_end() {
    let all = Federation::without_trainers(&["uker", "usz"]).await;
    let log = Log::default();
    let _trainers: Vec<NoOp> = all.sites.iter().map(|site| NoOp::of(site, VISIT, &log)).collect();
    let mut rounds = Vec::new();
    for name in ["first", "second", "third"] {
        let plan = PlanText {
            name,
            topology: "cwt",
            cycles: 2,
            method: "tl",
            ..PlanText::swt(&["uker", "usz"])
        };
        rounds.push(all.agree(&plan).await);
    }
    for round in &rounds {
        all.sites[0].begin(round).await.unwrap();
    }
    for round in &rounds {
        let view = all.finished(round, LIMIT).await;
        let whole = |v: &VisitView| v.phase() == VisitPhase::HandedOver && v.stalled.is_empty();
        assert!(view.visits.iter().all(whole), "{view:?}");
        for site in &all.sites {
            let counted = history::contributions(&site.home, digest(round));
            assert_eq!(counted.into_iter().collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 1), (4, 1)]);
        }
    }
    let log = log.lock().unwrap();
    assert_eq!(log.len(), 12, "each visit was trained once: {log:?}");
    for site in ["uker", "usz"] {
        let own: Vec<&Worked> = log.iter().filter(|w| w.site == site).collect();
        for two in own.windows(2) {
            assert!(two[0].to.unwrap() <= two[1].from, "two at once: {two:?}");
        }
        // The others waited while the first trained.
        assert!(own[0].round != own[1].round, "they did not take turns: {own:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_twenty_times_slower_is_waited_for() {
    let all = Federation::without_trainers(&["uker", "slow", "usz"]).await;
    let log = Log::default();
    let _trainers: Vec<NoOp> = all
        .sites
        .iter()
        .map(|site| NoOp::of(site, if site.name == "slow" { 20 * VISIT } else { VISIT }, &log))
        .collect();
    let plan = PlanText {
        topology: "cwt",
        cycles: 2,
        method: "tl",
        ..PlanText::swt(&["uker", "slow", "usz"])
    };
    let round = all.agree(&plan).await;
    all.sites[0].begin(&round).await.unwrap();
    let view = all.finished(&round, LIMIT).await;
    assert!(
        view.visits.iter().all(|v| v.phase() == VisitPhase::HandedOver && v.stalled.is_empty())
    );
    let log = log.lock().unwrap();
    let visits: Vec<u32> = log.iter().map(|w| w.visit).collect();
    assert_eq!(visits, [1, 2, 3, 4, 5, 6], "each visit was given out once, in its turn");
    for site in &all.sites {
        // No word of a stall or of a second attempt was ever told.
        let told = history::statements(&site.home, digest(&round));
        let slow = told[&"slow".parse().unwrap()].len();
        // Proposed, approved and started; then for each visit received, training, contributed.
        assert_eq!(slow, 1 + 2 * 3 + 1, "{told:?}");
        assert!(!site.log_text().contains("visit not finished"), "{}", site.log_text());
    }
}
