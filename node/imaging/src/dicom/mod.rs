//! DICOM magnetic resonance series: a folder of files to a volume with its geometry.
//!
//! [`read_series`] walks a folder, reads all headers, chooses one series, orders its planes along
//! their normal, and decodes them in parallel. Which series is meant is told by its uid, or found:
//! see [`SeriesChoice`]. Files that are no DICOM are passed over; a DICOM file that is damaged before
//! its series is known is an error, because it could be a slice.
//!
//! Read are single-frame MR objects and Enhanced MR objects with functional groups; 8, 16 and 32 bit
//! samples, in every uncompressed transfer syntax, deflated, RLE, JPEG baseline and lossless, JPEG-LS,
//! JPEG 2000 and JPEG XL. Grids are kept as they are, oblique or sheared: the affine is computed from the first
//! and the last position and never made orthogonal.
//!
//! [`rtstruct`] reads contours drawn on a series as a label; it and [`segmentation`] write a prediction
//! so that it references the series.
//!
//! A file is a claim by a stranger. Lengths are held against the file before anything is reserved
//! for them. Reserved are at most: 512 MiB for what is kept of all headers, and for each thread that
//! reads one 128 MiB; 1 GiB for the volume and 64 MiB for planes on their way into it; for each thread
//! that decodes a frame 128 MiB (uncompressed) or 256 MiB (compressed). No attribute of a patient is
//! in an error or a notice: file names, uids and descriptions of series are.

mod choose;
mod codestream;
pub mod composite;
pub mod contour;
mod elements;
mod header;
mod opened;
mod pixels;
pub mod rtstruct;
pub mod scan;
pub mod segmentation;
mod series;
mod stack;
pub(crate) mod walk;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

pub use composite::{Description, Grouping};
pub use opened::{LabelKind, label_kind};
pub use series::{Identity, Series, SeriesChoice, SeriesSummary, Slice};

use self::pixels::Pixels;
use crate::volume::{self, Volume};

/// Most files looked at in one folder and those below it.
pub const MAX_FILES: usize = 50_000;
/// Most images (frames) in all of them.
pub const MAX_IMAGES: usize = 1 << 18;
/// Deepest folder below the one that is named.
pub const MAX_DEPTH: usize = 16;
/// Largest file that is read.
pub const MAX_FILE_BYTES: u64 = 4 << 30;
/// Most bytes that a deflated file's header may unfold to.
pub const MAX_INFLATED_HEADER_BYTES: u64 = 64 << 20;

/// A series that could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "path: what was read; found: the series that are there")]
pub enum Error {
    /// The operating system said no.
    #[error("reading the folder {}: {source}; check the path and its permissions", path.display())]
    Folder { path: PathBuf, source: io::Error },
    /// More than [`MAX_FILES`].
    #[error("reading the folder {}: it holds more than 50000 files; name the folder of one study", path.display())]
    TooManyFiles { path: PathBuf },
    /// More than [`MAX_IMAGES`].
    #[error("reading the folder {}: it holds more than 262144 images; name the folder of one study", path.display())]
    TooManyImages { path: PathBuf },
    /// Deeper than [`MAX_DEPTH`].
    #[error("reading the folder {}: it lies more than 16 folders deep; name the folder of one study", path.display())]
    TooDeep { path: PathBuf },
    /// One file.
    #[error("reading {}: {cause}", path.display())]
    File { path: PathBuf, cause: Cause },
    /// No magnetic resonance image.
    #[error(
        "looking for a series in {}: none of its {files} DICOM files is a magnetic resonance image (found: {found}); name the folder of the MR series",
        path.display()
    )]
    NoSeries { path: PathBuf, files: usize, found: String },
    /// More than one could be meant.
    #[error(
        "choosing a series in {}: several are magnetic resonance and {} T1-weighted with contrast agent; give the uid of the right one: {found}",
        path.display(),
        if *t1_contrast == 0 { "none says it is".to_owned() } else { format!("{t1_contrast} say they are") }
    )]
    SeveralSeries { path: PathBuf, t1_contrast: usize, found: String },
    /// The uid asked for is not there.
    #[error("choosing series {uid} in {}: it is not there; give the uid of one of these: {found}", path.display())]
    UnknownSeries { path: PathBuf, uid: String, found: String },
    /// The series asked for is of another kind.
    #[error("choosing series {series} in {}: it holds no magnetic resonance images; give the uid of an MR series", path.display())]
    NotMr { path: PathBuf, series: String },
    /// The planes form no grid.
    #[error("arranging the slices of series {uid} in {}: {fault}", path.display())]
    Series { path: PathBuf, uid: String, fault: Fault },
}

