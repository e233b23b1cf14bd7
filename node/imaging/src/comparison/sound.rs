//! Whether the figures of a file can be those of an evaluation.

use super::{FIGURES, FROM_COUNTS, Getter};
use crate::metrics::{CaseResult, Evaluation, Pooled, WholeMask, pool};

/// Pooled figures computed again may differ by this share: sums of decimal text.
const ROUNDING: f64 = 1e-9;
/// Components have 32-bit numbers.
const MAX_COMPONENTS: usize = u32::MAX as usize;

/// What a file says about itself must be true.
pub(super) fn check(evaluation: &Evaluation) -> Result<(), String> {
    for case in &evaluation.cases {
        let detected = case.lesions.iter().filter(|l| l.detected).count();
        let counts = case.lesions.len() == case.reference_lesions
            && case.detected == detected
            && case.missed == case.reference_lesions - detected
            && case.false_positives <= case.predicted_components
            && case.predicted_components <= MAX_COMPONENTS;
        if !counts {
            return Err(format!("the counts of case {:?} do not follow from its lesions", case.id));
        }
        let sizes = case.lesions.iter().all(|l| l.volume_mm3 > 0.0 && l.volume_mm3.is_finite());
        let undetected = (case.lesions.iter().filter(|l| !l.detected))
            .all(|l| l.dice.is_none() && l.surface_dice.is_none() && l.hd95_mm.is_none());
        if !sizes || !undetected {
            return Err(format!("case {:?} has a lesion that cannot be", case.id));
        }
    }
    let again = pool(&evaluation.cases);
    agree(&evaluation.pooled, &again, &FIGURES)
        .map_err(|figure| format!("its pooled {figure} does not follow from its cases"))?;
    if let Some(inside) = &evaluation.pooled_in_brain {
        check_inside(inside, &again)?;
    }
    range(&evaluation.pooled)
}

/// The figures inside the brain, against the ones of the whole volumes.
fn check_inside(inside: &Pooled, whole: &Pooled) -> Result<(), String> {
    if (inside.cases, inside.reference_lesions) != (whole.cases, whole.reference_lesions) {
        return Err("its figures inside the brain are about other cases".to_owned());
    }
    // Removing predictions finds no lesion more. Of false positives there may be more: a
    // component that is cut apart can be several.
    if inside.detected > whole.detected {
        return Err("more lesions were found inside the brain than in all".to_owned());
    }
    if inside.false_positives > MAX_COMPONENTS.saturating_mul(inside.cases) {
        return Err("its false positives inside the brain are too many to be".to_owned());
    }
    agree(inside, &from_counts(inside), &FIGURES[..FROM_COUNTS]).map_err(|figure| {
        format!("its {figure} inside the brain does not follow from its counts")
    })?;
    for (name, get, _) in &FIGURES[FROM_COUNTS..] {
        if get(inside).is_some() != (inside.detected > 0) {
            return Err(format!(
                "its {name} inside the brain does not fit the {} lesions found there",
                inside.detected
            ));
        }
    }
    range(inside)
}

/// What [`pool`] makes of cases that have these counts together; without contour figures.
fn from_counts(counts: &Pooled) -> Pooled {
    let case = |lesions: usize, detected: usize, false_positives: usize| CaseResult {
        id: String::new(),
        reference_lesions: lesions,
        predicted_components: 0,
        detected,
        missed: lesions - detected,
        false_positives,
        whole_mask: WholeMask {
            dice: 1.0,
            surface_dice: None,
            hd95_mm: None,
            hd_mm: None,
            both_empty: true,
        },
        lesions: Vec::new(),
    };
    let all = case(counts.reference_lesions, counts.detected, counts.false_positives);
    let none = case(0, 0, 0);
    pool(std::iter::once(&all).chain(std::iter::repeat(&none)).take(counts.cases))
}

fn range(pooled: &Pooled) -> Result<(), String> {
    for (name, get, most) in FIGURES {
        if get(pooled).is_some_and(|v| !(0.0..=most).contains(&v)) {
            return Err(format!("{name} is out of its range"));
        }
    }
    Ok(())
}

fn agree(
    a: &Pooled,
    b: &Pooled,
    figures: &[(&'static str, Getter, f64)],
) -> Result<(), &'static str> {
    let counts = |p: &Pooled| (p.cases, p.reference_lesions, p.detected, p.false_positives);
    if counts(a) != counts(b) {
        return Err("count");
    }
    for (name, get, _) in figures {
        let same = match (get(a), get(b)) {
            (None, None) => true,
            (Some(x), Some(y)) => (x - y).abs() <= ROUNDING * x.abs().max(y.abs()).max(1.0),
            _ => false,
        };
        if !same {
            return Err(name);
        }
    }
    Ok(())
}
