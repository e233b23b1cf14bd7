//! Random draws that are the same on every machine: ChaCha streams keyed by what they are for.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// What a stream is for; streams of different purposes share nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    InitialWeights = 1,
    OrderOfCases = 2,
    Centres = 3,
    OrderOfSegments = 4,
    Augmentation = 5,
}

/// The stream of `(seed, purpose, a, b)`.
pub(crate) fn stream(seed: u64, purpose: Purpose, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (slot, word) in key.as_chunks_mut::<8>().0.iter_mut().zip([seed, purpose as u64, a, b]) {
        *slot = word.to_le_bytes();
    }
    ChaCha8Rng::from_seed(key)
}

/// Uniform in `[0, 1)` with 53 bits.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Standard normal (Box-Muller).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(rng)).cos()
}

/// Uniform in `0..n` without bias; `n` must not be zero.
pub(crate) fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    let rest = u64::MAX % n;
    loop {
        let draw = rng.next_u64();
        // The top `rest + 1` values would favour small results, unless they fill a whole period.
        if rest + 1 == n || draw < u64::MAX - rest {
            return draw % n;
        }
    }
}

/// `k` different numbers of `0..n`, each set of equal probability (Floyd); all of them if `k >= n`.
pub(crate) fn distinct(rng: &mut ChaCha8Rng, k: u64, n: u64) -> BTreeSet<u64> {
    let mut chosen = BTreeSet::new();
    for top in n.saturating_sub(k)..n {
        let draw = below(rng, top + 1);
        if !chosen.insert(draw) {
            chosen.insert(top);
        }
    }
    chosen
}

/// Fisher-Yates.
pub(crate) fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        let j = usize::try_from(below(rng, i as u64 + 1)).unwrap_or(i);
        items.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_distinct_and_spread() {
        let mut rng = stream(7, Purpose::Centres, 0, 0);
        let mut counts = [0_u32; 10];
        for _ in 0..2000 {
            let chosen = distinct(&mut rng, 3, 10);
            assert_eq!(chosen.len(), 3);
            chosen.iter().for_each(|c| counts[*c as usize] += 1);
        }
        assert!(counts.iter().all(|c| (480..720).contains(c)), "{counts:?}");
        assert_eq!(distinct(&mut rng, 9, 4).len(), 4);
        assert!(distinct(&mut rng, 3, 0).is_empty());
        let draws: Vec<f64> = (0..20_000).map(|_| normal(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 20_000.0 - mean * mean;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
