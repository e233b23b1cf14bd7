//! Visits that are passed over.
#![allow(clippy::unwrap_used)]

use super::recover;
use super::tests::{Site, running, running_plan, sites, turn, turn_without};
use super::*;
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::journal::Replay;
use crate::plan::Plan;
use std::collections::BTreeMap;

type Sites = BTreeMap<SiteId, Site>;

fn id(name: &str) -> SiteId {
    name.parse().unwrap()
}

fn site<'s>(sites: &'s mut Sites, name: &str) -> &'s mut Site {
    sites.get_mut(&id(name)).unwrap()
}

fn known(sites: &Sites, at: &str, round: RoundId) -> Round {
    sites[&id(at)].state.rounds()[&round].clone()
}

fn course(round: &Round) -> Vec<u32> {
    round.course().map(|v| v.number.0).collect()
}

fn say(sites: &mut Sites, at: &str, round: RoundId, said: &[(VisitNo, PassReason)]) {
    for (visit, reason) in said {
        let body = ReceiptBody::Passed { visit: *visit, reason: *reason };
        site(sites, at).tell(round, body).unwrap();
    }
}

/// Ends the round with everybody there, and checks that all sites agree on everything.
fn ends_alike(sites: &mut Sites, round: RoundId) -> Round {
    let mut turns = 0;
    while turn(sites) > 0 {
        turns += 1;
        assert!(turns < 100, "the round does not end");
    }
    let first = known(sites, "uker", round);
    assert_eq!(first.phase(), RoundPhase::Finished);
    for site in sites.values() {
        let here = &site.state.rounds()[&round];
        assert_eq!(here.receipts, first.receipts, "{}", site.id);
        assert_eq!((course(here), here.phase()), (course(&first), first.phase()), "{}", site.id);
        let mut replay = Replay::default();
        for record in &site.records {
            replay.adopt(record).unwrap();
        }
        assert_eq!(replay.finish().0, site.state, "replay differs at {}", site.id);
    }
    first
}

#[test]
fn who_may_pass_over_what() {
    let mut sites = sites();
    let round = running(&mut sites);
    let absent = |n| ReceiptBody::Passed { visit: VisitNo(n), reason: PassReason::Absent };
    let lost = |n| ReceiptBody::Passed { visit: VisitNo(n), reason: PassReason::Lost };
    let refused = |sites: &mut Sites, at: &str, body, part: &str| {
        let refusal = site(sites, at).tell(round, body).unwrap_err().to_string();
        assert!(refusal.contains(part), "{refusal}");
    };
    refused(&mut sites, "uker", absent(1), "not for this site");
    refused(&mut sites, "uker", absent(9), "no such visit");
    refused(&mut sites, "usz", absent(1), "not running");
    turn_without(&mut sites, &["stanford"]);
    turn_without(&mut sites, &["stanford"]);
    // Uker contributed visit 1, so the next is its to pass over, and no other site's.
    refused(&mut sites, "usz", absent(2), "not for this site");
    refused(&mut sites, "usz", lost(5), "not for this site");
    refused(&mut sites, "uker", absent(3), "not for this site");
    refused(
        &mut sites,
        "uker",
        ReceiptBody::Passed { visit: VisitNo(6), reason: PassReason::Refused },
        "not for this site",
    );
    // Stanford has taken the checkpoint: it may take as long as it likes.
    let weights = known(&sites, "uker", round).visits[0].weights().unwrap();
    let receipt = {
        let round_of = ReceiptBody::Received { visit: VisitNo(1), weights };
        site(&mut sites, "stanford").tell(round, round_of).unwrap();
        known(&sites, "stanford", round).receipts[&id("stanford")].clone()
    };
    for receipt in receipt {
        site(&mut sites, "uker").adopt(&Event::Receipt { receipt }).unwrap();
    }
    refused(&mut sites, "uker", absent(2), "only `rondo round recover` passes it over");
    site(&mut sites, "uker").tell(round, lost(2)).unwrap();
    assert_eq!(known(&sites, "uker", round).turn().unwrap().number, VisitNo(3));
}

