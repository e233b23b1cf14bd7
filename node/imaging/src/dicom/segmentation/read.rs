//! A binary segmentation as a label on the grid of its series.

use std::collections::HashSet;
use std::path::Path;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use nalgebra::Vector3;
use ndarray::Array3;

use super::super::Series;
use super::super::composite::{from_patient_mm, to_patient_mm};
use super::super::elements::Wanted;
use super::super::opened::{Opened, items, listed, named, numbers, open, shown, text};
use super::{Error, MAX_FILE_BYTES, MAX_FRAMES};
use crate::volume::Volume;

/// Corners of a frame may lie this far from those of its slice, in voxels.
const CORNER_TOLERANCE_VOXELS: f64 = 0.05;

const WANTED: Wanted = Wanted {
    attributes: &[
        (tags::SPECIFIC_CHARACTER_SET, VR::CS),
        (tags::SOP_CLASS_UID, VR::UI),
        (tags::IMAGE_POSITION_PATIENT, VR::DS),
        (tags::IMAGE_ORIENTATION_PATIENT, VR::DS),
        (tags::FRAME_OF_REFERENCE_UID, VR::UI),
        (tags::PLANE_POSITION_SEQUENCE, VR::SQ),
        (tags::PLANE_ORIENTATION_SEQUENCE, VR::SQ),
        (tags::NUMBER_OF_FRAMES, VR::IS),
        (tags::ROWS, VR::US),
        (tags::COLUMNS, VR::US),
        (tags::PIXEL_SPACING, VR::DS),
        (tags::BITS_ALLOCATED, VR::US),
        (tags::PIXEL_MEASURES_SEQUENCE, VR::SQ),
        (tags::SEGMENTATION_TYPE, VR::CS),
        (tags::SEGMENT_SEQUENCE, VR::SQ),
        (tags::SEGMENT_NUMBER, VR::US),
        (tags::SEGMENT_LABEL, VR::LO),
        (tags::SEGMENT_IDENTIFICATION_SEQUENCE, VR::SQ),
        (tags::REFERENCED_SEGMENT_NUMBER, VR::US),
        (tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, VR::SQ),
        (tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, VR::SQ),
    ],
    kept_bytes: 128 << 20,
};

/// Reads all segments of a BINARY Segmentation, of whatever make, as one label: 1 inside any of
/// them, 0 elsewhere. Frames may come in any order, and slices without one are empty.
///
/// Refuses what lies in another frame of reference or not exactly on slices of the series, and
/// compressed or other than binary data.
pub fn read(path: &Path, series: &Series) -> Result<Volume<u8>, Error> {
    Ok(read_segments(path, series, None)?.label)
}

/// As [`read`], of the segments with these names only: exactly as in the file, or ending in `*` for all
/// that begin so. At least one must be there. An only segment needs no name.
pub fn read_chosen(path: &Path, series: &Series, names: &[String]) -> Result<Reading, Error> {
    read_segments(path, series, Some(names))
}

/// A label and what was odd about its file.
#[derive(Debug, Clone)]
pub struct Reading {
    /// 1 inside the segments, 0 outside, on the grid of the series.
    pub label: Volume<u8>,
    /// Names asked for that are not there.
    pub notices: Vec<String>,
}

/// Numbers of the segments to take, `None` for all of them, and the names that are not there.
fn chosen(
    path: &Path,
    object: &InMemDicomObject,
    names: &[String],
) -> Result<(Option<HashSet<String>>, Vec<String>), Error> {
    let segments = items(object, tags::SEGMENT_SEQUENCE);
    let label = |segment: &InMemDicomObject| text(segment, tags::SEGMENT_LABEL);
    let refuse = |what: String| {
        let there = listed(segments.iter().map(label));
        Error::Kind { path: path.into(), what: format!("{what}; there are {there}") }
    };
    if names.is_empty() {
        return match segments.len() {
            1 => Ok((None, Vec::new())),
            n => Err(refuse(format!("it holds {n} segments; name those that are metastases"))),
        };
    }
    let (mut numbers, mut missing) = (HashSet::new(), Vec::new());
    for asked in names {
        let before = numbers.len();
        let found = segments.iter().filter(|s| named(&label(s), asked));
        numbers.extend(found.map(|s| text(s, tags::SEGMENT_NUMBER)));
        if numbers.len() == before {
            missing.push(format!("no further segment is named {:?}", shown(asked)));
        }
    }
    if numbers.is_empty() {
        return Err(refuse("it holds no segment of the names asked for".to_owned()));
    }
    Ok((Some(numbers), missing))
}

