//! Cutting: the cubes around a centre, read from the volume where it lies.

use super::{Indexed, Segment, Unfit};
use crate::augment::Augmentation;
use crate::network::{OUT, STRIDE, X1, X2};

/// Segments cut out on the host.
pub(crate) struct Batch {
    pub(crate) n: usize,
    /// `[n, 1, 25, 25, 25]`
    pub(crate) x1: Vec<f32>,
    /// `[n, 1, 19, 19, 19]`
    pub(crate) x2: Vec<f32>,
    /// `[n, 729]`, 0 or 1
    pub(crate) target: Vec<f32>,
}

/// Cuts `segments` out of their cases; the augmentation is asked by a segment's place in the batch.
///
/// # Errors
/// A case with a NaN or an infinity inside one of its segments.
pub(crate) fn cut(
    cases: &[Indexed<'_>],
    segments: &[Segment],
    augmentation: impl Fn(usize) -> Augmentation,
) -> Result<Batch, Unfit> {
    let n = segments.len();
    let mut batch = Batch {
        n,
        x1: Vec::with_capacity(n * X1.pow(3)),
        x2: Vec::with_capacity(n * X2.pow(3)),
        target: Vec::with_capacity(n * OUT.pow(3)),
    };
    for (place, segment) in segments.iter().enumerate() {
        let case = &cases[segment.case];
        let augmentation = augmentation(place);
        let from = |stride| Lattice { shape: case.shape, stride, flips: augmentation.flips };
        let x1 = from(1).crop::<_, X1>(case.image, segment.centre, &mut batch.x1, |v| v);
        let x2 = from(STRIDE).crop::<_, X2>(case.image, segment.centre, &mut batch.x2, |v| v);
        let target = &mut batch.target;
        from(1).crop::<_, OUT>(case.label, segment.centre, target, |v| f32::from(u8::from(v != 0)));
        for input in [&mut batch.x1[x1..], &mut batch.x2[x2..]] {
            augmentation.intensities(input);
            if !input.iter().fold(true, |finite, v| finite & v.is_finite()) {
                return Err(Unfit::NotFinite(case.id.to_owned()));
            }
        }
    }
    Ok(batch)
}

/// Which voxels around a centre: every `stride`-th, axes mirrored about the centre where `flips` says so.
struct Lattice {
    shape: [usize; 3],
    stride: usize,
    flips: [bool; 3],
}

impl Lattice {
    /// `out[i] = volume[clamp(p − (N/2)·stride + i·stride, 0, n−1)]` on every axis.
    ///
    /// Appends `[N, N, N]` to `out`, and says where it begins.
    fn crop<T: Copy, const N: usize>(
        &self,
        volume: &[T],
        centre: [usize; 3],
        out: &mut Vec<f32>,
        value: impl Fn(T) -> f32,
    ) -> usize {
        let begin = out.len();
        let [planes, rows, columns] = [0, 1, 2].map(|axis| self.axis::<N>(axis, centre));
        let [_, height, width] = self.shape;
        // Inside the volume and unflipped, a row of the segment is a row of the volume.
        let whole = columns[N - 1] == columns[0] + N - 1;
        for plane in planes {
            for row in rows {
                let row = &volume[(plane * height + row) * width..][..width];
                if whole {
                    out.extend(row[columns[0]..][..N].iter().map(|v| value(*v)));
                } else {
                    out.extend(columns.iter().map(|k| value(row[*k])));
                }
            }
        }
        begin
    }

    fn axis<const N: usize>(&self, axis: usize, centre: [usize; 3]) -> [usize; N] {
        std::array::from_fn(|i| {
            let i = if self.flips[axis] { N - 1 - i } else { i };
            let at = (centre[axis] + i * self.stride).saturating_sub(N / 2 * self.stride);
            at.min(self.shape[axis] - 1)
        })
    }
}
