//! Files that are damaged, or made to do harm.

use std::io::Write;

use flate2::Compression as Level;
use flate2::write::DeflateEncoder;

use super::*;

#[test]
fn wanted_attributes_are_sorted() {
    assert!(elements::KEPT.windows(2).all(|w| w[0].0 < w[1].0));
}

#[test]
fn every_cut_of_a_file_is_noticed() {
    for syntax in [
        uids::EXPLICIT_VR_LITTLE_ENDIAN,
        uids::IMPLICIT_VR_LITTLE_ENDIAN,
        uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.dcm");
        save(&path, grid::enhanced(), syntax);
        let bytes = std::fs::read(&path).unwrap();
        // A deflated stream may end without losing a voxel: its end mark and padding.
        let spare = if syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN { 4 } else { 0 };
        for length in (0..bytes.len() - spare).step_by(5) {
            write_raw(&path, &bytes[..length]);
            let said = refused(&dir);
            assert!(
                length < 132 || said.contains("1.dcm") || said.contains("none of its"),
                "{said}"
            );
        }
    }
    let dir = folder((0..3).map(slice).collect());
    let path = dir.path().join("89.dcm");
    let bytes = std::fs::read(&path).unwrap();
    write_raw(&path, &bytes[..bytes.len() - 7]);
    assert_says(&refused(&dir), &["89.dcm", "the file is cut short", "copy it again"]);
}

#[test]
fn no_flipped_byte_brings_the_reader_down() {
    for syntax in [
        uids::EXPLICIT_VR_LITTLE_ENDIAN,
        uids::IMPLICIT_VR_LITTLE_ENDIAN,
        uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.dcm");
        save(&path, grid::enhanced(), syntax);
        let bytes = std::fs::read(&path).unwrap();
        for at in 132..bytes.len() {
            for change in [0xFF, 0x01] {
                let mut bytes = bytes.clone();
                bytes[at] ^= change;
                write_raw(&path, &bytes);
                if let Err(error) = read(&dir) {
                    let _ = error.to_string();
                }
            }
        }
    }
}

/// A file with this data set, in explicit VR little endian.
fn raw(data_set: &[u8], syntax: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 128];
    bytes.extend_from_slice(b"DICM\x02\0\x10\0UI");
    let mut value = syntax.as_bytes().to_vec();
    value.resize(value.len().next_multiple_of(2), 0);
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(value);
    bytes.extend_from_slice(data_set);
    write_raw(&dir.path().join("1.dcm"), &bytes);
    dir
}

#[test]
fn lengths_beyond_the_file_reserve_nothing() {
    for element in [
        &b"\x10\0\x10\0UN\0\0\xf0\xff\xff\xff"[..],
        b"\x08\0\x08\0CS\xfe\xff",
        b"\x09\0\x10\x10OB\0\0\xf0\xff\xff\x7f",
        b"\x08\0\x40\x11SQ\0\0\xf0\xff\xff\xff",
    ] {
        let dir = raw(element, uids::EXPLICIT_VR_LITTLE_ENDIAN);
        assert_says(&refused(&dir), &["1.dcm", "cut short"]);
    }
    let undefined = raw(b"\x10\0\x10\0PN\xff\xff", uids::EXPLICIT_VR_LITTLE_ENDIAN);
    assert_says(&refused(&undefined), &["1.dcm", "cut short"]);
    let undefined = raw(b"\x10\0\x10\0UT\0\0\xff\xff\xff\xff", uids::EXPLICIT_VR_LITTLE_ENDIAN);
    assert_says(&refused(&undefined), &["no sequence has no length"]);
}

#[test]
fn deep_nesting_is_refused() {
    let item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff";
    let wanted = [&b"\x00\x52\x29\x92SQ\0\0\xff\xff\xff\xff"[..], item].concat();
    let private = [&b"\x09\0\x10\x10SQ\0\0\xff\xff\xff\xff"[..], item].concat();
    let implicit = [&b"\x00\x52\x29\x92\xff\xff\xff\xff"[..], item].concat();
    let unknown = [&b"\x09\0\x10\x10UN\0\0\xff\xff\xff\xff"[..], item].concat();
    for (start, repeated, syntax) in [
        (&[][..], wanted, uids::EXPLICIT_VR_LITTLE_ENDIAN),
        (&[], private, uids::EXPLICIT_VR_LITTLE_ENDIAN),
        (&[], implicit.clone(), uids::IMPLICIT_VR_LITTLE_ENDIAN),
        (&unknown, implicit, uids::EXPLICIT_VR_LITTLE_ENDIAN),
    ] {
        let dir = raw(&[start, &repeated.repeat(200_000)].concat(), syntax);
        assert_says(&refused(&dir), &["1.dcm", "nested deeper than 32"]);
    }
}

