//! `kill -9` at the worst moments: the round goes on, and each visit counts exactly once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_proto::control::{RoundPhase, RoundView, VisitPhase};
use rondo_tests::federation::Federation;
use rondo_tests::hand::digest;
use rondo_tests::material::PlanText;
use rondo_tests::programs::signal;
use rondo_tests::site::{Site, request};
use rondo_tests::{eventually, history, log};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;

/// How long a visit of these tiny rounds may take on a busy machine.
const VISIT: Duration = Duration::from_secs(60);

/// How long a trainer may take to notice that its daemon is dead, and to end.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// Waits until the site's trainer is under way in `visit`; update and updates then.
async fn middle_of(site: &Site, round: &str, visit: u32) -> (u64, u64) {
    let answer = site.control().await.watch_round(request(round)).await.unwrap();
    let mut views = answer.into_inner();
    let begun = Instant::now();
    loop {
        let next = tokio::time::timeout(VISIT, views.next()).await.expect("the round goes on");
        let view = next.expect("a stream without end").unwrap();
        if let Some(p) = view.progress.as_ref().filter(|p| p.visit == visit) {
            assert!(p.update < p.updates, "the visit was over before its middle was seen");
            if p.update >= 4 {
                return (p.update, p.updates);
            }
        }
        assert!(begun.elapsed() < 2 * VISIT, "visit {visit} does not come to its middle: {view:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trainer_does_not_outlive_its_killed_daemon() {
    let mut all = Federation::with_trainers(&["uker"]).await;
    // So long that it does not end by itself while this is looked at.
    let round = all.agree(&PlanText { epochs: 100_000, ..PlanText::swt(&["uker"]) }).await;
    all.sites[0].begin(&round).await.unwrap();
    middle_of(&all.sites[0], &round, 1).await;
    let uker = &mut all.sites[0];
    assert_eq!(uker.trainers().len(), 1);
    uker.kill();
    let gone = async || uker.processes().is_empty().then_some(());
    eventually("no process of the killed site is left", LAST_BREATH, gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_in_its_training_contributes_once() {
    let mut all = Federation::with_trainers(&["uker", "stanford", "usz"]).await;
    let sites = ["uker", "stanford", "usz"];
    let plan = PlanText { topology: "cwt", cycles: 2, epochs: 16, ..PlanText::swt(&sites) };
    let round = all.agree(&plan).await;
    all.sites[0].begin(&round).await.unwrap();

    let (update, updates) = middle_of(&all.sites[1], &round, 2).await;
    let stanford = &mut all.sites[1];
    assert_eq!(stanford.trainers().len(), 1);
    stanford.kill();
    println!("killed stanford at update {update} of {updates}");
    let gone = async || stanford.processes().is_empty().then_some(());
    eventually("no process of the killed site is left", LAST_BREATH, gone).await;
    let before = history::contributions(&stanford.home, digest(&round));
    assert!(!before.contains_key(&2), "it had not finished: {before:?}");

    stanford.start();
    stanford.ready_to_train().await;
    let view = all.finished(&round, 7 * VISIT).await;
    let said = log::text(&all.sites[1].trainer_log());
    assert!(said.contains("going on after update"), "the visit began anew:\n{said}");
    assert_eq!(view.visits.len(), 6);
    assert!(
        view.visits.iter().all(|v| v.phase() == VisitPhase::HandedOver && v.stalled.is_empty())
    );
    all.each_visit_once(&view).await;
    all.passport_verifies(&view).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_survives_the_death_of_both_its_ends() {
    let mut all = Federation::with_trainers(&["uker", "usz"]).await;
    let round = all.agree(&PlanText { epochs: 16, ..PlanText::swt(&["uker", "usz"]) }).await;
    all.sites[0].begin(&round).await.unwrap();
    middle_of(&all.sites[0], &round, 1).await;
    // The receiver dies before there is anything to receive, the sender while it tries to send.
    all.sites[1].kill();
    let contributed = |v: &RoundView| v.visits[0].phase() == VisitPhase::Contributed;
    let view = all.sites[0].round_when(&round, "its contribution", VISIT, contributed).await;
    let weights = view.visits[0].weights.clone();
    all.sites[0].kill();
    all.sites[1].start();
    all.sites[1].ready().await;
    assert_eq!(all.sites[1].round(&round).await.unwrap().phase(), RoundPhase::Running);
    all.sites[0].start();
    all.sites[0].ready().await;
    let view = all.finished(&round, 3 * VISIT).await;
    assert_eq!(view.visits[0].weights, weights, "what was contributed before the crash counts");
    assert_eq!(view.visits[1].parent, weights);
    all.each_visit_once(&view).await;
    all.passport_verifies(&view).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visit_that_was_killed_in_its_middle_gives_the_very_same_model() {
    let mut all = Federation::with_trainers(&["uker"]).await;
    let mut models = Vec::new();
    for killed in ["nobody", "trainer", "daemon", "both"] {
        // Rounds differ by their names alone, and so their visits have the same seed.
        let plan = PlanText { name: killed, epochs: 16, ..PlanText::swt(&["uker"]) };
        let round = all.agree(&plan).await;
        let site = &mut all.sites[0];
        site.ready_to_train().await;
        site.begin(&round).await.unwrap();
        if killed != "nobody" {
            let (update, updates) = middle_of(site, &round, 1).await;
            println!("killed {killed} at update {update} of {updates}");
            if killed != "daemon" {
                site.trainers().iter().for_each(|p| signal(p.pid, Signal::KILL));
            }
            if killed != "trainer" {
                site.kill();
                site.start();
                site.ready().await;
            }
        }
        let view = all.finished(&round, 3 * VISIT).await;
        let said = log::text(&all.sites[0].trainer_log());
        let resumed = said.matches("going on after update").count();
        assert_eq!(resumed, models.len(), "killed {killed}, and it began anew:\n{said}");
        models.push(view.visits[0].weights.clone());
    }
    assert!(models.iter().all(|model| *model == models[0]), "not bit for bit: {models:?}");
}
