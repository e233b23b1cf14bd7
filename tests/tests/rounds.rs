//! What operators do to a round under way, with real daemons: it is paused, resumed and aborted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_proto::control::{RoundPhase, RoundView, VisitPhase};
use rondo_tests::federation::{Federation, SPREAD};
use rondo_tests::hand::digest;
use rondo_tests::material::PlanText;
use rondo_tests::site::{Site, request};
use rondo_tests::stand_in::{Did, StandIn};
use rondo_tests::{eventually, history};
use std::time::Duration;
use tonic::{Code, Response, Status};

fn refused(outcome: Result<Response<RoundView>, Status>, part: &str) {
    let status = outcome.expect_err("it must be refused");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains(part), "`{part}` is not in: {}", status.message());
}

fn stand_ins(all: &Federation) -> Vec<StandIn> {
    all.sites.iter().map(|site| StandIn::of(site, |_| (None, None))).collect()
}

/// Waits until every site has the same history of the round.
async fn same_history(all: &Federation, round: &str) {
    let round = digest(round);
    eventually("the same statements at all sites", SPREAD, async || {
        let told = history::statements(&all.sites[0].home, round);
        all.sites.iter().all(|s| history::statements(&s.home, round) == told).then_some(())
    })
    .await;
}

async fn knows(
    site: &Site,
    round: &str,
    what: &str,
    enough: impl Fn(&RoundView) -> bool,
) -> RoundView {
    site.round_when(round, what, SPREAD, enough).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_round_begins_nothing_and_goes_on_when_it_is_resumed() {
    let all = Federation::without_trainers(&["uker", "stanford", "usz"]).await;
    let trainers = stand_ins(&all);
    let [uker, stanford, usz] = &all.sites[..] else { panic!("three sites") };
    trainers.iter().for_each(|t| t.may_end(false));
    let round = all.agree(&PlanText::swt(&["uker", "stanford", "usz"])).await;
    refused(usz.control().await.resume_round(request(&round)).await, "only who paused it");
    uker.begin(&round).await.unwrap();
    let trains = |v: &RoundView| v.visits[0].phase() == VisitPhase::Training;
    knows(usz, &round, "the first training", trains).await;

    let view = usz.control().await.pause_round(request(&round)).await.unwrap().into_inner();
    assert_eq!(view.paused_by, ["usz"]);
    let paused = |v: &RoundView| v.paused_by == ["usz"] && v.phase() == RoundPhase::Running;
    for site in &all.sites {
        knows(site, &round, "the pause", paused).await;
    }
    // What trains goes on to its end, and no further.
    trainers[0].may_end(true);
    let contributed = |v: &RoundView| v.visits[0].phase() == VisitPhase::Contributed;
    knows(usz, &round, "the contribution", contributed).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let view = stanford.round(&round).await.unwrap();
    assert!(contributed(&view) && view.visits[0].held_by.is_empty(), "{view:?}");
    assert_eq!(trainers[1].did(), []);

    trainers.iter().for_each(|t| t.may_end(true));
    refused(uker.control().await.resume_round(request(&round)).await, "only who paused it");
    usz.control().await.resume_round(request(&round)).await.unwrap();
    let view = all.finished(&round, 2 * SPREAD).await;
    assert!(view.paused_by.is_empty());
    refused(uker.control().await.abort_round(request(&round)).await, "the round is finished");
    same_history(&all, &round).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_round_ends_everywhere_and_stops_what_trains() {
    let mut all = Federation::without_trainers(&["uker", "usz"]).await;
    let trainers = stand_ins(&all);
    trainers[0].may_end(false);
    let round = all.agree(&PlanText::swt(&["uker", "usz"])).await;
    all.sites[0].begin(&round).await.unwrap();
    let trains = |v: &RoundView| v.visits[0].phase() == VisitPhase::Training;
    knows(&all.sites[1], &round, "the first training", trains).await;
    all.sites[1].control().await.abort_round(request(&round)).await.unwrap();
    let aborted = |v: &RoundView| v.phase() == RoundPhase::Aborted && v.aborted_by == ["usz"];
    for site in &all.sites {
        knows(site, &round, "the abort", aborted).await;
    }
    let stopped = async || (trainers[0].did() == [Did::Began(1), Did::Stopped(1)]).then_some(());
    eventually("the training is stopped", SPREAD, stopped).await;
    refused(all.sites[0].control().await.pause_round(request(&round)).await, "was aborted");
    // It stays so after a restart, and the site is free for another round.
    all.sites[0].kill();
    all.sites[0].start();
    assert_eq!(all.sites[0].ready().await.open_rounds, 0);
    assert_eq!(all.sites[0].round(&round).await.unwrap().phase(), RoundPhase::Aborted);
    same_history(&all, &round).await;
}