#[test]
fn a_round_goes_on_without_an_absent_site_which_finds_its_turn_gone() {
    let mut sites = sites();
    let round = running(&mut sites);
    for _ in 0..3 {
        turn_without(&mut sites, &["stanford"]);
    }
    let said = known(&sites, "uker", round).expiry(&id("uker"));
    assert_eq!(said, [(VisitNo(2), PassReason::Absent)]);
    say(&mut sites, "uker", round, &said);
    for _ in 0..10 {
        turn_without(&mut sites, &["stanford"]);
    }
    let at = known(&sites, "usz", round);
    assert_eq!(course(&at), [1, 3, 4]);
    let roster = sites[&id("usz")].state.roster().clone();
    assert_eq!(at.passport(VisitNo(4)).unwrap().verify(&roster).unwrap().hops().len(), 3);
    assert_eq!(at.visit_phase(&at.visits[1]), VisitPhase::PassedOver);
    // It comes back, and takes part again from its next visit on.
    let end = ends_alike(&mut sites, round);
    assert_eq!(course(&end), [1, 3, 4, 5, 6]);
}

/// Visit 2 is contributed and passed over at once. `goes_on` is the one that visit 3 trains from.
fn contest(goes_on: u32) -> (Sites, RoundId) {
    let mut sites = sites();
    let round = running(&mut sites);
    turn(&mut sites);
    turn_without(&mut sites, &["usz"]);
    // Stanford has the checkpoint and trains; uker believes it lost.
    assert_eq!(known(&sites, "stanford", round).turn().unwrap().number, VisitNo(2));
    turn_without(&mut sites, &["uker", "usz"]);
    say(&mut sites, "uker", round, &[(VisitNo(2), PassReason::Lost)]);
    let away = if goes_on == 2 { "uker" } else { "stanford" };
    for _ in 0..3 {
        turn_without(&mut sites, &[away]);
    }
    (sites, round)
}

#[test]
fn a_contested_visit_stands_if_the_next_one_was_trained_from_it() {
    for (goes_on, expected) in [(2, vec![1, 2, 3]), (1, vec![1, 3])] {
        let (mut sites, round) = contest(goes_on);
        let at = known(&sites, "usz", round);
        assert!(at.visits[2].contribution.is_some(), "usz trained from visit {goes_on}");
        let end = ends_alike(&mut sites, round);
        assert_eq!(course(&end)[..expected.len()], expected);
        assert!(end.visits[1].contribution.is_some() && !end.visits[1].passed.is_empty());
        let roster = sites[&id("usz")].state.roster().clone();
        let hops = end.passport(VisitNo(6)).unwrap().verify(&roster).unwrap().hops().len();
        assert_eq!(hops, course(&end).len());
    }
}

#[test]
fn what_trains_on_when_it_was_passed_over_comes_to_nothing() {
    let mut sites = sites();
    let round = running(&mut sites);
    turn(&mut sites);
    turn_without(&mut sites, &["usz"]);
    let stanford = site(&mut sites, "stanford");
    let received = stanford.state.rounds()[&round].visits[0].weights();
    stanford.tell(round, ReceiptBody::Training { visit: VisitNo(2) }).unwrap();
    let trained = stanford.manifest(round, VisitNo(2), received);
    say(&mut sites, "uker", round, &[(VisitNo(2), PassReason::Lost)]);
    let told = known(&sites, "uker", round).receipts[&id("uker")].clone();
    let stanford = site(&mut sites, "stanford");
    for receipt in told {
        stanford.adopt(&Event::Receipt { receipt }).unwrap();
    }
    let trains = |e: &Effect| matches!(e, Effect::Train { .. });
    assert!(!stanford.state.effects().iter().any(trains), "its training is stopped");
    let manifest = trained.sign(&stanford.key).unwrap();
    let refusal = stanford.tell(round, ReceiptBody::Contributed { manifest }).unwrap_err();
    assert!(refusal.to_string().contains("passed over"), "{refusal}");
    assert_eq!(course(&ends_alike(&mut sites, round)), [1, 3, 4, 5, 6]);
}

