//! Stored samples to values.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use dicom_dictionary_std::uids;
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};
use ndarray::Array3;
use rayon::prelude::*;

use super::codestream::{self, Compression};
use super::elements::{EXPLICIT_VR_BIG_ENDIAN, cut_short, open_at};
use super::header::{Image, PixelFormat};
use super::stack::{Plane, Stack};
use super::{Cause, Error};
use crate::transposition::{self, EDGE, Lines};

/// Planes decoded before they are turned: memory stores k fastest, files i.
const PLANES_AT_ONCE: usize = 2 * EDGE;
/// Voxels of the planes that wait to be turned (64 MiB), but one plane always.
const WAITING_VOXELS: usize = 1 << 24;
/// Fragments of one object: frames of [`crate::nifti::MAX_EDGE`], each in many.
const MAX_FRAGMENTS: usize = 1 << 16;

/// How a file's samples are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    Native,
    Compressed(Compression),
}

/// The files of a stack, known to hold as many bytes as their headers promise.
pub(super) struct Pixels<'a> {
    images: &'a [Image],
    files: Vec<Contents>,
    stack: &'a Stack,
}

impl<'a> Pixels<'a> {
    pub(super) fn of(images: &'a [Image], stack: &'a Stack) -> Result<Self, Error> {
        let files = images.par_iter().map(|image| {
            Contents::of(image).map_err(|cause| Error::File { path: image.path.clone(), cause })
        });
        Ok(Self { images, files: files.collect::<Result<Vec<_>, _>>()?, stack })
    }

    /// Voxels of the whole stack, `[i, j, k]`.
    pub(super) fn volume(&self) -> Result<Array3<f32>, Error> {
        let [ni, nj, nk] = self.stack.geometry.shape();
        let mut data = Array3::<f32>::zeros((ni, nj, nk));
        let together = (WAITING_VOXELS / (ni * nj)).clamp(1, PLANES_AT_ONCE).min(nk);
        let mut waiting = vec![0f32; ni * nj * together];
        for first in (0..nk).step_by(together) {
            let count = together.min(nk - first);
            let planes = &mut waiting[..ni * nj * count];
            self.decode(first, planes)?;
            let flat = data.as_slice_mut().unwrap_or_default();
            flat.par_chunks_mut(EDGE * nj * nk).enumerate().for_each(|(n, to)| {
                let i = n * EDGE;
                for j in 0..nj {
                    let from = Lines { apart: ni * nj, first: ni * j + i };
                    let place = Lines { apart: nj * nk, first: j * nk + first };
                    transposition::turn(planes, from, to, place, [count, EDGE.min(ni - i)], |v| v);
                }
            });
        }
        Ok(data)
    }

    /// Voxels of the whole stack in the order of files, i fastest.
    pub(super) fn planes(&self) -> Result<Vec<f32>, Error> {
        let mut planes = vec![0f32; self.stack.geometry.voxels()];
        self.decode(0, &mut planes)?;
        Ok(planes)
    }

    /// Fills whole planes, from the given one on.
    fn decode(&self, first: usize, planes: &mut [f32]) -> Result<(), Error> {
        let [ni, nj, _] = self.stack.geometry.shape();
        let places = planes.par_chunks_exact_mut(ni * nj);
        places.zip(&self.stack.planes[first..]).try_for_each(|(to, plane)| {
            let image = &self.images[plane.image];
            self.files[plane.image]
                .frame(image, plane, to)
                .map_err(|cause| Error::File { path: image.path.clone(), cause })
        })
    }
}

/// What must be known of a file before one of its frames can be read.
struct Contents {
    storage: Storage,
    /// Bytes in the file of each frame's fragments.
    fragments: BTreeMap<usize, Vec<Range<u64>>>,
    /// All frames of a deflated multi-frame object: it can only be read from its start.
    inflated: Vec<u8>,
}

