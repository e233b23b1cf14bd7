//! A real T1 series against the geometry and values that SimpleITK found. The files are not part of
//! the project; where they are absent, the tests say so and check nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;

use nalgebra::Vector4;
use rondo_imaging::dicom::{self, SeriesChoice};
use rondo_imaging::nifti;
use rondo_imaging::volume::Volume;
use safetensors::SafeTensors;

use support::{golden_imaging, shared};

fn numbers(from: &serde_json::Value) -> Vec<f64> {
    from.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn t1_head_has_the_geometry_and_values_of_simpleitk() {
    let Some(folder) = shared("data/t1-head-dicom") else { return };
    let (series, volume) = dicom::read_series(&folder, &SeriesChoice::Only).unwrap();
    assert_eq!(volume.geometry(), &series.geometry);
    // A head without contrast agent, which is told.
    assert!(
        series.notices.len() == 1 && series.notices[0].contains("T1-weighted"),
        "{:?}",
        series.notices
    );
    assert_eq!((series.slices.len(), series.modality.as_str()), (196, "MR"));
    golden_imaging().iter().for_each(|golden| compare(&volume, golden));
}

fn compare(volume: &Volume<f32>, golden: &Path) {
    let bytes = std::fs::read(golden.join("imaging.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("imaging.json")).unwrap()).unwrap();
    let golden = &golden["dicom"];
    let geometry = volume.geometry();
    assert_eq!(geometry.shape().map(|n| n as f64).to_vec(), numbers(&golden["size"]));
    for (ours, theirs) in geometry.spacing_mm().iter().zip(numbers(&golden["spacing_mm"])) {
        assert!((ours - theirs).abs() < 1e-6, "{ours} against {theirs}");
    }
    let (direction, origin) =
        (numbers(&golden["direction_row_major"]), numbers(&golden["origin_lps_mm"]));
    let spacing = geometry.spacing_mm();
    for row in 0..3 {
        let sign = if row < 2 { -1.0 } else { 1.0 };
        for column in 0..3 {
            let ours = sign * geometry.affine()[(row, column)] / spacing[column];
            assert!((ours - direction[3 * row + column]).abs() < 1e-6);
        }
        assert!((sign * geometry.affine()[(row, 3)] - origin[row]).abs() < 1e-9);
    }
    let data = volume.data();
    let sum: f64 = data.iter().map(|v| f64::from(*v)).sum();
    assert!((sum / data.len() as f64 - golden["mean"].as_f64().unwrap()).abs() < 1e-9);
    let range = data.iter().fold((f32::MAX, f32::MIN), |r, v| (r.0.min(*v), r.1.max(*v)));
    assert_eq!(
        (f64::from(range.0), f64::from(range.1)),
        (golden["min"].as_f64().unwrap(), golden["max"].as_f64().unwrap())
    );

    let f64s = |name: &str| -> Vec<f64> {
        let tensor = tensors.tensor(name).unwrap();
        tensor.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
    };
    let (points, values) = (f64s("dicom.points_lps_mm"), f64s("dicom.values"));
    assert!(values.len() >= 100 && points.len() == 3 * values.len());
    let to_voxel = geometry.affine().try_inverse().unwrap();
    for (p, value) in points.as_chunks::<3>().0.iter().zip(values) {
        let at = to_voxel * Vector4::new(-p[0], -p[1], p[2], 1.0);
        let index = [at.x, at.y, at.z].map(|v| v.round() as usize);
        assert_eq!(f64::from(data[index]), value, "at {index:?}");
    }
}

#[test]
fn a_series_becomes_a_nifti_file_with_the_same_numbers() {
    let Some(folder) = shared("data/t1-head-dicom") else { return };
    let (_, volume) = dicom::read_series(&folder, &SeriesChoice::Only).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("head.nii.gz");
    nifti::write_narrow(&path, &volume).unwrap();
    let back = nifti::read_image(&path).unwrap();
    assert_eq!(back.header.scalar, nifti::Scalar::I16);
    assert_eq!(back.volume.data(), volume.data());
    assert!(back.volume.geometry().matches(volume.geometry()));
}
