//! The network, its losses and its optimizer against PyTorch's numbers (`tests/golden`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::checkpoint::{Moments, Weights};
use crate::device::{Choice, Device};
use crate::infer;
use crate::loss::Terms;
use crate::network::{Frozen, Network};
use crate::optimizer::Adam;
use burn::tensor::{Tensor, TensorData};
use ndarray::Array3;
use rondo::recipe::{Architecture, KdlReduction, Preset, Recipe, VssNegatives};
use safetensors::{Dtype, SafeTensors};

fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn values(file: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let tensor = file.tensor(name).ok()?;
    Some(match tensor.dtype() {
        Dtype::U8 => tensor.data().iter().map(|b| f32::from(*b)).collect(),
        _ => tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    })
}

fn tensor<const D: usize>(file: &SafeTensors<'_>, name: &str, device: &Device) -> Tensor<D> {
    let shape: [usize; D] = file.tensor(name).unwrap().shape().try_into().unwrap();
    Tensor::from_data(TensorData::new(values(file, name).unwrap(), shape), device.burn())
}

fn target(file: &SafeTensors<'_>, name: &str, device: &Device) -> Tensor<2> {
    let n = file.tensor(name).unwrap().shape()[0];
    Tensor::from_data(TensorData::new(values(file, name).unwrap(), [n, 729]), device.burn())
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.without_autodiff().try_into_vec_as().unwrap()
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn devices() -> [Device; 2] {
    [Choice::Cpu, Choice::Flex].map(|choice| Device::open(choice).unwrap())
}

fn full_weights() -> Weights {
    let bytes = read("deepmedic_full_weights.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    Weights::from_tensors(Architecture::PAPER, false, |name| values(&file, name)).unwrap()
}

#[test]
fn forward_in_both_modes() {
    let bytes = read("deepmedic_full_forward.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for device in devices() {
        let network = Network::new(&full_weights(), device.burn());
        let x = || (tensor::<5>(&file, "x1", &device), tensor::<5>(&file, "x2", &device));
        let eval = values(&file, "logits_eval").unwrap();
        let (x1, x2) = x();
        let error = worst(&host(network.evaluate(x1, x2)), &eval);
        assert!(error < 2e-4, "evaluation on {}: {error}", device.describe());
        let (x1, x2) = x();
        let error = worst(&host(network.frozen().logits(x1, x2)), &eval);
        assert!(error < 2e-4, "folded on {}: {error}", device.describe());
        let (x1, x2) = x();
        let (logits, _) = network.train(&network.leaves(), x1, x2);
        let error = worst(&host(logits), &values(&file, "logits_train").unwrap());
        assert!(error < 2e-4, "training on {}: {error}", device.describe());
    }
}

#[test]
fn losses_and_their_gradient() {
    let bytes = read("losses.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&read("learning.json")).unwrap();
    for device in devices() {
        for case in json["losses"].as_array().unwrap() {
            let number = case["case"].as_u64().unwrap();
            let name = |part: &str| format!("{number}.{part}");
            let close = |found: f32, key: &str| {
                let expected = case[key].as_f64().unwrap();
                let error = (f64::from(found) - expected).abs() / expected.abs().max(1e-3);
                assert!(error < 1e-4, "case {number} {key}: {found} against {expected}");
            };
            let mut recipe = Recipe::preset(Preset::Paper);
            let logits = tensor::<5>(&file, &name("logits"), &device).autodiff().require_grad();
            let y = target(&file, &name("target"), &device);
            let teacher = tensor::<5>(&file, &name("teacher"), &device);
            let terms = Terms::of(logits.clone(), y.clone(), Some(teacher.clone()), &recipe);
            let total = terms.total(&recipe);
            let gradient = logits.grad(&total.backward()).unwrap();
            close(host(total)[0], "total_lambda0.1");
            let parts = terms.read().unwrap();
            close(parts.ce, "ce");
            close(parts.vss, "vss_any_background_eps0.1");
            close(parts.kdl, "kdl_T2_sum_over_voxels");
            let expected = values(&file, &name("grad_total")).unwrap();
            let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let error = worst(&host(gradient), &expected) / scale;
            assert!(error < 1e-4, "gradient of case {number} on {}: {error}", device.describe());

            (recipe.vss_negatives, recipe.vss_epsilon) = (VssNegatives::AllBackground, 1.0);
            recipe.kdl_reduction = KdlReduction::VoxelMean;
            let parts = Terms::of(logits, y, Some(teacher), &recipe).read().unwrap();
            close(parts.vss, "vss_all_background_eps1");
            close(parts.kdl * 729.0, "kdl_T2_sum_over_voxels");
        }
    }
}

#[test]
fn five_updates_with_a_teacher() {
    let bytes = read("lwf_five_updates.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&read("learning.json")).unwrap();
    let narrow = Architecture { n1: 4, n2: 6, n3: 8, m: 12 };
    let named = |when: &str| {
        Weights::from_tensors(narrow, false, |name| values(&file, &format!("{when}.{name}")))
            .unwrap()
    };
    let (start, end) = (named("start"), named("end"));
    let recipe = Recipe { architecture: narrow, ..Recipe::preset(Preset::Paper) };
    for device in devices() {
        let teacher = Frozen::new(&start, device.burn());
        let mut student = Network::new(&start, device.burn());
        let mut adam =
            Adam::new(&Moments::zero(start.parameters.len(), 1e-3), &recipe, device.burn());
        for (i, expected) in
            json["lwf_five_updates"]["losses"].as_array().unwrap().iter().enumerate()
        {
            let x1 = tensor::<5>(&file, &format!("x1.{i}"), &device);
            let x2 = tensor::<5>(&file, &format!("x2.{i}"), &device);
            let y = target(&file, &format!("target.{i}"), &device);
            let leaves = student.leaves();
            let (logits, seen) = student.train(&leaves, x1.clone(), x2.clone());
            let terms = Terms::of(logits, y, Some(teacher.logits(x1, x2)), &recipe);
            let mut grads = terms.total(&recipe).backward();
            let gradient = leaves.gradients(&mut grads);
            student.parameters = adam.update(student.parameters.clone(), gradient, 1e-3);
            student.adopt(seen);
            let parts = terms.read().unwrap();
            let close = |found: f32, key: &str| {
                let wanted = expected[key].as_f64().unwrap();
                let error = (f64::from(found) - wanted).abs() / wanted;
                assert!(error < 1e-4, "update {i}, {key}: {found} against {wanted}");
            };
            close(parts.ce + parts.vss, "seg");
            close(parts.kdl, "kdl");
        }
        let found = student.weights().unwrap();
        for (part, a, b) in [
            ("parameters", &found.parameters, &end.parameters),
            ("running means", &found.mean, &end.mean),
            ("running variances", &found.variance, &end.variance),
        ] {
            let error = worst(a, b);
            assert!(error < 1e-4, "{part} on {}: {error}", device.describe());
        }
    }
}

#[test]
fn dense_inference_equals_tiles() {
    let bytes = read("tiled_inference.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shape: [usize; 3] = file.tensor("volume").unwrap().shape().try_into().unwrap();
    let volume = Array3::from_shape_vec(shape, values(&file, "volume").unwrap()).unwrap();
    let device = Device::open(Choice::Cpu).unwrap();
    // The map was made after the training pass of the forward check, whose batch had entered the
    // running statistics: without it no voxel agrees, with it all do.
    let forward = read("deepmedic_full_forward.safetensors");
    let forward = SafeTensors::deserialize(&forward).unwrap();
    let mut network = Network::new(&full_weights(), device.burn());
    let (x1, x2) = (tensor::<5>(&forward, "x1", &device), tensor::<5>(&forward, "x2", &device));
    let (_, seen) = network.train(&network.leaves(), x1, x2);
    network.adopt(seen);
    let model = infer::Model::new(&network.weights().unwrap(), &device);
    for tiles in [1, 2, 9] {
        let found = model.probability_in_blocks(volume.view(), tiles).unwrap();
        let error = worst(found.as_slice().unwrap(), &values(&file, "prob").unwrap());
        assert!(error < 1e-4, "blocks of {tiles} tiles: {error}");
    }
}
