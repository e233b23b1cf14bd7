//! DICOM files of a few hundred bytes, as seeds and as the series a fuzzed object refers to.

/// Explicit VR little endian (PS3.5 A.2).
pub const EXPLICIT: &str = "1.2.840.10008.1.2.1";
/// Implicit VR little endian (PS3.5 A.1).
pub const IMPLICIT: &str = "1.2.840.10008.1.2";
/// RLE lossless (PS3.5 A.4.2).
pub const RLE: &str = "1.2.840.10008.1.2.5";
/// JPEG baseline (PS3.5 A.4.1).
pub const JPEG: &str = "1.2.840.10008.1.2.4.50";
/// JPEG lossless, first order (PS3.5 A.4.1).
pub const JPEG_LOSSLESS: &str = "1.2.840.10008.1.2.4.70";
/// JPEG-LS lossless (PS3.5 A.4.3).
pub const JPEG_LS: &str = "1.2.840.10008.1.2.4.80";
/// JPEG XL lossless.
pub const JPEG_XL: &str = "1.2.840.10008.1.2.4.110";
/// JPEG 2000 lossless (PS3.5 A.4.4).
pub const JPEG_2000: &str = "1.2.840.10008.1.2.4.90";
const MR: &str = "1.2.840.10008.5.1.4.1.1.4";
const ENHANCED_MR: &str = "1.2.840.10008.5.1.4.1.1.4.1";
const ROWS: u16 = 8;
const COLUMNS: u16 = 6;
/// Rows and columns of the compressed frames among the data of the tests.
const COMPRESSED: [u16; 2] = [12, 16];

/// Data elements in the order they are put.
pub struct Elements {
    bytes: Vec<u8>,
    implicit: bool,
}

impl Elements {
    /// None yet.
    pub fn new(implicit: bool) -> Self {
        Self { bytes: Vec::new(), implicit }
    }

    /// Puts an element; the value is padded to an even length.
    pub fn put(&mut self, tag: (u16, u16), vr: &str, value: &[u8]) -> &mut Self {
        let mut value = value.to_vec();
        if value.len() % 2 == 1 {
            value.push(if vr == "UI" || vr.starts_with('O') { 0 } else { b' ' });
        }
        let length = value.len() as u32;
        self.head(tag, vr, length);
        self.bytes.extend_from_slice(&value);
        self
    }

    /// Puts text.
    pub fn text(&mut self, tag: (u16, u16), vr: &str, value: &str) -> &mut Self {
        self.put(tag, vr, value.as_bytes())
    }

    /// Puts an unsigned short.
    pub fn short(&mut self, tag: (u16, u16), value: u16) -> &mut Self {
        self.put(tag, "US", &value.to_le_bytes())
    }

    /// Puts a sequence of these items.
    pub fn sequence(&mut self, tag: (u16, u16), items: &[Elements]) -> &mut Self {
        let mut value = Vec::new();
        for item in items {
            value.extend_from_slice(&[0xfe, 0xff, 0x00, 0xe0]);
            value.extend_from_slice(&(item.bytes.len() as u32).to_le_bytes());
            value.extend_from_slice(&item.bytes);
        }
        self.put(tag, "SQ", &value)
    }

