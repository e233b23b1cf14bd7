//! Exact Euclidean distance on an anisotropic grid.
//!
//! Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions" (2012): the lower
//! envelope of parabolas, axis after axis, here in millimetres.

use ndarray::{Array3, Axis};

/// Distance in mm from every voxel to the nearest one for which `mask` is above 0;
/// 0 inside the mask, infinite everywhere when the mask is empty.
pub fn distance_mm(mask: &Array3<u8>, spacing_mm: [f64; 3]) -> Array3<f64> {
    let mut field = mask.map(|v| (if *v > 0 { 0.0 } else { f64::INFINITY }, ()));
    transform(&mut field, spacing_mm);
    field.map(|(square, ())| square.sqrt())
}

/// For every voxel the nearest label above 0, or 0 when there is none. A voxel as near to two
/// labels gets one of them, always the same.
pub fn nearest_label(labels: &Array3<u32>, spacing_mm: [f64; 3]) -> Array3<u32> {
    let mut field = labels.map(|n| (if *n > 0 { 0.0 } else { f64::INFINITY }, *n));
    transform(&mut field, spacing_mm);
    field.map(|(_, n)| *n)
}

/// Squared distances in mm² with what travels along from the nearest site; infinite is no site.
fn transform<T: Copy>(field: &mut Array3<(f64, T)>, spacing_mm: [f64; 3]) {
    let mut envelope = Envelope { sites: Vec::new() };
    let mut line = Vec::new();
    // The last axis lies together in memory; taking it first leaves most lines empty for it.
    for axis in [2, 1, 0] {
        for mut lane in field.lanes_mut(Axis(axis)) {
            line.clear();
            line.extend(lane.iter().copied());
            if envelope.build(&line, spacing_mm[axis]) {
                envelope.sample(&line, spacing_mm[axis], |q, value| lane[q] = value);
            }
        }
    }
}

/// Sites of the envelope: index on the line and where in mm its parabola begins to be the lowest.
struct Envelope {
    sites: Vec<(usize, f64)>,
}

impl Envelope {
    /// Whether the line has a site and a sample could change.
    fn build<T>(&mut self, line: &[(f64, T)], spacing: f64) -> bool {
        self.sites.clear();
        for (q, (height, _)) in line.iter().enumerate() {
            if height.is_infinite() {
                continue;
            }
            let at = q as f64 * spacing;
            let begin = loop {
                let Some(&(p, from)) = self.sites.last() else {
                    break f64::NEG_INFINITY;
                };
                let other = p as f64 * spacing;
                let cross =
                    ((height + at * at) - (line[p].0 + other * other)) / (2.0 * (at - other));
                if cross > from {
                    break cross;
                }
                self.sites.pop();
            };
            self.sites.push((q, begin));
        }
        !self.sites.is_empty()
    }

    fn sample<T: Copy>(
        &self,
        line: &[(f64, T)],
        spacing: f64,
        mut put: impl FnMut(usize, (f64, T)),
    ) {
        let mut sites = self.sites.iter().peekable();
        let mut nearest = 0;
        for q in 0..line.len() {
            while let Some((p, _)) = sites.next_if(|(_, from)| *from <= q as f64 * spacing) {
                nearest = *p;
            }
            let apart = (q as f64 - nearest as f64) * spacing;
            put(q, (line[nearest].0 + apart * apart, line[nearest].1));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn brute(mask: &Array3<u8>, s: [f64; 3]) -> Array3<f64> {
        Array3::from_shape_fn(mask.dim(), |(i, j, k)| {
            (mask.indexed_iter().filter(|(_, v)| **v > 0))
                .map(|((a, b, c), _)| {
                    let d = [(i, a), (j, b), (k, c)].map(|(x, y)| x as f64 - y as f64);
                    (0..3).map(|n| (d[n] * s[n]).powi(2)).sum::<f64>().sqrt()
                })
                .fold(f64::INFINITY, f64::min)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_brute_force(cells in prop::collection::vec(0u8..12, 5 * 6 * 7), s in prop::array::uniform3(0.2f64..4.0)) {
            let mask = Array3::from_shape_vec((5, 6, 7), cells.iter().map(|c| u8::from(*c == 0)).collect()).unwrap();
            let (fast, slow) = (distance_mm(&mask, s), brute(&mask, s));
            for (a, b) in fast.iter().zip(&slow) {
                prop_assert!(a == b || (a - b).abs() < 1e-9, "{a} against {b}");
            }
        }
    }

    #[test]
    fn labels_spread_to_their_neighbourhood() {
        let mut labels = Array3::zeros((1, 1, 9));
        labels[[0, 0, 1]] = 7;
        labels[[0, 0, 7]] = 3;
        assert_eq!(nearest_label(&labels, [1.0; 3]).into_raw_vec_and_offset().0[..4], [7, 7, 7, 7]);
        assert_eq!(nearest_label(&labels, [1.0; 3])[[0, 0, 5]], 3);
        assert_eq!(
            nearest_label(&Array3::zeros((2, 2, 2)), [1.0; 3]),
            Array3::<u32>::zeros((2, 2, 2))
        );
    }
}
