//! The receiving side: pieces are written as they come, chunks verified as they complete.
//!
//! Beside the half-received file lies a small record of the chunks that were verified *and* synced,
//! so that going on does not read gigabytes again. It is believed for that and nothing else: the
//! checkpoint counts as received only after its whole digest, whatever the record says.

use super::landing::{Aligned, Landing};
use crate::claim::Claim;
use crate::durable::{self, Mode};
use crate::store::Error;
use rondo::checkpoint::Layout;
use rondo::ids::{Digest, Hasher};
use rondo::transfer::{self, ChunkTable, Receiving};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After so many verified bytes they are synced and recorded, beside the transfer.
const SYNC_BYTES: u64 = 32 * 1024 * 1024;
/// Chunks that wait for the digest of the whole at most.
const CHUNKS_AHEAD: usize = 3;
/// What a record begins with, before a bit for each chunk and a digest over table and bits.
const MAGIC: &[u8] = b"rondo-received-1\n";
/// Largest record that is read.
const RECORD_MAX_BYTES: u64 = 1024;

/// Where the time of receiving went. The parts overlap.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// Writing to the file.
    pub write: Duration,
    /// Verifying each chunk.
    pub verify: Duration,
    /// The digest of the whole.
    pub whole: Duration,
    /// Waiting for the disk.
    pub sync: Duration,
}

/// A checkpoint on its way in.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    target: PathBuf,
    file: Arc<Landing>,
    layout: Layout,
    receiving: Receiving,
    /// The chunk that is under way.
    open: Open,
    /// Verified, but not synced as far as is known.
    loose: Vec<u32>,
    helpers: Option<Helpers>,
    prefix: Prefix,
    spent: Spent,
    /// Lives as long as anything writes, on whichever thread that is.
    _claim: Claim<String>,
}

#[derive(Debug, Default)]
struct Open {
    index: u32,
    data: Aligned,
    /// How much of it is written.
    written: usize,
    /// Its beginning was found on disk, so that damage need not be the sender's fault.
    found: bool,
}

/// Threads that work beside the one that writes.
#[derive(Debug)]
struct Helpers {
    whole: SyncSender<(u32, Aligned)>,
    hashing: JoinHandle<Prefix>,
    synced: SyncSender<Vec<u32>>,
    syncing: JoinHandle<Result<Duration, Error>>,
}

/// The digest of the chunks before `next`.
#[derive(Debug, Default)]
struct Prefix {
    hasher: Hasher,
    next: u32,
    spent: Duration,
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, path: path.to_owned(), source }
}

/// Bytes of a chunk in memory; a table with larger ones than fit is refused before.
fn room(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or_default()
}

impl Incoming {
    /// Begins at `path`, or goes on with what is there; the checkpoint ends at `target`.
    pub(crate) fn open(
        path: PathBuf,
        target: PathBuf,
        table: ChunkTable,
        layout: Layout,
        claim: Claim<String>,
    ) -> Result<Self, Error> {
        let receiving = Receiving::begin(table)?;
        let file = Arc::new(Landing::open(&path).map_err(fail("opening", &path))?);
        let mut this = Self {
            path,
            target,
            file,
            layout,
            receiving,
            open: Open::default(),
            loose: Vec::new(),
            helpers: None,
            prefix: Prefix::default(),
            spent: Spent::default(),
            _claim: claim,
        };
        this.take_stock()?;
        Ok(this)
    }

    /// Finds what is on disk: what the record names is not read, everything else is verified.
    fn take_stock(&mut self) -> Result<(), Error> {
        let length = self.file.file().metadata().map_err(fail("reading", &self.path))?.len();
        let table = self.receiving.table().clone();
        let recorded = recorded(&record_path(&self.path), &table);
        for index in 0..u32::try_from(table.chunks.len()).unwrap_or(u32::MAX) {
            let range = table.range(u64::from(index))?;
            if range.end > length {
                break;
            }
            if recorded.get(index as usize) == Some(&true) {
                self.receiving.recall(u64::from(index), true);
                continue;
            }
            let chunk = self.read(range.start, range.end)?;
            let sound = self.layout.check_piece(range.start, &chunk).is_ok();
            // A torn or never written chunk simply does not verify, and is asked for again.
            if sound && self.receiving.accept(u64::from(index), &chunk).is_ok() {
                self.loose.push(index);
            }
        }
        if let Some(index) = self.receiving.missing().first().copied() {
            let range = table.range(u64::from(index))?;
            if (range.start + 1..range.end).contains(&length) {
                let mut data = Aligned::with_capacity(room(range.end - range.start));
                data.push(&self.read(range.start, length)?);
                self.open = Open { index, written: data.len(), data, found: true };
            }
        }
        Ok(())
    }

