//! One case: lesions, components, and who belongs to whom.

use std::collections::BTreeSet;

use ndarray::Array3;
use rayon::prelude::*;

use super::{CaseResult, LesionResult, Settings, WholeMask};
use crate::bounds::Bounds;
use crate::distance;
use crate::lesion::{Lesion, Lesions, components};
use crate::surface::SurfaceDistances;

/// Dice of two masks of the same shape (above 0 is inside). Two empty masks: 1, and true.
pub fn dice(reference: &Array3<u8>, prediction: &Array3<u8>) -> (f64, bool) {
    let (reference, prediction) = (reference.as_standard_layout(), prediction.as_standard_layout());
    let (reference, prediction) =
        (reference.as_slice().unwrap_or_default(), prediction.as_slice().unwrap_or_default());
    let (mut both, mut sum) = (0, 0);
    // Short enough to be counted in bytes.
    for (r, p) in reference.chunks(64).zip(prediction.chunks(64)) {
        let (mut in_both, mut in_each) = (0u8, 0u8);
        for (r, p) in r.iter().zip(p) {
            let (r, p) = (u8::from(*r > 0), u8::from(*p > 0));
            in_both += r & p;
            in_each += r + p;
        }
        both += usize::from(in_both);
        sum += usize::from(in_each);
    }
    dice_of(both, sum)
}

/// From the voxels in both and the sum of the voxels of each.
fn dice_of(both: usize, sum: usize) -> (f64, bool) {
    if sum == 0 { (1.0, true) } else { (2.0 * both as f64 / sum as f64, false) }
}

/// Judges one prediction. Both masks have the same shape; above 0 is lesion.
pub fn evaluate_case(
    id: &str,
    reference: &Array3<u8>,
    prediction: &Array3<u8>,
    spacing_mm: [f64; 3],
    settings: &Settings,
) -> CaseResult {
    let (lesions, parts) = rayon::join(
        || components(reference, settings.connectivity),
        || components(prediction, settings.connectivity),
    );
    // For every component the lesions it overlaps.
    let mut of_part = vec![BTreeSet::new(); parts.list.len()];
    let mut detected = vec![false; lesions.list.len()];
    let mut both = 0;
    for ((part, of), p) in parts.list.iter().zip(&mut of_part).zip(1u32..) {
        let bounds = part.bounds();
        let own = bounds.view(parts.labels.view());
        for (_, l) in (own.iter().zip(bounds.view(lesions.labels.view())))
            .filter(|(own, l)| **own == p && **l > 0)
        {
            both += 1;
            of.insert(*l);
            detected[*l as usize - 1] = true;
        }
    }
    let (owners, reaches) = divide(&lesions, &parts, &of_part, spacing_mm);
    let voxel_mm3: f64 = spacing_mm.iter().product();
    let judge = |n: usize, lesion: &Lesion| {
        let mut result = LesionResult {
            volume_mm3: lesion.voxels as f64 * voxel_mm3,
            detected: detected[n],
            dice: None,
            surface_dice: None,
            hd95_mm: None,
            hd_mm: None,
        };
        if result.detected {
            let bounds = reaches[n];
            let own = bounds.crop(&lesions.labels, |l| u8::from(*l as usize == n + 1));
            let part = bounds.crop(&owners, |owner| u8::from(*owner as usize == n + 1));
            let surfaces = SurfaceDistances::new(own.view(), part.view(), spacing_mm);
            result.dice = Some(dice(&own, &part).0);
            result.surface_dice = surfaces.dice_at(settings.tolerance_mm);
            result.hd95_mm = surfaces.hausdorff_mm(95.0);
            result.hd_mm = surfaces.hausdorff_mm(100.0);
        }
        result
    };
    let (whole_mask, results) = rayon::join(
        || {
            let voxels = |l: &Lesions| l.list.iter().map(|l| l.voxels).sum::<usize>();
            let dice = dice_of(both, voxels(&lesions) + voxels(&parts));
            whole_mask(dice, reference, prediction, spacing_mm, settings)
        },
        || -> Vec<_> {
            lesions.list.par_iter().enumerate().map(|(n, lesion)| judge(n, lesion)).collect()
        },
    );
    let detected = detected.iter().filter(|d| **d).count();
    CaseResult {
        id: id.to_owned(),
        reference_lesions: results.len(),
        predicted_components: parts.list.len(),
        detected,
        missed: results.len() - detected,
        false_positives: of_part.iter().filter(|lesions| lesions.is_empty()).count(),
        whole_mask,
        lesions: results,
    }
}

