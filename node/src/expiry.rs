//! Cards that run out: said in time, before a peer is refused.

use crate::daemon::{Daemon, unix_now};
use rondo::ids::SiteId;
use rondo::trust::SiteCard;
use std::collections::BTreeMap;
use std::time::Duration;

/// Days before its end at which a card is warned of.
const WARN_DAYS: [u64; 4] = [1, 7, 14, 30];
/// How often cards are looked at.
const LOOK: Duration = Duration::from_secs(600);
const DAY_S: u64 = 86_400;

/// The shortest of [`WARN_DAYS`] that is not shorter than what is left of `card`.
fn threshold(card: &SiteCard, now: u64) -> Option<u64> {
    let left = card.valid_until.saturating_sub(now);
    WARN_DAYS.into_iter().find(|days| left <= days * DAY_S)
}

/// The threshold that a card has come below, in days: 0 once it is over, none while there is time.
#[must_use]
pub fn below_days(card: &SiteCard, now: u64) -> Option<u64> {
    if card.valid_until < now { Some(0) } else { threshold(card, now) }
}

/// What there is to say about the validity of `card`.
#[must_use]
pub fn warnings(card: &SiteCard, now: u64) -> Vec<String> {
    let (site, until) = (&card.site, card.valid_until);
    let what = match until.checked_sub(now) {
        None => format!("the card of {site} has expired; its connections are refused"),
        Some(left) if threshold(card, now).is_some() => match left / DAY_S {
            0 => format!("the card of {site} expires within a day"),
            1 => format!("the card of {site} expires in 1 day"),
            days => format!("the card of {site} expires in {days} days"),
        },
        Some(_) => return Vec::new(),
    };
    vec![format!("{what}; `rondo site renew` there gives a new one")]
}

/// Logs, once for each threshold of each card, what runs out; ends with the daemon.
pub async fn watch(daemon: Daemon) {
    let mut said: BTreeMap<SiteId, (u64, u64)> = BTreeMap::new();
    let mut states = daemon.states();
    loop {
        let state = states.borrow_and_update().clone();
        let now = unix_now();
        for (site, peer) in state.roster().peers().filter(|(_, peer)| !peer.revoked) {
            let Some(days) = below_days(&peer.card, now) else { continue };
            let mark = (peer.card.valid_until, days);
            if said.insert(site.clone(), mark) != Some(mark) {
                for warning in warnings(&peer.card, now) {
                    tracing::warn!("{warning}");
                }
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::identity::{Identity, NewSite};

    #[test]
    fn a_card_is_warned_of_at_four_thresholds() {
        let home = tempfile::tempdir().unwrap();
        let now = 1_000_000_000;
        let new = NewSite {
            site: "uker".parse().unwrap(),
            name: "UKER".to_owned(),
            endpoints: vec![],
            now,
            valid_days: 100,
        };
        let card = Identity::create(home.path(), &new).unwrap().own;
        let left = |days: u64| card.valid_until - days * DAY_S;
        assert_eq!(warnings(&card, left(31)), Vec::<String>::new());
        let expected = [(30, 30), (15, 30), (14, 14), (8, 14), (7, 7), (2, 7), (1, 1), (0, 1)];
        for (days, mark) in expected {
            assert_eq!(below_days(&card, left(days)), Some(mark), "{days} days left");
            assert_eq!(warnings(&card, left(days)).len(), 1);
        }
        assert_eq!(below_days(&card, left(31)), None);
        assert_eq!(below_days(&card, card.valid_until + 1), Some(0));
        assert!(warnings(&card, left(14))[0].contains("expires in 14 days"));
        assert!(warnings(&card, card.valid_until + 1)[0].contains("has expired"));
    }
}
