//! What operators do to a round under way, with real daemons: it is paused, resumed,
//! aborted, and goes on without a site that is absent or lost.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_proto::control::{RecoverRequest, RoundPhase, RoundView, VisitPhase};
use rondo_tests::federation::{Federation, SPREAD, exported, propose};
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

/// Proposes `plan` with further lines at the first site, and lets every site approve it.
async fn agree(all: &Federation, plan: &PlanText, lines: &str) -> String {
    let text = plan.toml().replace("[recipe]", &format!("{lines}\n[recipe]"));
    let round = propose(&all.sites[0], &text).await.expect("a sound plan").round;
    for site in &all.sites {
        site.round_when(&round, "the plan", SPREAD, |_| true).await;
        site.approve(&round).await.expect("approved");
    }
    for site in &all.sites {
        let approved = |view: &RoundView| view.phase() == RoundPhase::Approved;
        site.round_when(&round, "every approval", SPREAD, approved).await;
    }
    round
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_site_is_passed_over_and_gets_the_result_when_it_is_back() {
    let mut all = Federation::without_trainers(&["uker", "stanford", "usz"]).await;
    let trainers = stand_ins(&all);
    let plan = PlanText::swt(&["uker", "stanford", "usz"]);
    // 3.6 seconds without any progress.
    let round = agree(&all, &plan, "absent = \"skip\"\nabsent_after_hours = 0.001").await;
    all.sites[1].kill();
    all.sites[0].begin(&round).await.unwrap();
    let third = |v: &RoundView| v.visits[2].phase() == VisitPhase::Contributed;
    let view = knows(&all.sites[0], &round, "the last contribution", third).await;
    let second = &view.visits[1];
    assert_eq!(second.phase(), VisitPhase::PassedOver, "{second:?}");
    assert_eq!(
        (second.passed.as_str(), &second.passed_by[..]),
        ("absent", &["uker".to_owned()][..])
    );
    assert_eq!(view.visits[2].parent, view.visits[0].weights);

    all.sites[1].start();
    all.sites[1].ready().await;
    let view = all.finished(&round, 2 * SPREAD).await;
    assert!(view.visits[1].weights.is_empty());
    assert_eq!(trainers[1].did(), [], "its turn was over");
    let roster = all.roster().await;
    for site in &all.sites {
        assert_eq!(exported(site, &view.visits[2].weights, &roster).await.hops().len(), 2);
    }
    same_history(&all, &round).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_is_recovered_without_the_site_that_held_the_newest_model() {
    let mut all = Federation::without_trainers(&["uker", "stanford", "usz"]).await;
    let trainers = stand_ins(&all);
    trainers[1].may_end(false);
    let plan =
        PlanText { topology: "cwt", cycles: 2, ..PlanText::swt(&["uker", "stanford", "usz"]) };
    let round = all.agree(&plan).await;
    let recover = async |site: &Site, without: &str| {
        let request = RecoverRequest { round: round.clone(), without: without.to_owned() };
        site.control().await.recover_round(request).await
    };
    refused(recover(&all.sites[0], "stanford").await, "the round is not running");
    all.sites[0].begin(&round).await.unwrap();
    let trains = |v: &RoundView| v.visits[1].phase() == VisitPhase::Training;
    knows(&all.sites[0], &round, "the second training", trains).await;
    knows(&all.sites[2], &round, "the second training", trains).await;
    all.sites[1].kill();
    refused(
        recover(&all.sites[2], "stanford").await,
        "uker has it. Run `rondo round recover` there",
    );
    refused(
        recover(&all.sites[0], "usz").await,
        "stanford has the checkpoint of visit 1 and goes on",
    );
    let view = recover(&all.sites[0], "stanford").await.unwrap().into_inner();
    assert_eq!(view.visits[1].passed, "lost");

    let finished = |v: &RoundView| v.phase() == RoundPhase::Finished;
    for site in [&all.sites[0], &all.sites[2]] {
        let view = site.round_when(&round, "the end of the round", 2 * SPREAD, finished).await;
        let standing: Vec<u32> =
            view.visits.iter().filter(|v| !v.weights.is_empty()).map(|v| v.visit).collect();
        assert_eq!(standing, [1, 3, 4, 6], "at {}", site.name);
        let roster = all.roster().await;
        assert_eq!(exported(site, &view.visits[5].weights, &roster).await.hops().len(), 4);
    }
    // It comes back after all: its training is called off, and it contributes nothing.
    all.sites[1].start();
    all.sites[1].ready().await;
    all.finished(&round, SPREAD).await;
    trainers[1].may_end(true);
    same_history(&all, &round).await;
    assert!(!trainers[1].did().contains(&Did::Ended(2)), "{:?}", trainers[1].did());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drawn_order_is_the_same_at_every_site() {
    let all = Federation::without_trainers(&["uker", "stanford", "usz"]).await;
    let _trainers = stand_ins(&all);
    let plan =
        PlanText { topology: "cwt", cycles: 3, ..PlanText::swt(&["uker", "stanford", "usz"]) };
    let round = agree(&all, &plan, "order = \"seeded\"").await;
    all.sites[2].begin(&round).await.unwrap();
    let view = all.finished(&round, 2 * SPREAD).await;
    let order: Vec<&str> = view.visits.iter().map(|v| v.site.as_str()).collect();
    println!("seed {}: {order:?}", rondo_tests::seed());
    assert!(order.windows(2).all(|w| w[0] != w[1]), "{order:?}");
    for site in &all.sites {
        assert_eq!(site.round(&round).await.unwrap().visits, view.visits);
    }
}
