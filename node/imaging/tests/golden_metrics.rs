//! Lesion counts, Dice, surface distances and distance transform against the numbers of the public
//! `surface-distance` tool and scipy: a folder with `metrics.json` and `masks.safetensors` (or
//! `masks.safetensors.gz`). Checked are `tests/golden`, every other folder that
//! `RONDO_GOLDEN_METRICS` names (a list like `PATH`), and one that the tool makes on the spot where
//! `RONDO_TEST_PYTHON`, or else `python3`, has it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod peer_figures;
mod support;

use std::io::Read;
use std::path::Path;

use ndarray::Array3;
use rondo_imaging::distance::distance_mm;
use rondo_imaging::lesion::Connectivity;
use rondo_imaging::metrics::{Settings, evaluate_case};
use rondo_imaging::surface::SurfaceDistances;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn golden(folder: &Path) -> (Value, Vec<u8>) {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()))
    };
    let masks = if folder.join("masks.safetensors").exists() {
        read("masks.safetensors")
    } else {
        let mut masks = Vec::new();
        let packed = read("masks.safetensors.gz");
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut masks).unwrap();
        masks
    };
    (serde_json::from_slice(&read("metrics.json")).unwrap(), masks)
}

/// Compares every case of a folder and says how many there are.
fn compare(folder: &Path) -> usize {
    let (json, bytes) = golden(folder);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let cases = json["cases"].as_array().unwrap();
    cases.iter().for_each(|case| compare_case(folder, case, &tensors));
    cases.len()
}

fn compare_case(folder: &Path, case: &Value, tensors: &SafeTensors<'_>) {
    let numbers = |key: &str| -> [f64; 3] {
        let list: Vec<_> =
            case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        list.try_into().unwrap()
    };
    let n = &case["case"];
    let at = format!("{}, case {n}", folder.display());
    let [i, j, k] = numbers("shape").map(|v| v as usize);
    let spacing = numbers("spacing_mm");
    let tensor = |name: &str| tensors.tensor(&format!("{n}.{name}")).unwrap();
    let mask = |name: &str| {
        assert!(matches!(tensor(name).dtype(), Dtype::U8 | Dtype::BOOL), "{at}: {name}");
        Array3::from_shape_vec((i, j, k), tensor(name).data().to_vec()).unwrap()
    };
    let (reference, prediction) = (mask("reference"), mask("prediction"));
    let close = |what: &str, ours: Option<f64>, theirs: &Value, tolerance: f64| match (
        ours,
        theirs.as_f64(),
    ) {
        (None, None) if theirs.is_null() => {}
        (Some(a), Some(b)) if (a - b).abs() <= tolerance => {}
        _ => panic!("{at}: {what} is {ours:?}, not {theirs}"),
    };
    let figure = |key: &str| case.get(key).unwrap_or_else(|| panic!("{at} has no {key}"));

    let by_connectivity = case["connectivity"].as_object().unwrap();
    assert!(!by_connectivity.is_empty(), "{at}: connectivity");
    for (name, theirs) in by_connectivity {
        let connectivity = Connectivity::try_from(name.parse::<u8>().unwrap()).unwrap();
        let settings = Settings { connectivity, ..Settings::default() };
        let ours = evaluate_case("golden", &reference, &prediction, spacing, &settings);
        for (key, count) in [
            ("reference_lesions", ours.reference_lesions),
            ("predicted_components", ours.predicted_components),
            ("detected", ours.detected),
            ("missed", ours.missed),
            ("false_positive", ours.false_positives),
        ] {
            assert_eq!(
                theirs[key].as_u64(),
                Some(count as u64),
                "{at}, connectivity {name}: {key}"
            );
        }
        let whole = ours.whole_mask;
        // What the tool leaves undefined is 1 here, and flagged.
        let dice = (!whole.both_empty).then_some(whole.dice);
        match (whole.both_empty, figure("dice").as_f64()) {
            (true, Some(theirs)) => assert_eq!((whole.dice, theirs), (1.0, 1.0), "{at}: dice"),
            _ => close("dice", dice, figure("dice"), 1e-6),
        }
        close("surface dice", whole.surface_dice, figure("surface_dice_1mm"), 1e-6);
        close("hd95", whole.hd95_mm, figure("hd95_mm"), 1e-4);
        close("hd", whole.hd_mm, figure("hd100_mm"), 1e-4);
    }
    let surfaces = SurfaceDistances::new(reference.view(), prediction.view(), spacing);
    close("surface dice 2 mm", surfaces.dice_at(2.0), figure("surface_dice_2mm"), 1e-6);
    for (direction, ours) in surfaces.average_mm().into_iter().enumerate() {
        let theirs = &figure("average_surface_distance_mm")[direction];
        close("average distance", ours, theirs, 1e-4);
    }
    let edt = tensor("edt_to_reference_mm");
    let theirs: Vec<f64> = match edt.dtype() {
        Dtype::F32 => {
            edt.data().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
        }
        Dtype::F64 => edt.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        other => panic!("{at}: distances of type {other:?}"),
    };
    let ours = distance_mm(&reference, spacing);
    assert_eq!(ours.len(), theirs.len(), "{at}: distances");
    for (ours, theirs) in ours.iter().zip(theirs) {
        // Without a reference there is no distance; what a tool writes then means nothing.
        let nowhere = reference.iter().all(|v| *v == 0) && ours.is_infinite();
        assert!(nowhere || (ours - theirs).abs() <= 1e-3, "{at}: {ours} against {theirs} mm");
    }
}

#[test]
fn metrics_equal_the_golden_numbers() {
    assert_eq!(compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")), 4);
    let others = std::env::var_os("RONDO_GOLDEN_METRICS").unwrap_or_default();
    for folder in std::env::split_paths(&others).filter(|f| !f.as_os_str().is_empty()) {
        let cases = compare(&folder);
        assert!(cases > 0, "{} holds no case", folder.display());
        println!("{} cases of {} agree", cases, folder.display());
    }
}

#[test]
fn metrics_equal_what_the_public_tool_says_of_many_masks() {
    let seed = 1;
    if let Some(folder) = peer_figures::made("metrics", "numpy, scipy, surface_distance", seed) {
        assert_eq!(compare(folder.path()), 98, "seed {seed}");
    }
}
