//! A prediction as a binary segmentation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use dicom_object::mem::InMemElement;
use ndarray::Array3;

use super::super::Series;
use super::super::composite::{
    self, Description, Part, code, decimals, derived_uid, divide, item, number, sequence, text,
    to_patient_mm,
};
use super::Error;
use crate::volume::{Geometry, Volume};

/// Decimals of positions, directions and spacings; cut to 16 bytes where they do not fit.
const DECIMALS: usize = 14;

/// Writes a prediction (voxels above 0) on the grid of the series as a BINARY Segmentation that
/// references the series, one segment for all lesions or for each. The file appears whole or not at
/// all.
pub fn write(
    path: &Path,
    series: &Series,
    prediction: &Volume<u8>,
    description: &Description,
) -> Result<(), Error> {
    let (labels, parts) = divide(path, series, prediction, description)?;
    let [columns, rows, slices] = series.geometry.shape();
    let size = |n: usize, what: &str| {
        u16::try_from(n).map_err(|_| composite::Error::Series {
            path: path.into(),
            what: format!("{n} {what}, more than an image can have"),
        })
    };
    let (columns, rows) = (size(columns, "columns")?, size(rows, "rows")?);
    let frames = frames(&labels, slices);
    let mut object =
        composite::common(series, description, uids::SEGMENTATION_STORAGE, "SEG", "901");
    for element in [
        text(tags::IMAGE_TYPE, "DERIVED\\PRIMARY"),
        text(tags::CONTENT_DATE, &description.date),
        text(tags::CONTENT_TIME, &description.time),
        sequence(
            tags::REFERENCED_SERIES_SEQUENCE,
            vec![item([
                text(tags::SERIES_INSTANCE_UID, &series.series_uid),
                sequence(tags::REFERENCED_INSTANCE_SEQUENCE, composite::instances(series)),
            ])],
        ),
        number(tags::SAMPLES_PER_PIXEL, 1),
        text(tags::PHOTOMETRIC_INTERPRETATION, "MONOCHROME2"),
        text(tags::NUMBER_OF_FRAMES, frames.len().to_string()),
        number(tags::ROWS, rows),
        number(tags::COLUMNS, columns),
        number(tags::BITS_ALLOCATED, 1),
        number(tags::BITS_STORED, 1),
        number(tags::HIGH_BIT, 0),
        number(tags::PIXEL_REPRESENTATION, 0),
        text(tags::LOSSY_IMAGE_COMPRESSION, "00"),
        text(tags::CONTENT_LABEL, "PREDICTION"),
        text(tags::CONTENT_DESCRIPTION, "Machine prediction, not reviewed"),
        text(tags::CONTENT_CREATOR_NAME, ""),
        text(tags::SEGMENTATION_TYPE, "BINARY"),
        text(tags::SEGMENTS_OVERLAP, "NO"),
        sequence(
            tags::SEGMENT_SEQUENCE,
            parts.iter().zip(1..).map(|(part, n)| segment(part, n, description)).collect(),
        ),
        sequence(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared(&series.geometry)]),
        sequence(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, per_frame(series, &frames)),
        DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(packed(&labels, &frames))),
    ] {
        object.put(element);
    }
    for element in dimensions(series) {
        object.put(element);
    }
    Ok(composite::write(path, object, uids::EXPLICIT_VR_LITTLE_ENDIAN)?)
}

/// One slice of one segment.
struct Frame {
    /// Value in the labels, which is the number of the segment.
    label: u32,
    k: usize,
}

/// Segment by segment, slice by slice.
fn frames(labels: &Array3<u32>, slices: usize) -> Vec<Frame> {
    let occupied = labels.indexed_iter().filter(|(_, label)| **label > 0);
    let occupied: BTreeSet<_> = occupied.map(|((_, _, k), label)| (*label, k)).collect();
    let nothing = Frame { label: 1, k: slices / 2 };
    if occupied.is_empty() {
        return vec![nothing];
    }
    occupied.into_iter().map(|(label, k)| Frame { label, k }).collect()
}

