//! What the composite objects written of a prediction share: who and when, patient and study,
//! equipment, references to the source images, identifiers, encoding.

use std::path::{Path, PathBuf};

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags};
use dicom_object::mem::InMemElement;
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use ndarray::Array3;
use sha2::{Digest, Sha256};

use super::Series;
use crate::durable;
use crate::lesion::{Connectivity, Lesion, components};
use crate::volume::{Geometry, Volume};

/// A label with its number has to fit 64 characters (LO, PS3.5 table 6.2-1).
const MAX_NAME_CHARS: usize = 56;
const MAX_TEXT_CHARS: usize = 64;
/// Segment numbers are 16 bits wide.
const MAX_PARTS: usize = u16::MAX as usize;

/// Why an object cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The prediction is not on the series' grid.
    #[error(
        "writing {}: the prediction does not lie on the grid of the series ({difference}); bring it back onto that grid first",
        path.display()
    )]
    OtherGrid {
        /// File to be written.
        path: PathBuf,
        /// What sets the grids apart.
        difference: String,
    },
    /// The series lacks what an object that references it must repeat.
    #[error("writing {}: the series has {what}; an object that references it cannot be made", path.display())]
    Series {
        /// File to be written.
        path: PathBuf,
        /// What it lacks.
        what: String,
    },
    /// A text that does not fit its attribute.
    #[error("writing {}: {what}", path.display())]
    Description {
        /// File to be written.
        path: PathBuf,
        /// Which text, and what it must be.
        what: String,
    },
    /// More lesions than can be numbered.
    #[error(
        "writing {}: {count} lesions, but at most {MAX_PARTS} can be numbered; write them as one",
        path.display()
    )]
    Parts {
        /// File to be written.
        path: PathBuf,
        /// Lesions found.
        count: usize,
    },
    /// The encoder refuses.
    #[error("encoding {}: {why}", path.display())]
    Encode {
        /// File to be written.
        path: PathBuf,
        /// What the encoder says.
        why: String,
    },
    /// The disk refuses.
    #[error("writing {}: {source}", path.display())]
    Io {
        /// File to be written.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// How the voxels of a prediction become regions of interest or segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grouping {
    /// All in one.
    #[default]
    Whole,
    /// One for each lesion, numbered from 1 in the order of their first voxel.
    PerLesion(Connectivity),
}

/// What a written object says about the prediction. The library has no clock: the same description
/// of the same prediction gives the same bytes, identifiers included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Name of the region of interest or segment, for example `Metastasis`; up to 56 characters.
    pub name: String,
    /// One region for all, or one for each lesion.
    pub grouping: Grouping,
    /// Name of what predicted, up to 64 characters.
    pub algorithm: String,
    /// Its version, for example a checkpoint's digest, up to 64 characters.
    pub algorithm_version: String,
    /// Day of the prediction, `YYYYMMDD`.
    pub date: String,
    /// Time of the prediction, `HHMMSS`.
    pub time: String,
}

impl Description {
    fn check(&self, path: &Path) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Description { path: path.into(), what });
        for (what, text, most) in [
            ("the name of a region", &self.name, MAX_NAME_CHARS),
            ("the name of the algorithm", &self.algorithm, MAX_TEXT_CHARS),
            ("the version of the algorithm", &self.algorithm_version, MAX_TEXT_CHARS),
        ] {
            let fits = text.chars().count() <= most && !text.trim().is_empty();
            if !fits || text.chars().any(|c| c == '\\' || c.is_control()) {
                return refuse(format!(
                    "{what} needs 1 to {most} characters without backslash or control characters"
                ));
            }
        }
        let number = |text: &str, range: std::ops::Range<usize>| {
            text.get(range).and_then(|t| t.parse::<u32>().ok())
        };
        let digits = |text: &str, n| text.len() == n && text.bytes().all(|b| b.is_ascii_digit());
        let date = digits(&self.date, 8)
            && number(&self.date, 4..6).is_some_and(|m| (1..=12).contains(&m))
            && number(&self.date, 6..8).is_some_and(|d| (1..=31).contains(&d));
        let time = digits(&self.time, 6)
            && number(&self.time, 0..2).is_some_and(|h| h < 24)
            && number(&self.time, 2..4).is_some_and(|m| m < 60)
            && number(&self.time, 4..6).is_some_and(|s| s < 60);
        if !date || !time {
            return refuse(format!(
                "the date {:?} and time {:?} of the prediction need the forms YYYYMMDD and HHMMSS",
                self.date, self.time
            ));
        }
        Ok(())
    }
}

