//! Compressed transfer syntaxes: decoded where there is a decoder, else named.
//!
//! `ramp*.j*`: 16 columns and 12 rows of `(37 i + 101 j) mod 4096` in 12 bits (lossless) and of
//! `(8 i + 4 j) mod 256` in 8 bits (baseline), made with Pillow, imagecodecs (CharLS for JPEG-LS,
//! libjxl for JPEG XL) and, for lossless JPEG, a few lines after ITU-T T.81 annex H.

use std::io::Write;

use dicom_core::value::PixelFragmentSequence;
use flate2::Compression as Level;
use flate2::write::DeflateEncoder;

use super::*;

const JPEG_2000: &[u8] = include_bytes!("../../../tests/data/dicom/ramp12.j2k");
const JPEG_LS: &[u8] = include_bytes!("../../../tests/data/dicom/ramp12.jls");
const JPEG_XL: &[u8] = include_bytes!("../../../tests/data/dicom/ramp12.jxl");
const LOSSLESS: &[u8] = include_bytes!("../../../tests/data/dicom/ramp12-lossless.jpg");
const BASELINE: &[u8] = include_bytes!("../../../tests/data/dicom/ramp8.jpg");

fn ramp(i: usize, j: usize) -> u16 {
    ((37 * i + 101 * j) % 4096) as u16
}

/// A slice of 16 columns and 12 rows with these fragments.
fn framed(k: usize, bits: u16, fragments: Vec<Vec<u8>>) -> InMemDicomObject {
    let mut s = slice(k);
    put(&mut s, tags::COLUMNS, VR::US, 16);
    put(&mut s, tags::ROWS, VR::US, 12);
    put(&mut s, tags::BITS_ALLOCATED, VR::US, if bits > 8 { 16 } else { 8 });
    put(&mut s, tags::BITS_STORED, VR::US, bits);
    put(&mut s, tags::HIGH_BIT, VR::US, bits - 1);
    s.put(DataElement::new(
        tags::PIXEL_DATA,
        VR::OB,
        PixelFragmentSequence::new_fragments(fragments),
    ));
    s
}

fn saved(object: InMemDicomObject, syntax: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    save(&dir.path().join("1.dcm"), object, syntax);
    dir
}

fn even(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes
}

/// PS3.5 annex G: the high bytes, then the low bytes, in literal runs and one repeated run.
fn rle() -> Vec<u8> {
    let values: Vec<u16> = (0..192).map(|n| ramp(n % 16, n / 16)).collect();
    let literal = |bytes: Vec<u8>| -> Vec<u8> {
        bytes.chunks(100).flat_map(|c| [&[c.len() as u8 - 1], c].concat()).collect()
    };
    let high = literal(values.iter().map(|v| (v >> 8) as u8).collect());
    let mut low = literal(values.iter().map(|v| *v as u8).collect());
    low.extend([0x80, (1i8 - 5) as u8, 7]);
    let mut out = vec![0u8; 64];
    for (n, v) in [2, 64, 64 + high.len() as u32].into_iter().enumerate() {
        out[4 * n..4 * n + 4].copy_from_slice(&v.to_le_bytes());
    }
    out.extend(high);
    out.extend(low);
    even(&out)
}

fn native() -> Vec<u8> {
    (0..192).flat_map(|n| ramp(n % 16, n / 16).to_le_bytes()).collect()
}

fn deflated() -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Level::best());
    encoder.write_all(&native()).unwrap();
    even(&encoder.finish().unwrap())
}