    fn read(&self, start: u64, end: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or_default()];
        self.file.file().read_exact_at(&mut bytes, start).map_err(fail("reading", &self.path))?;
        Ok(bytes)
    }

    /// Chunks that are still missing.
    #[must_use]
    pub fn missing(&self) -> Vec<u32> {
        self.receiving.missing()
    }

    /// Bytes of the first missing chunk that are here.
    #[must_use]
    pub fn offset(&self) -> u32 {
        let first = self.receiving.missing().first() == Some(&self.open.index);
        if first { u32::try_from(self.open.data.len()).unwrap_or(0) } else { 0 }
    }

    /// Bytes that are here and need not be sent.
    #[must_use]
    pub fn here(&self) -> u64 {
        let table = self.receiving.table();
        let missing = self.receiving.missing();
        let lengths = missing.iter().filter_map(|index| table.range(u64::from(*index)).ok());
        let missing: u64 = lengths.map(|range| range.end - range.start).sum();
        table.bytes - missing.min(table.bytes) + u64::from(self.offset())
    }

    /// Length of the whole checkpoint.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.receiving.table().bytes
    }

    /// Takes a piece of a missing chunk, and writes it: its beginning, or what follows on the piece before.
    ///
    /// # Errors
    /// A refused chunk by its digest and index, or what the disk said.
    pub fn accept(&mut self, index: u32, offset: u32, data: &[u8]) -> Result<(), Error> {
        self.take(index, offset, data)?;
        self.write()
    }

    /// As [`Incoming::accept`], but a chunk that is not whole yet may stay unwritten until
    /// [`Incoming::write`].
    pub(super) fn take(&mut self, index: u32, offset: u32, data: &[u8]) -> Result<(), Error> {
        if !self.receiving.is_missing(u64::from(index)) {
            return Err(Error::Repeated(index));
        }
        let range = self.receiving.table().range(u64::from(index))?;
        // What was begun is finished first, or a stream could go on for ever.
        if offset == 0 && (self.open.found || self.open.data.is_empty()) {
            self.open = Open { index, ..Open::default() };
        }
        let expected = range.end - range.start;
        let length = room(expected);
        let (here, given) = (self.open.data.len(), usize::try_from(offset).unwrap_or(usize::MAX));
        if self.open.index != index || here != given || data.is_empty() {
            return Err(Error::Gap(index));
        }
        if here + data.len() > length {
            let (checkpoint, index) = (self.receiving.table().object, u64::from(index));
            let found = (here + data.len()) as u64;
            return Err(transfer::Error::Length { checkpoint, index, expected, found }.into());
        }
        if here == 0 {
            self.open.data = Aligned::with_capacity(length);
        }
        self.open.data.push(data);
        if self.open.data.len() == length {
            self.write()?;
            self.complete(range.start)?;
        }
        Ok(())
    }

    /// Writes what was taken.
    pub(super) fn write(&mut self) -> Result<(), Error> {
        let Open { index, data, written, .. } = &mut self.open;
        let rest = data.get().get(*written..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let at = self.receiving.table().range(u64::from(*index))?.start + *written as u64;
        self.file.write_at(rest, at).map_err(fail("writing", &self.path))?;
        *written += rest.len();
        self.spent.write += begun.elapsed();
        Ok(())
    }

    /// Verifies the chunk under way, now that it is whole.
    fn complete(&mut self, start: u64) -> Result<(), Error> {
        let begun = Instant::now();
        let Open { index, data, found, .. } = std::mem::take(&mut self.open);
        if let Err(e) = self.receiving.accept(u64::from(index), data.get()) {
            // Half of it lay here since before, perhaps torn: it is asked for again as a whole.
            return if found { Ok(()) } else { Err(e.into()) };
        }
        if let Err(e) = self.layout.check_piece(start, data.get()) {
            // As signed, and yet no model: no other bytes will ever come for this digest.
            self.discard()?;
            return Err(e.into());
        }
        self.spent.verify += begun.elapsed();
        self.loose.push(index);
        let sync = self.loose.len() as u64 * self.receiving.table().chunk_bytes >= SYNC_BYTES;
        if self.helpers.is_none() {
            self.helpers = Some(self.start_helpers());
        }
        if let Some(helpers) = &self.helpers {
            // If the thread ended, the whole is hashed from the file.
            let _ = helpers.whole.send((index, data));
            if sync {
                match helpers.synced.try_send(std::mem::take(&mut self.loose)) {
                    // Still busy: later, together with what follows.
                    Err(TrySendError::Full(back)) => self.loose = back,
                    Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                }
            }
        }
        Ok(())
    }

    fn start_helpers(&self) -> Helpers {
        let (whole, chunks) = sync_channel(CHUNKS_AHEAD);
        let hashing = std::thread::spawn(move || follow(&chunks));
        let (synced, batches) = sync_channel(1);
        let (file, path, table) =
            (self.file.clone(), self.path.clone(), self.receiving.table().clone());
        let syncing = std::thread::spawn(move || keep(file.file(), &path, &table, &batches));
        Helpers { whole, hashing, synced, syncing }
    }

    /// Writes what was taken and waits for the threads beside this one, so that they never outlive it.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        let written = self.write();
        let Some(Helpers { whole, hashing, synced, syncing }) = self.helpers.take() else {
            return Ok(());
        };
        drop((whole, synced));
        self.prefix = hashing.join().unwrap_or_default();
        self.spent.whole += std::mem::take(&mut self.prefix.spent);
        let lost = |_| fail("syncing", &self.path)(io::Error::other("its thread broke"));
        self.spent.sync += syncing.join().map_err(lost)??;
        written
    }

    /// Ends it for good: what was received is removed.
    ///
    /// # Errors
    /// What the disk said.
    pub fn abandon(mut self) -> Result<(), Error> {
        self.settle().and(self.discard())
    }

    /// Removes what was received.
    fn discard(&self) -> Result<(), Error> {
        remove(&record_path(&self.path))?;
        remove(&self.path)
    }

    /// Stores the checkpoint if its whole digest is the promised one. If chunks are missing or turn
    /// out to be damaged on this disk, it gives itself back to ask for them.
    ///
    /// # Errors
    /// What the disk said. Bytes that are as signed but no checkpoint are deleted.
    pub fn finish(mut self) -> Result<Result<(Digest, Spent), Self>, Error> {
        self.settle()?;
        if !self.receiving.missing().is_empty() {
            return Ok(Err(self));
        }
        let table = self.receiving.table().clone();
        let begun = Instant::now();
        let mut prefix = std::mem::take(&mut self.prefix);
        for index in u64::from(prefix.next)..table.chunks.len() as u64 {
            let range = table.range(index)?;
            prefix.hasher.update(&self.read(range.start, range.end)?);
        }
        self.spent.whole += begun.elapsed();
        let found = prefix.hasher.finish();
        if found != table.object {
            return self.search_damage(found);
        }
        // Chunks that the record named were checked against the layout of their time.
        let header = self.read(0, self.layout.header().len() as u64)?;
        if let Err(e) = self.layout.check_piece(0, &header) {
            self.discard()?;
            return Err(e.into());
        }
        let begun = Instant::now();
        self.file.file().sync_all().map_err(fail("writing", &self.path))?;
        remove(&record_path(&self.path))?;
        durable::rename(&self.path, &self.target).map_err(fail("storing", &self.path))?;
        self.spent.sync += begun.elapsed();
        Ok(Ok((table.object, self.spent)))
    }

    /// The whole is not what was promised: chunks that this disk lost are asked for again.
    fn search_damage(mut self, found: Digest) -> Result<Result<(Digest, Spent), Self>, Error> {
        let table = self.receiving.table().clone();
        for index in 0..table.chunks.len() as u64 {
            let range = table.range(index)?;
            let sound = table.verify_chunk(index, &self.read(range.start, range.end)?).is_ok();
            self.receiving.recall(index, sound);
        }
        if self.receiving.missing().is_empty() {
            self.discard()?;
            return Err(Error::Damaged { expected: table.object, found });
        }
        remove(&record_path(&self.path))?;
        tracing::warn!(
            checkpoint = %table.object.short(),
            chunks = self.receiving.missing().len(),
            "what was received lies damaged on this disk; asking for it again"
        );
        Ok(Err(self))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // The threads beside this one write too; the claim goes after them.
        let _ = self.settle();
    }
}

