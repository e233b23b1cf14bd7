//! Mean, standard deviation and t-tests against numpy and scipy, where Python has them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod peer_figures;
mod support;

use rondo_imaging::repeats::{TTest, student, summary, welch};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    a: Vec<f64>,
    b: Vec<f64>,
    mean: f64,
    sd: Option<f64>,
    /// Statistic, degrees of freedom, probability.
    student: Option<[f64; 3]>,
    welch: Option<[f64; 3]>,
}

/// Probabilities of 1e-100 count as well, so the error is relative.
fn close(what: &str, ours: f64, theirs: f64, relative: f64) {
    assert!(
        (ours - theirs).abs() <= relative * theirs.abs() + 1e-300,
        "{what}: {ours}, not {theirs}"
    );
}

#[test]
fn repeats_equal_scipy() {
    let seed = 1;
    let Some(folder) = peer_figures::made("repeats", "numpy, scipy", seed) else {
        return;
    };
    let cases = std::fs::read(folder.path().join("repeats.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    assert_eq!(cases.len(), 400);
    for (n, case) in cases.iter().enumerate() {
        let at = |what: &str| format!("seed {seed}, case {n}, {what}");
        let ours = summary(&case.a);
        assert_eq!(ours.n, case.a.len());
        close(&at("mean"), ours.mean.unwrap(), case.mean, 1e-12);
        assert_eq!(ours.sd.is_some(), case.sd.is_some(), "{}", at("sd"));
        if let (Some(ours), Some(theirs)) = (ours.sd, case.sd) {
            assert!((ours - theirs).abs() <= 1e-9 * theirs + 1e-15, "{}", at("sd"));
        }
        let tests: [(&str, Option<TTest>); 2] =
            [("student", student(&case.a, &case.b)), ("welch", welch(&case.a, &case.b))];
        for ((name, ours), theirs) in tests.into_iter().zip([case.student, case.welch]) {
            match (ours, theirs) {
                (None, None) => {}
                (Some(ours), Some([t, df, p])) => {
                    close(&at(&format!("{name} t")), ours.t, t, 1e-8);
                    close(&at(&format!("{name} df")), ours.df, df, 1e-8);
                    close(&at(&format!("{name} p")), ours.p, p, 1e-6);
                }
                _ => panic!("{}: {ours:?}, not {theirs:?}", at(name)),
            }
        }
    }
}
