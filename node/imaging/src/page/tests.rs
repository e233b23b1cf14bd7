#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use super::*;
use crate::metrics::{Settings, WholeMask, pool};
use crate::picture::Finding;

fn lesion(volume_mm3: f64, detected: bool) -> LesionResult {
    LesionResult {
        volume_mm3,
        detected,
        dice: detected.then_some(0.7511),
        surface_dice: detected.then_some(0.9),
        hd95_mm: detected.then_some(1.5),
        hd_mm: detected.then_some(2.0),
    }
}

fn case(id: &str, lesions: Vec<LesionResult>) -> CaseResult {
    let detected = lesions.iter().filter(|l| l.detected).count();
    CaseResult {
        id: id.into(),
        reference_lesions: lesions.len(),
        predicted_components: detected + 1,
        detected,
        missed: lesions.len() - detected,
        false_positives: 1,
        whole_mask: WholeMask {
            dice: 0.625,
            surface_dice: Some(0.5),
            hd95_mm: None,
            hd_mm: None,
            both_empty: false,
        },
        lesions,
    }
}

fn evaluation(cases: Vec<CaseResult>) -> Evaluation {
    let pooled = pool(&cases);
    Evaluation {
        settings: Settings { brain_mask: true, labels: vec![1, 3], ..Settings::default() },
        cases,
        pooled_in_brain: Some(pooled.clone()),
        pooled,
    }
}

fn album(id: &str) -> Album {
    let findings = vec![Finding {
        kind: Kind::Missed,
        number: 2,
        volume_mm3: 33.0,
        at_mm: [0.0; 3],
        extent_mm: 5.0,
    }];
    let sheets = CaseSheets { findings, left_out: 4, sheets: vec![b"not really a png".to_vec()] };
    Album { kept: BTreeMap::from([(id.to_owned(), sheets)]), ..Album::default() }
}

/// Every attribute that could fetch something, and what it holds.
fn fetched(page: &str) -> Vec<&str> {
    ["src=\"", "href=\"", "url(", "@import", "srcset=\"", "action=\"", "data=\"", "poster=\""]
        .iter()
        .flat_map(|attribute| page.split(attribute).skip(1))
        .map(|rest| &rest[..rest.len().min(22)])
        .collect()
}

#[test]
fn figures_and_sheets_are_in_the_page_and_nothing_is_fetched() {
    let evaluation = evaluation(vec![
        case("one", vec![lesion(12.0, true), lesion(8.0, false)]),
        case("two", vec![lesion(2500.0, true)]),
    ]);
    let page = html(&evaluation, Some(&album("one"))).unwrap();
    for text in [
        "<th scope=\"col\">Inside the brain mask</th>",
        "<tr><th scope=\"row\">Sensitivity</th><td>0.667</td><td>0.667</td></tr>",
        "<tr><th scope=\"row\">Dice</th><td>0.751</td><td>0.751</td></tr>",
        "by faces, edges and corners (26)",
        "1, 3",
        "<th scope=\"row\">two</th>",
        "10 – 30",
        "lesion 2, missed, 33.0 mm³",
        "4 more findings",
        "lang=\"en\"",
        "alt=\"Contact sheet 1 of 1 of case one: rows 1 to 1",
        "default-src 'none'",
    ] {
        assert!(page.contains(text), "{text}");
    }
    let png = STANDARD.encode(b"not really a png");
    assert!(page.contains(&format!("src=\"data:image/png;base64,{png}\"")));
    assert_eq!(fetched(&page), ["data:image/png;base64,"]);
    for never in ["<script", "http:", "https:", "<link", "<iframe", "javascript:"] {
        assert!(!page.contains(never), "{never}");
    }
    assert_eq!(page, html(&evaluation, Some(&album("one"))).unwrap());
    let points = page.matches("<circle class=\"found\"").count();
    assert_eq!((points, page.matches("<path class=\"missed\"").count()), (2, 1));
}

