//! What one file says of itself: which series it belongs to, how its voxels are stored, and where
//! its planes lie.

use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_core::header::HasLength;
use dicom_core::value::Value;
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use dicom_transfer_syntax_registry::entries::EXPLICIT_VR_LITTLE_ENDIAN;

use super::choose;
use super::elements::{self, PixelData};
use super::{Cause, Identity};
use crate::nifti::MAX_EDGE;

/// Longest description that is kept, in characters.
const MAX_WORDS: usize = 64;
/// Longest attribute of a patient or study that is kept: three groups of 64 characters and more.
const MAX_TEXT: usize = 256;

/// How samples are stored, PS3.3 C.7.6.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PixelFormat {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// 8, 16 or 32.
    pub(super) bits_allocated: u32,
    pub(super) bits_stored: u32,
    pub(super) high_bit: u32,
    pub(super) signed: bool,
}

impl PixelFormat {
    /// Bytes of one uncompressed frame.
    pub(super) fn frame_bytes(&self) -> usize {
        self.rows * self.columns * (self.bits_allocated / 8) as usize
    }
}

/// One plane, PS3.3 C.7.6.2.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frame {
    /// Centre of the first voxel, LPS mm.
    pub(super) position: [f64; 3],
    /// Direction of a row, then of a column.
    pub(super) orientation: [f64; 6],
    /// Between rows, then between columns.
    pub(super) spacing_mm: [f64; 2],
    pub(super) thickness_mm: Option<f64>,
    pub(super) slope: f64,
    pub(super) intercept: f64,
}

/// A file of one series.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    pub(super) syntax: String,
    pub(super) sop_class_uid: String,
    pub(super) sop_instance_uid: String,
    pub(super) series_uid: String,
    pub(super) study_uid: String,
    pub(super) frame_of_reference_uid: String,
    pub(super) modality: String,
    pub(super) description: String,
    pub(super) t1_contrast: bool,
    pub(super) instance_number: Option<i64>,
    pub(super) images_in_acquisition: Option<i64>,
    pub(super) frames: usize,
    pub(super) identity: Identity,
    pub(super) pixels: Option<PixelData>,
    pub(super) deflated_at: u64,
    /// Format and planes, or what is wrong with them; that counts only for the chosen series.
    pub(super) content: Result<(PixelFormat, Vec<Frame>), Cause>,
}

/// Reads a file's attributes; `None` where it is no DICOM file.
///
/// A damaged file is an error only where its series cannot be told.
pub(super) fn read(path: &Path) -> Result<Option<Image>, Cause> {
    let Some(scanned) = elements::scan(path, &elements::IMAGE)? else { return Ok(None) };
    let parsed = InMemDicomObject::read_dataset_with_ts(
        scanned.elements.as_slice(),
        &EXPLICIT_VR_LITTLE_ENDIAN.erased(),
    )
    .map_err(|_| Cause::Header("an attribute cannot be understood"));
    let data = match (parsed, &scanned.broken) {
        (Ok(data), _) => data,
        (Err(_), Some(_)) => InMemDicomObject::new_empty(),
        (Err(cause), None) => return Err(cause),
    };
    let data = Attributes(&data);
    let series_uid = data.uid(tags::SERIES_INSTANCE_UID);
    let content = match scanned.broken {
        Some(cause) if series_uid.is_empty() => return Err(cause),
        Some(cause) => Err(cause),
        None => content(data),
    };
    let description = data.words(tags::SERIES_DESCRIPTION);
    Ok(Some(Image {
        path: path.to_path_buf(),
        syntax: scanned.syntax,
        sop_class_uid: data.uid(tags::SOP_CLASS_UID),
        sop_instance_uid: data.uid(tags::SOP_INSTANCE_UID),
        series_uid,
        study_uid: data.uid(tags::STUDY_INSTANCE_UID),
        frame_of_reference_uid: data.uid(tags::FRAME_OF_REFERENCE_UID),
        modality: data.words(tags::MODALITY),
        t1_contrast: choose::says_t1_contrast(&choose::Said {
            names: format!("{description} {}", data.words(tags::PROTOCOL_NAME)),
            agent: data.words(tags::CONTRAST_BOLUS_AGENT),
            agent_sequence: data.items(tags::CONTRAST_BOLUS_AGENT_SEQUENCE).next().is_some(),
            acquisition_contrast: data.words(tags::ACQUISITION_CONTRAST),
            image_type: data.words(tags::IMAGE_TYPE),
        }),
        description,
        instance_number: data.whole(tags::INSTANCE_NUMBER),
        images_in_acquisition: data.whole(tags::IMAGES_IN_ACQUISITION),
        frames: data.whole(tags::NUMBER_OF_FRAMES).map_or(1, |n| n.clamp(1, 1 << 20) as usize),
        identity: identity(data),
        pixels: scanned.pixels,
        deflated_at: scanned.deflated_at,
        content,
    }))
}