#[test]
fn a_passport_with_a_gap_needs_genuine_statements() {
    let (mut sites, round) = contest(1);
    let end = ends_alike(&mut sites, round);
    let roster = sites[&id("usz")].state.roster().clone();
    let good = end.passport(VisitNo(6)).unwrap();
    assert!(!good.passes.is_empty() && good.verify(&roster).is_ok());
    let bytes = good.to_json();
    assert_eq!(crate::passport::Passport::from_json(&bytes), Ok(good.clone()));
    let code = |p: &crate::passport::Passport| p.verify(&roster).unwrap_err().code();

    let mut missing = good.clone();
    missing.passes.clear();
    assert_eq!(code(&missing), "passport-signature");
    let statement = |sites: &Sites, by: &str, named: &str, round: RoundId, body: ReceiptBody| {
        let receipt = Receipt { round, site: id(named), number: 9, at: 1, body };
        receipt.sign(&sites[&id(by)].key).unwrap()
    };
    let pass = |visit, reason| ReceiptBody::Passed { visit: VisitNo(visit), reason };
    let other = Digest::of(b"another round");
    for (what, envelope) in [
        ("forged", statement(&sites, "usz", "uker", round, pass(2, PassReason::Lost))),
        ("of another round", statement(&sites, "uker", "uker", other, pass(2, PassReason::Lost))),
        (
            "by the site itself",
            statement(&sites, "stanford", "stanford", round, pass(2, PassReason::Lost)),
        ),
        ("something else", statement(&sites, "uker", "uker", round, ReceiptBody::Started)),
        ("of no visit", statement(&sites, "uker", "uker", round, pass(7, PassReason::Lost))),
    ] {
        let mut bad = good.clone();
        bad.passes = vec![envelope];
        assert!(["passport-pass", "passport-signature"].contains(&code(&bad)), "{what}");
    }
    let mut another = good.clone();
    another.passes = vec![statement(&sites, "uker", "uker", round, pass(5, PassReason::Absent))];
    assert_eq!(code(&another), "passport-signature", "it is about another visit");
}

#[test]
fn recovery_says_who_has_the_model_and_goes_on_without_the_lost() {
    let mut sites = sites();
    let round = running(&mut sites);
    let recover = |sites: &Sites, at: &str, without: Option<&str>| {
        known(sites, at, round).recovery(&id(at), without.map(id).as_ref())
    };
    for _ in 0..3 {
        turn_without(&mut sites, &["stanford"]);
    }
    let elsewhere = recover::Error::Elsewhere { visit: VisitNo(1), site: id("uker") };
    assert_eq!(recover(&sites, "usz", None), Err(elsewhere.clone()));
    assert!(elsewhere.to_string().contains("uker has it. Run `rondo round recover` there"));
    assert_eq!(recover(&sites, "uker", Some("uker")), Err(recover::Error::Site(id("uker"))));
    assert_eq!(recover(&sites, "uker", Some("usz")), Err(recover::Error::NotAwaited(id("usz"))));
    assert_eq!(recover(&sites, "uker", None), Ok(vec![(VisitNo(2), PassReason::Lost)]));
    let said = recover(&sites, "uker", Some("stanford")).unwrap();
    assert_eq!(said, [(VisitNo(2), PassReason::Lost), (VisitNo(5), PassReason::Lost)]);
    say(&mut sites, "uker", round, &said);
    for _ in 0..20 {
        turn_without(&mut sites, &["stanford"]);
    }
    for at in ["uker", "usz"] {
        let end = known(&sites, at, round);
        assert_eq!((course(&end), end.phase()), (vec![1, 3, 4, 6], RoundPhase::Finished), "{at}");
    }

    // The site that contributed and was lost before it handed over: the one before it goes on.
    let mut sites = super::tests::sites();
    let round = running(&mut sites);
    turn(&mut sites);
    turn_without(&mut sites, &["usz"]);
    turn_without(&mut sites, &["usz"]);
    turn_without(&mut sites, &["usz"]);
    let at = known(&sites, "uker", round);
    assert_eq!(course(&at), [1, 2]);
    let said = at.recovery(&id("uker"), Some(&id("stanford"))).unwrap();
    assert_eq!(said, [(VisitNo(2), PassReason::Lost), (VisitNo(5), PassReason::Lost)]);
    say(&mut sites, "uker", round, &said);
    for _ in 0..20 {
        turn_without(&mut sites, &["stanford"]);
    }
    let end = known(&sites, "usz", round);
    assert_eq!((course(&end), end.phase()), (vec![1, 3, 4, 6], RoundPhase::Finished));
}

