//! Sharpening of the histogram of log intensities (Sled et al. 1998, section II-B).

use std::f64::consts::{LN_2, PI};

/// Expected values below this share of the largest probability are the rounding of the transform.
const MIN_PROBABILITY: f64 = 1e-13;

/// The expected true log intensity for an observed one, linear between the bins.
pub(super) struct Mapping {
    /// Least log intensity, the middle of the first bin.
    pub(super) least: f32,
    /// Bins per unit of log intensity.
    pub(super) per_unit: f32,
    /// For each bin the expected value and how far it is to that of the next bin.
    pub(super) expected: Vec<[f32; 2]>,
}

impl Mapping {
    /// Deconvolves the histogram with a Gaussian of the field's width (Wiener filter), then takes
    /// E(u|v) over the sharpened distribution.
    pub(super) fn sharpen(
        histogram: &[f64],
        (least, greatest): (f64, f64),
        fwhm: f64,
        noise: f64,
    ) -> Self {
        let bins = histogram.len();
        let slope = (greatest - least) / (bins - 1) as f64;
        // At least half the transform is padding, so that the Gaussian does not wrap around.
        let padded = 2 * bins.next_power_of_two();
        let offset = (padded - bins) / 2;
        let fft = Fft::new(padded);

        let width = fwhm / slope;
        let mut gaussian = vec![Complex::default(); padded];
        for (n, g) in gaussian.iter_mut().enumerate() {
            let away = n.min(padded - n) as f64;
            g.re = 2.0 * (LN_2 / PI).sqrt() / width * (-4.0 * LN_2 * (away / width).powi(2)).exp();
        }
        fft.transform(&mut gaussian);
        // An even function has a real transform.
        let gaussian: Vec<f64> = gaussian.iter().map(|g| g.re).collect();

        let mut sharp = vec![Complex::default(); padded];
        for (s, h) in sharp[offset..].iter_mut().zip(histogram) {
            s.re = *h;
        }
        fft.filter(&mut sharp, |n| gaussian[n] / (gaussian[n] * gaussian[n] + noise));
        // One transform carries both: the distribution as real, its first moment as imaginary part.
        let value = |n: usize| least + (n as f64 - offset as f64) * slope;
        for (n, s) in sharp.iter_mut().enumerate() {
            let probability = s.re.max(0.0);
            *s = Complex { re: probability, im: probability * (n as f64 - offset as f64) };
        }
        fft.filter(&mut sharp, |n| gaussian[n]);

        let floor = sharp.iter().fold(0.0, |most: f64, s| most.max(s.re)) * MIN_PROBABILITY;
        let expected: Vec<f64> = (0..bins)
            .map(|bin| {
                let s = sharp[bin + offset];
                // Where nothing is expected, a value stays what it is.
                if s.re > floor { least + s.im / s.re * slope } else { value(bin + offset) }
            })
            .collect();
        let pairs = (0..bins)
            .map(|n| [expected[n], expected.get(n + 1).map_or(0.0, |next| next - expected[n])])
            .map(|pair| pair.map(|v| v as f32))
            .collect();
        Self { least: least as f32, per_unit: (1.0 / slope) as f32, expected: pairs }
    }

    /// Bin and position within it of a log intensity.
    #[inline]
    pub(super) fn bin(value: f32, least: f32, per_unit: f32, bins: usize) -> (usize, f32) {
        let at = (value - least) * per_unit;
        // A cast of what lies below zero gives 0.
        let bin = (at as usize).min(bins - 1);
        (bin, at - bin as f32)
    }

