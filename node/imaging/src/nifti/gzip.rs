//! Gzip (RFC 1952) with all processors, one ordinary member that every reader takes.
//!
//! Blocks are deflated each on its own and end on a byte (RFC 1951, a stored block of length 0), so
//! that they can be joined; their checksums are combined. The bytes depend on the data alone.

use std::io::{self, Write};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use rayon::prelude::*;

/// Bytes deflated by one thread at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks held in memory together.
const BLOCKS_AT_ONCE: usize = 16;
/// Magic, deflate, no flags, no time, fastest method, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];

/// Compresses what is written to it.
pub(super) struct Encoder<W: Write> {
    out: W,
    pending: Vec<u8>,
    crc: Crc,
}

impl<W: Write> Encoder<W> {
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&HEADER)?;
        Ok(Self { out, pending: Vec::with_capacity(BLOCK_BYTES * BLOCKS_AT_ONCE), crc: Crc::new() })
    }

    /// Writes what is left and the trailer.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.compress()?;
        self.out.write_all(&deflate(&[], FlushCompress::Finish)?)?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }

    fn compress(&mut self) -> io::Result<()> {
        let blocks = self.pending.par_chunks(BLOCK_BYTES).map(|block| {
            let mut crc = Crc::new();
            crc.update(block);
            Ok((crc, deflate(block, FlushCompress::Sync)?))
        });
        for (crc, bytes) in blocks.collect::<io::Result<Vec<_>>>()? {
            self.crc.combine(&crc);
            self.out.write_all(&bytes)?;
        }
        self.pending.clear();
        Ok(())
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES * BLOCKS_AT_ONCE - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == BLOCK_BYTES * BLOCKS_AT_ONCE {
            self.compress()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn deflate(block: &[u8], flush: FlushCompress) -> io::Result<Vec<u8>> {
    let mut deflater = Compress::new(Compression::fast(), false);
    let mut out = Vec::with_capacity(block.len() / 2 + 64);
    loop {
        let at = deflater.total_in() as usize;
        let status = deflater.compress_vec(&block[at..], &mut out, flush)?;
        let all = deflater.total_in() as usize == block.len();
        // A flush is complete only once it leaves room.
        if all && (status == Status::StreamEnd || out.len() < out.capacity()) {
            return Ok(out);
        }
        out.reserve(block.len() / 4 + 64);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn one_member_with_the_same_bytes_whatever_their_number() {
        for length in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, BLOCK_BYTES * BLOCKS_AT_ONCE + 77] {
            let noisy = |n: usize| {
                if n.is_multiple_of(3) { n.wrapping_mul(2_654_435_761) >> 13 } else { n >> 9 }
            };
            let data: Vec<u8> = (0..length).map(|n| noisy(n) as u8).collect();
            let mut encoder = Encoder::new(Vec::new()).unwrap();
            for piece in data.chunks(100_003) {
                encoder.write_all(piece).unwrap();
            }
            let packed = encoder.finish().unwrap();
            let mut back = Vec::new();
            // Reads a single member and checks its checksum and length.
            flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut back).unwrap();
            assert!(back == data, "{length} bytes");
        }
    }
}
