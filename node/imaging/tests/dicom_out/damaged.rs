//! Files cut short, altered and made to do harm.

use ndarray::Array3;
use rondo_imaging::dicom::{Grouping, rtstruct, segmentation};
use rondo_imaging::lesion::Connectivity;
use rondo_imaging::volume::Volume;

use crate::case::{FRAME, SHAPE, described, names, painted, series};

/// Every cut is an error, or leaves out only what comes after the contours.
#[test]
fn truncated_files_are_refused() {
    let case = series();
    let prediction = painted(&case.series.geometry);
    let description = described(Grouping::PerLesion(Connectivity::TwentySix));
    let path = case.path("cut.dcm");
    segmentation::write(&path, &case.series, &prediction, &description).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(segmentation::read(&path, &case.series).is_err(), "{length} of {}", whole.len());
    }
    rtstruct::write(&path, &case.series, &prediction, &description).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(11) {
        std::fs::write(&path, &whole[..length]).unwrap();
        if let Ok(label) = rtstruct::read_label(&path, &case.series, &names(4)) {
            assert_eq!(label, prediction, "{length} of {}", whole.len());
        }
    }
}

/// Whatever a damaged byte makes of a file, reading it ends with a mask on the grid or an error.
#[test]
fn no_flipped_byte_brings_the_readers_down() {
    let case = series();
    let mut one = Array3::<u8>::zeros(SHAPE);
    one[[3, 4, 5]] = 1;
    let prediction = Volume::new(case.series.geometry.clone(), one).unwrap();
    let path = case.path("flipped.dcm");
    let rois = ["Metastasis".to_owned()];
    let description = described(Grouping::Whole);
    let mut refused = [0usize; 2];
    rtstruct::write(&path, &case.series, &prediction, &description).unwrap();
    let contours = std::fs::read(&path).unwrap();
    segmentation::write(&path, &case.series, &prediction, &description).unwrap();
    let seg = std::fs::read(&path).unwrap();
    for (n, whole) in [contours, seg].into_iter().enumerate() {
        for at in (128..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= [0xff, 0x01, 0x80][at % 3];
            std::fs::write(&path, &bytes).unwrap();
            let label = match n {
                0 => rtstruct::read_label(&path, &case.series, &rois).ok(),
                _ => segmentation::read(&path, &case.series).ok(),
            };
            match label {
                Some(label) => assert_eq!(label.geometry(), &case.series.geometry),
                None => refused[n] += 1,
            }
        }
    }
    assert!(refused.iter().all(|n| *n > 50), "{refused:?}");
}

/// A file that claims what it does not hold is refused at once and without reserving it.
#[test]
fn hostile_lengths_and_nesting_are_refused() {
    let case = series();
    let path = case.path("hostile.dcm");
    let mut start = vec![0u8; 128];
    start.extend(b"DICM");
    start.extend(b"\x02\0\x10\0UI\x12\x001.2.840.10008.1.2\0");
    let element = |group: u16, element: u16, length: u32| {
        let mut bytes = group.to_le_bytes().to_vec();
        bytes.extend(element.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes
    };
    let class = |uid: &str| {
        let mut bytes = element(8, 0x16, uid.len() as u32);
        bytes.extend(uid.as_bytes());
        bytes
    };
    let undefined = u32::MAX;
    let huge = |start: &[u8]| {
        let mut bytes = start.to_vec();
        bytes.extend(class("1.2.840.10008.5.1.4.1.1.481.3\0"));
        for tag in [0x39, 0x40] {
            bytes.extend(element(0x3006, tag, undefined));
            bytes.extend(element(0xfffe, 0xe000, undefined));
        }
        bytes.extend(element(0x3006, 0x50, 0xffff_fff0));
        bytes.extend(b"1\\2\\3");
        bytes
    };
    let deep = |start: &[u8]| {
        let mut bytes = start.to_vec();
        for _ in 0..200_000 {
            bytes.extend(element(0x3006, 0x39, undefined));
            bytes.extend(element(0xfffe, 0xe000, undefined));
        }
        bytes
    };
    let many = |start: &[u8]| {
        let mut bytes = start.to_vec();
        bytes.extend(element(0x3006, 0x39, undefined));
        for _ in 0..5_000_000 {
            bytes.extend(element(0xfffe, 0xe000, 0));
        }
        bytes
    };
    let value = |group: u16, number: u16, value: &[u8]| {
        let mut bytes = element(group, number, value.len() as u32);
        bytes.extend(value);
        bytes
    };
    let within = |tag: u16, item: &[u8]| value(0x3006, tag, &value(0xfffe, 0xe000, item));
    let points = |start: &[u8]| {
        let mut roi = value(0x3006, 0x22, b"7 ");
        roi.extend(value(0x3006, 0x24, format!("{FRAME}\0").as_bytes()));
        roi.extend(value(0x3006, 0x26, b"GTV 1 "));
        let mut contour = value(0x3006, 0x42, b"CLOSED_PLANAR ");
        contour.extend(value(0x3006, 0x50, &b"1\\".repeat(3 * rtstruct::MAX_POINTS)));
        let mut drawn = within(0x40, &contour);
        drawn.extend(value(0x3006, 0x84, b"7 "));
        let mut bytes = start.to_vec();
        bytes.extend(class("1.2.840.10008.5.1.4.1.1.481.3\0"));
        bytes.extend(within(0x20, &roi));
        bytes.extend(within(0x39, &drawn));
        bytes
    };
    let nothing = Vec::new();
    for (bytes, why) in [
        (points(&start), "more than 4000000 points"),
        (huge(&start), "cut short"),
        (deep(&start), "nested deeper"),
        (many(&start), "more attributes"),
        (start.clone(), "cut short"),
        (vec![7; 4000], "no DICOM file"),
        (nothing, "no DICOM file"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let started = std::time::Instant::now();
        let refused = rtstruct::read(&path, &case.series, &["GTV 1".to_owned()]).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
        let refused = segmentation::read(&path, &case.series).unwrap_err().to_string();
        assert!(refused.contains("hostile.dcm"), "{refused}");
        assert!(started.elapsed().as_secs() < 20);
    }
    let sparse = std::fs::File::create(&path).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let refused = rtstruct::read(&path, &case.series, &["GTV 1".to_owned()]).unwrap_err();
    assert!(refused.to_string().contains("larger than 128 MiB"), "{refused}");
}
