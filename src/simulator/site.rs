//! A site: a disk, and while it is up a daemon. What it is told is in `service`, what it does by itself
//! in `worker`.

use super::disk::{Disk, Failure, Hold};
use super::invariants::{Observer, Violation};
use super::mutation::Mutation;
use super::network::Message;
use super::pull::Pulls;
use super::random::Random;
use super::worker::Workers;
use super::world::Happening;
use crate::envelope::{Envelope, SigningKey};
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::owner::{self, Owner};
use crate::plan::Plan;
use crate::round::{Event, ReceiptBody, Refusal, Round, RoundPhase, SiteState};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// What a site may use while it handles one happening, and what comes of that.
pub(super) struct Context<'w> {
    pub(super) now: u64,
    pub(super) random: &'w mut Random,
    pub(super) observer: &'w mut Observer,
    pub(super) sites: &'w BTreeMap<SiteId, usize>,
    /// The site that nobody can call, which collects what is for it.
    pub(super) collects: Option<usize>,
    /// Whether trainers may still fail.
    pub(super) troubled: bool,
    pub(super) sent: Vec<(usize, Message)>,
    pub(super) later: Vec<(u64, Happening)>,
}

/// Why something did not happen at a site.
#[derive(Debug)]
pub(super) enum Stop {
    /// The daemon died in a commit.
    Died,
    Full,
    Refused(Refusal),
    /// Something that must never be.
    Violation(Violation),
}

