//! `segmentation::read` of a mask on a fixed series of four slices.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rondo_imaging::dicom::{Series, segmentation};
use rondo_imaging_fuzz::{Scratch, series};

static SCRATCH: LazyLock<(Scratch, Series)> = LazyLock::new(|| {
    let scratch = Scratch::new("segmentation");
    let (series, _) = series(&scratch);
    (scratch, series)
});

fuzz_target!(|input: &[u8]| {
    let (scratch, series) = &*SCRATCH;
    let path = scratch.put("mask.dcm", input);
    if let Ok(label) = segmentation::read(&path, series) {
        assert!(label.geometry().matches(&series.geometry));
    }
});
