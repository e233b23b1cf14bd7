//! What sets the six centres apart, each with a number.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::cohort::stats;
use crate::distance::distance_mm;
use crate::lesion::{Connectivity, components};

const PATIENTS: usize = 8;

/// Means over some patients of a centre.
#[derive(Debug, Default)]
struct Character {
    /// Spread of white matter over the octants of the brain, against its mean.
    shading: f64,
    /// White matter against the noise of the air.
    white_to_noise: f64,
    /// Median distance in mm from the nearest part of a metastasis to the surface of the brain.
    depth_mm: f64,
    /// Metastases in a volume.
    metastases: f64,
    /// Share of the brain that enhances and is no metastasis.
    enhanced: f64,
    /// Roughness across slices against that within.
    roughness: f64,
}

fn character(centre: Centre) -> Character {
    let options = SynthOptions::small(centre);
    let made: Vec<Phantom> = (0..PATIENTS)
        .into_par_iter()
        .map(|n| phantom(&options, &format!("character-{n}")).unwrap())
        .collect();
    let mut sum = Character::default();
    let mut depths = Vec::new();
    for p in &made {
        let (image, brain) = (p.image.data(), p.brain.data());
        let inside = distance_mm(&brain.map(|b| 1 - b), [1.0; 3]);
        let mut deep: Vec<f32> =
            image.iter().zip(&inside).filter(|(_, d)| **d > 3.0).map(|(v, _)| *v).collect();
        deep.sort_by(f32::total_cmp);
        // White matter is most of what lies deep: its level is the mode, near the 60th percentile.
        let white = f64::from(deep[deep.len() * 6 / 10]);
        let (ni, nj, nk) = image.dim();
        let mut octants = vec![Vec::new(); 8];
        let (mut bright, mut all) = (0.0, 0.0);
        let mut rough = [0.0; 2];
        for ((i, j, k), v) in image.indexed_iter() {
            if brain[[i, j, k]] == 0 {
                continue;
            }
            let v = f64::from(*v);
            all += 1.0;
            bright += f64::from(u8::from(v > 1.3 * white && p.label.data()[[i, j, k]] == 0));
            if inside[[i, j, k]] > 3.0 && (0.85..1.2).contains(&(v / white)) {
                let at = 4 * usize::from(2 * i > ni)
                    + 2 * usize::from(2 * j > nj)
                    + usize::from(2 * k > nk);
                octants[at].push(v);
            }
            let next = |at: [usize; 3]| image.get(at).map_or(v, |w| f64::from(*w));
            rough[0] += (v - next([i + 1, j, k])).abs();
            rough[1] += (v - next([i, j, k + 1])).abs();
        }
        let means: Vec<f64> = (octants.iter().filter(|o| o.len() > 50))
            .map(|o| o.iter().sum::<f64>() / o.len() as f64)
            .collect();
        let mean = means.iter().sum::<f64>() / means.len() as f64;
        sum.shading += (means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / means.len() as f64)
            .sqrt()
            / mean;
        // The corners of the volume are air: there a magnitude of noise has the mean sd * 1.2533.
        let corner = image.slice(ndarray::s![..6, ..6, nk - 6..]);
        sum.white_to_noise += white / (f64::from(corner.mean().unwrap()) / 1.2533);
        sum.enhanced += bright / all;
        sum.roughness += rough[1] / rough[0];
        let lesions = components(p.label.data(), Connectivity::TwentySix);
        sum.metastases += lesions.list.len() as f64;
        let mut nearest = vec![f64::MAX; lesions.list.len()];
        for (n, depth) in lesions.labels.iter().zip(&inside) {
            if *n > 0 {
                let nearest = &mut nearest[*n as usize - 1];
                *nearest = nearest.min(*depth);
            }
        }
        depths.extend(nearest);
    }
    depths.sort_by(f64::total_cmp);
    let n = PATIENTS as f64;
    Character {
        shading: sum.shading / n,
        white_to_noise: sum.white_to_noise / n,
        depth_mm: depths[depths.len() / 2],
        metastases: sum.metastases / n,
        enhanced: sum.enhanced / n,
        roughness: sum.roughness / n,
    }
}

#[test]
fn every_centre_has_its_character() {
    let [uker, usz, stanford, ucsf, nyu, brats] = Centre::ALL.map(character);
    let all = [&uker, &usz, &stanford, &ucsf, &nyu, &brats];
    let told = format!("{all:#?}");
    // Erlangen, 1.5 T: the flattest field.
    assert!(all[1..].iter().all(|c| c.shading > 1.2 * uker.shading), "{told}");
    // Zurich: at the surface of the brain.
    assert!(all.iter().all(|c| c.depth_mm >= usz.depth_mm), "{told}");
    assert!(usz.depth_mm < 0.6 * uker.depth_mm, "{told}");
    // Stanford: many metastases in a volume; San Francisco comes near.
    for sparse in [&uker, &usz, &nyu, &brats] {
        assert!(stanford.metastases > 1.3 * sparse.metastases, "{told}");
    }
    // San Francisco: half as much again enhances beside the metastases.
    assert!(all.iter().all(|c| c.enhanced <= ucsf.enhanced), "{told}");
    assert!(ucsf.enhanced > 1.5 * uker.enhanced, "{told}");
    // New York and BraTS: smooth across slices, also on a fine grid, and noisier.
    for thick in [&nyu, &brats] {
        assert!(thick.roughness < 0.9 * uker.roughness, "{told}");
        assert!(thick.white_to_noise < uker.white_to_noise, "{told}");
    }
}

/// Least and greatest distance between slices of every centre's own scanner, as `cohort stats` tells
/// them; the table of the paper.
#[test]
fn slices_are_as_thick_as_the_table_says() {
    let table = [(1.0, 1.0), (0.6, 0.6), (1.0, 1.0), (1.0, 1.5), (1.0, 5.0), (1.0, 5.0)];
    for (centre, (thin, thick)) in Centre::ALL.into_iter().zip(table) {
        let options = SynthOptions {
            train: 4,
            validation: 1,
            test: 1,
            shape: [40, 44, 40],
            slices: Slices::Scanner,
            ..SynthOptions::small(centre)
        };
        let dir = tempfile::tempdir().unwrap();
        let made = synthesise(dir.path(), &options, &|_| {}).unwrap();
        let cohort = Cohort::load(&made.cohort).unwrap();
        let total = stats(&cohort, &|_| {}).total;
        let ([least, most], name) = (total.through_plane_mm.unwrap(), centre.name());
        assert!(least >= thin - 1e-6 && most <= thick + 1e-6, "{name}: {least} to {most} mm");
        if thick > thin {
            // Six patients cover a third of the range at least, and no two of three are alike.
            assert!(most - least > (thick - thin) / 3.0, "{name}: {least} to {most} mm");
        }
        assert!(total.in_plane_mm.unwrap()[1] <= least + 1e-6, "{name}");
        for case in &cohort.cases {
            let grid = nifti::read_header(&case.image).unwrap().geometry;
            let (shape, mm) = (grid.shape(), grid.spacing_mm());
            for (axis, view) in [40.0, 44.0, 40.0].into_iter().enumerate() {
                let covered = shape[axis] as f64 * mm[axis];
                assert!((covered - view).abs() <= mm[axis] / 2.0 + 1e-6, "{}: {covered}", case.id);
            }
            let label = nifti::read_labels(&case.label).unwrap();
            assert!(label.geometry().matches(&grid) && label.data().iter().any(|v| *v > 0));
        }
    }
}
