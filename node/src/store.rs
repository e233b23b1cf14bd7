//! Content-addressed checkpoints on disk, and transfers that are under way.

use crate::claim::Claims;
use crate::durable::{Draft, Mode};
use crate::transfer::{Incoming, transfer_name};
use rondo::checkpoint::{self, Layout};
use rondo::ids::{Digest, Hasher};
use rondo::transfer::{self, ChunkTable};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What names of checkpoints begin with that are not whole yet.
const DRAFT: &str = ".upload-";

/// Why the store could not keep or give something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system said no.
    #[error("{what} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Not here.
    #[error("checkpoint {0} is not in the store")]
    Absent(Digest),
    /// The bytes on disk are not the ones that were stored.
    #[error(
        "stored checkpoint {expected} is damaged: its bytes now have digest {found}. Take it from another site of the round, or from a backup"
    )]
    Damaged {
        /// Its name.
        expected: Digest,
        /// What it is now.
        found: Digest,
    },
    /// Somebody else writes the same.
    #[error("checkpoint {0} is being received on another way already")]
    Busy(Digest),
    /// A chunk that nobody asked for.
    #[error("chunk {0} was not asked for; only missing chunks may be sent")]
    Repeated(u32),
    /// A piece that does not follow on what is here of its chunk.
    #[error("a piece of chunk {0} is empty, or does not follow on the piece before it")]
    Gap(u32),
    /// A chunk was refused.
    #[error(transparent)]
    Transfer(#[from] transfer::Error),
    /// The bytes are intact, but no checkpoint of the architecture.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ". Free space on this disk; what was received so far is kept"
        }
        _ => "",
    }
}

/// What changes of a file whenever somebody writes to it, or puts another one in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u64; 3], [i64; 2]);

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self([meta.dev(), meta.ino(), meta.len()], [meta.ctime(), meta.ctime_nsec()]))
    }
}

/// Checkpoints whose digest this process computed and that were not read since, as their files were then.
type Proved = Arc<Mutex<BTreeMap<Digest, Stamp>>>;

/// The checkpoints of a site.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    proved: Proved,
    /// Names of the files in `incoming` that are being written.
    receiving: Claims<String>,
}

impl Store {
    /// Opens or creates the store in `folder`.
    ///
    /// # Errors
    /// If its folders cannot be made.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        for path in [folder.join("checkpoints"), folder.join("incoming")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| Error::Io { what: "creating", path: path.clone(), source })?;
        }
        let this = Self {
            folder: folder.to_owned(),
            proved: Proved::default(),
            receiving: Claims::default(),
        };
        // What a daemon was killed over is no checkpoint, and nobody else writes here.
        let folder = this.folder.join("checkpoints");
        let fail = |source| Error::Io { what: "tidying", path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_name().to_string_lossy().starts_with(DRAFT) {
                fs::remove_file(entry.path()).map_err(fail)?;
            }
        }
        Ok(this)
    }

    /// Where it lies.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join("checkpoints").join(digest.to_string())
    }

    /// Whether a checkpoint is here.
    #[must_use]
    pub fn has(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Keeps `bytes` durably under their digest. What lies there already is replaced, so that damage
    /// is healed by whoever has the bytes again.
    ///
    /// # Errors
    /// If they could not be written; then nothing is there.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let mut upload = self.begin()?;
        upload.write(bytes)?;
        upload.finish()
    }

    /// Begins to keep a checkpoint that comes in pieces, as [`Store::put`] keeps a whole one.
    ///
    /// # Errors
    /// What the disk said.
    pub fn begin(&self) -> Result<Upload, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{DRAFT}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let path = self.folder.join("checkpoints").join(name);
        let draft = Draft::create(path.clone(), Mode::Private);
        let draft = draft.map_err(|source| Error::Io { what: "creating", path, source })?;
        Ok(Upload { store: self.clone(), draft, hasher: Hasher::default() })
    }

    /// The bytes of a checkpoint, checked against their digest. For small ones: see [`Store::find`].
    ///
    /// # Errors
    /// [`Error::Absent`] or [`Error::Damaged`].
    pub fn get(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let stored = self.find(digest)?;
        let bytes = stored.read(0..stored.bytes())?;
        let found = Digest::of(&bytes);
        if found == digest { Ok(bytes) } else { Err(Error::Damaged { expected: digest, found }) }
    }

    /// Removes a checkpoint, if it is here.
    ///
    /// # Errors
    /// What the disk said.
    pub fn remove(&self, digest: Digest) -> Result<(), Error> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { what: "removing", path, source: e })
            }
            _ => Ok(()),
        }
    }

    /// The file of a checkpoint, whose bytes are whatever they are.
    ///
    /// # Errors
    /// [`Error::Absent`].
    pub fn find(&self, digest: Digest) -> Result<Stored, Error> {
        let path = self.path(digest);
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((bytes, file)) => {
                let proved = self.proved.clone();
                Ok(Stored { path, file, digest, bytes, proved })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::Absent(digest)),
            Err(source) => Err(Error::Io { what: "reading", path, source }),
        }
    }

    /// Begins or goes on with receiving a checkpoint: what is on disk and verified stays. Whichever way
    /// it comes, one receives it at a time.
    ///
    /// # Errors
    /// [`Error::Busy`], or if the table is impossible or the disk says no.
    pub fn receive(&self, table: ChunkTable, layout: Layout) -> Result<Incoming, Error> {
        let name = transfer_name(&table, &layout);
        let path = self.folder.join("incoming").join(&name);
        let claim = self.receiving.take(name).ok_or(Error::Busy(table.object))?;
        let target = self.path(table.object);
        Incoming::open(path, target, table, layout, claim)
    }
}

