//! The zip that `torch.save` writes, and no other: stored entries below one folder, each of a kind
//! that such a file has.
//!
//! Nothing is unpacked and no name is ever used as a path: an entry is a piece of the bytes given.
//! Memory is bounded by [`ENTRIES_MAX`] and [`NAME_MAX_BYTES`].

use super::cursor::Cursor;
use super::quoted;
use std::collections::BTreeMap;

/// Most entries that are listed; a checkpoint of DeepMedic with its optimizer has 340.
const ENTRIES_MAX: u64 = 4096;
/// Longest name of an entry; the folder is the stem of a file name.
const NAME_MAX_BYTES: usize = 512;
/// Longest number of a storage.
const KEY_MAX_DIGITS: usize = 10;

const LOCAL: u32 = 0x0403_4b50;
const DIRECTORY: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const END_BYTES: usize = 22;
const LOCATOR_64_BYTES: usize = 20;
/// Flags that change nothing here: sizes after the data, compression hints, names in UTF-8.
const FLAGS_ALLOWED: u16 = 0x080e;
/// Number of the extra field that holds what does not fit into 32 bits.
const EXTRA_64: u16 = 1;

/// Why a zip is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Something points outside the file.
    #[error("its {0} is cut off or lies outside the file")]
    Outside(&'static str),
    /// The zip as a whole is not as `torch.save` writes it.
    #[error("{0}")]
    Directory(&'static str),
    /// One entry is not.
    #[error("its entry {name} {reason}")]
    Entry { name: String, reason: &'static str },
    /// More entries than a checkpoint has.
    #[error("it claims {0} entries, and at most {ENTRIES_MAX} are read")]
    Entries(u64),
}

/// Entries by their names below the top folder, each a piece of the file.
#[derive(Debug, Default)]
pub(crate) struct Archive<'a> {
    entries: BTreeMap<&'a str, &'a [u8]>,
}

/// One line of the directory.
struct Listed<'a> {
    name: &'a str,
    size: u64,
    offset: u64,
    crc: u32,
}

impl<'a> Archive<'a> {
    /// Lists the entries of a zip, and proves each by its checksum.
    ///
    /// # Errors
    /// Whatever is not a zip of `torch.save`, by the name of the entry.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, Error> {
        let (count, start, end) = directory(bytes)?;
        let mut cursor = bytes
            .get(..end)
            .and_then(|b| Cursor::at(b, start))
            .ok_or(Error::Outside("directory"))?;
        let mut all = BTreeMap::new();
        let mut ranges = Vec::new();
        for _ in 0..count {
            let listed = line(&mut cursor)?;
            let wrong = |reason| Error::Entry { name: quoted(listed.name), reason };
            let (range, data) = data(bytes, start, &listed)?;
            if crc32fast::hash(data) != listed.crc {
                return Err(wrong(
                    "does not match its checksum: the file is damaged, or was saved without",
                ));
            }
            ranges.push((range, listed.name));
            if all.insert(listed.name, data).is_some() {
                return Err(wrong("is there twice"));
            }
        }
        if !cursor.is_at_end() {
            return Err(Error::Directory("its directory holds more than it says"));
        }
        ranges.sort_unstable_by_key(|(range, _)| range.start);
        if let Some([_, (_, name)]) =
            ranges.array_windows().find(|[(a, _), (b, _)]| a.end > b.start)
        {
            return Err(Error::Entry { name: quoted(name), reason: "overlaps another one" });
        }
        below_one_folder(&all)
    }

    /// Bytes of an entry.
    pub(crate) fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.entries.get(name).copied()
    }

    /// Bytes of storage `key`, which must be a number.
    pub(crate) fn storage(&self, key: &str) -> Option<&'a [u8]> {
        is_key(key).then(|| self.get(&format!("data/{key}"))).flatten()
    }
}

