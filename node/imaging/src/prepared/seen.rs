//! Which files were read whole before, so that a start need not read a cohort of hundreds of GB again.
//!
//! A file is known by device, inode, size, and its times of modification and of status change in
//! nanoseconds. Every write to a file, and every attempt to set its times back, sets the status
//! change time, which no program can choose; so a known identity means the bytes that were hashed.
//! Two writes within one tick of the kernel's clock could share that time: a file that was touched
//! in the last seconds before it was read is not remembered. What this does not see is a disk that
//! returns other bytes than were written.
//!
//! The file holds the SHA-256 of the rest in its first line, then a line per file. A damaged or missing
//! one costs reading everything once more, and nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use super::hex;
use crate::durable;

/// Nanoseconds a file must have been left alone before it is remembered: more than the resolution
/// of any file system's times (FAT: 2 s).
const SETTLED_NS: i128 = 3_000_000_000;
/// Largest file that is read: 250,000 lines.
const MAX_BYTES: u64 = 64 << 20;
const FIRST_LINE: &str = "rondo seen 1 ";

/// The state of a file, see above.
#[derive(Debug)]
pub(super) struct Identity {
    state: String,
    settled: bool,
}

impl Identity {
    /// To be taken before the file is read.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        let modified = ns(meta.mtime(), meta.mtime_nsec());
        let changed = ns(meta.ctime(), meta.ctime_nsec());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i128::try_from(now.as_nanos()).unwrap_or_default();
        Ok(Self {
            state: format!("{} {} {} {modified} {changed}", meta.dev(), meta.ino(), meta.size()),
            settled: now - modified.max(changed) > SETTLED_NS,
        })
    }

    #[cfg(test)]
    pub(super) fn settled(self) -> Self {
        Self { settled: true, ..self }
    }

    /// Whether the file was left alone between the two.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.state == other.state
    }
}

/// Digests of files by their state.
#[derive(Debug, Default)]
pub(super) struct Seen {
    known: BTreeMap<String, [u8; 32]>,
    changed: bool,
}

impl Seen {
    /// What was saved; nothing if that is missing, damaged or too large.
    pub(super) fn load(path: &Path) -> Self {
        let mut text = String::new();
        let read = File::open(path).and_then(|f| f.take(MAX_BYTES + 1).read_to_string(&mut text));
        let known = match read {
            Ok(n) if n as u64 <= MAX_BYTES => parse(&text).unwrap_or_default(),
            _ => BTreeMap::new(),
        };
        Self { known, changed: false }
    }

    pub(super) fn get(&self, identity: &Identity) -> Option<[u8; 32]> {
        self.known.get(&identity.state).copied()
    }

    /// Remembers a file that was read whole and has been left alone for a while.
    pub(super) fn put(&mut self, identity: &Identity, digest: [u8; 32]) {
        if identity.settled {
            self.known.insert(identity.state.clone(), digest);
            self.changed = true;
        }
    }

    /// Saves what is new. Where that fails the next start reads the files again; whatever stopped it
    /// stops the writing of a case as well, which is told.
    pub(super) fn save(&mut self, path: &Path) {
        if !self.changed {
            return;
        }
        let mut lines = String::new();
        for (identity, digest) in &self.known {
            let _ = writeln!(lines, "{identity} {}", hex(digest));
        }
        let sum = hex(&Sha256::digest(&lines));
        let saved = durable::write(path, format!("{FIRST_LINE}{sum}\n{lines}").as_bytes());
        self.changed = saved.is_err();
    }
}

fn parse(text: &str) -> Option<BTreeMap<String, [u8; 32]>> {
    let (first, lines) = text.split_once('\n')?;
    if first.strip_prefix(FIRST_LINE)? != hex(&Sha256::digest(lines)) {
        return None;
    }
    lines
        .lines()
        .map(|line| {
            let (identity, digest) = line.rsplit_once(' ')?;
            Some((identity.to_owned(), unhex(digest)?))
        })
        .collect()
}

pub(super) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}
