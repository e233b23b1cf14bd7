//! Greetings between sites: who is there, and whose card was renewed.
//!
//! A greeting carries the signed card of both sides. A renewed card is adopted without anybody's
//! doing where its keys are the known ones or those that the known card announced; nothing else is.

use crate::audit::Audit;
use crate::contacts::{self, Client, Contacts, connect};
use crate::daemon::{self, Daemon, to_the_end, unix_now};
use crate::effects::call;
use crate::identity::Own;
use crate::ledger::Egress;
use rondo::audit::What;
use rondo::envelope::{ENVELOPE_MAX_BYTES, Envelope};
use rondo::ids::{Digest, SiteId};
use rondo::round::Event;
use rondo::trust::{Peer, SiteCard};
use rondo_proto::peer::{GreetRequest, Greeting};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often it is looked who is to be greeted.
const LOOK: Duration = Duration::from_secs(2);
/// A peer that answered is greeted again after this long, or when a card changes.
const GREET_EVERY: Duration = Duration::from_secs(900);
/// A peer that did not answer is greeted again after this long.
const RETRY: Duration = Duration::from_secs(60);
/// A greeting that takes longer holds up the others no more.
const PATIENCE: Duration = Duration::from_secs(15);
/// Greetings under way at the same time.
const GREETINGS_MAX: usize = 16;
/// Cards of one peer that are adopted from greetings in a day: each is a record of the journal.
const CARDS_PER_DAY: u32 = 8;
const DAY_S: u64 = 86_400;

/// Greets peers and learns from their greetings.
#[derive(Clone)]
pub struct Greeter {
    /// The state.
    pub daemon: Daemon,
    /// This site's keys and card.
    pub own: Own,
    /// How calls went, and which card each peer holds.
    pub contacts: Contacts,
    /// Counts what is sent.
    pub egress: Egress,
    /// Where it is written down whose renewed card was adopted.
    pub audit: Audit,
    /// For each peer, a day and how many cards were adopted in it.
    adopted: Arc<Mutex<BTreeMap<SiteId, (u64, u32)>>>,
}

/// When a peer was greeted, between which cards, and whether it answered.
struct Greeted {
    at: Instant,
    cards: (u64, u64),
    answered: bool,
}

impl Greeter {
    /// A greeter of the peers of `daemon`.
    #[must_use]
    pub fn new(daemon: Daemon, own: Own, contacts: Contacts, egress: Egress, audit: Audit) -> Self {
        Self { daemon, own, contacts, egress, audit, adopted: Arc::default() }
    }

