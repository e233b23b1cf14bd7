//! Segments: which voxels a visit of a case centres on, and what is cut out around them.
//!
//! Admissible centres are the voxels whose 25³ window lies inside the volume. Half of a case's
//! segments are centred on tumour, half on brain without tumour, uniform over voxels, without
//! replacement within the draw. Every draw comes from a stream of its own, keyed by seed, epoch and
//! case, so it does not depend on who draws when.

use crate::network::{OUT, STRIDE, X1, X2};
use crate::random::{self, Purpose};
use ndarray::ArrayView3;
use std::ops::Range;

/// A case as training sees it: views of one shape, C order or not.
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

/// Why a case cannot be trained on. It is set aside; the others go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Image, label and mask differ in shape.
    #[error("image, label and brain mask of case `{0}` have different shapes")]
    Shapes(String),
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
    /// A voxel is NaN or infinite.
    #[error("the image of case `{0}` holds values that are no numbers; preprocess it again")]
    NotFinite(String),
    /// No voxel to centre a segment on.
    #[error("case `{0}` has neither tumour nor brain where a segment fits; check its brain mask")]
    Empty(String),
}

/// Voxels of one kind, without a list of them: how many there are up to each row of the volume.
///
/// 160 KB for 181×217 rows, whatever the number of voxels.
struct Kind {
    /// Voxels in all rows before and including this one.
    up_to: Vec<u32>,
}

impl Kind {
    fn total(&self) -> u64 {
        self.up_to.last().copied().map_or(0, u64::from)
    }
}

/// A case with the index of its admissible centres.
pub(crate) struct Indexed<'a> {
    pub(crate) case: Case<'a>,
    tumour: Kind,
    background: Kind,
    admissible: [Range<usize>; 3],
}

/// Half the edge of the full-resolution input: how far a centre stays from the border.
const MARGIN: usize = X1 / 2;

impl<'a> Indexed<'a> {
    pub(crate) fn new(case: Case<'a>) -> Result<Self, Unfit> {
        let name = || case.id.to_owned();
        let (a, b, c) = case.image.dim();
        let shape = [a, b, c];
        if case.label.shape() != shape || case.brain.shape() != shape {
            return Err(Unfit::Shapes(name()));
        }
        if shape.iter().any(|n| *n < X1) {
            return Err(Unfit::Small { case: name(), shape });
        }
        if case.image.iter().any(|v| !v.is_finite()) {
            return Err(Unfit::NotFinite(name()));
        }
        let admissible = shape.map(|n| MARGIN..n - MARGIN);
        let count = |keep: &dyn Fn([usize; 3]) -> bool| {
            let mut up_to = Vec::with_capacity(admissible[0].len() * admissible[1].len());
            let mut total = 0_u32;
            for i in admissible[0].clone() {
                for j in admissible[1].clone() {
                    let row = admissible[2].clone().filter(|k| keep([i, j, *k])).count();
                    total = total.saturating_add(u32::try_from(row).unwrap_or(u32::MAX));
                    up_to.push(total);
                }
            }
            Kind { up_to }
        };
        let tumour = count(&|at| case.label[at] != 0);
        let background = count(&|at| case.label[at] == 0 && case.brain[at] != 0);
        if tumour.total() + background.total() == 0 {
            return Err(Unfit::Empty(name()));
        }
        Ok(Self { case, tumour, background, admissible })
    }

    /// How many of `wanted` segments are centred on tumour and how many on background. Where one
    /// kind runs out, the other fills; where both do, there are fewer.
    fn shares(&self, wanted: u64) -> (u64, u64) {
        let (most_tumour, most_background) = (self.tumour.total(), self.background.total());
        let tumour = (wanted / 2).min(most_tumour);
        let background = (wanted - tumour).min(most_background);
        let tumour = (wanted - background).min(most_tumour);
        (tumour, background)
    }

