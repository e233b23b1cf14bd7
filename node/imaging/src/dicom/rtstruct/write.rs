//! A prediction as contours.

use std::path::Path;

use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use ndarray::{Array3, Axis, s};

use super::super::Series;
use super::super::composite::{
    self, Description, Part, decimals, divide, item, sequence, text, to_patient_mm,
};
use super::super::contour::trace;
use super::{CLOSED_PLANAR, Error};
use crate::volume::Volume;

/// Decimals of a coordinate in mm.
const DECIMALS: usize = 4;
/// Told apart on any image; lesion n takes colour n modulo their number.
const COLOURS: [&str; 8] = [
    "255\\64\\64",
    "64\\200\\64",
    "255\\200\\0",
    "0\\200\\255",
    "255\\0\\255",
    "160\\96\\255",
    "255\\128\\0",
    "0\\220\\180",
];

/// Writes a prediction (voxels above 0) on the grid of the series as an RT Structure Set that
/// references the series, unapproved. A prediction without lesions gives one region without
/// contours. The file appears whole or not at all.
pub fn write(
    path: &Path,
    series: &Series,
    prediction: &Volume<u8>,
    description: &Description,
) -> Result<(), Error> {
    let (labels, parts) = divide(path, series, prediction, description)?;
    let made_by = format!("{} {}", description.algorithm, description.algorithm_version);
    let mut object =
        composite::common(series, description, uids::RT_STRUCTURE_SET_STORAGE, "RTSTRUCT", "902");
    for element in [
        text(tags::OPERATORS_NAME, ""),
        text(tags::STRUCTURE_SET_LABEL, "Rondo"),
        text(tags::STRUCTURE_SET_NAME, "Machine prediction"),
        text(
            tags::STRUCTURE_SET_DESCRIPTION,
            format!("Predicted by a machine ({made_by}); not reviewed by a physician"),
        ),
        text(tags::STRUCTURE_SET_DATE, &description.date),
        text(tags::STRUCTURE_SET_TIME, &description.time),
        sequence(tags::REFERENCED_FRAME_OF_REFERENCE_SEQUENCE, vec![source(series)]),
        text(tags::APPROVAL_STATUS, "UNAPPROVED"),
    ] {
        object.put(element);
    }
    let mut described = Vec::new();
    let mut drawn = Vec::new();
    let mut observed = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        let number = (n + 1).to_string();
        described.push(item([
            text(tags::ROI_NUMBER, &number),
            text(tags::REFERENCED_FRAME_OF_REFERENCE_UID, &series.frame_of_reference_uid),
            text(tags::ROI_NAME, &part.name),
            text(tags::ROI_GENERATION_ALGORITHM, "AUTOMATIC"),
            text(tags::ROI_GENERATION_DESCRIPTION, clipped(&made_by)),
        ]));
        let mut region = item([
            text(tags::ROI_DISPLAY_COLOR, COLOURS[n % COLOURS.len()]),
            text(tags::REFERENCED_ROI_NUMBER, &number),
        ]);
        let contours = contours(series, &labels, part);
        if !contours.is_empty() {
            region.put(sequence(tags::CONTOUR_SEQUENCE, contours));
        }
        drawn.push(region);
        observed.push(item([
            text(tags::OBSERVATION_NUMBER, &number),
            text(tags::REFERENCED_ROI_NUMBER, &number),
            // What a volume is for in a plan is a physician's to say.
            text(tags::RTROI_INTERPRETED_TYPE, ""),
            text(tags::ROI_INTERPRETER, ""),
        ]));
    }
    object.put(sequence(tags::STRUCTURE_SET_ROI_SEQUENCE, described));
    object.put(sequence(tags::ROI_CONTOUR_SEQUENCE, drawn));
    object.put(sequence(tags::RTROI_OBSERVATIONS_SEQUENCE, observed));
    Ok(composite::write(path, object, uids::IMPLICIT_VR_LITTLE_ENDIAN)?)
}

fn clipped(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Frame of reference, study, series and all its images.
fn source(series: &Series) -> InMemDicomObject {
    let referenced = item([
        text(tags::SERIES_INSTANCE_UID, &series.series_uid),
        sequence(tags::CONTOUR_IMAGE_SEQUENCE, composite::instances(series)),
    ]);
    let study = item([
        // Retired, and what planning systems expect here.
        text(tags::REFERENCED_SOP_CLASS_UID, "1.2.840.10008.3.1.2.3.1"),
        text(tags::REFERENCED_SOP_INSTANCE_UID, &series.study_uid),
        sequence(tags::RT_REFERENCED_SERIES_SEQUENCE, vec![referenced]),
    ]);
    item([
        text(tags::FRAME_OF_REFERENCE_UID, &series.frame_of_reference_uid),
        sequence(tags::RT_REFERENCED_STUDY_SEQUENCE, vec![study]),
    ])
}

/// Contours of one region, slice by slice.
fn contours(series: &Series, labels: &Array3<u32>, part: &Part) -> Vec<InMemDicomObject> {
    let Some(lesion) = part.extent else { return Vec::new() };
    let [i, j, k] = [0, 1, 2].map(|axis| lesion.min[axis]..lesion.max[axis] + 1);
    let within = labels.slice(s![i, j, ..]);
    let mut contours = Vec::new();
    for k in k {
        let slice = within.index_axis(Axis(2), k).map(|v| u8::from(*v == part.label));
        for outline in trace(slice.view()) {
            let points = outline.keyhole();
            let mut coordinates = Vec::with_capacity(3 * points.len());
            for [i, j] in &points {
                let (i, j) = (i + lesion.min[0] as f64, j + lesion.min[1] as f64);
                coordinates.extend(to_patient_mm(&series.geometry, [i, j, k as f64]));
            }
            contours.push(item([
                sequence(tags::CONTOUR_IMAGE_SEQUENCE, vec![composite::reference(series, k)]),
                text(tags::CONTOUR_GEOMETRIC_TYPE, CLOSED_PLANAR),
                text(tags::NUMBER_OF_CONTOUR_POINTS, points.len().to_string()),
                text(tags::CONTOUR_NUMBER, (contours.len() + 1).to_string()),
                decimals(tags::CONTOUR_DATA, &coordinates, DECIMALS),
            ]));
        }
    }
    contours
}
