//! RT Structure Set (PS3.3 A.19): contours drawn by a reader to a label, a prediction to contours.
//!
//! Reading. The contours of the regions chosen by name go onto the grid of the series they were
//! drawn on, and nowhere else. Within one region, contours of one plane combine by the even-odd
//! rule, so that a contour in a contour is a hole (separate, as keyhole or as CLOSEDPLANAR_XOR);
//! regions are united. Contours of several planes nearest to the same slice are united too. A voxel
//! belongs to a contour that surrounds its centre or runs through it. A chosen region with a point
//! or an open contour is refused: it is not what a label is made of.
//!
//! Writing. Contours run along voxel edges, so the area of a region is that of its voxels and any
//! reader that asks for voxel centres gets the prediction back. Holes are joined to the outline
//! around them by a channel of no width, the keyhole technique of PS3.3 C.8.8.6.3: every planning
//! system reads it, by even-odd or winding rule, whereas a separate inner CLOSED_PLANAR contour has
//! no defined meaning and CLOSEDPLANAR_XOR is unknown to many. Coordinates are rounded to 0.1 µm.
//! Implicit VR Little Endian, because a contour may hold more than the 64 KiB of an explicit DS.

use std::path::PathBuf;

use super::composite;

mod read;
mod write;

pub use read::{Reading, read, read_label};
pub use write::write;

/// Largest file read.
pub const MAX_FILE_BYTES: u64 = 128 << 20;
/// Most regions in a file.
pub const MAX_ROIS: usize = 4096;
/// Most contours of the chosen regions.
pub const MAX_CONTOURS: usize = 200_000;
/// Most points of the chosen regions.
pub const MAX_POINTS: usize = 4_000_000;
/// Most rows and columns crossed by all edges of these contours: the work of filling them.
pub const MAX_STEPS: usize = 100_000_000;
/// A coordinate beyond this is no place in a scanner.
pub const MAX_COORDINATE_MM: f64 = 1e5;
/// Most an outline may depart from its plane, as a share of the distance between slices.
pub const MAX_TILT_SLICES: f64 = 0.2;

const CLOSED_PLANAR: &str = "CLOSED_PLANAR";
const CLOSED_PLANAR_XOR: &str = "CLOSEDPLANAR_XOR";

/// Why contours cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened as DICOM.
    #[error(transparent)]
    File(#[from] super::Error),
    /// Another kind of object.
    #[error("reading contours from {}: it is no RT Structure Set but {found:?}; name the RTSTRUCT file of the series", path.display())]
    NotStructureSet {
        /// The file.
        path: PathBuf,
        /// Its SOP Class UID.
        found: String,
    },
    /// The contours are missing altogether.
    #[error("reading contours from {}: the sequence of contours is missing; copy or export the file again", path.display())]
    NoContours {
        /// The file.
        path: PathBuf,
    },
    /// No region named.
    #[error("reading contours from {}: no region of interest was chosen; name at least one of {there}", path.display())]
    NoneChosen {
        /// The file.
        path: PathBuf,
        /// Names in the file.
        there: String,
    },
    /// None of the names is in the file.
    #[error("reading contours from {}: there is no region of interest named {name}; there are {there}", path.display())]
    UnknownRoi {
        /// The file.
        path: PathBuf,
        /// The names asked for.
        name: String,
        /// Names in the file.
        there: String,
    },
    /// Drawn in another coordinate system.
    #[error(
        "reading contours from {}: region {roi:?} was drawn in frame of reference {found:?}, but the series lies in {expected:?}; take the series it was drawn on, or register the two and export the contours anew",
        path.display()
    )]
    OtherFrame {
        /// The file.
        path: PathBuf,
        /// The region.
        roi: String,
        /// Its frame of reference.
        found: String,
        /// That of the series.
        expected: String,
    },
    /// Drawn on another series.
    #[error(
        "reading contours from {}: they were drawn on series {found}, not on {expected}; choose that series for the image, or transfer the contours to this one in the planning system",
        path.display()
    )]
    OtherSeries {
        /// The file.
        path: PathBuf,
        /// Series or image referenced.
        found: String,
        /// The series given.
        expected: String,
    },
    /// The series has no grid to speak of.
    #[error("reading contours from {}: the grid of the series is singular; export the series anew", path.display())]
    Grid {
        /// The file.
        path: PathBuf,
    },
    /// A contour that cannot be put on the grid.
    #[error("reading contours from {}: contour {number} of region {roi:?} {problem}", path.display())]
    Contour {
        /// The file.
        path: PathBuf,
        /// The region.
        roi: String,
        /// Position in the region, from 1.
        number: usize,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Beyond a limit of this reader.
    #[error("reading contours from {}: it holds more than {most} {what}; export the regions needed and no others", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// The limit.
        most: usize,
        /// Of what.
        what: &'static str,
    },
    /// An object of a prediction cannot be written.
    #[error(transparent)]
    Write(#[from] composite::Error),
}
