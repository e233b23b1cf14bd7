//! A model of Rondo in PyTorch and back: the same numbers, and the same probabilities of a volume.
//!
//! Needs a Python with torch and safetensors: `python3`, or the one that `RONDO_PYTHON` names.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::print_stdout
)]

#[path = "../../imaging/tests/support/mod.rs"]
mod support;

use ndarray::Array3;
use rondo::recipe::Architecture;
use rondo_learn::checkpoint::{Moments, Weights};
use rondo_learn::device::{Choice, Device};
use rondo_learn::import::{self, Format};
use rondo_learn::infer::Model;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use std::path::Path;
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pytorch/round_trip.py");

/// Python with PyTorch, if there is one.
fn python() -> Option<String> {
    let python = std::env::var("RONDO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let tried = Command::new(&python).args(["-c", "import torch, safetensors"]).output();
    if tried.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    support::skipped(format!(
        "{python} cannot import torch, safetensors; RONDO_PYTHON names one that can"
    ));
    None
}

/// A model with every number set, as after some training.
fn trained() -> Weights {
    let architecture = Architecture { n1: 4, n2: 6, n3: 8, m: 12 };
    let mut weights = Weights::initial(architecture, 21);
    let noise = Weights::initial(architecture, 22).parameters;
    for (i, value) in weights.mean.iter_mut().enumerate() {
        *value = 0.1 * noise[i];
    }
    for (i, value) in weights.variance.iter_mut().enumerate() {
        *value = 0.5 + noise[i].abs();
    }
    let second: Vec<f32> = noise.iter().map(|x| x * x).collect();
    weights.optimizer = Some(Moments {
        maximum: second.iter().map(|x| 1.5 * x).collect(),
        second,
        first: noise,
        step: 1234,
        learning_rate: 1e-4,
    });
    weights
}

fn write_image(path: &Path, image: &Array3<f32>) {
    let data: Vec<u8> = image.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, image.shape().to_vec(), &data).unwrap();
    std::fs::write(path, serialize([("image", view)], None).unwrap()).unwrap();
}

#[test]
fn a_model_goes_to_pytorch_and_back() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let weights = trained();
    std::fs::write(path("model.safetensors"), weights.to_bytes()).unwrap();
    let image = Array3::from_shape_fn([29, 26, 37], |(x, y, z)| {
        (0.31 * x as f32).sin() + (0.17 * y as f32).cos() * (0.23 * z as f32).sin()
    });
    write_image(&path("image.safetensors"), &image);
    let ran = Command::new(python).arg(SCRIPT).arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    println!("PyTorch {}", String::from_utf8_lossy(&ran.stdout).trim());

    let bytes = std::fs::read(path("probability.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let theirs = file.tensor("probability").unwrap();
    assert_eq!(theirs.shape(), image.shape());
    let device = Device::open(Choice::Cpu).unwrap();
    let ours = Model::new(&weights, &device).probability(image.view()).unwrap();
    let theirs = theirs.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let (mut largest, mut spread) = (0.0_f32, (1.0_f32, 0.0_f32));
    for (a, b) in ours.iter().zip(theirs) {
        largest = largest.max((a - b).abs());
        spread = (spread.0.min(b), spread.1.max(b));
    }
    println!("largest difference of a probability {largest:e}, probabilities {spread:?}");
    assert!(largest < 1e-4 && spread.1 - spread.0 > 0.05, "{largest} {spread:?}");

    let bare = Weights { optimizer: None, ..weights.clone() };
    for (name, format, expected) in [
        ("saved.tar", Format::Published, &weights),
        ("turned.tar", Format::Published, &weights),
        ("saved.safetensors", Format::Safetensors, &bare),
        ("double.safetensors", Format::Safetensors, &bare),
    ] {
        let read = import::any(&std::fs::read(path(name)).unwrap()).unwrap();
        assert_eq!((read.format, read.iterations), (format, 1234), "{name}");
        assert!(read.weights.to_bytes() == expected.to_bytes(), "{name} has other numbers");
    }
    let legacy = import::any(&std::fs::read(path("legacy.tar")).unwrap());
    assert_eq!(legacy.err(), Some(import::Error::Legacy));
}