/// One region of interest or segment of a prediction.
pub(super) struct Part {
    /// Its label, numbered if there is one for each lesion.
    pub(super) name: String,
    /// Its value in the labels, and its number from 1.
    pub(super) label: u32,
    /// Where it lies; `None` for a prediction without lesions.
    pub(super) extent: Option<Lesion>,
}

/// Checks that series, prediction and description fit together, and divides the prediction.
/// A prediction without lesions has one empty part, so that "nothing found" can be written.
pub(super) fn divide(
    path: &Path,
    series: &Series,
    prediction: &Volume<u8>,
    description: &Description,
) -> Result<(Array3<u32>, Vec<Part>), Error> {
    description.check(path)?;
    if let Some(difference) = series.geometry.difference(prediction.geometry()) {
        return Err(Error::OtherGrid { path: path.into(), difference });
    }
    let slices = series.geometry.shape()[2];
    let lacks = if series.slices.len() != slices {
        Some(format!("{} images for {slices} slices", series.slices.len()))
    } else if series.frame_of_reference_uid.is_empty() {
        Some("no Frame of Reference UID (0020,0052)".to_owned())
    } else if series.study_uid.is_empty() || series.series_uid.is_empty() {
        Some("no Study or Series Instance UID".to_owned())
    } else {
        None
    };
    if let Some(what) = lacks {
        return Err(Error::Series { path: path.into(), what });
    }
    let (labels, found) = match description.grouping {
        Grouping::PerLesion(connectivity) => {
            let lesions = components(prediction.data(), connectivity);
            (lesions.labels, lesions.list)
        }
        Grouping::Whole => whole(prediction.data()),
    };
    if found.len() > MAX_PARTS {
        return Err(Error::Parts { path: path.into(), count: found.len() });
    }
    let mut parts: Vec<Part> = (1u32..)
        .zip(found)
        .map(|(label, lesion)| Part {
            name: match description.grouping {
                Grouping::Whole => description.name.clone(),
                Grouping::PerLesion(_) => format!("{} {label}", description.name),
            },
            label,
            extent: Some(lesion),
        })
        .collect();
    if parts.is_empty() {
        parts.push(Part { name: description.name.clone(), label: 1, extent: None });
    }
    Ok((labels, parts))
}

fn whole(mask: &Array3<u8>) -> (Array3<u32>, Vec<Lesion>) {
    let mut all = Lesion { voxels: 0, min: [usize::MAX; 3], max: [0; 3] };
    for ((i, j, k), _) in mask.indexed_iter().filter(|(_, v)| **v > 0) {
        all.voxels += 1;
        for (axis, at) in [i, j, k].into_iter().enumerate() {
            all.min[axis] = all.min[axis].min(at);
            all.max[axis] = all.max[axis].max(at);
        }
    }
    let list = if all.voxels == 0 { Vec::new() } else { vec![all] };
    (mask.map(|v| u32::from(*v > 0)), list)
}

/// Modules Patient, General Study, General Equipment (enhanced) and SOP Common, with the title the
/// series shall have. Text is UTF-8.
pub(super) fn common(
    series: &Series,
    description: &Description,
    sop_class: &str,
    modality: &str,
    number: &str,
) -> InMemDicomObject {
    let identity = &series.identity;
    item([
        text(tags::SPECIFIC_CHARACTER_SET, "ISO_IR 192"),
        text(tags::INSTANCE_CREATION_DATE, &description.date),
        text(tags::INSTANCE_CREATION_TIME, &description.time),
        text(tags::SOP_CLASS_UID, sop_class),
        text(tags::STUDY_DATE, &identity.study_date),
        text(tags::STUDY_TIME, &identity.study_time),
        text(tags::ACCESSION_NUMBER, &identity.accession_number),
        text(tags::MODALITY, modality),
        text(tags::MANUFACTURER, "Rondo"),
        text(tags::MANUFACTURER_MODEL_NAME, "Rondo"),
        text(tags::REFERRING_PHYSICIAN_NAME, &identity.referring_physician_name),
        text(tags::SERIES_DESCRIPTION, "Machine prediction, not reviewed"),
        text(tags::SERIES_DATE, &description.date),
        text(tags::SERIES_TIME, &description.time),
        text(tags::PATIENT_NAME, &identity.patient_name),
        text(tags::PATIENT_ID, &identity.patient_id),
        text(tags::PATIENT_BIRTH_DATE, &identity.patient_birth_date),
        text(tags::PATIENT_SEX, &identity.patient_sex),
        // Software without a serial number: Enhanced General Equipment wants one nevertheless.
        text(tags::DEVICE_SERIAL_NUMBER, "0"),
        text(tags::SOFTWARE_VERSIONS, env!("CARGO_PKG_VERSION")),
        text(tags::STUDY_INSTANCE_UID, &series.study_uid),
        text(tags::STUDY_ID, &identity.study_id),
        text(tags::SERIES_NUMBER, number),
        text(tags::INSTANCE_NUMBER, "1"),
        text(tags::FRAME_OF_REFERENCE_UID, &series.frame_of_reference_uid),
        text(tags::POSITION_REFERENCE_INDICATOR, ""),
    ])
}