/// Why one file was refused, and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "numbers as the message names them")]
pub enum Cause {
    /// The operating system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Fewer bytes than promised.
    #[error("the file is cut short; copy it again from its source")]
    Truncated,
    /// More than [`MAX_FILE_BYTES`] or [`MAX_INFLATED_HEADER_BYTES`].
    #[error("it is larger than any image that can be read; export the series as single slices")]
    TooLarge,
    /// Not in the file format of PS3.10.
    #[error("it is no DICOM file; name another")]
    NotDicom,
    /// More than a file of its kind may have.
    #[error("it is larger than {0} MiB; export it with no more in it than is needed")]
    ObjectTooLarge(u64),
    /// No sound data set.
    #[error("the data set is damaged, {0}; export the file again")]
    Header(&'static str),
    /// An attribute that is needed.
    #[error("attribute {0} is missing; export the series again with full headers")]
    Missing(&'static str),
    /// An attribute without sense.
    #[error("attribute {0} holds an impossible value; correct it or export the series again")]
    Invalid(&'static str),
    /// Rows and columns.
    #[error("{rows} rows and {columns} columns are impossible; each is 1 to 4096")]
    Dimensions { rows: i64, columns: i64 },
    /// Bits.
    #[error(
        "{allocated} bits allocated, {stored} stored, high bit {high} are not supported; save the series with 8, 16 or 32 bits"
    )]
    Bits { allocated: i64, stored: i64, high: i64 },
    /// Several frames without positions.
    #[error(
        "it holds {frames} frames but is no Enhanced MR object, so that their positions are unknown; export the series as single slices"
    )]
    MultiFrame { frames: i64 },
    /// Functional groups are missing.
    #[error(
        "it holds {frames} frames and functional groups for {groups}; export the series again or as single slices"
    )]
    FunctionalGroups { frames: i64, groups: usize },
    /// More than one sample a pixel or a palette.
    #[error("it is a colour image; choose the series of the original grey images")]
    Colour,
    /// MONOCHROME1.
    #[error(
        "its grey values are inverted (MONOCHROME1); convert it to MONOCHROME2, for example with dcmdump and dcmodify after inverting, or export it again"
    )]
    Inverted,
    /// A Modality LUT.
    #[error(
        "its values need a modality look-up table; export the series with rescale slope and intercept"
    )]
    LookupTable,
    /// Float pixels.
    #[error("it holds floating-point pixel data; choose the series of the original images")]
    FloatPixels,
    /// Bytes in words of the other order.
    #[error("it holds 8-bit samples in big-endian words; convert it, for example with dcmconv +te")]
    BigEndianBytes,
    /// Pixel data of another length.
    #[error(
        "its headers need {expected} bytes of pixel data, {found} are there; copy it again from its source"
    )]
    PixelLength { expected: u64, found: u64 },
    /// No decoder.
    #[error(
        "there is no decoder for its transfer syntax {uid} ({name}); decompress the series first, for example with gdcmconv --raw"
    )]
    Syntax { uid: String, name: &'static str },
    /// JPEG of 12 bits.
    #[error(
        "there is no decoder for JPEG Extended of 12 bits; decompress the series first, for example with dcmdjpeg"
    )]
    Jpeg12,
    /// A compressed frame is damaged or absurd.
    #[error(
        "its compressed image cannot be decoded: {0}; decompress the series first, for example with gdcmconv --raw, or copy it again"
    )]
    Codestream(String),
}

/// Why the planes of a series form no grid; slices are named by file and instance number.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "a and b: neighbours along the normal")]
pub enum Fault {
    /// Nothing to read.
    #[error("it has no slice")]
    Empty,
    /// Whole slices are not there.
    #[error("slices are missing at a spacing of {usual_mm:.3} mm: {gaps}; copy the series again")]
    Missing { gaps: String, usual_mm: f64 },
    /// Steps that are no multiple of the usual one.
    #[error(
        "the spacing varies: {found_mm:.3} mm between {a} and {b}, usually {usual_mm:.3} mm ({places} places); choose a series of even spacing"
    )]
    Spacing { a: String, b: String, found_mm: f64, usual_mm: f64, places: usize },
    /// Two planes at one place.
    #[error(
        "{a} and {b} lie at the same place ({pairs} such pairs); remove copies, or split the echoes or time points of the series"
    )]
    Duplicate { a: String, b: String, pairs: usize },
    /// Planes that are no part of one grid.
    #[error("{a} and {b} differ in {what}; split the series, or remove what does not belong to it")]
    Differ { what: &'static str, a: String, b: String },
    /// Direction cosines that are none.
    #[error(
        "{slice}: the orientation is no pair of perpendicular unit vectors; export the series again"
    )]
    Orientation { slice: String },
    /// Zero or negative.
    #[error("{slice}: the pixel spacing is not positive; export the series again")]
    PixelSpacing { slice: String },
    /// A single slice has no neighbour to measure by.
    #[error(
        "{slice} is the only slice and has no positive slice thickness; export the series again"
    )]
    Thickness { slice: String },
    /// Positions on a curve.
    #[error(
        "{slice} lies {off_mm:.3} mm off the straight line of the others; choose a series of parallel slices"
    )]
    Crooked { slice: String, off_mm: f64 },
    /// More than [`crate::nifti::MAX_VOXELS`].
    #[error(
        "{shape:?} voxels are more than can be read; each axis has 1 to 4096, all together at most 268435456"
    )]
    TooManyVoxels { shape: [usize; 3] },
    /// Another reason.
    #[error("{0}; correct the geometry or export the series again")]
    Geometry(#[from] volume::Error),
}

