//! The figures of the paper's Table 1 for a cohort.

use std::collections::HashSet;

use serde::Serialize;

use super::{Case, Cohort, SetAside, Split};
use crate::lesion::{Connectivity, components};
use crate::source::Headers;
use crate::{OnProgress, over_cases, source};

/// Lesions up to this size count as small (paper, Table 1).
pub const SMALL_CM3: f64 = 0.1;
/// Affines are stored as 32-bit floats: 100 voxels of 1 mm³ are 0.1 cm³ within this share.
const ROUNDING: f64 = 1e-5;

/// One column of the table. A figure without data is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitStats {
    /// The split; `None` for all together.
    pub split: Option<Split>,
    /// Different patients.
    pub patients: usize,
    /// Volumes.
    pub volumes: usize,
    /// Lesions (26-connected components of the label).
    pub metastases: usize,
    /// Lesions / volumes.
    pub metastases_per_volume: Option<f64>,
    /// Mean lesion size.
    pub mean_cm3: Option<f64>,
    /// Median lesion size.
    pub median_cm3: Option<f64>,
    /// Share of lesions of at most 0.1 cm³.
    pub share_up_to_0_1_cm3: Option<f64>,
    /// Least and greatest spacing within the slices.
    pub in_plane_mm: Option<[f64; 2]>,
    /// Least and greatest spacing between slices. The axis across the slices is the one whose spacing
    /// stands apart from the other two; in doubt, the one with the widest spacing.
    pub through_plane_mm: Option<[f64; 2]>,
}

/// Table 1 of a cohort.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Name of the cohort.
    pub name: String,
    /// Train, validation, test.
    pub splits: Vec<SplitStats>,
    /// All together.
    pub total: SplitStats,
    /// Cases whose label or image header could not be read; not counted above.
    pub set_aside: Vec<SetAside>,
}

struct Measured<'a> {
    case: &'a Case,
    sizes_cm3: Vec<f64>,
    in_plane_mm: [f64; 2],
    through_plane_mm: f64,
}

/// Measures every label of the cohort.
pub fn stats(cohort: &Cohort, progress: OnProgress<'_>) -> Stats {
    let results = over_cases(
        &cohort.cases,
        |c| &c.id,
        progress,
        |case| {
            measure(cohort, case).map_err(|e| SetAside {
                id: case.id.clone(),
                split: case.split,
                reason: e.to_string(),
            })
        },
    );
    let (mut measured, mut set_aside) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(m) => measured.push(m),
            Err(s) => set_aside.push(s),
        }
    }
    Stats {
        name: cohort.name.clone(),
        splits: Split::ALL.map(|s| summarise(Some(s), &measured)).to_vec(),
        total: summarise(None, &measured),
        set_aside,
    }
}

fn measure<'a>(cohort: &Cohort, case: &'a Case) -> Result<Measured<'a>, source::Error> {
    let Headers { geometry, series, .. } =
        source::read_geometry(&case.image, case.series.as_deref())?;
    let label = source::read_label(&case.label, &geometry, series.as_ref(), &cohort.label)?.volume;
    let cm3 = geometry.voxel_mm3() / 1000.0;
    let lesions = components(label.data(), Connectivity::TwentySix);
    let (in_plane_mm, through_plane_mm) = planes(geometry.spacing_mm());
    Ok(Measured {
        case,
        sizes_cm3: lesions.list.iter().map(|l| l.voxels as f64 * cm3).collect(),
        in_plane_mm,
        through_plane_mm,
    })
}

/// Spacing within the slices, and between them.
fn planes(mut spacing_mm: [f64; 3]) -> ([f64; 2], f64) {
    spacing_mm.sort_by(f64::total_cmp);
    let [a, b, c] = spacing_mm;
    // Slices may also lie closer than their pixels; rounding in a header decides nothing.
    if b - a > c - b + 1e-3 * c { ([b, c], a) } else { ([a, b], c) }
}

fn summarise(split: Option<Split>, all: &[Measured]) -> SplitStats {
    let chosen: Vec<_> = all.iter().filter(|m| split.is_none_or(|s| m.case.split == s)).collect();
    let mut sizes: Vec<f64> = chosen.iter().flat_map(|m| m.sizes_cm3.iter().copied()).collect();
    sizes.sort_by(f64::total_cmp);
    let share = |part: f64, of: usize| (of > 0).then(|| part / of as f64);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|v| [v, v]).reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])])
    };
    SplitStats {
        split,
        patients: chosen.iter().map(|m| &m.case.patient).collect::<HashSet<_>>().len(),
        volumes: chosen.len(),
        metastases: sizes.len(),
        metastases_per_volume: share(sizes.len() as f64, chosen.len()),
        mean_cm3: share(sizes.iter().sum(), sizes.len()),
        median_cm3: (!sizes.is_empty())
            .then(|| (sizes[(sizes.len() - 1) / 2] + sizes[sizes.len() / 2]) / 2.0),
        share_up_to_0_1_cm3: share(
            sizes.iter().filter(|s| **s <= SMALL_CM3 * (1.0 + ROUNDING)).count() as f64,
            sizes.len(),
        ),
        in_plane_mm: range(&mut chosen.iter().flat_map(|m| m.in_plane_mm)),
        through_plane_mm: range(&mut chosen.iter().map(|m| m.through_plane_mm)),
    }
}

#[cfg(test)]
mod tests {
    use super::planes;

    #[test]
    fn slices_are_told_from_pixels() {
        assert_eq!(planes([0.5, 5.0, 0.5]), ([0.5, 0.5], 5.0));
        assert_eq!(planes([1.0, 1.0, 0.6]), ([1.0, 1.0], 0.6));
        assert_eq!(planes([1.000_01, 1.0, 1.000_01]), ([1.0, 1.000_01], 1.000_01));
        assert_eq!(planes([0.8, 1.0, 1.2]), ([0.8, 1.0], 1.2));
    }
}
