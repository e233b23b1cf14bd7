//! Reading, bounded by what the header promises and the file can hold.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use ndarray::{Array3, s};

use super::header::{self, Header, Scalar, V1_BYTES, V2_BYTES, Version};
use super::{Cause, Error, planes_at_once};
use crate::volume::Volume;

/// Deflate cannot shrink data further than this (RFC 1951: 258 bytes in 2 bits).
const MAX_DEFLATE_RATIO: u64 = 1032;
/// Bytes after the last voxel that are read to the end and ignored.
const MAX_TRAILING_BYTES: u64 = 1 << 20;
/// First bytes of what other tools compress to.
const OTHER_PACKERS: [(&[u8], &str); 4] = [
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (b"BZh", "bzip2"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
    (b"PK\x03\x04", "zip"),
];
/// A stored label may be this far from a whole number.
const LABEL_ROUNDING: f64 = 1e-3;

/// An image and what its header said.
#[derive(Debug, Clone)]
pub struct Image {
    /// Scaled values, all finite.
    pub volume: Volume<f32>,
    /// The file's header.
    pub header: Header,
}

/// Reads an image; NaN and infinity are errors.
pub fn read_image(path: &Path) -> Result<Image, Error> {
    let (header, data) = read(path, |at, v| {
        let v = v as f32;
        if v.is_finite() { Ok(v) } else { Err(Cause::NotFinite { at }) }
    })?;
    let volume = Volume::new(header.geometry.clone(), data)
        .map_err(Cause::from)
        .map_err(Error::reading(path))?;
    Ok(Image { volume, header })
}

/// Reads whole-number labels of 0 to 65535.
pub fn read_labels(path: &Path) -> Result<Volume<u16>, Error> {
    let (header, data) = read(path, |at, value| {
        let whole = value.round();
        if (value - whole).abs() <= LABEL_ROUNDING && (0.0..=65535.0).contains(&whole) {
            Ok(whole as u16)
        } else {
            Err(Cause::NotLabel { at, value })
        }
    })?;
    Volume::new(header.geometry, data).map_err(Cause::from).map_err(Error::reading(path))
}

/// Reads a mask: 1 where the value is above 0, else 0.
pub fn read_mask(path: &Path) -> Result<Volume<u8>, Error> {
    let (header, data) = read(path, |at, v| {
        if v.is_finite() { Ok(u8::from(v > 0.0)) } else { Err(Cause::NotFinite { at }) }
    })?;
    Volume::new(header.geometry, data).map_err(Cause::from).map_err(Error::reading(path))
}

/// Reads and checks the header only.
pub fn read_header(path: &Path) -> Result<Header, Error> {
    open(path).map(|(header, _)| header).map_err(Error::reading(path))
}

fn read<T: Clone + Default>(
    path: &Path,
    convert: impl FnMut([usize; 3], f64) -> Result<T, Cause>,
) -> Result<(Header, Array3<T>), Error> {
    let attempt = || {
        let (mut header, mut stream) = open(path)?;
        let data = voxels(&header, stream.as_mut(), convert)?;
        // Only at its end does a compressed stream verify its checksum.
        let rest = io::copy(&mut stream.take(MAX_TRAILING_BYTES + 1), &mut io::sink())
            .map_err(|e| stream_error(e, header.voxel_bytes()))?;
        match rest {
            0 => {}
            1..=MAX_TRAILING_BYTES => {
                header.notices.push(format!("{rest} bytes after the last voxel were ignored"))
            }
            _ => return Err(Cause::Excess),
        }
        Ok((header, data))
    };
    attempt().map_err(Error::reading(path))
}

/// Opens a file and reads the header; the stream then stands at the first voxel.
fn open(path: &Path) -> Result<(Header, Box<dyn Read>), Cause> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut file = BufReader::with_capacity(1 << 16, file);
    let start = io::BufRead::fill_buf(&mut file)?;
    let compressed = start.starts_with(&[0x1f, 0x8b]);
    if let Some((_, name)) = OTHER_PACKERS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(Cause::Packed(name));
    }
    let (mut stream, capacity): (Box<dyn Read>, u64) = if compressed {
        (Box::new(MultiGzDecoder::new(file)), length.saturating_mul(MAX_DEFLATE_RATIO))
    } else {
        (Box::new(file), length)
    };
    let mut bytes = [0u8; V2_BYTES];
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof if !compressed => Cause::NotNifti,
        _ => stream_error(e, 0),
    };
    stream.read_exact(&mut bytes[..4]).map_err(fail)?;
    let (version, _) = header::layout([bytes[0], bytes[1], bytes[2], bytes[3]])?;
    let size = if version == Version::One { V1_BYTES } else { V2_BYTES };
    stream.read_exact(&mut bytes[4..size]).map_err(fail)?;
    let header = header::parse(&bytes[..size])?;
    let promised = header.voxel_bytes();
    if header.offset.saturating_add(promised) > capacity {
        return Err(Cause::Truncated { promised });
    }
    let gap = header.offset - size as u64;
    let skipped = io::copy(&mut stream.by_ref().take(gap), &mut io::sink())
        .map_err(|e| stream_error(e, promised))?;
    if skipped < gap {
        return Err(Cause::Truncated { promised });
    }
    Ok((header, stream))
}

fn stream_error(e: io::Error, promised: u64) -> Cause {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Cause::Truncated { promised },
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Cause::Damaged(e.to_string()),
        _ => Cause::Io(e),
    }
}

fn voxels<T: Clone + Default>(
    header: &Header,
    stream: &mut dyn Read,
    mut convert: impl FnMut([usize; 3], f64) -> Result<T, Cause>,
) -> Result<Array3<T>, Cause> {
    let [ni, nj, nk] = header.geometry.shape();
    let size = header.scalar.bytes();
    let at_once = planes_at_once(ni * nj * size, nk);
    let mut planes = vec![0u8; ni * nj * size * at_once];
    let mut data = Array3::<T>::default((ni, nj, nk));
    for first in (0..nk).step_by(at_once) {
        let planes = &mut planes[..ni * nj * size * at_once.min(nk - first)];
        stream.read_exact(planes).map_err(|e| stream_error(e, header.voxel_bytes()))?;
        if header.big_endian {
            planes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        macro_rules! fill {
            ($t:ty) => {{
                let stored = planes.as_chunks::<{ size_of::<$t>() }>().0;
                for i in 0..ni {
                    for j in 0..nj {
                        let column = stored.iter().skip(i + ni * j).step_by(ni * nj);
                        let mut line = data.slice_mut(s![i, j, first..]);
                        for (n, (to, bytes)) in line.iter_mut().zip(column).enumerate() {
                            let value =
                                <$t>::from_le_bytes(*bytes) as f64 * header.slope + header.inter;
                            *to = convert([i, j, first + n], value)?;
                        }
                    }
                }
            }};
        }
        match header.scalar {
            Scalar::U8 => fill!(u8),
            Scalar::I8 => fill!(i8),
            Scalar::U16 => fill!(u16),
            Scalar::I16 => fill!(i16),
            Scalar::U32 => fill!(u32),
            Scalar::I32 => fill!(i32),
            Scalar::U64 => fill!(u64),
            Scalar::I64 => fill!(i64),
            Scalar::F32 => fill!(f32),
            Scalar::F64 => fill!(f64),
        }
    }
    Ok(data)
}
