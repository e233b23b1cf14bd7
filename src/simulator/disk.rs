//! A site's disk: the journal, and the store of checkpoints. What is not synced is lost when power fails;
//! of a commit that power cut, nobody knows before the restart whether it happened.

use super::mutation::Mutation;
use crate::ids::Digest;
use crate::journal::{Record, Replay, Tip};
use crate::owner::Log;
use crate::round::{Event, SiteState};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Why an event could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no space; the site goes on.
    Full,
    /// The machine or the process died in the commit.
    Died,
}

/// What happens at the next commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// All of them happen.
    Fine,
    /// After so many, one dies before it happened.
    DiesBefore(u64),
    /// After so many, one dies after it happened.
    DiesAfter(u64),
}

/// A checkpoint on its way in.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub(super) synced: BTreeSet<u64>,
    pub(super) cached: BTreeSet<u64>,
}

#[derive(Debug)]
pub(super) struct Disk {
    records: Vec<Record>,
    /// Records that were acknowledged before they were safe; empty without [`Mutation::ActBeforeCommit`].
    cached: Vec<Record>,
    tip: Tip,
    /// Replays what is in the journal, so that it can be compared with the live state.
    shadow: Replay,
    /// Whole checkpoints, and whether each is synced.
    pub(super) checkpoints: BTreeMap<Digest, bool>,
    pub(super) parts: BTreeMap<Digest, Part>,
    pub(super) full: bool,
    pub(super) fate: Fate,
    mutation: Option<Mutation>,
}

impl Disk {
    /// A disk with the journal that `records` are, which `shadow` replayed.
    pub(super) fn new(records: &[Record], shadow: &Replay, mutation: Option<Mutation>) -> Self {
        Self {
            records: records.to_vec(),
            cached: Vec::new(),
            tip: records.last().map_or(Tip::EMPTY, Record::tip),
            shadow: shadow.clone(),
            checkpoints: BTreeMap::new(),
            parts: BTreeMap::new(),
            full: false,
            fate: Fate::Fine,
            mutation,
        }
    }

    fn append(&mut self, event: &Event) -> Result<(), Failure> {
        if self.full {
            return Err(Failure::Full);
        }
        let record = Record::next(self.tip, event).unwrap();
        if let Fate::DiesBefore(0) = self.fate {
            return Err(Failure::Died);
        }
        self.tip = record.tip();
        if self.mutation == Some(Mutation::ActBeforeCommit) {
            self.cached.push(record);
        } else {
            self.shadow.adopt(&record).unwrap();
            self.records.push(record);
        }
        match &mut self.fate {
            Fate::Fine => Ok(()),
            Fate::DiesAfter(0) => Err(Failure::Died),
            Fate::DiesBefore(n) | Fate::DiesAfter(n) => {
                *n -= 1;
                Ok(())
            }
        }
    }

    /// Everything that was written so far reaches the disk.
    pub(super) fn sync(&mut self) {
        for record in self.cached.drain(..) {
            self.shadow.adopt(&record).unwrap();
            self.records.push(record);
        }
        for safe in self.checkpoints.values_mut() {
            *safe = true;
        }
        for part in self.parts.values_mut() {
            part.synced.append(&mut part.cached);
        }
    }

    /// Power fails: what was not synced is gone.
    pub(super) fn lose_power(&mut self) {
        self.cached.clear();
        self.checkpoints.retain(|_, safe| *safe);
        self.parts.values_mut().for_each(|part| part.cached.clear());
    }

    /// What a restart reads: the whole journal, verified and replayed.
    pub(super) fn replay(&mut self) -> Result<SiteState, crate::journal::Error> {
        self.fate = Fate::Fine;
        self.sync();
        let mut replay = Replay::default();
        self.records.iter().try_for_each(|record| replay.adopt(record))?;
        let (state, tip) = replay.finish();
        self.tip = tip;
        Ok(state)
    }

    /// The state that the journal tells.
    pub(super) fn told(&self) -> &SiteState {
        self.shadow.state()
    }

    /// Whether power could fail now and the checkpoint were still there.
    pub(super) fn is_safe(&self, weights: &Digest) -> bool {
        self.checkpoints.get(weights).copied().unwrap_or(false)
    }
}

/// The daemon's hold on the journal; the disk outlives it.
#[derive(Debug, Clone)]
pub(super) struct Hold(pub(super) Rc<RefCell<Disk>>);

impl Log for Hold {
    type Error = Failure;

    fn append(&mut self, event: &Event) -> Result<(), Failure> {
        self.0.borrow_mut().append(event)
    }
}
