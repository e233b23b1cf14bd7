#![allow(clippy::unwrap_used)]

use super::*;
use crate::envelope::{Envelope, SigningKey};
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::journal::{Record, Replay, Tip};
use crate::manifest::{Counts, Manifest, Validation};
use crate::passport;
use crate::plan::Plan;
use crate::transfer::ChunkTable;
use crate::trust;
use std::collections::BTreeMap;

/// A site with its journal; effects are carried out by the tests' own hands.
pub(super) struct Site {
    pub(super) id: SiteId,
    pub(super) key: SigningKey,
    pub(super) state: SiteState,
    pub(super) records: Vec<Record>,
}

impl Site {
    pub(super) fn adopt(&mut self, event: &Event) -> Result<(), Refusal> {
        self.state = step(&self.state, event)?;
        let tip = self.records.last().map_or(Tip::EMPTY, Record::tip);
        self.records.push(Record::next(tip, event).unwrap());
        Ok(())
    }

    pub(super) fn receipt(&self, round: RoundId, body: ReceiptBody) -> Envelope {
        let told = self.state.rounds().get(&round).and_then(|r| r.receipts.get(&self.id));
        let number = u32::try_from(told.map_or(0, Vec::len)).unwrap() + 1;
        let site = self.id.clone();
        Receipt { round, site, number, at: 1, body }.sign(&self.key).unwrap()
    }

    pub(super) fn tell(&mut self, round: RoundId, body: ReceiptBody) -> Result<(), Refusal> {
        let receipt = self.receipt(round, body);
        self.adopt(&Event::Receipt { receipt })
    }

    pub(super) fn manifest(
        &self,
        round: RoundId,
        visit: VisitNo,
        parent: Option<Digest>,
    ) -> Manifest {
        let plan = &self.state.rounds()[&round].plan;
        let layout = plan.layout();
        let mut weights = layout.header().to_vec();
        weights.resize(usize::try_from(layout.len()).unwrap(), u8::try_from(visit.0).unwrap());
        Manifest {
            round,
            cycle: plan.cycle_of(visit),
            visit,
            site: self.id.clone(),
            parent,
            weights: ChunkTable::of(&weights),
            architecture: plan.recipe.architecture,
            recipe: plan.recipe_digest(),
            software: "rondo test".to_owned(),
            counts: Counts::default(),
            validation: Validation { received_dice: Some(0.25), trained_dice: None },
            filters: vec![],
            signed_at: 5,
        }
    }
}

pub(super) fn sites() -> BTreeMap<SiteId, Site> {
    let keys: Vec<SigningKey> =
        (0..3).map(|_| SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()).collect();
    let names = ["uker", "stanford", "usz"];
    let cards: Vec<Envelope> = names
        .iter()
        .zip(&keys)
        .map(|(name, key)| trust::tests::card(name, key).sign(key).unwrap())
        .collect();
    let mut sites = BTreeMap::new();
    for (i, key) in keys.into_iter().enumerate() {
        let id: SiteId = names[i].parse().unwrap();
        let mut site = Site { id: id.clone(), key, state: SiteState::default(), records: vec![] };
        site.adopt(&Event::SiteOpened { card: cards[i].clone() }).unwrap();
        for card in cards.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, c)| c) {
            site.adopt(&Event::PeerAdded { card: card.clone() }).unwrap();
        }
        sites.insert(id, site);
    }
    sites
}

fn plan() -> Plan {
    Plan::from_toml(crate::plan::tests::THREE_SITES, 1).unwrap()
}

/// Carries out every outstanding effect of every site once, and says how many there were.
pub(super) fn turn(sites: &mut BTreeMap<SiteId, Site>) -> usize {
    turn_without(sites, &[])
}

