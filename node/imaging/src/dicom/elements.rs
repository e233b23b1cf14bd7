//! The elements of a data set that matter here, found without trusting a single length.
//!
//! `dicom-object` reserves what an element claims (up to 4 GiB for a file of 200 bytes) and descends
//! once for each nested sequence. So a walk of our own comes first: iterative, with every length
//! held against what the file has left. It copies the few attributes [`Wanted`] into a small data
//! set in explicit VR little endian, which `dicom-object` then interprets; everything else (private
//! groups, overlays, documents, voxels) is stepped over and never in memory.
//!
//! Encoding of elements: PS3.5 section 7; deflate: PS3.5 A.5; file format: PS3.10 section 7.1.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use flate2::bufread::DeflateDecoder;

use super::{Cause, MAX_FILE_BYTES, MAX_INFLATED_HEADER_BYTES};

/// Elements that are stepped over or kept before the voxels; a walk of one takes some 20 ns.
const MAX_ELEMENTS: usize = 1 << 22;
/// Longest kept value that is no `UT`; longer ones are none of the attributes used here.
const MAX_VALUE_BYTES: u64 = 4096;
/// Deepest nesting of sequences.
const MAX_NESTING: usize = 32;
/// Retired in 2006, and still in archives.
pub(super) const EXPLICIT_VR_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
const UNDEFINED: u32 = u32::MAX;

const ITEM: Tag = Tag(0xFFFE, 0xE000);
const ITEM_END: Tag = Tag(0xFFFE, 0xE00D);
const SEQUENCE_END: Tag = Tag(0xFFFE, 0xE0DD);

/// What a walk copies.
pub(super) struct Wanted {
    /// By ascending tag, with the value representation for files that do not state it. `UT` stands
    /// for text that is to be kept whole whatever the file states: one string of any length.
    pub(super) attributes: &'static [(Tag, VR)],
    /// Bytes of all that is kept.
    pub(super) kept_bytes: usize,
}

/// Of an image. A frame of an enhanced object needs about 400 bytes.
pub(super) const IMAGE: Wanted = Wanted { attributes: KEPT, kept_bytes: 4 << 20 };

pub(super) const KEPT: &[(Tag, VR)] = &[
    (tags::SPECIFIC_CHARACTER_SET, VR::CS),
    (tags::IMAGE_TYPE, VR::CS),
    (tags::SOP_CLASS_UID, VR::UI),
    (tags::SOP_INSTANCE_UID, VR::UI),
    (tags::STUDY_DATE, VR::DA),
    (tags::STUDY_TIME, VR::TM),
    (tags::ACCESSION_NUMBER, VR::SH),
    (tags::MODALITY, VR::CS),
    (tags::REFERRING_PHYSICIAN_NAME, VR::PN),
    (tags::SERIES_DESCRIPTION, VR::LO),
    (tags::ACQUISITION_CONTRAST, VR::CS),
    (tags::PATIENT_NAME, VR::PN),
    (tags::PATIENT_ID, VR::LO),
    (tags::PATIENT_BIRTH_DATE, VR::DA),
    (tags::PATIENT_SEX, VR::CS),
    (tags::CONTRAST_BOLUS_AGENT, VR::LO),
    (tags::CONTRAST_BOLUS_AGENT_SEQUENCE, VR::SQ),
    (tags::SLICE_THICKNESS, VR::DS),
    (tags::PROTOCOL_NAME, VR::LO),
    (tags::STUDY_INSTANCE_UID, VR::UI),
    (tags::SERIES_INSTANCE_UID, VR::UI),
    (tags::STUDY_ID, VR::SH),
    (tags::INSTANCE_NUMBER, VR::IS),
    (tags::IMAGE_POSITION_PATIENT, VR::DS),
    (tags::IMAGE_ORIENTATION_PATIENT, VR::DS),
    (tags::FRAME_OF_REFERENCE_UID, VR::UI),
    (tags::IMAGES_IN_ACQUISITION, VR::IS),
    (tags::PLANE_POSITION_SEQUENCE, VR::SQ),
    (tags::PLANE_ORIENTATION_SEQUENCE, VR::SQ),
    (tags::SAMPLES_PER_PIXEL, VR::US),
    (tags::PHOTOMETRIC_INTERPRETATION, VR::CS),
    (tags::NUMBER_OF_FRAMES, VR::IS),
    (tags::ROWS, VR::US),
    (tags::COLUMNS, VR::US),
    (tags::PIXEL_SPACING, VR::DS),
    (tags::BITS_ALLOCATED, VR::US),
    (tags::BITS_STORED, VR::US),
    (tags::HIGH_BIT, VR::US),
    (tags::PIXEL_REPRESENTATION, VR::US),
    (tags::RESCALE_INTERCEPT, VR::DS),
    (tags::RESCALE_SLOPE, VR::DS),
    (tags::MODALITY_LUT_SEQUENCE, VR::SQ),
    (tags::PIXEL_MEASURES_SEQUENCE, VR::SQ),
    (tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, VR::SQ),
    (tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, VR::SQ),
    (tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, VR::SQ),
];

