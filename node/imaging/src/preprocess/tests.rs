#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use nalgebra::{Matrix4, Rotation3, Vector4};

use super::*;
use crate::{dicom, nifti};

/// A head of 150 mm with a brain of 110 mm whose intensity varies, on an oblique grid of any spacing,
/// storage order and handedness. World coordinates; lesions are balls of `(centre, radius)` mm.
struct Painted {
    folder: tempfile::TempDir,
    grid: Geometry,
    label: Array3<u8>,
}

const LESIONS: [([f64; 3], f64); 3] =
    [([22.0, -18.0, 15.0], 9.0), ([-25.0, 20.0, -8.0], 6.5), ([-5.0, -30.0, -20.0], 11.0)];

fn painted(angles: [f64; 3], spacing_mm: [f64; 3], order: [usize; 3], flip: [bool; 3]) -> Painted {
    let extent = 150.0;
    let rotation = Rotation3::from_euler_angles(angles[0], angles[1], angles[2]).to_homogeneous();
    let shape = [0, 1, 2].map(|a| (extent / spacing_mm[a]).ceil() as usize);
    let mut affine = Matrix4::identity();
    for column in 0..3 {
        let sign = if flip[column] { -1.0 } else { 1.0 };
        let axis = rotation.column(order[column]) * (sign * spacing_mm[column]);
        affine.set_column(column, &axis);
    }
    let middle = Vector4::new(
        (shape[0] - 1) as f64 / 2.0,
        (shape[1] - 1) as f64 / 2.0,
        (shape[2] - 1) as f64 / 2.0,
        0.0,
    );
    let origin = -(affine * middle);
    affine.set_column(3, &Vector4::new(origin[0] + 7.3, origin[1] - 4.1, origin[2] + 2.2, 1.0));
    let grid = Geometry::new(shape, affine).unwrap();
    let centre = [7.3, -4.1, 2.2];
    let from = |p: &Vector4<f64>, c: [f64; 3]| {
        (0..3).map(|a| (p[a] - centre[a] - c[a]).powi(2)).sum::<f64>().sqrt()
    };
    let world =
        |i: usize, j: usize, k: usize| affine * Vector4::new(i as f64, j as f64, k as f64, 1.0);
    let dim = (shape[0], shape[1], shape[2]);
    let label = Array3::from_shape_fn(dim, |(i, j, k)| {
        let p = world(i, j, k);
        LESIONS.iter().position(|(c, r)| from(&p, *c) <= *r).map_or(0, |n| n as u8 + 1)
    });
    let brain =
        Array3::from_shape_fn(dim, |(i, j, k)| u8::from(from(&world(i, j, k), [0.0; 3]) < 55.0));
    let image = Array3::from_shape_fn(dim, |(i, j, k)| {
        let p = world(i, j, k);
        let lesion = if label[[i, j, k]] > 0 { 300.0 } else { 0.0 };
        (600.0 + 2.0 * p[0] + p[1] - p[2] + lesion) as f32
    });
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str| folder.path().join(name);
    nifti::write(&put("image.nii"), &Volume::new(grid.clone(), image).unwrap()).unwrap();
    nifti::write(&put("brain.nii"), &Volume::new(grid.clone(), brain).unwrap()).unwrap();
    nifti::write(&put("label.nii"), &Volume::new(grid.clone(), label.clone()).unwrap()).unwrap();
    Painted { folder, grid, label }
}

impl Painted {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn prepared(&self, settings: &Settings) -> PreparedImage {
        let (image, mask) = (self.file("image.nii"), self.file("brain.nii"));
        prepare_image(&Sources { image: &image, series: None, brain_mask: Some(&mask) }, settings)
            .unwrap()
    }
}

fn rule() -> LabelRule {
    LabelRule { include: vec![1, 2, 3], ..LabelRule::default() }
}

/// Mean index of the voxels that satisfy a condition.
fn centroid(data: &Array3<u8>, of: impl Fn(u8) -> bool) -> [f64; 3] {
    let (mut sum, mut n) = ([0.0; 3], 0.0);
    for ((i, j, k), _) in data.indexed_iter().filter(|(_, v)| of(**v)) {
        for (s, v) in sum.iter_mut().zip([i, j, k]) {
            *s += v as f64;
        }
        n += 1.0;
    }
    sum.map(|s| s / n)
}

