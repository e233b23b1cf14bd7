//! What the fuzz targets found, as small files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ndarray::Array3;
use rondo_imaging::dicom::{self, SeriesChoice};
use rondo_imaging::volume::{Geometry, Volume};

/// A step far below the usual one was taken for a number of missing slices below nought.
#[test]
fn slices_far_closer_than_usual_vary_in_spacing() {
    let dir = tempfile::tempdir().unwrap();
    let grid = Geometry::with_spacing([2, 2, 7], [1.0; 3]).unwrap();
    let volume = Volume::new(grid, Array3::from_elem([2, 2, 7], 1.0)).unwrap();
    dicom::scan::write_series(dir.path(), "p", &volume).unwrap();
    for left_out in 3..=6 {
        std::fs::remove_file(dir.path().join(format!("{left_out:04}.dcm"))).unwrap();
    }
    let error = dicom::read_series_geometry(dir.path(), &SeriesChoice::Only).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("0001.dcm") && text.contains("0002.dcm"), "{text}");
}