/// Where the voxels lie in the (inflated) file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PixelData {
    /// Offset of the first byte of the value.
    pub(super) at: u64,
    /// Bytes; `None` where they are in fragments.
    pub(super) length: Option<u64>,
    /// Float or Double Float Pixel Data.
    pub(super) float: bool,
}

/// A DICOM file without its voxels.
#[derive(Debug)]
pub(super) struct Scanned {
    /// Transfer Syntax UID (0002,0010).
    pub(super) syntax: String,
    /// Kept attributes in explicit VR little endian.
    pub(super) elements: Vec<u8>,
    /// Where the voxels lie.
    pub(super) pixels: Option<PixelData>,
    /// Offset of the data set in the file; not 0 only where that is deflated.
    pub(super) deflated_at: u64,
    /// Why the walk ended early; `elements` then holds what came before.
    pub(super) broken: Option<Cause>,
}

/// Reads attributes of a file; `None` where it is no DICOM file (PS3.10).
pub(super) fn scan(path: &Path, wanted: &'static Wanted) -> Result<Option<Scanned>, Cause> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut source = Source::Plain(BufReader::with_capacity(1 << 14, file));
    let mut start = [0u8; 132];
    if length < start.len() as u64 {
        return Ok(None);
    }
    source.read_exact(&mut start)?;
    if &start[128..] != b"DICM" {
        return Ok(None);
    }
    let mut scanned = Scanned {
        syntax: String::new(),
        elements: Vec::new(),
        pixels: None,
        deflated_at: 0,
        broken: None,
    };
    scanned.broken = walk(source, length, wanted, &mut scanned).err();
    Ok(Some(scanned))
}

fn walk(
    source: Source,
    length: u64,
    wanted: &'static Wanted,
    scanned: &mut Scanned,
) -> Result<(), Cause> {
    if length > MAX_FILE_BYTES {
        return Err(Cause::TooLarge);
    }
    let mut walk = Walk::new(source, 132, length, wanted);
    scanned.syntax = walk.file_meta()?;
    if scanned.syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        scanned.deflated_at = walk.at;
        walk = Walk::new(walk.source.inflate(), 0, MAX_INFLATED_HEADER_BYTES, wanted);
        walk.inflated = true;
    }
    walk.big_endian = scanned.syntax == EXPLICIT_VR_BIG_ENDIAN;
    walk.implicit = scanned.syntax == uids::IMPLICIT_VR_LITTLE_ENDIAN;
    let done = walk.data_set();
    if done.is_err() {
        walk.kept.truncate(walk.kept_at_root);
    }
    scanned.elements = walk.kept;
    scanned.pixels = done?;
    Ok(())
}

/// Opens a file at the given offset of its (inflated) data.
pub(super) fn open_at(path: &Path, deflated_at: u64, at: u64) -> io::Result<Source> {
    let mut file = File::open(path)?;
    if deflated_at == 0 {
        file.seek(SeekFrom::Start(at))?;
        return Ok(Source::Plain(BufReader::with_capacity(1 << 16, file)));
    }
    file.seek(SeekFrom::Start(deflated_at))?;
    let mut source = Source::Plain(BufReader::with_capacity(1 << 16, file)).inflate();
    source.skip(at)?;
    Ok(source)
}