impl Contents {
    /// Checks that the file holds as many bytes as its headers promise, before any is read.
    fn of(image: &Image) -> Result<Self, Cause> {
        let Ok((format, frames)) = &image.content else { return Err(Cause::Missing("PixelData")) };
        let pixels = image.pixels.ok_or(Cause::Missing("PixelData"))?;
        if pixels.float {
            return Err(Cause::FloatPixels);
        }
        let mut contents = Self {
            storage: storage(&image.syntax)?,
            fragments: BTreeMap::new(),
            inflated: Vec::new(),
        };
        let expected = (format.frame_bytes() * frames.len()) as u64;
        match (contents.storage, pixels.length) {
            (Storage::Native, Some(found)) => {
                if found < expected || found > expected + 1 {
                    return Err(Cause::PixelLength { expected, found });
                }
                if image.syntax == EXPLICIT_VR_BIG_ENDIAN && format.bits_allocated == 8 {
                    return Err(Cause::BigEndianBytes);
                }
                if image.deflated_at == 0 {
                    let there = File::open(&image.path)?.metadata()?.len();
                    if pixels.at.saturating_add(expected) > there {
                        return Err(Cause::Truncated);
                    }
                } else if frames.len() > 1 {
                    contents.inflated = read(image, pixels.at, expected as usize)?;
                }
            }
            (Storage::Compressed(_), None) => {
                contents.fragments = fragments(image, pixels.at, frames.len(), format)?;
            }
            _ => {
                return Err(Cause::Header(
                    "its pixel data are not stored as its transfer syntax says",
                ));
            }
        }
        Ok(contents)
    }

    /// Puts the values of one frame into `to`, i fastest.
    fn frame(&self, image: &Image, plane: &Plane, to: &mut [f32]) -> Result<(), Cause> {
        let format = &plane.format;
        let size = format.frame_bytes();
        let pixels = image.pixels.ok_or(Cause::Missing("PixelData"))?;
        let at = plane.frame * size;
        match self.storage {
            Storage::Native if !self.inflated.is_empty() => {
                let bytes = self.inflated.get(at..at + size).ok_or(Cause::Truncated)?;
                values(bytes, plane, format.bits_allocated, false, to)
            }
            Storage::Native => {
                let bytes = read(image, pixels.at + at as u64, size)?;
                let big_endian = image.syntax == EXPLICIT_VR_BIG_ENDIAN;
                values(&bytes, plane, format.bits_allocated, big_endian, to)
            }
            Storage::Compressed(compression) => {
                let ranges = self.fragments.get(&plane.frame).ok_or(Cause::Truncated)?;
                let mut bytes = Vec::new();
                for range in ranges {
                    bytes.extend(read(image, range.start, (range.end - range.start) as usize)?);
                }
                let (bytes, bits) = codestream::decode(&image.syntax, compression, bytes, format)?;
                if bytes.len() < format.rows * format.columns * (bits / 8) as usize {
                    return Err(Cause::Codestream("it holds fewer samples than the image".into()));
                }
                values(&bytes, plane, bits, false, to)
            }
        }
    }
}

fn read(image: &Image, at: u64, size: usize) -> Result<Vec<u8>, Cause> {
    let mut bytes = vec![0; size];
    open_at(&image.path, image.deflated_at, at)
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(cut_short)?;
    Ok(bytes)
}

/// Samples as in PS3.5 section 8.1.1, then the Modality LUT's slope and intercept (PS3.3 C.11.1).
fn values(
    bytes: &[u8],
    plane: &Plane,
    bits: u32,
    big_endian: bool,
    to: &mut [f32],
) -> Result<(), Cause> {
    let PixelFormat { bits_stored, high_bit, signed, .. } = plane.format;
    let (slope, intercept) = (plane.slope, plane.intercept);
    let most = slope.abs() * 2f64.powi(bits_stored as i32) + intercept.abs();
    if slope == 0.0 || !(most as f32).is_finite() {
        return Err(Cause::Invalid("RescaleSlope"));
    }
    // Bits above the sample (overlays of old) fall off at the left, those below it at the right.
    let left = 31 - high_bit.min(31);
    let right = 32 - bits_stored;
    // Both are below 32; without a check of that, several samples take one instruction.
    let value = |raw: u32| {
        let raw = raw.wrapping_shl(left);
        let stored = if signed {
            f64::from((raw as i32).wrapping_shr(right))
        } else {
            f64::from(raw.wrapping_shr(right))
        };
        (stored * slope + intercept) as f32
    };
    match (bits, big_endian) {
        (8, _) => put(to, bytes.iter(), |b| value(u32::from(*b))),
        (16, false) => put(to, bytes.as_chunks().0, |b| value(u16::from_le_bytes(*b).into())),
        (16, true) => put(to, bytes.as_chunks().0, |b| value(u16::from_be_bytes(*b).into())),
        (_, false) => put(to, bytes.as_chunks().0, |b| value(u32::from_le_bytes(*b))),
        (_, true) => put(to, bytes.as_chunks().0, |b| value(u32::from_be_bytes(*b))),
    }
    Ok(())
}