fn identity(data: Attributes<'_>) -> Identity {
    let text = |tag| data.text(tag).unwrap_or_default();
    Identity {
        patient_name: text(tags::PATIENT_NAME),
        patient_id: text(tags::PATIENT_ID),
        patient_birth_date: text(tags::PATIENT_BIRTH_DATE),
        patient_sex: text(tags::PATIENT_SEX),
        study_instance_uid: data.uid(tags::STUDY_INSTANCE_UID),
        study_date: text(tags::STUDY_DATE),
        study_time: text(tags::STUDY_TIME),
        study_id: text(tags::STUDY_ID),
        accession_number: text(tags::ACCESSION_NUMBER),
        referring_physician_name: text(tags::REFERRING_PHYSICIAN_NAME),
    }
}

fn content(data: Attributes<'_>) -> Result<(PixelFormat, Vec<Frame>), Cause> {
    let format = pixel_format(data)?;
    if data.items(tags::MODALITY_LUT_SEQUENCE).next().is_some() {
        return Err(Cause::LookupTable);
    }
    let count = data.whole(tags::NUMBER_OF_FRAMES).unwrap_or(1);
    if !(1..=MAX_EDGE as i64).contains(&count) {
        return Err(Cause::Invalid("NumberOfFrames"));
    }
    let sop_class = data.uid(tags::SOP_CLASS_UID);
    let enhanced =
        [uids::ENHANCED_MR_IMAGE_STORAGE, uids::LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE]
            .contains(&sop_class.as_str());
    if !enhanced {
        if count > 1 {
            return Err(Cause::MultiFrame { frames: count });
        }
        return Ok((format, vec![plain_frame(data)?]));
    }
    let shared: Vec<_> = data.items(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE).collect();
    let each: Vec<_> = data.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).collect();
    if each.len() as i64 != count {
        return Err(Cause::FunctionalGroups { frames: count, groups: each.len() });
    }
    let frames = each.into_iter().map(|own| enhanced_frame(own, shared.first().copied()));
    Ok((format, frames.collect::<Result<_, _>>()?))
}

fn pixel_format(data: Attributes<'_>) -> Result<PixelFormat, Cause> {
    let number = |tag, name| data.whole(tag).ok_or(Cause::Missing(name));
    let (rows, columns) = (number(tags::ROWS, "Rows")?, number(tags::COLUMNS, "Columns")?);
    if [rows, columns].iter().any(|n| !(1..=MAX_EDGE as i64).contains(n)) {
        return Err(Cause::Dimensions { rows, columns });
    }
    let photometric = data.words(tags::PHOTOMETRIC_INTERPRETATION);
    match photometric.as_str() {
        "MONOCHROME2" => {}
        "MONOCHROME1" => return Err(Cause::Inverted),
        "" => return Err(Cause::Missing("PhotometricInterpretation")),
        _ => return Err(Cause::Colour),
    }
    if data.whole(tags::SAMPLES_PER_PIXEL).unwrap_or(1) != 1 {
        return Err(Cause::Colour);
    }
    let allocated = number(tags::BITS_ALLOCATED, "BitsAllocated")?;
    let stored = data.whole(tags::BITS_STORED).unwrap_or(allocated);
    let high = data.whole(tags::HIGH_BIT).unwrap_or(stored - 1);
    if ![8, 16, 32].contains(&allocated)
        || !(1..=allocated).contains(&stored)
        || !(stored - 1..allocated).contains(&high)
    {
        return Err(Cause::Bits { allocated, stored, high });
    }
    Ok(PixelFormat {
        rows: rows as usize,
        columns: columns as usize,
        bits_allocated: allocated as u32,
        bits_stored: stored as u32,
        high_bit: high as u32,
        signed: number(tags::PIXEL_REPRESENTATION, "PixelRepresentation")? == 1,
    })
}

