#![allow(clippy::disallowed_methods, reason = "the tests make their own input")]

mod compressed;
mod grid;
mod hostile;
mod selection;

use std::fs;
use std::path::Path;

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use tempfile::TempDir;

use super::*;

const COLUMNS: usize = 8;
const ROWS: usize = 6;
/// Must never be in a message.
const PATIENT: &str = "Geheim^Person";

fn stored(i: usize, j: usize, k: usize) -> u16 {
    (i + 10 * j + 100 * k) as u16
}

fn put(object: &mut InMemDicomObject, tag: Tag, vr: VR, value: impl Into<PrimitiveValue>) {
    object.put(DataElement::new(tag, vr, value.into()));
}

/// Slice `k` of a series 2 mm apart, of 8 columns and 6 rows.
fn slice(k: usize) -> InMemDicomObject {
    let mut s = InMemDicomObject::new_empty();
    put(&mut s, tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE);
    put(&mut s, tags::SOP_INSTANCE_UID, VR::UI, format!("1.2.3.9.{}", k + 1));
    put(&mut s, tags::MODALITY, VR::CS, "MR");
    put(&mut s, tags::SERIES_DESCRIPTION, VR::LO, "ax FSPGR");
    put(&mut s, tags::PATIENT_NAME, VR::PN, PATIENT);
    put(&mut s, tags::PATIENT_ID, VR::LO, PATIENT);
    put(&mut s, tags::SLICE_THICKNESS, VR::DS, "2");
    put(&mut s, tags::STUDY_INSTANCE_UID, VR::UI, "1.2.3.4");
    put(&mut s, tags::SERIES_INSTANCE_UID, VR::UI, "1.2.3.5");
    put(&mut s, tags::FRAME_OF_REFERENCE_UID, VR::UI, "1.2.3.6");
    put(&mut s, tags::INSTANCE_NUMBER, VR::IS, (k + 1).to_string());
    put(&mut s, tags::IMAGE_POSITION_PATIENT, VR::DS, format!("-3\\-4\\{}", 2 * k));
    put(&mut s, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0");
    put(&mut s, tags::PIXEL_SPACING, VR::DS, "0.5\\0.75");
    put(&mut s, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::ROWS, ROWS as u16),
        (tags::COLUMNS, COLUMNS as u16),
        (tags::BITS_ALLOCATED, 16),
        (tags::BITS_STORED, 16),
        (tags::HIGH_BIT, 15),
        (tags::PIXEL_REPRESENTATION, 0),
    ] {
        put(&mut s, tag, VR::US, value);
    }
    let pixels: Vec<u16> =
        (0..ROWS * COLUMNS).map(|n| stored(n % COLUMNS, n / COLUMNS, k)).collect();
    put(&mut s, tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into()));
    s
}

fn save(path: &Path, object: InMemDicomObject, syntax: &str) {
    let meta = FileMetaTableBuilder::new().transfer_syntax(syntax);
    object.with_meta(meta).unwrap().write_to_file(path).unwrap();
}

/// A folder with these objects, named so that the order of names is not the order in space.
fn folder(objects: Vec<InMemDicomObject>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (n, object) in objects.into_iter().enumerate() {
        let name = format!("{}.dcm", 90 - n);
        save(&dir.path().join(name), object, uids::EXPLICIT_VR_LITTLE_ENDIAN);
    }
    dir
}

fn read(dir: &TempDir) -> Result<(Series, Volume<f32>), Error> {
    read_series(dir.path(), &SeriesChoice::Only)
}

/// The message of a refusal: one sentence, with the folder or file, and nothing of the patient.
fn refused(dir: &TempDir) -> String {
    message(&read(dir).unwrap_err())
}

fn message(error: &Error) -> String {
    let text = error.to_string();
    assert!(!text.contains("Geheim") && !text.contains("Person"), "{text}");
    assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
    let start = text.chars().next().unwrap();
    assert!(start.is_lowercase(), "{text}");
    text
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[track_caller]
fn assert_values(volume: &Volume<f32>, value: impl Fn(usize, usize, usize) -> f32) {
    for ((i, j, k), found) in volume.data().indexed_iter() {
        assert_eq!(*found, value(i, j, k), "at {i}, {j}, {k}");
    }
}

fn write_raw(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}
