//! The sending side: only what is as signed and has the layout of a model leaves.

use super::{PIECE_BYTES, PIECES_AHEAD};
use crate::store::{Error, Stamp, Stored};
use rondo::checkpoint::Layout;
use rondo::ids::{RoundId, VisitNo};
use rondo::transfer::ChunkTable;
use rondo_proto::Bytes;
use rondo_proto::peer::{Chunk, Wanted};
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// A stored checkpoint that is to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Its file.
    pub stored: Stored,
    /// Its signed table.
    pub table: ChunkTable,
    /// The layout it must have.
    pub layout: Layout,
    /// The round.
    pub round: RoundId,
    /// The visit that made it.
    pub visit: VisitNo,
}

/// The chunks of `source` that are `wanted`, each verified before it leaves, or known to be as it was
/// when the digest of the whole was computed; what does not exist is
/// left out. A damaged one ends the stream, and the reason stands in the cell then.
pub fn send(
    source: Outgoing,
    wanted: Wanted,
) -> (impl Stream<Item = Chunk> + Send + Unpin + 'static, Arc<OnceLock<Error>>) {
    let (pieces, stream) = mpsc::channel(PIECES_AHEAD);
    let problem = Arc::new(OnceLock::new());
    let noted = problem.clone();
    tokio::task::spawn_blocking(move || {
        let mut offset = usize::try_from(wanted.offset).unwrap_or(usize::MAX);
        // Nobody needs more chunks than there are.
        let count = source.table.chunks.len();
        let proof = source.stored.take_proof();
        let exists = |index: &u32| (*index as usize) < count;
        for index in wanted.chunks.into_iter().filter(exists).take(count) {
            match source.chunk(index, proof) {
                Ok(data) if !source.cut(index, &data, offset, &pieces) => return,
                Ok(_) => offset = 0,
                Err(e) => {
                    let _ = noted.set(e);
                    return;
                }
            }
        }
    });
    (ReceiverStream::new(stream), problem)
}

impl Outgoing {
    fn chunk(&self, index: u32, proof: Option<Stamp>) -> Result<Bytes, Error> {
        let range = self.table.range(u64::from(index))?;
        let start = range.start;
        let data = self.stored.read(range)?;
        if !proof.is_some_and(|proof| self.stored.is_as(proof)) {
            self.table.verify_chunk(u64::from(index), &data)?;
        }
        self.layout.check_piece(start, &data)?;
        Ok(data.into())
    }

    /// Sends a chunk from `offset` on; false if nobody takes it any more.
    fn cut(&self, index: u32, data: &Bytes, offset: usize, out: &mpsc::Sender<Chunk>) -> bool {
        // A receiver that has more of a chunk than there is gets it whole.
        let offset = if offset < data.len() { offset } else { 0 };
        (offset..data.len()).step_by(PIECE_BYTES).all(|at| {
            let piece = Chunk {
                round: self.round.as_bytes().to_vec(),
                visit: self.visit.0,
                index,
                data: data.slice(at..data.len().min(at + PIECE_BYTES)),
                offset: u32::try_from(at).unwrap_or(u32::MAX),
            };
            out.blocking_send(piece).is_ok()
        })
    }
}
