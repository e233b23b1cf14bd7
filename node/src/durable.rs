//! The one way this daemon writes files: a temporary file, fsync, rename, fsync of the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Owner only: keys, weights, everything by default.
    Private,
    /// Anybody: a site card.
    Public,
}

impl Mode {
    const fn bits(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Writes `bytes` to `path` so that after a crash the file is there whole, or not at all.
///
/// # Errors
/// What the system said; nothing is left behind then.
pub fn write(path: &Path, bytes: &[u8], mode: Mode) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let mut draft = Draft::create(temporary, mode)?;
    draft.write_all(bytes)?;
    draft.keep(path)
}

/// A file that is being written; it is gone again unless it is kept.
#[derive(Debug)]
pub struct Draft {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Draft {
    /// Begins a temporary file, which must lie in the folder that it will be kept in.
    ///
    /// # Errors
    /// What the system said.
    pub fn create(path: PathBuf, mode: Mode) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode.bits());
        Ok(Self { file: options.open(&path)?, path, kept: false })
    }

    /// Puts it to its place: after a crash it is there whole, or not at all.
    ///
    /// # Errors
    /// What the system said; nothing is left behind then.
    pub fn keep(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        rename(&self.path, path)?;
        self.kept = true;
        Ok(())
    }
}

impl io::Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Moves a file that was synced already to its place, durably.
///
/// # Errors
/// What the system said.
#[allow(clippy::disallowed_methods, reason = "this is the helper that others must use")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    match to.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
