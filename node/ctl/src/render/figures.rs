//! Lesion figures.

use super::{figure, table};
use rondo_imaging::comparison::{Comparison, Figure, MethodFigure};
use rondo_imaging::metrics::{Evaluation, Pooled};
use rondo_imaging::page::visible;

/// Heads of the figures in [`pooled_cells`].
pub(crate) const POOLED_HEAD: [&str; 12] = [
    "cases",
    "lesions",
    "found",
    "false",
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
        p.false_positives.to_string(),
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
        "HD mm",
    ];
    let rows = evaluation.cases.iter().map(|c| {
        vec![
            visible(&c.id),
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
            figure(c.whole_mask.hd_mm, 2),
        ]
    });
    let right: Vec<usize> = (1..head.len()).collect();
    let mut pooled = vec![(vec!["whole volume".to_owned()], &evaluation.pooled)];
    if let Some(inside) = &evaluation.pooled_in_brain {
        pooled.push((vec!["inside the brain mask".to_owned()], inside));
    }
    let no_mask = if evaluation.pooled_in_brain.is_none() {
        "\nWithout --brain-mask there are no figures inside the brain."
    } else {
        ""
    };
    format!(
        "{}\n\nPooled (contour figures: means over found lesions; FPR: false positives per volume)\n{}{no_mask}",
        table(&head, &right, rows.collect()),
        pooled_table(&["predictions"], pooled),
    )
}

/// Methods side by side: a table of mean ± sd, and one of p-values.
pub(crate) fn comparison_text(made: &Comparison) -> String {
    let mut text = format!("{} cases, {} lesions", made.cases, made.reference_lesions);
    let sets = [
        Some(("in the whole volume", &made.figures)),
        made.figures_in_brain.as_ref().map(|f| ("inside the brain mask", f)),
    ];
    for (name, figures) in sets.into_iter().flatten() {
        text.push_str(&format!("\n\nPredictions {name}, mean ± sd (repeats)\n"));
        text.push_str(&means(figures));
        if figures.iter().any(|f| !f.tests.is_empty()) {
            text.push_str("\n\nUnpaired two-sided t-tests, p\n");
            text.push_str(&tests(figures));
        }
    }
    for notice in &made.notices {
        text.push_str(&format!("\nnote: {notice}"));
    }
    text
}

fn means(figures: &[Figure]) -> String {
    let methods = figures.first().map(|f| f.methods.as_slice()).unwrap_or_default();
    let names: Vec<String> = methods.iter().map(|m| visible(&m.method)).collect();
    let head: Vec<&str> =
        std::iter::once("figure").chain(names.iter().map(String::as_str)).collect();
    let rows = figures.iter().map(|f| {
        let cell = |m: &MethodFigure| {
            let s = &m.summary;
            format!("{} ± {} ({})", figure(s.mean, 3), figure(s.sd, 3), s.n)
        };
        std::iter::once(f.figure.to_owned()).chain(f.methods.iter().map(cell)).collect()
    });
    table(&head, &(1..head.len()).collect::<Vec<_>>(), rows.collect())
}

fn tests(figures: &[Figure]) -> String {
    let rows = figures.iter().flat_map(|f| {
        f.tests.iter().map(|t| {
            vec![
                f.figure.to_owned(),
                format!("{} – {}", visible(&t.a), visible(&t.b)),
                probability(t.student.map(|t| t.p)),
                probability(t.welch.map(|t| t.p)),
            ]
        })
    });
    table(&["figure", "methods", "Student", "Welch"], &[2, 3], rows.collect())
}

/// In powers of ten below 0.001, so that a small probability is not shown as none.
fn probability(p: Option<f64>) -> String {
    match p {
        Some(p) if p < 0.001 => format!("{p:.1e}"),
        p => figure(p, 3),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo_imaging::comparison::{Method, compare};
    use rondo_imaging::metrics::{CaseResult, Settings, pool};

    #[test]
    fn methods_stand_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let case = |dice: f64| {
            serde_json::json!({"id": "c", "reference_lesions": 1, "predicted_components": 1,
                "detected": 1, "missed": 0, "false_positives": 0, "whole_mask": {"dice": dice},
                "lesions": [{"volume_mm3": 5.0, "detected": true, "dice": dice}]})
        };
        let method = |name: &str, values: &[f64]| {
            let file = |dice: &f64| {
                let cases: Vec<CaseResult> = vec![serde_json::from_value(case(*dice)).unwrap()];
                let evaluation = Evaluation {
                    settings: Settings::default(),
                    pooled: pool(&cases),
                    cases,
                    pooled_in_brain: None,
                };
                let path = dir.path().join(format!("{name}-{dice}.json"));
                let text = crate::output::document("rondo.evaluate/1", evaluation).unwrap();
                std::io::Write::write_all(
                    &mut std::fs::File::create(&path).unwrap(),
                    text.as_bytes(),
                )
                .unwrap();
                path
            };
            Method { name: name.to_owned(), files: values.iter().map(file).collect() }
        };
        let methods = [method("swt", &[0.5, 0.7]), method("cwt", &[0.9])];
        let text = comparison_text(&compare(&methods).unwrap());
        for part in
            ["1 cases, 1 lesions", "0.600 ± 0.141 (2)", "0.900 ± – (1)", "swt – cwt", "note: "]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("inside the brain"));
    }

    #[test]
    fn a_case_id_cannot_steer_the_terminal() {
        let case = serde_json::json!({"id": "c\u{1b}[2J\u{202e}1\r", "reference_lesions": 0,
            "predicted_components": 0, "detected": 0, "missed": 0, "false_positives": 0,
            "whole_mask": {"dice": 1.0, "both_empty": true}, "lesions": []});
        let cases: Vec<CaseResult> = vec![serde_json::from_value(case).unwrap()];
        let (settings, pooled) = (Settings::default(), pool(&cases));
        let text = evaluation_text(&Evaluation { settings, cases, pooled, pooled_in_brain: None });
        assert!(text.contains("c\u{fffd}[2J\u{fffd}1\u{fffd}"), "{text:?}");
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\r']), "{text:?}");
    }

    #[test]
    fn a_small_probability_is_not_none() {
        assert_eq!(probability(Some(0.0)), "0.0e0");
        assert_eq!(probability(Some(1.234e-7)), "1.2e-7");
        assert_eq!(
            (probability(Some(0.0443)).as_str(), probability(None).as_str()),
            ("0.044", "–")
        );
    }

    #[test]
    fn undefined_figures_are_dashes() {
        let none = pool(&[]);
        let cells = pooled_cells(&none);
        assert_eq!(cells.len(), POOLED_HEAD.len());
        assert_eq!(cells[4], "–");
        assert!(pooled_table(&["set"], vec![(vec!["all".into()], &none)]).contains("surface Dice"));
    }
}