#[test]
fn ids_are_escaped_and_cannot_disguise_themselves() {
    let id = "<script>alert(1)</script>\"'&\u{202e}gnp\n";
    let mut album = album(id);
    album.problems.insert("<b>x</b>".into(), "<i>why</i> \u{202e}".into());
    album.not_kept.insert("<u>y</u>".into());
    let page = html(&evaluation(vec![case(id, vec![lesion(5.0, true)])]), Some(&album)).unwrap();
    for never in ["<script", "<b>x", "<i>why", "<u>y", "\u{202e}"] {
        assert!(!page.contains(never), "{never}");
    }
    assert!(page.contains("&#60;script&#62;alert(1)"));
    assert_eq!(visible(&"x".repeat(500)).chars().count(), MAX_ID_CHARS + 1);
    assert_eq!(visible_text(&"x".repeat(5000)).chars().count(), MAX_WHY_CHARS + 1);
    for sign in "\0\u{1b}\u{7f}\u{9b}\r\u{ad}\u{61c}\u{200f}\u{2066}\u{e0041}".chars() {
        assert_eq!(visible(&format!("a{sign}b")), "a\u{fffd}b", "{sign:?}");
    }
    assert_eq!(visible("Fall-03_ä 頭"), "Fall-03_ä 頭");
}

#[test]
fn without_images_lesions_or_cases_the_page_says_so() {
    let page = html(&evaluation(vec![]), None).unwrap();
    assert!(page.contains("There is no reference lesion") && page.contains("--image"));
    assert!(!page.contains("NaN") && !page.contains(">inf<"));
    let page = html(&evaluation(vec![case("c", vec![])]), Some(&Album::default())).unwrap();
    assert!(page.contains("nothing to picture"));
}

#[test]
fn the_size_is_bounded() {
    let lesions: Vec<_> = (0..3000).map(|n| lesion(f64::from(n % 977) + 0.5, n % 3 != 0)).collect();
    let cases = (0..4000)
        .map(|n| case(&format!("case-{n:04}"), if n < 3 { lesions.clone() } else { vec![] }));
    let evaluation = evaluation(cases.collect());
    let page = html(&evaluation, None).unwrap();
    assert!(page.len() < 2_500_000, "{}", page.len());
    assert!(page.contains("2000 more cases") && page.contains("7000 more lesions"));
    let points = page.matches("<circle class").count() + page.matches("<path class").count();
    assert!(points <= MAX_LESIONS && points > MAX_LESIONS / 2, "{points}");
    assert!(page.contains(&format!("{} lesions, evenly chosen, are not drawn", 9000 - points)));
}

#[test]
fn sizes_fall_into_the_range_that_holds_them() {
    for n in -12..20 {
        let edge = bins::edge(n);
        assert_eq!(bins::below(edge), n, "{edge}");
        assert_eq!(bins::below(edge * (1.0 - 1e-12)), n - 1, "{edge}");
    }
    let lesions =
        [lesion(9.99, false), lesion(10.0, true), lesion(29.0, false), lesion(100.0, true)];
    let made = bins::bins(&lesions.iter().collect::<Vec<_>>());
    let rows: Vec<_> = made.iter().map(|b| (b.name.as_str(), b.found, b.lesions)).collect();
    assert_eq!(
        rows,
        [("3 – 10", 0, 1), ("10 – 30", 1, 2), ("30 – 100", 0, 0), ("100 – 300", 1, 1)]
    );
    assert_eq!(made[2].sensitivity, "–");
    assert_eq!(bins::label(7), "3\u{202f}000");
    let below_one: Vec<String> = (-5..1).map(bins::label).collect();
    assert_eq!(below_one, ["0.003", "0.01", "0.03", "0.1", "0.3", "1"]);
    let small = [lesion(0.04, true), lesion(0.5, false)];
    let made = bins::bins(&small.iter().collect::<Vec<_>>());
    let names: Vec<_> = made.iter().map(|b| b.name.as_str()).collect();
    assert_eq!(names, ["0.03 – 0.1", "0.1 – 0.3", "0.3 – 1"]);
    let page = html(&evaluation(vec![case("c", small.to_vec())]), None).unwrap();
    assert!(page.contains(">0.3 – 1<") && page.contains("<td>0.040</td>"));
    assert!(!page.contains("0000000"), "{page}");
}

#[test]
fn small_volumes_keep_two_digits() {
    for (volume, text) in [
        (0.0, "0.0"),
        (4.2e-9, "4.2e-9"),
        (0.000_012_3, "0.000012"),
        (0.04, "0.040"),
        (0.5, "0.50"),
        (0.9949, "0.99"),
        (0.999, "1.0"),
        (1.04, "1.0"),
        (33.04, "33.0"),
        (99.94, "99.9"),
        (99.96, "100.0"),
        (1234.5, "1234"),
    ] {
        assert_eq!(mm3(volume), text, "{volume}");
    }
}
