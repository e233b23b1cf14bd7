//! `dicom::{list_series, read_series_geometry, read_series}` of a folder; the input is cut into 1 to 6
//! files.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rondo_imaging::dicom::{self, SeriesChoice};
use rondo_imaging_fuzz::{Scratch, files};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("dicom"));

fuzz_target!(|input: &[u8]| {
    SCRATCH.clear();
    for (n, bytes) in files(input, 6).into_iter().enumerate() {
        SCRATCH.put(&format!("{n}.dcm"), bytes);
    }
    let folder = SCRATCH.folder();
    let listed = dicom::list_series(folder);
    let header = dicom::read_series_geometry(folder, &SeriesChoice::Only);
    if let Ok((series, volume)) = dicom::read_series(folder, &SeriesChoice::Only) {
        assert!(volume.data().iter().all(|v| v.is_finite()));
        assert_eq!(series.slices.len(), volume.geometry().shape()[2]);
        let header = header.expect("a series is read only with its headers");
        assert!(header.geometry.matches(volume.geometry()));
        assert!(
            !listed.expect("a series is read only from a folder that can be listed").is_empty()
        );
    }
});