/// As [`turn`], while some sites are away. Word for them is counted only if it could be brought.
pub(super) fn turn_without(sites: &mut BTreeMap<SiteId, Site>, away: &[&str]) -> usize {
    let gone = |to: &SiteId| away.contains(&to.as_str());
    let mut done = 0;
    let todo: Vec<(SiteId, Effect)> = sites
        .iter()
        .flat_map(|(id, s)| s.state.effects().into_iter().map(|e| (id.clone(), e)))
        .filter(|(id, e)| !away.contains(&id.as_str()) && !matches!(e, Effect::Expire { .. }))
        .collect();
    for (at, effect) in &todo {
        match effect {
            Effect::DeliverReceipts { to, .. } | Effect::HandOver { to, .. } if gone(to) => {
                continue;
            }
            _ => done += 1,
        }
        match effect {
            Effect::Expire { .. } => {}
            Effect::DeliverReceipts { round, to, .. } => {
                let told = sites[at].state.rounds()[round].receipts[at].clone();
                let number = u32::try_from(told.len()).unwrap();
                // Every receipt is sent twice: duplicates must do no harm.
                let ok = told.iter().chain(&told).all(|receipt| {
                    let event = Event::Receipt { receipt: receipt.clone() };
                    sites.get_mut(to).unwrap().adopt(&event).is_ok()
                });
                if ok {
                    let event = Event::Delivered { round: *round, to: to.clone(), number };
                    sites.get_mut(at).unwrap().adopt(&event).unwrap();
                }
            }
            Effect::Train { round, visit, received } => {
                let site = sites.get_mut(at).unwrap();
                site.tell(*round, ReceiptBody::Training { visit: *visit }).unwrap();
                let manifest = site.manifest(*round, *visit, *received).sign(&site.key).unwrap();
                site.tell(*round, ReceiptBody::Contributed { manifest }).unwrap();
            }
            Effect::HandOver { round, visit, weights, to } => {
                let passport = sites[at].state.rounds()[round].passport(*visit).unwrap();
                let receiver = sites.get_mut(to).unwrap();
                let verified = passport.verify(receiver.state.roster()).unwrap();
                assert_eq!(verified.weights(), *weights);
                for receipt in passport.passes {
                    receiver.adopt(&Event::Passed { receipt }).unwrap();
                }
                for manifest in passport.manifests {
                    receiver.adopt(&Event::Manifest { round: *round, manifest }).unwrap();
                }
                let body = ReceiptBody::Received { visit: *visit, weights: *weights };
                if !receiver.state.rounds()[round].visit(*visit).unwrap().is_held_by(to) {
                    receiver.tell(*round, body).unwrap();
                }
            }
        }
    }
    done
}

pub(super) fn proposed(sites: &mut BTreeMap<SiteId, Site>) -> RoundId {
    proposed_plan(sites, &plan())
}

fn proposed_plan(sites: &mut BTreeMap<SiteId, Site>, plan: &Plan) -> RoundId {
    let text = String::from_utf8(plan.canonical()).unwrap();
    let uker = sites.get_mut(&"uker".parse().unwrap()).unwrap();
    uker.tell(plan.round(), ReceiptBody::Proposed { plan: text }).unwrap();
    while turn(sites) > 0 {}
    plan.round()
}

/// A round that every site approved and uker started; nothing has trained yet.
pub(super) fn running(sites: &mut BTreeMap<SiteId, Site>) -> RoundId {
    running_plan(sites, &plan())
}

pub(super) fn running_plan(sites: &mut BTreeMap<SiteId, Site>, plan: &Plan) -> RoundId {
    let round = proposed_plan(sites, plan);
    for site in sites.values_mut() {
        site.tell(round, ReceiptBody::Approved).unwrap();
    }
    while turn(sites) > 0 {}
    sites.get_mut(&"uker".parse().unwrap()).unwrap().tell(round, ReceiptBody::Started).unwrap();
    round
}

#[test]
fn a_round_ends_with_the_same_history_everywhere() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let ids: Vec<SiteId> = sites.keys().cloned().collect();
    for id in &ids {
        let site = sites.get_mut(id).unwrap();
        assert!(site.tell(round, ReceiptBody::Started).is_err(), "not everyone approved");
        site.tell(round, ReceiptBody::Approved).unwrap();
    }
    while turn(&mut sites) > 0 {}
    sites.get_mut(&ids[0]).unwrap().tell(round, ReceiptBody::Started).unwrap();
    let mut turns = 0;
    while turn(&mut sites) > 0 {
        turns += 1;
        assert!(turns < 100, "the round does not end");
    }
    let history = &sites[&ids[0]].state.rounds()[&round];
    assert_eq!(history.phase(), RoundPhase::Finished);
    let passport = history.passport(VisitNo(6)).unwrap();
    assert_eq!(passport.verify(sites[&ids[1]].state.roster()).unwrap().hops().len(), 6);
    for site in sites.values() {
        let round = &site.state.rounds()[&round];
        assert_eq!(round.receipts, history.receipts, "{}", site.id);
        assert_eq!(round.visits, history.visits);
        let mut replay = Replay::default();
        for record in &site.records {
            replay.adopt(record).unwrap();
        }
        assert_eq!(replay.finish().0, site.state, "replay differs at {}", site.id);
    }
}