    /// What the field may still explain of a log intensity.
    #[inline]
    pub(super) fn residual(&self, value: f32) -> f32 {
        let (bin, offset) = Self::bin(value, self.least, self.per_unit, self.expected.len());
        let [expected, step] = self.expected[bin];
        value - (expected + step * offset)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    fn times(self, o: Self) -> Self {
        Self { re: self.re * o.re - self.im * o.im, im: self.re * o.im + self.im * o.re }
    }
}

/// Discrete Fourier transform of a power of two of points (Cooley and Tukey 1965).
struct Fft {
    roots: Vec<Complex>,
}

impl Fft {
    fn new(size: usize) -> Self {
        let root = |n: usize| {
            let (sin, cos) = (-2.0 * PI * n as f64 / size as f64).sin_cos();
            Complex { re: cos, im: sin }
        };
        Self { roots: (0..size / 2).map(root).collect() }
    }

    fn transform(&self, data: &mut [Complex]) {
        let size = data.len();
        let bits = size.trailing_zeros();
        for n in 0..size {
            let reversed = n.reverse_bits() >> (usize::BITS - bits);
            if n < reversed {
                data.swap(n, reversed);
            }
        }
        let mut half = 1;
        while half < size {
            let stride = size / (2 * half);
            for block in data.chunks_exact_mut(2 * half) {
                let (low, high) = block.split_at_mut(half);
                for (n, (a, b)) in low.iter_mut().zip(high).enumerate() {
                    let turned = b.times(self.roots[n * stride]);
                    *b = Complex { re: a.re - turned.re, im: a.im - turned.im };
                    *a = Complex { re: a.re + turned.re, im: a.im + turned.im };
                }
            }
            half *= 2;
        }
    }

    /// Circular convolution with an even function, given by its real transform.
    fn filter(&self, data: &mut [Complex], transfer: impl Fn(usize) -> f64) {
        self.transform(data);
        let scale = 1.0 / data.len() as f64;
        for (n, d) in data.iter_mut().enumerate() {
            let factor = transfer(n) * scale;
            // The inverse is the transform of the conjugate, conjugated.
            *d = Complex { re: d.re * factor, im: -d.im * factor };
        }
        self.transform(data);
        for d in data {
            d.im = -d.im;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_transform_is_the_sum_it_stands_for() {
        let size = 16;
        let mut data: Vec<Complex> = (0..size)
            .map(|n| Complex { re: ((n * 7) % 5) as f64, im: ((n * 3) % 4) as f64 })
            .collect();
        let source = data.clone();
        Fft::new(size).transform(&mut data);
        for (f, got) in data.iter().enumerate() {
            let mut sum = Complex::default();
            for (n, v) in source.iter().enumerate() {
                let (sin, cos) = (-2.0 * PI * (f * n) as f64 / size as f64).sin_cos();
                let term = v.times(Complex { re: cos, im: sin });
                sum = Complex { re: sum.re + term.re, im: sum.im + term.im };
            }
            assert!((sum.re - got.re).abs() < 1e-9 && (sum.im - got.im).abs() < 1e-9);
        }
        Fft::new(size).filter(&mut data, |_| 1.0);
        assert!(data.iter().all(|v| v.re.is_finite()));
    }

    #[test]
    fn a_blurred_peak_is_drawn_together() {
        let bins = 200;
        let (least, greatest) = (0.0, 2.0);
        let slope = 2.0 / 199.0;
        let sd = 0.15 / (8.0 * LN_2).sqrt();
        let histogram: Vec<f64> = (0..bins)
            .map(|n| 1e4 * (-0.5 * ((n as f64 * slope - 1.0) / sd).powi(2)).exp())
            .collect();
        let mapping = Mapping::sharpen(&histogram, (least, greatest), 0.15, 0.01);
        for value in [0.9f32, 0.95, 1.05, 1.1] {
            let left = (value - mapping.residual(value) - 1.0).abs();
            assert!(left < 0.35 * (value - 1.0).abs(), "{value}: {left}");
        }
        assert!(mapping.residual(1.0).abs() < 1e-3);
        // Far from everything seen a value is its own expectation.
        assert!(mapping.expected.iter().flatten().all(|v| v.is_finite()));
    }
}
