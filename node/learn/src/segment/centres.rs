//! The admissible centres of a case: how many, and which has a given rank.

use super::{Case, Unfit};
use crate::network::X1;
use crate::random::{self, Purpose};
use std::ops::Range;

/// Half the edge of the full-resolution input: how far a centre stays from the border.
const MARGIN: usize = X1 / 2;
/// Most threads that index a cohort: they wait for the disk, mostly.
const INDEXERS: usize = 8;

/// What a segment can be centred on.
#[derive(Clone, Copy)]
enum Kind {
    Tumour,
    Background,
}

impl Kind {
    /// Whether a voxel is of this kind; without a branch, so that rows are counted as vectors.
    fn holds(self, label: u8, brain: u8) -> bool {
        match self {
            Self::Tumour => label != 0,
            Self::Background => (label == 0) & (brain != 0),
        }
    }
}

/// A case with the index of its admissible centres: how many of each kind there are up to each slab
/// (all voxels of one `i`). 1.7 KB for 240 slabs, however many voxels; a rank is found by counting
/// within one slab.
pub(crate) struct Indexed<'a> {
    pub(crate) id: &'a str,
    pub(crate) image: &'a [f32],
    pub(crate) label: &'a [u8],
    brain: &'a [u8],
    pub(crate) shape: [usize; 3],
    /// Centres in all slabs before and including this one.
    tumour: Vec<u32>,
    background: Vec<u32>,
}

/// Voxels of a kind in a row. In bytes and without overflow checks the compiler counts 16 or more at
/// a time; a byte holds the count of 255.
fn count(kind: Kind, label: &[u8], brain: &[u8]) -> u32 {
    let count = |(label, brain): (&[u8], &[u8])| {
        let holds = label.iter().zip(brain).map(|(label, brain)| kind.holds(*label, *brain));
        u32::from(holds.fold(0_u8, |n, holds| n.wrapping_add(u8::from(holds))))
    };
    let most = usize::from(u8::MAX);
    label.chunks(most).zip(brain.chunks(most)).map(count).sum()
}

fn total(up_to: &[u32]) -> u64 {
    up_to.last().copied().map_or(0, u64::from)
}