fn is_key(text: &str) -> bool {
    (1..=KEY_MAX_DIGITS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// Number of entries, and where the directory starts and ends.
fn directory(bytes: &[u8]) -> Result<(u64, u64, usize), Error> {
    let outside = Error::Outside("end record");
    let end_at = bytes.len().checked_sub(END_BYTES).ok_or(outside.clone())?;
    let mut end = Cursor::at(bytes, end_at as u64).ok_or(outside.clone())?;
    if end.u32() != Some(END) {
        return Err(Error::Directory(
            "it does not end like a zip of torch.save: the file is cut off, or something follows it",
        ));
    }
    let mut field = || end.u16().ok_or(outside.clone());
    let (disk, first_disk, here, count) = (field()?, field()?, field()?, field()?);
    let (size, offset) =
        end.u32().zip(end.u32()).ok_or(outside).map(|(a, b)| (u64::from(a), u64::from(b)))?;
    if disk != 0 || first_disk != 0 || here != count || end.u16() != Some(0) {
        return Err(Error::Directory("it is a part of a zip, or has a comment"));
    }
    let count = u64::from(count);
    let large = large_directory(bytes, end_at)?;
    let (count, size, offset, stop) = match large {
        None => (count, size, offset, end_at),
        // A field of the small record holds the same number, or nothing but ones.
        Some((c, s, o, stop))
            if (count == c || count == u64::from(u16::MAX))
                && (size == s || size == u64::from(u32::MAX))
                && (offset == o || offset == u64::from(u32::MAX)) =>
        {
            (c, s, o, stop)
        }
        Some(_) => return Err(Error::Directory("its two end records contradict each other")),
    };
    if count > ENTRIES_MAX {
        return Err(Error::Entries(count));
    }
    if offset.checked_add(size) != Some(stop as u64) {
        return Err(Error::Directory("its directory does not lie where its end record says"));
    }
    Ok((count, offset, stop))
}

/// The same from the record of zip64, and where that record starts.
fn large_directory(bytes: &[u8], end: usize) -> Result<Option<(u64, u64, u64, usize)>, Error> {
    let at = end.checked_sub(LOCATOR_64_BYTES).and_then(|at| Cursor::at(bytes, at as u64));
    let Some(mut locator) = at.filter(|c| c.clone().u32() == Some(LOCATOR_64)) else {
        return Ok(None);
    };
    let mut read = || -> Option<(u64, u64, u64, usize)> {
        let (_, disk, at, disks) = (locator.u32()?, locator.u32()?, locator.u64()?, locator.u32()?);
        let mut record = Cursor::at(bytes, at)?;
        let start = record.position();
        let (magic, length) = (record.u32()?, record.u64()?);
        record.u32()?;
        let (this, first) = (record.u32()?, record.u32()?);
        let (here, count, size, offset) =
            (record.u64()?, record.u64()?, record.u64()?, record.u64()?);
        let ends = at.checked_add(12)?.checked_add(length)? == (end - LOCATOR_64_BYTES) as u64;
        let whole = disk == 0 && disks <= 1 && this == 0 && first == 0 && here == count;
        (magic == END_64 && ends && whole).then_some((count, size, offset, start))
    };
    read().map(Some).ok_or(Error::Outside("zip64 end record"))
}

/// Reads one line of the directory.
fn line<'a>(cursor: &mut Cursor<'a>) -> Result<Listed<'a>, Error> {
    let outside = Error::Outside("directory");
    let mut fields = || -> Option<_> {
        let magic = cursor.u32()?;
        cursor.u32()?;
        let (flags, method) = (cursor.u16()?, cursor.u16()?);
        cursor.u32()?;
        let crc = cursor.u32()?;
        let (stored, size) = (u64::from(cursor.u32()?), u64::from(cursor.u32()?));
        let lengths = [cursor.u16()?, cursor.u16()?, cursor.u16()?].map(usize::from);
        let disk = cursor.u16()?;
        cursor.take(6)?;
        let offset = u64::from(cursor.u32()?);
        let [name, extra, comment] = lengths;
        let (name, extra) = (cursor.take(name)?, cursor.take(extra)?);
        cursor.take(comment)?;
        Some((magic, flags, method, crc, stored, size, disk, offset, name, extra))
    };
    let (magic, flags, method, crc, stored, size, disk, offset, name, extra) =
        fields().ok_or(outside)?;
    if magic != DIRECTORY {
        return Err(Error::Directory("its directory is damaged"));
    }
    let text = name.get(..NAME_MAX_BYTES).unwrap_or(name);
    let wrong = |reason| Error::Entry { name: quoted(&String::from_utf8_lossy(text)), reason };
    if name.len() > NAME_MAX_BYTES {
        return Err(wrong("has a name of more than 512 bytes"));
    }
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(wrong("has a name that is not UTF-8"));
    };
    if method != 0 {
        return Err(wrong("is compressed, which torch.save never does"));
    }
    if flags & !FLAGS_ALLOWED != 0 || disk != 0 {
        return Err(wrong("is encrypted, patched or on another disk"));
    }
    let [size, stored, offset] = enlarged([size, stored, offset], extra)
        .ok_or_else(|| wrong("has a damaged zip64 field"))?;
    if stored != size {
        return Err(wrong("is stored, but its two sizes differ"));
    }
    Ok(Listed { name, size, offset, crc })
}