fn lossless() -> [(&'static str, Vec<u8>); 11] {
    [
        (uids::RLE_LOSSLESS, rle()),
        (uids::JPEG_LOSSLESS_SV1, even(LOSSLESS)),
        (uids::JPEG_LOSSLESS, even(LOSSLESS)),
        (uids::JPEG2000_LOSSLESS, even(JPEG_2000)),
        (uids::JPEG2000, even(JPEG_2000)),
        (uids::JPEGLS_LOSSLESS, even(JPEG_LS)),
        (uids::JPEGLS_NEAR_LOSSLESS, even(JPEG_LS)),
        (uids::JPEGXL_LOSSLESS, even(JPEG_XL)),
        (uids::JPEGXL, even(JPEG_XL)),
        (uids::ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN, native()),
        (uids::DEFLATED_IMAGE_FRAME_COMPRESSION, deflated()),
    ]
}

#[test]
fn signed_jpeg_2000_is_not_shifted() {
    // The same wavelets said to be signed: half the range less, ISO 15444-1 annex G.
    let mut stream = even(JPEG_2000);
    stream[42] |= 0x80;
    let mut slice = framed(0, 16, vec![stream]);
    put(&mut slice, tags::PIXEL_REPRESENTATION, VR::US, 1);
    let dir = saved(slice, uids::JPEG2000_LOSSLESS);
    let (_, volume) = read(&dir).unwrap();
    let (at, value) = ([5, 7, 0], f32::from(ramp(5, 7)) - 32768.0);
    assert_eq!(volume.data()[at], value);
}

#[test]
fn lossless_syntaxes_give_the_values_exactly() {
    for (syntax, frame) in lossless() {
        // In one fragment and cut in two.
        for fragments in
            [vec![frame.clone()], frame.chunks(frame.len() / 4 * 2).map(<[u8]>::to_vec).collect()]
        {
            let dir = tempfile::tempdir().unwrap();
            for k in 0..2 {
                let name = dir.path().join(k.to_string());
                save(&name, framed(k, 12, fragments.clone()), syntax);
            }
            let (_, volume) = read(&dir).unwrap_or_else(|e| panic!("{syntax}: {e}"));
            assert_values(&volume, |i, j, _| f32::from(ramp(i, j)));
        }
    }
}

#[test]
fn signed_samples_stay_signed() {
    for (syntax, frame) in lossless() {
        let mut s = framed(0, 12, vec![frame]);
        put(&mut s, tags::PIXEL_REPRESENTATION, VR::US, 1);
        let (_, volume) = read(&saved(s, syntax)).unwrap();
        assert_values(&volume, |i, j, _| {
            let v = f32::from(ramp(i, j));
            if v >= 2048.0 { v - 4096.0 } else { v }
        });
    }
}

#[test]
fn baseline_jpeg_is_near() {
    let (_, volume) =
        read(&saved(framed(0, 8, vec![even(BASELINE)]), uids::JPEG_BASELINE8_BIT)).unwrap();
    for ((i, j, _), v) in volume.data().indexed_iter() {
        assert!((v - ((8 * i + 4 * j) % 256) as f32).abs() <= 3.0, "{v} at {i}, {j}");
    }
}

#[test]
fn frames_of_compressed_multi_frame_objects_are_found() {
    let whole = rle();
    let (a, b) = whole.split_at(64);
    let one_each = PixelFragmentSequence::new_fragments(vec![whole.clone(); 3]);
    let start = whole.len() as u32;
    // Two fragments a frame, told by the basic offset table.
    let table = vec![0, start + 16, 2 * (start + 16)];
    let two_each = PixelFragmentSequence::new(
        table,
        [a, b].repeat(3).into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>(),
    );
    let untold = PixelFragmentSequence::new(
        Vec::<u32>::new(),
        [a, b].repeat(3).into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>(),
    );
    let object = |fragments: PixelFragmentSequence<Vec<u8>>| {
        let mut s = grid::enhanced();
        for (tag, value) in [(tags::COLUMNS, 16), (tags::ROWS, 12)] {
            put(&mut s, tag, VR::US, value);
        }
        s.put(DataElement::new(tags::PIXEL_DATA, VR::OB, fragments));
        saved(s, uids::RLE_LOSSLESS)
    };
    for fragments in [one_each, two_each] {
        let (_, volume) = read(&object(fragments)).unwrap();
        assert_values(&volume, |i, j, k| f32::from(ramp(i, j)) * if k == 1 { 3.0 } else { 1.0 });
    }
    assert_says(&refused(&object(untold)), &["which fragments belong to which frame"]);
}

#[test]
fn what_has_no_decoder_is_named_with_what_to_do() {
    for (syntax, name) in [
        (uids::HTJ2K, "High-Throughput JPEG 2000"),
        (uids::HEVCMP51, "HEVC"),
        ("1.2.840.113619.5.2", "unknown"),
    ] {
        let dir = saved(framed(0, 12, vec![vec![0; 16]]), uids::RLE_LOSSLESS);
        let path = dir.path().join("1.dcm");
        let bytes = std::fs::read(&path).unwrap();
        write_raw(&path, &with_syntax(&bytes, syntax));
        assert_says(
            &refused(&dir),
            &["1.dcm", "no decoder", syntax, name, "decompress the series first"],
        );
    }
}

/// The same file under another transfer syntax; the length of group 0002 is not looked at.
fn with_syntax(bytes: &[u8], syntax: &str) -> Vec<u8> {
    let mut element = vec![2, 0, 16, 0, b'U', b'I'];
    let value = even(syntax.as_bytes());
    element.extend((value.len() as u16).to_le_bytes());
    element.extend(value);
    let at = bytes.windows(6).position(|w| w == [2, 0, 16, 0, b'U', b'I']).unwrap();
    let old = 8 + usize::from(bytes[at + 6]);
    [&bytes[..at], &element, &bytes[at + old..]].concat()
}

fn streams() -> [(&'static str, u16, Vec<u8>); 6] {
    [
        (uids::JPEG_LOSSLESS_SV1, 12, LOSSLESS.to_vec()),
        (uids::JPEG_BASELINE8_BIT, 8, BASELINE.to_vec()),
        (uids::JPEG2000, 12, JPEG_2000.to_vec()),
        (uids::JPEGLS_LOSSLESS, 12, JPEG_LS.to_vec()),
        (uids::JPEGXL, 12, JPEG_XL.to_vec()),
        (uids::RLE_LOSSLESS, 12, rle()),
    ]
}

#[test]
fn a_stream_of_another_size_is_refused_before_it_is_decoded() {
    for (syntax, bits, stream) in streams() {
        let mut s = framed(0, bits, vec![even(&stream)]);
        put(&mut s, tags::ROWS, VR::US, 13);
        let said = refused(&saved(s, syntax));
        let why = if syntax == uids::RLE_LOSSLESS { "too short" } else { "12 rows and 16 columns" };
        assert_says(&said, &["compressed image cannot be decoded", why]);
    }
}

#[test]
fn every_cut_of_a_stream_is_noticed() {
    for (syntax, bits, stream) in streams() {
        // The last bytes of run-length data here are a run that no voxel needs.
        let end = stream.len() - if syntax == uids::RLE_LOSSLESS { 4 } else { 1 };
        for length in (0..end).step_by(3) {
            let dir = saved(framed(0, bits, vec![even(&stream[..length])]), syntax);
            assert!(read(&dir).is_err(), "{syntax} cut to {length} bytes");
        }
    }
}

#[test]
fn no_damaged_byte_brings_the_reader_down() {
    for (syntax, bits, stream) in streams() {
        for at in 0..stream.len() {
            for change in [0xFF, 0x01, 0x80] {
                let mut bytes = stream.clone();
                bytes[at] ^= change;
                // Some changes cannot be told from another image; none may panic, hang or reserve
                // without bound.
                let _ = read(&saved(framed(0, bits, vec![even(&bytes)]), syntax));
            }
        }
    }
}

#[test]
fn streams_that_would_keep_a_decoder_busy_are_refused() {
    let says = |syntax: &str, bits: u16, bytes: Vec<u8>, why: &str| {
        assert_says(&refused(&saved(framed(0, bits, vec![even(&bytes)]), syntax)), &[why]);
    };
    let find =
        |stream: &[u8], marker: u8| stream.windows(2).position(|w| w == [0xFF, marker]).unwrap();
    let mut scans = BASELINE[..BASELINE.len() - 2].to_vec();
    scans.extend_from_slice(&BASELINE[find(BASELINE, 0xDA)..]);
    says(uids::JPEG_BASELINE8_BIT, 8, scans, "several scans");
    let mut progressive = BASELINE.to_vec();
    progressive[find(BASELINE, 0xC0) + 1] = 0xC2;
    says(uids::JPEG_BASELINE8_BIT, 8, progressive, "neither sequential nor lossless");
    let mut twelve = BASELINE.to_vec();
    let frame = find(BASELINE, 0xC0);
    (twelve[frame + 1], twelve[frame + 4]) = (0xC1, 12);
    says(uids::JPEG_EXTENDED12_BIT, 12, twelve, "JPEG Extended of 12 bits");
    let mut tiles = JPEG_2000.to_vec();
    tiles[24..32].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
    says(uids::JPEG2000, 12, tiles, "tiles, layers or precincts");
    let mut layers = JPEG_2000.to_vec();
    layers[find(JPEG_2000, 0x52) + 6] = 0xFF;
    says(uids::JPEG2000, 12, layers, "tiles, layers or precincts");
    let mut segments = rle();
    segments[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    says(uids::RLE_LOSSLESS, 12, segments, "run-length segments");
    let long = [BASELINE, &vec![0; 1 << 17]].concat();
    says(uids::JPEG_BASELINE8_BIT, 8, long, "more than twice as long");
}
