//! Boxes of voxel indices.

use ndarray::{Array3, ArrayView3, s};

/// Inclusive box of voxel indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Least index on each axis.
    pub(crate) min: [usize; 3],
    /// Greatest index on each axis.
    pub(crate) max: [usize; 3],
}

impl Bounds {
    /// The smallest box that holds every voxel above 0; `None` when there is none.
    pub(crate) fn of(mask: ArrayView3<u8>) -> Option<Self> {
        let (ni, nj, nk) = mask.dim();
        let mut seen = [vec![0u8; ni], vec![0u8; nj], vec![0u8; nk]];
        for (i, plane) in mask.outer_iter().enumerate() {
            for (j, row) in plane.outer_iter().enumerate() {
                let mut any = 0;
                match row.to_slice() {
                    Some(row) => row.iter().zip(&mut seen[2]).for_each(|(v, k)| {
                        any |= v;
                        *k |= v;
                    }),
                    None => row.iter().zip(&mut seen[2]).for_each(|(v, k)| {
                        any |= v;
                        *k |= v;
                    }),
                }
                seen[0][i] |= any;
                seen[1][j] |= any;
            }
        }
        let mut bounds = Self { min: [0; 3], max: [0; 3] };
        for (axis, seen) in seen.iter().enumerate() {
            bounds.min[axis] = seen.iter().position(|v| *v > 0)?;
            bounds.max[axis] = seen.iter().rposition(|v| *v > 0)?;
        }
        Some(bounds)
    }

    /// The smallest box around boxes; `None` without any.
    pub(crate) fn around(boxes: impl IntoIterator<Item = Self>) -> Option<Self> {
        boxes.into_iter().reduce(|a, b| Self {
            min: [0, 1, 2].map(|n| a.min[n].min(b.min[n])),
            max: [0, 1, 2].map(|n| a.max[n].max(b.max[n])),
        })
    }

    /// What lies in the box.
    pub(crate) fn view<'a, T>(&self, array: ArrayView3<'a, T>) -> ArrayView3<'a, T> {
        let ([a, b, c], [x, y, z]) = (self.min, self.max);
        array.slice_move(s![a..=x, b..=y, c..=z])
    }

    /// What lies in the box, changed.
    pub(crate) fn crop<T, U>(&self, array: &Array3<T>, f: impl FnMut(&T) -> U) -> Array3<U> {
        self.view(array.view()).map(f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn holds_every_voxel_in_any_layout() {
        let mut mask = Array3::<u8>::zeros((7, 5, 6));
        assert_eq!(Bounds::of(mask.view()), None);
        (mask[[2, 4, 1]], mask[[6, 0, 3]]) = (1, 128);
        let bounds = Bounds { min: [2, 0, 1], max: [6, 4, 3] };
        assert_eq!(Bounds::of(mask.view()), Some(bounds));
        let turned = mask.view().reversed_axes();
        let (min, max) = ([1, 0, 2], [3, 4, 6]);
        assert_eq!(Bounds::of(turned), Some(Bounds { min, max }));
        assert_eq!(bounds.crop(&mask, |v| *v)[[4, 0, 2]], 128);
    }
}
