//! Pause, resume and abort.
#![allow(clippy::unwrap_used)]

use super::tests::{Site, running, sites, turn};
use super::*;
use crate::ids::{RoundId, SiteId, VisitNo};
use std::collections::BTreeMap;

fn site<'s>(sites: &'s mut BTreeMap<SiteId, Site>, name: &str) -> &'s mut Site {
    sites.get_mut(&name.parse().unwrap()).unwrap()
}

fn works(sites: &BTreeMap<SiteId, Site>) -> Vec<Effect> {
    let all = sites.values().flat_map(|s| s.state.effects());
    all.filter(|e| !matches!(e, Effect::DeliverReceipts { .. })).collect()
}

fn phases(sites: &BTreeMap<SiteId, Site>, round: RoundId) -> Vec<RoundPhase> {
    sites.values().map(|s| s.state.rounds()[&round].phase()).collect()
}

#[test]
fn only_who_approved_may_steer_and_only_its_own_pause_is_taken_back() {
    let mut sites = sites();
    let round = super::tests::proposed(&mut sites);
    for body in [ReceiptBody::Paused, ReceiptBody::Resumed, ReceiptBody::Aborted] {
        let refusal = site(&mut sites, "usz").tell(round, body).unwrap_err();
        assert!(refusal.to_string().contains("has not approved the plan"), "{refusal}");
    }
    let usz = site(&mut sites, "usz");
    usz.tell(round, ReceiptBody::Approved).unwrap();
    let refusal = usz.tell(round, ReceiptBody::Resumed).unwrap_err();
    assert!(refusal.to_string().contains("only who paused it can resume it"), "{refusal}");
    usz.tell(round, ReceiptBody::Aborted).unwrap();
    while turn(&mut sites) > 0 {}
    assert_eq!(phases(&sites, round), [RoundPhase::Aborted; 3]);
    let refusal = site(&mut sites, "usz").tell(round, ReceiptBody::Paused).unwrap_err();
    assert!(refusal.to_string().contains("was aborted"), "{refusal}");
}

#[test]
fn a_paused_round_ends_what_it_has_begun_and_begins_nothing() {
    let mut sites = sites();
    let round = running(&mut sites);
    let training = ReceiptBody::Training { visit: VisitNo(1) };
    site(&mut sites, "usz").tell(round, ReceiptBody::Paused).unwrap();
    // Word of the pause reaches the first site before it begins.
    for _ in 0..3 {
        let all: Vec<_> =
            sites.values().flat_map(|s| s.state.rounds()[&round].receipts.clone()).collect();
        for (_, told) in all {
            for receipt in told {
                for site in sites.values_mut() {
                    let _ = site.adopt(&Event::Receipt { receipt: receipt.clone() });
                }
            }
        }
    }
    assert!(works(&sites).is_empty(), "{:?}", works(&sites));
    let refusal = site(&mut sites, "uker").tell(round, training.clone()).unwrap_err();
    assert!(refusal.to_string().contains("is paused"), "{refusal}");

    // What has begun goes on to its end, but stays where it is.
    site(&mut sites, "usz").tell(round, ReceiptBody::Resumed).unwrap();
    for _ in 0..2 {
        let deliver = sites.values().flat_map(|s| s.state.rounds()[&round].receipts.clone());
        let all: Vec<_> = deliver.collect();
        for receipt in all.into_iter().flat_map(|(_, told)| told) {
            for site in sites.values_mut() {
                let _ = site.adopt(&Event::Receipt { receipt: receipt.clone() });
            }
        }
    }
    let uker = site(&mut sites, "uker");
    uker.tell(round, training).unwrap();
    uker.tell(round, ReceiptBody::Paused).unwrap();
    while turn(&mut sites) > 0 {}
    let known = &sites[&"usz".parse().unwrap()].state.rounds()[&round];
    assert_eq!(known.visit_phase(&known.visits[0]), VisitPhase::Contributed);
    assert_eq!(known.paused.iter().map(SiteId::as_str).collect::<Vec<_>>(), ["uker"]);
    site(&mut sites, "uker").tell(round, ReceiptBody::Resumed).unwrap();
    while turn(&mut sites) > 0 {}
    assert_eq!(phases(&sites, round), [RoundPhase::Finished; 3]);
}

#[test]
fn an_abort_ends_the_round_everywhere_and_a_late_one_changes_nothing() {
    let mut sites = sites();
    let round = running(&mut sites);
    turn(&mut sites);
    turn(&mut sites);
    site(&mut sites, "stanford").tell(round, ReceiptBody::Aborted).unwrap();
    while turn(&mut sites) > 0 {}
    assert_eq!(phases(&sites, round), [RoundPhase::Aborted; 3]);
    let histories: Vec<_> =
        sites.values().map(|s| s.state.rounds()[&round].receipts.clone()).collect();
    assert!(histories.iter().all(|h| *h == histories[0]));

    let mut sites = super::tests::sites();
    let round = running(&mut sites);
    // Usz aborts while it has not heard of the end; the others have.
    while phases(&sites, round)[0] != RoundPhase::Finished {
        turn(&mut sites);
    }
    let usz = site(&mut sites, "usz");
    let finished = usz.state.rounds()[&round].phase() == RoundPhase::Finished;
    assert_eq!(usz.tell(round, ReceiptBody::Aborted).is_err(), finished);
    while turn(&mut sites) > 0 {}
    assert_eq!(phases(&sites, round), [RoundPhase::Finished; 3]);
}