#[test]
fn a_passport_with_any_wrong_hop_is_refused_with_its_reason() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    for site in sites.values_mut() {
        site.tell(round, ReceiptBody::Approved).unwrap();
    }
    while turn(&mut sites) > 0 {}
    let uker: SiteId = "uker".parse().unwrap();
    sites.get_mut(&uker).unwrap().tell(round, ReceiptBody::Started).unwrap();
    while turn(&mut sites) > 0 {}
    let roster = sites[&uker].state.roster().clone();
    let good = sites[&uker].state.rounds()[&round].passport(VisitNo(4)).unwrap();
    let code = |p: &passport::Passport| p.verify(&roster).unwrap_err().code();

    let mut swapped = good.clone();
    swapped.manifests.swap(1, 2);
    assert_eq!(code(&swapped), "passport-signature");
    let mut missing = good.clone();
    missing.manifests.remove(0);
    assert_eq!(code(&missing), "passport-signature");
    let mut parent = good.clone();
    let site = &sites[&uker];
    let foreign = site.manifest(round, VisitNo(4), Some(Digest::of(b"other")));
    parent.manifests[3] = foreign.sign(&site.key).unwrap();
    assert_eq!(code(&parent), "passport-chain");
    let mut unapproved = good.clone();
    unapproved.approvals[1] = unapproved.approvals[0].clone();
    assert_eq!(code(&unapproved), "passport-approval");
    let mut empty = good.clone();
    empty.manifests.clear();
    assert_eq!(code(&empty), "passport-hops");
    let mut revoked = roster.clone();
    revoked.revoke(&"usz".parse().unwrap()).unwrap();
    assert_eq!(good.verify(&revoked).unwrap_err().code(), "passport-signer-revoked");
    let verified = good.verify(&roster).unwrap();
    assert_eq!(verified.verify_weights(b"short").unwrap_err().code(), "weights-damaged");
}

#[test]
fn lies_and_repeats_leave_no_trace() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let [stanford, uker, usz] = ["stanford", "uker", "usz"].map(|s| s.parse::<SiteId>().unwrap());
    let mut target = sites.remove(&uker).unwrap();
    let before = target.state.clone();
    let liar = &sites[&usz];

    let sign = |site: &SiteId, number, body| {
        let receipt = Receipt { round, site: site.clone(), number, at: 1, body };
        Event::Receipt { receipt: receipt.sign(&liar.key).unwrap() }
    };
    let forged = sign(&stanford, 1, ReceiptBody::Approved);
    assert!(matches!(target.adopt(&forged), Err(Refusal::Envelope(_))));
    let early = sign(&usz, 2, ReceiptBody::Approved);
    assert!(matches!(target.adopt(&early), Err(Refusal::Order { expected: 1, found: 2, .. })));
    let not_its_turn = sign(&usz, 1, ReceiptBody::Training { visit: VisitNo(1) });
    assert!(matches!(target.adopt(&not_its_turn), Err(Refusal::Phase(_))));
    let beyond = ReceiptBody::Received { visit: VisitNo(7), weights: Digest::of(b"") };
    assert!(matches!(target.adopt(&sign(&usz, 1, beyond)), Err(Refusal::Phase(_))));
    let manifest = liar.manifest(round, VisitNo(3), None).sign(&liar.key).unwrap();
    let ahead = sign(&usz, 1, ReceiptBody::Contributed { manifest });
    assert_eq!(target.adopt(&ahead), Err(Refusal::Gap(VisitNo(2))));
    assert_eq!(target.state, before);

    target.adopt(&sign(&usz, 1, ReceiptBody::Approved)).unwrap();
    let after = target.state.clone();
    target.adopt(&sign(&usz, 1, ReceiptBody::Approved)).unwrap();
    assert_eq!(target.state, after);
    let contradiction = sign(&usz, 1, ReceiptBody::Started);
    assert_eq!(target.adopt(&contradiction), Err(Refusal::Contradiction(usz)));
}

