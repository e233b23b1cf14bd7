#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::ids::VisitNo;
use crate::manifest::{Counts, Manifest, Validation};
use crate::round::ReceiptBody;
use crate::transfer::ChunkTable;

const PLAN: &str = "name = \"t\"\ntopology = \"swt\"\nsites = [\"usz\", \"uker\"]\n\
                    [recipe]\npreset = \"paper\"\nwidths = [2, 3, 4, 5]\n";

/// Two sites that made a model of two hops, and the second of them exported it.
struct Made {
    keys: [SigningKey; 2],
    cards: Vec<Envelope>,
    plan: Plan,
    weights: Vec<u8>,
    papers: Papers,
}

fn key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
}

fn made() -> Made {
    let plan = Plan::from_toml(PLAN, 1).unwrap();
    let keys = [key(), key()];
    let card = |i: usize| trust::tests::card(plan.sites[i].as_str(), &keys[i]);
    let cards = vec![card(0).sign(&keys[0]).unwrap(), card(1).sign(&keys[1]).unwrap()];
    let mut weights = plan.layout().header().to_vec();
    weights.resize(usize::try_from(plan.layout().len()).unwrap(), 0);
    let receipt = |i: usize, number, body| {
        let receipt =
            Receipt { round: plan.round(), site: plan.sites[i].clone(), number, at: 4, body };
        receipt.sign(&keys[i]).unwrap()
    };
    let approvals: Vec<Envelope> = (0..2).map(|i| receipt(i, 1, ReceiptBody::Approved)).collect();
    let hop = |i: usize, visit, parent| {
        let manifest = Manifest {
            round: plan.round(),
            cycle: 1,
            visit: VisitNo(visit),
            site: plan.sites[i].clone(),
            parent,
            weights: ChunkTable::of(&weights),
            architecture: plan.recipe.architecture,
            recipe: plan.recipe_digest(),
            software: "rondo test".to_owned(),
            counts: Counts::default(),
            validation: Validation::default(),
            filters: Vec::new(),
            signed_at: 5,
        };
        manifest.sign(&keys[i]).unwrap()
    };
    let manifests = vec![hop(0, 1, None), hop(1, 2, Some(Digest::of(&weights)))];
    let receipts = [
        approvals[1].clone(),
        receipt(1, 2, ReceiptBody::Contributed { manifest: manifests[1].clone() }),
        approvals[0].clone(),
    ];
    let papers = Papers {
        passport: Passport::new(&plan, approvals, manifests).to_json(),
        receipts: receipts_json(&receipts),
        cards: vec![cards[1].to_json(), cards[0].to_json()],
        signature: Vec::new(),
    };
    let papers = papers.sign(Digest::of(&weights), &keys[1]).unwrap();
    Made { keys, cards, plan, weights, papers }
}

fn code(papers: &Papers, roster: &Roster) -> &'static str {
    papers.verify(roster).map_or_else(|e| e.code(), |_| "accepted")
}

#[test]
fn every_flipped_bit_of_the_papers_is_refused() {
    let made = made();
    let roster = Roster::of(made.cards.clone()).unwrap();
    type Part = fn(&mut Papers) -> &mut Vec<u8>;
    let parts: [(Part, usize); 4] = [
        // A passport has its own tests; here a sample of its bytes is enough.
        (|p| &mut p.passport, 61),
        (|p| &mut p.receipts, 17),
        (|p| &mut p.cards[0], 3),
        (|p| &mut p.signature, 1),
    ];
    for (part, step) in parts {
        for i in (0..part(&mut made.papers.clone()).len()).step_by(step) {
            for bit in [1, 0x20, 0x80] {
                let mut bad = made.papers.clone();
                part(&mut bad)[i] ^= bit;
                assert!(
                    bad.verify(&roster).is_err(),
                    "byte {i}, bit {bit:#x} may change unnoticed"
                );
            }
        }
    }
    let verified = made.papers.verify(&roster).unwrap();
    assert_eq!((verified.hops().len(), verified.plan()), (2, &made.plan));
    verified.verify_weights(&made.weights).unwrap();
}

