//! The one place of this crate that puts bytes on disk: whole and synced, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// What every program asks for; the user's umask takes away from it.
const USUAL: u32 = 0o666;
/// Only this user reads and writes.
const PRIVATE: u32 = 0o600;

/// Writes a file through a temporary neighbour: fill, fsync, rename, fsync the folder.
///
/// A reader sees the old file or the new one; after a failure the temporary file is removed.
pub fn write_with<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    replace(path, USUAL, fill)
}

/// Writes these bytes durably.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, USUAL, |file| file.write_all(bytes))
}

/// Writes these bytes durably into a file that only this user may read, whoever could read the file
/// that it replaces: for what shows patients or names them.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, PRIVATE, |file| file.write_all(bytes))
}

fn replace<E: From<io::Error>>(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?
        .to_string_lossy();
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{name}.{}-{serial}.part", std::process::id()));
    let result = place(&temporary, path, &folder, mode, fill);
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Removes the temporary neighbours of `path` that killed processes left. Nobody else may be writing
/// it; what cannot be removed stays, and harms nothing.
pub fn remove_abandoned(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
    let start = format!(".{}.", name.to_string_lossy());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&start) && name.ends_with(".part") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "this helper is what the ban points to")]
fn place<E: From<io::Error>>(
    temporary: &Path,
    path: &Path,
    folder: &Path,
    mode: u32,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary)?;
    let mut file = BufWriter::new(file);
    fill(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.b.c");
        write(&path, b"old").unwrap();
        let failed = write_with(&path, |f| {
            f.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for name in [".a.b.c.17-0.part", ".a.b.17-0.part"] {
            fs::File::create(dir.path().join(name)).unwrap();
        }
        remove_abandoned(&path);
        assert!(path.exists() && dir.path().join(".a.b.17-0.part").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_private_file_replaces_one_that_all_may_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!((mode(), fs::read(&path).unwrap().as_slice()), (0o600, b"new".as_slice()));
    }
}
