//! Pictures of a judged prediction: slices through every lesion, and a contact sheet per case.
//!
//! Colours, as in the paper's Fig. 3:
//!
//! | colour | what |
//! |---|---|
//! | green, translucent | predicted component that touches a reference lesion: true positive |
//! | red, translucent | predicted component that touches none: false positive |
//! | yellow outline, 2 pixels | reference lesion that no predicted voxel touches: missed |
//! | blue outline, 1 pixel | reference lesion that was found, to compare contours |
//!
//! Outlines run just outside, so that they hide nothing of a small lesion.
//!
//! Components and what touches are those of [`crate::metrics`]; nothing is cut to a brain mask.
//!
//! Planes are those of RAS space, whatever way the grid lies in it: axial, coronal and sagittal
//! pictures show constant S, A and R through the voxel of the lesion that is nearest to its
//! centroid (of a found lesion: the predicted voxel). Oblique and anisotropic grids are resampled to square pixels, the image linearly and
//! the masks by nearest voxel, so that their voxels are seen as they are. Radiological convention:
//! the patient's right is on the left of axial and coronal pictures; sagittal pictures look from
//! the patient's left, anterior on the left. Letters at the edges say so. The scale bar is 10 mm
//! with a tick a millimetre, or 50 mm without ticks where pixels are too coarse for that.
//!
//! Pixels hold no text but a fixed set of words, orientation letters and numbers: no name of a
//! patient, case or file can get into them. The same input gives the same bytes.
//!
//! At most [`Options::findings`] lesions and false positives of a case are pictured: in turns one
//! missed lesion, one false positive and one found lesion, each kind from the largest on, until
//! the limit is reached; how many were left out is told.

mod album;
mod draw;
mod finding;
mod glyph;
mod plane;
mod sheet;
mod window;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::png};
use ndarray::Array3;

pub use album::{Album, AlbumOptions, CaseSheets, album, check_folder};
pub use finding::{Finding, Kind};
pub use plane::Plane;

use crate::lesion::Connectivity;
use crate::volume::Volume;
use draw::Case;
use finding::Findings;

/// Lesions and false positives pictured of a case for a page, which is looked through; unless asked
/// otherwise.
pub const DEFAULT_FINDINGS: usize = 12;
/// No case may have more than these pictured. A folder of pictures has as many, unless asked otherwise.
pub const MAX_FINDINGS: usize = 100;

/// Why there are no pictures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Image and masks on different grids.
    #[error("picturing a case: the {what} has {found:?} voxels and the image {expected:?}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// Its shape.
        found: [usize; 3],
        /// Shape of the image.
        expected: [usize; 3],
    },
    /// Nothing to see.
    #[error(
        "picturing a case: every voxel of the image has the same value; give the image that was segmented"
    )]
    Constant,
    /// No image for a case.
    #[error("there is no image {id}.nii.gz or {id}.nii in {}; add it, so that the case has pictures", folder.display())]
    NoImage {
        /// The case.
        id: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The image lies elsewhere than the masks.
    #[error("{} lies on another grid than {} ({difference}); resample it onto that grid", image.display(), reference.display())]
    Grid {
        /// The image.
        image: PathBuf,
        /// The reference mask.
        reference: PathBuf,
        /// In words.
        difference: String,
    },
    /// An image could not be read.
    #[error(transparent)]
    Read(#[from] crate::source::Error),
    /// A mask could not be read.
    #[error(transparent)]
    Masks(#[from] crate::metrics::Error),
    /// Pictures of an earlier run.
    #[error("{} exists already; move it away or name another folder", .0.display())]
    Exists(PathBuf),
    /// A case id that cannot name a folder.
    #[error("the case id {0:?} cannot name a folder; rename its files")]
    Name(String),
    /// A folder or picture could not be written.
    #[error("writing pictures to {}: {source}", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The encoder refused.
    #[error("encoding a picture: {0}")]
    Encode(#[from] image::ImageError),
}

/// What is drawn of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Lesions and false positives at most; more than [`MAX_FINDINGS`] counts as that.
    pub findings: usize,
    /// Whether to draw every slice as a picture of its own, too.
    pub slices: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { findings: DEFAULT_FINDINGS, slices: false }
    }
}

/// A finding and its three slices as PNG, in the order of [`Plane::ALL`]; empty unless asked for.
#[derive(Debug, Clone)]
pub struct Pictured {
    /// What is seen.
    pub finding: Finding,
    /// PNG files of the whole head.
    pub slices: Vec<(Plane, Vec<u8>)>,
}

/// All pictures of a case.
#[derive(Debug, Clone)]
pub struct CasePictures {
    /// In the order of the contact sheet.
    pub pictured: Vec<Pictured>,
    /// Findings beyond the limit.
    pub left_out: usize,
    /// Contact sheets as PNG, [`sheet_rows`] findings each; none when there is nothing to see.
    pub sheets: Vec<Vec<u8>>,
}

/// Findings on one contact sheet, so that it fits a printed page.
pub const fn sheet_rows() -> usize {
    sheet::ROWS
}

/// Draws a case. Masks have the shape of the image; above 0 is lesion.
///
/// # Errors
/// Shapes that differ, and an image without contrast.
pub fn draw(
    image: &Volume<f32>,
    reference: &Array3<u8>,
    prediction: &Array3<u8>,
    connectivity: Connectivity,
    options: &Options,
) -> Result<CasePictures, Error> {
    let expected = image.geometry().shape();
    for (what, mask) in [("reference", reference), ("prediction", prediction)] {
        let (i, j, k) = mask.dim();
        if [i, j, k] != expected {
            return Err(Error::Shape { what, found: [i, j, k], expected });
        }
    }
    let found = Findings::of(image.geometry(), reference, prediction, connectivity);
    let (chosen, left_out) = found.choose(options.findings.min(MAX_FINDINGS));
    let case = Case::new(image, &found)?;
    let pictured = (chosen.iter())
        .map(|finding| {
            let slice = |plane| Ok((plane, encode(&case.whole(plane, finding))?));
            let slices = if options.slices {
                Plane::ALL.into_iter().map(slice).collect::<Result<_, Error>>()?
            } else {
                Vec::new()
            };
            Ok(Pictured { finding: *finding, slices })
        })
        .collect::<Result<_, Error>>()?;
    let sheets = (sheet::sheets(&case, &chosen).iter()).map(encode).collect::<Result<_, _>>()?;
    Ok(CasePictures { pictured, left_out, sheets })
}

fn encode(picture: &RgbImage) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    png::PngEncoder::new_with_quality(
        &mut bytes,
        png::CompressionType::Default,
        png::FilterType::Adaptive,
    )
    .write_image(
        picture.as_raw(),
        picture.width(),
        picture.height(),
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
}