/// The series in a folder and the folders below it (or in one file), by uid.
pub fn list_series(folder: &Path) -> Result<Vec<SeriesSummary>, Error> {
    let series = choose::group(headers(folder)?);
    Ok(series.iter().map(|(uid, images)| choose::summary(uid, images)).collect())
}

/// Reads one series of a folder (or of one multi-frame file): grid, slices, and values after rescale
/// slope and intercept, all finite.
pub fn read_series(folder: &Path, choice: &SeriesChoice) -> Result<(Series, Volume<f32>), Error> {
    let (images, stack) = arranged(folder, choice)?;
    let data = Pixels::of(&images, &stack)?.volume()?;
    let volume = Volume::on_grid_of(&stack.geometry, data);
    Ok((described(folder, &images, stack, choice)?, volume))
}

/// [`read_series`] with the values in the order of files, i fastest: for what only writes them again.
pub(crate) fn read_planes(
    folder: &Path,
    choice: &SeriesChoice,
) -> Result<(Series, Vec<f32>), Error> {
    let (images, stack) = arranged(folder, choice)?;
    let planes = Pixels::of(&images, &stack)?.planes()?;
    Ok((described(folder, &images, stack, choice)?, planes))
}

/// Reads the grid and the slices of one series from the headers alone.
pub fn read_series_geometry(folder: &Path, choice: &SeriesChoice) -> Result<Series, Error> {
    let (images, stack) = arranged(folder, choice)?;
    described(folder, &images, stack, choice)
}

fn headers(folder: &Path) -> Result<Vec<header::Image>, Error> {
    let files = walk::files(folder)?;
    let found = AtomicUsize::new(0);
    let read = files.into_par_iter().map(|path| {
        let image = header::read(&path).map_err(|cause| Error::File { path, cause })?;
        let frames = image.iter().flat_map(|i| &i.content).map(|(_, frames)| frames.len()).sum();
        if found.fetch_add(frames, Ordering::Relaxed) > MAX_IMAGES {
            return Err(Error::TooManyImages { path: folder.to_path_buf() });
        }
        Ok(image)
    });
    let images = read.collect::<Result<Vec<_>, _>>()?;
    // Without a series it is a DICOMDIR or the like.
    Ok(images.into_iter().flatten().filter(|i| !i.series_uid.is_empty()).collect())
}

fn arranged(
    folder: &Path,
    choice: &SeriesChoice,
) -> Result<(Vec<header::Image>, stack::Stack), Error> {
    let mut images = choose::choose(folder, headers(folder)?, choice)?;
    let stack = stack::stack(folder, &mut images)?;
    Ok((images, stack))
}

fn described(
    folder: &Path,
    images: &[header::Image],
    stack: stack::Stack,
    choice: &SeriesChoice,
) -> Result<Series, Error> {
    let Some(first) = images.first() else {
        let (path, uid) = (folder.to_path_buf(), String::new());
        return Err(Error::Series { path, uid, fault: Fault::Empty });
    };
    let mut notices = stack.notices;
    if *choice == SeriesChoice::Only && !images.iter().any(|i| i.t1_contrast) {
        notices.push(
            "nothing in the headers says T1-weighted with contrast agent; look whether it is the right series"
                .into(),
        );
    }
    if first.frame_of_reference_uid.is_empty() {
        notices.push("the series names no frame of reference".into());
    }
    let slices = stack.planes.iter().map(|plane| {
        let image = &images[plane.image];
        let frames = image.content.as_ref().map_or(1, |(_, frames)| frames.len());
        Slice {
            sop_class_uid: image.sop_class_uid.clone(),
            sop_instance_uid: image.sop_instance_uid.clone(),
            path: image.path.clone(),
            frame: (frames > 1
                || image.sop_class_uid != dicom_dictionary_std::uids::MR_IMAGE_STORAGE)
                .then_some(plane.frame as u32 + 1),
        }
    });
    Ok(Series {
        slices: slices.collect(),
        geometry: stack.geometry,
        study_uid: first.study_uid.clone(),
        series_uid: first.series_uid.clone(),
        frame_of_reference_uid: first.frame_of_reference_uid.clone(),
        modality: first.modality.clone(),
        notices,
        identity: first.identity.clone(),
    })
}
