//! The file of a prepared case. Little-endian throughout.
//!
//! ```text
//!   0   8  magic "RONDOCSE"
//!   8   4  VERSION
//!  12   4  length m of the notes
//!  16  24  shape, 3 × u64
//!  40 128  affine, 16 × f64, row by row
//! 168  32  key
//! 200  32  SHA-256 of everything from the image on
//! 232  32  SHA-256 of bytes 0..232 and the notes
//! 264   m  notes: JSON, what was done to the image; spaces up to a multiple of 64
//!          image f32 · label u8 · brain u8, each `[i, j, k]` in C order from the next multiple of 64,
//!          the gaps zero; the file ends with the last voxel
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use nalgebra::Matrix4;
use ndarray::{Array3, ArrayView2, ArrayView3, Axis};
use sha2::{Digest as _, Sha256};

use super::VERSION;
use crate::durable;
use crate::preprocess::Steps;
use crate::volume::{self, Geometry};

#[cfg(not(target_endian = "little"))]
compile_error!("prepared cases are mapped as they lie on disk, which is little-endian");

const MAGIC: [u8; 8] = *b"RONDOCSE";
const HEADER_BYTES: usize = 264;
/// Each section begins at a multiple of this: a cache line, and more than an f32 needs.
const ALIGNMENT: usize = 64;
/// Longest notes that are read.
const NOTES_MAX_BYTES: usize = 1 << 20;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The operating system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not a prepared case, or of another version.
    #[error("it is no prepared case of this version")]
    Foreign,
    /// Shorter or longer than its header says.
    #[error("it is {found} bytes long instead of {wanted}")]
    Length {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        wanted: u64,
    },
    /// A checksum does not hold.
    #[error("its {0} fails the checksum")]
    Sum(&'static str),
    /// Whole, but nonsense.
    #[error("its header is impossible: {0}")]
    Header(String),
}

impl From<volume::Error> for Problem {
    fn from(e: volume::Error) -> Self {
        Self::Header(e.to_string())
    }
}

/// Where image, label and brain lie in a file with notes of `notes` bytes.
fn sections(shape: [usize; 3], notes: usize) -> Option<[Range<usize>; 3]> {
    let voxels = shape.iter().try_fold(1_usize, |n, edge| n.checked_mul(*edge))?;
    let mut end = HEADER_BYTES.checked_add(notes)?;
    let mut section = |bytes: usize| {
        let begin = end.checked_next_multiple_of(ALIGNMENT)?;
        end = begin.checked_add(bytes)?;
        Some(begin..end)
    };
    Some([section(voxels.checked_mul(4)?)?, section(voxels)?, section(voxels)?])
}

/// About how long the file of a case is: its voxels and some hundred bytes.
pub(super) fn length(shape: [usize; 3]) -> Option<u64> {
    sections(shape, 0).map(|[.., brain]| brain.end as u64)
}

/// Writes a case durably: whole, or not at all. Arrays `[image]`, `[label, brain]` of one shape.
pub(super) fn write(
    path: &Path,
    key: &[u8; 32],
    geometry: &Geometry,
    notes: &Steps,
    image: &Array3<f32>,
    masks: [&Array3<u8>; 2],
) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
    let shape = geometry.shape();
    let mut notes = serde_json::to_vec(notes)?;
    let end = (HEADER_BYTES + notes.len()).next_multiple_of(ALIGNMENT);
    notes.resize(end - HEADER_BYTES, b' ');
    if notes.len() > NOTES_MAX_BYTES {
        return Err(invalid("the notices of the source files are too long"));
    }
    let sections = sections(shape, notes.len()).ok_or_else(|| invalid("too many voxels"))?;
    let slices = (image.as_slice(), masks[0].as_slice(), masks[1].as_slice());
    let (Some(image), Some(label), Some(brain)) = slices else {
        return Err(invalid("the arrays are not in C layout"));
    };
    let data: [&[u8]; 3] = [bytemuck::cast_slice(image), label, brain];
    if data.iter().zip(&sections).any(|(bytes, section)| bytes.len() != section.len()) {
        return Err(invalid("image, label and brain mask differ in shape"));
    }
    let zeros = [0; ALIGNMENT];
    // Everything from the image on: the sections, and the gaps between them.
    let from_image = || {
        let ends = sections.iter().map(|s| s.end);
        data.into_iter()
            .zip(sections.iter().skip(1).zip(ends))
            .flat_map(|(bytes, (next, end))| [bytes, &zeros[..next.start - end]])
            .chain([data[2]])
    };
    let mut sum = Sha256::new();
    from_image().for_each(|bytes| sum.update(bytes));

    let mut header = Vec::with_capacity(sections[0].start);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((notes.len() as u32).to_le_bytes());
    shape.iter().for_each(|n| header.extend((*n as u64).to_le_bytes()));
    geometry.affine().transpose().iter().for_each(|v| header.extend(v.to_le_bytes()));
    header.extend(key);
    header.extend(sum.finalize());
    let sum = Sha256::new().chain_update(&header).chain_update(&notes).finalize();
    header.extend(sum);
    header.extend(notes);
    durable::write_with(path, |file: &mut BufWriter<File>| {
        file.write_all(&header)?;
        from_image().try_for_each(|bytes| file.write_all(bytes))
    })
}