#[test]
fn the_end_does_not_wait_for_a_lost_site() {
    let mut sites = sites();
    let round = running(&mut sites);
    while known(&sites, "usz", round).tip().is_none_or(|tip| tip.number != VisitNo(6)) {
        turn(&mut sites);
    }
    for _ in 0..5 {
        turn_without(&mut sites, &["stanford"]);
    }
    let at = known(&sites, "usz", round);
    assert_eq!(at.phase(), RoundPhase::Running);
    assert_eq!(at.recovery(&id("usz"), None), Err(recover::Error::Unnamed));
    let said = at.recovery(&id("usz"), Some(&id("stanford"))).unwrap();
    assert_eq!(said, [(VisitNo(5), PassReason::Lost)]);
    say(&mut sites, "usz", round, &said);
    // The best model of the sites that are left comes round.
    for _ in 0..5 {
        turn_without(&mut sites, &["stanford"]);
    }
    let at = known(&sites, "usz", round);
    assert_eq!((course(&at).len(), at.phase()), (6, RoundPhase::Finished));
}

#[test]
fn an_absent_site_is_asked_about_only_where_the_plan_says_so() {
    let expires = |sites: &Sites| -> Vec<(SiteId, Effect)> {
        let of = |(id, s): (&SiteId, &Site)| {
            let all = s.state.effects().into_iter();
            all.filter(|e| matches!(e, Effect::Expire { .. })).map(|e| (id.clone(), e)).collect()
        };
        sites.iter().flat_map(|s| -> Vec<_> { of(s) }).collect()
    };
    let mut all = sites();
    let round = running(&mut all);
    turn_without(&mut all, &["stanford"]);
    assert_eq!(expires(&all), [], "it is waited for");

    let mut all = sites();
    let text = crate::plan::tests::THREE_SITES
        .replace("seed = 7", "seed = 7\nabsent = \"skip\"\nabsent_after_hours = 0.5");
    let round_skip = running_plan(&mut all, &Plan::from_toml(&text, 1).unwrap());
    assert_ne!(round, round_skip);
    for _ in 0..3 {
        turn_without(&mut all, &["stanford"]);
    }
    // Receipts of these tests are of second 1.
    let due = Effect::Expire { round: round_skip, visit: VisitNo(2), at: 1801 };
    assert_eq!(expires(&all), [(id("uker"), due.clone())]);
    site(&mut all, "usz").tell(round_skip, ReceiptBody::Paused).unwrap();
    turn_without(&mut all, &["stanford"]);
    assert_eq!(expires(&all), [], "nobody is absent in a pause");
    site(&mut all, "usz").tell(round_skip, ReceiptBody::Resumed).unwrap();
    turn_without(&mut all, &["stanford"]);
    assert_eq!(expires(&all), [(id("uker"), due)]);
    turn(&mut all);
    turn(&mut all);
    let second = |e: &(SiteId, Effect)| matches!(e.1, Effect::Expire { visit: VisitNo(2), .. });
    assert!(!expires(&all).iter().any(second), "it has the checkpoint");
}
