//! The file that a checkpoint is received into, written past the system's page cache where that works.
//!
//! A copy in the page cache costs more than the disk does, and drives out what a trainer reads.

use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// What direct writes begin at and are a multiple of, in the file and in memory: blocks of current disks.
const ALIGN: usize = 4096;

/// The file.
#[derive(Debug)]
pub(crate) struct Landing {
    file: File,
    direct: Option<File>,
    refused: AtomicBool,
}

impl Landing {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
        // Not every file system has it.
        let direct = OpenOptions::new().write(true).custom_flags(flags).open(path).ok();
        Ok(Self { file, direct, refused: AtomicBool::new(false) })
    }

    /// Through the page cache, and what has to be asked of the file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes `data` at `at`, whole blocks of it directly if `at` is the beginning of one.
    pub(crate) fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        let whole = data.len() - data.len() % ALIGN;
        let aligned = at.is_multiple_of(ALIGN as u64) && data.as_ptr().align_offset(ALIGN) == 0;
        let direct = self.direct.as_ref().filter(|_| aligned && whole > 0);
        let (Some(direct), Some((blocks, rest))) = (direct, data.split_at_checked(whole)) else {
            return self.file.write_all_at(data, at);
        };
        if self.refused.load(Ordering::Relaxed) {
            return self.file.write_all_at(data, at);
        }
        match direct.write_all_at(blocks, at) {
            Ok(()) => self.file.write_all_at(rest, at + whole as u64),
            // Larger blocks than those of current disks.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                self.refused.store(true, Ordering::Relaxed);
                self.file.write_all_at(data, at)
            }
            Err(e) => Err(e),
        }
    }
}

/// Bytes that lie in memory as direct writes want them.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// Room for `capacity` bytes; what was in it is gone.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::<u8>::with_capacity(capacity + ALIGN);
        let start = bytes.as_ptr().align_offset(ALIGN);
        bytes.resize(start, 0);
        Self { bytes, start }
    }

    /// Adds `piece`, and moves nothing as long as there is room for it.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    pub(crate) fn get(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
