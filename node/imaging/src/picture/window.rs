//! Which intensities are black and white, and where the head is.

use super::Error;
use super::finding::ras;
use crate::volume::{Geometry, Volume};

/// Voxels looked at; larger volumes are sampled with a stride.
const SAMPLES: usize = 1 << 20;
/// Head: brighter than this share of the way from the 2nd to the 98th percentile, as FSL's BET
/// finds a first threshold.
const HEAD_SHARE: f32 = 0.1;
/// Percentiles of the head that become black, `KNEE_GREY` and white. Linear between them: fat of the
/// scalp, vessels and enhancing lesions, the few brightest voxels, share the top shades, so that the
/// brain is not dark and a lesion is not a white patch.
const WINDOW: [f64; 3] = [0.5, 98.0, 99.9];
const KNEE_GREY: f64 = 205.0;
/// Positions of head voxels beyond these percentiles are noise in the air.
const BOX: (f64, f64) = (0.1, 99.9);

/// Intensity window and box of the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Values that become black, `KNEE_GREY` and white, ascending.
    stops: [f64; 3],
    /// Least and greatest R, A and S of the head.
    pub(super) head_mm: [[f64; 2]; 3],
}

impl Window {
    pub(super) fn of(image: &Volume<f32>) -> Result<Self, Error> {
        let mut stride = image.data().len().div_ceil(SAMPLES);
        // Else only some planes of constant k would be seen.
        while stride > 1 && image.geometry().shape()[2].is_multiple_of(stride) {
            stride += 1;
        }
        let sampled = || image.data().indexed_iter().step_by(stride).filter(|(_, v)| v.is_finite());
        let mut all: Vec<f32> = sampled().map(|(_, v)| *v).collect();
        all.sort_by(f32::total_cmp);
        let (Some(first), Some(last)) = (all.first(), all.last()) else {
            return Err(Error::Constant);
        };
        if first >= last {
            return Err(Error::Constant);
        }
        let (mut dark, mut bright) = (percentile(&all, 2.0), percentile(&all, 98.0));
        if dark >= bright {
            (dark, bright) = (*first, *last);
        }
        // A difference of f32 may be infinite; halves are not.
        let threshold = dark + 2.0 * HEAD_SHARE * (bright / 2.0 - dark / 2.0);
        let head = &all[all.partition_point(|v| *v <= threshold)..];
        let [low, knee, high] = WINDOW.map(|percent| f64::from(percentile(head, percent)));
        let stops = if low < knee && knee < high {
            [low, knee, high]
        } else {
            // Hardly any shades: the whole range, without a bend.
            let [low, high] = [f64::from(*first), f64::from(*last)];
            [low, low + (high - low) * KNEE_GREY / 255.0, high]
        };
        let inside = || sampled().filter(|(_, v)| **v > threshold);
        Ok(Self { stops, head_mm: head_box(image.geometry(), inside().map(|(at, _)| at)) })
    }

    /// Shade of a value.
    pub(super) fn grey(&self, value: f32) -> u8 {
        let [low, knee, high] = self.stops;
        let value = f64::from(value);
        let grey = if value <= knee {
            (value - low) / (knee - low) * KNEE_GREY
        } else {
            KNEE_GREY + (value - knee) / (high - knee) * (255.0 - KNEE_GREY)
        };
        // The cast ends at 0 and 255.
        grey.round() as u8
    }
}

/// Value at a percentile of sorted values, the lower one of two; 0 without values.
fn percentile<T: Copy + Default>(sorted: &[T], percent: f64) -> T {
    let at = (sorted.len().saturating_sub(1) as f64 * percent / 100.0) as usize;
    sorted.get(at).copied().unwrap_or_default()
}

fn head_box(
    geometry: &Geometry,
    voxels: impl Iterator<Item = (usize, usize, usize)>,
) -> [[f64; 2]; 3] {
    let mut positions = [const { Vec::new() }; 3];
    for (i, j, k) in voxels {
        let p = ras(geometry, [i, j, k].map(|n| n as f64));
        (0..3).for_each(|axis| positions[axis].push(p[axis]));
    }
    positions.map(|mut of_axis| {
        of_axis.sort_by(f64::total_cmp);
        [percentile(&of_axis, BOX.0), percentile(&of_axis, BOX.1)]
    })
}
