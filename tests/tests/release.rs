//! What leaves: nothing that the site's own policy does not let out, nothing before its operator's word
//! where the policy wants it, and no update but the clipped and noised one that was paid for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and writes policies as an operator does"
)]

use rondo::ids::Digest;
use rondo::plan::Plan;
use rondo_proto::control::{ReleaseContributionRequest, RoundView};
use rondo_tests::federation::{Federation, SPREAD, propose, short_folder};
use rondo_tests::material::{PlanText, checkpoint};
use rondo_tests::site::Site;
use rondo_tests::work::Work;
use std::time::Duration;
use tonic::{Code, Status};

/// The exit code of a daemon whose configuration cannot be used.
const CONFIG: i32 = 11;
/// How long a trainer that must get no task is watched.
const QUIET: Duration = Duration::from_secs(2);

/// Two sites, each with the text of a policy, none where it is empty.
async fn sites(policies: [&str; 2]) -> Federation {
    let folder = short_folder();
    let mut sites = Vec::new();
    for (name, policy) in ["uker", "usz"].into_iter().zip(policies) {
        let site = Site::init(folder.path(), name, None);
        if !policy.is_empty() {
            std::fs::write(site.home.join("policy.toml"), policy).unwrap();
        }
        sites.push(site);
    }
    Federation::of(folder, sites).await
}

async fn plan_of(site: &Site, round: &str) -> Plan {
    let view = site.round(round).await.unwrap();
    Plan::from_canonical(view.plan_json.as_bytes()).unwrap()
}