/// For every predicted voxel the lesion whose part it is, 0 for none; and for every lesion the box
/// around it and its part.
fn divide(
    lesions: &Lesions,
    parts: &Lesions,
    of_part: &[BTreeSet<u32>],
    spacing_mm: [f64; 3],
) -> (Array3<u32>, Vec<Bounds>) {
    let mut owners = Array3::zeros(parts.labels.dim());
    let mut reaches: Vec<_> = lesions.list.iter().map(Lesion::bounds).collect();
    for ((part, of), p) in parts.list.iter().zip(of_part).zip(1u32..) {
        let Some(only) = of.first() else {
            continue;
        };
        let nearest = (of.len() > 1).then(|| {
            let among = of.iter().map(|l| lesions.list[*l as usize - 1].bounds());
            let bounds = Bounds::around(among.chain([part.bounds()])).unwrap_or(part.bounds());
            let seeds = bounds.crop(&lesions.labels, |l| if of.contains(l) { *l } else { 0 });
            (bounds.min, distance::nearest_label(&seeds, spacing_mm))
        });
        let [a, b, c] = part.min;
        for ((i, j, k), _) in (part.bounds().view(parts.labels.view()).indexed_iter())
            .filter(|(_, label)| **label == p)
        {
            let at = [a + i, b + j, c + k];
            let owner = nearest
                .as_ref()
                .map_or(*only, |([a, b, c], nearest)| nearest[[at[0] - a, at[1] - b, at[2] - c]]);
            owners[at] = owner;
            let reach = &mut reaches[owner as usize - 1];
            for (axis, at) in at.into_iter().enumerate() {
                reach.min[axis] = reach.min[axis].min(at);
                reach.max[axis] = reach.max[axis].max(at);
            }
        }
    }
    (owners, reaches)
}

fn whole_mask(
    (dice, both_empty): (f64, bool),
    reference: &Array3<u8>,
    prediction: &Array3<u8>,
    spacing_mm: [f64; 3],
    settings: &Settings,
) -> WholeMask {
    let surfaces = SurfaceDistances::new(reference.view(), prediction.view(), spacing_mm);
    WholeMask {
        dice,
        surface_dice: surfaces.dice_at(settings.tolerance_mm),
        hd95_mm: surfaces.hausdorff_mm(95.0),
        hd_mm: surfaces.hausdorff_mm(100.0),
        both_empty,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn mask(rods: &[std::ops::Range<usize>]) -> Array3<u8> {
        Array3::from_shape_fn((3, 3, 30), |(_, j, k)| {
            u8::from(j == 1 && rods.iter().any(|r| r.contains(&k)))
        })
    }

    fn judge(reference: &Array3<u8>, prediction: &Array3<u8>) -> CaseResult {
        evaluate_case("c", reference, prediction, [1.0; 3], &Settings::default())
    }

    #[test]
    fn a_component_over_two_lesions_is_divided() {
        let result =
            judge(&mask(&[2..6, 12..16]), &mask(&std::array::from_fn::<_, 1, _>(|_| 2..16)));
        assert_eq!(
            (result.detected, result.false_positives, result.predicted_components),
            (2, 0, 1)
        );
        // 14 voxels on the line: each lesion of 4 gets the 7 nearest to it.
        for lesion in &result.lesions {
            assert!((lesion.dice.unwrap() - 8.0 / 11.0).abs() < 1e-12, "{:?}", lesion.dice);
        }
    }

    #[test]
    fn missed_lesion_and_false_positive() {
        let result = judge(&mask(&[2..6, 20..24]), &mask(&[3..5, 10..12]));
        assert_eq!((result.detected, result.missed, result.false_positives), (1, 1, 1));
        assert_eq!(result.lesions[1].dice, None);
        assert_eq!(result.lesions[0].volume_mm3, 12.0);
    }

    #[test]
    fn a_lesion_takes_every_component_that_lies_in_it_and_no_other() {
        // Two components in the first lesion, one of which reaches into the second.
        let result = judge(&mask(&[2..8, 10..14]), &mask(&[1..3, 6..11, 16..18]));
        assert_eq!((result.detected, result.false_positives), (2, 1));
        // 1, 2, 6, 7 and 8 against 2 to 7; 9 and 10 against 10 to 13.
        for (lesion, dice) in result.lesions.iter().zip([2.0 * 3.0 / 11.0, 2.0 / 6.0]) {
            assert!((lesion.dice.unwrap() - dice).abs() < 1e-12, "{:?}", lesion.dice);
        }
        assert_eq!(result.lesions[1].hd_mm, Some(3.0));
    }

    #[test]
    fn a_single_voxel_of_overlap_detects_and_every_figure_is_defined() {
        let result = judge(&mask(&[2..6, 20..21]), &mask(&[5..6, 20..21]));
        assert_eq!((result.detected, result.missed, result.false_positives), (2, 0, 0));
        let one = &result.lesions[1];
        assert_eq!((one.dice, one.surface_dice, one.hd_mm), (Some(1.0), Some(1.0), Some(0.0)));
        assert!(result.lesions[0].hd95_mm.is_some_and(|mm| mm > 0.0 && mm <= 3.0));
    }

    #[test]
    fn empty_cases() {
        let (empty, full) = (mask(&[]), mask(&std::array::from_fn::<_, 1, _>(|_| 2..6)));
        let none = judge(&empty, &empty).whole_mask;
        assert_eq!(
            (none.dice, none.both_empty, none.surface_dice, none.hd_mm),
            (1.0, true, None, None)
        );
        for (r, p) in [(&empty, &full), (&full, &empty)] {
            let one = judge(r, p).whole_mask;
            assert_eq!(
                (one.dice, one.both_empty, one.surface_dice, one.hd95_mm),
                (0.0, false, Some(0.0), None)
            );
        }
    }
}
