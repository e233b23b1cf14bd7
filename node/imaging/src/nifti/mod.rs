//! NIfTI-1 and NIfTI-2 single files (`.nii`, `.nii.gz`), read with bounds and written durably.
//!
//! Field offsets and meanings: nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
//! A header is a claim by a stranger: nothing is allocated before the file is known to be able
//! to hold it, and never more is read than the header promises.

mod gzip;
mod header;
mod read;
mod write;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use header::{Header, Scalar, Version};
pub use read::{Image, read_header, read_image, read_labels, read_mask};
pub(crate) use write::write_planes;
pub use write::{Voxel, write, write_narrow};

use crate::volume;

/// Longest accepted axis.
pub const MAX_EDGE: usize = 4096;
/// Most voxels accepted in one file (1 GiB as f32).
pub const MAX_VOXELS: usize = 1 << 28;
/// Most bytes of header extensions that are skipped before the voxels.
pub const MAX_OFFSET: u64 = 64 << 20;

/// Planes turned together: files store i fastest, memory k, and one plane alone would touch a
/// whole cache line per voxel.
const PLANES_AT_ONCE: usize = 16;
/// Bytes that planes turned together may take; beyond the voxels themselves, reading needs no more
/// than this or one plane.
const PLANE_BYTES: usize = 32 << 20;

/// How many planes of so many bytes are turned together.
fn planes_at_once(plane_bytes: usize, planes: usize) -> usize {
    (PLANE_BYTES / plane_bytes.max(1)).clamp(1, PLANES_AT_ONCE).min(planes)
}

/// A NIfTI file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {cause}", path.display())]
pub struct Error {
    /// What was attempted.
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it failed; part of the message, so that a chain of sources does not say it twice.
    pub cause: Cause,
}

impl Error {
    fn reading(path: &Path) -> impl FnOnce(Cause) -> Self {
        move |cause| Self { action: "reading", path: path.to_path_buf(), cause }
    }
}

/// Why a NIfTI file was refused, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The operating system said no.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Another kind of file.
    #[error("this is no NIfTI-1 or NIfTI-2 file; convert it first, for example with dcm2niix")]
    NotNifti,
    /// Compressed, but not with gzip.
    #[error(
        "the file is compressed with {0}, which NIfTI does not use; unpack it or pack it with gzip"
    )]
    Packed(&'static str),
    /// Header and voxels in two files.
    #[error("this is the header of an .hdr/.img pair; convert it to a single .nii.gz file")]
    Pair,
    /// A name the writer does not know.
    #[error("the name must end in .nii or .nii.gz")]
    Name,
    /// Fewer bytes than the header promises.
    #[error(
        "the file is cut short: its header promises {promised} bytes of voxels; copy it again from its source"
    )]
    Truncated {
        /// Bytes of voxels according to the header.
        promised: u64,
    },
    /// The compressed stream is damaged.
    #[error("the compressed data are damaged ({0}); copy the file again from its source")]
    Damaged(String),
    /// Far more bytes than the header promises.
    #[error(
        "more than 1 MiB follows after the last voxel of the header; the file is damaged or no image"
    )]
    Excess,
    /// Impossible dimensions.
    #[error(
        "impossible dimensions {0:?}; every axis needs 1 to 4096 voxels, all together at most 268435456"
    )]
    Dimensions(Vec<i64>),
    /// More than one frame.
    #[error("the file holds {0} frames; choose one and save it as a 3-D file")]
    Frames(i64),
    /// A voxel type that is no real number of at most 64 bits.
    #[error(
        "voxel type {0} ({name}) is not supported; save the file as integer or 32/64-bit float",
        name = Scalar::name_of_unread(*.0)
    )]
    Scalar(i16),
    /// Spacing that is zero, negative or not finite.
    #[error("pixel spacing {0:?} is not positive; correct the header")]
    Spacing([f64; 3]),
    /// A header field outside its range.
    #[error("header field {field} holds {value}, which is impossible")]
    Field {
        /// Name in nifti1.h.
        field: &'static str,
        /// What was found.
        value: f64,
    },
    /// The affine does not describe a grid.
    #[error("{0}; correct the orientation in the header")]
    Geometry(#[from] volume::Error),
    /// NaN or infinity among the voxels.
    #[error("voxel {at:?} is not a finite number; repair or exclude the image")]
    NotFinite {
        /// Index i, j, k.
        at: [usize; 3],
    },
    /// A label that is no small whole number.
    #[error(
        "voxel {at:?} holds {value}, which is no label; labels are whole numbers from 0 to 65535"
    )]
    NotLabel {
        /// Index i, j, k.
        at: [usize; 3],
        /// The value found.
        value: f64,
    },
}
