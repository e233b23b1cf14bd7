//! Verified transfer: a chunk table that a signed manifest carries, and the receiver's bookkeeping.
//!
//! Goals: every chunk is verified on arrival against the signed table; what is on disk and verified
//! is never sent again. Not goals: choosing among senders, compression.

use crate::ids::{Digest, Hasher};
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::ops::Range;

/// Smallest chunk; small models are sent in chunks of this size.
pub const CHUNK_MIN_BYTES: u64 = 256 * 1024;
/// Most chunks in a table; larger models get larger chunks.
pub const CHUNKS_MAX: usize = 1024;
/// Largest chunk, so that a frame fits the daemon's memory bound.
pub const CHUNK_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Why a table or chunk was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The table contradicts itself or its bounds.
    #[error("the chunk table is impossible: {0}")]
    Table(&'static str),
    /// No such chunk.
    #[error("chunk {index} does not exist; there are {count}")]
    Index {
        /// Index that was sent.
        index: u64,
        /// Chunks in the table.
        count: usize,
    },
    /// A chunk has other bytes than were signed.
    #[error("chunk {index} of checkpoint {checkpoint} does not have the signed digest")]
    Chunk {
        /// The checkpoint.
        checkpoint: Digest,
        /// Index of the damaged chunk.
        index: usize,
    },
    /// A chunk is longer or shorter than was signed.
    #[error("chunk {index} of checkpoint {checkpoint} has {found} bytes, not {expected}")]
    Length {
        /// The checkpoint.
        checkpoint: Digest,
        /// Index of the chunk.
        index: u64,
        /// Bytes that were signed.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
}

/// Digests of the consecutive chunks of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkTable {
    /// Digest of the whole object.
    pub object: Digest,
    /// Length of the whole object.
    pub bytes: u64,
    /// Length of every chunk but the last.
    pub chunk_bytes: u64,
    /// Digest of each chunk.
    pub chunks: Vec<Digest>,
}

impl ChunkTable {
    /// The table of `object`.
    #[must_use]
    pub fn of(object: &[u8]) -> Self {
        let bytes = object.len() as u64;
        let chunk_bytes = chunk_bytes(bytes);
        let size = usize::try_from(chunk_bytes).unwrap_or(usize::MAX);
        let chunks = object.chunks(size).map(Digest::of).collect();
        Self { object: Digest::of(object), bytes, chunk_bytes, chunks }
    }

    /// The table of an object of `bytes` bytes, of which only one chunk is in memory at a time.
    ///
    /// # Errors
    /// What `object` said, or that it ended early.
    pub fn read(object: &mut impl Read, bytes: u64) -> io::Result<Self> {
        let chunk_bytes = chunk_bytes(bytes);
        let (mut whole, mut chunks) = (Hasher::default(), Vec::new());
        let mut chunk = Vec::new();
        let mut rest = bytes;
        while rest > 0 {
            let length = rest.min(chunk_bytes);
            chunk.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            object.read_exact(&mut chunk)?;
            whole.update(&chunk);
            chunks.push(Digest::of(&chunk));
            rest -= length;
        }
        Ok(Self { object: whole.finish(), bytes, chunk_bytes, chunks })
    }

    /// Checks that the table describes one non-empty object within bounds.
    ///
    /// # Errors
    /// [`Error::Table`] with what does not fit.
    pub fn check(&self) -> Result<(), Error> {
        if self.bytes == 0 || self.chunks.is_empty() {
            return Err(Error::Table("it is empty"));
        }
        if self.chunks.len() > CHUNKS_MAX {
            return Err(Error::Table("it has too many chunks"));
        }
        if !(CHUNK_MIN_BYTES..=CHUNK_MAX_BYTES).contains(&self.chunk_bytes) {
            return Err(Error::Table("its chunk size is out of bounds"));
        }
        if self.bytes.div_ceil(self.chunk_bytes) != self.chunks.len() as u64 {
            return Err(Error::Table("its chunks do not add up to its length"));
        }
        Ok(())
    }

    /// Where chunk `index` lies in the object.
    ///
    /// # Errors
    /// [`Error::Index`] past the end.
    pub fn range(&self, index: u64) -> Result<Range<u64>, Error> {
        if index >= self.chunks.len() as u64 {
            return Err(Error::Index { index, count: self.chunks.len() });
        }
        let start = index * self.chunk_bytes;
        Ok(start..(start + self.chunk_bytes).min(self.bytes))
    }

    /// Proves that `data` is chunk `index`.
    ///
    /// # Errors
    /// [`Error::Index`], [`Error::Length`], or [`Error::Chunk`] naming the object and the chunk.
    pub fn verify_chunk(&self, index: u64, data: &[u8]) -> Result<(), Error> {
        let range = self.range(index)?;
        let (expected, found) = (range.end - range.start, data.len() as u64);
        if found != expected {
            return Err(Error::Length { checkpoint: self.object, index, expected, found });
        }
        let signed = usize::try_from(index).ok().and_then(|i| self.chunks.get(i));
        if signed == Some(&Digest::of(data)) {
            return Ok(());
        }
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        Err(Error::Chunk { checkpoint: self.object, index })
    }

    /// The first chunk of `object` that is not as signed; none if the whole object is intact.
    #[must_use]
    pub fn first_damage(&self, object: &[u8]) -> Option<Error> {
        (0..self.chunks.len() as u64).find_map(|index| {
            let data = self
                .range(index)
                .ok()
                .and_then(|r| Some(usize::try_from(r.start).ok()?..usize::try_from(r.end).ok()?))
                .and_then(|r| object.get(r))
                .unwrap_or_default();
            self.verify_chunk(index, data).err()
        })
    }
}

