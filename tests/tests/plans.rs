//! Nothing runs that not every named site approved, and a plan that cannot run does not get so far.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_proto::control::{ListRoundsRequest, RoundPhase, RoundView, VisitPhase};
use rondo_tests::federation::{Federation, SPREAD, propose};
use rondo_tests::material::PlanText;
use rondo_tests::site::Site;
use std::time::Duration;
use tonic::{Code, Status};

fn refused(outcome: Result<RoundView, Status>, code: Code, parts: &[&str]) {
    let status = outcome.expect_err("it must be refused");
    assert_eq!(status.code(), code, "{status:?}");
    for part in parts {
        assert!(status.message().contains(part), "`{part}` is not in: {}", status.message());
    }
}

async fn rounds(site: &Site) -> usize {
    let answer = site.control().await.list_rounds(ListRoundsRequest {}).await.unwrap();
    answer.into_inner().rounds.len()
}

#[tokio::test]
async fn a_plan_that_cannot_run_is_refused_with_every_reason() {
    let mut all = Federation::without_trainers(&["uker", "usz"]).await;
    let records = all.sites[0].ready().await.journal_records;
    let uker = &all.sites[0];
    let invalid = Code::InvalidArgument;
    let good = PlanText::swt(&["uker", "usz"]);
    let text = good.toml();

    let zero = PlanText { topology: "cwt", cycles: 0, ..good.clone() }.toml();
    let parts = ["line 4", "`cycles` is 0, but must lie between 1 and 100"];
    refused(propose(uker, &zero).await, invalid, &parts);
    let unknown = text.replace("cycles = 1", "cycles = 1\nspeed = 3");
    refused(propose(uker, &unknown).await, invalid, &["line 5: unknown key `speed`"]);
    let several =
        text.replace("cycles = 1", "cycles = 1\nspeed = 3").replace("epochs = 1", "epochs = 0");
    let several = several.replace("\"swt\"", "\"ring\"");
    let parts = ["3 problems", "unknown key `speed`", "`epochs` is 0", "`topology`: choose `swt`"];
    refused(propose(uker, &several).await, invalid, &parts);
    refused(propose(uker, "name = ").await, invalid, &["line 1"]);
    refused(propose(uker, "").await, invalid, &["`sites` is missing", "`recipe` is missing"]);

    let stranger = PlanText::swt(&["uker", "nowhere"]).toml();
    let parts = ["nowhere is not in the roster", "rondo peer add"];
    refused(propose(uker, &stranger).await, Code::PermissionDenied, &parts);
    let without = PlanText::swt(&["usz"]).toml();
    refused(
        propose(uker, &without).await,
        Code::PermissionDenied,
        &["uker takes no part in round"],
    );

    for site in &mut all.sites {
        assert_eq!(rounds(site).await, 0, "{}", site.name);
    }
    assert_eq!(all.sites[0].ready().await.journal_records, records, "nothing was recorded");
}

#[tokio::test]
async fn a_round_runs_only_when_all_approved_and_somebody_starts_it() {
    let all = Federation::without_trainers(&["uker", "usz", "stanford"]).await;
    let [uker, usz, stanford] = &all.sites[..] else { panic!("three sites") };
    let plan = PlanText::swt(&["uker", "usz"]);
    let round = propose(uker, &plan.toml()).await.unwrap().round;
    let failed = Code::FailedPrecondition;

    // Proposed by one is approved by one.
    let approved = |view: &RoundView| !view.approved_by.is_empty();
    let view = usz.round_when(&round, "the plan", SPREAD, approved).await;
    assert_eq!(
        (view.phase(), view.approved_by.as_slice()),
        (RoundPhase::Proposed, &["uker".to_owned()][..])
    );
    for site in [uker, usz] {
        refused(site.begin(&round).await, failed, &["not every site of the plan has approved it"]);
    }
    refused(usz.begin(&"0".repeat(64)).await, Code::NotFound, &["no round here"]);
    refused(usz.approve(&round[..5]).await, Code::InvalidArgument, &["at least 6 digits"]);

    // A changed plan is another round, and nobody's approval carries over.
    let changed =
        propose(uker, &PlanText { epochs: 2, ..plan.clone() }.toml()).await.unwrap().round;
    assert_ne!(changed, round);
    usz.round_when(&changed, "the changed plan", SPREAD, |_| true).await;
    usz.approve(&round).await.unwrap();
    let approved = |view: &RoundView| view.phase() == RoundPhase::Approved;
    uker.round_when(&round, "both approvals", SPREAD, approved).await;
    for site in [uker, usz] {
        refused(site.begin(&changed).await, failed, &["not every site"]);
        assert_eq!(site.round(&changed).await.unwrap().phase(), RoundPhase::Proposed);
    }

    // Approved by all is not started; approving again changes nothing.
    usz.approve(&round).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for site in [uker, usz] {
        let view = site.round(&round).await.unwrap();
        assert_eq!(view.phase(), RoundPhase::Approved, "at {}", site.name);
        assert!(view.visits.iter().all(|v| v.phase() == VisitPhase::Approved));
    }
    usz.begin(&round).await.unwrap();
    let running = |view: &RoundView| view.phase() == RoundPhase::Running;
    for site in [uker, usz] {
        site.round_when(&round, "the start", SPREAD, running).await;
        assert_eq!(site.round(&changed).await.unwrap().phase(), RoundPhase::Proposed);
    }

    // A site that the plan does not name learns nothing and cannot take part.
    assert_eq!(rounds(stanford).await, 0);
    refused(stanford.approve(&round).await, Code::NotFound, &["no round here"]);
}
