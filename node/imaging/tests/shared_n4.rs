//! Bias field and brain mask against those of known tools. The files are not part of the project;
//! where they are absent, the tests say so and check nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;

use ndarray::{Array3, Axis};
use rondo_imaging::bias::{Settings, n4};
use rondo_imaging::volume::{Geometry, Volume};
use rondo_imaging::{brain, nifti};
use safetensors::SafeTensors;

use support::{golden_imaging, shared};

/// Asked for by the specification.
const LEAST_WITH_SIMPLEITK: f64 = 0.98;

/// Tensors are written as [z, y, x].
fn grid<T: bytemuck::Pod>(file: &SafeTensors<'_>, name: &str) -> Array3<T> {
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
    golden_imaging().iter().for_each(|folder| compare(folder));
}

fn compare(folder: &Path) {
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
    assert!(with_theirs >= LEAST_WITH_SIMPLEITK, "{with_theirs}");
    let known = about["n4"]["correlation_simpleitk_with_true_field_in_mask"].as_f64().unwrap();
    assert!(with_truth > known - 0.01, "{with_truth} against {known}");
}

#[test]
fn the_brain_of_a_real_head_is_found() {
    let (Some(head), Some(brain)) =
        (shared("data/colin27/ch2.nii.gz"), shared("data/colin27/ch2bet.nii.gz"))
    else {
        return;
    };
    let theirs = nifti::read_mask(&brain).unwrap();
    let ours = brain::estimate(&nifti::read_image(&head).unwrap().volume).unwrap();
    let count = |f: &dyn Fn(u8, u8) -> bool| {
        ours.iter().zip(theirs.data()).filter(|(a, b)| f(**a, **b)).count() as f64
    };
    let both = count(&|a, b| a > 0 && b > 0);
    let dice = 2.0 * both / (count(&|a, _| a > 0) + count(&|_, b| b > 0));
    println!("Dice {dice:.4}");
    assert!(dice > 0.95, "{dice}");
    // The brain alone is its own mask.
    let stripped = nifti::read_image(&brain).unwrap().volume;
    let again = brain::estimate(&stripped).unwrap();
    assert!(again.iter().zip(stripped.data()).all(|(m, v)| (*m > 0) == (*v != 0.0)));
}

#[test]
fn lesions_stay_inside_the_brain() {
    for case in ["brain1", "brain2"] {
        let (Some(image), Some(label)) = (
            shared(&format!("data/contrast-tumour/{case}_image.nii.gz")),
            shared(&format!("data/contrast-tumour/{case}_label.nii.gz")),
        ) else {
            return;
        };
        let brain = brain::estimate(&nifti::read_image(&image).unwrap().volume).unwrap();
        let label = nifti::read_mask(&label).unwrap();
        let lesion = label.data().iter().filter(|l| **l > 0).count() as f64;
        let inside = label.data().iter().zip(&brain).filter(|(l, b)| **l > 0 && **b > 0).count();
        println!("{case}: {:.3} of the lesion inside", inside as f64 / lesion);
        assert!(inside as f64 > 0.95 * lesion, "{case}: {inside} of {lesion}");
        let cm3 =
            brain.iter().filter(|b| **b > 0).count() as f64 * label.geometry().voxel_mm3() / 1e3;
        assert!((1400.0..2100.0).contains(&cm3), "{case}: {cm3} cm³");
    }
}
