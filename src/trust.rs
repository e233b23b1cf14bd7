//! Who is who: site cards, the roster of pinned keys, and what a peer may do.

use crate::envelope::{self, Envelope, SigningKey, VerifyingKey};
use crate::ids::{Digest, SiteId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Payload type of a site card.
pub const CARD_TYPE: &str = "application/vnd.rondo.site-card.v1+json";
/// Most endpoints a card may name.
pub const ENDPOINTS_MAX: usize = 8;
/// Longest endpoint.
pub const ENDPOINT_MAX_BYTES: usize = 255;
/// Most former signing keys of a site.
pub const FORMER_MAX: usize = 32;
/// Most peers in a roster.
pub const PEERS_MAX: usize = 256;

/// Why a card or a caller was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a signed card.
    #[error("reading the site card: {0}")]
    Envelope(#[from] envelope::Error),
    /// Signed, but impossible.
    #[error("the site card is not usable: {0}")]
    Card(String),
    /// Its validity is over or has not begun.
    #[error(
        "the card of {site} is valid from {from} to {until} (Unix seconds), not at {now}; ask for a new card, or check this machine's clock"
    )]
    Validity {
        /// Whose card.
        site: SiteId,
        /// Begin.
        from: u64,
        /// End.
        until: u64,
        /// Now.
        now: u64,
    },
    /// Another card is known for this site.
    #[error(
        "{0} is already in the roster with other keys; revoke that entry first if the new card is genuine"
    )]
    OtherKeys(SiteId),
    /// A key that belongs to another site.
    #[error("the card of {0} names a key of {1}; a key belongs to one site")]
    SharedKey(SiteId, SiteId),
    /// Too many peers.
    #[error("the roster is full ({PEERS_MAX} peers)")]
    Full,
    /// Not in the roster.
    #[error("{0} is not in the roster; exchange cards and run `rondo peer add`")]
    Unknown(SiteId),
    /// In the roster, but revoked.
    #[error("{0} is revoked in this roster")]
    Revoked(SiteId),
}

/// What a site says about itself; two sites exchange these by any channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteCard {
    /// The site's id.
    pub site: SiteId,
    /// Name for people.
    pub name: String,
    /// Where the site can be reached, as `host:port`; empty for a site that only dials out.
    pub endpoints: Vec<String>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) of its TLS certificate.
    pub tls_key: Digest,
    /// Its signing key.
    pub signing_key: VerifyingKey,
    /// First second of validity, Unix time.
    pub valid_from: u64,
    /// Last second of validity, Unix time.
    pub valid_until: u64,
    /// Keys that will take the place of these; peers accept them from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Keys>,
    /// Signing keys from before, newest last: what they signed still holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<VerifyingKey>,
}

/// The two keys of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// SHA-256 of the public key (SubjectPublicKeyInfo) of its TLS certificate.
    pub tls_key: Digest,
    /// Its signing key.
    pub signing_key: VerifyingKey,
}

impl SiteCard {
    /// The keys in force.
    #[must_use]
    pub fn keys(&self) -> Keys {
        Keys { tls_key: self.tls_key, signing_key: self.signing_key }
    }

    /// Fingerprint of the keys that the card announces.
    #[must_use]
    pub fn next_fingerprint(&self) -> Option<String> {
        self.next.as_ref().map(|keys| fingerprint(&self.site, keys))
    }

    /// Whether the card takes the place of `known` without anybody comparing fingerprints: it is
    /// newer, its keys are those of `known` or the ones `known` announced, and it disowns no key.
    /// An announcement is not exchanged for another one unseen.
    #[must_use]
    pub fn renews(&self, known: &Self) -> bool {
        let activates = known.next == Some(self.keys());
        let announces = known.next.is_none() || known.next == self.next;
        let keeps = known.former.iter().all(|key| self.former.contains(key));
        self.site == known.site
            && self.valid_from > known.valid_from
            && keeps
            && if activates {
                known.signing_key == self.signing_key || self.former.contains(&known.signing_key)
            } else {
                self.keys() == known.keys() && announces
            }
    }

    fn has_tls_key(&self, key: &Digest) -> bool {
        self.tls_key == *key || self.next.is_some_and(|next| next.tls_key == *key)
    }

