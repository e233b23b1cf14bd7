//! Methods against forgetting among real sites, and what an operator sees of them while they train.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo::plan::Plan;
use rondo_proto::control::ProgressView;
use rondo_tests::federation::{Federation, exported};
use rondo_tests::material::PlanText;
use rondo_tests::site::{Site, request};
use std::time::Duration;
use tokio_stream::StreamExt as _;

/// How long a visit of this tiny round may take on a busy machine.
const VISIT: Duration = Duration::from_secs(60);

/// The first progress of `visit` that shows how far parameters are from those received.
async fn pulled(site: &Site, round: &str, visit: u32) -> ProgressView {
    let answer = site.control().await.watch_round(request(round)).await.unwrap();
    let seen = answer.into_inner().filter_map(|view| view.unwrap().progress);
    let mut seen = std::pin::pin!(seen.filter(|p| p.visit == visit && p.penalty > 0.0));
    let first = tokio::time::timeout(3 * VISIT, seen.next()).await;
    first.expect("the visit shows its penalty").expect("a stream without end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn importance_travels_and_every_figure_is_seen() {
    let all = Federation::with_trainers(&["uker", "usz"]).await;
    let text = PlanText { method: "mas", epochs: 16, ..PlanText::swt(&["uker", "usz"]) };
    let round = all.agree(&text).await;
    all.sites[0].begin(&round).await.unwrap();

    let seen = pulled(&all.sites[1], &round, 2).await;
    assert!(seen.cross_entropy > 0.0 && seen.vss > 0.0 && seen.kdl == 0.0, "{seen:?}");
    assert!(seen.update > 1 && seen.updates >= seen.update && seen.epochs == 16, "{seen:?}");
    assert!(
        (seen.learning_rate - 1e-3).abs() < 1e-12 && seen.segments_per_second > 0.0,
        "{seen:?}"
    );
    assert!(seen.validation_dice.is_some(), "the received model was validated: {seen:?}");
    assert!(seen.memory_mib.is_some_and(|mib| mib > 0), "{seen:?}");
    assert!(seen.eta_seconds > 0.0 || seen.update == seen.updates, "{seen:?}");

    let view = all.finished(&round, 3 * VISIT).await;
    let plan = Plan::from_canonical(view.plan_json.as_bytes()).unwrap();
    assert_eq!(plan.recipe.method.name(), "mas");
    let names = plan.layout();
    assert_eq!(names.tensors().iter().filter(|t| t.name.starts_with("importance.")).count(), 56);
    // Verification holds the weights to the plan's layout, importance included.
    let roster = all.roster().await;
    for visit in &view.visits {
        let passport = exported(&all.sites[0], &visit.weights, &roster).await;
        assert_eq!(passport.last().weights.bytes, plan.layout().len());
    }
}