/// A lesion is found on the working grid by its brightness alone, as a network would, and comes back onto
/// the voxels it was painted on; so does its label.
#[test]
fn a_painted_lesion_returns_to_the_voxels_of_an_oblique_source() {
    let scans = [
        ([0.3, -0.25, 0.4], [0.5, 0.5, 6.0], [0, 1, 2], [false; 3]),
        ([0.3, -0.25, 0.4], [0.9, 0.9, 3.0], [1, 2, 0], [true, false, true]),
        ([-0.5, 0.1, 0.2], [1.2, 1.0547, 1.0547], [2, 0, 1], [false, true, true]),
        ([0.0; 3], [1.0; 3], [0, 1, 2], [true, true, false]),
    ];
    for (angles, spacing_mm, order, flip) in scans {
        let painted = painted(angles, spacing_mm, order, flip);
        let settings = Settings { bias_correction: BiasCorrection::None, ..Settings::default() };
        let mut made = painted.prepared(&settings);
        assert_eq!(made.image.dim(), (240, 240, 155));
        assert_eq!(made.geometry.spacing_mm().map(|s| (s * 1e6).round() / 1e6), [1.0; 3]);
        assert!(AxisOrder::canonical(&made.geometry).is_identity());
        let label = made.read_label(&painted.file("label.nii"), &rule()).unwrap();
        // Halfway between the brain (600, and at most 140 more) and its lesions (300 above it).
        let n = made.steps.normalisation;
        let bright = ((755.0 - n.mean) / n.sd) as f32;
        let mut found = made.brain.clone();
        found.zip_mut_with(&made.image, |inside, v| *inside &= u8::from(*v > bright));
        for on_working_grid in [label, found] {
            let back = made.restore(on_working_grid).unwrap();
            assert!(back.geometry().matches(&painted.grid), "the source's own grid");
            for lesion in 1..=3u8 {
                let wanted = centroid(&painted.label, |v| v == lesion);
                let near = painted.label.mapv(|v| v == lesion);
                let mut only = back.data().clone();
                // Of the restored mask, what lies within the lesion's own box and two voxels around it.
                let range = |axis: usize| {
                    let hit: Vec<usize> = near
                        .indexed_iter()
                        .filter(|(_, v)| **v)
                        .map(|((i, j, k), _)| [i, j, k][axis])
                        .collect();
                    (hit.iter().min().unwrap().saturating_sub(2), hit.iter().max().unwrap() + 2)
                };
                let boxes = [range(0), range(1), range(2)];
                only.indexed_iter_mut().for_each(|((i, j, k), v)| {
                    if [i, j, k].iter().zip(boxes).any(|(n, (low, high))| *n < low || *n > high) {
                        *v = 0;
                    }
                });
                let found = centroid(&only, |v| v > 0);
                for axis in 0..3 {
                    assert!(
                        (wanted[axis] - found[axis]).abs() < 0.5,
                        "lesion {lesion} of {spacing_mm:?}: {wanted:?} came back as {found:?}"
                    );
                }
                let both = near.iter().zip(&only).filter(|(a, b)| **a && **b > 0).count();
                let dice = 2.0 * both as f64
                    / (near.iter().filter(|a| **a).count()
                        + only.iter().filter(|b| **b > 0).count()) as f64;
                assert!(dice > 0.85, "lesion {lesion} of {spacing_mm:?}: Dice {dice}");
            }
        }
    }
}

#[test]
fn a_grid_of_one_millimetre_is_not_interpolated() {
    let painted = painted([0.0; 3], [1.0; 3], [0, 1, 2], [false; 3]);
    let settings = Settings { bias_correction: BiasCorrection::None, ..Settings::default() };
    let isotropic = painted.prepared(&settings);
    let native = painted.prepared(&Settings::native());
    assert!(native.geometry.matches(&painted.grid));
    let (a, b) = (isotropic.steps.normalisation, native.steps.normalisation);
    assert_eq!((a.voxels, a.low, a.high), (b.voxels, b.low, b.high));
    assert!((a.mean - b.mean).abs() < 1e-9 && (a.sd - b.sd).abs() < 1e-9);
}

#[test]
fn a_lesion_smaller_than_a_slice_is_not_lost_on_the_way_back() {
    let working = Geometry::with_spacing([30; 3], [1.0; 3]).unwrap();
    let thick = Geometry::with_spacing([30, 30, 5], [1.0, 1.0, 6.0]).unwrap();
    let mut mask = Array3::zeros((30, 30, 30));
    mask[[10, 12, 14]] = 1;
    let back = restore_mask(&Volume::new(working, mask).unwrap(), &thick).unwrap();
    let set: Vec<_> =
        back.data().indexed_iter().filter(|(_, v)| **v > 0).map(|(at, _)| at).collect();
    assert_eq!(set, [(10, 12, 2)]);
}

