//! DICOM Segmentation (PS3.3 A.51) of type BINARY: a prediction to frames of bits, and back.
//!
//! A frame is one slice of one segment; slices where a segment has no voxel have no frame. Bits run
//! on from frame to frame without padding (PS3.5 8.1.1 and D.2), columns fastest. The standard knows
//! no object without segments or frames, so a prediction without lesions is one segment with one
//! empty frame of the middle slice.

use std::path::PathBuf;

use super::composite;

mod read;
mod write;

pub use read::{Reading, read, read_chosen};
pub use write::write;

/// Largest file read.
pub const MAX_FILE_BYTES: u64 = 256 << 20;
/// Most frames in a file.
pub const MAX_FRAMES: usize = 1 << 18;

/// Why a segmentation cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened as DICOM.
    #[error(transparent)]
    File(#[from] super::Error),
    /// Another kind of object.
    #[error("reading a segmentation from {}: {what}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        what: String,
    },
    /// Not on the grid of the series.
    #[error(
        "reading a segmentation from {}: it does not lie on the grid of the series ({difference}); take the series it was made on",
        path.display()
    )]
    OtherGrid {
        /// The file.
        path: PathBuf,
        /// What sets the grids apart.
        difference: String,
    },
    /// Attributes missing or contradictory.
    #[error("reading a segmentation from {}: {what}; export it anew", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An object of a prediction cannot be written.
    #[error(transparent)]
    Write(#[from] composite::Error),
}
