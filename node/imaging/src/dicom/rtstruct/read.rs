//! Contours to a label on the grid of their series.

use std::collections::HashSet;
use std::path::Path;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use ndarray::{Array3, Axis};

use super::super::Series;
use super::super::composite::from_patient_mm;
use super::super::contour::{Point, fill};
use super::super::elements::Wanted;
use super::super::opened::{items, listed, named, open, shown, text};
use super::{
    CLOSED_PLANAR, CLOSED_PLANAR_XOR, Error, MAX_CONTOURS, MAX_COORDINATE_MM, MAX_FILE_BYTES,
    MAX_POINTS, MAX_ROIS, MAX_STEPS, MAX_TILT_SLICES,
};
use crate::volume::Volume;

/// Contours this close along the normal, in slices, lie in one plane.
const SAME_PLANE_SLICES: f64 = 0.1;
/// An outline may run this far beyond the centres at the edge before it is worth a notice.
const EDGE_VOXELS: f64 = 1.0;

const WANTED: Wanted = Wanted {
    attributes: &[
        (tags::SPECIFIC_CHARACTER_SET, VR::CS),
        (tags::SOP_CLASS_UID, VR::UI),
        (tags::REFERENCED_SOP_INSTANCE_UID, VR::UI),
        (tags::SERIES_INSTANCE_UID, VR::UI),
        (tags::REFERENCED_FRAME_OF_REFERENCE_SEQUENCE, VR::SQ),
        (tags::RT_REFERENCED_STUDY_SEQUENCE, VR::SQ),
        (tags::RT_REFERENCED_SERIES_SEQUENCE, VR::SQ),
        (tags::CONTOUR_IMAGE_SEQUENCE, VR::SQ),
        (tags::STRUCTURE_SET_ROI_SEQUENCE, VR::SQ),
        (tags::ROI_NUMBER, VR::IS),
        (tags::REFERENCED_FRAME_OF_REFERENCE_UID, VR::UI),
        (tags::ROI_NAME, VR::LO),
        (tags::ROI_CONTOUR_SEQUENCE, VR::SQ),
        (tags::CONTOUR_SEQUENCE, VR::SQ),
        (tags::CONTOUR_GEOMETRIC_TYPE, VR::CS),
        (tags::NUMBER_OF_CONTOUR_POINTS, VR::IS),
        // Whole, because one string for each number would take twenty times its bytes.
        (tags::CONTOUR_DATA, VR::UT),
        (tags::REFERENCED_ROI_NUMBER, VR::IS),
    ],
    kept_bytes: MAX_FILE_BYTES as usize,
};

/// A label, and what was odd about the contours it was made of.
#[derive(Debug, Clone)]
pub struct Reading {
    /// 1 inside the regions, 0 outside, on the grid of the series.
    pub label: Volume<u8>,
    /// What did not stop the reading; holds no attribute of a patient.
    pub notices: Vec<String>,
}

/// The regions of these names as a label; see [`read`].
pub fn read_label(path: &Path, series: &Series, rois: &[String]) -> Result<Volume<u8>, Error> {
    Ok(read(path, series, rois)?.label)
}

/// Reads the regions of these names as a label on the grid of the series, with what was odd. A name is
/// exactly as in the file, or ends in `*` for all that begin so; at least one must be there.
///
/// Refuses what was drawn on another series or in another frame of reference, contours that are not
/// parallel to the slices or lie more than half a slice beyond the first or last, open contours, and
/// everything beyond the limits of this module. A region without contours is empty.
pub fn read(path: &Path, series: &Series, rois: &[String]) -> Result<Reading, Error> {
    let object = open(path, &WANTED, MAX_FILE_BYTES)?.object;
    let class = text(&object, tags::SOP_CLASS_UID);
    if class != uids::RT_STRUCTURE_SET_STORAGE {
        return Err(Error::NotStructureSet { path: path.into(), found: shown(&class) });
    }
    // Type 1, so without it the file was cut between two attributes.
    if object.get(tags::ROI_CONTOUR_SEQUENCE).is_none() {
        return Err(Error::NoContours { path: path.into() });
    }
    let (regions, notices) = choose(path, &object, rois)?;
    check_source(path, &object, series, &regions)?;
    let Some(to_index) = from_patient_mm(&series.geometry) else {
        return Err(Error::Grid { path: path.into() });
    };
    let mut reader = Reader { path, series, to_index, contours: 0, points: 0, steps: 0, notices };
    let mut mask = Array3::zeros(series.geometry.shape());
    for region in &regions {
        reader.region(region, &mut mask)?;
    }
    let label = Volume::on_grid_of(&series.geometry, mask);
    Ok(Reading { label, notices: reader.notices })
}