/// Replaces each number that is nothing but ones by the next one of the zip64 field.
fn enlarged(mut numbers: [u64; 3], extra: &[u8]) -> Option<[u64; 3]> {
    if !numbers.contains(&u64::from(u32::MAX)) {
        return Some(numbers);
    }
    let mut fields = Cursor::new(extra);
    loop {
        let (number, length) = (fields.u16()?, fields.u16()?);
        let mut field = Cursor::new(fields.take(usize::from(length))?);
        if number == EXTRA_64 {
            for n in numbers.iter_mut().filter(|n| **n == u64::from(u32::MAX)) {
                *n = field.u64()?;
            }
            return Some(numbers);
        }
    }
}

/// An entry's bytes, and the range of the file that it takes with its header.
fn data<'a>(
    bytes: &'a [u8],
    directory: u64,
    listed: &Listed<'_>,
) -> Result<(std::ops::Range<usize>, &'a [u8]), Error> {
    let wrong = |reason| Error::Entry { name: quoted(listed.name), reason };
    let limit = usize::try_from(directory).unwrap_or(usize::MAX);
    let before = bytes.get(..limit).unwrap_or_default();
    let read = || -> Option<_> {
        let mut local = Cursor::at(before, listed.offset)?;
        let start = local.position();
        let magic = local.u32()?;
        local.u16()?;
        let (flags, method) = (local.u16()?, local.u16()?);
        local.take(16)?;
        let (name, extra) = (usize::from(local.u16()?), usize::from(local.u16()?));
        let name = local.take(name)?;
        local.take(extra)?;
        let data = local.take(usize::try_from(listed.size).ok()?)?;
        Some((magic, flags, method, name, start..local.position(), data))
    };
    let (magic, flags, method, name, range, data) =
        read().ok_or_else(|| wrong("is cut off or lies outside the file"))?;
    if magic != LOCAL
        || method != 0
        || flags & !FLAGS_ALLOWED != 0
        || name != listed.name.as_bytes()
    {
        return Err(wrong("is not the one that the directory lists at its place"));
    }
    Ok((range, data))
}

/// Takes off the top folder, and refuses what `torch.save` does not write.
fn below_one_folder<'a>(all: &BTreeMap<&'a str, &'a [u8]>) -> Result<Archive<'a>, Error> {
    let folder = all
        .keys()
        .find_map(|name| name.strip_suffix("/data.pkl").filter(|folder| !folder.contains('/')))
        .ok_or(Error::Directory(
            "it holds no `data.pkl` below one folder: it is not of torch.save",
        ))?;
    let mut entries = BTreeMap::new();
    for (name, data) in all {
        let below = name.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
        let known = below.filter(|below| {
            let around = ["version", "byteorder", ".format_version", ".storage_alignment"];
            matches!(*below, "data.pkl" | ".data/serialization_id")
                || around.contains(below)
                || below.strip_prefix("data/").is_some_and(is_key)
        });
        let Some(below) = known else {
            return Err(Error::Entry {
                name: quoted(name),
                reason: "is none of those that torch.save writes",
            });
        };
        entries.insert(below, *data);
    }
    Ok(Archive { entries })
}
