//! Renewing this site's own keys and card while the daemon runs.

use crate::daemon::{self, Daemon, unix_now};
use crate::greeting::Greeter;
use crate::identity::{self, Identity, Own};
use rondo::ids::SiteId;
use rondo::round::Event;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Why keys or card were not renewed; those from before are in force then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The journal.
    #[error("the renewed card is on the disk, but not in the journal yet: {0}. Restart the daemon")]
    Journal(#[from] daemon::Error),
    /// Peers that would not know this site any more.
    #[error(
        "{} not adopted the next keys yet and would not let this site in: wait until their daemons were reached, or let their operators run `rondo peer add` with the new card. --force changes over all the same", names(.0)
    )]
    Waiting(Vec<SiteId>),
}

fn names(sites: &[SiteId]) -> String {
    let list: Vec<&str> = sites.iter().map(SiteId::as_str).collect();
    format!("{} {}", list.join(", "), if sites.len() == 1 { "has" } else { "have" })
}

/// What to renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make next keys and announce them.
    Prepare,
    /// Change over to the next keys, even if some peers do not know them.
    Activate {
        /// Whether to leave peers behind.
        force: bool,
    },
    /// The card alone.
    CardOnly,
}

/// Renews keys and card, one step at a time.
#[derive(Clone)]
pub struct Renewal {
    home: PathBuf,
    daemon: Daemon,
    own: Own,
    greeter: Greeter,
    turn: Arc<Mutex<()>>,
}

impl Renewal {
    /// Renews what lies in `home`.
    #[must_use]
    pub fn new(home: PathBuf, greeter: Greeter) -> Self {
        let (daemon, own) = (greeter.daemon.clone(), greeter.own.clone());
        Self { home, daemon, own, greeter, turn: Arc::default() }
    }

    /// Does one step; what it gives is in force.
    ///
    /// # Errors
    /// Why it was not done.
    pub async fn renew(&self, step: Step, valid_days: u32) -> Result<Arc<Identity>, Error> {
        let _turn = self.turn.lock().await;
        let own = self.own.now();
        if step == (Step::Activate { force: false }) && own.own.next.is_some() {
            self.greeter.greet_all(self.waiting_for()).await;
            let waiting = self.waiting_for();
            if !waiting.is_empty() {
                return Err(Error::Waiting(waiting));
            }
        }
        let (home, now) = (&self.home, unix_now());
        let renewed = match step {
            Step::Prepare => own.prepare(home, now, valid_days)?,
            Step::Activate { .. } => own.activate(home, now, valid_days)?,
            Step::CardOnly => own.renew_card(home, now, valid_days)?,
        };
        // The card on the disk decides; the journal follows now, or at the next start.
        self.daemon.adopt(Event::SiteOpened { card: renewed.card.clone() }).await?;
        tracing::info!(?step, fingerprint = renewed.own.fingerprint(), "own card renewed");
        self.own.change(renewed);
        Ok(self.own.now())
    }

    /// Trusted peers that, as far as is known here, do not hold this site's card as it is now.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<SiteId> {
        let card = self.own.now().card.payload_digest();
        let sites = self.greeter.trusted().into_iter().map(|card| card.site);
        sites.filter(|site| self.greeter.contacts.of(site).held != Some(card)).collect()
    }
}