/// Gives the object its identifiers, which follow from everything else in it, and writes it.
pub(super) fn write(
    path: &Path,
    mut object: InMemDicomObject,
    transfer_syntax: &str,
) -> Result<(), Error> {
    let encode = |why: String| Error::Encode { path: path.into(), why };
    let draft = encoded(object.clone(), transfer_syntax).map_err(encode)?;
    let digest = Sha256::digest(&draft);
    drop(draft);
    object.put(text(tags::SERIES_INSTANCE_UID, derived_uid(&digest, "series")));
    object.put(text(tags::SOP_INSTANCE_UID, derived_uid(&digest, "instance")));
    let bytes = encoded(object, transfer_syntax).map_err(encode)?;
    durable::write(path, &bytes).map_err(|source| Error::Io { path: path.into(), source })
}

fn encoded(mut object: InMemDicomObject, transfer_syntax: &str) -> Result<Vec<u8>, String> {
    if object.get(tags::SOP_INSTANCE_UID).is_none() {
        object.put(text(tags::SOP_INSTANCE_UID, "2.25.0"));
    }
    let meta = FileMetaTableBuilder::new().transfer_syntax(transfer_syntax);
    let mut bytes = Vec::new();
    object
        .with_meta(meta)
        .map_err(|e| e.to_string())?
        .write_all(&mut bytes)
        .map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// A UID of the form 2.25.UUID (PS3.5 B.2) that follows from `content` and its role; the UUID is of
/// the custom version, 8 (RFC 9562 section 5.8).
pub(super) fn derived_uid(content: &[u8], role: &str) -> String {
    let digest = Sha256::new_with_prefix(role).chain_update([0]).chain_update(content).finalize();
    let mut id = [0u8; 16];
    id.copy_from_slice(&digest[..16]);
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    format!("2.25.{}", u128::from_be_bytes(id))
}

/// SOP Instance Reference of the image behind slice `k`, empty where there is none.
pub(super) fn reference(series: &Series, k: usize) -> InMemDicomObject {
    let Some(slice) = series.slices.get(k) else { return InMemDicomObject::new_empty() };
    let mut item = item([
        text(tags::REFERENCED_SOP_CLASS_UID, &slice.sop_class_uid),
        text(tags::REFERENCED_SOP_INSTANCE_UID, &slice.sop_instance_uid),
    ]);
    if let Some(frame) = slice.frame {
        item.put(text(tags::REFERENCED_FRAME_NUMBER, frame.to_string()));
    }
    item
}

/// One reference for each instance of the series, without frames.
pub(super) fn instances(series: &Series) -> Vec<InMemDicomObject> {
    let mut seen = std::collections::HashSet::new();
    let slices = series.slices.iter().filter(|slice| seen.insert(&slice.sop_instance_uid));
    slices
        .map(|slice| {
            item([
                text(tags::REFERENCED_SOP_CLASS_UID, &slice.sop_class_uid),
                text(tags::REFERENCED_SOP_INSTANCE_UID, &slice.sop_instance_uid),
            ])
        })
        .collect()
}

/// Voxel index to patient millimetres as DICOM has them: x to the left, y to the back (LPS).
pub(super) fn to_patient_mm(geometry: &Geometry, index: [f64; 3]) -> [f64; 3] {
    let [i, j, k] = index;
    let ras = geometry.affine() * nalgebra::Vector4::new(i, j, k, 1.0);
    [-ras[0], -ras[1], ras[2]]
}

/// Patient millimetres (LPS) to voxel index; `None` for a grid that cannot be inverted.
pub(super) fn from_patient_mm(geometry: &Geometry) -> Option<impl Fn([f64; 3]) -> [f64; 3]> {
    let inverse = geometry.affine().try_inverse()?;
    Some(move |[x, y, z]: [f64; 3]| {
        let index = inverse * nalgebra::Vector4::new(-x, -y, z, 1.0);
        [index[0], index[1], index[2]]
    })
}

pub(super) fn item<const N: usize>(elements: [InMemElement; N]) -> InMemDicomObject {
    InMemDicomObject::from_element_iter(elements)
}

/// A textual element with the representation the dictionary gives it.
pub(super) fn text(tag: Tag, value: impl Into<String>) -> InMemElement {
    let vr = StandardDataDictionary.by_tag(tag).map_or(VR::UN, |entry| entry.vr().relaxed());
    DataElement::new(tag, vr, value.into())
}

pub(super) fn number(tag: Tag, value: u16) -> InMemElement {
    DataElement::new(tag, VR::US, PrimitiveValue::from(value))
}

pub(super) fn sequence(tag: Tag, items: Vec<InMemDicomObject>) -> InMemElement {
    DataElement::new(tag, VR::SQ, DataSetSequence::from(items))
}

/// A code of a terminology, for the one item of a code sequence.
pub(super) fn code(tag: Tag, value: &str, scheme: &str, meaning: &str) -> InMemElement {
    sequence(
        tag,
        vec![item([
            text(tags::CODE_VALUE, value),
            text(tags::CODING_SCHEME_DESIGNATOR, scheme),
            text(tags::CODE_MEANING, meaning),
        ])],
    )
}

/// Decimal strings of at most 16 bytes each and at most `places` decimals.
pub(super) fn decimals(tag: Tag, values: &[f64], places: usize) -> InMemElement {
    let values: Vec<String> = values.iter().map(|v| decimal(*v, places)).collect();
    text(tag, values.join("\\"))
}

pub(super) fn decimal(value: f64, places: usize) -> String {
    for places in (0..=places).rev() {
        let text = format!("{value:.places$}");
        if text.len() <= 16 {
            let text = match text.split_once('.') {
                Some(_) => text.trim_end_matches('0').trim_end_matches('.'),
                None => &text,
            };
            return if text == "-0" { "0".to_owned() } else { text.to_owned() };
        }
    }
    format!("{value:.7e}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn decimal_strings_fit_sixteen_bytes() {
        for (value, places, text) in [
            (0.5, 13, "0.5"),
            (-0.00000001, 4, "0"),
            (-1.0 / 3.0, 15, "-0.3333333333333"),
            (100.0, 4, "100"),
            (123_456_789_012.345_67, 4, "123456789012.346"),
            (-1e300, 4, "-1.0000000e300"),
        ] {
            assert_eq!(decimal(value, places), text);
            assert!(decimal(value, places).len() <= 16);
        }
    }

    #[test]
    fn identifiers_follow_from_content_and_role() {
        let uid = derived_uid(b"content", "series");
        assert_eq!(uid, derived_uid(b"content", "series"));
        assert_ne!(uid, derived_uid(b"content", "instance"));
        assert_ne!(uid, derived_uid(b"contents", "series"));
        let id: u128 = uid.strip_prefix("2.25.").unwrap().parse().unwrap();
        assert_eq!((id >> 76 & 0xf, id >> 62 & 0x3), (8, 2));
        assert!(uid.len() <= 64);
    }

    #[test]
    fn a_description_that_fits_no_attribute_is_refused() {
        let good = Description {
            name: "Metastasis".to_owned(),
            grouping: Grouping::Whole,
            algorithm: "DeepMedic".to_owned(),
            algorithm_version: "1".to_owned(),
            date: "20260228".to_owned(),
            time: "235959".to_owned(),
        };
        let path = Path::new("out.dcm");
        good.check(path).unwrap();
        let change = |f: fn(&mut Description)| {
            let mut bad = good.clone();
            f(&mut bad);
            bad.check(path).unwrap_err().to_string()
        };
        assert!(change(|d| d.name = "a\\b".to_owned()).contains("backslash"));
        assert!(change(|d| d.name = " ".to_owned()).contains("1 to 56"));
        assert!(change(|d| d.algorithm = "x".repeat(65)).contains("the algorithm"));
        assert!(change(|d| d.date = "20261301".to_owned()).contains("YYYYMMDD"));
        assert!(change(|d| d.time = "2400".to_owned()).contains("HHMMSS"));
    }
}