impl From<owner::Error<Failure>> for Stop {
    fn from(e: owner::Error<Failure>) -> Self {
        match e {
            owner::Error::Log(Failure::Died) => Self::Died,
            owner::Error::Log(Failure::Full) => Self::Full,
            owner::Error::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

pub(super) struct Site {
    pub(super) id: SiteId,
    pub(super) index: usize,
    pub(super) key: Arc<SigningKey>,
    pub(super) disk: Rc<RefCell<Disk>>,
    pub(super) daemon: Option<Daemon>,
    /// How often it started.
    pub(super) boot: u64,
    /// Unix time of this site's clock when the schedule begins.
    pub(super) clock: u64,
    /// Milliseconds that training a visit takes.
    pub(super) training: u64,
    /// What is left of a visit, as the trainer saved it.
    pub(super) progress: BTreeMap<(RoundId, VisitNo), u64>,
    /// Whether its operator starts rounds.
    pub(super) starts: bool,
    /// Whether its operator pauses, resumes and aborts rounds at random.
    pub(super) steers: bool,
    /// Plans that its operator has and did not propose yet.
    pub(super) proposes: Vec<Plan>,
    pub(super) mutation: Option<Mutation>,
}

/// What is in memory while the site is up.
pub(super) struct Daemon {
    pub(super) owner: Owner<Hold>,
    pub(super) workers: Workers,
    pub(super) pulls: Pulls,
}

impl Site {
    /// The live state.
    pub(super) fn state(&self) -> Option<&Arc<SiteState>> {
        self.daemon.as_ref().map(|daemon| daemon.owner.state())
    }

    pub(super) fn start(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let replayed = self.disk.borrow_mut().replay();
        let state = replayed.map_err(|e| Violation::Replay(self.id.clone(), e.to_string()))?;
        self.boot += 1;
        let owner = Owner::new(Hold(self.disk.clone()), state);
        let (workers, pulls) = (Workers::default(), Pulls::default());
        self.daemon = Some(Daemon { owner, workers, pulls });
        self.look(cx)?;
        self.pull(cx)
    }

    pub(super) fn stop(&mut self, power: bool, now: u64, observer: &mut Observer) {
        self.save_progress(now);
        self.daemon = None;
        observer.stops_training(self.index);
        if power {
            self.disk.borrow_mut().lose_power();
        }
    }

    /// Makes `event` happen here, and has workers for what it asks for.
    pub(super) fn adopt(&mut self, cx: &mut Context<'_>, event: &Event) -> Result<(), Stop> {
        let Some(daemon) = &mut self.daemon else { return Err(Stop::Died) };
        match daemon.owner.adopt(event) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(owner::Error::Refused(Refusal::Contradiction(by))) => {
                return Err(Violation::Contradiction { at: self.id.clone(), by }.into());
            }
            Err(e) => return Err(e.into()),
        }
        cx.observer.adopted(self.index, daemon.owner.state(), event)?;
        self.changed(cx)?;
        self.look(cx)
    }

    /// Signs and adopts this site's next receipt.
    pub(super) fn tell(
        &mut self,
        cx: &mut Context<'_>,
        round: RoundId,
        body: ReceiptBody,
    ) -> Result<Envelope, Stop> {
        let at = self.clock + cx.now / 1000;
        let Some(daemon) = &self.daemon else { return Err(Stop::Died) };
        let receipt = daemon.owner.receipt(round, &self.id, body, at).sign(&self.key);
        let receipt = receipt.map_err(|e| Stop::Refused(e.into()))?;
        self.adopt(cx, &Event::Receipt { receipt: receipt.clone() })?;
        Ok(receipt)
    }

    /// Whether the operator has something to do or may still interfere.
    pub(super) fn has_to_operate(&self) -> bool {
        let waits = |round: &Round| match round.phase() {
            RoundPhase::Finished | RoundPhase::Aborted => false,
            RoundPhase::Running => self.steers || round.paused.contains(&self.id),
            RoundPhase::Proposed | RoundPhase::Approved => true,
        };
        let waits =
            |state: &SiteState| state.rounds().is_empty() || state.rounds().values().any(waits);
        !self.proposes.is_empty() || self.state().is_none_or(|state| waits(state))
    }

    /// What an operator does who looks in now and then.
    pub(super) fn operate(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let Some(state) = self.state().cloned() else { return Ok(()) };
        if let Some(plan) = self.proposes.last() {
            let round = plan.round();
            if state.rounds().contains_key(&round) {
                self.proposes.pop();
            } else {
                let text = String::from_utf8(plan.canonical()).unwrap();
                self.tell(cx, round, ReceiptBody::Proposed { plan: text })?;
            }
        }
        for (id, round) in state.rounds().iter().filter(|(_, round)| !round.phase().is_over()) {
            let paused = round.paused.contains(&self.id);
            let steers = self.steers && cx.troubled;
            let body = if !round.approvals.contains_key(&self.id) {
                ReceiptBody::Approved
            } else if self.starts && round.phase() == RoundPhase::Approved {
                ReceiptBody::Started
            } else if paused && (!steers || cx.random.chance(300)) {
                ReceiptBody::Resumed
            } else if steers && !paused && cx.random.chance(30) {
                ReceiptBody::Paused
            } else if steers && cx.random.chance(2) {
                ReceiptBody::Aborted
            } else {
                continue;
            };
            self.tell(cx, *id, body)?;
        }
        Ok(())
    }

    /// Removes what no rule keeps.
    pub(super) fn tidy(&mut self) {
        let Some(state) = self.state().cloned() else { return };
        let mut disk = self.disk.borrow_mut();
        let mut kept = state.kept();
        if self.mutation == Some(Mutation::ForgetCustody) {
            kept.retain(|weights| !self.handed_over(&state, weights));
        }
        let mut over = state.rounds().values().flat_map(|r| &r.visits).filter_map(|v| v.weights());
        while let Some(weights) = over.find(|weights| !kept.contains(weights)) {
            disk.checkpoints.remove(&weights);
            disk.parts.remove(&weights);
        }
    }

    fn handed_over(&self, state: &SiteState, weights: &Digest) -> bool {
        state.rounds().values().any(|round| {
            round.visits.iter().any(|v| {
                v.weights() == Some(*weights)
                    && round.plan.site_of(v.number) == Some(&self.id)
                    && round.recipients(v.number).all(|to| v.is_held_by(to))
            })
        })
    }
}
