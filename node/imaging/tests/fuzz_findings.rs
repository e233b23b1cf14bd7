//! What the fuzz targets found, as small files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use dicom_core::{DataElement, PrimitiveValue, VR, dicom_value};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use rondo_imaging::dicom::{self, SeriesChoice};

fn slice(folder: &Path, n: usize, z: f64) {
    let instance = format!("1.2.3.5.{n}");
    let mut object = InMemDicomObject::new_empty();
    for (tag, vr, text) in [
        (tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE),
        (tags::SOP_INSTANCE_UID, VR::UI, instance.as_str()),
        (tags::MODALITY, VR::CS, "MR"),
        (tags::STUDY_INSTANCE_UID, VR::UI, "1.2.3.1"),
        (tags::SERIES_INSTANCE_UID, VR::UI, "1.2.3.2"),
        (tags::FRAME_OF_REFERENCE_UID, VR::UI, "1.2.3.3"),
        (tags::IMAGE_POSITION_PATIENT, VR::DS, &format!("0\\0\\{z}")),
        (tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0"),
        (tags::PIXEL_SPACING, VR::DS, "1\\1"),
        (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
    ] {
        object.put(DataElement::new(tag, vr, PrimitiveValue::from(text)));
    }
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 1u16),
        (tags::ROWS, 2),
        (tags::COLUMNS, 2),
        (tags::BITS_ALLOCATED, 16),
        (tags::BITS_STORED, 16),
        (tags::HIGH_BIT, 15),
        (tags::PIXEL_REPRESENTATION, 0),
    ] {
        object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
    }
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OW, dicom_value!(U16, [1, 2, 3, 4])));
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(uids::MR_IMAGE_STORAGE)
        .media_storage_sop_instance_uid(&instance);
    let file = object.with_meta(meta).unwrap();
    file.write_to_file(folder.join(format!("{n}.dcm"))).unwrap();
}

/// A step far below the usual one was taken for a number of missing slices below nought.
#[test]
fn slices_far_closer_than_usual_vary_in_spacing() {
    let dir = tempfile::tempdir().unwrap();
    for (n, z) in [0.0, 1.0, 6.0].into_iter().enumerate() {
        slice(dir.path(), n, z);
    }
    let error = dicom::read_series_geometry(dir.path(), &SeriesChoice::Only).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("0.dcm") && text.contains("1.dcm"), "{text}");
}