#[test]
fn what_lies_outside_the_working_grid_is_told() {
    let painted = painted([0.0; 3], [2.0; 3], [0, 1, 2], [false; 3]);
    let grid = Grid::Isotropic { spacing_mm: 1.0, shape: [40, 40, 40] };
    let mut made = painted.prepared(&Settings { grid, ..Settings::native() });
    assert_eq!(made.image.dim(), (40, 40, 40));
    made.read_label(&painted.file("label.nii"), &rule()).unwrap();
    let told = made.steps.notices.join("; ");
    assert!(
        told.contains("of the brain lie outside") && told.contains("of the lesion lie outside"),
        "{told}"
    );
}

#[test]
fn masks_and_labels_may_be_stored_in_another_order() {
    let painted = painted([0.1, 0.0, 0.0], [1.0, 1.5, 2.0], [0, 1, 2], [false; 3]);
    let prepared = || {
        let mut made = painted.prepared(&Settings::native());
        let label = made.read_label(&painted.file("label.nii"), &rule()).unwrap();
        (made.image, made.brain, label)
    };
    let before = prepared();
    assert!(before.2.iter().any(|v| *v > 0));
    let order = AxisOrder { from: [2, 0, 1], reversed: [true, false, true] };
    for name in ["brain.nii", "label.nii"] {
        let turned = order.apply(nifti::read_labels(&painted.file(name)).unwrap()).unwrap();
        nifti::write(&painted.file(name), &turned).unwrap();
    }
    assert_eq!(before, prepared());
}

/// From a scanner's series to objects for a planning system, through the working grid.
#[test]
fn a_dicom_series_gets_its_prediction_back_as_seg_and_rtstruct() {
    let painted = painted([0.2, -0.15, 0.3], [1.0, 1.0, 4.0], [0, 1, 2], [false; 3]);
    let image = nifti::read_image(&painted.file("image.nii")).unwrap().volume;
    let folder = painted.file("series");
    dicom::scan::write_series(&folder, "p1", &image).unwrap();
    let mask = painted.file("brain.nii");
    let sources = Sources { image: &folder, series: None, brain_mask: Some(&mask) };
    let settings = Settings { bias_correction: BiasCorrection::None, ..Settings::default() };
    let mut made = prepare_image(&sources, &settings).unwrap();
    let label = made.read_label(&painted.file("label.nii"), &rule()).unwrap();
    let prediction = made.restore(label).unwrap();
    let series = made.series.as_ref().unwrap();
    let description = dicom::Description {
        name: "Metastasis".into(),
        grouping: dicom::Grouping::PerLesion(crate::lesion::Connectivity::default()),
        algorithm: "test".into(),
        algorithm_version: "1".into(),
        date: "20260102".into(),
        time: "030405".into(),
    };
    let (seg, rtstruct) = (painted.file("seg.dcm"), painted.file("rtstruct.dcm"));
    dicom::segmentation::write(&seg, series, &prediction, &description).unwrap();
    dicom::rtstruct::write(&rtstruct, series, &prediction, &description).unwrap();
    // A corrected prediction can be a label again: by the names of its regions.
    let named = |names: &[&str]| LabelRule {
        rois: names.iter().map(|n| (*n).to_owned()).collect(),
        ..LabelRule::default()
    };
    for file in [&seg, &rtstruct] {
        let read = |rule: &LabelRule| {
            source::read_label(file, &made.source, Some(series), rule).map_err(|e| e.to_string())
        };
        let all = read(&named(&["Metastasis*"])).unwrap();
        assert_eq!((all.volume.data(), all.notices), (prediction.data(), vec![]));
        let one = read(&named(&["Metastasis 2", "Metastasis 9"])).unwrap();
        let voxels = |v: &Volume<u8>| v.data().iter().filter(|v| **v > 0).count();
        assert!(voxels(&one.volume) > 0 && voxels(&one.volume) < voxels(&prediction));
        assert!(
            one.notices.len() == 1 && one.notices[0].contains("Metastasis 9"),
            "{:?}",
            one.notices
        );
        for none in [&["GTV"][..], &[]] {
            let refused = read(&named(none)).unwrap_err();
            assert!(refused.contains(&*file.to_string_lossy()), "{refused}");
        }
        let nifti = source::read_label(file, &made.source, None, &named(&["Metastasis*"]));
        assert!(nifti.unwrap_err().to_string().contains("rondo image convert"));
    }
}