#[test]
fn a_peer_cannot_fill_a_site_with_plans() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let [uker, usz] = ["uker", "usz"].map(|s| s.parse::<SiteId>().unwrap());
    let mut target = sites.remove(&uker).unwrap();
    let flood = &sites[&usz];
    let propose = |round, number, plan: &str| {
        let body = ReceiptBody::Proposed { plan: plan.to_owned() };
        let receipt = Receipt { round, site: usz.clone(), number, at: 1, body };
        Event::Receipt { receipt: receipt.sign(&flood.key).unwrap() }
    };
    let text = target.state.rounds()[&round].plan.canonical();
    let text = String::from_utf8(text).unwrap();
    let other = target.adopt(&propose(round, 1, "any other text"));
    assert!(matches!(other, Err(Refusal::Phase(_))), "{other:?}");
    target.adopt(&propose(round, 1, &text)).unwrap();
    assert!(matches!(target.adopt(&propose(round, 2, &text)), Err(Refusal::Phase(_))));
    let mut taken = 0;
    for seed in 0..20 {
        let mut plan = plan();
        plan.name = format!("flood {seed}");
        let text = String::from_utf8(plan.canonical()).unwrap();
        match target.adopt(&propose(plan.round(), 1, &text)) {
            Ok(()) => taken += 1,
            Err(refusal) => assert!(matches!(refusal, Refusal::Limit(_)), "{refusal}"),
        }
    }
    assert_eq!(taken, PROPOSALS_MAX);
    // Aborting what it proposed makes room for the next, and not for ever.
    let abort = |target: &mut Site, round| {
        for (number, body) in [(2, ReceiptBody::Approved), (3, ReceiptBody::Aborted)] {
            let receipt = Receipt { round, site: usz.clone(), number, at: 1, body };
            let receipt = receipt.sign(&flood.key).unwrap();
            target.adopt(&Event::Receipt { receipt }).unwrap();
        }
    };
    let ids: Vec<_> = target.state.rounds().keys().copied().collect();
    ids.into_iter().for_each(|id| abort(&mut target, id));
    let mut made = 0;
    while made <= UNAPPROVED_MAX {
        let mut plan = plan();
        plan.name = format!("aborted {made}");
        let text = String::from_utf8(plan.canonical()).unwrap();
        if target.adopt(&propose(plan.round(), 1, &text)).is_err() {
            break;
        }
        abort(&mut target, plan.round());
        made += 1;
    }
    let theirs = target.state.rounds().values().filter(|r| r.proposer == usz).count();
    assert_eq!(theirs, UNAPPROVED_MAX);
    let mut own = plan();
    own.name = "own".to_owned();
    let text = String::from_utf8(own.canonical()).unwrap();
    target.tell(own.round(), ReceiptBody::Proposed { plan: text }).unwrap();
}

#[test]
fn attempts_leave_room_for_the_contribution() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let uker: SiteId = "uker".parse().unwrap();
    let site = sites.get_mut(&uker).unwrap();
    let attempt = |site: &mut Site| site.tell(round, ReceiptBody::Training { visit: VisitNo(1) });
    let refusal = (0..200).find_map(|_| attempt(site).err()).unwrap();
    assert!(matches!(refusal, Refusal::Limit(_)), "{refusal}");
    let manifest = site.manifest(round, VisitNo(1), None);
    let worded = Manifest { software: "free text, perhaps a name".repeat(9), ..manifest.clone() };
    let worded = worded.sign(&site.key).unwrap();
    assert!(site.tell(round, ReceiptBody::Contributed { manifest: worded }).is_err());
    let manifest = manifest.sign(&site.key).unwrap();
    site.tell(round, ReceiptBody::Contributed { manifest }).unwrap();
}

#[test]
fn a_stall_that_is_told_after_the_manifest_leaves_no_trace() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let [stanford, uker] = ["stanford", "uker"].map(|s| s.parse::<SiteId>().unwrap());
    let visit = VisitNo(1);
    let site = sites.get_mut(&uker).unwrap();
    site.tell(round, ReceiptBody::Stalled { visit, reason: StallReason::Cohort }).unwrap();
    assert!(site.state.rounds()[&round].visits[0].stalled.is_some());
    let manifest = site.manifest(round, visit, None).sign(&site.key).unwrap();
    site.tell(round, ReceiptBody::Contributed { manifest: manifest.clone() }).unwrap();
    let offered = sites.get_mut(&stanford).unwrap();
    offered.adopt(&Event::Manifest { round, manifest }).unwrap();
    while turn(&mut sites) > 0 {}
    let known = |site: &SiteId| sites[site].state.rounds()[&round].visits[0].clone();
    assert_eq!(known(&stanford), known(&uker));
    assert_eq!(known(&stanford).stalled, None);
}