    /// Puts encapsulated pixel data: an empty offset table and these fragments.
    pub fn fragments(&mut self, fragments: &[&[u8]]) -> &mut Self {
        self.head((0x7fe0, 0x0010), "OB", u32::MAX);
        for fragment in [&[][..]].iter().chain(fragments) {
            self.bytes.extend_from_slice(&[0xfe, 0xff, 0x00, 0xe0]);
            self.bytes.extend_from_slice(&(fragment.len() as u32).to_le_bytes());
            self.bytes.extend_from_slice(fragment);
        }
        self.bytes.extend_from_slice(&[0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
        self
    }

    fn head(&mut self, (group, element): (u16, u16), vr: &str, length: u32) {
        self.bytes.extend_from_slice(&group.to_le_bytes());
        self.bytes.extend_from_slice(&element.to_le_bytes());
        if self.implicit {
            self.bytes.extend_from_slice(&length.to_le_bytes());
            return;
        }
        self.bytes.extend_from_slice(vr.as_bytes());
        if matches!(vr, "OB" | "OW" | "SQ" | "UN" | "UT" | "OF") {
            self.bytes.extend_from_slice(&[0, 0]);
            self.bytes.extend_from_slice(&length.to_le_bytes());
        } else {
            self.bytes.extend_from_slice(&(length as u16).to_le_bytes());
        }
    }

    /// A file of these elements (PS3.10 7.1).
    pub fn file(&self, class: &str, instance: &str, syntax: &str) -> Vec<u8> {
        let mut meta = Elements::new(false);
        meta.put((2, 1), "OB", &[0, 1])
            .text((2, 2), "UI", class)
            .text((2, 3), "UI", instance)
            .text((2, 0x10), "UI", syntax)
            .text((2, 0x12), "UI", "1.2.3.4");
        let mut length = Elements::new(false);
        length.put((2, 0), "UL", &(meta.bytes.len() as u32).to_le_bytes());
        [&[0; 128][..], b"DICM", &length.bytes, &meta.bytes, &self.bytes].concat()
    }
}

fn head(elements: &mut Elements, class: &str, instance: &str) {
    elements
        .text((8, 0x16), "UI", class)
        .text((8, 0x18), "UI", instance)
        .text((8, 0x20), "DA", "20200101")
        .text((8, 0x60), "CS", "MR")
        .text((8, 0x103e), "LO", "t1 mprage km")
        .text((0x10, 0x10), "PN", "Nobody")
        .text((0x10, 0x20), "LO", "0")
        .text((0x18, 0x10), "LO", "Gd")
        .text((0x20, 0x0d), "UI", "1.2.3.1")
        .text((0x20, 0x0e), "UI", "1.2.3.2")
        .text((0x20, 0x11), "IS", "1");
}

fn image(elements: &mut Elements, frames: Option<usize>, [rows, columns]: [u16; 2], bits: u16) {
    elements.short((0x28, 2), 1).text((0x28, 4), "CS", "MONOCHROME2");
    if let Some(frames) = frames {
        elements.text((0x28, 8), "IS", &frames.to_string());
    }
    elements.short((0x28, 0x10), rows).short((0x28, 0x11), columns);
    if frames.is_none() {
        elements.text((0x28, 0x30), "DS", "0.9\\0.8");
    }
    elements
        .short((0x28, 0x100), bits.next_multiple_of(8))
        .short((0x28, 0x101), bits)
        .short((0x28, 0x102), bits - 1)
        .short((0x28, 0x103), 0)
        .text((0x28, 0x1052), "DS", "-3")
        .text((0x28, 0x1053), "DS", "0.5")
        .text((0x28, 0x1054), "LO", "US");
}

fn pixels(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| ((n * 37 % 4096) as u16).to_le_bytes()).collect()
}

/// Slice `n` of a series of single files, 2.5 mm apart, a little oblique.
pub fn slice(n: usize, syntax: &str) -> Vec<u8> {
    let data = pixels(usize::from(ROWS * COLUMNS));
    single(n, syntax, [ROWS, COLUMNS], 12, |elements| {
        if syntax == RLE {
            elements.fragments(&[&rle(&data)]);
        } else {
            elements.put((0x7fe0, 0x10), "OW", &data);
        }
    })
}

/// As [`slice`], with a compressed frame of 16 columns and 12 rows.
pub fn compressed(n: usize, syntax: &str, bits: u16, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.resize(frame.len().next_multiple_of(2), 0);
    single(n, syntax, COMPRESSED, bits, |elements| {
        elements.fragments(&[&frame]);
    })
}

fn single(
    n: usize,
    syntax: &str,
    size: [u16; 2],
    bits: u16,
    pixels: impl FnOnce(&mut Elements),
) -> Vec<u8> {
    let mut elements = Elements::new(syntax == IMPLICIT);
    let instance = format!("1.2.3.5.{n}");
    head(&mut elements, MR, &instance);
    let z = 2.5 * n as f64;
    elements
        .text((0x20, 0x13), "IS", &n.to_string())
        .text((0x20, 0x32), "DS", &format!("-10\\{}\\{}", -20.0 - 0.6 * z, 0.8 * z))
        .text((0x20, 0x37), "DS", "1\\0\\0\\0\\0.8\\0.6")
        .text((0x20, 0x52), "UI", "1.2.3.3");
    image(&mut elements, None, size, bits);
    pixels(&mut elements);
    elements.file(MR, &instance, syntax)
}

/// Two segments, high bytes first, each of literal runs (PS3.5 annex G).
fn rle(data: &[u8]) -> Vec<u8> {
    let segment = |part: usize| -> Vec<u8> {
        let bytes: Vec<u8> = data.iter().skip(part).step_by(2).copied().collect();
        let mut out: Vec<u8> =
            bytes.chunks(128).flat_map(|run| [&[run.len() as u8 - 1], run].concat()).collect();
        out.resize(out.len().next_multiple_of(2), 0);
        out
    };
    let (high, low) = (segment(1), segment(0));
    let mut out = vec![0; 64];
    out[0] = 2;
    out[4] = 64;
    out[8] = 64 + high.len() as u8;
    [out, high, low].concat()
}

/// An Enhanced MR object with functional groups (PS3.3 A.36.2).
pub fn enhanced(frames: usize) -> Vec<u8> {
    let mut all = Elements::new(false);
    head(&mut all, ENHANCED_MR, "1.2.3.6");
    all.text((0x20, 0x52), "UI", "1.2.3.3");
    image(&mut all, Some(frames), [ROWS, COLUMNS], 12);
    let one = |tag, element: Elements| {
        let mut group = Elements::new(false);
        group.sequence(tag, &[element]);
        group
    };
    let mut measures = Elements::new(false);
    measures.text((0x18, 0x50), "DS", "2").text((0x28, 0x30), "DS", "0.9\\0.8");
    let mut orientation = Elements::new(false);
    orientation.text((0x20, 0x37), "DS", "1\\0\\0\\0\\1\\0");
    let mut shared = one((0x20, 0x9116), orientation);
    shared.sequence((0x28, 0x9110), &[measures]);
    all.sequence((0x5200, 0x9229), &[shared]);
    let each: Vec<Elements> = (0..frames)
        .map(|n| {
            let mut position = Elements::new(false);
            position.text((0x20, 0x32), "DS", &format!("0\\0\\{}", 2 * n));
            one((0x20, 0x9113), position)
        })
        .collect();
    all.sequence((0x5200, 0x9230), &each);
    all.put((0x7fe0, 0x10), "OW", &pixels(frames * usize::from(ROWS * COLUMNS)));
    all.file(ENHANCED_MR, "1.2.3.6", EXPLICIT)
}
