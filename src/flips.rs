//! Every bit of everything that is signed or chained is flipped, and every length cut: nothing damaged
//! is ever taken for something else. On genuine bytes that version 0.1 wrote.
#![allow(clippy::unwrap_used)]

use crate::checkpoint::{Extras, Layout};
use crate::envelope::{self, Envelope};
use crate::ids::VisitNo;
use crate::journal::{Record, Tip};
use crate::manifest::Manifest;
use crate::passport::Passport;
use crate::plan::Plan;
use crate::recipe::Architecture;
use crate::round::{Event, Receipt};
use crate::trust::{Roster, SiteCard};

const PASSPORT: &[u8] = include_bytes!("fixtures/0.1/passport.json");
const CARDS: &[u8] = include_bytes!("fixtures/0.1/cards.json");

struct Genuine {
    cards: Vec<Envelope>,
    passport: Passport,
    plan: Plan,
    roster: Roster,
}

impl Genuine {
    fn read() -> Self {
        let cards: Vec<Envelope> = serde_json::from_slice(CARDS).unwrap();
        let passport = Passport::from_json(PASSPORT).unwrap();
        let plan = Plan::from_canonical(passport.plan.as_bytes()).unwrap();
        let roster = Roster::of(cards.clone()).unwrap();
        Self { cards, passport, plan, roster }
    }
}

/// Whether `accepts` takes no flipped bit and no cut of `bytes`, and takes `bytes`. On every processor,
/// for each signature is verified anew.
fn refuses_all_damage(what: &str, bytes: &[u8], accepts: impl Fn(&[u8]) -> bool + Sync) {
    refuses_damage(what, bytes, 8, accepts);
}

/// The same with so many bits of each byte, beginning with another one in each.
fn refuses_damage(what: &str, bytes: &[u8], bits: usize, accepts: impl Fn(&[u8]) -> bool + Sync) {
    assert!(accepts(bytes), "{what}: whole");
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let accepts = &accepts;
            scope.spawn(move || {
                let mut bad = bytes.to_vec();
                for at in (worker..bytes.len()).step_by(workers) {
                    for bit in (at..at + bits).map(|bit| bit % 8) {
                        bad[at] ^= 1 << bit;
                        assert!(!accepts(&bad), "{what}: bit {bit} of byte {at}");
                        bad[at] ^= 1 << bit;
                    }
                    assert!(!accepts(&bytes[..at]), "{what}: cut at {at}");
                }
            });
        }
    });
    assert!(!accepts(&[bytes, b"x"].concat()), "{what}: with a byte more");
}

#[test]
fn cards() {
    for signed in Genuine::read().cards {
        let open =
            |bytes: &[u8]| Envelope::from_json(bytes).is_ok_and(|e| SiteCard::open(&e).is_ok());
        refuses_all_damage("card", &signed.to_json(), open);
    }
}

#[test]
fn receipts() {
    let all = Genuine::read();
    for signed in &all.passport.approvals {
        let site = Receipt::unverified(signed).unwrap().site;
        let key = all.roster.trusted(&site).unwrap().signing_key;
        let open = |bytes: &[u8]| {
            Envelope::from_json(bytes).is_ok_and(|e| Receipt::open(&e, &key).is_ok())
        };
        refuses_all_damage("receipt", &signed.to_json(), open);
    }
}

#[test]
fn manifests() {
    let all = Genuine::read();
    for (signed, visit) in all.passport.manifests.iter().zip(1..) {
        let site = all.plan.site_of(VisitNo(visit)).unwrap();
        let key = all.roster.trusted(site).unwrap().signing_key;
        let open = |bytes: &[u8]| {
            Envelope::from_json(bytes).is_ok_and(|e| Manifest::open(&e, &key).is_ok())
        };
        refuses_all_damage("manifest", &signed.to_json(), open);
    }
}

#[test]
fn plans() {
    // A changed plan may be a plan, but it is another one: nobody approved it.
    let all = Genuine::read();
    let same =
        |bytes: &[u8]| Plan::from_canonical(bytes).is_ok_and(|p| p.round() == all.plan.round());
    refuses_all_damage("plan", all.passport.plan.as_bytes(), same);
}

