//! What arrives: a checkpoint that changed too much, or validates too low, is refused, set aside and not
//! trained on, and every site of the round knows.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo::plan::Plan;
use rondo_proto::control::{CheckStoreRequest, RoundPhase, RoundView, StoreReport};
use rondo_proto::trainer::FailureReason;
use rondo_tests::eventually;
use rondo_tests::federation::{Federation, SPREAD};
use rondo_tests::material::{PlanText, checkpoint};
use rondo_tests::site::Site;
use rondo_tests::work::Work;
use std::time::Duration;

/// How long a trainer that must get no task is watched.
const QUIET: Duration = Duration::from_secs(2);

fn there_and_back(tables: &str) -> PlanText {
    let tables = tables.to_owned();
    PlanText { topology: "cwt", cycles: 2, tables, ..PlanText::swt(&["uker", "usz"]) }
}

async fn plan_of(site: &Site, round: &str) -> Plan {
    let view = site.round(round).await.unwrap();
    Plan::from_canonical(view.plan_json.as_bytes()).unwrap()
}

/// Why a site refused the checkpoint of a visit, as a view says.
fn refused(view: &RoundView, visit: usize) -> Vec<(&str, &str)> {
    let all = view.visits[visit - 1].refused_by.iter();
    all.map(|r| (r.site.as_str(), r.reason.as_str())).collect()
}

async fn store(site: &Site) -> StoreReport {
    let request = CheckStoreRequest { repair: false };
    site.control().await.check_store(request).await.unwrap().into_inner()
}

/// Waits until every site knows that usz refused the checkpoint of a visit, which lies in quarantine.
async fn refused_everywhere(all: &Federation, round: &str, visit: usize, why: &str, weights: &str) {
    for site in &all.sites {
        let known = |view: &RoundView| refused(view, visit) == [("usz", why)];
        let view = site.round_when(round, "the refusal", SPREAD, known).await;
        assert_eq!(view.phase(), RoundPhase::Running, "parked, not ended");
        assert!(!view.visits[visit - 1].held_by.contains(&"usz".to_owned()));
    }
    let usz = &all.sites[1];
    let aside = usz.home.join("store/quarantine").join(format!("{weights}.0"));
    eventually("it is set aside", SPREAD, async || aside.exists().then_some(())).await;
    assert!(!usz.stored(weights).exists());
    let report = store(usz).await;
    assert_eq!(report.quarantined, [format!("{weights}.0")]);
    assert!(report.missing.is_empty() && report.damaged.is_empty(), "{report:?}");
    assert_eq!(usz.verify(weights).await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_beyond_the_norm_is_refused() {
    let mut all = Federation::without_trainers(&["uker", "usz"]).await;
    let count = |plan: &Plan| (plan.layout().len() - plan.layout().header().len() as u64) / 4;
    let plain = Plan::from_toml(&there_and_back("").toml(), 1).unwrap();
    #[allow(clippy::cast_precision_loss)]
    let root = (count(&plain) as f64).sqrt();
    let gate = format!("[gate]\nnorm_max = {:.6}\n", 0.3 * root);
    let round = all.agree(&there_and_back(&gate)).await;
    let plan = plan_of(&all.sites[0], &round).await;
    all.sites[0].begin(&round).await.unwrap();
    let (mut uker, mut usz) =
        (Work::attach(&all.sites[0]).await, Work::attach(&all.sites[1]).await);
    // Each number changes by 0.25, so the norm is 0.25 times the root of their count.
    let task = uker.task().await;
    uker.finish(&task, &checkpoint(&plan, 1.0)).await;
    let task = usz.task().await;
    assert_eq!(usz.received(&task).await, checkpoint(&plan, 1.0), "nothing to compare with");
    usz.finish(&task, &checkpoint(&plan, 1.25)).await;
    let task = uker.task().await;
    assert_eq!(task.visit, 3, "within the norm");
    let weights = uker.finish(&task, &checkpoint(&plan, 1.75)).await;
    refused_everywhere(&all, &round, 3, "norm", &weights).await;
    assert!(tokio::time::timeout(QUIET, usz.task()).await.is_err(), "usz trains");
    drop(usz);

    // After a restart it is still so.
    all.sites[1].kill();
    all.sites[1].start();
    all.sites[1].ready().await;
    let mut usz = Work::attach(&all.sites[1]).await;
    assert!(tokio::time::timeout(QUIET, usz.task()).await.is_err(), "usz trains");
    refused_everywhere(&all, &round, 3, "norm", &weights).await;
    let view = all.sites[1].round(&round).await.unwrap();
    assert!(view.visits[3].weights.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_below_the_floor_is_not_trained_on() {
    let all = Federation::with_trainers(&["uker", "usz"]).await;
    let round = all.agree(&there_and_back("[gate]\nfloor = 1.0\n")).await;
    all.sites[0].begin(&round).await.unwrap();
    let made = |view: &RoundView| !view.visits[0].weights.is_empty();
    let view = all.sites[0].round_when(&round, "the first visit", 4 * SPREAD, made).await;
    refused_everywhere(&all, &round, 1, "floor", &view.visits[0].weights).await;
    let view = all.sites[1].round(&round).await.unwrap();
    assert!(view.visits[1].weights.is_empty() && view.visits[1].stalled.is_empty());
    let log = std::fs::read_to_string(all.sites[1].trainer_log()).unwrap();
    assert!(log.contains("is the least that the plan accepts here; nothing was trained"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_below_what_the_site_had_is_refused() {
    let all = Federation::without_trainers(&["uker", "usz"]).await;
    let round = all.agree(&there_and_back("[gate]\nmax_drop = 0.25\n")).await;
    let plan = plan_of(&all.sites[0], &round).await;
    all.sites[0].begin(&round).await.unwrap();
    let (mut uker, mut usz) =
        (Work::attach(&all.sites[0]).await, Work::attach(&all.sites[1]).await);
    let task = uker.task().await;
    uker.finish(&task, &checkpoint(&plan, 1.0)).await;
    let task = usz.task().await;
    assert_eq!(task.least_dice, None, "usz has no figure yet");
    usz.finish(&task, &checkpoint(&plan, 2.0)).await;
    let task = uker.task().await;
    assert_eq!(task.least_dice, Some(0.5));
    let weights = uker.finish(&task, &checkpoint(&plan, 3.0)).await;
    let task = usz.task().await;
    assert_eq!(task.least_dice, Some(0.5));
    usz.fail(&task, FailureReason::Floor).await;
    refused_everywhere(&all, &round, 3, "floor", &weights).await;
}
