//! What each target does with its bytes. Reading must not panic, hang or take much memory; and what was
//! read must be written and read again as the same thing, so that no two readers see two things in it.

use prost::Message;
use rondo::checkpoint::{Extras, Layout};
use rondo::envelope::Envelope;
use rondo::journal::{Record, Tip};
use rondo::manifest::Manifest;
use rondo::passport::Passport;
use rondo::plan::Plan;
use rondo::recipe::{Architecture, Recipe};
use rondo::round::{Event, Receipt, SiteState, step};
use rondo::transfer::{ChunkTable, Receiving};
use rondo::trust::{Roster, SiteCard};
use rondo_proto::{control, convert, peer, trainer};
use std::sync::LazyLock;

/// A genuine passport and the cards that go with it.
pub const PASSPORT: &[u8] = include_bytes!("../../../src/fixtures/0.1/passport.json");
/// See [`PASSPORT`].
pub const CARDS: &[u8] = include_bytes!("../../../src/fixtures/0.1/cards.json");

/// The genuine passport, read, its cards, and a site that trusts their owners.
pub struct Genuine {
    pub cards: Vec<Envelope>,
    pub passport: Passport,
    pub plan: Plan,
    pub roster: Roster,
    pub events: Vec<Event>,
    pub state: SiteState,
}

/// The one such.
pub static GENUINE: LazyLock<Genuine> = LazyLock::new(|| {
    let cards: Vec<Envelope> = serde_json::from_slice(CARDS).expect("cards");
    let passport = Passport::from_json(PASSPORT).expect("a passport");
    let plan = Plan::from_canonical(passport.plan.as_bytes()).expect("a plan");
    let roster = Roster::of(cards.clone()).expect("genuine cards");
    let mut all = cards.iter().cloned();
    let mut events: Vec<Event> =
        all.by_ref().take(1).map(|card| Event::SiteOpened { card }).collect();
    events.extend(all.map(|card| Event::PeerAdded { card }));
    let receipts = passport.approvals.iter().cloned();
    events.extend(receipts.map(|receipt| Event::Receipt { receipt }));
    let round = plan.round();
    let manifests = passport.manifests.iter().cloned();
    events.extend(manifests.map(|manifest| Event::Manifest { round, manifest }));
    let state = events.iter().fold(SiteState::default(), |state, event| {
        // The passport does not hold the round's proposal, so what is said about the round is early.
        step(&state, event).unwrap_or(state)
    });
    Genuine { cards, passport, plan, roster, events, state }
});

/// The same key that signs in the genuine passport.
fn keys() -> impl Iterator<Item = rondo::envelope::VerifyingKey> {
    GENUINE.roster.peers().map(|(_, peer)| peer.card.signing_key)
}

/// Any signed envelope.
pub fn envelope(data: &[u8]) {
    if let Ok(read) = Envelope::from_json(data) {
        assert_eq!(Envelope::from_json(&read.to_json()).as_ref(), Ok(&read));
    }
}

/// A manifest.
pub fn manifest(data: &[u8]) {
    let Ok(envelope) = Envelope::from_json(data) else { return };
    let _ = Manifest::unverified(&envelope);
    let opened = keys().filter_map(|key| Manifest::open(&envelope, &key).ok());
    for manifest in opened {
        manifest.weights.check().expect("an opened manifest has a sound table");
        assert!(
            GENUINE
                .passport
                .manifests
                .iter()
                .any(|m| m.payload_digest() == envelope.payload_digest())
        );
    }
}

/// A site card, which names the key that it is checked with.
pub fn card(data: &[u8]) {
    let Ok(envelope) = Envelope::from_json(data) else { return };
    if let Ok(card) = SiteCard::open(&envelope) {
        let _ = (card.fingerprint(), card.valid_at(0), card.valid_at(u64::MAX));
        let mut roster = GENUINE.roster.clone();
        let _ = roster.add(envelope);
    }
}

/// A receipt.
pub fn receipt(data: &[u8]) {
    let Ok(envelope) = Envelope::from_json(data) else { return };
    let _ = Receipt::unverified(&envelope);
    if keys().any(|key| Receipt::open(&envelope, &key).is_ok()) {
        let genuine = GENUINE.passport.approvals.iter();
        assert!(genuine.map(Envelope::payload_digest).any(|d| d == envelope.payload_digest()));
    }
}

/// A passport and everything in it.
pub fn passport(data: &[u8]) {
    let Ok(read) = Passport::from_json(data) else { return };
    assert_eq!(Passport::from_json(&read.to_json()).as_ref(), Ok(&read));
    if let Ok(verified) = read.verify(&GENUINE.roster) {
        assert_eq!(verified.plan().round(), GENUINE.plan.round(), "nobody signed another plan");
        assert!(verified.verify_weights(data).is_err());
    }
}

