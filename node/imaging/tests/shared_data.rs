//! Real heads against published and independently computed figures. The files are not part of the
//! project; where they are absent, the tests say so and check nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;

use rondo_imaging::lesion::{Connectivity, components};
use rondo_imaging::nifti;
use rondo_imaging::phantom::{Anatomy, Centre, SynthOptions, phantom};
use rondo_imaging::preprocess::{Settings, Sources, prepare_image};
use rondo_imaging::resample::value_at;
use serde_json::Value;

use support::{golden_imaging, shared};

fn about(golden: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(golden.join("imaging.json")).unwrap()).unwrap()
}

#[test]
fn colin27_is_normalised_like_numpy_does_it() {
    let (Some(head), Some(mask)) =
        (shared("data/colin27/ch2.nii.gz"), shared("data/colin27/ch2bet.nii.gz"))
    else {
        return;
    };
    let sources = Sources { image: &head, series: None, brain_mask: Some(&mask) };
    let made = prepare_image(&sources, &Settings::native()).unwrap();
    assert_eq!(made.geometry.shape(), [181, 217, 181]);
    assert_eq!(made.geometry.affine()[(1, 3)], -125.0);
    let n = made.steps.normalisation;
    let most = made.image.iter().copied().fold(f32::MIN, f32::max);
    let corner = made.image[[0, 0, 0]];
    let figures = [
        ("voxels", n.voxels as f64),
        ("p0.2", n.low),
        ("p99.8", n.high),
        ("mean", n.mean),
        ("std", n.sd),
        ("background_value_of_zero", f64::from(corner)),
        ("max_after", f64::from(most)),
    ];
    for folder in golden_imaging() {
        let golden = about(&folder);
        for (key, ours) in figures {
            let theirs = golden["normalise"][key].as_f64().unwrap();
            assert!((ours / theirs - 1.0).abs() < 1e-6, "{key}: {ours} against {theirs}");
        }
    }
}

/// Values between voxels, at points in LPS mm as SimpleITK gives them.
#[test]
fn linear_interpolation_equals_simpleitk() {
    golden_imaging().iter().for_each(|folder| interpolated(folder));
}

fn interpolated(folder: &Path) {
    let golden = about(folder);
    let file = golden["linear"]["file"].as_str().unwrap();
    let Some(path) = shared(&format!("data/contrast-tumour/{file}")) else { return };
    let image = nifti::read_image(&path).unwrap().volume;
    for (n, size) in golden["linear"]["size"].as_array().unwrap().iter().enumerate() {
        assert_eq!(image.geometry().shape()[n] as u64, size.as_u64().unwrap());
        let spacing = golden["linear"]["spacing_mm"][n].as_f64().unwrap();
        assert!((image.geometry().spacing_mm()[n] - spacing).abs() < 1e-5);
    }
    let bytes = std::fs::read(folder.join("imaging.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f64> {
        let (numbers, _) = tensors.tensor(name).unwrap().data().as_chunks::<8>();
        numbers.iter().map(|b| f64::from_le_bytes(*b)).collect()
    };
    let (points, values) = (numbers("linear.points_lps_mm"), numbers("linear.values"));
    assert!(values.len() >= 100 && points.len() == 3 * values.len());
    for (point, expected) in points.as_chunks::<3>().0.iter().zip(values) {
        let [x, y, z] = *point;
        let ours = value_at(&image, [-x, -y, z]).unwrap();
        assert!(
            (f64::from(ours) - expected).abs() < 1e-3,
            "{ours} against {expected} at {point:?}"
        );
    }
}

#[test]
fn published_tumour_volumes() {
    for (file, voxels, lesions, mm3) in
        [("brain1_label.nii.gz", 4137, 2, 16_412.66), ("brain2_label.nii.gz", 453, 1, 1_797.18)]
    {
        let Some(path) = shared(&format!("data/contrast-tumour/{file}")) else { return };
        let mask = nifti::read_mask(&path).unwrap();
        let found = components(mask.data(), Connectivity::TwentySix);
        assert_eq!(
            (found.list.iter().map(|l| l.voxels).sum::<usize>(), found.list.len()),
            (voxels, lesions)
        );
        assert!((voxels as f64 * mask.geometry().voxel_mm3() - mm3).abs() < 0.01);
        let image =
            nifti::read_header(&path.with_file_name(file.replace("label", "image"))).unwrap();
        assert!(image.geometry.matches(mask.geometry()));
    }
}

#[test]
fn metastases_are_painted_on_a_real_head() {
    let (Some(image), Some(mask)) =
        (shared("data/colin27/ch2.nii.gz"), shared("data/colin27/ch2bet.nii.gz"))
    else {
        return;
    };
    let anatomy = Some(Anatomy { image: image.clone(), mask: Some(mask) });
    let made =
        phantom(&SynthOptions { anatomy, ..SynthOptions::small(Centre::Stanford) }, "real-1")
            .unwrap();
    assert!(made.image.geometry().matches(&nifti::read_header(&image).unwrap().geometry));
    assert!(made.label.data().iter().any(|v| *v > 0));
    assert!(made.label.data().iter().zip(made.brain.data()).all(|(l, b)| l <= b));
}