async fn release(site: &Site, round: &str, visit: u32) -> Result<RoundView, Status> {
    let request = ReleaseContributionRequest { round: round.to_owned(), visit };
    site.control().await.release_contribution(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_result_leaves_at_its_operators_word_and_not_before() {
    let mut all = sites(["hold = true\n", ""]).await;
    let round = all.agree(&PlanText::swt(&["uker", "usz"])).await;
    let plan = plan_of(&all.sites[0], &round).await;
    all.sites[0].begin(&round).await.unwrap();
    let mut work = Work::attach(&all.sites[0]).await;
    let task = work.task().await;
    let early = release(&all.sites[0], &round, 1).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    let weights = work.finish(&task, &checkpoint(&plan, 1.0)).await;
    let held = |view: &RoundView| view.visits[0].stalled == "held";
    for site in &all.sites {
        let view = site.round_when(&round, "the hold", SPREAD, held).await;
        assert!(view.visits[0].weights.is_empty());
    }
    let foreign = release(&all.sites[1], &round, 1).await.unwrap_err();
    assert!(foreign.message().contains("no result of visit 1 of this round waits here"));
    drop(work);

    // The result needs no trainer any more, and the hold survives its daemon.
    all.sites[0].kill();
    all.sites[0].start();
    all.sites[0].ready().await;
    tokio::time::sleep(QUIET).await;
    assert!(all.sites[1].round(&round).await.unwrap().visits[0].weights.is_empty());
    release(&all.sites[0], &round, 1).await.unwrap();
    let left = |view: &RoundView| view.visits[0].weights == weights;
    all.sites[1].round_when(&round, "the released model", SPREAD, left).await;
    let here = |view: &RoundView| view.visits[0].held_by.contains(&"usz".to_owned());
    all.sites[0].round_when(&round, "its hand-over", SPREAD, here).await;
    assert!(all.sites[1].stored(&weights).exists());
    let again = release(&all.sites[0], &round, 1).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again}");
}

/// The numbers of a checkpoint.
fn numbers(plan: &Plan, bytes: &[u8]) -> Vec<f64> {
    let words = bytes[plan.layout().header().len()..].chunks_exact(4);
    words.map(|word| f64::from(f32::from_le_bytes(word.try_into().unwrap()))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_clipped_and_noised_until_the_budget_is_spent() {
    let policy = "[update]\nclip = 0.1\nnoise_multiplier = 1.0\ndelta = 1e-5\nepsilon_max = 8.0\n";
    let all = sites(["", policy]).await;
    // Where it would begin with a fresh model, there is no update.
    let first = PlanText::swt(&["usz", "uker"]);
    let refused = propose(&all.sites[1], &first.toml()).await.unwrap_err();
    assert!(refused.message().contains("name a start_checkpoint"), "{refused}");

    let text = PlanText { topology: "cwt", cycles: 3, ..PlanText::swt(&["uker", "usz"]) };
    let round = all.agree(&text).await;
    let plan = plan_of(&all.sites[0], &round).await;
    all.sites[0].begin(&round).await.unwrap();
    let (mut uker, mut usz) =
        (Work::attach(&all.sites[0]).await, Work::attach(&all.sites[1]).await);
    for (visit, total) in [(2, "5.2986"), (4, "7.7862")] {
        let task = uker.task().await;
        let parent = uker.finish(&task, &checkpoint(&plan, 1.0 + visit as f32)).await;
        let task = usz.task().await;
        assert_eq!(task.visit, visit);
        let before = numbers(&plan, &usz.received(&task).await);
        let trained = usz.finish(&task, &checkpoint(&plan, 9.0)).await;
        let index = visit as usize - 1;
        let held = |view: &RoundView| view.visits[index].held_by.contains(&"uker".to_owned());
        let view = all.sites[1].round_when(&round, "the hand-over", SPREAD, held).await;
        let made = &view.visits[index];
        assert_eq!((&made.parent, made.weights == trained), (&parent, false));
        let privacy = format!("privacy epsilon 5.2986 total {total} delta 1e-5");
        let filters = ["clip l2 0.1", "noise gaussian multiplier 1", privacy.as_str()];
        assert_eq!(made.filters, filters);
        assert!(!all.sites[1].stored(&trained).exists(), "the unfiltered model stays nowhere");
        // The clipped update has the norm 0.1, and so has the noise's deviation on each number.
        let bytes = std::fs::read(all.sites[0].stored(&made.weights)).unwrap();
        assert_eq!(Digest::of(&bytes).to_string(), made.weights);
        let after = numbers(&plan, &bytes);
        let moved: f64 = before.iter().zip(&after).map(|(a, b)| (b - a).powi(2)).sum();
        let expected = (0.01 + 0.01 * after.len() as f64).sqrt();
        let share = moved.sqrt() / expected;
        assert!((share - 1.0).abs() < 0.1, "{share} of the norm {expected} that is due");
        let verified = all.sites[0].verify(&made.weights).await.unwrap();
        assert_eq!(verified.hops[index].filters, filters);
    }
    let task = uker.task().await;
    uker.finish(&task, &checkpoint(&plan, 9.0)).await;
    for site in &all.sites {
        let stopped = |view: &RoundView| view.visits[5].stalled == "privacy-budget";
        site.round_when(&round, "the end of the budget", SPREAD, stopped).await;
    }
    assert!(tokio::time::timeout(QUIET, usz.task()).await.is_err(), "work for nothing");
    let log = all.sites[1].log_text();
    assert!(log.contains("would cost ε = 9.8113, and `epsilon_max` in policy.toml is 8"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_read_whole_or_not_at_all_and_held_against_plans() {
    let mut all = sites(["", "peers = [\"stanford\"]\nsize_max_mib = 1\n"]).await;
    let round =
        propose(&all.sites[0], &PlanText::swt(&["uker", "usz"]).toml()).await.unwrap().round;
    all.sites[1].round_when(&round, "the plan", SPREAD, |_| true).await;
    let refused = all.sites[1].approve(&round).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("`peers` does not name uker"), "{refused}");
    let usz = &mut all.sites[1];
    usz.stop();
    std::fs::write(usz.home.join("policy.toml"), "hold = 1\npeer = []\n[update]\n").unwrap();
    let parts = ["policy.toml", "`hold` must be true or false", "unknown key `peer`", "`clip` is"];
    usz.start_refused().says(CONFIG, &parts);
    std::fs::write(usz.home.join("policy.toml"), "peers = [\"uker\"]\n").unwrap();
    usz.start();
    usz.ready().await;
    usz.approve(&round).await.unwrap();
}