/// Least significant bit first, frames without padding between them, the whole of even length.
fn packed(labels: &Array3<u32>, frames: &[Frame]) -> Vec<u8> {
    let (columns, rows, _) = labels.dim();
    let numbers: BTreeMap<_, _> =
        frames.iter().zip(0usize..).map(|(f, n)| ((f.label, f.k), n)).collect();
    let mut bytes = vec![0u8; (frames.len() * columns * rows).div_ceil(16) * 2];
    for ((i, j, k), label) in labels.indexed_iter().filter(|(_, label)| **label > 0) {
        if let Some(n) = numbers.get(&(*label, k)) {
            let bit = (n * rows + j) * columns + i;
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    bytes
}

/// Codes: segmented property category of CID 7150, type of CID 7159, family of CID 7162.
fn segment(part: &Part, n: u16, description: &Description) -> InMemDicomObject {
    item([
        number(tags::SEGMENT_NUMBER, n),
        text(tags::SEGMENT_LABEL, &part.name),
        text(tags::SEGMENT_ALGORITHM_TYPE, "AUTOMATIC"),
        text(tags::SEGMENT_ALGORITHM_NAME, &description.algorithm),
        sequence(
            tags::SEGMENTATION_ALGORITHM_IDENTIFICATION_SEQUENCE,
            vec![item([
                code(
                    tags::ALGORITHM_FAMILY_CODE_SEQUENCE,
                    "123109",
                    "DCM",
                    "Artificial Intelligence",
                ),
                text(tags::ALGORITHM_NAME, &description.algorithm),
                text(tags::ALGORITHM_VERSION, &description.algorithm_version),
            ])],
        ),
        code(
            tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE,
            "49755003",
            "SCT",
            "Morphologically Abnormal Structure",
        ),
        code(tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, "14799000", "SCT", "Neoplasm, Secondary"),
        code(tags::ANATOMIC_REGION_SEQUENCE, "12738006", "SCT", "Brain"),
    ])
}

fn shared(geometry: &Geometry) -> InMemDicomObject {
    let [column_mm, row_mm, slice_mm] = geometry.spacing_mm();
    let origin = to_patient_mm(geometry, [0.0; 3]);
    let towards = |index: [f64; 3], mm: f64| {
        let there = to_patient_mm(geometry, index);
        [0, 1, 2].map(|axis| (there[axis] - origin[axis]) / mm)
    };
    let along_row = towards([1.0, 0.0, 0.0], column_mm);
    let along_column = towards([0.0, 1.0, 0.0], row_mm);
    item([
        sequence(
            tags::PLANE_ORIENTATION_SEQUENCE,
            vec![item([decimals(
                tags::IMAGE_ORIENTATION_PATIENT,
                &[along_row, along_column].concat(),
                DECIMALS,
            )])],
        ),
        sequence(
            tags::PIXEL_MEASURES_SEQUENCE,
            vec![item([
                decimals(tags::SLICE_THICKNESS, &[slice_mm], DECIMALS),
                decimals(tags::SPACING_BETWEEN_SLICES, &[slice_mm], DECIMALS),
                decimals(tags::PIXEL_SPACING, &[row_mm, column_mm], DECIMALS),
            ])],
        ),
    ])
}

fn per_frame(series: &Series, frames: &[Frame]) -> Vec<InMemDicomObject> {
    let used: BTreeSet<usize> = frames.iter().map(|frame| frame.k).collect();
    let used: Vec<usize> = used.into_iter().collect();
    frames
        .iter()
        .map(|frame| {
            let position = used.partition_point(|k| *k < frame.k) as u32 + 1;
            let mut source = composite::reference(series, frame.k);
            source.put(text(tags::SPATIAL_LOCATIONS_PRESERVED, "YES"));
            source.put(code(
                tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE,
                "121322",
                "DCM",
                "Source image for image processing operation",
            ));
            let corner = to_patient_mm(&series.geometry, [0.0, 0.0, frame.k as f64]);
            item([
                sequence(
                    tags::DERIVATION_IMAGE_SEQUENCE,
                    vec![item([
                        sequence(tags::SOURCE_IMAGE_SEQUENCE, vec![source]),
                        code(tags::DERIVATION_CODE_SEQUENCE, "113076", "DCM", "Segmentation"),
                    ])],
                ),
                sequence(
                    tags::FRAME_CONTENT_SEQUENCE,
                    vec![item([DataElement::new(
                        tags::DIMENSION_INDEX_VALUES,
                        VR::UL,
                        PrimitiveValue::U32([frame.label, position].into_iter().collect()),
                    )])],
                ),
                sequence(
                    tags::PLANE_POSITION_SEQUENCE,
                    vec![item([decimals(tags::IMAGE_POSITION_PATIENT, &corner, DECIMALS)])],
                ),
                sequence(
                    tags::SEGMENT_IDENTIFICATION_SEQUENCE,
                    vec![item([number(tags::REFERENCED_SEGMENT_NUMBER, frame.label as u16)])],
                ),
            ])
        })
        .collect()
}

/// Segment, then position.
fn dimensions(series: &Series) -> [InMemElement; 2] {
    let uid = derived_uid(series.series_uid.as_bytes(), "segment and position");
    let dimension = |pointer, group, label: &str| {
        item([
            text(tags::DIMENSION_ORGANIZATION_UID, &uid),
            DataElement::new(tags::DIMENSION_INDEX_POINTER, VR::AT, PrimitiveValue::from(pointer)),
            DataElement::new(tags::FUNCTIONAL_GROUP_POINTER, VR::AT, PrimitiveValue::from(group)),
            text(tags::DIMENSION_DESCRIPTION_LABEL, label),
        ])
    };
    [
        sequence(
            tags::DIMENSION_ORGANIZATION_SEQUENCE,
            vec![item([text(tags::DIMENSION_ORGANIZATION_UID, &uid)])],
        ),
        sequence(
            tags::DIMENSION_INDEX_SEQUENCE,
            vec![
                dimension(
                    tags::REFERENCED_SEGMENT_NUMBER,
                    tags::SEGMENT_IDENTIFICATION_SEQUENCE,
                    "Segment",
                ),
                dimension(tags::IMAGE_POSITION_PATIENT, tags::PLANE_POSITION_SEQUENCE, "Position"),
            ],
        ),
    ]
}