/// A checkpoint that is being written.
#[derive(Debug)]
pub struct Upload {
    store: Store,
    draft: Draft,
    hasher: Hasher,
}

impl Upload {
    /// Takes the next piece.
    ///
    /// # Errors
    /// What the disk said.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.hasher.update(piece);
        let path = || self.store.folder.join("checkpoints");
        let fail = |source| Error::Io { what: "storing a checkpoint in", path: path(), source };
        self.draft.write_all(piece).map_err(fail)
    }

    /// Keeps it under its digest.
    ///
    /// # Errors
    /// What the disk said; then nothing is there.
    pub fn finish(self) -> Result<Digest, Error> {
        let digest = self.hasher.finish();
        let path = self.store.path(digest);
        let fail = |source| Error::Io { what: "storing", path: path.clone(), source };
        self.draft.keep(&path).map_err(fail)?;
        Ok(digest)
    }
}

/// A checkpoint in the store, to be read in parts.
#[derive(Debug)]
pub struct Stored {
    path: PathBuf,
    file: File,
    digest: Digest,
    bytes: u64,
    proved: Proved,
}

impl Stored {
    /// Its length on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its bytes in `range`; fewer if the file ends before.
    ///
    /// # Errors
    /// What the disk said.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let end = range.end.min(self.bytes);
        let length = usize::try_from(end.saturating_sub(range.start)).unwrap_or_default();
        let mut bytes = vec![0; length];
        let fail = |source| Error::Io { what: "reading", path: self.path.clone(), source };
        self.file.read_exact_at(&mut bytes, range.start).map_err(fail)?;
        Ok(bytes)
    }

    /// Its chunk table.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its bytes are no longer those of its digest.
    pub fn table(&self) -> Result<ChunkTable, Error> {
        let fail = |source| Error::Io { what: "reading", path: self.path.clone(), source };
        let before = Stamp::of(&self.file).map_err(fail)?;
        let table = ChunkTable::read(&mut &self.file, self.bytes).map_err(fail)?;
        let found = table.object;
        if found == self.digest {
            self.proved().insert(self.digest, before);
            Ok(table)
        } else {
            Err(Error::Damaged { expected: self.digest, found })
        }
    }

    /// How the file was when this process computed its digest, for one who reads it soon after. It is
    /// given once: who comes again may do so because the disk lost something.
    #[must_use]
    pub fn take_proof(&self) -> Option<Stamp> {
        self.proved().remove(&self.digest)
    }

    /// Whether nobody has written to the file since.
    #[must_use]
    pub fn is_as(&self, stamp: Stamp) -> bool {
        Stamp::of(&self.file).is_ok_and(|now| now == stamp)
    }

    fn proved(&self) -> MutexGuard<'_, BTreeMap<Digest, Stamp>> {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Proves that it is as signed in `table` and has `layout`, a chunk at a time.
    ///
    /// # Errors
    /// [`Error::Transfer`] with the first damaged chunk, or [`Error::Checkpoint`].
    pub fn check(&self, table: &ChunkTable, layout: &Layout) -> Result<(), Error> {
        for index in 0..table.chunks.len() as u64 {
            let range = table.range(index)?;
            let (start, data) = (range.start, self.read(range)?);
            table.verify_chunk(index, &data)?;
            layout.check_piece(start, &data)?;
        }
        let (expected, found) = (layout.len(), self.bytes);
        if found == expected {
            Ok(())
        } else {
            Err(checkpoint::Error::Length { expected, found }.into())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::durable;
    use rondo::checkpoint::Extras;
    use rondo::recipe::Architecture;

    const NARROW: Architecture = Architecture { n1: 20, n2: 24, n3: 28, m: 40 };

    #[test]
    fn damage_is_refused_and_verified_chunks_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let layout = Layout::new(&NARROW, Extras::NONE);
        let mut object = layout.header().to_vec();
        object.resize(usize::try_from(layout.len()).unwrap(), 1);
        let table = ChunkTable::of(&object);
        let count = u32::try_from(table.chunks.len()).unwrap();
        assert!(count > 3, "{count} chunks");
        let chunk = |i: u32| {
            let r = table.range(u64::from(i)).unwrap();
            &object[usize::try_from(r.start).unwrap()..usize::try_from(r.end).unwrap()]
        };
        let receive = || store.receive(table.clone(), layout.clone()).unwrap();
        let mut incoming = receive();
        assert!(incoming.accept(0, 0, chunk(1)).is_err());
        incoming.accept(2, 0, chunk(2)).unwrap();
        incoming.accept(0, 0, chunk(0)).unwrap();
        drop(incoming);
        assert!(!store.has(table.object), "half a checkpoint is never read as whole");
        let mut incoming = receive();
        let rest: Vec<u32> = (0..count).filter(|i| ![0, 2].contains(i)).collect();
        assert_eq!(incoming.missing(), rest, "what was verified is not asked for again");
        for index in rest {
            incoming.accept(index, 0, chunk(index)).unwrap();
        }
        let digest = incoming.finish().unwrap().unwrap().0;
        assert_eq!(store.get(digest).unwrap(), object);
        assert_eq!(store.put(&object).unwrap(), digest);
        let stored = store.find(digest).unwrap();
        assert!(stored.take_proof().is_none());
        assert_eq!(stored.table().unwrap(), table);
        stored.check(&table, &layout).unwrap();
        let proof = store.find(digest).unwrap().take_proof().unwrap();
        assert!(stored.is_as(proof) && stored.take_proof().is_none(), "given once");

        let path = folder.path().join("checkpoints").join(digest.to_string());
        let mut bad = object.clone();
        bad[300_000] ^= 1;
        File::options().write(true).open(&path).unwrap().write_all_at(&[1], 0).unwrap();
        assert!(!stored.is_as(proof), "somebody wrote to it");
        durable::write(&path, &bad, Mode::Private).unwrap();
        assert!(!store.find(digest).unwrap().is_as(proof), "another file");
        assert!(matches!(store.get(digest), Err(Error::Damaged { .. })));
        let stored = store.find(digest).unwrap();
        assert!(matches!(stored.table(), Err(Error::Damaged { .. })));
        let found = stored.check(&table, &layout);
        assert!(matches!(found, Err(Error::Transfer(transfer::Error::Chunk { index: 1, .. }))));
        assert!(matches!(store.get(Digest::of(b"x")), Err(Error::Absent(_))));
        assert_eq!(store.put(&object).unwrap(), digest);
        assert_eq!(store.get(digest).unwrap(), object, "healed");
    }

    #[test]
    fn an_upload_that_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let names = || fs::read_dir(folder.path().join("checkpoints")).unwrap().count();
        let mut upload = store.begin().unwrap();
        upload.write(b"ab").unwrap();
        assert_eq!(names(), 1);
        drop(upload);
        assert_eq!(names(), 0);
        // As a killed daemon leaves it.
        std::mem::forget(store.begin().unwrap());
        assert_eq!(names(), 1);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(names(), 0);
        let mut upload = store.begin().unwrap();
        upload.write(b"ab").unwrap();
        upload.write(b"c").unwrap();
        assert_eq!(upload.finish().unwrap(), Digest::of(b"abc"));
    }
}