#[test]
fn passports() {
    let all = Genuine::read();
    let verifies =
        |bytes: &[u8]| Passport::from_json(bytes).is_ok_and(|p| p.verify(&all.roster).is_ok());
    // All bits of what it consists of are flipped above, and here each would cost five signatures.
    refuses_damage("passport", PASSPORT.trim_ascii_end(), 1, verifies);
}

#[test]
fn passports_with_hops_left_out_moved_or_repeated() {
    let all = Genuine::read();
    let hops = &all.passport.manifests;
    let with = |manifests| Passport::new(&all.plan, all.passport.approvals.clone(), manifests);
    assert!(hops.len() >= 2);
    for (what, manifests) in [
        ("reordered", hops.iter().rev().cloned().collect()),
        ("without the first", hops[1..].to_vec()),
        ("the first twice", [&hops[..1], hops].concat()),
        ("the last twice", [hops, &hops[hops.len() - 1..]].concat()),
        ("none", Vec::new()),
    ] {
        assert!(with(manifests).verify(&all.roster).is_err(), "{what}");
    }
    // Ending earlier is another checkpoint's passport, and a genuine one.
    let shorter = with(hops[..1].to_vec()).verify(&all.roster).unwrap();
    assert_ne!(shorter.weights(), all.passport.verify(&all.roster).unwrap().weights());
}

#[test]
fn journal_records() {
    let all = Genuine::read();
    let round = all.plan.round();
    let card = |n: usize| all.cards[n].clone();
    let mut events = vec![
        Event::SiteOpened { card: card(0) },
        Event::PeerAdded { card: card(1) },
        Event::PeerRevoked { site: all.plan.sites[1].clone() },
        Event::Delivered { round, to: all.plan.sites[1].clone(), number: 3 },
    ];
    let receipts = all.passport.approvals.iter().cloned();
    events.extend(receipts.map(|receipt| Event::Receipt { receipt }));
    let manifests = all.passport.manifests.iter().cloned();
    events.extend(manifests.map(|manifest| Event::Manifest { round, manifest }));

    let mut tip = Tip::EMPTY;
    for event in &events {
        let record = Record::next(tip, event).unwrap();
        // As it lies in the table: number, version, digest, payload.
        let [n, v] = [record.number.to_le_bytes().to_vec(), record.version.to_le_bytes().to_vec()];
        let bytes = [n, v, record.digest.as_bytes().to_vec(), record.payload.clone()].concat();
        let opens = |bytes: &[u8]| {
            let Some((number, rest)) = bytes.split_first_chunk() else { return false };
            let Some((version, rest)) = rest.split_first_chunk() else { return false };
            let Some((digest, payload)) = rest.split_first_chunk() else { return false };
            let record = Record {
                number: u64::from_le_bytes(*number),
                version: u32::from_le_bytes(*version),
                digest: crate::ids::Digest::from_bytes(*digest),
                payload: payload.to_vec(),
            };
            record.open(tip).is_ok()
        };
        refuses_all_damage("record", &bytes, opens);
        tip = record.tip();
    }
}

#[test]
fn headers_of_checkpoints() {
    let narrow = Architecture { n1: 1, n2: 1, n3: 1, m: 1 };
    let layout = Layout::new(&narrow, Extras::default());
    let weights = vec![0; usize::try_from(layout.len()).unwrap() - layout.header().len()];
    let whole = |header: &[u8]| layout.check(&[header, &weights].concat()).is_ok();
    // A shorter header takes bytes of the weights for its own, so it is checked as cut too.
    refuses_all_damage("header", layout.header(), whole);
}

#[test]
fn keys_and_types_do_not_stand_for_each_other() {
    let all = Genuine::read();
    let keys: Vec<_> = all.cards.iter().map(|c| SiteCard::open(c).unwrap().signing_key).collect();
    let signed = &all.passport.manifests[0];
    let opened = keys.iter().filter(|key| Manifest::open(signed, key).is_ok()).count();
    assert_eq!(opened, 1, "one key opens it");
    assert!(SiteCard::open(signed).is_err());
    for key in &keys {
        assert!(matches!(Receipt::open(signed, key), Err(envelope::Error::Type { .. })));
    }
}