fn plain_frame(data: Attributes<'_>) -> Result<Frame, Cause> {
    Ok(Frame {
        position: data.need(tags::IMAGE_POSITION_PATIENT, "ImagePositionPatient")?,
        orientation: data.need(tags::IMAGE_ORIENTATION_PATIENT, "ImageOrientationPatient")?,
        spacing_mm: data.need(tags::PIXEL_SPACING, "PixelSpacing")?,
        thickness_mm: data.number(tags::SLICE_THICKNESS, "SliceThickness")?,
        slope: data.number(tags::RESCALE_SLOPE, "RescaleSlope")?.unwrap_or(1.0),
        intercept: data.number(tags::RESCALE_INTERCEPT, "RescaleIntercept")?.unwrap_or(0.0),
    })
}

/// Functional groups of PS3.3 C.7.6.16.2; a frame's own group wins over the shared one.
fn enhanced_frame(own: Attributes<'_>, shared: Option<Attributes<'_>>) -> Result<Frame, Cause> {
    let group = |tag, name| {
        own.items(tag).next().or_else(|| shared?.items(tag).next()).ok_or(Cause::Missing(name))
    };
    let position = group(tags::PLANE_POSITION_SEQUENCE, "PlanePositionSequence")?;
    let orientation = group(tags::PLANE_ORIENTATION_SEQUENCE, "PlaneOrientationSequence")?;
    let measures = group(tags::PIXEL_MEASURES_SEQUENCE, "PixelMeasuresSequence")?;
    let values = group(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, "").ok();
    let value = |tag, name, otherwise| -> Result<f64, Cause> {
        match &values {
            Some(values) => Ok(values.number(tag, name)?.unwrap_or(otherwise)),
            None => Ok(otherwise),
        }
    };
    Ok(Frame {
        position: position.need(tags::IMAGE_POSITION_PATIENT, "ImagePositionPatient")?,
        orientation: orientation
            .need(tags::IMAGE_ORIENTATION_PATIENT, "ImageOrientationPatient")?,
        spacing_mm: measures.need(tags::PIXEL_SPACING, "PixelSpacing")?,
        thickness_mm: measures.number(tags::SLICE_THICKNESS, "SliceThickness")?,
        slope: value(tags::RESCALE_SLOPE, "RescaleSlope", 1.0)?,
        intercept: value(tags::RESCALE_INTERCEPT, "RescaleIntercept", 0.0)?,
    })
}

/// Attributes with the conversions used here.
#[derive(Clone, Copy)]
struct Attributes<'a>(&'a InMemDicomObject);

impl<'a> Attributes<'a> {
    fn text(&self, tag: Tag) -> Option<String> {
        let text = self.0.get(tag)?.to_str().ok()?;
        let text = text.trim_matches(|c: char| c == ' ' || c == '\0');
        Some(text.chars().take(MAX_TEXT).collect())
    }

    fn uid(&self, tag: Tag) -> String {
        elements::uid(self.text(tag).unwrap_or_default().as_bytes())
    }

    /// Text that may stand in a message: one line, at most [`MAX_WORDS`] characters.
    fn words(&self, tag: Tag) -> String {
        let text = self.text(tag).unwrap_or_default();
        text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()
    }

    fn whole(&self, tag: Tag) -> Option<i64> {
        self.0.get(tag)?.to_int().ok()
    }

    /// The first number of an attribute; `None` where it is absent or empty.
    fn number(&self, tag: Tag, name: &'static str) -> Result<Option<f64>, Cause> {
        let Some(element) = self.0.get(tag).filter(|e| !e.is_empty()) else { return Ok(None) };
        match element.to_float64() {
            Ok(value) if value.is_finite() => Ok(Some(value)),
            _ => Err(Cause::Invalid(name)),
        }
    }

    fn need<const N: usize>(&self, tag: Tag, name: &'static str) -> Result<[f64; N], Cause> {
        let element = self.0.get(tag).filter(|e| !e.is_empty()).ok_or(Cause::Missing(name))?;
        let values = element.to_multi_float64().map_err(|_| Cause::Invalid(name))?;
        let values: [f64; N] = values.try_into().map_err(|_| Cause::Invalid(name))?;
        if values.iter().all(|v| v.is_finite()) { Ok(values) } else { Err(Cause::Invalid(name)) }
    }

    fn items(&self, tag: Tag) -> impl Iterator<Item = Attributes<'a>> + use<'a> {
        let items = match self.0.get(tag).map(|e| e.value()) {
            Some(Value::Sequence(sequence)) => sequence.items(),
            _ => &[],
        };
        items.iter().map(Attributes)
    }
}
