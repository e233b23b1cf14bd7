//! Sites that trust each other, and plans for them. Opening a site is the same in every schedule, so it
//! is done once.

use super::keys;
use crate::envelope::{Envelope, SigningKey};
use crate::ids::SiteId;
use crate::journal::{Record, Replay};
use crate::plan::{self, Plan};
use crate::round::Event;
use crate::trust;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A site whose journal holds its own card and those of all others.
pub(super) struct Opened {
    pub(super) id: SiteId,
    pub(super) key: Arc<SigningKey>,
    pub(super) records: Vec<Record>,
    pub(super) replay: Replay,
}

/// So many sites.
pub(super) fn opened(count: usize) -> Arc<Vec<Opened>> {
    static KNOWN: Mutex<BTreeMap<usize, Arc<Vec<Opened>>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(count).or_insert_with(|| Arc::new(open(count))).clone()
}

fn open(count: usize) -> Vec<Opened> {
    let keys: Vec<SigningKey> = (0..count).map(|i| keys::key(u8::try_from(i).unwrap())).collect();
    let name = |i| format!("site-{i:02}");
    let card = |(i, key)| trust::tests::card(&name(i), key).sign(key).unwrap();
    let cards: Vec<Envelope> = (0..).zip(&keys).map(card).collect();
    let site = |(i, key): (usize, SigningKey)| {
        let (mut records, mut replay) = (Vec::new(), Replay::default());
        let own = std::iter::once(Event::SiteOpened { card: cards[i].clone() });
        let others = cards.iter().enumerate().filter(|(j, _)| *j != i);
        for event in own.chain(others.map(|(_, card)| Event::PeerAdded { card: card.clone() })) {
            let record = Record::next(replay.tip(), &event).unwrap();
            replay.adopt(&record).unwrap();
            records.push(record);
        }
        Opened { id: name(i).parse().unwrap(), key: Arc::new(key), records, replay }
    };
    (0..).zip(keys).map(site).collect()
}

/// The plan of a round.
pub(super) fn plan(number: u64, sites: Vec<SiteId>, cycles: u32) -> Plan {
    let mut plan = Plan::from_toml(plan::tests::THREE_SITES, 1 + number).unwrap();
    plan.sites = sites;
    plan.cycles = cycles;
    assert_eq!(plan.problems(), Vec::<String>::new());
    plan
}
