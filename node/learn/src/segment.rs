//! Segments: which voxels a visit of a case centres on, and what is cut out around them.
//!
//! Admissible centres are the voxels whose 25³ window lies inside the volume. Half of a case's
//! segments are centred on tumour, half on brain without tumour, uniform over voxels, without
//! replacement within the draw. Every draw comes from a stream of its own, keyed by seed, epoch and
//! case, so it does not depend on who draws when.
//!
//! Volumes are read where they lie, usually in a mapped file: nothing here keeps a copy or a list of
//! voxels, so a cohort may be larger than memory.

mod centres;
mod cut;

pub(crate) use centres::{Indexed, index};
pub(crate) use cut::{Batch, cut};

use crate::feed::{self, Position};
use crate::network::X1;
use crate::random::{self, Purpose};
use ndarray::ArrayView3;
use rondo::recipe::Recipe;
use std::time::{Duration, Instant};

/// A case as training sees it: views of one shape `[i, j, k]`, in C order.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// Its name in the cohort file; appears in notices of this site only.
    pub id: &'a str,
    /// Clipped and z-scored image.
    pub image: ArrayView3<'a, f32>,
    /// Tumour where not 0.
    pub label: ArrayView3<'a, u8>,
    /// Brain where not 0.
    pub brain: ArrayView3<'a, u8>,
}

/// Why a case cannot be trained on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Image, label and mask differ in shape.
    #[error("image, label and brain mask of case `{0}` have different shapes")]
    Shapes(String),
    /// Not in C order.
    #[error("the arrays of case `{0}` are not in C order; hand them over in standard layout")]
    Layout(String),
    /// Too small for a segment.
    #[error(
        "case `{case}` is {shape:?} voxels, but a segment needs {X1} on every axis; \
         resample it or pad it"
    )]
    Small {
        /// The case.
        case: String,
        /// Its shape.
        shape: [usize; 3],
    },
    /// A voxel inside a segment is NaN or infinite.
    #[error("the image of case `{0}` holds values that are no numbers; preprocess it again")]
    NotFinite(String),
    /// No voxel to centre a segment on.
    #[error("case `{0}` has neither tumour nor brain where a segment fits; check its brain mask")]
    Empty(String),
    /// A thread died, which is a fault of the program.
    #[error("cutting segments failed: a thread that prepares mini-batches ended unexpectedly")]
    Lost,
}

/// One segment to cut: which case, around which voxel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) case: usize,
    pub(crate) centre: [usize; 3],
}

/// One epoch: every case once, pooled, shuffled and cut into mini-batches, a pool at a time.
pub(crate) struct Epoch<'e> {
    cases: &'e [Indexed<'e>],
    recipe: &'e Recipe,
    seed: u64,
    epoch: u32,
    order: Vec<usize>,
}

impl<'e> Epoch<'e> {
    /// Shuffles the cases; draws no centre yet.
    pub(crate) fn new(cases: &'e [Indexed<'e>], recipe: &'e Recipe, seed: u64, epoch: u32) -> Self {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        let mut rng = random::stream(seed, Purpose::OrderOfCases, u64::from(epoch), 0);
        random::shuffle(&mut rng, &mut order);
        Self { cases, recipe, seed, epoch, order }
    }

    fn per_batch(&self) -> usize {
        usize::try_from(self.recipe.mini_batch.max(1)).unwrap_or(1)
    }

    /// The cases of every pool, by number.
    fn pools(&self) -> std::slice::Chunks<'_, usize> {
        self.order.chunks(usize::try_from(self.recipe.cases_per_pool.max(1)).unwrap_or(1))
    }

    /// How many mini-batches each pool gives, known without drawing.
    pub(crate) fn batches_of_pools(&self) -> Vec<usize> {
        let wanted = self.recipe.segments_per_case;
        let segments = |pool: &[usize]| -> usize {
            pool.iter().map(|&case| self.cases[case].segments(wanted)).sum()
        };
        self.pools().map(|pool| segments(pool).div_ceil(self.per_batch())).collect()
    }

    /// The mini-batches of one pool.
    pub(crate) fn draw(&self, pool: usize) -> Vec<Vec<Segment>> {
        let Some(cases) = self.pools().nth(pool) else {
            return Vec::new();
        };
        let mut segments: Vec<Segment> = Vec::new();
        for &case in cases {
            let indexed = &self.cases[case];
            let centres = indexed.draw(self.recipe.segments_per_case, self.seed, self.epoch, case);
            segments.extend(centres.into_iter().map(|centre| Segment { case, centre }));
        }
        let epoch = u64::from(self.epoch);
        let mut rng = random::stream(self.seed, Purpose::OrderOfSegments, epoch, pool as u64);
        random::shuffle(&mut rng, &mut segments);
        segments.chunks(self.per_batch()).map(<[Segment]>::to_vec).collect()
    }
}

/// How many mini-batches an epoch has. Epochs differ where cases are short of centres.
pub(crate) fn batches(cases: &[Indexed<'_>], recipe: &Recipe, seed: u64, epoch: u32) -> u32 {
    let all = Epoch::new(cases, recipe, seed, epoch).batches_of_pools().iter().sum::<usize>();
    u32::try_from(all).unwrap_or(u32::MAX)
}

/// All mini-batches of one epoch.
#[cfg(test)]
pub(crate) fn epoch(
    cases: &[Indexed<'_>],
    recipe: &Recipe,
    seed: u64,
    epoch: u32,
) -> Vec<Vec<Segment>> {
    let drawn = Epoch::new(cases, recipe, seed, epoch);
    (0..drawn.pools().len()).flat_map(|pool| drawn.draw(pool)).collect()
}

/// How fast segments are drawn, cut and handed over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Segments in a second of wall-clock time.
    pub segments_per_s: f64,
    /// Threads that cut them.
    pub threads: usize,
}

/// Measures the supply of segments for about `seconds`, with nothing that consumes them, through
/// the same threads and queue as a visit.
///
/// # Errors
/// A case that cannot be trained on.
pub fn rate(cases: &[Case<'_>], recipe: &Recipe, seed: u64, seconds: f64) -> Result<Rate, Unfit> {
    let indexed = index(cases).into_iter().collect::<Result<Vec<_>, _>>()?;
    let recipe = Recipe { epochs: u32::MAX, ..recipe.clone() };
    std::thread::scope(|scope| {
        let feed = feed::feed(scope, &indexed, &recipe, seed, Position::default());
        let limit = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let (begun, mut segments) = (Instant::now(), 0);
        for batch in feed {
            segments += batch?.data.n;
            if begun.elapsed() >= limit {
                break;
            }
        }
        #[allow(clippy::cast_precision_loss)]
        let segments_per_s = segments as f64 / begun.elapsed().as_secs_f64();
        Ok(Rate { segments_per_s, threads: feed::threads() })
    })
}

#[cfg(test)]
mod tests;
