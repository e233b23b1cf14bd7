//! What goes wrong among people and clocks, and what is said then.
#![allow(clippy::unwrap_used)]

use super::tests::{Site, proposed, running, sites, turn};
use super::*;
use crate::envelope::SigningKey;
use crate::ids::{Digest, SiteId, VisitNo};
use std::collections::BTreeMap;

fn id(name: &str) -> SiteId {
    name.parse().unwrap()
}

fn site<'s>(sites: &'s mut BTreeMap<SiteId, Site>, name: &str) -> &'s mut Site {
    sites.get_mut(&id(name)).unwrap()
}

#[test]
fn an_approval_of_another_plan_counts_for_nothing() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let other = Digest::of(b"a plan that nobody brought here");
    let usz = &sites[&id("usz")];
    let receipt = usz.receipt(other, ReceiptBody::Approved);
    let refusal = site(&mut sites, "uker").adopt(&Event::Receipt { receipt }).unwrap_err();
    assert_eq!(refusal.to_string(), format!("round {} is not known here", other.short()));
    let here = &sites[&id("uker")].state.rounds()[&round];
    assert!(here.approvals.is_empty() && here.phase() == RoundPhase::Proposed);
}

#[test]
fn a_site_approves_with_the_key_of_its_card_and_once() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let stranger = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let usz = &sites[&id("usz")];
    let mut receipt =
        Receipt { round, site: id("usz"), number: 1, at: 1, body: ReceiptBody::Approved };
    let forged = receipt.sign(&stranger).unwrap();
    let genuine = receipt.sign(&usz.key).unwrap();
    receipt.number = 2;
    let again = [receipt.sign(&stranger).unwrap(), receipt.sign(&usz.key).unwrap()];
    let uker = site(&mut sites, "uker");
    let refused = |uker: &mut Site, receipt: &crate::envelope::Envelope| {
        let refusal = uker.adopt(&Event::Receipt { receipt: receipt.clone() }).unwrap_err();
        assert!(refusal.to_string().contains("signature"), "{refusal}");
    };
    refused(uker, &forged);
    uker.adopt(&Event::Receipt { receipt: genuine }).unwrap();
    refused(uker, &again[0]);
    uker.adopt(&Event::Receipt { receipt: again[1].clone() }).unwrap();
    assert_eq!(uker.state.rounds()[&round].approvals.len(), 1);
}

#[test]
fn two_operators_start_a_round_and_it_runs_once() {
    let mut sites = sites();
    let round = running(&mut sites);
    site(&mut sites, "usz").tell(round, ReceiptBody::Started).unwrap();
    let mut turns = 0;
    while turn(&mut sites) > 0 {
        turns += 1;
        assert!(turns < 100, "the round does not end");
    }
    for site in sites.values() {
        let here = &site.state.rounds()[&round];
        assert_eq!((here.phase(), here.course().count()), (RoundPhase::Finished, 6));
    }
}

#[test]
fn a_round_stands_still_at_a_site_that_revokes_another_of_it() {
    let mut sites = sites();
    let round = running(&mut sites);
    turn(&mut sites);
    let uker = site(&mut sites, "uker");
    uker.adopt(&Event::PeerRevoked { site: id("stanford") }).unwrap();
    let to_it = |e: &Effect| matches!(e, Effect::HandOver { to, .. } | Effect::DeliverReceipts { to, .. } if *to == id("stanford"));
    assert!(!uker.state.effects().iter().any(to_it), "nothing more goes to it");
    let receipt = sites[&id("stanford")].receipt(round, ReceiptBody::Paused);
    let uker = site(&mut sites, "uker");
    let refusal = uker.adopt(&Event::Receipt { receipt }).unwrap_err();
    assert!(refusal.to_string().contains("revoked"), "{refusal}");
    let passport = uker.state.rounds()[&round].passport(VisitNo(1)).unwrap();
    assert_eq!(passport.verify(uker.state.roster()).unwrap_err().code(), "passport-signer-revoked");
    // Its operator can still end the round for all.
    uker.tell(round, ReceiptBody::Aborted).unwrap();
    while turn(&mut sites) > 0 {}
    assert_eq!(sites[&id("usz")].state.rounds()[&round].phase(), RoundPhase::Aborted);
}

#[test]
fn a_clock_an_hour_off_changes_nothing() {
    let mut sites = sites();
    let round = running(&mut sites);
    turn(&mut sites);
    turn(&mut sites);
    let usz = site(&mut sites, "usz");
    let number = u32::try_from(usz.state.rounds()[&round].receipts[&id("usz")].len()).unwrap() + 1;
    for (number, at, body) in
        [(number, 3601, ReceiptBody::Paused), (number + 1, 0, ReceiptBody::Resumed)]
    {
        let receipt = Receipt { round, site: id("usz"), number, at, body };
        let receipt = receipt.sign(&usz.key).unwrap();
        usz.adopt(&Event::Receipt { receipt }).unwrap();
    }
    let mut turns = 0;
    while turn(&mut sites) > 0 {
        turns += 1;
        assert!(turns < 100, "the round does not end");
    }
    assert_eq!(sites[&id("uker")].state.rounds()[&round].phase(), RoundPhase::Finished);
}