#[test]
fn each_departure_has_its_code() {
    let made = made();
    let roster = Roster::of(made.cards.clone()).unwrap();
    let with = |change: &dyn Fn(&mut Papers)| {
        let mut papers = made.papers.clone();
        change(&mut papers);
        code(&papers, &roster)
    };
    assert_eq!(with(&|p| p.cards.truncate(1)), "cards-malformed");
    assert_eq!(with(&|p| p.cards.reverse()), "cards-malformed");
    assert_eq!(with(&|p| p.receipts = b"{}".to_vec()), "receipts-malformed");
    assert_eq!(with(&|p| p.receipts = b"[]".to_vec()), "model-member-changed");
    let spaced = |p: &mut Papers| p.signature.push(b' ');
    assert_eq!(with(&spaced), "model-signature-malformed");
    assert_eq!(with(&|p| p.signature = Vec::new()), "model-signature-malformed");
    let passport = Passport::from_json(&made.papers.passport).unwrap();
    let mut cut = passport.clone();
    cut.manifests.remove(0);
    assert_eq!(with(&|p| p.passport = cut.to_json()), "passport-signature");
    // Genuine statements of another round do not belong here.
    let foreign = Receipt {
        round: Digest::of(b"another"),
        site: made.plan.sites[0].clone(),
        number: 1,
        at: 1,
        body: ReceiptBody::Approved,
    };
    let foreign = foreign.sign(&made.keys[0]).unwrap();
    assert_eq!(with(&|p| p.receipts = receipts_json([&foreign])), "receipts-foreign");

    let unsigned = Papers { signature: Vec::new(), ..made.papers.clone() };
    let other = unsigned.clone().sign(Digest::of(b"other weights"), &made.keys[0]).unwrap();
    assert_eq!(code(&other, &roster), "model-member-changed");
    let stranger = unsigned.clone().sign(Digest::of(&made.weights), &key()).unwrap();
    assert_eq!(code(&stranger, &roster), "model-signer-unknown");
    // A third site that holds the model may export it too.
    let third = key();
    let mut wider = roster.clone();
    wider.add(trust::tests::card("nyu", &third).sign(&third).unwrap()).unwrap();
    let exported = unsigned.sign(Digest::of(&made.weights), &third).unwrap();
    assert_eq!(code(&exported, &wider), "accepted");
    wider.revoke(&"nyu".parse().unwrap()).unwrap();
    assert_eq!(code(&exported, &wider), "model-signer-revoked");
    assert_eq!(code(&made.papers, &wider), "accepted");
    wider.revoke(&made.plan.sites[0]).unwrap();
    assert_eq!(code(&made.papers, &wider), "passport-signer-revoked");
}

#[test]
fn what_was_signed_before_a_renewal_of_keys_still_holds() {
    let made = made();
    let known = &made.cards[1];
    let old = SiteCard::open(known).unwrap();
    let young = key();
    let next = trust::Keys { tls_key: Digest::of(b"next"), signing_key: young.public() };
    let announced = SiteCard { valid_from: 101, next: Some(next), ..old.clone() };
    let renewed = SiteCard {
        valid_from: 102,
        tls_key: next.tls_key,
        signing_key: next.signing_key,
        former: vec![old.signing_key],
        ..old.clone()
    };
    let announced = announced.sign(&made.keys[1]).unwrap();
    let renewed = renewed.sign(&young).unwrap();
    let roster = |cards: &[&Envelope]| {
        Roster::of(cards.iter().copied().chain([&made.cards[0]]).cloned()).unwrap()
    };
    let before = roster(&[known]);
    let preparing = roster(&[known, &announced]);
    let after = roster(&[known, &announced, &renewed]);

    // Mid-round: receipts by the old key and the new one, exported with the new one.
    let late = Receipt {
        round: made.plan.round(),
        site: made.plan.sites[1].clone(),
        number: 3,
        at: 6,
        body: ReceiptBody::Contributed {
            manifest: Passport::from_json(&made.papers.passport).unwrap().manifests[1].clone(),
        },
    };
    let with = |signer: &SigningKey| {
        let mut receipts = read_receipts(&made.papers.receipts).unwrap();
        receipts.push(late.sign(signer).unwrap());
        let unsigned = Papers {
            receipts: receipts_json(&receipts),
            cards: vec![renewed.to_json(), made.cards[0].to_json()],
            signature: Vec::new(),
            ..made.papers.clone()
        };
        unsigned.sign(Digest::of(&made.weights), &young).unwrap()
    };
    assert_eq!(code(&with(&key()), &after), "receipts-foreign", "a key that is nobody's");
    assert_eq!(code(&with(&young), &before), "receipts-foreign", "a key that is not announced");
    let mut stranger = with(&young);
    stranger.signature = Vec::new();
    let stranger = stranger.sign(Digest::of(&made.weights), &key()).unwrap();
    assert_eq!(code(&stranger, &after), "model-signer-unknown");
    for roster in [&preparing, &after] {
        assert_eq!(code(&with(&young), roster), "accepted");
        assert_eq!(code(&made.papers, roster), "accepted", "a file from before the renewal");
    }

    let mut revoked = after.clone();
    revoked.revoke(&made.plan.sites[1]).unwrap();
    assert_eq!(code(&made.papers, &revoked), "passport-signer-revoked");
}