/// Hashes chunks as long as they come in their order.
fn follow(chunks: &Receiver<(u32, Aligned)>) -> Prefix {
    let mut prefix = Prefix::default();
    for (index, data) in chunks {
        if index == prefix.next {
            let begun = Instant::now();
            prefix.hasher.update(data.get());
            prefix.next += 1;
            prefix.spent += begun.elapsed();
        }
    }
    prefix
}

/// Syncs the file, and then records which chunks are safe.
fn keep(
    file: &File,
    path: &Path,
    table: &ChunkTable,
    batches: &Receiver<Vec<u32>>,
) -> Result<Duration, Error> {
    let record = record_path(path);
    let mut have = recorded(&record, table);
    let mut spent = Duration::ZERO;
    for batch in batches {
        let begun = Instant::now();
        file.sync_data().map_err(fail("writing", path))?;
        for index in batch {
            if let Some(have) = have.get_mut(index as usize) {
                *have = true;
            }
        }
        // The folder is synced with the record, and the file's own name with it.
        durable::write(&record, &encode(table, &have), Mode::Private)
            .map_err(fail("writing", &record))?;
        spent += begun.elapsed();
    }
    Ok(spent)
}

/// Name of the file that is received into. Who promises other chunks or another layout under the digest
/// of a whole that is not his never touches the file of whoever tells the truth about it.
pub(crate) fn transfer_name(table: &ChunkTable, layout: &Layout) -> String {
    format!("{}-{}", table.object, seal(table, layout.header()))
}