#[test]
fn a_damaged_journal_names_the_place() {
    let mut sites = sites();
    proposed(&mut sites);
    let site = sites.remove(&"uker".parse().unwrap()).unwrap();
    let replay = |records: &[Record]| {
        let mut replay = Replay::default();
        records.iter().try_for_each(|r| replay.adopt(r))
    };
    use crate::journal::Error;
    for i in 0..site.records.len() {
        let number = i as u64 + 1;
        let mut changed = site.records.clone();
        changed[i].payload[0] ^= 1;
        assert_eq!(replay(&changed), Err(Error::Chain(number)));
        let mut removed = site.records.clone();
        removed.remove(i);
        if i + 1 < site.records.len() {
            let missing = Error::Missing { expected: number, found: number + 1 };
            assert_eq!(replay(&removed), Err(missing));
        }
    }
    assert_eq!(replay(&site.records), Ok(()));
}

#[test]
fn a_site_changes_its_keys_in_the_middle_of_a_round() {
    use crate::trust::{Keys, Roster, SiteCard};
    let mut sites = sites();
    let round = proposed(&mut sites);
    for site in sites.values_mut() {
        site.tell(round, ReceiptBody::Approved).unwrap();
    }
    while turn(&mut sites) > 0 {}
    let uker: SiteId = "uker".parse().unwrap();
    sites.get_mut(&uker).unwrap().tell(round, ReceiptBody::Started).unwrap();
    for _ in 0..4 {
        turn(&mut sites);
    }
    assert_eq!(sites[&uker].state.rounds()[&round].phase(), RoundPhase::Running);

    let own = sites[&uker].state.own().unwrap().clone();
    let old = sites[&uker].key.public();
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let next = Keys { tls_key: Digest::of(b"next"), signing_key: key.public() };
    let announced = SiteCard { valid_from: own.valid_from + 1, next: Some(next), ..own.clone() };
    let changed = SiteCard {
        valid_from: own.valid_from + 2,
        tls_key: next.tls_key,
        signing_key: next.signing_key,
        former: vec![old],
        ..own
    };
    let announced = announced.sign(&sites[&uker].key).unwrap();
    let changed = changed.sign(&key).unwrap();
    let site = sites.get_mut(&uker).unwrap();
    let early = site.adopt(&Event::SiteOpened { card: changed.clone() });
    assert_eq!(early, Err(Refusal::Owner), "keys that nobody announced");
    site.adopt(&Event::SiteOpened { card: announced.clone() }).unwrap();
    site.adopt(&Event::SiteOpened { card: changed.clone() }).unwrap();
    site.key = key;
    for (_, other) in sites.iter_mut().filter(|(id, _)| **id != uker) {
        other.adopt(&Event::PeerAdded { card: announced.clone() }).unwrap();
    }
    // The others know the keys, but not yet that they are in force.
    for _ in 0..4 {
        turn(&mut sites);
    }
    for (_, other) in sites.iter_mut().filter(|(id, _)| **id != uker) {
        other.adopt(&Event::PeerAdded { card: changed.clone() }).unwrap();
    }
    let mut turns = 0;
    while turn(&mut sites) > 0 {
        turns += 1;
        assert!(turns < 100, "the round does not end");
    }
    let history = &sites[&uker].state.rounds()[&round];
    assert_eq!(history.phase(), RoundPhase::Finished);
    let hops = |id: &Digest| {
        let all = history.receipts[&uker].iter().filter(|e| e.key() == *id).count();
        assert!(all > 0, "nothing was signed with {id}");
    };
    hops(&old.id());
    hops(&next.signing_key.id());
    // Somebody who knows only the newest cards can check what the old key signed.
    let passport = history.passport(VisitNo(6)).unwrap();
    let cards = sites[&uker].state.roster().peers().map(|(_, peer)| peer.signed.clone());
    let mut roster = Roster::of(cards.collect::<Vec<_>>()).unwrap();
    assert_eq!(passport.verify(&roster).unwrap().hops().len(), 6);
    roster.revoke(&uker).unwrap();
    assert_eq!(passport.verify(&roster).unwrap_err().code(), "passport-signer-revoked");
    for site in sites.values() {
        let mut replay = Replay::default();
        for record in &site.records {
            replay.adopt(record).unwrap();
        }
        assert_eq!(replay.finish().0, site.state, "replay differs at {}", site.id);
    }
}

