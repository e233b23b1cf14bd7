//! NIfTI files of every kind, written by nibabel and read here, and the other way round. Needs a
//! Python with nibabel: `$RONDO_TEST_PYTHON`, or else `python3`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::Command;

use nalgebra::{Matrix4, Rotation3};
use ndarray::Array3;
use rondo_imaging::nifti::{self, Voxel};
use rondo_imaging::volume::{Geometry, Volume};
use serde_json::Value;

fn python(arguments: &[&str]) -> Option<Vec<u8>> {
    let python = support::python("nibabel")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nibabel_files.py");
    let out = Command::new(&python).arg("-B").arg(script).args(arguments).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(out.stdout)
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

#[test]
fn what_nibabel_writes_is_read_as_nibabel_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    if python(&["write", dir.path().to_str().unwrap()]).is_none() {
        return;
    }
    let expected: Vec<Value> =
        serde_json::from_slice(&std::fs::read(dir.path().join("expected.json")).unwrap()).unwrap();
    let (mut read, mut refused) = (0, 0);
    for entry in &expected {
        let name = entry["name"].as_str().unwrap();
        let words = entry["words"].as_str().unwrap_or_default();
        let result = nifti::read_image(&dir.path().join(name));
        if let Some(words) = words.strip_prefix("refused: ") {
            let text = result.expect_err(name).to_string();
            assert!(text.contains(words) && text.contains(name), "{name}: {text}");
            refused += 1;
            continue;
        }
        let image = result.unwrap();
        let notices = image.header.notices.join("; ");
        assert!(
            if words.is_empty() { notices.is_empty() } else { notices.contains(words) },
            "{name}: {notices:?} should say {words:?}"
        );
        let shape: Vec<_> = numbers(&entry["shape"]).into_iter().map(|n| n as usize).collect();
        assert_eq!(image.volume.data().shape(), shape, "{name}");
        // Without an orientation nibabel centres the grid; here the first voxel is the origin.
        let affine = image.volume.geometry().affine();
        if words != "no orientation" {
            let theirs = Matrix4::from_row_slice(&numbers(&entry["affine"]));
            assert!((affine - theirs).abs().max() < 1e-5, "{name}: {affine} against {theirs}");
        } else {
            let theirs = Matrix4::from_row_slice(&numbers(&entry["affine"]));
            let axes = |m: &Matrix4<f64>| m.fixed_view::<3, 3>(0, 0).abs();
            assert!((axes(affine) - axes(&theirs)).abs().max() < 1e-5, "{name}: {affine}");
        }
        for (ours, theirs) in image.volume.data().iter().zip(numbers(&entry["voxels"])) {
            assert_eq!(f64::from(*ours), theirs, "{name}");
        }
        read += 1;
    }
    assert!(read > 70 && refused > 10, "{read} were read and {refused} refused");
}

#[test]
fn what_is_written_here_is_read_by_nibabel() {
    let dir = tempfile::tempdir().unwrap();
    let mut affine = Rotation3::from_euler_angles(0.4, -0.3, 1.1).to_homogeneous();
    for (axis, mm) in [0.7, 0.9, 3.0].into_iter().enumerate() {
        affine.column_mut(axis).scale_mut(mm);
        affine[(axis, 3)] = 10.0 * mm - 40.0;
    }
    let mirrored = affine * Matrix4::from_diagonal(&[-1.0, 1.0, 1.0, 1.0].into());
    let mut sheared = affine;
    sheared[(0, 2)] += 0.8;
    let data = Array3::from_shape_fn((4, 3, 18), |(i, j, k)| (i * 31 + j * 7 + k) as u8);
    let mut files = Vec::new();
    for (name, affine) in [("plain", affine), ("mirrored", mirrored), ("sheared", sheared)] {
        let grid = Geometry::new([4, 3, 18], affine).unwrap();
        let volume = Volume::new(grid, data.clone()).unwrap();
        fn put<T: Voxel>(dir: &Path, name: String, volume: &Volume<T>) -> String {
            let path = dir.join(name);
            nifti::write(&path, volume).unwrap();
            path.to_str().unwrap().to_owned()
        }
        files.push((put(dir.path(), format!("{name}.nii"), &volume), "uint8", affine, name));
        let floats = volume.map(|v| f64::from(*v));
        files.push((put(dir.path(), format!("{name}-f.nii.gz"), &floats), "float64", affine, name));
        let shorts = volume.map(|v| i16::from(*v));
        files.push((put(dir.path(), format!("{name}-i.nii.gz"), &shorts), "int16", affine, name));
    }
    let names: Vec<&str> = ["read"].into_iter().chain(files.iter().map(|f| f.0.as_str())).collect();
    let Some(out) = python(&names) else { return };
    let read: Vec<Value> = serde_json::from_slice(&out).unwrap();
    assert_eq!(read.len(), files.len());
    for (theirs, (_, scalar, affine, name)) in read.iter().zip(&files) {
        assert_eq!(theirs["dtype"], *scalar);
        for form in ["sform", "qform"] {
            if (form, *name) == ("qform", "sheared") {
                assert!(theirs[form].is_null(), "a sheared grid has no qform");
                continue;
            }
            let form = Matrix4::from_row_slice(&numbers(&theirs[form]));
            assert!((form - affine).abs().max() < 1e-4, "{name}: {form} against {affine}");
        }
        let voxels = numbers(&theirs["voxels"]);
        assert!(voxels.iter().zip(&data).all(|(v, d)| *v == f64::from(*d)), "{name}");
    }
}
