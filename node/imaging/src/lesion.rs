//! Lesions: connected components of a mask.

use ndarray::Array3;
use ndarray_ndimage::label;
use serde::{Deserialize, Serialize};

use crate::bounds::Bounds;

/// Which voxels touch: by face (6), also by edge (18), also by corner (26).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Connectivity {
    /// Faces.
    Six,
    /// Faces and edges.
    Eighteen,
    /// Faces, edges and corners, as the public BraTS-METS scoring tool counts.
    #[default]
    TwentySix,
}

impl TryFrom<u8> for Connectivity {
    type Error = String;

    fn try_from(n: u8) -> Result<Self, String> {
        match n {
            6 => Ok(Self::Six),
            18 => Ok(Self::Eighteen),
            26 => Ok(Self::TwentySix),
            _ => Err(format!(
                "connectivity {n} does not exist in three dimensions; choose 6, 18 or 26"
            )),
        }
    }
}

impl From<Connectivity> for u8 {
    fn from(c: Connectivity) -> Self {
        match c {
            Connectivity::Six => 6,
            Connectivity::Eighteen => 18,
            Connectivity::TwentySix => 26,
        }
    }
}

impl Connectivity {
    fn structure(self) -> Array3<bool> {
        let reach = match self {
            Self::Six => 1,
            Self::Eighteen => 2,
            Self::TwentySix => 3,
        };
        Array3::from_shape_fn((3, 3, 3), |(i, j, k)| {
            [i, j, k].iter().filter(|n| **n != 1).count() <= reach
        })
    }
}

/// One connected component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lesion {
    /// Its size.
    pub voxels: usize,
    /// Least index on each axis.
    pub min: [usize; 3],
    /// Greatest index on each axis, inclusive.
    pub max: [usize; 3],
}

impl Lesion {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { min: self.min, max: self.max }
    }
}

/// All lesions of a mask.
#[derive(Debug, Clone)]
pub struct Lesions {
    /// 0 outside, n + 1 inside lesion n.
    pub labels: Array3<u32>,
    /// Lesions in the order of their first voxel.
    pub list: Vec<Lesion>,
}

/// Finds the lesions of a mask (voxels above 0). An empty mask has none.
pub fn components(mask: &Array3<u8>, connectivity: Connectivity) -> Lesions {
    let mut lesions = Lesions { labels: Array3::zeros(mask.dim()), list: Vec::new() };
    let Some(bounds) = Bounds::of(mask.view()) else {
        return lesions;
    };
    let inside = bounds.crop(mask, |v| *v > 0);
    let (labels, count) = label::<u32>(&inside, &connectivity.structure());
    let none = Lesion { voxels: 0, min: [usize::MAX; 3], max: [0; 3] };
    lesions.list = vec![none; count];
    let lines = ndarray::indices((labels.dim().0, labels.dim().1)).into_iter().zip(labels.rows());
    for ((i, j), line) in lines {
        for (k, n) in line.iter().enumerate().filter(|(_, n)| **n > 0) {
            let at = [i + bounds.min[0], j + bounds.min[1], k + bounds.min[2]];
            lesions.labels[at] = *n;
            let lesion = &mut lesions.list[*n as usize - 1];
            lesion.voxels += 1;
            for (axis, at) in at.into_iter().enumerate() {
                lesion.min[axis] = lesion.min[axis].min(at);
                lesion.max[axis] = lesion.max[axis].max(at);
            }
        }
    }
    lesions
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_corner_joins_only_at_26_and_an_edge_from_18_on() {
        let mut mask = Array3::<u8>::zeros((6, 6, 6));
        for at in [[0, 0, 0], [1, 1, 1], [3, 3, 3], [3, 4, 4]] {
            mask[at] = 1;
        }
        for (connectivity, count) in
            [(Connectivity::Six, 4), (Connectivity::Eighteen, 3), (Connectivity::TwentySix, 2)]
        {
            assert_eq!(components(&mask, connectivity).list.len(), count, "{connectivity:?}");
        }
        let lesion = components(&mask, Connectivity::TwentySix).list[1];
        assert_eq!((lesion.voxels, lesion.min, lesion.max), (2, [3, 3, 3], [3, 4, 4]));
        assert!(components(&Array3::zeros((3, 3, 3)), Connectivity::Six).list.is_empty());
    }

    #[test]
    fn connectivity_is_a_number_outside() {
        assert_eq!(serde_json::to_string(&Connectivity::Eighteen).unwrap(), "18");
        assert!(
            serde_json::from_str::<Connectivity>("7")
                .unwrap_err()
                .to_string()
                .contains("6, 18 or 26")
        );
    }
}