fn read_segments(path: &Path, series: &Series, names: Option<&[String]>) -> Result<Reading, Error> {
    let opened = open(path, &WANTED, MAX_FILE_BYTES)?;
    let (object, syntax) = (&opened.object, &opened.syntax);
    let kind = |what| Error::Kind { path: path.into(), what };
    let class = text(object, tags::SOP_CLASS_UID);
    if class != uids::SEGMENTATION_STORAGE {
        let what = format!(
            "it is no Segmentation but {:?}; name the SEG file of the series",
            shown(&class)
        );
        return Err(kind(what));
    }
    if syntax != uids::EXPLICIT_VR_LITTLE_ENDIAN && syntax != uids::IMPLICIT_VR_LITTLE_ENDIAN {
        let what = format!(
            "its bits are encoded with transfer syntax {}; export it uncompressed (little endian)",
            shown(syntax)
        );
        return Err(kind(what));
    }
    let segmentation_type = text(object, tags::SEGMENTATION_TYPE);
    if segmentation_type != "BINARY" {
        let what = format!(
            "it is of type {:?}; export it as a BINARY segmentation",
            shown(&segmentation_type)
        );
        return Err(kind(what));
    }
    let frame_uid = text(object, tags::FRAME_OF_REFERENCE_UID);
    if frame_uid.is_empty() || frame_uid != series.frame_of_reference_uid {
        return Err(other_grid(
            path,
            format!(
                "frame of reference {:?} against {:?}",
                shown(&frame_uid),
                series.frame_of_reference_uid
            ),
        ));
    }
    let (numbers, notices) = match names {
        Some(names) => chosen(path, object, names)?,
        None => (None, Vec::new()),
    };
    let mut mask = Array3::zeros(series.geometry.shape());
    Frames::of(path, &opened, series)?.mark(&mut mask, numbers.as_ref())?;
    Ok(Reading { label: Volume::on_grid_of(&series.geometry, mask), notices })
}

fn other_grid(path: &Path, difference: String) -> Error {
    Error::OtherGrid { path: path.into(), difference }
}

struct Frames<'a> {
    path: &'a Path,
    series: &'a Series,
    shared: &'a [InMemDicomObject],
    each: &'a [InMemDicomObject],
    bits: Vec<u8>,
}

