//! `rtstruct::read` of contours on a fixed series of four slices.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rondo_imaging::dicom::{Series, rtstruct};
use rondo_imaging_fuzz::{REGION, Scratch, series};

static SCRATCH: LazyLock<(Scratch, Series)> = LazyLock::new(|| {
    let scratch = Scratch::new("rtstruct");
    let (series, _) = series(&scratch);
    (scratch, series)
});

fuzz_target!(|input: &[u8]| {
    let (scratch, series) = &*SCRATCH;
    let path = scratch.put("contours.dcm", input);
    if let Ok(read) = rtstruct::read(&path, series, &[REGION.to_owned()]) {
        assert!(read.label.geometry().matches(&series.geometry));
        assert!(read.label.data().iter().all(|v| *v <= 1));
    }
});
