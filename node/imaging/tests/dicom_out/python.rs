//! What pydicom and highdicom make of the same files, and the other way round.

use std::path::Path;
use std::process::Command;

use ndarray::Array3;
use rondo_imaging::dicom::{Grouping, rtstruct, segmentation};
use rondo_imaging::lesion::Connectivity;

use crate::case::{described, painted, series};
use crate::support::python;

/// Format 1.0 of numpy, unsigned bytes.
fn save_npy(path: &Path, mask: &Array3<u8>) {
    let (i, j, k) = mask.dim();
    let mut header =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({k}, {j}, {i}), }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(mask.view().reversed_axes().iter());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn pydicom_and_highdicom_read_the_same() {
    let Some(python) = python("numpy, pydicom, highdicom") else { return };
    let case = series();
    let prediction = painted(&case.series.geometry);
    let [seg, contours, mask, theirs] =
        ["seg.dcm", "rtstruct.dcm", "mask.npy", "highdicom.dcm"].map(|name| case.path(name));
    save_npy(&mask, prediction.data());
    for grouping in [Grouping::Whole, Grouping::PerLesion(Connectivity::TwentySix)] {
        let description = described(grouping);
        segmentation::write(&seg, &case.series, &prediction, &description).unwrap();
        rtstruct::write(&contours, &case.series, &prediction, &description).unwrap();
        let out = Command::new(&python)
            .arg("-B")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dicom_out/check.py"))
            .args([&case.path("series"), &mask, &seg, &contours, &theirs])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success() && said.starts_with("checked"),
            "{said}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert_eq!(segmentation::read(&theirs, &case.series).unwrap(), prediction);
    }
}
