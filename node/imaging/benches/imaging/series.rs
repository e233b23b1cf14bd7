//! A synthetic MR series: one head as files of one slice each, in an oblique orientation.

use std::path::Path;

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use dicom_object::meta::FileMetaTableBuilder;
use ndarray::{Array3, Axis};

/// Root for UIDs that are made from nothing registered (PS3.5 B.2).
const ROOT: &str = "2.25.314159";
/// Radians from the patient's axes.
const TILT: (f64, f64, f64) = (0.1, -0.2, 0.05);

/// Writes `[i, j, k]` as slices of increasing k in uncompressed 16-bit files, i along the rows.
pub(crate) fn write(
    folder: &Path,
    image: &Array3<f32>,
    spacing_mm: [f64; 3],
) -> Result<usize, String> {
    std::fs::create_dir_all(folder).map_err(|e| format!("making {}: {e}", folder.display()))?;
    let axes = nalgebra::Rotation3::from_euler_angles(TILT.0, TILT.1, TILT.2);
    let axis = |n: usize| axes.matrix().column(n).into_owned();
    let (low, high) = image.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    let scale = 4000.0 / (high - low).max(f32::MIN_POSITIVE);
    let (columns, rows, slices) = image.dim();
    for k in 0..slices {
        let at = axis(2) * (k as f64 * spacing_mm[2]);
        let pixels: Vec<u16> =
            (image.index_axis(Axis(2), k).t().iter()).map(|v| ((v - low) * scale) as u16).collect();
        let uid = format!("{ROOT}.1.{k}");
        let mut object = InMemDicomObject::new_empty();
        let mut put = |tag: Tag, vr: VR, value: PrimitiveValue| {
            object.put(DataElement::new(tag, vr, value));
        };
        let numbers = |list: &[f64]| {
            PrimitiveValue::from(
                list.iter().map(|x| format!("{x:.9}")).collect::<Vec<_>>().join("\\"),
            )
        };
        for (tag, vr, text) in [
            (tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE.to_owned()),
            (tags::SOP_INSTANCE_UID, VR::UI, uid.clone()),
            (tags::STUDY_INSTANCE_UID, VR::UI, format!("{ROOT}.2")),
            (tags::SERIES_INSTANCE_UID, VR::UI, format!("{ROOT}.3")),
            (tags::FRAME_OF_REFERENCE_UID, VR::UI, format!("{ROOT}.4")),
            (tags::MODALITY, VR::CS, "MR".into()),
            (tags::PATIENT_NAME, VR::PN, "Phantom".into()),
            (tags::PATIENT_ID, VR::LO, "phantom".into()),
            (tags::SERIES_DESCRIPTION, VR::LO, "T1 contrast".into()),
            (tags::INSTANCE_NUMBER, VR::IS, (k + 1).to_string()),
            (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2".into()),
        ] {
            put(tag, vr, PrimitiveValue::from(text));
        }
        put(tags::IMAGE_POSITION_PATIENT, VR::DS, numbers(at.as_slice()));
        put(
            tags::IMAGE_ORIENTATION_PATIENT,
            VR::DS,
            numbers(&[axis(0).as_slice(), axis(1).as_slice()].concat()),
        );
        put(tags::PIXEL_SPACING, VR::DS, numbers(&[spacing_mm[1], spacing_mm[0]]));
        put(tags::SLICE_THICKNESS, VR::DS, numbers(&[spacing_mm[2]]));
        for (tag, number) in [
            (tags::SAMPLES_PER_PIXEL, 1),
            (tags::ROWS, rows as u16),
            (tags::COLUMNS, columns as u16),
            (tags::BITS_ALLOCATED, 16),
            (tags::BITS_STORED, 16),
            (tags::HIGH_BIT, 15),
            (tags::PIXEL_REPRESENTATION, 0),
        ] {
            put(tag, VR::US, PrimitiveValue::from(number));
        }
        put(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into()));
        let meta = FileMetaTableBuilder::new()
            .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
            .media_storage_sop_class_uid(uids::MR_IMAGE_STORAGE)
            .media_storage_sop_instance_uid(uid);
        let path = folder.join(format!("{k:04}.dcm"));
        (object.with_meta(meta).map_err(|e| e.to_string()))
            .and_then(|file| file.write_to_file(&path).map_err(|e| e.to_string()))
            .map_err(|e| format!("writing {}: {e}", path.display()))?;
    }
    Ok(slices)
}