impl<'a> Indexed<'a> {
    /// Counts the centres; reads label and brain mask once, and nothing of the image.
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
        let (Some(image), Some(label), Some(brain)) =
            (case.image.to_slice(), case.label.to_slice(), case.brain.to_slice())
        else {
            return Err(Unfit::Layout(name()));
        };
        let (tumour, background) = (Vec::new(), Vec::new());
        let mut indexed = Self { id: case.id, image, label, brain, shape, tumour, background };
        let mut sums = [0_u32; 2];
        for i in indexed.admissible(0) {
            let slab = indexed.count_slab(i);
            sums = [0, 1].map(|kind| sums[kind].saturating_add(slab[kind]));
            indexed.tumour.push(sums[0]);
            indexed.background.push(sums[1]);
        }
        if total(&indexed.tumour) + total(&indexed.background) == 0 {
            return Err(Unfit::Empty(name()));
        }
        Ok(indexed)
    }

    fn admissible(&self, axis: usize) -> Range<usize> {
        MARGIN..self.shape[axis] - MARGIN
    }

    /// Label and brain of the admissible part of a row.
    fn row(&self, i: usize, j: usize) -> (&'a [u8], &'a [u8]) {
        let [_, rows, columns] = self.shape;
        let first = (i * rows + j) * columns;
        let row = first + MARGIN..first + columns - MARGIN;
        (&self.label[row.clone()], &self.brain[row])
    }

    /// How many voxels of each kind the slab `i` has.
    fn count_slab(&self, i: usize) -> [u32; 2] {
        self.admissible(1).fold([0; 2], |[tumour, background], j| {
            let (label, brain) = self.row(i, j);
            [
                tumour + count(Kind::Tumour, label, brain),
                background + count(Kind::Background, label, brain),
            ]
        })
    }

    /// How many of `wanted` segments are centred on tumour and how many on background. Where one
    /// kind runs out, the other fills; where both do, there are fewer.
    fn shares(&self, wanted: u64) -> (u64, u64) {
        let (most_tumour, most_background) = (total(&self.tumour), total(&self.background));
        let tumour = (wanted / 2).min(most_tumour);
        let background = (wanted - tumour).min(most_background);
        let tumour = (wanted - background).min(most_tumour);
        (tumour, background)
    }

    /// How many segments a visit of this case has.
    pub(crate) fn segments(&self, wanted: u32) -> usize {
        let (tumour, background) = self.shares(u64::from(wanted));
        usize::try_from(tumour + background).unwrap_or(usize::MAX)
    }

    /// A sentence if this case cannot give half of `wanted` segments of each kind.
    pub(crate) fn shortage(&self, wanted: u32) -> Option<String> {
        let (tumour, background) = self.shares(u64::from(wanted));
        let (half, id) = (u64::from(wanted / 2), self.id);
        if tumour + background < u64::from(wanted) {
            let all = tumour + background;
            return Some(format!(
                "case `{id}` has only {all} centres for {wanted} segments; all of them are used"
            ));
        }
        if total(&self.tumour) == 0 {
            return (half > 0).then(|| {
                format!(
                    "case `{id}` has no tumour where a segment fits; \
                     all of its {wanted} segments are centred on background"
                )
            });
        }
        if tumour < half {
            return Some(format!(
                "case `{id}` has {tumour} tumour voxels to centre a segment on; \
                 background fills the rest of its {wanted} segments"
            ));
        }
        (background < u64::from(wanted) - half).then(|| {
            format!(
                "case `{id}` has {background} background voxels to centre a segment on; \
                 tumour fills the rest"
            )
        })
    }

    /// Centres of one visit of this case, which is number `case` of its cohort.
    pub(crate) fn draw(&self, wanted: u32, seed: u64, epoch: u32, case: usize) -> Vec<[usize; 3]> {
        let mut rng = random::stream(seed, Purpose::Centres, u64::from(epoch), case as u64);
        let (tumour, background) = self.shares(u64::from(wanted));
        let mut centres = Vec::with_capacity(self.segments(wanted));
        for (kind, share, up_to) in
            [(Kind::Tumour, tumour, &self.tumour), (Kind::Background, background, &self.background)]
        {
            for rank in random::distinct(&mut rng, share, total(up_to)) {
                centres.extend(self.find(kind, up_to, rank));
            }
        }
        centres
    }

    /// The voxel of a kind with this rank in C order.
    fn find(&self, kind: Kind, up_to: &[u32], rank: u64) -> Option<[usize; 3]> {
        let slab = up_to.partition_point(|up_to| u64::from(*up_to) <= rank);
        let before = slab.checked_sub(1).and_then(|s| up_to.get(s)).copied().map_or(0, u64::from);
        let i = MARGIN + slab;
        let mut left = u32::try_from(rank - before).ok()?;
        for j in self.admissible(1) {
            let (label, brain) = self.row(i, j);
            let count = count(kind, label, brain);
            if left < count {
                let holds =
                    label.iter().zip(brain).map(|(label, brain)| kind.holds(*label, *brain));
                let mut of_kind = holds.enumerate().filter(|(_, holds)| *holds);
                let nth = of_kind.nth(usize::try_from(left).ok()?);
                return nth.map(|(k, _)| [i, j, MARGIN + k]);
            }
            left -= count;
        }
        None
    }
}

/// Indexes every case, several at a time; results in the order of `cases`.
pub(crate) fn index<'a>(cases: &[Case<'a>]) -> Vec<Result<Indexed<'a>, Unfit>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(INDEXERS);
    let share = cases.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let work = |part: &'_ [Case<'a>]| part.iter().map(|c| Indexed::new(*c)).collect::<Vec<_>>();
        let parts: Vec<_> =
            cases.chunks(share).map(|part| scope.spawn(move || work(part))).collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, Vec<_>>| match part.join() {
            Ok(indexed) => indexed,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        parts.into_iter().flat_map(join).collect()
    })
}