    /// A sentence if this case cannot give half of `wanted` segments of each kind.
    pub(crate) fn shortage(&self, wanted: u32) -> Option<String> {
        let (tumour, background) = self.shares(u64::from(wanted));
        let (half, id) = (u64::from(wanted / 2), self.case.id);
        if tumour + background < u64::from(wanted) {
            let all = tumour + background;
            return Some(format!(
                "case `{id}` has only {all} centres for {wanted} segments; all of them are used"
            ));
        }
        if tumour < half {
            return Some(format!(
                "case `{id}` has {tumour} tumour voxels to centre a segment on; \
                 background fills the rest of its {wanted} segments"
            ));
        }
        (background < u64::from(wanted) - half).then(|| {
            format!("case `{id}` has {background} background voxels to centre a segment on; tumour fills the rest")
        })
    }

    /// Centres of one visit of this case.
    pub(crate) fn draw(&self, wanted: u32, seed: u64, epoch: u32, case: usize) -> Vec<[usize; 3]> {
        let mut rng = random::stream(seed, Purpose::Centres, u64::from(epoch), case as u64);
        let (tumour, background) = self.shares(u64::from(wanted));
        let mut centres = Vec::with_capacity(usize::try_from(tumour + background).unwrap_or(0));
        for rank in random::distinct(&mut rng, tumour, self.tumour.total()) {
            centres.extend(self.find(&self.tumour, rank, |at| self.case.label[at] != 0));
        }
        for rank in random::distinct(&mut rng, background, self.background.total()) {
            let keep = |at| self.case.label[at] == 0 && self.case.brain[at] != 0;
            centres.extend(self.find(&self.background, rank, keep));
        }
        centres
    }

    /// The voxel of a kind with this rank in C order.
    fn find(
        &self,
        kind: &Kind,
        rank: u64,
        keep: impl Fn([usize; 3]) -> bool,
    ) -> Option<[usize; 3]> {
        let row = kind.up_to.partition_point(|up_to| u64::from(*up_to) <= rank);
        let before =
            row.checked_sub(1).and_then(|r| kind.up_to.get(r)).copied().map_or(0, u64::from);
        let rows = self.admissible[1].len();
        let (i, j) = (self.admissible[0].start + row / rows, self.admissible[1].start + row % rows);
        let nth = usize::try_from(rank - before).ok()?;
        self.admissible[2].clone().map(|k| [i, j, k]).filter(|at| keep(*at)).nth(nth)
    }
}

/// One segment to cut: which case, around which voxel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) case: usize,
    pub(crate) centre: [usize; 3],
}

