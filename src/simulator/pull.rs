//! Fetching what peers cannot bring, for a site behind a firewall that only dials out: what it collects
//! goes through the very same checks as if it had been pushed.

use super::network::{Call, Message};
use super::site::{Context, Site, Stop};
use super::worker::{ANSWER_TIMEOUT, BATCH_MAX, RETRY_MIN};
use super::world::Happening;
use crate::ids::{RoundId, VisitNo};
use crate::round::{Effect, Event, Refusal};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Pause after an answer with nothing new; the daemon's call waits as long for something.
const PAUSE: u64 = 5_000;

/// For each peer the name of what is waited for: an answer, or the time to ask again.
#[derive(Debug, Default)]
pub(super) struct Pulls(BTreeMap<usize, u64>);

impl Site {
    /// Begins to ask every peer.
    pub(super) fn pull(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        if cx.collects != Some(self.index) {
            return Ok(());
        }
        let own = self.index;
        for peer in cx.sites.values().copied().filter(|peer| *peer != own) {
            self.waits(cx, peer, 0)?;
        }
        Ok(())
    }

    /// Names what is waited for from `peer` now; without an answer it is asked again after `pause`.
    fn waits(&mut self, cx: &mut Context<'_>, peer: usize, pause: u64) -> Result<Call, Stop> {
        let (site, boot) = (self.index, self.boot);
        let turn = self.workers()?.next_turn();
        let daemon = self.daemon.as_mut().ok_or(Stop::Died)?;
        daemon.pulls.0.insert(peer, turn);
        cx.later.push((cx.now + pause, Happening::Ask { site, boot, peer, turn }));
        Ok(Call { boot, turn })
    }

    pub(super) fn is_waited_for(&self, peer: usize, turn: u64) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| daemon.pulls.0.get(&peer) == Some(&turn))
    }

    /// Asks `peer` for what it has, unless something else came since.
    pub(super) fn ask(&mut self, cx: &mut Context<'_>, peer: usize, turn: u64) -> Result<(), Stop> {
        if !self.is_waited_for(peer, turn) {
            return Ok(());
        }
        let from = cx.observer.id(peer);
        let having = self.live()?.rounds().iter().filter_map(|(id, round)| {
            Some((*id, u32::try_from(round.receipts.get(from)?.len()).unwrap()))
        });
        let having = having.collect();
        let call = self.waits(cx, peer, ANSWER_TIMEOUT)?;
        cx.sent.push((peer, Message::Collect { call, having }));
        Ok(())
    }

    /// Takes what `peer` had.
    pub(super) fn collected(
        &mut self,
        cx: &mut Context<'_>,
        peer: usize,
        call: Call,
        answer: &Message,
    ) -> Result<(), Stop> {
        let taken = match answer {
            Message::Collected { batches, offers, .. } => {
                self.took(cx, peer, call, batches, offers)
            }
            Message::Fetched { round, visit, pieces, .. } => {
                self.taken(cx, peer, call, *round, *visit, pieces).map(|_| RETRY_MIN)
            }
            _ => Ok(PAUSE),
        };
        let pause = match taken {
            Ok(pause) => pause,
            Err(Stop::Full | Stop::Refused(_)) => PAUSE,
            Err(stop) => return Err(stop),
        };
        // A fetch that is under way is waited for instead.
        if self.is_waited_for(peer, call.turn) {
            self.waits(cx, peer, pause)?;
        }
        Ok(())
    }

    /// The pause before asking again.
    fn took(
        &mut self,
        cx: &mut Context<'_>,
        peer: usize,
        call: Call,
        batches: &[(RoundId, Vec<crate::envelope::Envelope>)],
        offers: &[super::network::Offered],
    ) -> Result<u64, Stop> {
        for (round, receipts) in batches {
            self.receipts(cx, peer, call, *round, receipts)?;
        }
        for (round, visit, passport) in offers {
            let answer = self.offered(cx, peer, call, *round, *visit, passport)?;
            if let Message::Wanted { pieces, .. } = answer {
                let call = self.waits(cx, peer, ANSWER_TIMEOUT)?;
                let (round, visit) = (*round, *visit);
                cx.sent.push((peer, Message::Fetch { call, round, visit, pieces }));
                break;
            }
        }
        Ok(if batches.is_empty() { PAUSE } else { RETRY_MIN })
    }

    /// What a site that collects is answered: what this site's effects would have brought to it.
    pub(super) fn outstanding_to(
        &mut self,
        cx: &mut Context<'_>,
        caller: usize,
        call: Call,
        having: &[(RoundId, u32)],
    ) -> Result<Message, Stop> {
        let to = cx.observer.id(caller).clone();
        for (id, number) in having {
            let state = self.live()?;
            let Some(round) = state.rounds().get(id) else { continue };
            let made = round.receipts.get(&self.id).map_or(0, Vec::len);
            let number = (*number).min(u32::try_from(made).unwrap());
            if number > round.delivered.get(&to).copied().unwrap_or(0) {
                self.adopt(cx, &Event::Delivered { round: *id, to: to.clone(), number })?;
            }
        }
        let having: BTreeMap<_, _> = having.iter().copied().collect();
        let (mut batches, mut offers) = (Vec::new(), Vec::new());
        let state = self.live()?;
        for (id, round) in state.rounds().iter().filter(|(_, r)| r.plan.sites.contains(&to)) {
            let have = having.get(id).copied().unwrap_or(0) as usize;
            let told = round.receipts.get(&self.id).map_or(&[][..], Vec::as_slice);
            let rest: Vec<_> = told.iter().skip(have).take(BATCH_MAX).cloned().collect();
            if !rest.is_empty() {
                batches.push((*id, rest));
            }
        }
        for effect in state.effects() {
            if let Effect::HandOver { round, visit, to: other, .. } = effect
                && other == to
                && let Some(passport) = state.rounds().get(&round).and_then(|r| r.passport(visit))
            {
                offers.push((round, visit, Rc::new(passport)));
            }
        }
        Ok(Message::Collected { call, batches, offers })
    }

    /// Sends pieces of a checkpoint that is to be handed to `caller`.
    pub(super) fn fetched(
        &mut self,
        cx: &mut Context<'_>,
        caller: usize,
        call: Call,
        (round, visit): (RoundId, VisitNo),
        pieces: &[u64],
    ) -> Result<Message, Stop> {
        let to = cx.observer.id(caller);
        let handed = self.live()?.effects().into_iter().find_map(|effect| match effect {
            Effect::HandOver { round: r, visit: v, weights, to: other }
                if (r, v) == (round, visit) && other == *to =>
            {
                Some(weights)
            }
            _ => None,
        });
        let here = handed.is_some_and(|w| self.disk.borrow().checkpoints.contains_key(&w));
        if !here {
            return Err(Stop::Refused(Refusal::Phase("no checkpoint is to be handed there")));
        }
        Ok(Message::Fetched { call, round, visit, pieces: pieces.to_vec() })
    }
}