/// The checkpoint that a half-received file, or the record beside it, is of.
pub(crate) fn transfer_object(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.split(['-', '.']).next()?.parse().ok()
}

fn record_path(path: &Path) -> PathBuf {
    path.with_extension("received")
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail("removing", path)(e)),
        _ => Ok(()),
    }
}

fn encode(table: &ChunkTable, have: &[bool]) -> Vec<u8> {
    let bits = have.chunks(8).map(|eight| {
        eight.iter().enumerate().fold(0_u8, |byte, (i, have)| byte | (u8::from(*have) << i))
    });
    let mut bytes = [MAGIC, &bits.collect::<Vec<u8>>()].concat();
    let seal = seal(table, &bytes);
    bytes.extend_from_slice(seal.as_bytes());
    bytes
}

/// Binds a record to the table it speaks of.
fn seal(table: &ChunkTable, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(table.object.as_bytes());
    hasher.update(&table.bytes.to_le_bytes());
    hasher.update(&table.chunk_bytes.to_le_bytes());
    for chunk in &table.chunks {
        hasher.update(chunk.as_bytes());
    }
    hasher.update(bytes);
    hasher.finish()
}

/// What the record says of each chunk; nothing if it is missing, torn or of another table.
fn recorded(record: &Path, table: &ChunkTable) -> Vec<bool> {
    let count = table.chunks.len();
    let read = || {
        let mut bytes = Vec::new();
        File::open(record).ok()?.take(RECORD_MAX_BYTES).read_to_end(&mut bytes).ok()?;
        let (told, sealed) = bytes.split_last_chunk::<32>()?;
        let bits = told.strip_prefix(MAGIC).filter(|bits| bits.len() == count.div_ceil(8))?;
        let genuine = seal(table, told).as_bytes() == sealed;
        let bit = |i: usize| bits.get(i / 8).is_some_and(|byte| byte & (1 << (i % 8)) != 0);
        genuine.then(|| (0..count).map(bit).collect())
    };
    read().unwrap_or_else(|| vec![false; count])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests;