/// Length of the chunks of an object of `bytes` bytes.
fn chunk_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNKS_MAX as u64).next_power_of_two().max(CHUNK_MIN_BYTES)
}

/// A transfer that is under way: which chunks are still missing.
#[derive(Debug, Clone)]
pub struct Receiving {
    table: ChunkTable,
    have: Vec<bool>,
}

/// A transfer whose every chunk was verified. Only [`Receiving::finish`] makes one.
#[derive(Debug, Clone)]
pub struct Received {
    table: ChunkTable,
}

impl Receiving {
    /// Begins with nothing.
    ///
    /// # Errors
    /// [`Error::Table`] if the table is impossible.
    pub fn begin(table: ChunkTable) -> Result<Self, Error> {
        table.check()?;
        Ok(Self { have: vec![false; table.chunks.len()], table })
    }

    /// The signed table.
    #[must_use]
    pub fn table(&self) -> &ChunkTable {
        &self.table
    }

    /// Takes chunk `index` if its bytes are the signed ones; says where to write it.
    ///
    /// # Errors
    /// [`Error::Index`] or [`Error::Chunk`]; nothing changes then.
    pub fn accept(&mut self, index: u64, data: &[u8]) -> Result<Range<u64>, Error> {
        self.table.verify_chunk(index, data)?;
        if let Some(have) = usize::try_from(index).ok().and_then(|i| self.have.get_mut(i)) {
            *have = true;
        }
        self.table.range(index)
    }

    /// Counts chunk `index` as here without its bytes, since a durable record says so, or as missing
    /// again. The whole object's digest still has to be proved.
    pub fn recall(&mut self, index: u64, here: bool) {
        if let Some(have) = usize::try_from(index).ok().and_then(|i| self.have.get_mut(i)) {
            *have = here;
        }
    }

    /// Whether chunk `index` has to be sent; true for what does not exist, which `accept` refuses.
    #[must_use]
    pub fn is_missing(&self, index: u64) -> bool {
        let have = usize::try_from(index).ok().and_then(|i| self.have.get(i));
        have != Some(&true)
    }

    /// Indices of the chunks that are still missing.
    #[must_use]
    pub fn missing(&self) -> Vec<u32> {
        (0..).zip(&self.have).filter(|(_, have)| !**have).map(|(i, _)| i).collect()
    }

    /// Ends the transfer, if nothing is missing.
    ///
    /// # Errors
    /// Gives itself back while chunks are missing.
    pub fn finish(self) -> Result<Received, Self> {
        if self.have.iter().all(|have| *have) {
            Ok(Received { table: self.table })
        } else {
            Err(self)
        }
    }
}

impl Received {
    /// The table whose chunks were all verified.
    #[must_use]
    pub fn table(&self) -> &ChunkTable {
        &self.table
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn damage_is_named_and_changes_nothing() {
        let object: Vec<u8> = (0..600_000_u32).map(|i| (i % 251) as u8).collect();
        let table = ChunkTable::of(&object);
        assert_eq!(table.chunks.len(), 3);
        let mut bad = object.clone();
        bad[300_000] ^= 1;
        let damage = table.first_damage(&bad).unwrap();
        assert_eq!(damage, Error::Chunk { checkpoint: table.object, index: 1 });
        let mut receiving = Receiving::begin(table.clone()).unwrap();
        assert!(receiving.accept(1, &bad[262_144..524_288]).is_err());
        assert!(receiving.accept(3, &[]).is_err());
        assert!(receiving.accept(2, &object[524_288..599_999]).is_err());
        assert_eq!(receiving.missing(), [0, 1, 2]);
        assert_eq!(table.first_damage(&object), None);
        let (checkpoint, expected) = (table.object, 262_144);
        assert_eq!(ChunkTable::read(&mut &object[..], 600_000).unwrap(), table);
        assert!(ChunkTable::read(&mut &object[..599_999], 600_000).is_err());
        assert_eq!(
            table.first_damage(&object[..500_000]).unwrap(),
            Error::Length { checkpoint, index: 1, expected, found: 0 }
        );
        assert_eq!(
            receiving.accept(0, &object[..262_145]),
            Err(Error::Length { checkpoint, index: 0, expected, found: 262_145 })
        );
    }

    #[test]
    fn impossible_tables_are_refused() {
        let table = ChunkTable::of(&[7; 10]);
        for bad in [
            ChunkTable { bytes: 0, ..table.clone() },
            ChunkTable { chunks: vec![], ..table.clone() },
            ChunkTable { chunk_bytes: 1, ..table.clone() },
            ChunkTable { chunk_bytes: u64::MAX, ..table.clone() },
            ChunkTable { bytes: u64::MAX, ..table.clone() },
        ] {
            assert!(Receiving::begin(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn chunks_in_any_order_complete_once(size in 1_usize..900_000, seed in any::<u64>()) {
            let object = vec![3_u8; size];
            let mut receiving = Receiving::begin(ChunkTable::of(&object)).unwrap();
            let mut order = receiving.missing();
            let turn = usize::try_from(seed % order.len() as u64).unwrap();
            order.rotate_left(turn);
            for index in order {
                receiving = receiving.finish().unwrap_err();
                let r = receiving.table().range(u64::from(index)).unwrap();
                let data = &object[usize::try_from(r.start).unwrap()..usize::try_from(r.end).unwrap()];
                receiving.accept(u64::from(index), data).unwrap();
            }
            prop_assert!(receiving.finish().is_ok());
        }
    }
}
