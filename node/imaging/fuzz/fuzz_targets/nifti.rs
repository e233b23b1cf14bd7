//! `nifti::{read_header, read_image, read_labels, read_mask}`. The first byte says how the rest lies in
//! the file: as it is (also damaged gzip), packed whole, or packed as two members.
#![no_main]

use std::io::Write;
use std::sync::LazyLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use rondo_imaging::nifti;
use rondo_imaging_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("nifti"));

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

fuzz_target!(|input: &[u8]| {
    let [how, rest @ ..] = input else { return };
    let bytes = match how % 3 {
        0 => rest.to_vec(),
        1 => packed(rest),
        _ => {
            let (first, second) = rest.split_at(rest.len() / 2);
            [packed(first), packed(second)].concat()
        }
    };
    let path = SCRATCH.put("volume.nii", &bytes);
    let header = nifti::read_header(&path);
    if let Ok(image) = nifti::read_image(&path) {
        assert!(image.volume.data().iter().all(|v| v.is_finite()));
        let header = header.expect("an image is read only with its header");
        assert!(header.geometry.matches(image.volume.geometry()));
        assert!(nifti::read_mask(&path).is_ok());
    }
    let _ = nifti::read_labels(&path);
});