    /// Greets every peer that can be reached, again and again, until dropped.
    pub async fn run(self) {
        let mut greeted: BTreeMap<SiteId, Greeted> = BTreeMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let from = self.own.now().own.valid_from;
            let peers = self.trusted();
            greeted.retain(|site, _| peers.iter().any(|card| card.site == *site));
            let due = peers.into_iter().filter(|card| {
                let Some(last) = greeted.get(&card.site) else { return true };
                let pause = if last.answered { GREET_EVERY } else { RETRY };
                last.cards != (from, card.valid_from) || last.at.elapsed() >= pause
            });
            let due: Vec<SiteCard> = due.filter(|card| !card.endpoints.is_empty()).collect();
            let cards: BTreeMap<SiteId, u64> =
                due.iter().map(|card| (card.site.clone(), card.valid_from)).collect();
            let sites = due.into_iter().map(|card| card.site).collect();
            for (site, answered) in self.greet_all(sites).await {
                let cards = (from, cards.get(&site).copied().unwrap_or_default());
                greeted.insert(site, Greeted { at: Instant::now(), cards, answered });
            }
        }
    }

    /// Greets `sites`; says of each whether it answered.
    pub async fn greet_all(&self, sites: Vec<SiteId>) -> Vec<(SiteId, bool)> {
        let mut waiting = sites.into_iter();
        let (mut calls, mut done) = (JoinSet::new(), Vec::new());
        loop {
            while calls.len() < GREETINGS_MAX
                && let Some(site) = waiting.next()
            {
                let this = self.clone();
                calls.spawn(async move {
                    let answered = this.greet(&site).await;
                    (site, answered)
                });
            }
            match calls.join_next().await {
                Some(outcome) => done.extend(outcome.ok()),
                None => return done,
            }
        }
    }

    async fn greet(&self, site: &SiteId) -> bool {
        let outcome = async {
            let mut client = connect(&self.own.now(), &self.daemon, &self.egress, site).await?;
            self.exchange(site, &mut client).await
        };
        let slow = |_| contacts::Error::Connect {
            site: site.clone(),
            endpoint: "its endpoints".to_owned(),
            what: format!("no greeting within {} s", PATIENCE.as_secs()),
        };
        let outcome =
            tokio::time::timeout(PATIENCE, outcome).await.unwrap_or_else(|e| Err(slow(e)));
        if self.contacts.note(site, &outcome)
            && let Err(e) = &outcome
        {
            tracing::warn!(peer = %site, "{e}; greeting it again later");
        }
        outcome.is_ok()
    }

    /// Greets `site` on a connection that is there.
    ///
    /// # Errors
    /// Why there was no answer.
    pub async fn exchange(
        &self,
        site: &SiteId,
        client: &mut Client,
    ) -> Result<Greeting, contacts::Error> {
        let card = self.own.now().card.to_json();
        let request = GreetRequest { card, holds: self.holds(site) };
        let greeting = call(site, client.greet(request)).await?;
        self.learn(site, &greeting.card, &greeting.holds).await;
        Ok(greeting)
    }

    /// Digest of the card by which `site` is known here.
    #[must_use]
    pub fn holds(&self, site: &SiteId) -> Vec<u8> {
        let known = self.known(site);
        known.map(|peer| peer.signed.payload_digest().as_bytes().to_vec()).unwrap_or_default()
    }

    /// Takes note of what `site` said in a greeting: its card, and which card of this site it holds.
    pub async fn learn(&self, site: &SiteId, card: &[u8], holds: &[u8]) {
        if let Ok(held) = <[u8; 32]>::try_from(holds) {
            self.contacts.note_held(site, Digest::from_bytes(held));
        }
        // Sites of older software say nothing of cards.
        if !card.is_empty()
            && let Err(why) = self.adopt(site, card).await
        {
            tracing::warn!(peer = %site, "its card is not adopted: {why}");
        }
    }

    async fn adopt(&self, site: &SiteId, card: &[u8]) -> Result<(), String> {
        if card.len() > ENVELOPE_MAX_BYTES {
            return Err("it is too large".to_owned());
        }
        let signed = Envelope::from_json(card).map_err(|e| e.to_string())?;
        let Some(known) = self.known(site) else { return Ok(()) };
        if signed.payload_digest() == known.signed.payload_digest() {
            return Ok(());
        }
        let card = SiteCard::open(&signed).map_err(|e| e.to_string())?;
        if card.site == *site && card.valid_from <= known.card.valid_from {
            return Ok(());
        }
        card.valid_at(unix_now()).map_err(|e| e.to_string())?;
        if !card.renews(&known.card) {
            return Err(format!(
                "its keys are not the ones that the known card has or announces (fingerprint {}); ask {site} by phone",
                card.fingerprint()
            ));
        }
        if !self.may_adopt(site) {
            return Err(format!("{CARDS_PER_DAY} cards of it were adopted today already"));
        }
        let fingerprint = card.fingerprint();
        tracing::info!(peer = %site, fingerprint, "adopting its renewed card");
        let (daemon, audit) = (self.daemon.clone(), self.audit.clone());
        let what = What::PeerAdded { site: site.clone(), fingerprint };
        // The peer may hang up, or be too slow for a greeting; what was adopted is written down.
        let adopted = to_the_end(async move {
            daemon.adopt(Event::PeerAdded { card: signed }).await?;
            audit.daemon(what).await;
            Ok::<_, daemon::Error>(())
        });
        adopted.await.and_then(|done| done).map_err(|e| e.to_string())
    }

    fn may_adopt(&self, site: &SiteId) -> bool {
        let today = unix_now() / DAY_S;
        let mut adopted = self.adopted.lock().unwrap_or_else(PoisonError::into_inner);
        let count = adopted.entry(site.clone()).or_default();
        if count.0 != today {
            *count = (today, 0);
        }
        count.1 = count.1.saturating_add(1);
        count.1 <= CARDS_PER_DAY
    }

    fn known(&self, site: &SiteId) -> Option<Peer> {
        let state = self.daemon.state();
        state.roster().peers().find(|(s, p)| *s == site && !p.revoked).map(|(_, p)| p.clone())
    }

    /// Cards of the peers that are trusted, this site aside.
    #[must_use]
    pub fn trusted(&self) -> Vec<SiteCard> {
        let state = self.daemon.state();
        let peers = state.roster().peers().filter(|(s, p)| *s != self.daemon.site() && !p.revoked);
        peers.map(|(_, p)| p.card.clone()).collect()
    }
}