    /// Every signing key by which the site is, will be or was known.
    pub(crate) fn signing_keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        let next = self.next.as_ref().map(|next| &next.signing_key);
        std::iter::once(&self.signing_key).chain(next).chain(&self.former)
    }

    fn shares_a_key_with(&self, other: &Self) -> bool {
        let next = self.next.map(|next| next.tls_key);
        std::iter::once(self.tls_key).chain(next).any(|key| other.has_tls_key(&key))
            || self.signing_keys().any(|key| other.signing_keys().any(|k| k == key))
    }

    /// Signs the card with the site's own key.
    ///
    /// # Errors
    /// If the card is impossible or signing fails.
    pub fn sign(&self, key: &SigningKey) -> Result<Envelope, Error> {
        self.check()?;
        let payload = serde_json::to_vec(self).map_err(|e| Error::Card(e.to_string()))?;
        Ok(key.sign(CARD_TYPE, payload)?)
    }

    /// Opens a card: signed by the key that it names, and possible in every field.
    ///
    /// # Errors
    /// What does not hold.
    pub fn open(envelope: &Envelope) -> Result<Self, Error> {
        let card: Self = serde_json::from_slice(envelope.unverified(CARD_TYPE)?)
            .map_err(|e| Error::Card(e.to_string()))?;
        envelope.verify(CARD_TYPE, &card.signing_key)?;
        card.check()?;
        Ok(card)
    }

    fn check(&self) -> Result<(), Error> {
        let printable = |s: &str, max: usize| {
            !s.is_empty() && s.len() <= max && !s.chars().any(char::is_control)
        };
        if !printable(&self.name, 100) {
            return Err(Error::Card("its name must have 1 to 100 printable characters".to_owned()));
        }
        let endpoint = |e: &String| {
            printable(e, ENDPOINT_MAX_BYTES)
                && e.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0)
                })
        };
        if self.endpoints.len() > ENDPOINTS_MAX || !self.endpoints.iter().all(endpoint) {
            let text = format!("endpoints must be at most {ENDPOINTS_MAX} of the form host:port");
            return Err(Error::Card(text));
        }
        if self.valid_from >= self.valid_until {
            return Err(Error::Card("its validity ends before it begins".to_owned()));
        }
        if self.next == Some(self.keys()) {
            return Err(Error::Card("it announces the keys that it has".to_owned()));
        }
        if self.former.len() > FORMER_MAX || self.former.contains(&self.signing_key) {
            let text = format!("it may name {FORMER_MAX} former keys, its own not among them");
            return Err(Error::Card(text));
        }
        Ok(())
    }

    /// Short text that two people compare by phone: 128 bits over the site id and the two keys in
    /// force. The card is signed by one of them, which vouches for everything else in it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.site, &self.keys())
    }

    /// Whether the card is valid at `now`.
    ///
    /// # Errors
    /// [`Error::Validity`].
    pub fn valid_at(&self, now: u64) -> Result<(), Error> {
        if (self.valid_from..=self.valid_until).contains(&now) {
            return Ok(());
        }
        let (site, from, until) = (self.site.clone(), self.valid_from, self.valid_until);
        Err(Error::Validity { site, from, until, now })
    }
}

fn fingerprint(site: &SiteId, keys: &Keys) -> String {
    let text = format!("{site} {} {}", keys.tls_key, keys.signing_key);
    let hex = Digest::of(text.as_bytes()).to_string();
    let groups: Vec<&str> = (0..8).filter_map(|i| hex.get(4 * i..4 * i + 4)).collect();
    groups.join("-")
}

/// A site in the roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its card.
    pub card: SiteCard,
    /// The card as it was signed.
    pub signed: Envelope,
    /// Whether it was revoked; a revoked peer stays known, so that its old signatures can be explained.
    pub revoked: bool,
}

/// Pinned keys of the sites this site trusts, this site among them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roster {
    peers: BTreeMap<SiteId, Peer>,
}

impl Roster {
    /// A roster of the given signed cards, for checking a passport offline.
    ///
    /// # Errors
    /// If a card is not genuine, or two contradict each other.
    pub fn of(cards: impl IntoIterator<Item = Envelope>) -> Result<Self, Error> {
        let mut roster = Self::default();
        let open = |signed: Envelope| Ok((SiteCard::open(&signed)?.valid_from, signed));
        let mut cards = cards.into_iter().map(open).collect::<Result<Vec<_>, Error>>()?;
        // A folder may hold the cards of a site before and after it changed its keys.
        cards.sort_by_key(|(from, _)| *from);
        for (_, card) in cards {
            roster.add(card)?;
        }
        Ok(roster)
    }