struct Region<'a> {
    /// For messages.
    name: String,
    frame: String,
    contours: &'a [InMemDicomObject],
}

fn choose<'a>(
    path: &Path,
    object: &'a InMemDicomObject,
    names: &[String],
) -> Result<(Vec<Region<'a>>, Vec<String>), Error> {
    let described = items(object, tags::STRUCTURE_SET_ROI_SEQUENCE);
    let drawn = items(object, tags::ROI_CONTOUR_SEQUENCE);
    if described.len().max(drawn.len()) > MAX_ROIS {
        let what = "regions of interest";
        return Err(Error::TooMany { path: path.into(), most: MAX_ROIS, what });
    }
    let there = || listed(described.iter().map(|r| text(r, tags::ROI_NAME)));
    if names.is_empty() {
        return Err(Error::NoneChosen { path: path.into(), there: there() });
    }
    let (mut regions, mut missing): (Vec<Region<'_>>, Vec<String>) = (Vec::new(), Vec::new());
    let mut numbers = HashSet::new();
    for asked in names {
        let mut found = false;
        for roi in described.iter().filter(|r| named(&text(r, tags::ROI_NAME), asked)) {
            found = true;
            let name = text(roi, tags::ROI_NAME);
            let number = text(roi, tags::ROI_NUMBER);
            if !numbers.insert(number.clone()) {
                continue;
            }
            let frame = text(roi, tags::REFERENCED_FRAME_OF_REFERENCE_UID);
            for contours in drawn.iter().filter(|c| text(c, tags::REFERENCED_ROI_NUMBER) == number)
            {
                let contours = items(contours, tags::CONTOUR_SEQUENCE);
                regions.push(Region { name: shown(&name), frame: frame.clone(), contours });
            }
            if !regions.iter().any(|r| r.name == shown(&name)) {
                regions.push(Region { name: shown(&name), frame, contours: &[] });
            }
        }
        if !found {
            missing.push(shown(asked));
        }
    }
    if numbers.is_empty() {
        return Err(Error::UnknownRoi {
            path: path.into(),
            name: missing.join(", "),
            there: there(),
        });
    }
    let notices = missing.into_iter().map(|name| format!("no region is named {name:?}")).collect();
    Ok((regions, notices))
}

/// Frame of reference of each region, and the series or else the images that the file refers to.
fn check_source(
    path: &Path,
    object: &InMemDicomObject,
    series: &Series,
    regions: &[Region<'_>],
) -> Result<(), Error> {
    for region in regions {
        if region.frame != series.frame_of_reference_uid || region.frame.is_empty() {
            return Err(Error::OtherFrame {
                path: path.into(),
                roi: region.name.clone(),
                found: shown(&region.frame),
                expected: series.frame_of_reference_uid.clone(),
            });
        }
    }
    let other = |found: &str| {
        let (found, expected) = (shown(found), series.series_uid.clone());
        Err(Error::OtherSeries { path: path.into(), found, expected })
    };
    let referenced: Vec<String> = items(object, tags::REFERENCED_FRAME_OF_REFERENCE_SEQUENCE)
        .iter()
        .flat_map(|frame| items(frame, tags::RT_REFERENCED_STUDY_SEQUENCE))
        .flat_map(|study| items(study, tags::RT_REFERENCED_SERIES_SEQUENCE))
        .map(|series| text(series, tags::SERIES_INSTANCE_UID))
        .collect();
    if let Some(first) = referenced.first() {
        return if referenced.contains(&series.series_uid) { Ok(()) } else { other(first) };
    }
    let ours: HashSet<&str> = series.slices.iter().map(|s| s.sop_instance_uid.as_str()).collect();
    let mut images = regions
        .iter()
        .flat_map(|region| region.contours)
        .flat_map(|contour| items(contour, tags::CONTOUR_IMAGE_SEQUENCE))
        .map(|image| text(image, tags::REFERENCED_SOP_INSTANCE_UID))
        .peekable();
    let Some(first) = images.peek().cloned() else { return Ok(()) };
    if images.any(|image| ours.contains(image.as_str())) {
        Ok(())
    } else {
        other(&format!("of image {first}"))
    }
}

/// One outline and where its plane lies, in slices.
struct Drawn {
    k: f64,
    outline: Vec<Point>,
}

struct Reader<'a, F> {
    path: &'a Path,
    series: &'a Series,
    to_index: F,
    contours: usize,
    points: usize,
    steps: usize,
    notices: Vec<String>,
}

impl<F: Fn([f64; 3]) -> [f64; 3]> Reader<'_, F> {
    fn region(&mut self, region: &Region<'_>, mask: &mut Array3<u8>) -> Result<(), Error> {
        let mut drawn = Vec::new();
        let mut small = 0usize;
        for (n, contour) in region.contours.iter().enumerate() {
            self.contours += 1;
            if self.contours > MAX_CONTOURS {
                return Err(self.too_many(MAX_CONTOURS, "contours"));
            }
            let refuse = |problem| Error::Contour {
                path: self.path.into(),
                roi: region.name.clone(),
                number: n + 1,
                problem,
            };
            let points = points(contour).map_err(refuse)?;
            self.points += points.len();
            if self.points > MAX_POINTS {
                return Err(self.too_many(MAX_POINTS, "points"));
            }
            if points.len() < 3 {
                small += 1;
                continue;
            }
            let outline = self.place(&points).map_err(refuse)?;
            self.steps = self.steps.saturating_add(self.steps_along(&outline.outline));
            if self.steps > MAX_STEPS {
                return Err(self.too_many(MAX_STEPS, "rows and columns crossed by contours"));
            }
            drawn.push(outline);
        }
        self.remark(region, &drawn, small);
        drawn.sort_by(|a, b| a.k.total_cmp(&b.k));
        let slices = self.series.geometry.shape()[2];
        let slice_of = |k: f64| (k.round().max(0.0) as usize).min(slices - 1);
        let mut rest = drawn.as_mut_slice();
        while let Some(first) = rest.first() {
            let (k, slice) = (first.k, slice_of(first.k));
            let same = |d: &Drawn| d.k - k <= SAME_PLANE_SLICES && slice_of(d.k) == slice;
            let (plane, others) = rest.split_at_mut(rest.iter().take_while(|d| same(d)).count());
            let plane: Vec<_> = plane.iter_mut().map(|d| std::mem::take(&mut d.outline)).collect();
            fill(&plane, &mut mask.index_axis_mut(Axis(2), slice));
            rest = others;
        }
        Ok(())
    }

    /// Rows and columns of the image that an outline crosses, which is the work of filling it.
    fn steps_along(&self, outline: &[Point]) -> usize {
        let shape = self.series.geometry.shape();
        let pairs = outline.iter().zip(outline.iter().cycle().skip(1));
        let step = |a: &Point, b: &Point, axis: usize| {
            (a[axis] - b[axis]).abs().min(shape[axis] as f64) as usize
        };
        pairs.map(|(a, b)| step(a, b, 0) + step(a, b, 1)).sum()
    }

    /// Puts an outline in patient millimetres on the grid.
    fn place(&self, points: &[[f64; 3]]) -> Result<Drawn, String> {
        let geometry = &self.series.geometry;
        let (slices, spacing) = (geometry.shape()[2] as f64, geometry.spacing_mm()[2]);
        let mut outline = Vec::with_capacity(points.len());
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for point in points {
            let [i, j, k] = (self.to_index)(*point);
            (low, high) = (low.min(k), high.max(k));
            outline.push([i, j]);
        }
        if high - low > MAX_TILT_SLICES {
            return Err(format!(
                "is not parallel to the slices: it spans {:.2} mm across them; draw it on the slices of this series",
                (high - low) * spacing
            ));
        }
        let k = (low + high) / 2.0;
        let beyond = (-k).max(k - (slices - 1.0));
        if beyond > 0.5 + ON_SLICE_SLACK {
            return Err(format!(
                "lies {:.2} mm beyond the {} slice, more than half a spacing; take the whole series it was drawn on",
                beyond * spacing,
                if k < 0.0 { "first" } else { "last" }
            ));
        }
        let beside = |axis: usize| {
            let end = geometry.shape()[axis] as f64 - 0.5;
            outline.iter().all(|p| p[axis] < -0.5) || outline.iter().all(|p| p[axis] > end)
        };
        if beside(0) || beside(1) {
            return Err("lies wholly beside the image; take the series it was drawn on".to_owned());
        }
        Ok(Drawn { k, outline })
    }

    fn remark(&mut self, region: &Region<'_>, drawn: &[Drawn], small: usize) {
        let shape = self.series.geometry.shape();
        let spacing = self.series.geometry.spacing_mm()[2];
        let mut say = |what: String| self.notices.push(format!("region {:?}: {what}", region.name));
        if region.contours.is_empty() {
            say("has no contours, so nothing is marked".to_owned());
        }
        if small > 0 {
            say(format!("{small} contours of fewer than three points enclose nothing"));
        }
        let off = |d: &&Drawn| (d.k - d.k.round()).abs() > SAME_PLANE_SLICES;
        let count = drawn.iter().filter(off).count();
        let most = drawn.iter().map(|d| (d.k - d.k.round()).abs()).fold(0.0, f64::max);
        if count > 0 {
            let mm = most * spacing;
            say(format!(
                "{count} contours lie between slices, up to {mm:.2} mm off, and went to the nearest"
            ));
        }
        let outside = |d: &&Drawn| {
            d.outline.iter().any(|p| {
                (0..2).any(|axis| {
                    p[axis] < -0.5 - EDGE_VOXELS || p[axis] > shape[axis] as f64 - 0.5 + EDGE_VOXELS
                })
            })
        };
        let count = drawn.iter().filter(outside).count();
        if count > 0 {
            say(format!("{count} contours reach beyond the image and were cut off at its edge"));
        }
    }

    fn too_many(&self, most: usize, what: &'static str) -> Error {
        Error::TooMany { path: self.path.into(), most, what }
    }
}