/// A case in memory, as far as the kernel keeps it there.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) geometry: Geometry,
    pub(super) notes: Steps,
    /// What the bytes from the image on must hash to.
    pub(super) sum: [u8; 32],
    map: Mmap,
    sections: [Range<usize>; 3],
}

/// Maps a file and checks its header, its length and that it is the case of this key.
#[allow(unsafe_code)]
pub(super) fn map(file: &File, key: &[u8; 32]) -> Result<Mapped, Problem> {
    // SAFETY: the mapped bytes must not change, nor the file shrink, while the map lives. The file
    // lies in a folder that only this user may write to (`Store::open` refuses others). Our code
    // gives it its name when it is complete, never opens it for writing again, replaces it by rename
    // and removes it by unlink, which leave a mapped file as it is.
    let map = unsafe { Mmap::map(file) }?;
    let cut = |wanted: usize| Problem::Length { found: map.len() as u64, wanted: wanted as u64 };
    let (head, rest) = map.split_at_checked(HEADER_BYTES).ok_or_else(|| cut(HEADER_BYTES))?;
    let mut fields = Fields(head);
    if fields.take() != Some(MAGIC) || fields.take() != Some(VERSION.to_le_bytes()) {
        return Err(Problem::Foreign);
    }
    let length = fields.take().map_or(0, u32::from_le_bytes) as usize;
    let mut number = || fields.take().map_or(0, u64::from_le_bytes);
    let shape = [number(), number(), number()];
    let affine = [(); 16].map(|()| f64::from_bits(number()));
    let (of, sum, own): ([u8; 32], [u8; 32], [u8; 32]) =
        match (fields.take(), fields.take(), fields.take()) {
            (Some(of), Some(sum), Some(own)) => (of, sum, own),
            _ => return Err(Problem::Foreign),
        };
    let notes = rest
        .get(..length)
        .filter(|notes| notes.len() <= NOTES_MAX_BYTES)
        .ok_or_else(|| cut(HEADER_BYTES.saturating_add(length)))?;
    let seen = Sha256::new().chain_update(&head[..HEADER_BYTES - 32]).chain_update(notes);
    if <[u8; 32]>::from(seen.finalize()) != own {
        return Err(Problem::Sum("header"));
    }
    if of != *key {
        return Err(Problem::Foreign);
    }
    let impossible = |what: &str| Problem::Header(what.to_owned());
    let notes = serde_json::from_slice(notes).map_err(|e| Problem::Header(e.to_string()))?;
    let shape = shape.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let sections = sections(shape, length).ok_or_else(|| impossible("too many voxels"))?;
    if map.len() != sections[2].end {
        return Err(cut(sections[2].end));
    }
    let geometry = Geometry::new(shape, Matrix4::from_row_slice(&affine))?;
    let mapped = Mapped { geometry, notes, sum, sections, map };
    if mapped.view::<f32>(0).is_none() || (1..3).any(|n| mapped.view::<u8>(n).is_none()) {
        return Err(impossible("no room for its voxels"));
    }
    Ok(mapped)
}

impl Mapped {
    /// Reads everything from the image on and compares its checksum.
    pub(super) fn check(&self) -> Result<(), Problem> {
        let bytes = self.map.get(self.sections[0].start..).unwrap_or_default();
        if <[u8; 32]>::from(Sha256::digest(bytes)) == self.sum {
            Ok(())
        } else {
            Err(Problem::Sum("data"))
        }
    }

    fn view<T: bytemuck::AnyBitPattern>(&self, section: usize) -> Option<ArrayView3<'_, T>> {
        let bytes = self.map.get(self.sections.get(section)?.clone())?;
        let values = bytemuck::try_cast_slice(bytes).ok()?;
        ArrayView3::from_shape(self.geometry.shape(), values).ok()
    }

    pub(super) fn image(&self) -> ArrayView3<'_, f32> {
        self.view(0).unwrap_or_else(|| nothing(&[]))
    }

    pub(super) fn label(&self) -> ArrayView3<'_, u8> {
        self.view(1).unwrap_or_else(|| nothing(&[]))
    }

    pub(super) fn brain(&self) -> ArrayView3<'_, u8> {
        self.view(2).unwrap_or_else(|| nothing(&[]))
    }
}

/// No voxels: never seen, because [`map`] looked at every section, and refused by whoever trains.
fn nothing<T>(none: &[[T; 0]]) -> ArrayView3<'_, T> {
    ArrayView2::from(none).insert_axis(Axis(2))
}

/// Fields of fixed length, one after another.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}