    /// Adds a card; the same card again changes nothing, a revoked entry may be replaced, and a site
    /// may change over to keys that its card has announced.
    ///
    /// # Errors
    /// [`Error::OtherKeys`] or [`Error::Full`], or what is wrong with the card.
    pub fn add(&mut self, signed: Envelope) -> Result<(), Error> {
        let card = SiteCard::open(&signed)?;
        let others = self.peers.values().filter(|p| !p.revoked && p.card.site != card.site);
        if let Some(other) = others.map(|p| &p.card).find(|other| card.shares_a_key_with(other)) {
            return Err(Error::SharedKey(card.site, other.site.clone()));
        }
        match self.peers.get(&card.site) {
            Some(known)
                if !known.revoked
                    && known.card.fingerprint() != card.fingerprint()
                    && !card.renews(&known.card) =>
            {
                return Err(Error::OtherKeys(card.site));
            }
            None if self.peers.len() >= PEERS_MAX => return Err(Error::Full),
            _ => {}
        }
        self.peers.insert(card.site.clone(), Peer { card, signed, revoked: false });
        Ok(())
    }

    /// Revokes a site.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn revoke(&mut self, site: &SiteId) -> Result<(), Error> {
        self.peers.get_mut(site).map(|p| p.revoked = true).ok_or(Error::Unknown(site.clone()))
    }

    /// All sites in order.
    pub fn peers(&self) -> impl Iterator<Item = (&SiteId, &Peer)> {
        self.peers.iter()
    }

    /// The card of `site`, if it is trusted.
    ///
    /// # Errors
    /// [`Error::Unknown`] or [`Error::Revoked`].
    pub fn trusted(&self, site: &SiteId) -> Result<&SiteCard, Error> {
        match self.peers.get(site) {
            Some(peer) if !peer.revoked => Ok(&peer.card),
            Some(_) => Err(Error::Revoked(site.clone())),
            None => Err(Error::Unknown(site.clone())),
        }
    }

    /// The key by which `site` signed `envelope`, as far as the envelope tells: the one in force, the
    /// announced one or a former one. The signature itself remains to be checked.
    ///
    /// # Errors
    /// As [`Roster::trusted`].
    pub fn signing_key(&self, site: &SiteId, envelope: &Envelope) -> Result<VerifyingKey, Error> {
        let card = self.trusted(site)?;
        let named = card.signing_keys().find(|key| key.id() == envelope.key());
        Ok(*named.unwrap_or(&card.signing_key))
    }

    /// The trusted site that owns a TLS key, in force or announced.
    #[must_use]
    pub fn by_tls_key(&self, key: &Digest) -> Option<&SiteCard> {
        self.known_by_tls_key(key).filter(|peer| !peer.revoked).map(|peer| &peer.card)
    }

    /// The site that owns a TLS key, in force or announced, even if it is revoked. It gives no trust.
    #[must_use]
    pub fn known_by_tls_key(&self, key: &Digest) -> Option<&Peer> {
        let all = self.peers.values().filter(|peer| peer.card.has_tls_key(key));
        // A key of a revoked site may have become another site's.
        all.min_by_key(|peer| peer.revoked)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn card(site: &str, key: &SigningKey) -> SiteCard {
        SiteCard {
            site: site.parse().unwrap(),
            name: format!("Hospital {site}"),
            endpoints: vec!["localhost:7443".to_owned()],
            tls_key: Digest::of(site.as_bytes()),
            signing_key: key.public(),
            valid_from: 100,
            valid_until: 200,
            next: None,
            former: Vec::new(),
        }
    }

    #[test]
    fn foreign_and_impossible_cards_are_refused() {
        let new = || SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let (a, b) = (new(), new());
        let good = card("uker", &a);
        assert!(SiteCard::open(&good.sign(&b).unwrap()).is_err(), "signed by another key");
        for bad in [
            SiteCard { name: "a\nb".to_owned(), ..good.clone() },
            SiteCard { endpoints: vec!["nowhere".to_owned()], ..good.clone() },
            SiteCard { endpoints: vec!["h:0".to_owned()], ..good.clone() },
            SiteCard { valid_until: 100, ..good.clone() },
        ] {
            assert!(bad.sign(&a).is_err(), "{bad:?}");
        }
        assert!(good.valid_at(99).is_err() && good.valid_at(201).is_err());
        assert!(good.valid_at(150).is_ok());
        assert_eq!(SiteCard::open(&good.sign(&a).unwrap()).unwrap(), good);

        let mut roster = Roster::default();
        roster.add(good.sign(&a).unwrap()).unwrap();
        roster.add(good.sign(&a).unwrap()).unwrap();
        let thief = SiteCard { tls_key: good.tls_key, ..card("usz", &b) };
        let stolen = roster.add(thief.sign(&b).unwrap());
        assert_eq!(stolen, Err(Error::SharedKey(thief.site, good.site.clone())));
        let impostor = card("uker", &b);
        assert_eq!(
            roster.add(impostor.sign(&b).unwrap()),
            Err(Error::OtherKeys(good.site.clone()))
        );
        assert!(roster.trusted(&"usz".parse().unwrap()).is_err());
        assert_eq!(roster.by_tls_key(&good.tls_key), Some(&good));
        roster.revoke(&good.site).unwrap();
        assert_eq!(roster.trusted(&good.site), Err(Error::Revoked(good.site.clone())));
        assert_eq!(roster.by_tls_key(&good.tls_key), None);
        assert!(roster.known_by_tls_key(&good.tls_key).is_some_and(|peer| peer.revoked));
        assert!(roster.known_by_tls_key(&Digest::of(b"nobody")).is_none());
        roster.add(impostor.sign(&b).unwrap()).unwrap();
        assert_eq!(roster.trusted(&good.site), Ok(&impostor));
    }

    #[test]
    fn keys_change_only_to_those_that_were_announced() {
        let new = || SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let (old, young, thief) = (new(), new(), new());
        let first = card("uker", &old);
        let next = Keys { tls_key: Digest::of(b"next"), signing_key: young.public() };
        let mut announced = SiteCard { valid_from: 101, next: Some(next), ..first.clone() };
        let mut second = SiteCard {
            valid_from: 102,
            tls_key: next.tls_key,
            signing_key: next.signing_key,
            former: vec![old.public()],
            ..first.clone()
        };
        let said = |key: &SigningKey| key.sign(CARD_TYPE, vec![1]).unwrap();
        let holds = |roster: &Roster, key: &SigningKey| {
            let known = roster.signing_key(&first.site, &said(key)).unwrap();
            said(key).verify(CARD_TYPE, &known).is_ok()
        };

        let mut roster = Roster::of([first.sign(&old).unwrap()]).unwrap();
        let other = Err(Error::OtherKeys(first.site.clone()));
        assert_eq!(roster.add(second.sign(&young).unwrap()), other, "never announced");
        assert!(!holds(&roster, &young) && roster.by_tls_key(&next.tls_key).is_none());
        assert!(announced.renews(&first) && !first.renews(&announced));
        roster.add(announced.sign(&old).unwrap()).unwrap();
        assert_eq!(announced.fingerprint(), first.fingerprint());
        assert!(holds(&roster, &old) && holds(&roster, &young) && !holds(&roster, &thief));
        assert_eq!(roster.by_tls_key(&next.tls_key), Some(&announced));

        let stolen = Keys { signing_key: thief.public(), ..next };
        let exchanged = SiteCard { valid_from: 103, next: Some(stolen), ..announced.clone() };
        assert!(!exchanged.renews(&announced), "another announcement is for people to see");
        assert!(second.renews(&announced));
        second.former.clear();
        assert!(!second.renews(&announced), "it disowns what it signed");
        assert_eq!(roster.add(second.sign(&young).unwrap()), other);
        second.former.push(old.public());
        second.valid_from = 101;
        assert!(!second.renews(&announced), "not newer");
        second.valid_from = 102;
        assert!(second.sign(&old).and_then(|c| roster.add(c)).is_err(), "not by the new key");
        roster.add(second.sign(&young).unwrap()).unwrap();
        assert!(holds(&roster, &old) && holds(&roster, &young) && !holds(&roster, &thief));
        assert_eq!(roster.by_tls_key(&first.tls_key), None, "the old TLS key opens nothing");

        // A key belongs to one site, also one from before or to come.
        let claim = SiteCard { former: vec![old.public()], ..card("usz", &thief) };
        assert!(matches!(roster.add(claim.sign(&thief).unwrap()), Err(Error::SharedKey(..))));
        let cards =
            [second.sign(&young), announced.sign(&old), first.sign(&old)].map(Result::unwrap);
        let offline = Roster::of(cards).unwrap();
        assert!(holds(&offline, &old) && offline.trusted(&first.site) == Ok(&second));
        roster.revoke(&first.site).unwrap();
        assert!(roster.signing_key(&first.site, &said(&old)).is_err());
        announced.next = Some(announced.keys());
        assert!(announced.sign(&old).is_err());
    }
}