/// Rounding of coordinates, in slices.
const ON_SLICE_SLACK: f64 = 1e-3;

/// The points of a closed contour in patient millimetres.
fn points(contour: &InMemDicomObject) -> Result<Vec<[f64; 3]>, String> {
    let kind = text(contour, tags::CONTOUR_GEOMETRIC_TYPE);
    if kind != CLOSED_PLANAR && kind != CLOSED_PLANAR_XOR {
        return Err(format!(
            "is of type {:?}, but a label is made of closed planar contours; choose another region or remove that contour",
            shown(&kind)
        ));
    }
    let values = numbers(contour, tags::CONTOUR_DATA)?;
    if !values.len().is_multiple_of(3) {
        return Err(format!(
            "has {} coordinates, which are no whole points; export it anew",
            values.len()
        ));
    }
    let stated = text(contour, tags::NUMBER_OF_CONTOUR_POINTS);
    let count = values.len() / 3;
    if !stated.is_empty() && stated.parse() != Ok(count) {
        return Err(format!(
            "has {count} points where it states {:?}; export it anew",
            shown(&stated)
        ));
    }
    Ok(values.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect())
}

fn numbers(contour: &InMemDicomObject, tag: Tag) -> Result<Vec<f64>, String> {
    let data = text(contour, tag);
    if data.is_empty() {
        return Ok(Vec::new());
    }
    if data.bytes().filter(|b| *b == b'\\').count() >= 3 * MAX_POINTS {
        return Err(format!("has more than {MAX_POINTS} points; export it with fewer"));
    }
    let parse = |text: &str| match text.trim_matches(['\0', ' ']).parse::<f64>() {
        Ok(v) if v.abs() <= MAX_COORDINATE_MM => Ok(v),
        _ => Err(format!(
            "has a coordinate {:?}, which is no number of millimetres within {MAX_COORDINATE_MM}; export it anew",
            shown(text)
        )),
    };
    data.split('\\').map(parse).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn wanted_attributes_are_sorted() {
        assert!(super::WANTED.attributes.is_sorted_by(|a, b| a.0 < b.0));
    }
}
