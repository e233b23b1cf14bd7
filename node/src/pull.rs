//! Fetching what peers cannot bring: a site behind a firewall that only dials out collects receipts and
//! checkpoints itself, and they go through the very same checks as if they had been pushed.

use crate::contacts::{self, Client, connect};
use crate::effects::{ANSWER_TIMEOUT, RETRY_MAX, RETRY_MIN, call, refused};
use crate::greeting::Greeter;
use crate::pace::{Direction, Paces};
use crate::rpc::collect::{COLLECT_PATIENCE, HAVING_MAX};
use crate::rpc::peer::PeerService;
use rondo::ids::SiteId;
use rondo_proto::peer::offer_answer::Answer;
use rondo_proto::peer::{CollectRequest, FetchChunksRequest, Having, Offer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

/// How often a peer is asked whether it reaches this site.
const GREET_EVERY: Duration = Duration::from_secs(15);

/// What fetching needs.
#[derive(Clone)]
pub struct Pulls {
    /// Greets peers, and has the state and the keys for calling them.
    pub greeter: Greeter,
    /// From whom to fetch, and when.
    pub paces: Paces,
    /// The checks that everything from a peer goes through.
    pub service: PeerService,
}

impl Pulls {
    /// Keeps in touch with every trusted peer that can be called, until dropped or the daemon stops.
    pub async fn run(self) {
        let mut states = self.greeter.daemon.states();
        let mut running: BTreeMap<SiteId, Running> = BTreeMap::new();
        loop {
            let state = states.borrow_and_update().clone();
            let roster = state.roster();
            let called = |site: &SiteId| {
                *site != *self.greeter.daemon.site()
                    && self.paces.of(site).direction() != Direction::Push
                    && roster.trusted(site).is_ok_and(|card| !card.endpoints.is_empty())
            };
            running.retain(|site, task| called(site) && !task.0.is_finished());
            for (site, _) in roster.peers().filter(|(site, _)| called(site)) {
                running.entry(site.clone()).or_insert_with(|| {
                    let (this, site) = (self.clone(), site.clone());
                    Running(tokio::spawn(async move { this.follow(&site).await }))
                });
            }
            if states.changed().await.is_err() {
                break;
            }
        }
    }

    async fn follow(&self, site: &SiteId) {
        let mut failures = 0_u32;
        loop {
            let Err(e) = self.session(site, &mut failures).await;
            let outcome = Err::<(), _>(e);
            if self.greeter.contacts.note(site, &outcome)
                && let Err(e) = &outcome
            {
                tracing::warn!(peer = %site, "{e}; trying again");
            }
            self.pause(&mut failures).await;
        }
    }

    async fn pause(&self, failures: &mut u32) {
        *failures = failures.saturating_add(1);
        sleep(RETRY_MAX.min(RETRY_MIN * 2_u32.saturating_pow((*failures).min(16)))).await;
    }

    /// Asks one peer again and again over one connection.
    async fn session(
        &self,
        site: &SiteId,
        failures: &mut u32,
    ) -> Result<Infallible, contacts::Error> {
        let mut peer =
            connect(&self.greeter.own.now(), &self.greeter.daemon, &self.greeter.egress, site)
                .await?;
        loop {
            if self.may_be_reached(site) {
                let greeting = self.greeter.exchange(site, &mut peer).await?;
                self.greeter.contacts.note(site, &Ok(()));
                if greeting.reaches_you {
                    *failures = 0;
                    sleep(GREET_EVERY).await;
                    continue;
                }
            }
            let request = CollectRequest { having: self.having(site) };
            let asked = Instant::now();
            let answer = timeout(COLLECT_PATIENCE + ANSWER_TIMEOUT, peer.collect(request)).await;
            let slow = |_| Err(Status::deadline_exceeded("no answer came in time"));
            let answer = answer.unwrap_or_else(slow).map_err(|status| refused(site, status))?;
            let took = asked.elapsed();
            let collected = answer.into_inner();
            let nothing = collected.batches.is_empty() && collected.offers.is_empty();
            let mut moved = false;
            for batch in collected.batches {
                let told = self.service.told(site, batch).await;
                moved |= told.map_err(|status| unacceptable(site, status))?;
            }
            for offer in collected.offers {
                moved |= self.take(&mut peer, site, offer).await?;
            }
            self.greeter.contacts.note(site, &Ok(()));
            if at_once(nothing, moved, took) {
                *failures = 0;
            } else {
                self.pause(failures).await;
            }
        }
    }

    /// Whether the peer may be able to call this site, so that it is worth asking.
    fn may_be_reached(&self, site: &SiteId) -> bool {
        let state = self.greeter.daemon.state();
        let named = state.own().is_some_and(|own| !own.endpoints.is_empty());
        named && self.paces.of(site).direction() == Direction::Automatic
    }

    fn having(&self, site: &SiteId) -> Vec<Having> {
        let state = self.greeter.daemon.state();
        let rounds = state.rounds().iter().filter_map(|(id, round)| {
            let number = u32::try_from(round.receipts.get(site)?.len()).unwrap_or(u32::MAX);
            Some(Having { round: id.as_bytes().to_vec(), number })
        });
        rounds.take(HAVING_MAX).collect()
    }

    /// Takes an offered checkpoint; says whether it is here now and was not before.
    async fn take(
        &self,
        peer: &mut Client,
        site: &SiteId,
        offer: Offer,
    ) -> Result<bool, contacts::Error> {
        if self.paces.of(site).open().is_err() {
            return Ok(false);
        }
        let (round, visit) = (offer.round.clone(), offer.visit);
        let here = |status| unacceptable(site, status);
        let answer = self.service.offered(site, offer).await.map_err(here)?;
        let Some(Answer::Wanted(wanted)) = answer.answer else { return Ok(false) };
        let request =
            FetchChunksRequest { round, visit, chunks: wanted.chunks, offset: wanted.offset };
        let chunks = call(site, peer.fetch_chunks(request)).await?;
        let answer = self.service.taken(site, chunks).await.map_err(here)?;
        Ok(matches!(answer.answer, Some(Answer::Held(_))))
    }
}

/// Whether a peer that answered so after `took` is asked again at once. One that tells what is known
/// already does so until this site's own receipt has arrived there; one that does not wait for news is
/// not to keep both sides busy.
fn at_once(nothing: bool, moved: bool, took: Duration) -> bool {
    moved || (nothing && took >= COLLECT_PATIENCE / 2)
}

fn unacceptable(site: &SiteId, status: Status) -> contacts::Error {
    contacts::Error::Unacceptable { site: site.clone(), status: Box::new(status) }
}

/// A task that ends when it is dropped.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_answers_at_once_with_nothing_new_is_given_a_pause() {
        assert!(!at_once(true, false, Duration::ZERO), "it does not wait for news");
        assert!(!at_once(false, false, Duration::ZERO), "it tells what is known");
        assert!(!at_once(false, false, COLLECT_PATIENCE));
        assert!(at_once(false, true, Duration::ZERO) && at_once(true, false, COLLECT_PATIENCE));
    }
}