fn put<S>(to: &mut [f32], samples: impl IntoIterator<Item = S>, value: impl Fn(S) -> f32) {
    to.iter_mut().zip(samples).for_each(|(to, sample)| *to = value(sample));
}

fn storage(syntax: &str) -> Result<Storage, Cause> {
    Ok(match syntax {
        uids::IMPLICIT_VR_LITTLE_ENDIAN
        | uids::EXPLICIT_VR_LITTLE_ENDIAN
        | uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
        | EXPLICIT_VR_BIG_ENDIAN => Storage::Native,
        _ => Storage::Compressed(Compression::of(syntax).ok_or_else(|| {
            let known = TransferSyntaxRegistry.get(syntax).map(|ts| ts.name());
            Cause::Syntax { uid: syntax.to_owned(), name: known.unwrap_or("unknown") }
        })?),
    })
}

/// Where each frame's compressed bytes lie, PS3.5 A.4: one fragment a frame, or as the basic offset
/// table says; a single frame has all.
fn fragments(
    image: &Image,
    at: u64,
    frames: usize,
    format: &PixelFormat,
) -> Result<BTreeMap<usize, Vec<Range<u64>>>, Cause> {
    let mut file = File::open(&image.path)?;
    let end = file.metadata()?.len();
    let mut items = Vec::new();
    let mut next = at;
    loop {
        file.seek(SeekFrom::Start(next))?;
        let mut item = [0; 8];
        file.read_exact(&mut item).map_err(cut_short)?;
        let length = u64::from(u32::from_le_bytes([item[4], item[5], item[6], item[7]]));
        match item[..4] {
            [0xFE, 0xFF, 0x00, 0xE0] => {}
            [0xFE, 0xFF, 0xDD, 0xE0] => break,
            _ => return Err(Cause::Header("its compressed pixel data are not made of items")),
        }
        let value = next + 8..next + 8 + length;
        if value.end > end {
            return Err(Cause::Truncated);
        }
        if items.len() > MAX_FRAGMENTS {
            return Err(Cause::Header("its compressed pixel data have more than 65536 fragments"));
        }
        next = value.end;
        items.push(value);
    }
    if items.is_empty() {
        return Err(Cause::Truncated);
    }
    let table = items.remove(0);
    let mut of_frame = BTreeMap::<usize, Vec<Range<u64>>>::new();
    if frames == 1 {
        of_frame.insert(0, items);
    } else if items.len() == frames {
        of_frame.extend(items.into_iter().map(|i| vec![i]).enumerate());
    } else {
        let size = (table.end - table.start) as usize;
        if size != 4 * frames || items.is_empty() {
            return Err(Cause::Header("it does not say which fragments belong to which frame"));
        }
        let offsets = read(image, table.start, size)?;
        let starts: Vec<u64> =
            offsets.as_chunks().0.iter().map(|b| u64::from(u32::from_le_bytes(*b))).collect();
        let base = items[0].start;
        for item in items {
            let frame = starts.partition_point(|s| *s <= item.start - base).saturating_sub(1);
            of_frame.entry(frame).or_default().push(item);
        }
    }
    let most = 2 * format.frame_bytes() as u64 + (1 << 16);
    if of_frame.values().any(|r| r.iter().map(|r| r.end - r.start).sum::<u64>() > most) {
        return Err(Cause::Codestream("it is more than twice as long as the image itself".into()));
    }
    Ok(of_frame)
}