#[test]
fn a_million_attributes_are_refused() {
    let sequence = b"\x00\x52\x30\x92SQ\0\0\xff\xff\xff\xff".to_vec();
    let items = b"\xfe\xff\x00\xe0\0\0\0\0".repeat(1 << 19);
    let dir = raw(&[sequence, items].concat(), uids::EXPLICIT_VR_LITTLE_ENDIAN);
    assert_says(&refused(&dir), &["more attributes than any image needs"]);
}

#[test]
fn a_deflate_bomb_unfolds_no_further_than_the_limit() {
    let mut encoder = DeflateEncoder::new(Vec::new(), Level::best());
    encoder.write_all(b"\x09\0\x10\x10OB\0\0\0\0\0\x7f").unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..200 {
        encoder.write_all(&zeros).unwrap();
    }
    let dir = raw(&encoder.finish().unwrap(), uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN);
    assert_says(&refused(&dir), &["larger than any image"]);
}

#[test]
fn headers_that_promise_what_cannot_be_are_refused() {
    type Change = fn(&mut InMemDicomObject);
    let cases: [(Change, &str); 18] = [
        (|s| put(s, tags::ROWS, VR::US, 65535), "65535 rows"),
        (|s| put(s, tags::COLUMNS, VR::US, 0), "0 columns are impossible"),
        (|s| put(s, tags::ROWS, VR::US, 4096), "need 65536 bytes of pixel data, 96 are there"),
        (|s| put(s, tags::NUMBER_OF_FRAMES, VR::IS, "999999999"), "NumberOfFrames"),
        (|s| put(s, tags::BITS_ALLOCATED, VR::US, 12), "12 bits allocated"),
        (|s| put(s, tags::BITS_STORED, VR::US, 0), "0 stored"),
        (|s| put(s, tags::HIGH_BIT, VR::US, 20), "high bit 20"),
        (
            |s| put(s, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1"),
            "inverted (MONOCHROME1)",
        ),
        (|s| put(s, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "PALETTE COLOR"), "colour"),
        (|s| put(s, tags::SAMPLES_PER_PIXEL, VR::US, 3), "colour"),
        (|s| put(s, tags::RESCALE_SLOPE, VR::DS, "nan"), "RescaleSlope"),
        (|s| put(s, tags::RESCALE_SLOPE, VR::DS, "1e38"), "RescaleSlope"),
        (|s| put(s, tags::RESCALE_SLOPE, VR::DS, "0"), "RescaleSlope"),
        (|s| put(s, tags::IMAGE_POSITION_PATIENT, VR::DS, "1\\inf\\2"), "ImagePositionPatient"),
        (|s| put(s, tags::IMAGE_POSITION_PATIENT, VR::DS, "1\\2"), "ImagePositionPatient"),
        (
            |s| _ = s.remove_element(tags::IMAGE_ORIENTATION_PATIENT),
            "ImageOrientationPatient is missing",
        ),
        (|s| _ = s.remove_element(tags::PIXEL_DATA), "PixelData is missing"),
        (|s| put(s, tags::PIXEL_SPACING, VR::DS, "word\\1"), "PixelSpacing"),
    ];
    for (change, why) in cases {
        let mut s = slice(1);
        change(&mut s);
        let said = refused(&folder(vec![s]));
        assert_says(&said, &["90.dcm", why]);
    }
    let mut s = slice(1);
    s.remove_element(tags::PIXEL_DATA);
    put(&mut s, tags::FLOAT_PIXEL_DATA, VR::OF, PrimitiveValue::F32(vec![f32::NAN; 48].into()));
    assert_says(&refused(&folder(vec![s])), &["floating-point pixel data"]);
}