/// All mini-batches of one epoch: every case once, pooled, shuffled, cut.
pub(crate) fn epoch(
    cases: &[Indexed<'_>],
    recipe: &rondo::recipe::Recipe,
    seed: u64,
    epoch: u32,
) -> Vec<Vec<Segment>> {
    let mut order: Vec<usize> = (0..cases.len()).collect();
    random::shuffle(
        &mut random::stream(seed, Purpose::OrderOfCases, u64::from(epoch), 0),
        &mut order,
    );
    let per_pool = usize::try_from(recipe.cases_per_pool.max(1)).unwrap_or(1);
    let per_batch = usize::try_from(recipe.mini_batch.max(1)).unwrap_or(1);
    let mut batches = Vec::new();
    for (number, pool) in order.chunks(per_pool).enumerate() {
        let mut segments: Vec<Segment> = pool
            .iter()
            .flat_map(|&case| {
                let centres = cases[case].draw(recipe.segments_per_case, seed, epoch, case);
                centres.into_iter().map(move |centre| Segment { case, centre })
            })
            .collect();
        let purpose = Purpose::OrderOfSegments;
        random::shuffle(
            &mut random::stream(seed, purpose, u64::from(epoch), number as u64),
            &mut segments,
        );
        batches.extend(segments.chunks(per_batch).map(<[Segment]>::to_vec));
    }
    batches
}

/// Segments cut out on the host.
pub(crate) struct Batch {
    pub(crate) n: usize,
    /// `[n, 1, 25, 25, 25]`
    pub(crate) x1: Vec<f32>,
    /// `[n, 1, 19, 19, 19]`
    pub(crate) x2: Vec<f32>,
    /// `[n, 729]`, 0 or 1
    pub(crate) target: Vec<f32>,
}

/// Cuts `segments` out of their cases.
pub(crate) fn cut(cases: &[Indexed<'_>], segments: &[Segment]) -> Batch {
    let n = segments.len();
    let mut batch = Batch {
        n,
        x1: Vec::with_capacity(n * X1.pow(3)),
        x2: Vec::with_capacity(n * X2.pow(3)),
        target: Vec::with_capacity(n * OUT.pow(3)),
    };
    for segment in segments {
        let case = &cases[segment.case].case;
        crop(case.image, segment.centre, X1, 1, &mut batch.x1, |v| v);
        crop(case.image, segment.centre, X2, STRIDE, &mut batch.x2, |v| v);
        crop(case.label, segment.centre, OUT, 1, &mut batch.target, |v| f32::from(v != 0));
    }
    batch
}

/// `out[i] = volume[clamp(p − (size/2)·stride + i·stride, 0, n−1)]` on every axis.
fn crop<T: Copy>(
    volume: ArrayView3<'_, T>,
    centre: [usize; 3],
    size: usize,
    stride: usize,
    out: &mut Vec<f32>,
    value: impl Fn(T) -> f32,
) {
    let shape = volume.shape();
    let axis = |d: usize, i: usize| {
        (centre[d] + i * stride).saturating_sub(size / 2 * stride).min(shape[d] - 1)
    };
    for i in 0..size {
        for j in 0..size {
            let row = volume.slice(ndarray::s![axis(0, i), axis(1, j), ..]);
            out.extend((0..size).map(|k| value(row[axis(2, k)])));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use super::*;
    use ndarray::Array3;
    use rondo::recipe::{Preset, Recipe};

    struct Owned {
        image: Array3<f32>,
        label: Array3<u8>,
        brain: Array3<u8>,
    }

    impl Owned {
        fn new(shape: [usize; 3], tumour: &[[usize; 3]]) -> Self {
            let image = Array3::from_shape_fn(shape, |(i, j, k)| (i * 10_000 + j * 100 + k) as f32);
            let mut label = Array3::zeros(shape);
            tumour.iter().for_each(|at| label[*at] = 1);
            Self { image, label, brain: Array3::ones(shape) }
        }

        fn case(&self) -> Case<'_> {
            Case {
                id: "a",
                image: self.image.view(),
                label: self.label.view(),
                brain: self.brain.view(),
            }
        }
    }

    #[test]
    fn unfit_cases_are_refused_with_a_sentence() {
        let refuse = |owned: &Owned| Indexed::new(owned.case()).err().unwrap().to_string();
        assert!(refuse(&Owned::new([24, 30, 30], &[])).contains("24"));
        let mut owned = Owned::new([30; 3], &[]);
        owned.image[[3, 3, 3]] = f32::NAN;
        assert!(refuse(&owned).contains("no numbers"));
        let mut owned = Owned::new([30; 3], &[]);
        owned.brain.fill(0);
        assert!(refuse(&owned).contains("neither"));
        owned.label = Array3::zeros([30, 30, 31]);
        assert!(refuse(&owned).contains("shapes"));
    }

    #[test]
    fn a_draw_is_half_tumour_without_repeats_and_fills_what_is_short() {
        let tumour: Vec<_> = (13..17).map(|k| [14, 15, k]).chain([[2, 2, 2]]).collect();
        let owned = Owned::new([30, 31, 32], &tumour);
        let indexed = Indexed::new(owned.case()).unwrap();
        assert!(indexed.shortage(8).is_none());
        assert!(indexed.shortage(10).unwrap().contains("4 tumour voxels"));
        for epoch in 0..50 {
            let centres = indexed.draw(10, 5, epoch, 0);
            let on_tumour = centres.iter().filter(|at| owned.label[**at] != 0).count();
            assert_eq!(
                (centres.len(), on_tumour),
                (10, 4),
                "the voxel near the border is inadmissible"
            );
            let mut unique = centres.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), 10);
            let inside = |at: &[usize; 3]| {
                (0..3).all(|d| (12..owned.image.shape()[d] - 12).contains(&at[d]))
            };
            assert!(centres.iter().all(inside));
            assert_eq!(centres, indexed.draw(10, 5, epoch, 0));
        }
        assert_ne!(indexed.draw(10, 5, 0, 0), indexed.draw(10, 6, 0, 0));
        let tiny = Owned::new([25; 3], &[]);
        let indexed = Indexed::new(tiny.case()).unwrap();
        assert_eq!(indexed.draw(10, 5, 0, 0), [[12; 3]]);
        assert!(indexed.shortage(10).unwrap().contains("only 1 centres"));
    }

    #[test]
    fn all_background_voxels_are_drawn_alike() {
        let mut owned = Owned::new([27; 3], &[[13; 3]]);
        owned.brain[[12, 12, 12]] = 0;
        let indexed = Indexed::new(owned.case()).unwrap();
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..2500 {
            for at in indexed.draw(10, 1, epoch, 0) {
                *counts.entry(at).or_insert(0) += 1;
            }
        }
        assert_eq!(counts.remove(&[13; 3]), Some(2500), "one tumour voxel, in every draw");
        assert_eq!(counts.len(), 25);
        assert!(counts.values().all(|c| (800..1000).contains(c)), "{counts:?}");
    }

    #[test]
    fn crops_follow_the_published_rule() {
        let owned = Owned::new([40, 41, 42], &[[15, 20, 25]]);
        let cases = [Indexed::new(owned.case()).unwrap()];
        let batch = cut(&cases, &[Segment { case: 0, centre: [15, 20, 25] }]);
        assert_eq!((batch.x1.len(), batch.x2.len(), batch.target.len()), (15_625, 6_859, 729));
        let at = |i: usize, j: usize, k: usize| (i * 10_000 + j * 100 + k) as f32;
        assert_eq!(batch.x1[0], at(3, 8, 13));
        assert_eq!(batch.x1[15_624], at(27, 32, 37));
        assert_eq!(batch.x2[0], at(0, 0, 0), "−12, −7 and −2 are clamped");
        assert_eq!(batch.x2[9 * 361 + 9 * 19 + 9], at(15, 20, 25));
        assert_eq!(batch.x2[6_858], at(39, 40, 41), "42, 47 and 52 are clamped");
        assert_eq!(batch.target.iter().position(|t| *t == 1.0), Some(4 * 81 + 4 * 9 + 4));
    }

    #[test]
    fn an_epoch_visits_every_case_once() {
        let owned: Vec<Owned> = (0..7).map(|i| Owned::new([30; 3], &[[13, 13, 12 + i]])).collect();
        let cases: Vec<_> = owned.iter().map(|o| Indexed::new(o.case()).unwrap()).collect();
        let recipe = Recipe { cases_per_pool: 3, mini_batch: 8, ..Recipe::preset(Preset::Paper) };
        let batches = epoch(&cases, &recipe, 3, 0);
        let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [8, 8, 8, 6, 8, 8, 8, 6, 8, 2]);
        for case in 0..7 {
            assert_eq!(batches.iter().flatten().filter(|s| s.case == case).count(), 10);
        }
        assert_eq!(batches, epoch(&cases, &recipe, 3, 0));
        assert_ne!(batches, epoch(&cases, &recipe, 3, 1));
    }
}
