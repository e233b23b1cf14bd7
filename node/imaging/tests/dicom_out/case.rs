//! An oblique, anisotropic series in a folder of its own, and a prediction on it.

use std::path::{Path, PathBuf};

use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::mem::InMemElement;
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use ndarray::Array3;
use rondo_imaging::dicom::{self, Description, Grouping, Series, SeriesChoice};
use rondo_imaging::volume::{Geometry, Volume};

pub(crate) const SHAPE: [usize; 3] = [17, 14, 9];
/// Column, row, slice.
const SPACING_MM: [f64; 3] = [0.7, 0.9, 2.5];
pub(crate) const FRAME: &str = "1.2.826.0.1.3680043.10.999.3";

pub(crate) struct Case {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) series: Series,
}

impl Case {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

pub(crate) fn text(tag: dicom_core::Tag, vr: VR, value: impl Into<String>) -> InMemElement {
    DataElement::new(tag, vr, value.into())
}

pub(crate) fn list(tag: dicom_core::Tag, items: Vec<InMemDicomObject>) -> InMemElement {
    DataElement::new(tag, VR::SQ, DataSetSequence::from(items))
}

pub(crate) fn object<const N: usize>(elements: [InMemElement; N]) -> InMemDicomObject {
    InMemDicomObject::from_element_iter(elements)
}

pub(crate) fn joined(values: &[f64]) -> String {
    values.iter().map(|v| format!("{v:.10}")).collect::<Vec<_>>().join("\\")
}

/// Columns: directions along row, column, normal, in LPS.
fn directions() -> nalgebra::Matrix3<f64> {
    *nalgebra::Rotation3::from_euler_angles(0.4, -0.3, 0.6).matrix()
}

pub(crate) fn patient_mm([i, j, k]: [f64; 3]) -> [f64; 3] {
    let at = nalgebra::Vector3::new(i * SPACING_MM[0], j * SPACING_MM[1], k * SPACING_MM[2]);
    let p = nalgebra::Vector3::new(-31.0, 12.5, 40.25) + directions() * at;
    [p[0], p[1], p[2]]
}

pub(crate) fn series() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("series");
    std::fs::create_dir(&images).unwrap();
    let d = directions();
    let orientation = [d[(0, 0)], d[(1, 0)], d[(2, 0)], d[(0, 1)], d[(1, 1)], d[(2, 1)]];
    for k in 0..SHAPE[2] {
        let pixels: Vec<u16> =
            (0..SHAPE[0] * SHAPE[1]).map(|n| (n * 7 + k * 31) as u16 % 1000).collect();
        let slice = object([
            text(tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192"),
            text(tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY"),
            text(tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE),
            text(tags::SOP_INSTANCE_UID, VR::UI, format!("1.2.826.0.1.3680043.10.999.4.{}", k + 1)),
            text(tags::STUDY_DATE, VR::DA, "20260102"),
            text(tags::STUDY_TIME, VR::TM, "101112"),
            text(tags::ACCESSION_NUMBER, VR::SH, "A1"),
            text(tags::MODALITY, VR::CS, "MR"),
            text(tags::MANUFACTURER, VR::LO, "Test"),
            text(tags::REFERRING_PHYSICIAN_NAME, VR::PN, "Referrer^R"),
            text(tags::SERIES_DESCRIPTION, VR::LO, "T1 post contrast"),
            text(tags::PATIENT_NAME, VR::PN, "Mül\u{f6}^Phantom"),
            text(tags::PATIENT_ID, VR::LO, "P1"),
            text(tags::PATIENT_BIRTH_DATE, VR::DA, "19700101"),
            text(tags::PATIENT_SEX, VR::CS, "O"),
            text(tags::SCANNING_SEQUENCE, VR::CS, "SE"),
            text(tags::SEQUENCE_VARIANT, VR::CS, "NONE"),
            text(tags::MR_ACQUISITION_TYPE, VR::CS, "2D"),
            text(tags::SLICE_THICKNESS, VR::DS, "2.5"),
            text(tags::STUDY_INSTANCE_UID, VR::UI, "1.2.826.0.1.3680043.10.999.1"),
            text(tags::SERIES_INSTANCE_UID, VR::UI, "1.2.826.0.1.3680043.10.999.2"),
            text(tags::STUDY_ID, VR::SH, "S1"),
            text(tags::SERIES_NUMBER, VR::IS, "3"),
            text(tags::INSTANCE_NUMBER, VR::IS, (k + 1).to_string()),
            text(tags::IMAGE_POSITION_PATIENT, VR::DS, joined(&patient_mm([0.0, 0.0, k as f64]))),
            text(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, joined(&orientation)),
            text(tags::FRAME_OF_REFERENCE_UID, VR::UI, FRAME),
            text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
            DataElement::new(tags::SAMPLES_PER_PIXEL, VR::US, PrimitiveValue::from(1u16)),
            DataElement::new(tags::ROWS, VR::US, PrimitiveValue::from(SHAPE[1] as u16)),
            DataElement::new(tags::COLUMNS, VR::US, PrimitiveValue::from(SHAPE[0] as u16)),
            text(tags::PIXEL_SPACING, VR::DS, joined(&[SPACING_MM[1], SPACING_MM[0]])),
            DataElement::new(tags::BITS_ALLOCATED, VR::US, PrimitiveValue::from(16u16)),
            DataElement::new(tags::BITS_STORED, VR::US, PrimitiveValue::from(16u16)),
            DataElement::new(tags::HIGH_BIT, VR::US, PrimitiveValue::from(15u16)),
            DataElement::new(tags::PIXEL_REPRESENTATION, VR::US, PrimitiveValue::from(0u16)),
            DataElement::new(
                tags::PIXEL_DATA,
                VR::OW,
                PrimitiveValue::U16(pixels.into_iter().collect()),
            ),
        ]);
        save(slice, &images.join(format!("{:02}.dcm", (k * 5) % SHAPE[2])));
    }
    let series = dicom::read_series_geometry(&images, &SeriesChoice::Only).unwrap();
    assert_eq!(series.geometry.shape(), SHAPE);
    Case { folder, series }
}

pub(crate) fn save(object: InMemDicomObject, path: &Path) {
    let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    object.with_meta(meta).unwrap().write_to_file(path).unwrap();
}

pub(crate) fn described(grouping: Grouping) -> Description {
    Description {
        name: "Metastasis".to_owned(),
        grouping,
        algorithm: "DeepMedic".to_owned(),
        algorithm_version: "round 7".to_owned(),
        date: "20260203".to_owned(),
        time: "040506".to_owned(),
    }
}

/// A block with a hole that holds an island, two voxels that touch in an edge, a single voxel, and
/// a lesion in the far corner of the grid.
pub(crate) fn painted(geometry: &Geometry) -> Volume<u8> {
    let mut mask = Array3::<u8>::zeros(SHAPE);
    for ((i, j, k), voxel) in mask.indexed_iter_mut() {
        let block = (2..9).contains(&i) && (2..9).contains(&j) && (2..5).contains(&k);
        let hole = (3..8).contains(&i) && (4..7).contains(&j) && k == 3;
        let island = [i, j, k] == [5, 5, 3];
        let touching = [[11, 3, 6], [12, 4, 6]].contains(&[i, j, k]);
        let single = [i, j, k] == [12, 10, 1];
        let border = i >= SHAPE[0] - 2 && j >= SHAPE[1] - 3 && k >= SHAPE[2] - 2;
        *voxel = u8::from((block && !hole) || island || touching || single || border);
    }
    Volume::new(geometry.clone(), mask).unwrap()
}

pub(crate) fn names(parts: usize) -> Vec<String> {
    (1..=parts).map(|n| format!("Metastasis {n}")).collect()
}
