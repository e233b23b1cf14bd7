//! Mini-batches of a visit, prepared by threads ahead of their use.
//!
//! One thread draws centres, pool after pool; a few cut; the visit takes batches in order. What comes
//! depends on seed and position alone, never on which thread was faster. Memory is bounded: no batch
//! is cut before the visit is within [`ahead`] of it.

use crate::augment::Augmentation;
use crate::segment::{Batch, Epoch, Indexed, Segment, Unfit, cut};
use rondo::recipe::Recipe;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

/// Batches whose centres are drawn ahead: some KB each, more than a pool of the paper has (20), so
/// that drawing a pool does not hold up the cutting.
const DRAWN_AHEAD: usize = 64;
/// Most threads that cut.
const CUTTERS: usize = 4;

/// A quarter of the cores, up to four: a core cuts several thousand segments a second, and the rest
/// is the device's.
pub(crate) fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 4).clamp(1, CUTTERS)
}

/// Batches that are cut or being cut before the visit asks: one for every thread and two that wait.
/// Full-size segments take 93 KB each, so 50 of them 4.6 MB.
fn ahead(threads: usize) -> u64 {
    threads as u64 + 2
}

/// Which mini-batch: epoch and number within it, both from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub(crate) epoch: u32,
    pub(crate) batch: u32,
}

/// A mini-batch, ready for the device.
pub(crate) struct Prepared {
    /// Epoch, from 0.
    pub(crate) epoch: u32,
    /// Number within the epoch, from 0.
    pub(crate) batch: u32,
    /// What was cut.
    pub(crate) segments: Vec<Segment>,
    pub(crate) data: Batch,
}

/// The mini-batches from a position to the end of the visit, in order. Its threads end when it is
/// dropped.
pub(crate) struct Feed {
    line: Arc<Line>,
}

/// Starts preparing the mini-batches from `from` to the last epoch of the recipe.
pub(crate) fn feed<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    cases: &'env [Indexed<'env>],
    recipe: &'env Recipe,
    seed: u64,
    from: Position,
) -> Feed {
    let threads = threads();
    let line = Arc::new(Line { ahead: ahead(threads), ..Line::default() });
    let (jobs, taken) = sync_channel(DRAWN_AHEAD);
    let taken = Arc::new(Mutex::new(taken));
    for _ in 0..threads {
        let (line, taken) = (line.clone(), taken.clone());
        scope.spawn(move || line.watched(|line| prepare(line, &taken, cases, recipe, seed)));
    }
    let own = line.clone();
    scope.spawn(move || own.watched(|line| plan(line, &jobs, cases, recipe, seed, from)));
    Feed { line }
}

impl Iterator for Feed {
    type Item = Result<Prepared, Unfit>;

    /// The next batch, as soon as it is there; an unfit case comes in the place of its batch.
    fn next(&mut self) -> Option<Self::Item> {
        let mut state = self.line.lock();
        loop {
            let wanted = state.taken;
            if let Some(batch) = state.ready.remove(&wanted) {
                state.taken += 1;
                self.line.changed.notify_all();
                return Some(batch);
            }
            if state.lost {
                return Some(Err(Unfit::Lost));
            }
            if state.end.is_some_and(|end| wanted >= end) {
                return None;
            }
            state = self.line.wait(state);
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.line.lock().stopped = true;
        self.line.changed.notify_all();
    }
}

/// A batch to cut, and its place in the line.
struct Job {
    number: u64,
    epoch: u32,
    batch: u32,
    segments: Vec<Segment>,
}

/// Draws the centres of every batch, and ends when nobody cuts any more.
fn plan(
    line: &Line,
    jobs: &SyncSender<Job>,
    cases: &[Indexed<'_>],
    recipe: &Recipe,
    seed: u64,
    from: Position,
) {
    let mut number = 0;
    for epoch in from.epoch..recipe.epochs {
        if line.lock().stopped {
            return;
        }
        let drawn = Epoch::new(cases, recipe, seed, epoch);
        let of_pools = drawn.batches_of_pools();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let first = if epoch == from.epoch { from.batch } else { 0 };
        let mut batch = 0;
        for (pool, of_pool) in of_pools.into_iter().enumerate() {
            if batch + count(of_pool) <= first {
                batch += count(of_pool);
                continue;
            }
            for segments in drawn.draw(pool) {
                if batch >= first {
                    if jobs.send(Job { number, epoch, batch, segments }).is_err() {
                        return;
                    }
                    number += 1;
                }
                batch += 1;
            }
        }
    }
    line.lock().end = Some(number);
    line.changed.notify_all();
}

/// Cuts job after job, each when its turn has come.
fn prepare(
    line: &Line,
    jobs: &Mutex<Receiver<Job>>,
    cases: &[Indexed<'_>],
    recipe: &Recipe,
    seed: u64,
) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { number, epoch, batch, segments }) = job else {
            return;
        };
        if !line.await_turn(number) {
            return;
        }
        let first = u64::from(batch) * u64::from(recipe.mini_batch);
        let augmentation =
            |place: usize| Augmentation::draw(recipe, seed, epoch, first + place as u64);
        let prepared = cut(cases, &segments, augmentation).map(|data| Prepared {
            epoch,
            batch,
            segments,
            data,
        });
        line.lock().ready.insert(number, prepared);
        line.changed.notify_all();
    }
}

/// Where batches wait for the visit.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
    ahead: u64,
}

#[derive(Default)]
struct State {
    /// By their place in the line.
    ready: BTreeMap<u64, Result<Prepared, Unfit>>,
    /// How many the visit has taken.
    taken: u64,
    /// How many there are, once known.
    end: Option<u64>,
    /// The visit wants no more.
    stopped: bool,
    /// A thread panicked, so a place may stay empty for ever.
    lost: bool,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the visit is near; false when it wants no more.
    fn await_turn(&self, number: u64) -> bool {
        let mut state = self.lock();
        while !state.stopped && number >= state.taken + self.ahead {
            state = self.wait(state);
        }
        !state.stopped
    }

    /// Runs the work of a thread, and lets the visit know if it panics.
    fn watched(&self, work: impl FnOnce(&Self)) {
        struct Watch<'l>(&'l Line);
        impl Drop for Watch<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.lock().lost = true;
                    self.0.changed.notify_all();
                }
            }
        }
        let watch = Watch(self);
        work(watch.0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
