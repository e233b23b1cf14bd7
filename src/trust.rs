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
}

impl SiteCard {
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
        Ok(())
    }

    /// Short text that two people compare by phone: 128 bits over the site id and both keys.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let text = format!("{} {} {}", self.site, self.tls_key, self.signing_key);
        let hex = Digest::of(text.as_bytes()).to_string();
        let groups: Vec<&str> = (0..8).filter_map(|i| hex.get(4 * i..4 * i + 4)).collect();
        groups.join("-")
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
        for card in cards {
            roster.add(card)?;
        }
        Ok(roster)
    }

    /// Adds a card; the same card again changes nothing, a revoked entry may be replaced.
    ///
    /// # Errors
    /// [`Error::OtherKeys`] or [`Error::Full`], or what is wrong with the card.
    pub fn add(&mut self, signed: Envelope) -> Result<(), Error> {
        let card = SiteCard::open(&signed)?;
        let same_key =
            |p: &&Peer| p.card.tls_key == card.tls_key || p.card.signing_key == card.signing_key;
        let others = self.peers.values().filter(|p| !p.revoked && p.card.site != card.site);
        if let Some(other) = others.clone().find(same_key) {
            return Err(Error::SharedKey(card.site, other.card.site.clone()));
        }
        match self.peers.get(&card.site) {
            Some(known) if !known.revoked && known.card.fingerprint() != card.fingerprint() => {
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

    /// The trusted site that owns a TLS key.
    #[must_use]
    pub fn by_tls_key(&self, key: &Digest) -> Option<&SiteCard> {
        self.peers.values().find(|p| !p.revoked && p.card.tls_key == *key).map(|p| &p.card)
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
        roster.add(impostor.sign(&b).unwrap()).unwrap();
        assert_eq!(roster.trusted(&good.site), Ok(&impostor));
    }
}