#[test]
fn a_journal_from_before_is_replayed() {
    // Written by version 0.1, before rounds could be paused: number, version, digest, payload.
    let mut replay = Replay::default();
    for line in include_str!("../fixtures/0.1/journal.txt").lines() {
        let mut parts = line.splitn(4, ' ');
        let mut part = || parts.next().unwrap();
        let (number, version) = (part().parse().unwrap(), part().parse().unwrap());
        let digest = part().parse().unwrap();
        replay
            .adopt(&Record { number, version, digest, payload: part().as_bytes().to_vec() })
            .unwrap();
    }
    let (state, tip) = replay.finish();
    assert_eq!(tip.number, 146);
    let round = state.rounds().values().next().unwrap();
    assert_eq!(round.phase(), RoundPhase::Finished);
    assert_eq!(round.passport(VisitNo(6)).unwrap().verify(state.roster()).unwrap().hops().len(), 6);
    assert!(state.effects().is_empty());
}

#[test]
fn a_refused_checkpoint_is_not_trained_on_and_every_site_knows() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let [uker, stanford, usz] = ["uker", "stanford", "usz"].map(|s| s.parse::<SiteId>().unwrap());
    for site in sites.values_mut() {
        site.tell(round, ReceiptBody::Approved).unwrap();
    }
    while turn(&mut sites) > 0 {}
    sites.get_mut(&uker).unwrap().tell(round, ReceiptBody::Started).unwrap();
    let first = |site: &Site| site.state.rounds()[&round].visit(VisitNo(1)).unwrap().clone();
    while !first(&sites[&stanford]).is_held_by(&stanford) {
        turn(&mut sites);
    }
    let visit = VisitNo(1);
    let weights = first(&sites[&stanford]).weights().unwrap();
    let refused = |weights, reason| ReceiptBody::Refused { visit, weights, reason };
    for (site, weights) in [(&usz, weights), (&uker, weights), (&stanford, Digest::of(b"other"))] {
        let site = sites.get_mut(site).unwrap();
        let told = site.tell(round, refused(weights, RefusalReason::Norm));
        assert!(matches!(told, Err(Refusal::Phase(_))), "{} did not receive it", site.id);
    }
    let trains =
        |site: &Site| site.state.effects().iter().any(|e| matches!(e, Effect::Train { .. }));
    let site = sites.get_mut(&stanford).unwrap();
    assert!(trains(site));
    site.tell(round, refused(weights, RefusalReason::Norm)).unwrap();
    let other = site.tell(round, refused(weights, RefusalReason::Floor));
    assert_eq!(other, Err(Refusal::Contradiction(stanford.clone())));
    while turn(&mut sites) > 0 {}
    for site in sites.values() {
        assert_eq!(first(site).refused_by, [(stanford.clone(), RefusalReason::Norm)].into());
        assert!(!trains(site), "{} trains", site.id);
        let known = &site.state.rounds()[&round];
        assert_eq!(known.phase(), RoundPhase::Running, "parked, not ended");
        let mut replay = Replay::default();
        site.records.iter().try_for_each(|r| replay.adopt(r)).unwrap();
        assert_eq!(replay.finish().0, site.state);
    }
}

#[test]
fn a_drop_is_measured_against_the_sites_own_figures() {
    let mut sites = sites();
    let round = proposed(&mut sites);
    let uker: SiteId = "uker".parse().unwrap();
    let site = sites.get_mut(&uker).unwrap();
    let trained = Validation { received_dice: Some(0.5), trained_dice: Some(0.75) };
    let manifest = Manifest { validation: trained, ..site.manifest(round, VisitNo(1), None) };
    let manifest = manifest.sign(&site.key).unwrap();
    site.tell(round, ReceiptBody::Contributed { manifest }).unwrap();
    let mut known = site.state.rounds()[&round].clone();
    let gate = crate::gate::Gate { max_drop: Some(0.25), ..Default::default() };
    let mut plan = (*known.plan).clone();
    plan.gate = gate;
    known.plan = plan.into();
    assert_eq!(known.least_dice(&uker, VisitNo(1)), None, "what the plan names is not refused");
    assert_eq!(known.least_dice(&uker, VisitNo(4)), Some(0.5));
    assert_eq!(known.least_dice(&"usz".parse().unwrap(), VisitNo(3)), None);
}
