//! Lesion figures.

use super::{figure, table};
use rondo_imaging::metrics::{Evaluation, Pooled};

/// Heads of the figures in [`pooled_cells`].
pub(crate) const POOLED_HEAD: [&str; 11] = [
    "cases",
    "lesions",
    "found",
    "sensitivity",
    "precision",
    "FPR",
    "F1",
    "F2",
    "Dice",
    "surface Dice",
    "HD95 mm",
];

/// The pooled figures as cells of a row.
pub(crate) fn pooled_cells(p: &Pooled) -> Vec<String> {
    vec![
        p.cases.to_string(),
        p.reference_lesions.to_string(),
        p.detected.to_string(),
        figure(p.sensitivity, 3),
        figure(p.precision, 3),
        figure(p.fp_per_case, 2),
        figure(p.f1, 3),
        figure(p.f2, 3),
        figure(p.dice, 3),
        figure(p.surface_dice, 3),
        figure(p.hd95_mm, 2),
    ]
}

/// A table of pooled figures, each row under its names.
pub(crate) fn pooled_table(names: &[&str], rows: Vec<(Vec<String>, &Pooled)>) -> String {
    let head: Vec<&str> = names.iter().copied().chain(POOLED_HEAD).collect();
    let right: Vec<usize> = (names.len()..head.len()).collect();
    let rows = rows.into_iter().map(|(mut row, pooled)| {
        row.extend(pooled_cells(pooled));
        row
    });
    table(&head, &right, rows.collect())
}

pub(crate) fn evaluation_text(evaluation: &Evaluation) -> String {
    let head = [
        "case",
        "lesions",
        "predicted",
        "found",
        "missed",
        "false",
        "Dice",
        "surface Dice",
        "HD95 mm",
    ];
    let rows = evaluation.cases.iter().map(|c| {
        vec![
            c.id.clone(),
            c.reference_lesions.to_string(),
            c.predicted_components.to_string(),
            c.detected.to_string(),
            c.missed.to_string(),
            c.false_positives.to_string(),
            format!(
                "{:.3}{}",
                c.whole_mask.dice,
                if c.whole_mask.both_empty { " (both empty)" } else { "" }
            ),
            figure(c.whole_mask.surface_dice, 3),
            figure(c.whole_mask.hd95_mm, 2),
        ]
    });
    let right: Vec<usize> = (1..head.len()).collect();
    let mut pooled = vec![(vec!["whole volume".to_owned()], &evaluation.pooled)];
    if let Some(inside) = &evaluation.pooled_in_brain {
        pooled.push((vec!["inside the brain mask".to_owned()], inside));
    }
    format!(
        "{}\n\nPooled (contour figures: means over found lesions; FPR: false positives per volume)\n{}",
        table(&head, &right, rows.collect()),
        pooled_table(&["predictions"], pooled),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rondo_imaging::metrics::pool;

    #[test]
    fn undefined_figures_are_dashes() {
        let none = pool(&[]);
        let cells = pooled_cells(&none);
        assert_eq!(cells.len(), POOLED_HEAD.len());
        assert_eq!(cells[3], "–");
        assert!(pooled_table(&["set"], vec![(vec!["all".into()], &none)]).contains("surface Dice"));
    }
}
