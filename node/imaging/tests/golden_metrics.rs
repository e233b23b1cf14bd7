//! Lesion counts, Dice, surface distances and distance transform against the numbers of the public
//! `surface-distance` tool and scipy (`golden/metrics.json`, masks in `golden/masks.safetensors.gz`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Read;
use std::path::Path;

use ndarray::Array3;
use rondo_imaging::distance::distance_mm;
use rondo_imaging::lesion::Connectivity;
use rondo_imaging::metrics::{Settings, evaluate_case};
use rondo_imaging::surface::SurfaceDistances;
use safetensors::SafeTensors;
use serde_json::Value;

fn golden() -> (Value, Vec<u8>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let json = std::fs::read(folder.join("metrics.json")).unwrap();
    let mut masks = Vec::new();
    let packed = std::fs::File::open(folder.join("masks.safetensors.gz")).unwrap();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut masks).unwrap();
    (serde_json::from_slice(&json).unwrap(), masks)
}

fn close(what: &str, ours: Option<f64>, theirs: &Value, tolerance: f64) {
    match (ours, theirs.as_f64()) {
        (None, None) => {}
        (Some(a), Some(b)) if (a - b).abs() <= tolerance => {}
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn metrics_equal_the_golden_numbers() {
    let (json, bytes) = golden();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let cases = json["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let n = &case["case"];
        let shape: Vec<usize> = case["shape"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap() as usize)
            .collect();
        let shape = (shape[0], shape[1], shape[2]);
        let spacing: Vec<f64> =
            case["spacing_mm"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let spacing = [spacing[0], spacing[1], spacing[2]];
        let tensor = |name: &str| tensors.tensor(&format!("{n}.{name}")).unwrap().data().to_vec();
        let mask = |name: &str| Array3::from_shape_vec(shape, tensor(name)).unwrap();
        let (reference, prediction) = (mask("reference"), mask("prediction"));

        for (name, connectivity) in [
            ("6", Connectivity::Six),
            ("18", Connectivity::Eighteen),
            ("26", Connectivity::TwentySix),
        ] {
            let settings = Settings { connectivity, ..Settings::default() };
            let ours = evaluate_case("golden", &reference, &prediction, spacing, &settings);
            let theirs = &case["connectivity"][name];
            for (key, count) in [
                ("reference_lesions", ours.reference_lesions),
                ("predicted_components", ours.predicted_components),
                ("detected", ours.detected),
                ("missed", ours.missed),
                ("false_positive", ours.false_positives),
            ] {
                assert_eq!(count as u64, theirs[key].as_u64().unwrap(), "case {n}, {name}: {key}");
            }
            close("dice", Some(ours.whole_mask.dice), &case["dice"], 1e-6);
            close("surface dice", ours.whole_mask.surface_dice, &case["surface_dice_1mm"], 1e-6);
            close("hd95", ours.whole_mask.hd95_mm, &case["hd95_mm"], 1e-4);
            close("hd", ours.whole_mask.hd_mm, &case["hd100_mm"], 1e-4);
        }
        let surfaces = SurfaceDistances::new(reference.view(), prediction.view(), spacing);
        close("surface dice 2 mm", surfaces.dice_at(2.0), &case["surface_dice_2mm"], 1e-6);
        for (direction, ours) in surfaces.average_mm().into_iter().enumerate() {
            close("average distance", ours, &case["average_surface_distance_mm"][direction], 1e-4);
        }
        let edt = tensor("edt_to_reference_mm");
        for (ours, theirs) in distance_mm(&reference, spacing).iter().zip(edt.as_chunks().0) {
            let theirs = f64::from(f32::from_le_bytes(*theirs));
            assert!((ours - theirs).abs() <= 1e-3, "case {n}: distance {ours} against {theirs}");
        }
    }
}
