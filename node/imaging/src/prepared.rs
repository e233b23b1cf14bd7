//! Prepared cases on disk: a case is read and normalised once, and mapped into memory from then on.
//!
//! ```text
//! <folder>/<key>.case   one prepared case, see `file`: 6 bytes a voxel (240×240×155: 54 MB)
//! <folder>/seen         which files were read whole before, see `seen`
//! ```
//! The key is the SHA-256 of everything a prepared case depends on: the bytes of its image, label and
//! brain mask, the label rule, the settings of its preparation and [`VERSION`]. A changed file has another key and is
//! prepared anew; a copy under another name is not. Ids, patients and paths are in no file.
//!
//! Mapped pages belong to the kernel's cache: a cohort may be larger than memory.

mod file;
mod seen;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use ndarray::ArrayView3;
use sha2::{Digest as _, Sha256};

use crate::Progress;
use crate::cohort::{Case, Cohort};
use crate::preprocess::{self, PreparedImage, Steps, prepare_image};
use crate::source;
use crate::volume::Geometry;
use seen::{Identity, Seen};

/// Version of the preprocessing and of the file; to be raised when either changes.
pub const VERSION: u32 = 2;
/// Most cases prepared at once, each of which takes about 20 bytes a voxel of its source.
pub const IN_FLIGHT: usize = 4;
/// Bytes of a file that are hashed at a time.
const READ_AT_ONCE: usize = 1 << 20;
/// An unfinished file this old was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Why a case is not there prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The case itself; others can go on.
    #[error(transparent)]
    Case(#[from] preprocess::Error),
    /// The folder of a DICOM series cannot be listed; others can go on.
    #[error(transparent)]
    Listing(#[from] source::Error),
    /// A file of the case could not be read; others can go on.
    #[error("reading {}: {source}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the case changed while it was read; others can go on.
    #[error("{} changed while it was being read; start again when it is complete", .0.display())]
    Changed(PathBuf),
    /// The folder cannot be used.
    #[error("opening the folder for prepared cases {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Other users may change files that are mapped into memory.
    #[error(
        "the folder for prepared cases {} may be written by other users; \
         it must be this user's alone (chmod 700)", .0.display()
    )]
    Shared(PathBuf),
    /// Not written, usually because the disk is full. Nothing else is lost.
    #[error(
        "writing the prepared case {} ({} MB): {source}; make room there, or choose another work folder",
        path.display(), bytes.div_ceil(1_000_000)
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// A prepared case that was just written cannot be read back.
    #[error("opening the prepared case {}: {problem}; check that disk", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: file::Problem,
    },
}

impl Error {
    /// Whether other cases would fail in the same way.
    #[must_use]
    pub fn concerns_all(&self) -> bool {
        !matches!(self, Self::Case(_) | Self::Listing(_) | Self::Source { .. } | Self::Changed(_))
    }
}

pub use file::Problem;

/// A case as a network is trained on it, mapped from its file. Arrays `[i, j, k]`, C layout, one shape.
#[derive(Debug)]
pub struct Prepared {
    /// Case id, safe as a file name.
    pub id: String,
    /// Patient of the case.
    pub patient: String,
    key: [u8; 32],
    mapped: file::Mapped,
}

impl Prepared {
    /// Normalised intensities.
    #[must_use]
    pub fn image(&self) -> ArrayView3<'_, f32> {
        self.mapped.image()
    }

    /// 1 where the label rule says metastasis.
    #[must_use]
    pub fn label(&self) -> ArrayView3<'_, u8> {
        self.mapped.label()
    }

    /// 1 inside the brain.
    #[must_use]
    pub fn brain(&self) -> ArrayView3<'_, u8> {
        self.mapped.brain()
    }

    /// The working grid.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.mapped.geometry
    }

    /// What was done to the image.
    #[must_use]
    pub fn steps(&self) -> &Steps {
        &self.mapped.notes
    }

    /// SHA-256 of everything this case depends on: equal digests, equal arrays.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.key
    }
}

/// The user that this process acts as: the second number of its line in the kernel's table.
fn own_user() -> io::Result<u32> {
    let status = fs::read_to_string("/proc/self/status")?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    users
        .and_then(|users| users.split_whitespace().nth(1)?.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/self/status does not say who this process is"))
}

/// A folder of prepared cases.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    seen: Mutex<Seen>,
}