/// The bytes of a file, as they are or inflated.
pub(super) enum Source {
    Plain(BufReader<File>),
    Inflated(Box<DeflateDecoder<BufReader<File>>>),
}

impl Source {
    fn inflate(self) -> Self {
        match self {
            Self::Plain(file) => Self::Inflated(Box::new(DeflateDecoder::new(file))),
            inflated => inflated,
        }
    }

    pub(super) fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.seek_relative(bytes as i64),
            Self::Inflated(stream) => {
                let skipped = io::copy(&mut stream.by_ref().take(bytes), &mut io::sink())?;
                if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
            }
        }
    }

    fn step_back(&mut self, bytes: i64) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.seek_relative(-bytes),
            Self::Inflated(_) => Err(io::ErrorKind::NotSeekable.into()),
        }
    }

    fn at_end(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain(file) => Ok(file.fill_buf()?.is_empty()),
            Self::Inflated(_) => Ok(false),
        }
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buf),
            Self::Inflated(stream) => stream.read(buf),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Sequence,
    Item,
    /// Compressed data of an icon or the like: items hold bytes, not elements.
    Fragments,
}

#[derive(Clone, Copy)]
struct Level {
    inside: Inside,
    /// Where it ends; `None` where a delimiter ends it.
    end: Option<u64>,
    kept: bool,
    implicit: bool,
}

struct Header {
    tag: Tag,
    vr: Option<[u8; 2]>,
    length: u32,
}

struct Walk {
    source: Source,
    wanted: &'static Wanted,
    at: u64,
    end: u64,
    big_endian: bool,
    implicit: bool,
    inflated: bool,
    elements: usize,
    levels: Vec<Level>,
    kept: Vec<u8>,
    kept_at_root: usize,
}

impl Walk {
    fn new(source: Source, at: u64, end: u64, wanted: &'static Wanted) -> Self {
        Self {
            source,
            wanted,
            at,
            end,
            big_endian: false,
            implicit: false,
            inflated: false,
            elements: 0,
            levels: Vec::new(),
            kept: Vec::new(),
            kept_at_root: 0,
        }
    }

    /// Group 0002, which is always explicit VR little endian; gives the transfer syntax.
    fn file_meta(&mut self) -> Result<String, Cause> {
        let mut syntax = None;
        loop {
            let group = self.u16()?;
            self.source.step_back(2)?;
            self.at -= 2;
            if group != 2 {
                break;
            }
            let header = self.header()?;
            self.fits(header.length)?;
            if header.tag == tags::TRANSFER_SYNTAX_UID && header.length <= 64 {
                syntax = Some(uid(&self.bytes(header.length)?));
            } else {
                self.skip(header.length)?;
            }
        }
        syntax.ok_or(Cause::Missing("TransferSyntaxUID"))
    }

    fn data_set(&mut self) -> Result<Option<PixelData>, Cause> {
        loop {
            while let Some(end) = self.levels.last().and_then(|l| l.end) {
                if self.at < end {
                    break;
                }
                self.close();
            }
            if self.levels.is_empty() {
                self.kept_at_root = self.kept.len();
                if !self.inflated && (self.at == self.end || self.source.at_end()?) {
                    return Ok(None);
                }
            }
            self.elements += 1;
            if self.elements > MAX_ELEMENTS || self.kept.len() > self.wanted.kept_bytes {
                return Err(Cause::Header("it has more attributes than any image needs"));
            }
            let header = match self.header() {
                // The end of a deflated stream shows only on reading it.
                Err(Cause::Truncated) if self.inflated && self.levels.is_empty() => {
                    return Ok(None);
                }
                header => header?,
            };
            if let Some(pixels) = self.element(&header)? {
                return Ok(Some(pixels));
            }
        }
    }

