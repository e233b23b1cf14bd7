//! Compressed frames.
//!
//! The decoders are others' and trust what a stream claims. So each stream's own header is held
//! against Rows and Columns first, and streams that could make a decoder reserve or repeat far more
//! than the image needs are refused. A decoder that panics all the same is caught: a damaged file is
//! one case set aside, and must not end the work on a cohort.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dicom_core::value::PixelFragmentSequence;
use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};
use flate2::read::DeflateDecoder;
use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};
use jxl_oxide::image::BitDepth;
use jxl_oxide::{AllocTracker, JxlImage, JxlThreadPool};

use super::Cause;
use super::header::PixelFormat;

/// Largest compressed frame: decoders need up to 40 bytes a voxel for their own structures, 160 MiB
/// in each thread.
const MAX_FRAME_VOXELS: usize = 1 << 22;
const MAX_TILES: u64 = 1024;
const MAX_LAYERS: u16 = 64;
const MAX_LEVELS: u8 = 12;
/// Where a JPEG 2000 stream says how its samples are stored: bits less one, and the sign in the highest bit.
const SSIZ: usize = 42;
/// Exponent of the smallest precinct; each takes some 300 bytes in a decoder.
const MIN_PRECINCT: u8 = 4;
/// What the JPEG XL decoder may reserve: its buffers for each voxel, and tables of its own.
const XL_VOXEL_BYTES: usize = 40;
const XL_TABLE_BYTES: usize = 16 << 20;

/// A compression that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Encapsulated Uncompressed Explicit VR Little Endian.
    None,
    Deflate,
    Rle,
    Jpeg,
    JpegLs,
    Jpeg2000,
    JpegXl,
}

impl Compression {
    pub(super) fn of(syntax: &str) -> Option<Self> {
        Some(match syntax {
            uids::ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN => Self::None,
            uids::DEFLATED_IMAGE_FRAME_COMPRESSION => Self::Deflate,
            uids::RLE_LOSSLESS => Self::Rle,
            uids::JPEG_BASELINE8_BIT
            | uids::JPEG_EXTENDED12_BIT
            | uids::JPEG_LOSSLESS
            | uids::JPEG_LOSSLESS_SV1 => Self::Jpeg,
            uids::JPEGLS_LOSSLESS | uids::JPEGLS_NEAR_LOSSLESS => Self::JpegLs,
            uids::JPEG2000_LOSSLESS | uids::JPEG2000 => Self::Jpeg2000,
            uids::JPEGXL_LOSSLESS | uids::JPEGXLJPEG_RECOMPRESSION | uids::JPEGXL => Self::JpegXl,
            _ => return None,
        })
    }
}

/// Samples in little endian, row after row, and their width in bits.
pub(super) fn decode(
    syntax: &str,
    compression: Compression,
    bytes: Vec<u8>,
    format: &PixelFormat,
) -> Result<(Vec<u8>, u32), Cause> {
    if format.rows * format.columns > MAX_FRAME_VOXELS {
        return Err(Cause::Codestream(
            "compressed frames of more than 4194304 voxels are not decoded".into(),
        ));
    }
    let bits = match compression {
        Compression::None => return Ok((bytes, format.bits_allocated)),
        Compression::Deflate => return Ok((inflate(&bytes, format)?, format.bits_allocated)),
        Compression::Rle => return Ok((rle(&bytes, format)?, format.bits_allocated)),
        Compression::Jpeg => jpeg(&bytes, format)?,
        Compression::JpegLs => {
            jpeg_ls(&bytes, format)?;
            16
        }
        Compression::Jpeg2000 => {
            jpeg2000(&bytes, format)?;
            16
        }
        Compression::JpegXl => 16,
    };
    let decoded = catch_unwind(AssertUnwindSafe(|| match compression {
        Compression::JpegLs => predicted(&bytes, format).map_err(Cause::Codestream),
        Compression::Jpeg2000 => wavelets(&bytes, format).map_err(Cause::Codestream),
        Compression::JpegXl => jpeg_xl(&bytes, format),
        _ => by_library(syntax, bytes, bits, format).map_err(Cause::Codestream),
    }));
    let failed = |_| Err(Cause::Codestream("the decoder failed on it".into()));
    decoded.unwrap_or_else(failed).map(|bytes| (bytes, bits))
}