impl<'a> Frames<'a> {
    fn of(path: &'a Path, opened: &'a Opened, series: &'a Series) -> Result<Self, Error> {
        let object = &opened.object;
        let broken = |what: String| Error::Broken { path: path.into(), what };
        let [columns, rows, _] = series.geometry.shape();
        let whole = |tag| text(object, tag).parse::<usize>().ok();
        let size = (whole(tags::COLUMNS), whole(tags::ROWS));
        if size != (Some(columns), Some(rows)) {
            let show = |n: Option<usize>| n.map_or("no".to_owned(), |n| n.to_string());
            return Err(other_grid(
                path,
                format!(
                    "{} columns and {} rows against {columns} and {rows}",
                    show(size.0),
                    show(size.1)
                ),
            ));
        }
        if whole(tags::BITS_ALLOCATED) != Some(1) {
            return Err(broken(
                "a binary segmentation has one bit for each voxel, this one not".to_owned(),
            ));
        }
        let each = items(object, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
        let stated = whole(tags::NUMBER_OF_FRAMES);
        if each.is_empty() || each.len() > MAX_FRAMES || stated != Some(each.len()) {
            return Err(broken(format!(
                "it states {:?} frames and describes {} (1 to {MAX_FRAMES} can be read)",
                shown(&text(object, tags::NUMBER_OF_FRAMES)),
                each.len()
            )));
        }
        let needed = (each.len() * columns * rows).div_ceil(8);
        if opened.pixel_bytes() < needed as u64 {
            let there = opened.pixel_bytes();
            return Err(broken(format!("{needed} bytes of frames are due and {there} there")));
        }
        let bits = opened.pixels(needed)?;
        let shared = items(object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
        Ok(Self { path, series, shared, each, bits })
    }

    /// Marks the frames of the segments with these numbers, or of all.
    fn mark(&self, mask: &mut Array3<u8>, of: Option<&HashSet<String>>) -> Result<(), Error> {
        let [columns, rows, _] = self.series.geometry.shape();
        for (n, frame) in self.each.iter().enumerate() {
            let k = self.slice(n, frame)?;
            if let Some(of) = of {
                let segment = self
                    .group(frame, tags::SEGMENT_IDENTIFICATION_SEQUENCE)
                    .map(|group| text(group, tags::REFERENCED_SEGMENT_NUMBER))
                    .filter(|number| !number.is_empty());
                let Some(segment) = segment else {
                    let what = format!("frame {} does not say of which segment it is", n + 1);
                    return Err(Error::Broken { path: self.path.into(), what });
                };
                if !of.contains(&segment) {
                    continue;
                }
            }
            for j in 0..rows {
                for i in 0..columns {
                    let bit = (n * rows + j) * columns + i;
                    if self.bits.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1) {
                        mask[[i, j, k]] = 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// The slice a frame lies on, all four corners.
    fn slice(&self, n: usize, frame: &InMemDicomObject) -> Result<usize, Error> {
        let geometry = &self.series.geometry;
        let position = self
            .group(frame, tags::PLANE_POSITION_SEQUENCE)
            .and_then(|group| numbers::<3>(group, tags::IMAGE_POSITION_PATIENT));
        let orientation = self
            .group(frame, tags::PLANE_ORIENTATION_SEQUENCE)
            .and_then(|group| numbers::<6>(group, tags::IMAGE_ORIENTATION_PATIENT));
        let spacing = self
            .group(frame, tags::PIXEL_MEASURES_SEQUENCE)
            .and_then(|group| numbers::<2>(group, tags::PIXEL_SPACING));
        let (Some(position), Some(orientation), Some([row_mm, column_mm])) =
            (position, orientation, spacing)
        else {
            let what = format!("frame {} lacks position, orientation or spacing", n + 1);
            return Err(Error::Broken { path: self.path.into(), what });
        };
        let Some(to_index) = from_patient_mm(geometry) else {
            return Err(other_grid(self.path, "the grid of the series is singular".to_owned()));
        };
        let [columns, rows, slices] = geometry.shape();
        let k = to_index(position)[2].round();
        let slice = k.clamp(0.0, slices as f64 - 1.0);
        let corner = Vector3::from(position);
        let [a, b, c, d, e, f] = orientation;
        let (along_row, along_column) = (Vector3::new(a, b, c), Vector3::new(d, e, f));
        let least = geometry.spacing_mm().into_iter().fold(f64::INFINITY, f64::min);
        let mut apart: f64 = 0.0;
        for (i, j) in [(0, 0), (columns - 1, 0), (0, rows - 1), (columns - 1, rows - 1)] {
            let (i, j) = (i as f64, j as f64);
            let there = corner + along_row * (column_mm * i) + along_column * (row_mm * j);
            let ours = Vector3::from(to_patient_mm(geometry, [i, j, slice]));
            apart = apart.max((there - ours).norm());
        }
        // Written so that a distance that is not a number counts as far.
        if apart <= CORNER_TOLERANCE_VOXELS * least {
            Ok(slice as usize)
        } else {
            let what = format!("frame {} lies {apart:.3} mm off the nearest slice", n + 1);
            Err(other_grid(self.path, what))
        }
    }

    /// A functional group of a frame, or else that of all.
    fn group(&self, frame: &'a InMemDicomObject, tag: Tag) -> Option<&'a InMemDicomObject> {
        items(frame, tag)
            .first()
            .or_else(|| self.shared.first().and_then(|shared| items(shared, tag).first()))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn wanted_attributes_are_sorted() {
        assert!(super::WANTED.attributes.is_sorted_by(|a, b| a.0 < b.0));
    }
}