/// A plan's canonical bytes.
pub fn plan(data: &[u8]) {
    if let Ok(plan) = Plan::from_canonical(data) {
        assert_eq!(plan.canonical(), data, "one plan has one form");
        read_by_all(&plan);
    }
}

/// A plan as an operator writes it.
pub fn plan_toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Plan::from_toml(text, 1) {
        Ok(plan) => {
            let again =
                Plan::from_canonical(&plan.canonical()).expect("what one site writes, all read");
            assert_eq!(again, plan);
            read_by_all(&plan);
        }
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
}

fn read_by_all(plan: &Plan) {
    assert!(plan.site_of(plan.last_visit()).is_some());
    let _ = (plan.cycle_of(plan.last_visit()), plan.recipe_digest());
}

/// The payload of a journal's record, its chain intact, on top of a site's state.
pub fn record(data: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Event>(data) else { return };
    let record = Record::next(Tip::EMPTY, &event).expect("it is small");
    assert_eq!(record.open(Tip::EMPTY).as_ref(), Ok(&event));
    for state in [&SiteState::default(), &GENUINE.state] {
        if let Ok(next) = step(state, &event) {
            let _ = next.effects();
        }
    }
}

/// A chunk table, and chunks that are held against it.
pub fn chunk_table(data: &[u8]) {
    let (json, chunk) = data.split_at(data.iter().position(|b| *b == 0).unwrap_or(data.len()));
    let Ok(table) = serde_json::from_slice::<ChunkTable>(json) else { return };
    let sound = table.check().is_ok();
    let begun = Receiving::begin(table.clone());
    assert_eq!(begun.is_ok(), sound);
    let Ok(mut receiving) = begun else { return };
    for index in [0, 1, table.chunks.len() as u64, u64::from(u32::MAX), u64::MAX] {
        if let Ok(range) = receiving.accept(index, chunk) {
            assert!(range.end <= table.bytes && range.end - range.start == chunk.len() as u64);
        }
    }
    assert!(receiving.missing().len() <= table.chunks.len());
    let _ = table.first_damage(chunk);
}

/// A checkpoint: the first byte says of which layout.
pub fn checkpoint(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    let layout = Layout::new(&narrow(), Extras { optimizer: which & 1 == 1, importance: None });
    if layout.check(bytes).is_ok() {
        assert_eq!(bytes.len() as u64, layout.len());
        assert!(bytes.starts_with(layout.header()), "one layout has one header");
    }
}

/// The narrowest network.
#[must_use]
pub fn narrow() -> Architecture {
    Architecture { n1: 1, n2: 1, n3: 1, m: 1 }
}

/// Messages of every service: the first byte says which.
pub fn messages(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 12 {
        0 => each::<peer::Greeting>(bytes, |_| ()),
        1 => each::<peer::ReceiptBatch>(bytes, |m| {
            let _ = convert::digest("round", &m.round);
            m.receipts.iter().for_each(|r| envelope(r));
        }),
        2 => each::<peer::ReceiptAcknowledgement>(bytes, |_| ()),
        3 => each::<peer::Offer>(bytes, |m| {
            let _ = (convert::digest("round", &m.round), convert::visit(m.visit));
            passport(&m.passport);
        }),
        4 => each::<peer::OfferAnswer>(bytes, |m| {
            if let Some(peer::offer_answer::Answer::Held(held)) = &m.answer {
                receipt(&held.receipt);
            }
        }),
        5 => each::<peer::Chunk>(bytes, |m| {
            let _ = (convert::digest("round", &m.round), convert::visit(m.visit));
        }),
        6 => each::<trainer::TrainerReport>(bytes, |_| ()),
        7 => each::<trainer::Task>(bytes, |m| {
            if let Some(trainer::task::Task::Train(task)) = &m.task {
                let _ = convert::optional_digest("received", &task.received);
                if let Some(Ok(recipe)) = task.recipe.clone().map(Recipe::try_from) {
                    assert_eq!(
                        Recipe::try_from(trainer::Recipe::from(&recipe)).as_ref(),
                        Ok(&recipe)
                    );
                }
            }
        }),
        8 => each::<trainer::CheckpointPart>(bytes, |_| ()),
        9 => each::<control::AddPeerRequest>(bytes, |m| card(&m.card)),
        10 => each::<control::RoundView>(bytes, |_| ()),
        _ => each::<control::SiteView>(bytes, |m| card(&m.card)),
    }
}

fn each<M: Message + Default>(bytes: &[u8], look: impl Fn(&M)) {
    if let Ok(message) = M::decode(bytes) {
        look(&message);
        let _ = message.encode_to_vec();
    }
}
