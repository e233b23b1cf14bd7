//! What there is to see in a case: missed lesions, false positives, found lesions.

use nalgebra::Vector4;
use ndarray::{Array3, s};

use crate::lesion::{Connectivity, Lesion, Lesions, components};
use crate::volume::Geometry;

/// Bits of a voxel in [`Findings::classes`].
pub(super) const TRUE_POSITIVE: u8 = 1;
pub(super) const FALSE_POSITIVE: u8 = 2;
pub(super) const FOUND: u8 = 4;
pub(super) const MISSED: u8 = 8;

/// What a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A reference lesion that no predicted voxel touches.
    Missed,
    /// A predicted component that touches no reference lesion.
    FalsePositive,
    /// A reference lesion that was found.
    Found,
}

impl Kind {
    /// The order of contact sheets.
    pub const ALL: [Self; 3] = [Self::Missed, Self::FalsePositive, Self::Found];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::FalsePositive => "false positive",
            Self::Found => "found",
        }
    }
}

/// A lesion of the reference, or a false positive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finding {
    /// Which of both, and whether it was found.
    pub kind: Kind,
    /// From 1: for lesions the place in the case's list of lesions in the evaluation, for false
    /// positives the place among the components of the prediction.
    pub number: usize,
    /// Its size.
    pub volume_mm3: f64,
    /// Centre of its voxel that is nearest to its centroid, RAS; of a found lesion only voxels that
    /// are predicted count, so that its pictures show both.
    pub at_mm: [f64; 3],
    /// Longest edge of its box in RAS space.
    pub extent_mm: f64,
}

/// Everything there is to see, and what every voxel is.
pub(super) struct Findings {
    pub(super) list: Vec<Finding>,
    /// Bits `[i, j, k]`: `TRUE_POSITIVE`, `FALSE_POSITIVE`, `FOUND`, `MISSED`.
    pub(super) classes: Array3<u8>,
}

impl Findings {
    pub(super) fn of(
        geometry: &Geometry,
        reference: &Array3<u8>,
        prediction: &Array3<u8>,
        connectivity: Connectivity,
    ) -> Self {
        let lesions = components(reference, connectivity);
        let parts = components(prediction, connectivity);
        let mut found = vec![false; lesions.list.len() + 1];
        let mut touching = vec![false; parts.list.len() + 1];
        for (l, p) in lesions.labels.iter().zip(&parts.labels) {
            if *l > 0 && *p > 0 {
                found[*l as usize] = true;
                touching[*p as usize] = true;
            }
        }
        let mut classes = lesions.labels.map(|l| match *l as usize {
            0 => 0,
            l if found[l] => FOUND,
            _ => MISSED,
        });
        classes.zip_mut_with(&parts.labels, |class, p| match *p as usize {
            0 => {}
            p if touching[p] => *class |= TRUE_POSITIVE,
            _ => *class |= FALSE_POSITIVE,
        });
        let lesion_kind = |n: usize| Some(if found[n] { Kind::Found } else { Kind::Missed });
        let part_kind = |n: usize| (!touching[n]).then_some(Kind::FalsePositive);
        let mut list = findings(geometry, &lesions, prediction, lesion_kind);
        list.extend(findings(geometry, &parts, prediction, part_kind));
        Self { list, classes }
    }

    /// At most `limit` findings in turns of the kinds, each from the largest on; and how many are
    /// left out. Sorted by kind, then from the largest on.
    pub(super) fn choose(&self, limit: usize) -> (Vec<Finding>, usize) {
        let mut queues = Kind::ALL.map(|kind| {
            let mut of_kind: Vec<_> = self.list.iter().filter(|f| f.kind == kind).collect();
            of_kind.sort_by(|a, b| {
                b.volume_mm3.total_cmp(&a.volume_mm3).then(a.number.cmp(&b.number))
            });
            of_kind.into_iter()
        });
        let mut chosen: Vec<&Finding> = Vec::new();
        while chosen.len() < limit.min(self.list.len()) {
            for queue in &mut queues {
                chosen.extend(queue.next());
            }
        }
        chosen.truncate(limit);
        // Stable, so that each kind stays sorted by size.
        chosen.sort_by_key(|f| f.kind);
        let left_out = self.list.len() - chosen.len();
        (chosen.into_iter().copied().collect(), left_out)
    }
}

fn findings(
    geometry: &Geometry,
    lesions: &Lesions,
    prediction: &Array3<u8>,
    kind: impl Fn(usize) -> Option<Kind>,
) -> Vec<Finding> {
    let one = |(lesion, number): (&Lesion, usize)| {
        Some(Finding {
            kind: kind(number)?,
            number,
            volume_mm3: lesion.voxels as f64 * geometry.voxel_mm3(),
            at_mm: middle(geometry, lesions, prediction, lesion, number),
            extent_mm: extent(geometry, lesion),
        })
    };
    lesions.list.iter().zip(1..).filter_map(one).collect()
}

pub(super) fn ras(geometry: &Geometry, index: [f64; 3]) -> [f64; 3] {
    let p = geometry.affine() * Vector4::new(index[0], index[1], index[2], 1.0);
    [p.x, p.y, p.z]
}

fn middle(
    geometry: &Geometry,
    lesions: &Lesions,
    prediction: &Array3<u8>,
    lesion: &Lesion,
    number: usize,
) -> [f64; 3] {
    let ([a, b, c], [x, y, z]) = (lesion.min, lesion.max);
    let bounds = lesions.labels.slice(s![a..=x, b..=y, c..=z]);
    let voxels = || {
        (bounds.indexed_iter().filter(|(_, n)| **n as usize == number)).map(|((i, j, k), _)| {
            let at = [a + i, b + j, c + k];
            (ras(geometry, at.map(|n| n as f64)), prediction[at] > 0)
        })
    };
    let mut centroid = [0.0; 3];
    for (voxel, _) in voxels() {
        for axis in 0..3 {
            centroid[axis] += voxel[axis];
        }
    }
    let centroid = centroid.map(|sum| sum / lesion.voxels as f64);
    let far = |p: &[f64; 3]| (0..3).map(|n| (p[n] - centroid[n]).powi(2)).sum::<f64>();
    let nearest = |predicted: bool| {
        (voxels().filter(|(_, is)| *is || !predicted).map(|(voxel, _)| voxel))
            .min_by(|p, q| far(p).total_cmp(&far(q)))
    };
    nearest(true).or_else(|| nearest(false)).unwrap_or(centroid)
}

fn extent(geometry: &Geometry, lesion: &Lesion) -> f64 {
    let affine = geometry.affine();
    let edge = |axis: usize| -> f64 {
        (0..3).map(|n| affine[(axis, n)].abs() * (lesion.max[n] - lesion.min[n] + 1) as f64).sum()
    };
    (0..3).map(edge).fold(0.0, f64::max)
}
