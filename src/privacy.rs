//! What Gaussian noise on an update is worth: Rényi differential privacy of the releases of one site.
//!
//! The unit of protection is one release of the site's whole update, clipped to an L2 norm: two worlds
//! differ in whether that update was made or none, so the sensitivity is the clip norm, and noise of
//! standard deviation `multiplier × clip` is the Gaussian mechanism. It is not a statement about a single
//! patient: an update is the work of all of a site's cases, so what holds for the update holds for each
//! of them who took part in that release, but a patient who takes part in every release is protected by
//! the composition of them alone.
//!
//! Sources: I. Mironov, Rényi Differential Privacy (CSF 2017): the Gaussian mechanism (Proposition 7),
//! composition (Proposition 1), conversion (Proposition 3).

/// The cost of any number of releases: the slope of ε(α) = slope × α, which composition adds up.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Cost(f64);

impl Cost {
    /// Of one release with noise of `multiplier` times the clip norm: 1 / (2 multiplier²).
    #[must_use]
    pub fn gaussian(multiplier: f64) -> Self {
        Self(0.5 / (multiplier * multiplier))
    }

    /// Of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The least ε at `delta`: the minimum over α > 1 of slope × α + ln(1/δ) / (α − 1), which lies at
    /// α = 1 + √(ln(1/δ) / slope). Nothing released costs nothing.
    #[must_use]
    pub fn epsilon(self, delta: f64) -> f64 {
        let Self(slope) = self;
        slope + 2.0 * (slope * -delta.ln()).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Definition and conversion as they stand in the paper, over a fine grid of orders.
    fn least(multipliers: &[f64], delta: f64) -> f64 {
        let orders = (1..4_000_000).map(|i| 1.0 + f64::from(i) * 1e-4);
        let rdp = |order: f64| multipliers.iter().map(|m| order / (2.0 * m * m)).sum::<f64>();
        orders.map(|a| rdp(a) + (1.0 / delta).ln() / (a - 1.0)).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn golden_figures() {
        // By hand: slope 1/2, ln(10⁵) = 11.512925, so 0.5 + 2 √5.7564627 = 5.298526.
        let one = Cost::gaussian(1.0);
        assert!((one.epsilon(1e-5) - 5.298_526).abs() < 1e-6, "{}", one.epsilon(1e-5));
        // Four releases at 2 are one at 1: the slopes add up to the same.
        let four = (0..4).fold(Cost::default(), |all, _| all.and(Cost::gaussian(2.0)));
        assert!((four.epsilon(1e-5) - one.epsilon(1e-5)).abs() < 1e-12);
        assert_eq!(Cost::default().epsilon(1e-5), 0.0);
        for (multipliers, delta) in [
            (vec![1.0], 1e-5),
            (vec![0.5, 4.0], 1e-6),
            (vec![10.0; 12], 1e-3),
            (vec![1.1; 3], 1e-9),
        ] {
            let all = multipliers.iter().map(|m| Cost::gaussian(*m));
            let epsilon = all.fold(Cost::default(), Cost::and).epsilon(delta);
            let grid = least(&multipliers, delta);
            assert!(epsilon <= grid + 1e-9 && grid - epsilon < 1e-5, "{epsilon} is not {grid}");
        }
    }

    #[test]
    fn more_noise_costs_less_and_every_release_costs_more() {
        let costs = [0.5, 1.0, 2.0, 8.0].map(|m| Cost::gaussian(m).epsilon(1e-5));
        assert!(costs.is_sorted_by(|a, b| a > b), "{costs:?}");
        let twice = Cost::gaussian(1.0).and(Cost::gaussian(1.0));
        assert!(twice > Cost::gaussian(1.0) && twice.epsilon(1e-5) < 2.0 * costs[1]);
    }
}
