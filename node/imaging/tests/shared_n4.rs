//! The bias field against SimpleITK's. The files are not part of the project; where they are
//! absent, the test says so and checks nothing. `RONDO_GOLDEN_IMAGING` names another folder of the
//! same layout.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use ndarray::{Array3, Axis};
use rondo_imaging::bias::{Settings, n4};
use rondo_imaging::volume::{Geometry, Volume};
use safetensors::SafeTensors;

/// Asked for by the specification.
const LEAST_WITH_SIMPLEITK: f64 = 0.98;

/// Tensors are written as [z, y, x].
fn grid<T: bytemuck::AnyBitPattern>(file: &SafeTensors<'_>, name: &str) -> Array3<T> {
    let tensor = file.tensor(name).unwrap();
    let &[z, y, x] = tensor.shape() else { panic!("{name} is no volume") };
    let values: Vec<T> = bytemuck::pod_collect_to_vec::<u8, T>(tensor.data());
    let zyx = Array3::from_shape_vec((z, y, x), values).unwrap();
    zyx.permuted_axes([2, 1, 0]).as_standard_layout().into_owned()
}

fn correlation(a: &Array3<f32>, b: &Array3<f32>, mask: &Array3<u8>) -> f64 {
    let inside: Vec<[f64; 2]> = (a.iter().zip(b).zip(mask))
        .filter(|(_, m)| **m > 0)
        .map(|((x, y), _)| [f64::from(*x), f64::from(*y)])
        .collect();
    let mean = [0, 1].map(|n| inside.iter().map(|p| p[n]).sum::<f64>() / inside.len() as f64);
    let sum = |m: usize, n: usize| {
        inside.iter().map(|p| (p[m] - mean[m]) * (p[n] - mean[n])).sum::<f64>()
    };
    sum(0, 1) / (sum(0, 0) * sum(1, 1)).sqrt()
}

#[test]
fn the_field_is_that_of_simpleitk() {
    let folder = std::env::var_os("RONDO_GOLDEN_IMAGING").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/imaging"),
        PathBuf::from,
    );
    if !folder.exists() {
        eprintln!("skipped: {} is not there", folder.display());
        return;
    }
    let bytes = std::fs::read(folder.join("imaging.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let about: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("imaging.json")).unwrap()).unwrap();
    let name = file.names().into_iter().find(|n| n.starts_with("n4.input")).unwrap();
    let input: Array3<f32> = grid(&file, name);
    let mask: Array3<u8> = grid(&file, "n4.mask_zyx");
    let theirs: Array3<f32> = grid(&file, "n4.log_bias_zyx");
    let truth: Array3<f32> = grid(&file, "n4.true_log_bias_zyx");
    let spacing = [0, 1, 2].map(|n| about["n4"]["spacing_mm"][n].as_f64().unwrap());
    let shape = [0, 1, 2].map(|n| input.len_of(Axis(n)));
    let image = Volume::new(Geometry::with_spacing(shape, spacing).unwrap(), input).unwrap();

    let ours = n4(&image, &mask, &Settings::default()).unwrap();
    let with_theirs = correlation(&ours.log_field, &theirs, &mask);
    let with_truth = correlation(&ours.log_field, &truth, &mask);
    println!("correlation with SimpleITK {with_theirs:.6}, with the truth {with_truth:.6}");
    assert!(with_theirs >= LEAST_WITH_SIMPLEITK, "{with_theirs}");
    let known = about["n4"]["correlation_simpleitk_with_true_field_in_mask"].as_f64().unwrap();
    assert!(with_truth > known - 0.01, "{with_truth} against {known}");
}