fn by_library(
    syntax: &str,
    bytes: Vec<u8>,
    bits: u32,
    format: &PixelFormat,
) -> Result<Vec<u8>, String> {
    let mut object = InMemDicomObject::new_empty();
    for (tag, value) in [
        (tags::ROWS, format.rows as u16),
        (tags::COLUMNS, format.columns as u16),
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::BITS_ALLOCATED, bits as u16),
        (tags::BITS_STORED, format.bits_stored.min(bits) as u16),
    ] {
        object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
    }
    let fragments = PixelFragmentSequence::new_fragments(vec![bytes]);
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, fragments));
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(syntax)
        .media_storage_sop_class_uid(uids::MR_IMAGE_STORAGE)
        .media_storage_sop_instance_uid("1.2")
        .build()
        .map_err(|e| e.to_string())?;
    let object = object.with_exact_meta(meta);
    let decoder = TransferSyntaxRegistry.get(syntax).and_then(|ts| ts.pixel_data_reader());
    let mut out = Vec::new();
    let decoder = decoder.ok_or("there is no decoder for it")?;
    decoder.decode_frame(&object, 0, &mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

/// JPEG 2000 to 16-bit samples. The decoder adds half the range to what is signed, as ISO 15444-1
/// annex G does to what is not.
fn wavelets(bytes: &[u8], format: &PixelFormat) -> Result<Vec<u8>, String> {
    let size = *bytes.get(SSIZ).ok_or("its JPEG 2000 stream is cut short")?;
    let image = Image::new(bytes, &DecodeSettings::default()).map_err(|e| e.to_string())?;
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(|e| e.to_string())?;
    let [component] = decoded.components() else {
        return Err("it has several components".into());
    };
    let voxels = format.rows * format.columns;
    if component.samples().len() != voxels || component.bit_depth() > 16 {
        return Err("its samples are not those of the image".into());
    }
    let most = (1i32 << component.bit_depth()) - 1;
    let offset = if size & 0x80 == 0 { 0 } else { 1i32 << (component.bit_depth() - 1) };
    let value = |sample: &f32| ((sample.round() as i32).clamp(0, most) - offset) as u16;
    Ok(component.samples().iter().flat_map(|s| value(s).to_le_bytes()).collect())
}

/// JPEG-LS to 16-bit samples.
fn predicted(bytes: &[u8], format: &PixelFormat) -> Result<Vec<u8>, String> {
    let (columns, rows) = (format.columns as u32, format.rows as u32);
    let (samples, ..) = jpegls::decode(bytes, columns, rows).map_err(|e| e.to_string())?;
    Ok(samples.iter().flat_map(|s| s.to_le_bytes()).collect())
}

/// JPEG XL to 16-bit samples. Its decoder counts what it reserves, and gives whole numbers as
/// fractions of the largest one.
fn jpeg_xl(bytes: &[u8], format: &PixelFormat) -> Result<Vec<u8>, Cause> {
    let bad = |why: &str| Cause::Codestream(why.into());
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| Cause::Codestream(e.to_string());
    let voxels = format.rows * format.columns;
    let limit = AllocTracker::with_limit(XL_TABLE_BYTES + XL_VOXEL_BYTES * voxels);
    let image = JxlImage::builder().pool(JxlThreadPool::none()).alloc_tracker(limit);
    let image = image.read(bytes).map_err(failed)?;
    let (rows, columns) = (image.height() as usize, image.width() as usize);
    if (rows, columns) != (format.rows, format.columns) {
        return Err(other_size(rows, columns));
    }
    if image.pixel_format().channels() != 1 || !image.pixel_format().is_grayscale() {
        return Err(Cause::Colour);
    }
    let BitDepth::IntegerSample { bits_per_sample: bits @ 1..=16 } =
        image.image_header().metadata.bit_depth
    else {
        return Err(bad("its JPEG XL samples are not whole numbers of at most 16 bits"));
    };
    if image.num_loaded_keyframes() != 1 || !image.is_loading_done() {
        return Err(bad("its JPEG XL stream is cut short or has several pictures"));
    }
    let most = ((1u32 << bits) - 1) as f32;
    let render = image.render_frame(0).map_err(failed)?;
    let planes = render.image_planar();
    let [plane] = &planes[..] else { return Err(Cause::Colour) };
    if plane.buf().len() != voxels {
        return Err(bad("its samples are not those of the image"));
    }
    let value = |sample: &f32| (sample * most).round().clamp(0.0, most) as u16;
    Ok(plane.buf().iter().flat_map(|s| value(s).to_le_bytes()).collect())
}

fn inflate(bytes: &[u8], format: &PixelFormat) -> Result<Vec<u8>, Cause> {
    let mut out = vec![0; format.frame_bytes()];
    let damaged = |_| Cause::Codestream("its deflated data are damaged or too short".into());
    DeflateDecoder::new(bytes).read_exact(&mut out).map_err(damaged)?;
    Ok(out)
}

/// RLE of PS3.5 annex G: a segment for each byte of a sample, the highest first.
///
/// Not the registry's decoder: that reserves what the number of segments claims, and unpacks a
/// segment to its end before it looks at the size of the image.
fn rle(bytes: &[u8], format: &PixelFormat) -> Result<Vec<u8>, Cause> {
    const HEADER: usize = 64;
    let cut = || Cause::Codestream("its run-length segments are damaged or too short".into());
    let width = (format.bits_allocated / 8) as usize;
    let header = bytes.get(..HEADER).ok_or_else(cut)?.as_chunks::<4>().0;
    let number = |n: usize| u32::from_le_bytes(header[n]) as usize;
    if number(0) != width {
        return Err(cut());
    }
    let voxels = format.rows * format.columns;
    let mut out = vec![0; voxels * width];
    for segment in 0..width {
        let end = if segment + 1 < width { number(segment + 2) } else { bytes.len() };
        let mut packed = bytes.get(number(segment + 1)..end).ok_or_else(cut)?;
        let mut at = 0;
        while at < voxels {
            let (&control, rest) = packed.split_first().ok_or_else(cut)?;
            let control = control as i8;
            packed = rest;
            if control == i8::MIN {
                continue;
            }
            let literal = control >= 0;
            let count = usize::from(control.unsigned_abs()) + 1;
            let taken = if literal { count } else { 1 };
            let run = packed.get(..taken).ok_or_else(cut)?;
            for n in 0..count.min(voxels - at) {
                out[(at + n) * width + width - 1 - segment] = run[if literal { n } else { 0 }];
            }
            at += count;
            packed = &packed[taken..];
        }
    }
    Ok(out)
}

/// Walks a JPEG stream (ITU-T T.81 annex B); gives the width of the decoder's samples.
///
/// One frame, one component, one scan, Huffman coded, sequential or lossless: many small scans
/// would let a short stream keep a decoder busy for hours.
fn jpeg(bytes: &[u8], format: &PixelFormat) -> Result<u32, Cause> {
    let bad = |why: &str| Cause::Codestream(why.into());
    let cut = || bad("its JPEG stream is damaged or cut short");
    if bytes.get(..2) != Some(&[0xFF, 0xD8]) {
        return Err(bad("its fragments hold no JPEG stream"));
    }
    let mut at = 2;
    let mut bits = None;
    loop {
        let (0xFF, marker) = (*bytes.get(at).ok_or_else(cut)?, *bytes.get(at + 1).ok_or_else(cut)?)
        else {
            return Err(cut());
        };
        if marker == 0xFF {
            at += 1;
            continue;
        }
        let size = be16(bytes, at + 2).ok_or_else(cut)? as usize;
        match marker {
            0xC0 | 0xC1 | 0xC3 if bits.is_none() => {
                let precision = *bytes.get(at + 4).ok_or_else(cut)?;
                let rows = be16(bytes, at + 5).ok_or_else(cut)? as usize;
                let columns = be16(bytes, at + 7).ok_or_else(cut)? as usize;
                if (rows, columns) != (format.rows, format.columns) {
                    return Err(other_size(rows, columns));
                }
                if bytes.get(at + 9) != Some(&1) {
                    return Err(Cause::Colour);
                }
                if marker != 0xC3 && precision != 8 {
                    return Err(Cause::Jpeg12);
                }
                bits = Some(if precision == 8 { 8 } else { 16 });
            }
            0xC4 | 0xCC => {}
            0xC0..=0xCF => return Err(bad("its JPEG process is neither sequential nor lossless")),
            0xDA => break,
            _ => {}
        }
        at += 2 + size;
    }
    let mut scan = bytes.get(at + 2..).unwrap_or_default();
    loop {
        let next = scan.iter().position(|b| *b == 0xFF).ok_or_else(cut)?;
        match scan.get(next + 1).ok_or_else(cut)? {
            0xD9 => break,
            0x00 | 0xFF | 0xD0..=0xD7 => scan = &scan[next + 1..],
            _ => return Err(bad("its JPEG stream has several scans")),
        }
    }
    bits.ok_or_else(cut)
}

/// Looks for the frame header of a JPEG-LS stream (ITU-T T.87 annex C).
fn jpeg_ls(bytes: &[u8], format: &PixelFormat) -> Result<(), Cause> {
    let bad = |why: &str| Cause::Codestream(why.into());
    let cut = || bad("its JPEG-LS stream is damaged or cut short");
    if bytes.get(..2) != Some(&[0xFF, 0xD8]) {
        return Err(bad("its fragments hold no JPEG-LS stream"));
    }
    let mut at = 2;
    while be16(bytes, at).ok_or_else(cut)? != 0xFFF7 {
        if bytes.get(at) != Some(&0xFF) || bytes.get(at + 1) == Some(&0xDA) {
            return Err(cut());
        }
        at += 2 + be16(bytes, at + 2).ok_or_else(cut)? as usize;
    }
    let [rows, columns] = [5, 7].map(|offset| be16(bytes, at + offset));
    let (rows, columns) = (rows.ok_or_else(cut)? as usize, columns.ok_or_else(cut)? as usize);
    if (rows, columns) != (format.rows, format.columns) {
        return Err(other_size(rows, columns));
    }
    if bytes.get(at + 9) != Some(&1) {
        return Err(Cause::Colour);
    }
    Ok(())
}

/// Walks a JPEG 2000 codestream (ITU-T T.800 annex A) to its end.
fn jpeg2000(bytes: &[u8], format: &PixelFormat) -> Result<(), Cause> {
    let bad = |why: &str| Cause::Codestream(why.into());
    let cut = || bad("its JPEG 2000 stream is damaged or cut short");
    let odd = || bad("its JPEG 2000 stream has tiles, layers or precincts that no image needs");
    if bytes.get(..4) != Some(&[0xFF, 0x4F, 0xFF, 0x51]) {
        return Err(bad("its fragments hold no JPEG 2000 stream"));
    }
    if format.bits_allocated > 16 {
        return Err(bad("JPEG 2000 of more than 16 bits is not decoded"));
    }
    let size = |at: usize| be32(bytes, at).ok_or_else(cut);
    let (columns, rows) = (size(8)? as usize, size(12)? as usize);
    let (tile_columns, tile_rows) = (size(24)?, size(28)?);
    if (rows, columns) != (format.rows, format.columns) {
        return Err(other_size(rows, columns));
    }
    if be16(bytes, 40).ok_or_else(cut)? != 1 {
        return Err(Cause::Colour);
    }
    if [16, 20, 32, 36].iter().any(|at| be32(bytes, *at) != Some(0))
        || bytes.get(43..45) != Some(&[1, 1])
        || tile_columns == 0
        || tile_rows == 0
        || (columns as u64).div_ceil(tile_columns.into()) * (rows as u64).div_ceil(tile_rows.into())
            > MAX_TILES
    {
        return Err(odd());
    }
    let mut at = 2;
    let mut tile_end = None;
    let mut styled = false;
    loop {
        let marker = be16(bytes, at).ok_or_else(cut)?;
        match marker {
            0xFFD9 => return if styled { Ok(()) } else { Err(cut()) },
            0xFF93 => {
                let (Some(end), true) = (tile_end, styled) else { return Err(cut()) };
                if end <= at {
                    return Err(cut());
                }
                at = end;
                continue;
            }
            _ => {}
        }
        let length = be16(bytes, at + 2).ok_or_else(cut)? as usize;
        let body = bytes.get(at + 4..at + 2 + length.max(2)).ok_or_else(cut)?;
        match marker {
            0xFF90 => {
                let part = be32(bytes, at + 6).ok_or_else(cut)? as usize;
                let end = if part == 0 { bytes.len() - 2 } else { at.saturating_add(part) };
                if end > bytes.len() {
                    return Err(cut());
                }
                // A last tile-part without length reaches to the end, which may be padded.
                let padded = part == 0 && bytes.last() == Some(&0);
                tile_end = Some(if padded { end - 1 } else { end });
            }
            0xFF52 => {
                let (layers, levels) =
                    (be16(body, 2).ok_or_else(cut)?, *body.get(5).ok_or_else(cut)?);
                let own = body.first().is_some_and(|style| style & 1 == 1);
                let precincts = if own { body.get(10..).ok_or_else(cut)? } else { &[] };
                if !(1..=MAX_LAYERS).contains(&layers)
                    || levels > MAX_LEVELS
                    || precincts.iter().any(|p| p & 15 < MIN_PRECINCT || p >> 4 < MIN_PRECINCT)
                {
                    return Err(odd());
                }
                styled = true;
            }
            // Styles of single components, changes of order, packed packet headers.
            0xFF53 | 0xFF5F | 0xFF60 | 0xFF61 => return Err(odd()),
            _ => {}
        }
        at += 2 + length.max(2);
    }
}

fn other_size(rows: usize, columns: usize) -> Cause {
    Cause::Codestream(format!(
        "its compressed image has {rows} rows and {columns} columns, other than its header says"
    ))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_be_bytes)
}