impl Store {
    /// Opens or makes the folder; it must be writable by this user only.
    ///
    /// # Errors
    /// A folder that cannot be made or that others may write to.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Folder { path: folder.to_path_buf(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let meta = fs::metadata(folder).map_err(failed)?;
        if meta.mode() & 0o022 != 0 || meta.uid() != own_user().map_err(failed)? {
            return Err(Error::Shared(folder.to_path_buf()));
        }
        let seen = Mutex::new(Seen::load(&folder.join("seen")));
        Ok(Self { folder: folder.to_path_buf(), seen })
    }

    /// Cases, mapped if they are here and whole, else prepared first, at most [`IN_FLIGHT`] at once;
    /// results in the order of `cases`.
    ///
    /// # Errors
    /// What is wrong with this store, for example a full disk: cases prepared by then are kept.
    pub fn cases(
        &self,
        cohort: &Cohort,
        cases: &[&Case],
        mut told: impl FnMut(Progress<'_>),
    ) -> Result<Vec<Result<Prepared, Error>>, Error> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut results: Vec<_> = cases.iter().map(|_| None).collect();
        let mut broken = None;
        std::thread::scope(|scope| {
            let (finished, arrivals) = mpsc::channel();
            for _ in 0..IN_FLIGHT.min(cores).min(cases.len()) {
                let (finished, next, stopped) = (finished.clone(), &next, &stopped);
                scope.spawn(move || {
                    while !stopped.load(Ordering::Relaxed) {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(case) = cases.get(at) else { break };
                        if finished.send((at, self.one(cohort, case))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(finished);
            for (done, (at, result)) in arrivals.into_iter().enumerate() {
                match result {
                    Err(e) if e.concerns_all() => {
                        stopped.store(true, Ordering::Relaxed);
                        broken.get_or_insert(e);
                        continue;
                    }
                    result => results[at] = Some(result),
                }
                told(Progress { done: done + 1, total: cases.len(), item: &cases[at].id });
            }
        });
        self.seen().save(&self.folder.join("seen"));
        match broken {
            Some(e) => Err(e),
            None => Ok(results.into_iter().flatten().collect()),
        }
    }

    /// Removes every prepared case but those with these digests, and what dead processes left
    /// unfinished. Cases that are mapped stay usable. Returns the bytes freed.
    ///
    /// # Errors
    /// The folder cannot be listed, or a file not removed.
    pub fn prune(&self, keep: impl IntoIterator<Item = [u8; 32]>) -> Result<u64, Error> {
        let keep: BTreeSet<String> = keep.into_iter().map(|key| hex(&key)).collect();
        let failed = |source| Error::Folder { path: self.folder.clone(), source };
        let mut freed = 0;
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (name, meta) = (entry.file_name(), entry.metadata().map_err(failed)?);
            let name = name.to_string_lossy();
            let old = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            let superfluous = match name.strip_suffix(".case") {
                Some(key) => !keep.contains(key),
                None => name.ends_with(".part") && old.is_some_and(|old| old > ABANDONED),
            };
            if superfluous {
                fs::remove_file(entry.path()).map_err(failed)?;
                freed += meta.len();
            }
        }
        Ok(freed)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one(&self, cohort: &Cohort, case: &Case) -> Result<Prepared, Error> {
        let mut identities = Vec::new();
        let mut digests = Vec::new();
        for (_, path) in case.paths() {
            let files = source::files(path)?;
            let mut whole = Sha256::new();
            for file in &files {
                let (identity, digest) = self.digest(file)?;
                whole.update(digest);
                identities.push((file.clone(), identity));
            }
            digests.push(whole.finalize().into());
        }
        let key = key(cohort, case, &digests);
        let path = self.folder.join(format!("{}.case", hex(&key)));
        let ready =
            |mapped| Prepared { id: case.id.clone(), patient: case.patient.clone(), key, mapped };
        // Absent, cut or damaged: it is prepared, which replaces it.
        if let Ok(mapped) = self.map(&path, &key) {
            return Ok(ready(mapped));
        }
        let mut made = prepare_image(&case.sources(), &cohort.preprocess)?;
        let label = made.read_label(&case.label, &cohort.label)?;
        for (path, before) in &identities {
            if !Identity::of(&open(path)?).map_err(unreadable(path))?.is(before) {
                return Err(Error::Changed(path.clone()));
            }
        }
        let PreparedImage { image, brain, geometry, steps, .. } = made;
        let bytes = file::length(geometry.shape()).unwrap_or(u64::MAX);
        file::write(&path, &key, &geometry, &steps, &image, [&label, &brain])
            .map_err(|source| Error::Write { path: path.clone(), bytes, source })?;
        drop((image, label, brain));
        self.map(&path, &key).map(ready).map_err(|problem| Error::Damaged { path, problem })
    }

    /// Maps a prepared case. Its header is checked always; all its bytes are when the file was not
    /// read whole before, or was touched since.
    fn map(&self, path: &Path, key: &[u8; 32]) -> Result<file::Mapped, Problem> {
        let file = File::open(path)?;
        let identity = Identity::of(&file)?;
        let mapped = file::map(&file, key)?;
        if self.seen().get(&identity) != Some(mapped.sum) {
            mapped.check()?;
            self.seen().put(&identity, mapped.sum);
        }
        Ok(mapped)
    }

    /// SHA-256 of a whole file, from memory if it was read before and not touched since.
    fn digest(&self, path: &Path) -> Result<(Identity, [u8; 32]), Error> {
        let mut file = open(path)?;
        let identity = Identity::of(&file).map_err(unreadable(path))?;
        let known = self.seen().get(&identity);
        if let Some(digest) = known {
            return Ok((identity, digest));
        }
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; READ_AT_ONCE]);
        loop {
            match file.read(&mut buffer).map_err(unreadable(path))? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        let digest = hash.finalize().into();
        if !Identity::of(&file).map_err(unreadable(path))?.is(&identity) {
            return Err(Error::Changed(path.to_path_buf()));
        }
        self.seen().put(&identity, digest);
        Ok((identity, digest))
    }
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    |source| Error::Source { path, source }
}

/// Name of a prepared case: every text and list is preceded by its length, so nothing runs together.
fn key(cohort: &Cohort, case: &Case, digests: &[[u8; 32]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"rondo prepared case");
    hash.update(VERSION.to_le_bytes());
    let mut text = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    // JSON of the settings: fields in the order of the struct, numbers that read back the same.
    text(&serde_json::to_string(&cohort.preprocess).unwrap_or_default());
    text(case.series.as_deref().unwrap_or_default());
    let rois: BTreeSet<&str> = cohort.label.rois.iter().map(String::as_str).collect();
    text(&serde_json::to_string(&rois).unwrap_or_default());
    for values in [&cohort.label.include, &cohort.label.ignore] {
        let values: BTreeSet<u16> = values.iter().copied().collect();
        hash.update((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| hash.update(v.to_le_bytes()));
    }
    hash.update([u8::from(case.brain_mask.is_some())]);
    digests.iter().for_each(|digest| hash.update(digest));
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
