//! Content-addressed checkpoints on disk, and transfers that are under way.

use crate::durable::{self, Mode};
use rondo::ids::Digest;
use rondo::transfer::{self, ChunkTable, Receiving};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

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
    /// A chunk that nobody asked for.
    #[error("chunk {0} was not asked for; only missing chunks may be sent")]
    Repeated(u32),
    /// A chunk was refused.
    #[error(transparent)]
    Transfer(#[from] transfer::Error),
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ". Free space on this disk; what was received so far is kept"
        }
        _ => "",
    }
}

/// The checkpoints of a site.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
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
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where it lies.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join("checkpoints").join(digest.to_string())
    }

    /// Whether a checkpoint is here.
    #[must_use]
    pub fn has(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Keeps `bytes` durably under their digest; known bytes are not written again.
    ///
    /// # Errors
    /// If they could not be written; then nothing is there.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        // What lies there is read, so that damage is healed by whoever has the bytes again.
        if self.get(digest).is_err() {
            let path = self.path(digest);
            durable::write(&path, bytes, Mode::Private).map_err(|source| Error::Io {
                what: "storing a checkpoint in",
                path,
                source,
            })?;
        }
        Ok(digest)
    }

    /// The bytes of a checkpoint, checked against their digest.
    ///
    /// # Errors
    /// [`Error::Absent`] or [`Error::Damaged`].
    pub fn get(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let bytes = self.read(digest)?;
        let found = Digest::of(&bytes);
        if found == digest { Ok(bytes) } else { Err(Error::Damaged { expected: digest, found }) }
    }

    /// The bytes that lie under `digest`, whatever they are; for saying where damage is.
    ///
    /// # Errors
    /// [`Error::Absent`].
    pub fn read(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let path = self.path(digest);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::Absent(digest)),
            Err(source) => Err(Error::Io { what: "reading", path, source }),
        }
    }

    /// Begins or goes on with receiving a checkpoint: what is on disk and verified stays.
    ///
    /// # Errors
    /// If the table is impossible or the disk says no.
    pub fn receive(&self, table: ChunkTable) -> Result<Incoming, Error> {
        let path = self.folder.join("incoming").join(table.object.to_string());
        let mut receiving = Receiving::begin(table)?;
        let fail = |what, source| Error::Io { what, path: path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| fail("opening", e))?;
        let table = receiving.table().clone();
        let length = file.metadata().map_err(|e| fail("reading", e))?.len();
        for index in 0..table.chunks.len() as u64 {
            let range = table.range(index)?;
            if range.end > length {
                break;
            }
            let mut chunk = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
            file.read_exact_at(&mut chunk, range.start).map_err(|e| fail("reading", e))?;
            // A torn or never written chunk simply does not verify, and is asked for again.
            let _ = receiving.accept(index, &chunk);
        }
        Ok(Incoming { store: self.clone(), path, file, receiving })
    }
}

/// A checkpoint on its way in.
#[derive(Debug)]
pub struct Incoming {
    store: Store,
    path: PathBuf,
    file: File,
    receiving: Receiving,
}

impl Incoming {
    /// Chunks that are still missing.
    #[must_use]
    pub fn missing(&self) -> Vec<u32> {
        self.receiving.missing()
    }

    /// Takes one chunk if it is the signed one, and writes it to its place.
    ///
    /// # Errors
    /// A refused chunk by its digest and index, or what the disk said.
    pub fn accept(&mut self, index: u32, data: &[u8]) -> Result<(), Error> {
        if !self.receiving.is_missing(u64::from(index)) {
            return Err(Error::Repeated(index));
        }
        let range = self.receiving.accept(u64::from(index), data)?;
        self.file.write_all_at(data, range.start).map_err(|source| Error::Io {
            what: "writing",
            path: self.path.clone(),
            source,
        })
    }

    /// Stores the checkpoint once nothing is missing and `check` accepts its bytes.
    ///
    /// # Errors
    /// What the disk or `check` says. Bytes that are as signed but refused are deleted.
    pub fn finish<E: From<Error>>(
        self,
        check: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<Digest, E> {
        let Self { store, path, file, receiving } = self;
        let received = receiving.finish().map_err(|r| {
            let (index, checkpoint) = (r.missing().first().copied().unwrap_or(0), r.table().object);
            Error::Transfer(transfer::Error::Chunk { checkpoint, index: index as usize })
        })?;
        let digest = received.table().object;
        let fail = |what, source| Error::Io { what, path: path.clone(), source };
        file.set_len(received.table().bytes).map_err(|e| fail("writing", e))?;
        file.sync_all().map_err(|e| fail("writing", e))?;
        let bytes = fs::read(&path).map_err(|e| fail("reading", e))?;
        let found = Digest::of(&bytes);
        let outcome = if found == digest {
            check(&bytes)
        } else {
            Err(Error::Damaged { expected: digest, found }.into())
        };
        if let Err(e) = outcome {
            fs::remove_file(&path).map_err(|e| fail("removing", e))?;
            return Err(e);
        }
        durable::rename(&path, &store.path(digest)).map_err(|e| fail("storing", e))?;
        Ok(digest)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_refused_and_verified_chunks_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let object: Vec<u8> = (0..700_000_u32).map(|i| (i % 251) as u8).collect();
        let table = ChunkTable::of(&object);
        let chunk = |i: u64| {
            let r = table.range(i).unwrap();
            &object[usize::try_from(r.start).unwrap()..usize::try_from(r.end).unwrap()]
        };
        let mut incoming = store.receive(table.clone()).unwrap();
        assert!(incoming.accept(0, chunk(1)).is_err());
        incoming.accept(2, chunk(2)).unwrap();
        incoming.accept(0, chunk(0)).unwrap();
        drop(incoming);
        assert!(!store.has(table.object), "half a checkpoint is never read as whole");
        let mut incoming = store.receive(table.clone()).unwrap();
        assert_eq!(incoming.missing(), [1], "what was verified is not asked for again");
        incoming.accept(1, chunk(1)).unwrap();
        let digest = incoming.finish(|_| Ok::<_, Error>(())).unwrap();
        assert_eq!(store.get(digest).unwrap(), object);
        assert_eq!(store.put(&object).unwrap(), digest);

        let path = folder.path().join("checkpoints").join(digest.to_string());
        let mut bad = object.clone();
        bad[5] ^= 1;
        durable::write(&path, &bad, Mode::Private).unwrap();
        assert!(matches!(store.get(digest), Err(Error::Damaged { .. })));
        assert!(matches!(store.get(Digest::of(b"x")), Err(Error::Absent(_))));
    }
}
