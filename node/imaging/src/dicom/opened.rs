//! An RTSTRUCT or SEG file of a stranger, opened, and what its attributes say.
//!
//! Only the attributes asked for reach `dicom-object`, after the walk of [`super::elements`] has held
//! every length against the file. A file that is cut short anywhere is an error, never a shorter one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use dicom_transfer_syntax_registry::entries::EXPLICIT_VR_LITTLE_ENDIAN;

use super::elements::{self, PixelData, Wanted};
use super::{Cause, Error};

/// The attributes wanted of a file, and where its pixel data lie.
pub(super) struct Opened {
    path: PathBuf,
    pub(super) object: InMemDicomObject,
    /// Transfer Syntax UID (0002,0010).
    pub(super) syntax: String,
    pixels: Option<PixelData>,
    deflated_at: u64,
}

/// Opens a file of at most `most_bytes`. Memory is at most some four times `wanted.kept_bytes`, for
/// files of one long value and for those of nothing but empty items.
pub(super) fn open(path: &Path, wanted: &'static Wanted, most_bytes: u64) -> Result<Opened, Error> {
    opened(path, wanted, most_bytes).map_err(|cause| Error::File { path: path.into(), cause })
}

fn opened(path: &Path, wanted: &'static Wanted, most_bytes: u64) -> Result<Opened, Cause> {
    if File::open(path)?.metadata()?.len() > most_bytes {
        return Err(Cause::ObjectTooLarge(most_bytes >> 20));
    }
    let scanned = elements::scan(path, wanted)?.ok_or(Cause::NotDicom)?;
    if let Some(cause) = scanned.broken {
        return Err(cause);
    }
    let object = InMemDicomObject::read_dataset_with_ts(
        scanned.elements.as_slice(),
        &EXPLICIT_VR_LITTLE_ENDIAN.erased(),
    )
    .map_err(|_| Cause::Header("an attribute cannot be understood"))?;
    let (syntax, pixels, deflated_at) = (scanned.syntax, scanned.pixels, scanned.deflated_at);
    Ok(Opened { path: path.into(), object, syntax, pixels, deflated_at })
}

impl Opened {
    /// Bytes of pixel data there are, none for those in fragments.
    pub(super) fn pixel_bytes(&self) -> u64 {
        self.pixels.and_then(|pixels| pixels.length).unwrap_or(0)
    }

    /// The first bytes of the pixel data.
    pub(super) fn pixels(&self, bytes: usize) -> Result<Vec<u8>, Error> {
        let failed = |cause| Error::File { path: self.path.clone(), cause };
        let at = self.pixels.map_or(0, |pixels| pixels.at);
        let mut data = Vec::new();
        elements::open_at(&self.path, self.deflated_at, at)
            .and_then(|source| source.take(bytes as u64).read_to_end(&mut data))
            .map_err(|e| failed(Cause::Io(e)))?;
        if data.len() < bytes { Err(failed(Cause::Truncated)) } else { Ok(data) }
    }
}

/// What kind of object a DICOM file of a label is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelKind {
    /// Contours: an RT Structure Set.
    StructureSet,
    /// Voxels: a Segmentation.
    Segmentation,
    /// Anything else, an image for example.
    Other,
}

/// Looks at the SOP Class of a file.
///
/// # Errors
/// No DICOM file, or one that is damaged.
pub fn label_kind(path: &Path) -> Result<LabelKind, Error> {
    const CLASS: Wanted = Wanted { attributes: &[(tags::SOP_CLASS_UID, VR::UI)], kept_bytes: 1024 };
    let object = open(path, &CLASS, super::MAX_FILE_BYTES)?.object;
    Ok(match text(&object, tags::SOP_CLASS_UID).as_str() {
        uids::RT_STRUCTURE_SET_STORAGE => LabelKind::StructureSet,
        uids::SEGMENTATION_STORAGE => LabelKind::Segmentation,
        _ => LabelKind::Other,
    })
}

/// Text of an attribute without padding; empty where it is absent or no text.
pub(super) fn text(object: &InMemDicomObject, tag: Tag) -> String {
    let value = object.get(tag).and_then(|element| element.to_str().ok());
    value.map(|text| text.trim_matches(['\0', ' ']).to_owned()).unwrap_or_default()
}

/// Items of a sequence; none where it is absent or no sequence.
pub(super) fn items(object: &InMemDicomObject, tag: Tag) -> &[InMemDicomObject] {
    object.get(tag).and_then(|element| element.items()).unwrap_or_default()
}

/// Exactly `N` finite numbers.
pub(super) fn numbers<const N: usize>(object: &InMemDicomObject, tag: Tag) -> Option<[f64; N]> {
    let values = object.get(tag)?.to_multi_float64().ok()?;
    let values = <[f64; N]>::try_from(values).ok()?;
    values.iter().all(|v| v.is_finite()).then_some(values)
}

/// Whether a name of a region or segment is the one asked for; `GTV*` asks for all that begin so.
pub(super) fn named(name: &str, asked: &str) -> bool {
    let asked = asked.trim();
    asked.strip_suffix('*').map_or(name == asked, |begin| name.starts_with(begin))
}

/// Names as a message may list them: the first twenty.
pub(super) fn listed(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<_> = names.map(|name| format!("{:?}", shown(&name))).collect();
    names.dedup();
    let more = names.len().saturating_sub(20);
    names.truncate(20);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    if names.is_empty() { "none at all".to_owned() } else { names.join(", ") + &more }
}

/// A text from a file as a message may show it: short, on one line.
pub(super) fn shown(text: &str) -> String {
    let mut clean: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
    if text.chars().count() > 64 {
        clean.push('…');
    }
    clean
}
