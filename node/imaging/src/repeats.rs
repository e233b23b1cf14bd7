//! Repeated trainings: mean ± standard deviation over seeds, and whether two methods differ.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Mean and spread of repeated measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// `None` without values.
    pub mean: Option<f64>,
    /// Sample standard deviation (n − 1); `None` below two values.
    pub sd: Option<f64>,
}

/// Summarises repeats. Equal values have a deviation of exactly 0: the rounding of their sum must not
/// pass for a spread that makes a t-test sure of itself.
pub fn summary(values: &[f64]) -> Summary {
    let n = values.len();
    if let Some(only) = values.first().filter(|only| values.iter().all(|v| v == *only)) {
        return Summary { n, mean: Some(*only), sd: (n > 1).then_some(0.0) };
    }
    let mean = (n > 0).then(|| values.iter().sum::<f64>() / n as f64);
    let sd = mean.filter(|_| n > 1).map(|mean| {
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (squares / (n as f64 - 1.0)).sqrt()
    });
    Summary { n, mean, sd }
}

/// Result of an unpaired two-sided t-test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TTest {
    /// Test statistic.
    pub t: f64,
    /// Degrees of freedom.
    pub df: f64,
    /// Two-sided probability.
    pub p: f64,
}

/// Student's test (equal variances). `None` below two values each, or without any variance.
pub fn student(a: &[f64], b: &[f64]) -> Option<TTest> {
    let (na, nb) = (a.len() as f64, b.len() as f64);
    let (va, vb) = (summary(a).sd?.powi(2), summary(b).sd?.powi(2));
    let df = na + nb - 2.0;
    let pooled = ((na - 1.0) * va + (nb - 1.0) * vb) / df;
    test(a, b, pooled * (1.0 / na + 1.0 / nb), df)
}

/// Welch's test (unequal variances, Welch–Satterthwaite degrees of freedom). `None` as for [`student`].
pub fn welch(a: &[f64], b: &[f64]) -> Option<TTest> {
    let (na, nb) = (a.len() as f64, b.len() as f64);
    let (ea, eb) = (summary(a).sd?.powi(2) / na, summary(b).sd?.powi(2) / nb);
    let df = (ea + eb).powi(2) / (ea * ea / (na - 1.0) + eb * eb / (nb - 1.0));
    test(a, b, ea + eb, df)
}

fn test(a: &[f64], b: &[f64], variance: f64, df: f64) -> Option<TTest> {
    let t = (summary(a).mean? - summary(b).mean?) / variance.sqrt();
    let distribution = StudentsT::new(0.0, 1.0, df).ok()?;
    t.is_finite().then(|| TTest { t, df, p: 2.0 * distribution.sf(t.abs()) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    // scipy.stats.ttest_ind on five seeds of two methods.
    const A: [f64; 5] = [
        0.8306838553450636,
        0.8571949508061992,
        0.8544944215717186,
        0.8197938584642466,
        0.824040609777871,
    ];
    const B: [f64; 5] = [
        0.7636307903483288,
        0.818486317878598,
        0.7871967780477191,
        0.8273442808128272,
        0.6976337600512945,
    ];

    #[test]
    fn equals_scipy() {
        let s = student(&A, &B).unwrap();
        let w = welch(&A, &B).unwrap();
        for (ours, theirs) in [
            (s.t, 2.3797575743587984),
            (s.p, 0.044562534668935935),
            (w.t, 2.3797575743587984),
            (w.p, 0.06434005331060248),
            (w.df, 4.888914243076628),
        ] {
            assert!((ours - theirs).abs() < 1e-10, "{ours} against {theirs}");
        }
    }

    #[test]
    fn too_little_for_a_test() {
        assert_eq!(student(&[1.0], &A), None);
        assert_eq!(welch(&[1.0, 1.0], &[1.0, 1.0]), None);
        // 0.7 + 0.7 + 0.7 divided by 3 is not 0.7.
        assert_eq!(student(&[0.7; 3], &[0.1; 3]), None);
        assert_eq!(summary(&[0.7; 3]), Summary { n: 3, mean: Some(0.7), sd: Some(0.0) });
        assert_eq!(summary(&[]), Summary { n: 0, mean: None, sd: None });
    }
}