    fn element(&mut self, header: &Header) -> Result<Option<PixelData>, Cause> {
        let level = self.levels.last().copied();
        match (level.map(|l| l.inside), header.tag) {
            (Some(Inside::Sequence), ITEM) => self.open(header, Inside::Item, level),
            (Some(Inside::Fragments), ITEM) => self.skip_value(header),
            (Some(Inside::Sequence | Inside::Fragments), SEQUENCE_END)
            | (Some(Inside::Item), ITEM_END)
                if level.is_some_and(|l| l.end.is_none()) =>
            {
                self.close();
                Ok(())
            }
            (Some(Inside::Sequence | Inside::Fragments), _) => {
                Err(Cause::Header("a sequence holds something that is no item"))
            }
            (_, ITEM | ITEM_END | SEQUENCE_END) => {
                Err(Cause::Header("a delimiter stands outside a sequence"))
            }
            (None, tags::PIXEL_DATA | tags::FLOAT_PIXEL_DATA | tags::DOUBLE_FLOAT_PIXEL_DATA) => {
                let length = (header.length != UNDEFINED).then_some(u64::from(header.length));
                let float = header.tag != tags::PIXEL_DATA;
                return Ok(Some(PixelData { at: self.at, length, float }));
            }
            _ => self.attribute(header, level),
        }
        .map(|()| None)
    }

    fn attribute(&mut self, header: &Header, level: Option<Level>) -> Result<(), Cause> {
        let wanted = level.is_none_or(|l| l.kept);
        let attributes = self.wanted.attributes;
        let kept = attributes.binary_search_by_key(&header.tag, |k| k.0).ok();
        let kept = kept.map(|at| attributes[at].1).filter(|_| wanted);
        let unknown = matches!(header.vr, None | Some([b'U', b'N']));
        let sequence = header.vr == Some(*b"SQ") || unknown && header.length == UNDEFINED;
        if kept == Some(VR::SQ) && (sequence || unknown) {
            put_tag(&mut self.kept, header.tag);
            self.kept.extend_from_slice(b"SQ\0\0\xff\xff\xff\xff");
            let implicit = header.vr == Some(*b"UN") || self.here().implicit;
            let parent = Level { kept: true, implicit, ..self.here() };
            return self.open(header, Inside::Sequence, Some(parent));
        }
        if header.length == UNDEFINED {
            let inside = if sequence {
                Inside::Sequence
            } else if matches!(header.vr, Some([b'O', b'B' | b'W'])) {
                Inside::Fragments
            } else {
                return Err(Cause::Header("an attribute that is no sequence has no length"));
            };
            let implicit = header.vr == Some(*b"UN") || self.here().implicit;
            let parent = Level { kept: false, implicit, ..self.here() };
            return self.open(header, inside, Some(parent));
        }
        match kept {
            Some(vr)
                if vr == VR::UT || vr != VR::SQ && u64::from(header.length) <= MAX_VALUE_BYTES =>
            {
                let stated = header.vr.filter(|_| !unknown && vr != VR::UT);
                self.keep(header, stated.unwrap_or(vr.to_bytes()))
            }
            _ => self.skip_value(header),
        }
    }

    /// Copies a value; a representation whose numbers have another width than it says is left out.
    fn keep(&mut self, header: &Header, vr: [u8; 2]) -> Result<(), Cause> {
        self.fits(header.length)?;
        let mut value = self.bytes(header.length)?;
        let width = match &vr {
            b"US" | b"SS" => 2,
            b"UL" | b"SL" | b"FL" => 4,
            b"FD" => 8,
            b"CS" | b"UI" | b"DA" | b"TM" | b"SH" | b"LO" | b"PN" | b"DS" | b"IS" | b"ST"
            | b"LT" | b"UT" => 1,
            _ => return Ok(()),
        };
        if value.len() % width != 0 {
            return Err(Cause::Header("a number has too few bytes"));
        }
        if self.big_endian {
            value.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        if value.len() % 2 == 1 {
            value.push(if &vr == b"UI" { 0 } else { b' ' });
        }
        put_tag(&mut self.kept, header.tag);
        self.kept.extend_from_slice(&vr);
        if &vr == b"UT" {
            self.kept.extend_from_slice(&[0; 2]);
            self.kept.extend_from_slice(&(value.len() as u32).to_le_bytes());
        } else {
            self.kept.extend_from_slice(&(value.len() as u16).to_le_bytes());
        }
        self.kept.extend_from_slice(&value);
        Ok(())
    }

    fn here(&self) -> Level {
        let root = Level { inside: Inside::Item, end: None, kept: true, implicit: self.implicit };
        self.levels.last().copied().unwrap_or(root)
    }

    fn open(
        &mut self,
        header: &Header,
        inside: Inside,
        parent: Option<Level>,
    ) -> Result<(), Cause> {
        if self.levels.len() >= 2 * MAX_NESTING {
            return Err(Cause::Header("its sequences are nested deeper than 32"));
        }
        let parent = parent.unwrap_or_else(|| self.here());
        let end = if header.length == UNDEFINED {
            None
        } else {
            self.fits(header.length)?;
            Some(self.at + u64::from(header.length))
        };
        if parent.kept && inside == Inside::Item {
            put_tag(&mut self.kept, ITEM);
            self.kept.extend_from_slice(&UNDEFINED.to_le_bytes());
        }
        self.levels.push(Level { inside, end, ..parent });
        Ok(())
    }

    fn close(&mut self) {
        let Some(level) = self.levels.pop() else { return };
        if level.kept {
            put_tag(
                &mut self.kept,
                if level.inside == Inside::Item { ITEM_END } else { SEQUENCE_END },
            );
            self.kept.extend_from_slice(&[0; 4]);
        }
    }

    /// Tag, value representation and length, PS3.5 section 7.1.
    fn header(&mut self) -> Result<Header, Cause> {
        let tag = Tag(self.u16()?, self.u16()?);
        if tag.group() == 0xFFFE || self.here().implicit {
            return Ok(Header { tag, vr: None, length: self.u32()? });
        }
        let vr = self.array::<2>()?;
        if !vr.iter().all(u8::is_ascii_uppercase) {
            return Err(Cause::Header("a value representation is no pair of letters"));
        }
        let length = match &vr {
            b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN"
            | b"UR" | b"UT" | b"UV" => {
                self.u16()?;
                self.u32()?
            }
            _ => u32::from(self.u16()?),
        };
        Ok(Header { tag, vr: Some(vr), length })
    }

    fn skip_value(&mut self, header: &Header) -> Result<(), Cause> {
        self.fits(header.length)?;
        self.skip(header.length)
    }

    /// A value must end before its item, its sequence and the file do.
    fn fits(&self, length: u32) -> Result<(), Cause> {
        let end = self.at.saturating_add(u64::from(length));
        if self.levels.iter().rev().find_map(|l| l.end).is_some_and(|inner| end > inner) {
            return Err(Cause::Header("a value is longer than the sequence that holds it"));
        }
        if length == UNDEFINED {
            return Err(Cause::Header("an attribute that is no sequence has no length"));
        }
        match end > self.end {
            true if self.inflated => Err(Cause::TooLarge),
            true => Err(Cause::Truncated),
            false => Ok(()),
        }
    }

    fn skip(&mut self, length: u32) -> Result<(), Cause> {
        self.source.skip(u64::from(length)).map_err(cut_short)?;
        self.at += u64::from(length);
        Ok(())
    }

    fn bytes(&mut self, length: u32) -> Result<Vec<u8>, Cause> {
        let mut bytes = vec![0; length as usize];
        self.source.read_exact(&mut bytes).map_err(cut_short)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Cause> {
        if self.at.saturating_add(N as u64) > self.end {
            return Err(if self.inflated { Cause::TooLarge } else { Cause::Truncated });
        }
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).map_err(cut_short)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16, Cause> {
        let bytes = self.array()?;
        Ok(if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&mut self) -> Result<u32, Cause> {
        let bytes = self.array()?;
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }
}

pub(super) fn cut_short(e: io::Error) -> Cause {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Cause::Truncated,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Cause::Header("its deflated data are damaged")
        }
        _ => Cause::Io(e),
    }
}

/// A UID as the standard allows it; other characters are dropped, so that it can stand in a message.
pub(super) fn uid(bytes: &[u8]) -> String {
    let allowed = bytes.iter().filter(|b| b.is_ascii_digit() || **b == b'.');
    allowed.take(64).map(|b| char::from(*b)).collect()
}

fn put_tag(out: &mut Vec<u8>, tag: Tag) {
    out.extend_from_slice(&tag.group().to_le_bytes());
    out.extend_from_slice(&tag.element().to_le_bytes());
}
